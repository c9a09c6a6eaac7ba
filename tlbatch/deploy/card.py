"""Model card of an exported model: the README.md of its folder, written from the run's report."""

import re
from collections.abc import Iterable, Sequence

from tlbatch.core.text import counted
from tlbatch.deploy.record import WEIGHTS, Exported
from tlbatch.report.checklist import NOT_KNOWN, checklist, formatted, limits
from tlbatch.report.page import SCORE_NAMES, visible, warnings_of
from tlbatch.runs.records import SPLITS
from tlbatch.runs.report import Estimate, Report

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~!&])")
_WHATS = {
    "safetensors": "all weights, for tlbatch",
    "onnx": "the complete model from square images to probabilities, for ONNX Runtime and others",
    "pt2": "the same, for `torch.export.load`",
}


def write_card(record: Exported, report: Report) -> str:
    """Return the text of the card."""
    parts = [
        f"# {_plain(record.run)}",
        (
            f"An image classifier, exported by tlbatch {record.tlbatch} from run `{record.run}` of {record.created}. "
            f"It assigns each image to one of {len(record.classes)} classes: {_names(record.classes)}."
        ),
        *(f"**{_plain(title)}.** {_plain(text)}" for title, text in warnings_of(report)),
        "## How to use it",
        *_usage(record),
        "## Input and output",
        _list(_interface(record)),
        "## Evaluation",
        *_scores(record, report),
        "## Data",
        _counts(report),
        "## What is known about it",
        _list(
            f"{_plain(item.topic)}: {_plain(item.found)}"
            for item in checklist(report, num_mistakes=0, rival=None)
            if item.found
        ),
        "## Intended use and limits",
        _list(_plain(limit) for limit in limits(report)),
        "Not known; find out before use:",
        _list(_plain(unknown) for unknown in NOT_KNOWN),
    ]
    return visible("\n\n".join(parts)) + "\n"


def _usage(record: Exported) -> Iterable[str]:
    yield "With tlbatch, on files or folders of files, with or without a GPU:"
    yield "```bash\npython -m tlbatch.predict FOLDER IMAGES... --csv answers.csv\n```"
    yield "FOLDER is the folder that holds this file. Images are preprocessed as in training."
    rows = []
    for name, form in record.forms.items():
        difference = "not computed" if form.difference is None else f"{form.difference:.1e}"
        found = f"left out: {_plain(form.left_out)}" if form.left_out else difference
        rows.append([f"`{form.file}`", _WHATS[name], found])
    yield _table(["file", "contents", f"largest difference on {counted(record.num_checked, 'test image')}"], rows)
    yield (
        f"Only `{WEIGHTS}` can be loaded without running code from the file. Open `model.pt2` only if you trust its "
        "source; `model.json` has the SHA-256 of every file."
    )


def _interface(record: Exported) -> Iterable[str]:
    done, model = record.preprocessing, record.network
    if done.value_range is not None:
        low, high = done.value_range
        yield (
            f"In images of more than 8 bits, the values {low:g} and {high:g} become 0 and 255, unless the file states "
            "its own range; this is done only by tlbatch."
        )
    if done.steps:
        yield f"First steps, done only by tlbatch: {', '.join(done.steps)}."
    if done.resize:
        yield f"Images whose short side exceeds {done.resize} pixels are scaled down to it and stored as JPEG."
    yield f"The central square is resized to {done.size} x {done.size} pixels, bilinear with antialiasing."
    graphs = [f"`{form.file}`" for form in record.forms.values() if form.file != WEIGHTS and not form.left_out]
    if graphs:
        yield (
            f"{' and '.join(graphs)}: the input `images`, uint8, (n, {done.size}, {done.size}, 3), RGB, are such "
            f"squares, not normalised; the output is `probabilities`, float32, (n, {len(record.classes)})."
        )
    yield "The class with the highest probability is predicted."
    if record.thresholds:
        cuts = ", ".join(f"{value:.4f}" for value in record.thresholds)
        yield f"Classes come from a grade with thresholds at {cuts}; the probabilities are made to agree with them."
    if record.temperature is not None:
        yield f"The probabilities include the report's temperature scaling ({record.temperature:.4f})."
    if done.view_mean:
        yield "The head takes the mean feature vector of several views of an image."
    elif done.views != "none":
        yield f"The probabilities are averaged over views of an image: the symmetries {done.views} of the square."
    if model.head.group_mean:
        yield (
            "The head was trained on the vector of an image together with those of its group (such as the other eye of "
            "a patient). Here each image is treated as alone in its group, so the scores below do not apply to it."
        )


def _scores(record: Exported, report: Report) -> Iterable[str]:
    tested = f"{counted(report.n, 'test image')} of {counted(report.num_groups, 'group')}"
    yield f"On {tested}, with 95 % bootstrap intervals over groups:"
    yield _table(
        ["score", "value (interval)"],
        [
            [SCORE_NAMES[name], _plain(formatted(found))]
            for name, found in report.scores.items()
            if found.value is not None
        ],
    )
    rows = [
        [_plain(one.name), f"{one.support:,}", *map(_short, (one.precision, one.recall, one.f1))]
        for one in report.classes
    ]
    yield _table(["class", "test images", "precision", "recall", "F1"], rows)
    if record.from_predictions is not None:
        yield (
            "Recomputed in 32 bits during export, its probabilities differ by at most "
            f"{record.from_predictions:.1e} from those that were scored."
        )


def _short(found: Estimate) -> str:
    return _plain(formatted(found)) if found.value is not None else "undefined"


def _counts(report: Report) -> str:
    splits = [split for split in SPLITS if split in report.counts]
    names = [one.name for one in report.classes]
    rows = [[_plain(name), *(f"{report.counts[split][at]:,}" for split in splits)] for at, name in enumerate(names)]
    return _table(["images of class", *splits], rows)


def _names(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - 30} more" if len(classes) > 30 else ""
    return ", ".join(map(_plain, classes[:30])) + more


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells are Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _plain(text: str) -> str:
    """Return the text on one line, with all Markdown characters escaped."""
    return _MARKS.sub(r"\\\1", " ".join(text.splitlines()))
