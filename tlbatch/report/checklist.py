"""What a report can say of itself in words: its limits, and which items of reporting guidelines it fills.

The topics are those of STARD-AI (2025), CLAIM (2024 update) and TRIPOD+AI (2024), in own words and without the numbers
of their items: the lists themselves are the authority.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tlbatch.runs.report import Comparison, Estimate, Report

Guideline = Literal["STARD-AI", "CLAIM", "TRIPOD+AI"]
_STARD: tuple[Guideline, ...] = ("STARD-AI",)
_CLAIM: tuple[Guideline, ...] = ("CLAIM",)
_TRIPOD: tuple[Guideline, ...] = ("TRIPOD+AI",)
_ALL: tuple[Guideline, ...] = _STARD + _CLAIM + _TRIPOD
_FEW_IMAGES, _FEW_GROUPS = 30, 100
NOT_KNOWN = (
    "What the model is meant to be used for, and by whom: nobody has told this report.",
    "Who the images are of, how they were chosen, and who labelled them by what rule.",
    "On which images the backbone was trained before, and under which licence its weights are.",
    "How much harm each kind of mistake does; no score here knows it.",
)
"""What a model card should say and no report can."""


@dataclass(frozen=True)
class Item:
    """A topic that guidelines ask for."""

    part: str
    topic: str
    guidelines: tuple[Guideline, ...]
    found: str = ""
    """What the report says of it; empty: for the author to fill in."""


def main_score(report: Report) -> Estimate:
    """The score that ranks the run."""
    return report.scores.get(report.metric, Estimate(value=report.score))


def checklist(report: Report, *, num_mistakes: int, rival: Comparison | None) -> list[Item]:
    """All topics in the order of a paper."""
    return [*_purpose(), *_data(report), *_model(report), *_results(report, num_mistakes, rival), *_rest(report)]


def _purpose() -> Iterable[Item]:
    part = "Purpose and design"
    yield Item(part, "What the model is meant for, by whom and where in the course of care", _ALL)
    yield Item(part, "What is known already, and what the study asks", _ALL)
    yield Item(part, "Whether images were collected before or after the study was planned", _ALL)
    yield Item(part, "Protocol and registration", _ALL)
    yield Item(part, "Approval by an ethics committee, consent", _ALL)


def _data(report: Report) -> Iterable[Item]:
    part, audit, sizes = "Data", report.audit, report.num_images
    yield Item(part, "Where and when images were taken, with which devices; who was eligible", _ALL)
    yield Item(part, "How personal data were removed", _CLAIM)
    yield Item(part, "Reference standard: who labelled, how, and how well labellers agree", _ALL)
    split = ", ".join(f"{sizes[name]:,} {name}" for name in sizes)
    groups = f"{report.n:,} test images of {report.num_groups:,} groups were scored"
    yield Item(part, "Flow of images, from the source to each split", _ALL,
               f"{split}; {report.num_rejected:,} rejected; {groups}" if split else "")  # fmt: skip
    leaks = ", ".join(f"{number:,} {pair}" for pair, number in sorted(audit.across.items()) if number)
    yield Item(part, "That splits share no image and no patient, and how that was made sure", _ALL,
               f"audit of equal and nearly equal images and of groups: {leaks or 'none across splits'}")  # fmt: skip
    yield Item(part, "Labels that contradict each other", _CLAIM,
               f"{audit.num_contradicting:,} with an equal or nearly equal image of another label")  # fmt: skip
    steps = f", {', '.join(report.steps)}" if report.steps else ""
    yield Item(part, "Pre-processing", _CLAIM + _TRIPOD, f"shorter side at most {report.resize} pixels{steps}"
               if report.resize else ", ".join(report.steps))  # fmt: skip
    yield Item(part, "Missing and unusable images, and what was done about them", _ALL,
               f"{report.num_rejected:,} rejected, {report.num_errors:,} unreadable test images left out")  # fmt: skip
    yield Item(part, "How the number of images was decided on", _ALL)


def _model(report: Report) -> Iterable[Item]:
    part, best = "Model", report.checkpoint
    size = f", {best.num_parameters:,} parameters" if best else ""
    yield Item(part, "Architecture, and what its weights started from", _CLAIM + _TRIPOD,
               f"{report.backbone}{size}; weights: {report.weights}")  # fmt: skip
    chosen = (
        f"phase {best.phase}, epoch {best.epoch}, chosen on validation" if best and best.val_score is not None else ""
    )
    yield Item(part, "How it was trained and chosen among candidates", _CLAIM + _TRIPOD,
               "; ".join(filter(None, (report.strategy.why if report.strategy else "", chosen))))  # fmt: skip
    several = f"{report.ensemble} of {len(report.members)} runs" if report.members else "none: one run"
    yield Item(part, "Whether models were put together", _CLAIM, several)
    yield Item(part, "Software with versions", _ALL,
               ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items())))  # fmt: skip


def _results(report: Report, num_mistakes: int, rival: Comparison | None) -> Iterable[Item]:
    part, found = "Evaluation", main_score(report)
    name = report.metric.replace("_", " ")
    yield Item(part, "Measures of performance with their uncertainty", _ALL, f"{name} {told(found)}")
    aims = [point.aim for question in report.questions for point in question.points if point.threshold is not None]
    yield Item(part, "How thresholds for a positive answer were set", _STARD + _TRIPOD,
               "; ".join(dict.fromkeys(aims)))  # fmt: skip
    yield Item(part, "Table of answers against the reference standard", _STARD + _CLAIM,
               f"{len(report.confusion)} by {len(report.confusion)}" if report.confusion else "")  # fmt: skip
    used = report.calibration
    ece = used and (used.after if used.kept and used.after else used.before).ece
    yield Item(part, "Calibration", _TRIPOD, f"expected calibration error {told(ece)}" if ece else "")
    columns = dict.fromkeys(one.column for one in report.subgroups)
    yield Item(
        part, "Performance in sub-groups; fairness", _STARD + _TRIPOD, f"by {', '.join(columns)}" * bool(columns)
    )
    yield Item(part, "Share of classes where the model is to be used", _STARD + _TRIPOD,
               "scores for another mix of classes are given" if report.deployed else "")  # fmt: skip
    yield Item(part, "Comparison with another method", _STARD + _CLAIM,
               f"{rival.other}: {rival.verdict} ({told(rival.difference)})" if rival else "")  # fmt: skip
    yield Item(part, "Analysis of failures", _CLAIM, f"the worst {num_mistakes} are shown" if num_mistakes else "")
    yield Item(part, "Test on data from elsewhere", _ALL)
    yield Item(part, "Robustness to changes of the input or of assumptions", _CLAIM)
    yield Item(part, "Harm that testing or a wrong answer can do", _STARD)


def _rest(report: Report) -> Iterable[Item]:
    part = "Discussion and access"
    yield Item(part, "Limits, possible bias, and to whom the results apply", _ALL)
    yield Item(part, "What it means for practice", _ALL)
    yield Item(part, "Access to code, model and data", _ALL, f"code: commit {report.commit}" if report.commit else "")
    yield Item(part, "Part that patients and the public had", _TRIPOD)
    yield Item(part, "Funding and interests", _ALL)


def limits(report: Report) -> list[str]:
    """What the numbers do not bear."""
    return [*_limits_of_data(report), *_limits_of_scores(report)]


def _limits_of_data(report: Report) -> Iterable[str]:
    if report.num_groups < _FEW_GROUPS:
        yield f"It was tested on {report.n:,} images of {report.num_groups:,} groups, which is few."
    few = [f"{one.name} ({one.support:,})" for one in report.classes if one.support < _FEW_IMAGES]
    if few:
        rest = f" and {len(few) - 10} more" if len(few) > 10 else ""
        yield f"Classes with fewer than {_FEW_IMAGES} test images: {', '.join(few[:10])}{rest}."
    if report.audit.num_contradicting:
        yield f"Images with an equal or nearly equal one of another label: {report.audit.num_contradicting:,}."
    yield "Training and test images are of one set: what it does on images from elsewhere was not measured here."


def _limits_of_scores(report: Report) -> Iterable[str]:
    found, name = main_score(report), report.metric.replace("_", " ")
    if found.value is None or found.low is None:
        yield f"The {name} has no interval: {found.undefined.removeprefix('no interval: ') or 'nobody said why'}."
    known = [(one.recall.value, one) for one in report.classes if one.recall.value is not None]
    if known:
        _, worst = min(known, key=lambda one: one[0])
        if worst.recall.value != 1:
            yield f"Of the class {worst.name} it finds least: {told(worst.recall)} of {worst.support:,} images."
    whole = found.value
    for one in report.subgroups:
        own = one.scores.get(report.metric)
        if own is not None and own.high is not None and whole is not None and own.high < whole:
            yield f"Where {one.column} is {one.value}, the {name} is lower: {told(own)}; on all images {whole:.4f}."
    if not report.subgroups:
        yield "Whether it does equally well in all sub-groups was not measured."
    used = report.calibration
    if used is not None and not used.kept:
        yield f"Its probabilities are as predicted, with no temperature: {used.why}."


def told(found: Estimate) -> str:
    """A number and its interval, or why there is none."""
    if found.value is None:
        return f"undefined ({found.undefined})"
    if found.low is None or found.high is None:
        return f"{found.value:.4f} ({found.undefined or 'no interval'})"
    return f"{found.value:.4f} ({found.low:.4f} to {found.high:.4f})"
