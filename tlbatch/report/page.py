"""The report of a run as one self-contained HTML file.

The same report always gives the same bytes. All content is treated as text: templates escape it, and invisible
characters are written as backslash escapes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tlbatch.config.base import Metric
from tlbatch.core.files import write_text
from tlbatch.core.text import counted
from tlbatch.metrics.bootstrap import REPLICATES
from tlbatch.report import confusion_matrix, formats, plots
from tlbatch.report.checklist import NOT_KNOWN, checklist, limits, main_score
from tlbatch.runs.records import SPLITS
from tlbatch.runs.report import SCORES, ClassScores, Comparison, Question, Report, ScoreName

MOST_REJECTED = 50
SCORE_NAMES: Mapping[ScoreName, str] = {name: name.replace("_", " ") for name in SCORES} | {
    "kappa": "unweighted kappa",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "mcc": "Matthews correlation",
    "grade_error": "mean grade error",
}
_PHRASE_SCORES = {
    "exact_match": "Exact match",
    "edit_distance": "Edit distance",
    "bleu": "BLEU",
    "macro_f1": "Macro F1",
    "mean_attribute": "Mean attribute accuracy",
}
_PHRASE_HINTS = {
    "exact_match": "the same tags in the same order",
    "edit_distance": "insertions, deletions and substitutions; lower is better",
    "macro_f1": "mean over the tags that occur in true phrases",
    "mean_attribute": "mean over the attributes that occur in true phrases",
}
_SPLIT_NAMES: Mapping[str, str] = {"train": "training", "val": "validation", "test": "test"}
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(frozen=True)
class Mistake:
    """A misclassified test image."""

    key: str
    truth: str
    predicted: str
    probability: float
    """Predicted probability of the wrong class."""
    image: bytes
    """PNG or JPEG thumbnail."""
    heat: bytes | None
    """The thumbnail with a Grad-CAM overlay; None: not available."""


@dataclass(frozen=True)
class Picture:
    """A picture of the network."""

    name: str
    title: str
    caption: str
    image: bytes
    """PNG."""


@dataclass(frozen=True)
class Drawn:
    """Pictures and plots of a report, of a network and its test images."""

    mistakes: Sequence[Mistake] = ()
    """The most confident errors, most confident first."""
    pictures: Sequence[Picture] = ()
    feature_map: plots.FeatureMap | None = None


@dataclass(frozen=True)
class Shown:
    """The content of the page of a run."""

    report: Report
    rival: Comparison | None
    """Comparison with the best other run on the same test images."""
    epochs: Sequence[Mapping[str, Any]]
    """Lines of metrics.jsonl, one per epoch."""
    mistakes: Sequence[Mistake]
    """Most confident first."""
    rejected: Sequence[tuple[str, str]]
    """Key and reason."""
    pictures: Sequence[Picture]
    settings: Sequence[tuple[str, str]]
    """Keys of the job with values other than the defaults."""
    feature_map: plots.FeatureMap | None = None
    """Test images in the feature space of the network."""


def write_page(path: Path, shown: Shown) -> None:
    """Write the page of a run, atomically."""
    sections = [(name, title) for name, title, is_there in _sections(shown) if is_there]
    render(path, "report.html.j2", {
        "shown": shown,
        "report": shown.report,
        "main": main_score(shown.report),
        "classes": _names(shown.report),
        "sections": sections,
        "warnings": warnings_of(shown.report),
        "limits": limits(shown.report),
        "not_known": NOT_KNOWN,
        "items": checklist(shown.report, num_mistakes=len(shown.mistakes), rival=shown.rival),
        "rejected": shown.rejected[:MOST_REJECTED],
    })  # fmt: skip


def _names(report: Report) -> list[str]:
    """Return the names of the classes, or of the tags."""
    return list(report.tags.f1) if report.tags else [one.name for one in report.classes]


def _sections(shown: Shown) -> Iterable[tuple[str, str, bool]]:
    """Yield template, title and whether the section has content."""
    report = shown.report
    yield "scores", "Scores", report.tags is None
    yield "tags", "Phrases of tags", report.tags is not None
    yield "confusion", "Confusion matrix", bool(report.classes)
    yield "classes", "Classes", bool(report.classes)
    yield "questions", "Binary questions", bool(report.questions)
    yield "calibration", "Calibration", report.tags is None
    yield "thresholds", "Thresholds between grades", report.thresholds is not None
    yield "deployed", "Scores at deployment prevalence", report.deployed is not None
    yield "subgroups", "Subgroups", bool(report.subgroups)
    yield "external", "External leaderboards", bool(report.external)
    yield "training", "Training", True
    yield "strategy", "Choice of strategy", report.strategy is not None
    yield "mistakes", "Most confident errors", bool(shown.mistakes)
    yield "figures", "More figures", bool(shown.pictures or shown.feature_map)
    yield "data", "Data", True
    yield "provenance", "Provenance and cost", True
    yield "card", "Model card", True
    yield "checklist", "Reporting checklist", True


def warnings_of(report: Report) -> list[tuple[str, str]]:
    """Return the warnings to show before the scores, as title and text."""
    found = []
    leaks = _leaks(report)
    if leaks:
        found.append((
            "Data leakage: the scores are not reliable",
            f"A duplicate, a near-duplicate or an image of the same group is {'; '.join(leaks)}.",
        ))  # fmt: skip
    if report.synthetic:
        found.append(
            ("Synthetic images", "The images are computer-generated: the scores say nothing about real images.")
        )
    if report.num_errors:
        found.append((
            "Unreadable test images",
            f"{counted(report.num_errors, 'test image')} could not be read; {report.n:,} were evaluated.",
        ))  # fmt: skip
    if report.num_rejected:
        found.append((
            "Rejected images",
            f"{counted(report.num_rejected, 'image')} of the source could not be used and are in no split.",
        ))  # fmt: skip
    return [*found, *(("Splits", f"{formats.capitalised(warning)}.") for warning in report.warnings)]


def _leaks(report: Report) -> list[str]:
    """Describe the leaks between splits; a total over two other splits is given only where both have some."""
    across = {pair: number for pair, number in report.audit.across.items() if number}
    found = []
    for pair, number in sorted(across.items()):
        split, _, others = pair.partition(" in ")
        parts = others.split(" or ")
        if len(parts) == 1 or all(f"{split} in {one}" in across for one in parts):
            where = " or ".join(map(_split, parts))
            found.append(f"in {where} for {counted(number, f'{_split(split)} image')}")
    return found


def _split(name: str) -> str:
    return _SPLIT_NAMES.get(name, name)


def render(path: Path, template: str, values: Mapping[str, object]) -> None:
    """Write a page from a template, atomically."""
    text = _pages().get_template(template).render(values)
    write_text(path, visible(text))


def visible(text: str) -> str:
    """Replace invisible characters by backslash escapes."""
    return _UNSEEN.sub(_backslashed, text)


def _backslashed(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()


@cache
def _pages() -> Environment:
    pages = Environment(
        loader=PackageLoader("tlbatch.report", "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters |= {
        "p_value": formats.p_value, "count": formats.count, "data_uri": formats.data_uri, "duration": formats.duration,
        "number": formats.number,
        "score_name": SCORE_NAMES.__getitem__, "percent": formats.percent, "signed": formats.signed,
        "split_name": _split, "counted": counted, "capitalised": formats.capitalised,
    }  # fmt: skip
    pages.globals |= {
        "confusion_matrix": confusion_matrix, "leaks": _leaks, "main_score": main_score,
        "phrase_hints": _PHRASE_HINTS, "phrase_scores": _PHRASE_SCORES,
        "plots": plots, "pr": _pr, "replicates": REPLICATES, "roc": _roc, "run_rows": _run_rows,
        "score_names": SCORE_NAMES, "splits": SPLITS, "subgroup_rows": _subgroup_rows,
    }  # fmt: skip
    return pages


def _roc(questions: Sequence[ClassScores | Question]) -> Markup:
    curves = [(f"{one.name}, AUC {formats.number(one.auc.value)}", one.roc) for one in questions]
    labels = ("false positive rate (1 - specificity)", "sensitivity")
    return plots.unit_curves("ROC curves", labels, curves, chance=True)


def _pr(questions: Sequence[ClassScores | Question]) -> Markup:
    curves = [(f"{one.name}, average precision {formats.number(one.average_precision)}", one.pr) for one in questions]
    return plots.unit_curves("Precision and recall", ("recall (sensitivity)", "precision"), curves, chance=False)


def _subgroup_rows(report: Report, column: str) -> list[plots.Row]:
    own = [one for one in report.subgroups if one.column == column]
    rows = [(one.value or "(empty)", one.scores[report.metric], False) for one in own if report.metric in one.scores]
    return [("all test images", main_score(report), True), *rows]


def _run_rows(reports: Sequence[Report], metric: Metric) -> list[plots.Row]:
    own = [one for one in reports if one.metric == metric]
    return [(one.run, main_score(one), at == 0) for at, one in enumerate(own)]
