"""The section nightly of a job: when a new model replaces the champion."""

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
    """Nightly retraining: the initial weights, and when the new model is promoted; no effect on predictions."""

    task: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")] | None = None
    """Name of the registry, in WORKSPACE/registry; empty: the job's name."""
    init_from: Annotated[Literal["pretrained", "champion"], Field(alias="begin")] = "pretrained"
    """Initial weights of a night: the job's own, or those of the champion, including its head."""
    min_gain: Share = 0.0
    """Promote if the lower bound of the paired gain in the metric on test is above this."""
    margin: Share = 0.0
    """Non-inferiority margin: also promote if the lower bound is above minus this and there is more training data.
    Losses accepted this way reduce the margin until a later gain recovers them; 0: never."""
    more_data: Share = 0.1
    """Fraction by which the training set must have grown for a promotion by margin."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Significance level: the probability of promoting a model that is no better, over all nights of a champion or in
    each night (looks)."""
    looks: Literal["spend", "each"] = "spend"
    """How alpha is used over the nights. spend: night k of a champion is tested at alpha / (k (k + 1)), which sums to
    alpha; each: every night is tested at alpha."""
    min_samples: Annotated[int, Field(ge=1)] = 100
    """Smallest number of common test images for a promotion."""
    guards: Mapping[str, Share] = {}
    """Largest allowed drop of other scores on test, e.g. { "recall.4" = 0.05 }: recall.CLASS, precision.CLASS,
    sensitivity.QUESTION, specificity.QUESTION, quadratic_kappa, accuracy, balanced_accuracy, macro_f1 or mcc."""
    drift: Positive = 4.0
    """Drift of the new images, in standard deviations under no drift, above which the night's page shows a warning."""
    keep_champions: Count = 3
    """Number of previous champions whose complete runs are kept for a rollback."""
    keep_nights: Count = 7
    """Number of latest nights whose runs are kept, promoted or not."""

    @field_validator("guards")
    @classmethod
    def _check_guards(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for name in value:
            kind, _, of = name.partition(".")
            if name in get_args(OfAll) or (of and kind in (*get_args(OfClass), *get_args(OfQuestion))):
                continue
            known = ", ".join(get_args(OfAll))
            raise ValueError(
                f"{name!r} must be recall.CLASS, precision.CLASS, sensitivity.QUESTION, specificity.QUESTION or one of "
                f"{known}; rename it"
            )
        return value

    def check(self, classes: Sequence[str], questions: Sequence[str]) -> None:
        """Refuse guards of unknown classes or questions."""
        for name in self.guards:
            kind, _, of = name.partition(".")
            known = classes if kind in get_args(OfClass) else questions
            if of and of not in known:
                listed = ", ".join(known[:20]) or "none; set report.questions"
                raise UserError(f"nightly.guards.{name}: unknown {of!r}; known: {listed}")
