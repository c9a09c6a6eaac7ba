"""The job: one frozen tree, filled from TOML files and ``key=value`` overrides, validated once."""

from collections.abc import Mapping
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


class Job(Section):
    """The whole job."""

    name: Annotated[str, Field(pattern=RUN_NAME)] = "job"
    """Name, the first part of the run folder's."""
    run: Annotated[str, Field(pattern=RUN_NAME)] | None = None
    """Name of the run folder; empty: made from name and time."""
    workspace: Path = Path("workspace")
    """Folder that holds shards/ and runs/; shared by all nodes."""
    private: bool = True
    """Keep the run folder to its owner (mode 0700); false: others may read it as far as the umask says."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the head, the order and the augmentation."""
    metric: Metric = "accuracy"
    """Chooses the checkpoint on validation and ranks the leaderboard on test."""
    data: Data
    model: Model = Model()
    head: Head = Head()
    objective: Objective = "cross-entropy"
    """What is minimised; binary: one sigmoid unit, two classes; corn, cumulative and regression: ordered classes; tags:
    a phrase of several tags, by an LSTM in epochs or a linear classifier an attribute in a fit."""
    decoder: Decoder = Decoder()
    decision: Decision = "most-probable"
    """Which class is chosen; expected-grade: for ordered classes, the mean of the grades under their probabilities, cut
    at thresholds that are fitted as those of a regression."""
    recipes: Mapping[str, dict[str, Any]] = {}
    """Variants of the job by name, e.g. { mlp = { head.widths = [256] } }, each a run of its own; one that holds
    recipes itself, say those of one set of images, lends them its keys."""
    sweep: Mapping[str, Any] = {}
    """Lists of values for keys, e.g. { seed = [0, 1], phase.0.optimizer.lr = [1e-3, 1e-2] }: every combination is a run
    of its own."""
    strategy: Literal["phases", "auto"] = "phases"
    """phases: those of the job; auto: probes and trainings on folds of the training images choose head and phases."""
    strategy_minutes: Positive = 120.0
    """For the trainings of strategy auto; a candidate that would take longer, by its first fold, is left out."""
    phase: tuple[Phase, ...] = ()
    train: Train = Train()
    cache: Cache = Cache()
    figures: bool = True
    """Draw learning curves, filters, activations, mistakes and a map of the features into the report folder."""
    report: Reporting = Reporting()
    nightly: Nightly = Nightly()
    slurm: Slurm = Slurm()

    @model_validator(mode="before")
    @classmethod
    def _check_handcrafted_cut(cls, tree: object) -> object:
        """The cut handcrafted chooses the backbone too, where the job names none."""
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
            raise ValueError("strategy = auto chooses among cuts of a network, and handcrafted is none; name phases")
        for number, phase in enumerate(self.phase):
            if phase.cut != HANDCRAFTED or not phase.fit:
                raise ValueError(
                    f"phase.{number} must have cut = handcrafted, as all phases of such a job, and a fit, e.g. svm"
                )
        usual = Model(backbone=HANDCRAFTED)
        keys = ("backbone", "weights", "mean", "std")
        unread = [f"model.{key}" for key in keys if getattr(self.model, key) != getattr(usual, key)]
        unread += ["head.after"] if self.head.after else []
        if unread:
            raise ValueError(
                f"cut = handcrafted reads no network, so there is no {', '.join(unread)}; leave it out, or where "
                'recipes share it set model = { backbone = "handcrafted", weights = "none" }'
            )
        if self.cache.dtype not in ("auto", "fp32"):
            raise ValueError(f"cut = handcrafted is stored as fp32 (got cache.dtype = {self.cache.dtype})")
        return self

    @model_validator(mode="after")
    def _check_strategy(self) -> Self:
        if self.strategy == "phases" and not self.phase:
            raise ValueError("phase is required: what is trained, e.g. phase=[{ cut = 'pool' }], or set strategy=auto")
        if self.strategy == "auto":
            keys = ("head", "objective", "decision", "phase")
            decides = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if decides:
                raise ValueError(f"strategy = auto decides on {', '.join(decides)}: leave it out of the job")
        if self.strategy == "auto" and self.train.crop_scale < 1 and not self.train.random_views:
            raise ValueError(
                "strategy = auto needs a finite number of views: set train.random_views, or crop_scale = 1"
            )
        if self.chooses and not self.cache.enabled:
            raise ValueError("a cut or strategy that is auto needs the cache: leave cache.enabled as it is")
        if any(phase.cut == "auto" for phase in self.phase) and self.head.after:
            raise ValueError("a cut that is auto goes with a head on the top: leave head.after out")
        return self

    @model_validator(mode="after")
    def _check_subgroups(self) -> Self:
        if self.report.subgroups and self.data.labels is None:
            raise ValueError("report.subgroups are columns of a labels file: set data.source=csv and data.labels")
        return self

    @model_validator(mode="after")
    def _check_fits(self) -> Self:
        for number, phase in enumerate(self.phase):
            if phase.fit and (phase.cut not in FROZEN or self.head.widths):
                raise ValueError(
                    f"phase.{number}.fit fits a linear head on frozen features: cut = pool, and no head.widths"
                )
            if phase.fit and phase.fit.startswith(("kernel", "neighbours")) and number + 1 < len(self.phase):
                raise ValueError(
                    f"phase.{number}.fit = {phase.fit} makes a head that later phases cannot train; put it last"
                )
            known: tuple[Objective, ...] = ("cross-entropy",)
            if phase.fit in ("ridge", "kernel-ridge"):
                known += ("regression",)
            if phase.fit in ("logistic", "svm"):
                known += ("tags",)
            if phase.fit and self.objective not in known:
                names = " or ".join(known)
                raise ValueError(f"phase.{number}.fit = {phase.fit} has the objective {names} (got {self.objective})")
            if (phase.fit or phase.lr_grid) and self.train.crop_scale < 1 and not self.train.random_views:
                key = "fit" if phase.fit else "lr_grid"
                raise ValueError(f"phase.{number}.{key} needs a finite number of views: set train.random_views")
            if phase.lr_grid and self.head.batch_norm:
                raise ValueError(f"phase.{number}.lr_grid: not with head.batch_norm")
            if number == 0 and phase.fit and self.head.weights:
                raise ValueError(
                    "head.weights is where epochs begin, and phase.0.fit begins anew; leave one of them out"
                )
            if phase.cut == "flatten" and self.head.pool in ("gem", "attention"):
                raise ValueError(f"phase.{number}.cut = flatten does not go with head.pool = {self.head.pool}")
            if (phase.fit or phase.lr_grid) and self.head.pool in ("gem", "attention"):
                raise ValueError(f"phase.{number} needs fixed vectors: head.pool = {self.head.pool} learns with epochs")
        return self

    @model_validator(mode="after")
    def _check_tags(self) -> Self:
        if self.objective != "tags":
            if self.decoder != Decoder():
                raise ValueError("decoder is read with objective tags only; leave it out, or set objective=tags")
            return self
        if not self.data.tag_separator:
            raise ValueError("objective tags: set data.tag_separator to what stands between the tags of a label")
        _refuse_for_tags(self)
        return self

    @model_validator(mode="after")
    def _check_joined_vectors(self) -> Self:
        for key in ("view_mean", "group_mean"):
            all_frozen = all(phase.cut in FROZEN for phase in self.phase)
            if getattr(self.head, key) and not (self.cache.enabled and all_frozen):
                raise ValueError(f"head.{key} needs the cache and cut = pool in all phases")
            if getattr(self.head, key) and self.train.tta:
                raise ValueError(f"head.{key} does not go with train.tta: leave one of them out")
            if getattr(self.head, key) and self.train.crop_scale < 1 and not self.train.random_views:
                raise ValueError(
                    f"head.{key} needs a finite number of views: set train.random_views, or crop_scale = 1"
                )
        return self

    def require_classes(self, what: str) -> None:
        """Refuse a job that writes phrases.

        Raises
        ------
        UserError
            Which says what cannot be done with it.
        """
        if self.objective == "tags":
            raise UserError(f"objective = tags: {what} is of runs that tell classes apart; name another job or run")

    @property
    def task(self) -> str:
        """Name of the registry that the job's models stand in."""
        return self.nightly.task or self.name

    @property
    def chooses(self) -> bool:
        """Whether something is left to be measured before the job can run."""
        return self.strategy == "auto" or any(phase.cut == "auto" for phase in self.phase)

    @property
    def dtype(self) -> StoredAs:
        """The type of cached numbers."""
        if self.model.backbone == HANDCRAFTED:
            return "fp32"
        automatic: dict[str, StoredAs] = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
        return automatic[self.train.mixed_precision] if self.cache.dtype == "auto" else self.cache.dtype


def _refuse_for_tags(job: Job) -> None:
    """Refuse what has no meaning for phrases.

    Raises
    ------
    ValueError
        With the key to leave out.
    """
    of_classes = {
        "metric = quadratic_kappa (accuracy is the share of phrases that are exactly right)": job.metric != "accuracy",
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
            "fit beside other phases": phase.fit and len(job.phase) > 1,
        }
        of_classes |= {f"phase.{number}.{key}": bool(used) for key, used in own.items()}
    used = [key for key, is_used in of_classes.items() if is_used]
    if used:
        raise ValueError(f"objective tags does not go with {', '.join(used)}; leave it out")
