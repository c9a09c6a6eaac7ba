"""The part of the job that says what is asked of SLURM."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self, cast, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from tlbatch.config.base import Positive, Section
from tlbatch.core.redaction import gives_secret, holds_secret, is_secret_name
from tlbatch.core.shell import is_shell_name, plain

RUN_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
_EARLY_S = 60
"""SLURM checks time limits once a minute (sbatch --signal)."""
_BEGIN_S = 120
_SbatchText = Annotated[str, Field(min_length=1), AfterValidator(plain)]
Runtime = Literal["none", "apptainer", "charliecloud", "pyxis", "podman-hpc"]


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
    watchdog_timeout_s: Annotated[Positive, Field(alias="hang_s")] = 50.0
    """End the job after this many seconds without progress, or ten times the slowest step so far if that is longer."""
    snapshot_interval_min: Annotated[Positive, Field(alias="save_min")] = 10.0
    """Minutes between snapshots; a killed training resumes from the last one. One that is asked to stop saves first."""
    max_restarts: Annotated[int, Field(ge=0)] = 100
    """Times that a stage starts again after its time has run out."""
    mail_type: _SbatchText | None = None
    """When SLURM writes a mail, as sbatch --mail-type says, e.g. END,FAIL,REQUEUE."""
    mail_user: _SbatchText | None = None
    """Whom to; empty: the owner of the job."""
    notify: Path | None = None
    """Program that is called on the host at the end of every life of a stage, with the stage, the run folder, and
    finished, again or failed; whatever secrets it needs stay in it."""
    container: str = "none"
    """What tasks run in: RUNTIME:IMAGE, with apptainer and a SIF file, charliecloud or pyxis and a SquashFS file, or
    podman-hpc and a name; none: the environment that submits."""
    container_options: tuple[str, ...] = ()
    """Options of the runtime (pyxis: of srun), e.g. ["--rocm"]."""
    mounts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Files and folders of the host to be seen in the container, read-only, or with :rw behind it, beside what the job
    names."""
    array_parallelism: Annotated[int, Field(ge=1, alias="parallel")] = 16
    """Runs of a sweep, or recipes, that are at the same stage at once."""
    setup: tuple[str, ...] = ()
    """Shell lines in the batch script of every stage, e.g. module load; a failing command in them stops the stage.
    Neither with --local nor with --in-allocation."""
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

    @field_validator("container")
    @classmethod
    def _check_container(cls, value: str) -> str:
        runtime, _, image = value.partition(":")
        if value != "none" and (runtime not in get_args(Runtime)[1:] or not image or not value.isprintable()):
            known = ", ".join(get_args(Runtime)[1:])
            raise ValueError(f"must be none or RUNTIME:IMAGE, with one of {known} (got {value!r})")
        return value

    @field_validator("container_options", "mounts")
    @classmethod
    def _check_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, word in enumerate(value):
            if "\0" in word:
                raise ValueError(f"number {number} must not hold the character NUL; leave it out")
            if not word.removesuffix(":rw"):
                raise ValueError(f"number {number} is empty; leave it out")
            if gives_secret(word):
                raise ValueError(f"number {number} holds what looks like a password or key, and the job is kept")
        return value

    @field_validator("setup")
    @classmethod
    def _check_setup(cls, value: tuple[str, ...]) -> tuple[str, ...]:
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
    def _check_environment(cls, value: Mapping[str, str]) -> Mapping[str, str]:
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
    def _check_tasks(self) -> Self:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(f"tasks_per_node must equal gpus_per_node ({self.gpus_per_node}): one task drives one GPU")
        return self

    @model_validator(mode="after")
    def _check_signal_delay(self) -> Self:
        needed = self.signal_delay_s + _EARLY_S + _BEGIN_S
        if 60 * self.timeout_min < needed:
            raise ValueError(
                f"timeout_min = {self.timeout_min} gives {60 * self.timeout_min} s, but SLURM warns "
                f"{self.signal_delay_s} s before the end and up to {_EARLY_S} s earlier, and a stage takes up to "
                f"{_BEGIN_S} s to begin: set timeout_min to at least {-(-needed // 60)}, or signal_delay_s lower"
            )
        return self

    @model_validator(mode="after")
    def _check_cores(self) -> Self:
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

    @property
    def runtime(self) -> Runtime:
        """What runs the container."""
        return cast("Runtime", self.container.partition(":")[0])

    @property
    def image(self) -> str:
        """The file, or for podman-hpc the name, of the image; empty without a container."""
        return self.container.partition(":")[2]
