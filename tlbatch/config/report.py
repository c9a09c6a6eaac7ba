"""The part of the job that says what the report answers beside the scores."""

from collections.abc import Sequence
from math import isclose
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from tlbatch.config.base import Section
from tlbatch.core.errors import UserError

_Rate = Annotated[float, Field(gt=0, lt=1)]
_Weight = Annotated[float, Field(ge=0)]


class Reporting(Section):
    """What the report answers; changes no prediction."""

    questions: dict[str, tuple[str, ...]] = {}
    """Yes-or-no questions, each with the classes that mean yes, e.g. { referable = ["2", "3", "4"] }."""
    sensitivity: tuple[_Rate, ...] = ()
    """Operating points of the questions: thresholds that reach these sensitivities on validation, or,
    without any, on training images as heads saw them that were fitted on the other folds."""
    specificity: tuple[_Rate, ...] = ()
    """The same for specificities."""
    deploy_prior: dict[str, _Weight] = {}
    """Share of each class where the model will be used, e.g. { "0" = 0.74, "1" = 0.26 }: scores for that mix too."""
    subgroups: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Columns of the labels file; the report has a table of scores for the values of each."""
    public_leaderboard: Path | None = None
    """CSV file of an external leaderboard, as Kaggle exports it."""
    private_leaderboard: Path | None = None
    """The same for its private part."""
    solution: Path | None = None
    """CSV file whose column Usage says which test images are Public and which Private; empty: all count for both."""
    sample_submission: Path | None = None
    """CSV file whose header and order submission.csv takes; empty: those of the labels file."""

    @model_validator(mode="after")
    def _check_operating_points(self) -> "Reporting":
        if (self.sensitivity or self.specificity) and not self.questions:
            raise ValueError("sensitivity and specificity are of questions: set report.questions")
        return self

    @model_validator(mode="after")
    def _check_leaderboard_files(self) -> "Reporting":
        if self.solution and not (self.public_leaderboard or self.private_leaderboard):
            raise ValueError(
                "solution splits leaderboards: set report.public_leaderboard or report.private_leaderboard"
            )
        return self

    def check(self, classes: Sequence[str]) -> None:
        """Refuse what does not fit the classes.

        Raises
        ------
        UserError
            When a question or the prior names no class of the set, a question means none or all, or shares do not add
            up.
        """
        named = {f"questions.{name}": tuple(positive) for name, positive in self.questions.items()}
        for key, own in (named | ({"deploy_prior": tuple(self.deploy_prior)} if self.deploy_prior else {})).items():
            unknown = [name for name in own if name not in classes]
            if unknown:
                raise UserError(
                    f"report.{key}: no class {', '.join(unknown)}; the classes are {', '.join(classes[:20])}"
                )
        for key, positive in named.items():
            if not 0 < len(set(positive)) < len(classes):
                raise UserError(f"report.{key}: must be some of the classes, not none or all; change the list")
        if self.deploy_prior and not isclose(sum(self.deploy_prior.values()), 1, abs_tol=1e-3):
            total = sum(self.deploy_prior.values())
            raise UserError(f"report.deploy_prior: the shares add up to {total:g}, must be 1; change them")

    @property
    def files(self) -> dict[str, Path]:
        """Files that are named, by key."""
        keys = ("public_leaderboard", "private_leaderboard", "solution", "sample_submission")
        return {key: file for key in keys if (file := getattr(self, key)) is not None}

    def check_files(self) -> None:
        """Refuse a file that is not there.

        Raises
        ------
        UserError
            When one is missing.
        """
        for key, file in self.files.items():
            if not file.is_file():
                raise UserError(f"report.{key}: no such file {file}; set report.{key}=FILE")
