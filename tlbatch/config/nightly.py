"""The part of the job that says when a new model takes the place of the champion."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from tlbatch.config.base import Count, Positive, Section
from tlbatch.core.errors import UserError

Share = Annotated[float, Field(ge=0, le=1)]
OfClass = Literal["recall", "precision"]
OfQuestion = Literal["sensitivity", "specificity"]
OfAll = Literal["quadratic_kappa", "accuracy", "balanced_accuracy", "macro_f1", "mcc"]


class Nightly(Section):
    """Nightly retraining: what a night begins with, and when its model is promoted; changes no prediction."""

    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Name of the registry, in WORKSPACE/registry; empty: the job's name."""
    init_from: Annotated[Literal["pretrained", "champion"], Field(alias="begin")] = "pretrained"
    """Weights that a night begins with: the job's own, or those of the champion, head included."""
    min_gain: Share = 0.0
    """Promoted if the lower bound of the paired gain in the metric on test is above this."""
    margin: Share = 0.0
    """Promoted too if the lower bound is above minus this and there are more training images; what such promotions
    have lost, and no gain has surely made good, is taken off it; 0: never."""
    more_data: Share = 0.1
    """Share by which the training images must have grown for that."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Probability that a model that is no better is promoted: over all nights of a champion, or in each (looks)."""
    looks: Literal["spend", "each"] = "spend"
    """spend: night number k of a champion is judged at alpha / (k (k + 1)), which adds up to alpha over all nights;
    each: every night at alpha."""
    min_samples: Annotated[int, Field(ge=1)] = 100
    """Test images that both models must have, for anything to be promoted."""
    guards: Mapping[str, Share] = {}
    """Largest fall of other scores on test, e.g. { "recall.4" = 0.05 }: recall.CLASS, precision.CLASS,
    sensitivity.QUESTION, specificity.QUESTION, quadratic_kappa, accuracy, balanced_accuracy, macro_f1 or mcc."""
    drift: Positive = 4.0
    """Standard deviations from no shift above which the new images mark the night's page."""
    keep_champions: Count = 3
    """Champions before this one whose runs are kept whole, to roll back to."""
    keep_nights: Count = 7
    """Last nights whose runs are kept, promoted or not."""

    @field_validator("guards")
    @classmethod
    def _check_guards(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for name in value:
            kind, _, of = name.partition(".")
            if name in get_args(OfAll) or (of and kind in (*get_args(OfClass), *get_args(OfQuestion))):
                continue
            known = ", ".join(get_args(OfAll))
            raise ValueError(
                f"{name!r} must be recall.CLASS, precision.CLASS, sensitivity.QUESTION, specificity.QUESTION, {known}"
            )
        return value

    def check(self, classes: Sequence[str], questions: Sequence[str]) -> None:
        """Refuse guards of what is not there.

        Raises
        ------
        UserError
            When one names no class of the set, or no question of the report.
        """
        for name in self.guards:
            kind, _, of = name.partition(".")
            known = classes if kind in get_args(OfClass) else questions
            if of and of not in known:
                listed = ", ".join(known[:20]) or "none: set report.questions"
                raise UserError(f"nightly.guards.{name}: no {of!r} there; it must be one of {listed}")
