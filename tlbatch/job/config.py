"""The job: one frozen tree, filled from TOML files and ``key=value`` overrides, validated once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from tlbatch.job.images import Data
from tlbatch.job.learning import (
    FROZEN,
    HANDCRAFTED,
    Cache,
    Decision,
    Head,
    Model,
    Objective,
    Phase,
    StoredAs,
    Train,
)
from tlbatch.job.nightly import Nightly
from tlbatch.job.reporting import Reporting
from tlbatch.job.secrecy import gives_secret, holds_secret, is_secret_name
from tlbatch.job.section import Metric, Positive, Section
from tlbatch.job.shell import is_shell_name, plain

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
_EARLY_S = 60
"""SLURM checks time limits once a minute (sbatch --signal)."""
_BEGIN_S = 120
_SbatchText = Annotated[str, Field(min_length=1), AfterValidator(plain)]


class Slurm(Section):
    """What is asked of SLURM for every task of train and predict; shard and reduce take one task without GPU."""

    partition: _SbatchText | None = None
    """Partition."""
    account: _SbatchText | None = None
    """Account."""
    qos: _SbatchText | None = None
    """Quality of service."""
    constraint: _SbatchText | None = None
    """Node features."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Nodes."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """GPUs a node, each with one task; 0: the CPU."""
    tasks_per_node: Annotated[int, Field(ge=1)] | None = None
    """Tasks a node; empty: one a GPU, or one."""
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """Cores a task; empty: cpus_per_node shared out, else SLURM's default, or on this machine all cores shared out."""
    cpus_per_node: Annotated[int, Field(ge=1)] | None = None
    """Cores of a node for its tasks together, where cpus_per_task is empty."""
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory a node in GB."""
    timeout_min: Annotated[int, Field(ge=5)] = 240
    """Time limit of a stage in minutes; one that needs more starts again and goes on."""
    signal_delay_s: Annotated[int, Field(ge=10)] = 120
    """Seconds before the time limit at which SLURM warns the tasks, which then save and start again."""
    hang_s: Positive = 50.0
    """Seconds that a rank may stand still in a step, or ten times its longest step so far, before it ends the job."""
    save_min: Positive = 10.0
    """Minutes between two snapshots that a killed training goes on from; one that is told to end saves before."""
    max_restarts: Annotated[int, Field(ge=0)] = 100
    """Times that a stage starts again after its time has run out."""
    mail_type: _SbatchText | None = None
    """When SLURM writes a mail, as sbatch --mail-type says, e.g. END,FAIL,REQUEUE."""
    mail_user: _SbatchText | None = None
    """Whom to; empty: the owner of the job."""
    notify: Path | None = None
    """Program that is called on the host at the end of every life of a stage, with the stage, the run folder, and
    finished, again or failed; whatever secrets it needs stay in it."""
    parallel: Annotated[int, Field(ge=1)] = 16
    """Runs of a sweep, or recipes, that are at the same stage at once."""
    setup: tuple[str, ...] = ()
    """Shell lines in the batch script of every stage, e.g. module load; a failing command in them stops the stage.
    Neither with --local nor with --inside."""
    environment: Mapping[str, str] = {}
    """Variables of every stage's tasks, e.g. { NCCL_DEBUG = "WARN" }; no secrets."""
    interface: Annotated[str, Field(pattern=RUN_NAME)] | None = None
    """Network interface between the nodes, e.g. ib0 (NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME); empty: the libraries
    choose."""
    shard_tasks: Annotated[int, Field(ge=1, le=1000)] = 1
    """Array tasks that write shards side by side, each on one task's cores; more for large sets."""
    local_folder: str = ""
    """Folder on each node's own disk, variables expanded there (e.g. $TMPDIR), into which train and predict copy the
    shards first; empty: read them where they lie."""
    rendezvous_s: Annotated[int, Field(ge=5)] = 300
    """Seconds that the ranks wait for one another at the start."""

    @field_validator("setup")
    @classmethod
    def _setup_holds_no_secret(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, line in enumerate(value):
            if "\0" in line:
                raise ValueError(f"number {number} must not hold the character NUL; leave it out")
            if gives_secret(line):
                raise ValueError(
                    f"number {number} holds what looks like a password or key, and the job is kept; export it in the "
                    "shell before you submit, or let the line read it, e.g. TOKEN=$(cat FILE)"
                )
        return value

    @field_validator("environment")
    @classmethod
    def _environment_is_no_secret(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in value.items():
            if not is_shell_name(name):
                raise ValueError(f"{name!r} must be a variable's name: letters, digits and '_', no digit first")
            if "\0" in text:
                raise ValueError(f"{name} must not hold the character NUL; leave it out")
            if is_secret_name(name) or holds_secret(text):
                raise ValueError(
                    f"{name} looks like a secret, and the job is kept; export it in the shell before you submit, "
                    "SLURM passes it on"
                )
        return value

    @model_validator(mode="after")
    def _one_task_a_gpu(self) -> Self:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(f"tasks_per_node must equal gpus_per_node ({self.gpus_per_node}): one task drives one GPU")
        return self

    @model_validator(mode="after")
    def _there_is_time_to_work(self) -> Self:
        needed = self.signal_delay_s + _EARLY_S + _BEGIN_S
        if 60 * self.timeout_min < needed:
            raise ValueError(
                f"timeout_min = {self.timeout_min} gives {60 * self.timeout_min} s, but SLURM warns "
                f"{self.signal_delay_s} s before the end and up to {_EARLY_S} s earlier, and a stage takes up to "
                f"{_BEGIN_S} s to begin: set timeout_min to at least {-(-needed // 60)}, or signal_delay_s lower"
            )
        return self

    @model_validator(mode="after")
    def _a_core_a_task(self) -> Self:
        if self.cpus_per_node and self.cpus_per_node < self.num_tasks_per_node:
            raise ValueError(
                f"cpus_per_node must be at least {self.num_tasks_per_node}, a core for each task of a node"
            )
        return self

    @property
    def num_tasks_per_node(self) -> int:
        """Tasks of train and predict on one node."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def num_cpus_per_task(self) -> int | None:
        """Cores of each task, where the job says it."""
        return self.cpus_per_task or (self.cpus_per_node and self.cpus_per_node // self.num_tasks_per_node)


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
    """What is minimised; binary: one sigmoid unit, two classes; corn, cumulative and regression: ordered classes."""
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
    def _the_cut_names_hand_made_features(cls, tree: object) -> object:
        """The cut handcrafted chooses the backbone too, where the job names none."""
        if not isinstance(tree, Mapping):
            return tree
        model, phases = tree.get("model", {}), tree.get("phase", ())
        named = isinstance(phases, list | tuple) and any(
            isinstance(phase, Mapping) and phase.get("cut") == HANDCRAFTED for phase in phases
        )
        return {**tree, "model": {"backbone": HANDCRAFTED, **model}} if named and isinstance(model, Mapping) else tree

    @model_validator(mode="after")
    def _hand_made_features_need_no_network(self) -> Self:
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
        if self.cache.stored_as not in ("auto", "fp32"):
            raise ValueError(f"cut = handcrafted is stored as fp32 (got cache.stored_as = {self.cache.stored_as})")
        return self

    @model_validator(mode="after")
    def _somebody_decides(self) -> Self:
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
    def _subgroups_have_a_file(self) -> Self:
        if self.report.subgroups and self.data.labels is None:
            raise ValueError("report.subgroups are columns of a labels file: set data.source=csv and data.labels")
        return self

    @model_validator(mode="after")
    def _fits_need_frozen_backbones(self) -> Self:
        for number, phase in enumerate(self.phase):
            if phase.fit and (phase.cut not in FROZEN or self.head.widths):
                raise ValueError(
                    f"phase.{number}.fit fits a linear head on frozen features: cut = pool, and no head.widths"
                )
            if phase.fit and phase.fit.startswith(("kernel", "neighbours")) and number + 1 < len(self.phase):
                raise ValueError(
                    f"phase.{number}.fit = {phase.fit} makes a head that later phases cannot train; put it last"
                )
            known = ("cross-entropy", "regression") if phase.fit in ("ridge", "kernel-ridge") else ("cross-entropy",)
            if phase.fit and self.objective not in known:
                names = " or ".join(known)
                raise ValueError(f"phase.{number}.fit = {phase.fit} has the objective {names} (got {self.objective})")
            if (phase.fit or phase.rates) and self.train.crop_scale < 1 and not self.train.random_views:
                key = "fit" if phase.fit else "rates"
                raise ValueError(f"phase.{number}.{key} needs a finite number of views: set train.random_views")
            if phase.rates and self.head.batch_norm:
                raise ValueError(f"phase.{number}.rates: not with head.batch_norm")
            if number == 0 and phase.fit and self.head.weights:
                raise ValueError(
                    "head.weights is where epochs begin, and phase.0.fit begins anew; leave one of them out"
                )
            if phase.cut == "flatten" and self.head.pool in ("gem", "attention"):
                raise ValueError(f"phase.{number}.cut = flatten does not go with head.pool = {self.head.pool}")
            if (phase.fit or phase.rates) and self.head.pool in ("gem", "attention"):
                raise ValueError(f"phase.{number} needs fixed vectors: head.pool = {self.head.pool} learns with epochs")
        return self

    @model_validator(mode="after")
    def _joined_vectors_need_the_cache(self) -> Self:
        for key in ("view_mean", "group_mean"):
            all_frozen = all(phase.cut in FROZEN for phase in self.phase)
            if getattr(self.head, key) and not (self.cache.enabled and all_frozen):
                raise ValueError(f"head.{key} needs the cache and cut = pool in all phases")
            if getattr(self.head, key) and self.train.test_views:
                raise ValueError(f"head.{key} does not go with train.test_views: leave one of them out")
            if getattr(self.head, key) and self.train.crop_scale < 1 and not self.train.random_views:
                raise ValueError(
                    f"head.{key} needs a finite number of views: set train.random_views, or crop_scale = 1"
                )
        return self

    @property
    def task(self) -> str:
        """Name of the registry that the job's models stand in."""
        return self.nightly.task or self.name

    @property
    def chooses(self) -> bool:
        """Whether something is left to be measured before the job can run."""
        return self.strategy == "auto" or any(phase.cut == "auto" for phase in self.phase)

    @property
    def stored_as(self) -> StoredAs:
        """The type of cached numbers."""
        if self.model.backbone == HANDCRAFTED:
            return "fp32"
        automatic: dict[str, StoredAs] = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
        return automatic[self.train.mixed_precision] if self.cache.stored_as == "auto" else self.cache.stored_as
