"""The section report of a job: what the report contains in addition to the scores."""

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
    """Contents of the report; no effect on predictions."""

    questions: dict[str, tuple[str, ...]] = {}
    """Yes-or-no questions, each with its positive classes, e.g. { referable = ["2", "3", "4"] }."""
    sensitivity: tuple[_Rate, ...] = ()
    """Target sensitivities of the questions; thresholds come from validation, or from out-of-fold predictions if there
    is none."""
    specificity: tuple[_Rate, ...] = ()
    """Target specificities, as sensitivity."""
    deploy_prior: dict[str, _Weight] = {}
    """Prevalence of each class in deployment, e.g. { "0" = 0.74, "1" = 0.26 }, for which the report adds scores."""
    subgroups: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Columns of the labels file; the report adds a table of scores by the values of each."""
    public_leaderboard: Path | None = None
    """CSV file of an external leaderboard, as exported by Kaggle."""
    private_leaderboard: Path | None = None
    """CSV file of its private part."""
    solution: Path | None = None
    """CSV file whose column Usage marks test images as Public or Private; empty: all count for both leaderboards."""
    sample_submission: Path | None = None
    """CSV file with the header and order for submission.csv; empty: those of the labels file."""

    @model_validator(mode="after")
    def _check_operating_points(self) -> "Reporting":
        if (self.sensitivity or self.specificity) and not self.questions:
            raise ValueError("sensitivity and specificity need questions; set report.questions")
        return self

    @model_validator(mode="after")
    def _check_leaderboard_files(self) -> "Reporting":
        if self.solution and not (self.public_leaderboard or self.private_leaderboard):
            raise ValueError(
                "solution needs a leaderboard; set report.public_leaderboard or report.private_leaderboard"
            )
        return self

    def check(self, classes: Sequence[str]) -> None:
        """Refuse settings that do not fit the classes."""
        named = {f"questions.{name}": tuple(positive) for name, positive in self.questions.items()}
        for key, own in (named | ({"deploy_prior": tuple(self.deploy_prior)} if self.deploy_prior else {})).items():
            unknown = [name for name in own if name not in classes]
            if unknown:
                raise UserError(
                    f"report.{key}: unknown class {', '.join(unknown)}; the classes are {', '.join(classes[:20])}"
                )
        for key, positive in named.items():
            if not 0 < len(set(positive)) < len(classes):
                raise UserError(f"report.{key}: must list some but not all of the classes; change the list")
        if self.deploy_prior and not isclose(sum(self.deploy_prior.values()), 1, abs_tol=1e-3):
            total = sum(self.deploy_prior.values())
            raise UserError(f"report.deploy_prior: the values must sum to 1 (got {total:g}); change them")

    @property
    def files(self) -> dict[str, Path]:
        """The files that are set, by key."""
        keys = ("public_leaderboard", "private_leaderboard", "solution", "sample_submission")
        return {key: file for key in keys if (file := getattr(self, key)) is not None}

    def check_files(self) -> None:
        """Check that all files exist; UserError if one is missing."""
        for key, file in self.files.items():
            if not file.is_file():
                raise UserError(f"report.{key}: no such file {file}; set report.{key}=FILE")
