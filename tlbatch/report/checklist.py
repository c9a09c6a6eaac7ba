"""The limitations of a run in words, and the topics of reporting guidelines that its report covers.

The topics are those of STARD-AI (2025), CLAIM (2024 update) and TRIPOD+AI (2024), paraphrased and without item numbers;
the published guidelines are authoritative.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tlbatch.core.text import counted
from tlbatch.runs.report import Comparison, Estimate, Report

Guideline = Literal["STARD-AI", "CLAIM", "TRIPOD+AI"]
_STARD: tuple[Guideline, ...] = ("STARD-AI",)
_CLAIM: tuple[Guideline, ...] = ("CLAIM",)
_TRIPOD: tuple[Guideline, ...] = ("TRIPOD+AI",)
_ALL: tuple[Guideline, ...] = _STARD + _CLAIM + _TRIPOD
_FEW_IMAGES, _FEW_GROUPS = 30, 100
_VERDICTS = {"not different": "no difference shown"}
NOT_KNOWN = (
    "Intended use and intended users of the model.",
    "Study population, selection of the images, and who labelled them by which criteria.",
    "Pre-training data of the backbone, and the licence of its weights.",
    "Clinical consequences of each type of error: no score here accounts for them.",
)
"""What a model card should state but cannot be derived from a run."""


@dataclass(frozen=True)
class Item:
    """A topic of the reporting guidelines."""

    part: str
    topic: str
    guidelines: tuple[Guideline, ...]
    found: str = ""
    """What the report states about it; empty: to be completed by the authors."""


def main_score(report: Report) -> Estimate:
    """Return the primary score, by which the run is ranked."""
    return report.scores.get(report.metric, Estimate(value=report.score))


def checklist(report: Report, *, num_mistakes: int, rival: Comparison | None) -> list[Item]:
    """List all topics in the order of a paper."""
    return [*_purpose(), *_data(report), *_model(report), *_results(report, num_mistakes, rival), *_rest(report)]


def _purpose() -> Iterable[Item]:
    part = "Purpose and design"
    yield Item(part, "Intended use, intended users and place in the care pathway", _ALL)
    yield Item(part, "Background and study objectives", _ALL)
    yield Item(part, "Study design: prospective or retrospective data collection", _ALL)
    yield Item(part, "Study protocol and registration", _ALL)
    yield Item(part, "Ethics approval and informed consent", _ALL)


def _data(report: Report) -> Iterable[Item]:
    part, audit, sizes = "Data", report.audit, report.num_images
    yield Item(part, "Data sources: setting, dates, devices, eligibility criteria", _ALL)
    yield Item(part, "De-identification", _CLAIM)
    yield Item(part, "Reference standard: annotators, criteria, inter-rater agreement", _ALL)
    split = ", ".join(f"{sizes[name]:,} {name}" for name in sizes)
    groups = f"evaluated on {counted(report.n, 'test image')} of {counted(report.num_groups, 'group')}"
    yield Item(part, "Flow of images from the source to each split", _ALL,
               f"{split}; {report.num_rejected:,} rejected; {groups}" if split else "")  # fmt: skip
    leaks = ", ".join(f"{number:,} {pair}" for pair, number in sorted(audit.across.items()) if number)
    yield Item(part, "Independence of the splits at image and patient level, and how it was ensured", _ALL,
               f"audit for duplicates, near-duplicates and shared groups: {leaks or 'none across splits'}")  # fmt: skip
    kept = f", {audit.num_similar:,} of them similar, not equal" if audit.num_similar else ""
    yield Item(part, "Conflicting labels", _CLAIM,
               f"images with a duplicate or near-duplicate of another label: {audit.num_contradicting:,}{kept}; "
               f"{audit.num_dropped:,} dropped")  # fmt: skip
    steps = f", {', '.join(report.steps)}" if report.steps else ""
    yield Item(part, "Preprocessing", _CLAIM + _TRIPOD, f"shorter side at most {report.resize} pixels{steps}"
               if report.resize else ", ".join(report.steps))  # fmt: skip
    yield Item(part, "Missing and unusable images, and how they were handled", _ALL,
               f"{report.num_rejected:,} rejected, {report.num_errors:,} unreadable test images excluded")  # fmt: skip
    yield Item(part, "Sample size and its justification", _ALL)


def _model(report: Report) -> Iterable[Item]:
    part, best = "Model", report.checkpoint
    size = f", {best.num_parameters:,} parameters" if best else ""
    yield Item(part, "Model architecture and initial weights", _CLAIM + _TRIPOD,
               f"{report.backbone}{size}; weights: {report.weights}")  # fmt: skip
    chosen = (
        f"phase {best.phase}, epoch {best.epoch}, selected on the validation set"
        if best and best.val_score is not None
        else ""
    )
    yield Item(part, "Training procedure and model selection", _CLAIM + _TRIPOD,
               "; ".join(filter(None, (report.strategy.why if report.strategy else "", chosen))))  # fmt: skip
    several = f"{report.ensemble} of {len(report.members)} runs" if report.members else "none: a single run"
    yield Item(part, "Ensembling", _CLAIM, several)
    yield Item(part, "Software and versions", _ALL,
               ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items())))  # fmt: skip


def _results(report: Report, num_mistakes: int, rival: Comparison | None) -> Iterable[Item]:
    part, found = "Evaluation", main_score(report)
    name = report.metric.replace("_", " ")
    yield Item(part, "Performance measures with confidence intervals", _ALL, f"{name} {formatted(found)}")
    aims = [point.aim for question in report.questions for point in question.points if point.threshold is not None]
    yield Item(part, "Decision thresholds and how they were chosen", _STARD + _TRIPOD,
               "; ".join(dict.fromkeys(aims)))  # fmt: skip
    yield Item(part, "Cross-tabulation of predictions against the reference standard", _STARD + _CLAIM,
               f"{len(report.confusion)} by {len(report.confusion)} matrix" if report.confusion else "")  # fmt: skip
    used = report.calibration
    ece = used and (used.after if used.kept and used.after else used.before).ece
    yield Item(part, "Calibration", _TRIPOD, f"expected calibration error {formatted(ece)}" if ece else "")
    columns = dict.fromkeys(one.column for one in report.subgroups)
    yield Item(part, "Performance in subgroups; fairness", _STARD + _TRIPOD, f"by {', '.join(columns)}" * bool(columns))
    yield Item(part, "Class prevalence in the intended setting", _STARD + _TRIPOD,
               "scores at a deployment prevalence are reported" if report.deployed else "")  # fmt: skip
    yield Item(part, "Comparison with another model", _STARD + _CLAIM,
               f"{rival.other}: {_VERDICTS.get(rival.verdict, rival.verdict)} ({formatted(rival.difference)})"
               if rival else "")  # fmt: skip
    yield Item(
        part, "Failure analysis", _CLAIM, f"the {num_mistakes} most confident errors are shown" if num_mistakes else ""
    )
    yield Item(part, "External validation", _ALL)
    yield Item(part, "Robustness and sensitivity analyses", _CLAIM)
    yield Item(part, "Adverse events and harm from errors", _STARD)


def _rest(report: Report) -> Iterable[Item]:
    part = "Discussion and access"
    yield Item(part, "Limitations, potential bias and generalisability", _ALL)
    yield Item(part, "Implications for practice", _ALL)
    yield Item(
        part, "Availability of code, model and data", _ALL, f"code: commit {report.commit}" if report.commit else ""
    )
    yield Item(part, "Patient and public involvement", _TRIPOD)
    yield Item(part, "Funding and competing interests", _ALL)


def limits(report: Report) -> list[str]:
    """List what the numbers do not support."""
    return [*_limits_of_data(report), *_limits_of_scores(report)]


def _limits_of_data(report: Report) -> Iterable[str]:
    if report.num_groups < _FEW_GROUPS:
        yield f"Small test set: {counted(report.n, 'image')} of {counted(report.num_groups, 'group')}."
    few = [f"{one.name} ({one.support:,})" for one in report.classes if one.support < _FEW_IMAGES]
    if few:
        rest = f" and {len(few) - 10} more" if len(few) > 10 else ""
        yield f"Classes with fewer than {_FEW_IMAGES} test images: {', '.join(few[:10])}{rest}."
    if report.audit.num_contradicting:
        yield f"Images with a duplicate or near-duplicate of another label: {report.audit.num_contradicting:,}."
    yield "Training and test images come from the same data set; external validity was not assessed."


def _limits_of_scores(report: Report) -> Iterable[str]:
    found, name = main_score(report), report.metric.replace("_", " ")
    if found.value is None or found.low is None:
        yield f"The {name} has no interval: {found.undefined.removeprefix('no interval: ') or 'reason unknown'}."
    known = [(one.recall.value, one) for one in report.classes if one.recall.value is not None]
    if known:
        _, worst = min(known, key=lambda one: one[0])
        if worst.recall.value != 1:
            yield f"Lowest recall: class {worst.name}, {formatted(worst.recall)} on {counted(worst.support, 'image')}."
    whole = found.value
    for one in report.subgroups:
        own = one.scores.get(report.metric)
        if own is not None and own.high is not None and whole is not None and own.high < whole:
            yield f"Subgroup {one.column} = {one.value} has a lower {name}: {formatted(own)}; all images {whole:.4f}."
    if not report.subgroups:
        yield "Performance in subgroups was not assessed."
    used = report.calibration
    if used is not None and not used.kept:
        yield f"Predicted probabilities are not temperature-scaled: {used.why}."


def formatted(found: Estimate) -> str:
    """Format a number with its interval, or the reason why there is none."""
    if found.value is None:
        return f"undefined ({found.undefined})"
    if found.low is None or found.high is None:
        return f"{found.value:.4f} ({found.undefined or 'no interval'})"
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
