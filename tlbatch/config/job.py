"""The job: a frozen tree of settings, filled from TOML files and ``key=value`` overrides and validated once."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tlbatch.config.base import Metric, Positive, Section
from tlbatch.config.data import Data
from tlbatch.config.model import HANDCRAFTED, Decoder, Head, Model
from tlbatch.config.nightly import Nightly
from tlbatch.config.report import Reporting
from tlbatch.config.slurm import RUN_NAME, Slurm
from tlbatch.config.training import FROZEN, Cache, Decision, Objective, Phase, StoredAs, Train
from tlbatch.core.errors import UserError
from tlbatch.core.text import shortest


class Job(Section):
    """All settings of a job."""

    name: Annotated[str, Field(pattern=RUN_NAME)] = "job"
    """Name of the job, with which the name of its run folder begins."""
    run: Annotated[str, Field(pattern=RUN_NAME)] | None = None
    """Name of the run folder; empty: the job's name and the time."""
    workspace: Path = Path("workspace")
    """Folder for shards, runs, cache and registries; all nodes must share it."""
    private: bool = True
    """Restrict the run folder to its owner (mode 0700); false: others may read it if the umask allows."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed of the head's weights, the order of images and the augmentation."""
    metric: Metric = "accuracy"
    """Metric that selects the checkpoint on validation and ranks the leaderboard on test."""
    data: Data
    model: Model = Model()
    head: Head = Head()
    objective: Objective = "cross-entropy"
    """Loss to minimise. binary: a single sigmoid unit for two classes; corn, cumulative and regression: for ordered
    classes; tags: for phrases of several tags, with an LSTM, or with a linear classifier per attribute in a fit."""
    decoder: Decoder = Decoder()
    decision: Decision = "most-probable"
    """Rule that turns probabilities into a class. expected-grade: for ordered classes, the expected grade, cut at
    thresholds that are fitted like those of a regression."""
    recipes: Mapping[str, dict[str, Any]] = {}
    """Variants of the job by name, e.g. { mlp = { head.widths = [256] } }; each becomes a separate run. A recipe may
    contain recipes, e.g. one for each data set, which inherit its keys."""
    sweep: Mapping[str, Any] = {}
    """Lists of values for keys, e.g. { seed = [0, 1], phase.0.optimizer.lr = [1e-3, 1e-2] }; each combination becomes a
    separate run."""
    strategy: Literal["phases", "auto"] = "phases"
    """How head and phases are chosen. phases: as the job says; auto: by probes and trial trainings, cross-validated on
    the training images."""
    strategy_minutes: Positive = 120.0
    """Minutes for all trial trainings of strategy auto; a candidate whose first fold shows that it would exceed what is
    left of them is skipped."""
    phase: tuple[Phase, ...] = ()
    train: Train = Train()
    cache: Cache = Cache()
    figures: bool = True
    """Show in the report the first filters, activations, the most confident errors and a map of the features."""
    report: Reporting = Reporting()
    nightly: Nightly = Nightly()
    slurm: Slurm = Slurm()

    @property
    def ordered_by(self) -> str:
        """The setting that says that the classes are ordered; empty if none does."""
        says = {
            "metric=quadratic_kappa": self.metric == "quadratic_kappa",
            f"objective={self.objective}": self.objective in ("corn", "cumulative", "regression"),
            "decision=expected-grade": self.decision == "expected-grade",
            "data.ordered=true": self.data.ordered,
        }
        return next((key for key, is_set in says.items() if is_set), "")

    def check_order(self, classes: Sequence[str]) -> None:
        """Refuse ordered classes whose order is unknown, as they are words that the job does not list."""
        if self.ordered_by and not self.data.classes and not all(shortest(name) for name in classes):
            listed = ", ".join(json.dumps(name, ensure_ascii=False) for name in classes)
            raise UserError(
                f"{self.ordered_by}: needs the order of the classes, which are words; set data.classes=[{listed}] in "
                "their order, lowest first"
            )

    @model_validator(mode="before")
    @classmethod
    def _check_handcrafted_cut(cls, tree: object) -> object:
        """Set the backbone to handcrafted if a cut is, unless the job names one."""
        if not isinstance(tree, Mapping):
            return tree
        model, phases = tree.get("model", {}), tree.get("phase", ())
        named = isinstance(phases, list | tuple) and any(
            isinstance(phase, Mapping) and phase.get("cut") == HANDCRAFTED for phase in phases
        )
        return {**tree, "model": {"backbone": HANDCRAFTED, **model}} if named and isinstance(model, Mapping) else tree

    @model_validator(mode="after")
    def _check_handcrafted_backbone(self) -> Self:
        if HANDCRAFTED not in (self.model.backbone, *(phase.cut for phase in self.phase)):
            return self
        if self.strategy == "auto":
            raise ValueError(
                "strategy = auto chooses among cuts of a network, not handcrafted; set the phases yourself"
            )
        for number, phase in enumerate(self.phase):
            if phase.cut != HANDCRAFTED or not phase.fit:
                raise ValueError(
                    "handcrafted features need cut = handcrafted and a fit in every phase; set both in "
                    f"phase.{number}, e.g. fit = svm"
                )
        usual = Model(backbone=HANDCRAFTED)
        keys = ("backbone", "weights", "mean", "std")
        unread = [f"model.{key}" for key in keys if getattr(self.model, key) != getattr(usual, key)]
        unread += ["head.after"] if self.head.after else []
        if unread:
            raise ValueError(
                f"cut = handcrafted uses no network; leave out {', '.join(unread)}, or if recipes share it set "
                'model = { backbone = "handcrafted", weights = "none" }'
            )
        if self.cache.dtype not in ("auto", "fp32"):
            raise ValueError(
                f"cut = handcrafted is cached as fp32 (got cache.dtype = {self.cache.dtype}); leave cache.dtype out"
            )
        return self

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        if self.strategy == "phases" and not self.phase:
            raise ValueError("phase is required; set e.g. phase=[{ cut = 'pool' }], or strategy=auto")
        if self.strategy == "auto":
            keys = ("head", "objective", "decision", "phase")
            decides = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if decides:
                raise ValueError(f"strategy = auto chooses {', '.join(keys)}; leave out {', '.join(decides)}")
        if self.strategy == "auto" and self.train.crop_scale < 1 and not self.train.random_views:
            raise ValueError(
                "strategy = auto needs a finite number of views; set train.random_views, or train.crop_scale = 1"
            )
        if self.chooses and not self.cache.enabled:
            raise ValueError("cut = auto and strategy = auto need the cache; set cache.enabled=true")
        if any(phase.cut == "auto" for phase in self.phase) and self.head.after:
            raise ValueError("cut = auto needs the head on top of the backbone; leave head.after out")
        return self

    @model_validator(mode="after")
    def _check_subgroups(self) -> Self:
        if self.report.subgroups and self.data.labels is None:
            raise ValueError("report.subgroups are columns of a labels file; set data.source=csv and data.labels")
        return self

    @model_validator(mode="after")
    def _check_fits(self) -> Self:
        for number, phase in enumerate(self.phase):
            if phase.fit and (phase.cut not in FROZEN or self.head.widths):
                raise ValueError(
                    f"phase.{number}.fit needs frozen features and no hidden layers; set cut = pool, and leave "
                    "head.widths out"
                )
            if phase.fit and phase.fit.startswith(("kernel", "neighbours")) and number + 1 < len(self.phase):
                raise ValueError(
                    f"phase.{number}.fit = {phase.fit} gives a head that later phases cannot train; put it last"
                )
            known: tuple[Objective, ...] = ("cross-entropy",)
            if phase.fit in ("ridge", "kernel-ridge"):
                known += ("regression",)
            if phase.fit in ("logistic", "svm"):
                known += ("tags",)
            if phase.fit and self.objective not in known:
                names = " or ".join(known)
                raise ValueError(
                    f"phase.{number}.fit = {phase.fit} needs objective {names} (got {self.objective}); change one"
                )
            if (phase.fit or phase.lr_grid) and self.train.crop_scale < 1 and not self.train.random_views:
                key = "fit" if phase.fit else "lr_grid"
                raise ValueError(
                    f"phase.{number}.{key} needs a finite number of views; set train.random_views, or "
                    "train.crop_scale = 1"
                )
            if phase.lr_grid and self.head.batch_norm:
                raise ValueError(f"phase.{number}.lr_grid does not work with head.batch_norm; leave one of them out")
            if number == 0 and phase.fit and self.head.weights:
                raise ValueError(
                    "head.weights initialises a head for epochs, and phase.0.fit starts over; leave one of them out"
                )
            if phase.cut == "flatten" and self.head.pool in ("gem", "attention"):
                raise ValueError(
                    f"phase.{number}.cut = flatten does not work with head.pool = {self.head.pool}; change one"
                )
            if (phase.fit or phase.lr_grid) and self.head.pool in ("gem", "attention"):
                raise ValueError(
                    f"phase.{number} needs fixed vectors, and head.pool = {self.head.pool} is trained in epochs; "
                    "set another pool"
                )
        return self

    @model_validator(mode="after")
    def _check_tags(self) -> Self:
        if self.objective != "tags":
            if self.decoder != Decoder():
                raise ValueError("decoder is read with objective tags only; leave it out, or set objective=tags")
            return self
        if not self.data.tag_separator:
            raise ValueError("objective tags needs labels with several tags; set data.tag_separator")
        _refuse_for_tags(self)
        return self

    @model_validator(mode="after")
    def _check_joined_vectors(self) -> Self:
        for key in ("view_mean", "group_mean"):
            all_frozen = all(phase.cut in FROZEN for phase in self.phase)
            if getattr(self.head, key) and not (self.cache.enabled and all_frozen):
                raise ValueError(f"head.{key} needs the cache and cut = pool in all phases; set both, or leave it out")
            if getattr(self.head, key) and self.train.tta:
                raise ValueError(f"head.{key} does not work with train.tta; leave one of them out")
            if getattr(self.head, key) and self.train.crop_scale < 1 and not self.train.random_views:
                raise ValueError(
                    f"head.{key} needs a finite number of views; set train.random_views, or train.crop_scale = 1"
                )
        return self

    def require_classes(self, what: str) -> None:
        """Refuse a job whose labels are phrases of tags."""
        if self.objective == "tags":
            raise UserError(f"objective = tags: {what} needs single-label classes; name another job or run")

    @property
    def task(self) -> str:
        """Name of the registry of the job's models."""
        return self.nightly.task or self.name

    @property
    def chooses(self) -> bool:
        """Whether the stage choose has to make a choice for the job."""
        return self.strategy == "auto" or any(phase.cut == "auto" for phase in self.phase)

    @property
    def dtype(self) -> StoredAs:
        """The type of cached numbers."""
        if self.model.backbone == HANDCRAFTED:
            return "fp32"
        automatic: dict[str, StoredAs] = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
        return automatic[self.train.mixed_precision] if self.cache.dtype == "auto" else self.cache.dtype


def _refuse_for_tags(job: Job) -> None:
    """Refuse settings that have no meaning for phrases."""
    of_classes = {
        "metric = quadratic_kappa (accuracy is the exact match of phrases)": job.metric != "accuracy",
        "strategy = auto": job.chooses,
        "decision = expected-grade": job.decision != "most-probable",
        "head.widths, head.dropout or head.batch_norm": bool(
            job.head.widths or job.head.dropout or job.head.batch_norm
        ),
        "train.tta": job.train.tta,
        "report.questions, report.deploy_prior, or a leaderboard": bool(
            job.report.questions or job.report.deploy_prior or job.report.files
        ),
    }
    for number, phase in enumerate(job.phase):
        own = {
            "lr_grid": phase.lr_grid,
            "mixup or cutmix": phase.mixup or phase.cutmix,
            "balance": phase.balance != "none",
            "fit with other phases": phase.fit and len(job.phase) > 1,
        }
        of_classes |= {f"phase.{number}.{key}": bool(used) for key, used in own.items()}
    used = [key for key, is_used in of_classes.items() if is_used]
    if used:
        raise ValueError(f"objective tags does not work with {', '.join(used)}; leave it out")
