"""The page of a night: new images, the decision and its reasons, and earlier nights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from tlbatch.core.text import counted
from tlbatch.promotion.drift.records import Drift
from tlbatch.promotion.records import Champion, Decision, Night
from tlbatch.report import plots
from tlbatch.report.page import render

_MOST_NIGHTS = 60
_ASPECTS = {"classes": "class distribution", "images": "image statistics", "features": "network features"}
_SUSPECT = 4.0
"""Excess of disagreement above the expected, in standard deviations, at which labels are suspect."""


@dataclass(frozen=True)
class LabelIssue:
    """A new image whose label the champion contradicts."""

    key: str
    label: str
    champion_says: str
    probability: float
    """Probability of the predicted class."""
    image: bytes
    """Bytes of a thumbnail."""


@dataclass(frozen=True)
class ShownNight:
    """Everything that the page of a night shows."""

    decision: Decision
    champion: Champion | None
    """Champion after the night."""
    history: Sequence[Night]
    """All nights, this one last."""
    drift: Drift
    label_issues: Sequence[LabelIssue]
    """Sorted by decreasing margin."""
    report: str
    """Path of the run's report, relative to the page."""

    @property
    def night(self) -> Night:
        """Night of the decision."""
        return next(one for one in reversed(self.history) if one.run == self.decision.run)


def write_night(path: Path, shown: ShownNight) -> None:
    """Write the page atomically."""
    nights = shown.history[-_MOST_NIGHTS:]
    path.parent.mkdir(exist_ok=True)
    render(path, "night.html.j2", {
        "shown": shown,
        "decision": shown.decision,
        "drift": shown.drift,
        "nights": list(reversed(nights)),
        "num_nights": len(shown.history),
        "warnings": _warnings(shown),
        "costs": _costs(shown.history),
        "aspects": _ASPECTS,
        "pages": {one.run: f"{one.run}.html" for one in nights if one.run and one.event in ("promoted", "kept")},
    })  # fmt: skip


def _warnings(shown: ShownNight) -> list[tuple[str, str]]:
    drift, found = shown.drift, []
    if drift.is_marked:
        moved = " and ".join(_ASPECTS[one.what] for one in drift.shifts if one.is_above)
        text = (
            f"New and earlier images differ in {moved} by more than chance explains (above "
            f"{drift.threshold:g} standard deviations): check the new images before trusting the model on them."
        )
        found.append(("Drift", text))
    if drift.z_disagreeing is not None and drift.z_disagreeing > _SUSPECT:
        text = (
            f"The champion disagrees with {counted(drift.num_disagreeing, 'label')} of {drift.num_judged:,} "
            f"new images, {drift.z_disagreeing:.1f} standard deviations more than its probabilities predict; "
            "review.csv in the run's folder lists them."
        )
        found.append(("Suspect labels", text))
    return found


def _costs(history: Sequence[Night]) -> Markup | None:
    """Plot seconds against new images; None with fewer than two nights."""
    known = [one for one in history if one.num_new is not None and one.seconds]
    nights = sorted(known, key=lambda one: one.num_new or 0)
    if len(nights) < 2:
        return None
    x = [float(one.num_new or 0) for one in nights]
    parts = {"shard and cache": ("shard", "cache"), "train, predict and reduce": ("train", "predict", "reduce")}
    lines = [
        plots.Line(name, x, [sum(one.seconds.get(stage, 0.0) for stage in stages) for one in nights], kind)
        for kind, (name, stages) in enumerate(parts.items())
    ]
    return plots.points("Cost of a night", ("new images", "seconds"), lines)
