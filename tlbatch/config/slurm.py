"""The section slurm of a job: what to request from SLURM."""

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
    """Requests to SLURM. choose, cache, train and predict use all tasks; other stages use one task without GPU."""

    partition: _SbatchText | None = None
    """Partition to submit to."""
    account: _SbatchText | None = None
    """Account to charge."""
    qos: _SbatchText | None = None
    """Quality of service."""
    constraint: _SbatchText | None = None
    """Required node features."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Number of nodes."""
    gpus_per_node: Annotated[int, Field(ge=0)] = 0
    """Number of GPUs per node, each driven by one task; 0: run on the CPU."""
    tasks_per_node: Annotated[int, Field(ge=1)] | None = None
    """Number of tasks per node; empty: one per GPU, or a single one."""
    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """Number of cores per task; empty: cpus_per_node divided among the tasks, or SLURM's default; without SLURM all
    cores divided among the tasks."""
    cpus_per_node: Annotated[int, Field(ge=1)] | None = None
    """Number of cores per node for all of its tasks, if cpus_per_task is empty."""
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    """Memory per node in GB."""
    timeout_min: Annotated[int, Field(ge=5)] = 240
    """Time limit of a stage in minutes; a stage that needs more is requeued and resumes."""
    signal_delay_s: Annotated[int, Field(ge=10)] = 120
    """Seconds before the time limit at which SLURM warns the tasks, which then save and are requeued."""
    watchdog_timeout_s: Annotated[Positive, Field(alias="hang_s")] = 50.0
    """Watchdog timeout: end the job after this many seconds without progress, or ten times the slowest step so far if
    that is longer."""
    snapshot_interval_min: Annotated[Positive, Field(alias="save_min")] = 10.0
    """Minutes between snapshots, from the last of which a killed training resumes. A training that is asked to stop
    saves another one first."""
    max_restarts: Annotated[int, Field(ge=0)] = 100
    """Largest number of times that a stage is requeued after its time has run out."""
    mail_type: _SbatchText | None = None
    """Events for which SLURM sends mail, as for sbatch --mail-type, e.g. END,FAIL,REQUEUE."""
    mail_user: _SbatchText | None = None
    """Recipient of the mail; empty: the owner of the job."""
    notify: Path | None = None
    """Program to call on the host at the end of every attempt of a stage, with the stage, the run folder, and finished,
    again or failed as arguments. Keep any secrets in the program."""
    container: str = "none"
    """Container for the tasks: RUNTIME:IMAGE, where the image is a SIF file for apptainer, a SquashFS file for
    charliecloud and pyxis, or a name for podman-hpc; none: the environment that submits."""
    container_options: tuple[str, ...] = ()
    """Additional options of the runtime (for pyxis: of srun), e.g. ["--rocm"]."""
    mounts: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Additional files and folders of the host to mount in the container, read-only, or writable with the suffix :rw.
    Those that the job names are always mounted."""
    array_parallelism: Annotated[int, Field(ge=1, alias="parallel")] = 16
    """Largest number of runs of a sweep, or of recipes, whose jobs for a stage run at the same time."""
    setup: tuple[str, ...] = ()
    """Shell lines for the batch script of every stage, e.g. module load; a command that fails stops the stage. Not used
    with --local and --in-allocation."""
    environment: Mapping[str, str] = {}
    """Environment variables for the tasks of every stage, e.g. { NCCL_DEBUG = "WARN" }; no secrets."""
    interface: Annotated[str, Field(pattern=RUN_NAME)] | None = None
    """Network interface between the nodes, e.g. ib0 (NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME); empty: the libraries
    choose."""
    shard_tasks: Annotated[int, Field(ge=1, le=1000)] = 1
    """Number of array tasks that write shards in parallel, each with the cores of one task; for large data sets."""
    local_folder: str = ""
    """Folder on the local disk of each node to which train and predict copy the shards first; variables are expanded
    there, e.g. $TMPDIR; empty: read the shards in place."""
    rendezvous_s: Annotated[int, Field(ge=5)] = 300
    """Seconds that the ranks wait for each other at the start."""

    @field_validator("container")
    @classmethod
    def _check_container(cls, value: str) -> str:
        runtime, _, image = value.partition(":")
        if value != "none" and (runtime not in get_args(Runtime)[1:] or not image or not value.isprintable()):
            known = ", ".join(get_args(Runtime)[1:])
            raise ValueError(f"must be none or RUNTIME:IMAGE, with RUNTIME one of {known} (got {value!r}); change it")
        return value

    @field_validator("container_options", "mounts")
    @classmethod
    def _check_words(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, word in enumerate(value):
            if "\0" in word:
                raise ValueError(f"number {number} must not contain the character NUL; leave it out")
            if not word.removesuffix(":rw"):
                raise ValueError(f"number {number} is empty; leave it out")
            if gives_secret(word):
                raise ValueError(
                    f"number {number} contains what looks like a password or key, and the job is stored; leave it out"
                )
        return value

    @field_validator("setup")
    @classmethod
    def _check_setup(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for number, line in enumerate(value):
            if "\0" in line:
                raise ValueError(f"number {number} must not contain the character NUL; leave it out")
            if gives_secret(line):
                raise ValueError(
                    f"number {number} contains what looks like a password or key, and the job is stored; export it in "
                    "the shell before you submit, or let the line read it, e.g. TOKEN=$(cat FILE)"
                )
        return value

    @field_validator("environment")
    @classmethod
    def _check_environment(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for name, text in value.items():
            if not is_shell_name(name):
                raise ValueError(f"{name!r} must be letters, digits or '_', and not begin with a digit; rename it")
            if "\0" in text:
                raise ValueError(f"{name} must not contain the character NUL; leave it out")
            if is_secret_name(name) or holds_secret(text):
                raise ValueError(
                    f"{name} looks like a secret, and the job is stored; export it in the shell before you submit, "
                    "SLURM passes it on"
                )
        return value

    @model_validator(mode="after")
    def _check_tasks(self) -> Self:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"tasks_per_node must equal gpus_per_node ({self.gpus_per_node}), as each task drives one GPU; "
                "leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_signal_delay(self) -> Self:
        needed = self.signal_delay_s + _EARLY_S + _BEGIN_S
        if 60 * self.timeout_min < needed:
            raise ValueError(
                f"timeout_min = {self.timeout_min} gives {60 * self.timeout_min} s, but SLURM warns "
                f"{self.signal_delay_s} s before the end and up to {_EARLY_S} s earlier, and a stage takes up to "
                f"{_BEGIN_S} s to start; set timeout_min to at least {-(-needed // 60)}, or a lower signal_delay_s"
            )
        return self

    @model_validator(mode="after")
    def _check_cores(self) -> Self:
        if self.cpus_per_node and self.cpus_per_node < self.num_tasks_per_node:
            raise ValueError(f"cpus_per_node must be at least {self.num_tasks_per_node}, one core per task; raise it")
        return self

    @property
    def num_tasks_per_node(self) -> int:
        """Number of tasks per node of the stages that use all ranks."""
        return self.tasks_per_node or max(1, self.gpus_per_node)

    @property
    def num_cpus_per_task(self) -> int | None:
        """Number of cores per task, if the job sets it."""
        return self.cpus_per_task or (self.cpus_per_node and self.cpus_per_node // self.num_tasks_per_node)

    @property
    def runtime(self) -> Runtime:
        """The container runtime."""
        return cast("Runtime", self.container.partition(":")[0])

    @property
    def image(self) -> str:
        """The file of the image, or its name for podman-hpc; empty without a container."""
        return self.container.partition(":")[2]
