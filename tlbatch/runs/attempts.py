"""Attempts of stages and SLURM jobs of a run: ``ledger.jsonl`` has the start and end of every attempt, ``jobs.jsonl``
the jobs.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeVar

import psutil
from pydantic import TypeAdapter, ValidationError

from tlbatch.core.errors import StoppedError
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import Progress, load_progress
from tlbatch.runs.records import Record
from tlbatch.runs.stages import RANKED_STAGES, StageName
from tlbatch.runs.world import World

log = logging.getLogger(__name__)
Outcome = Literal["finished", "stopped", "failed", "killed"]
BEGAN = "TLBATCH_BEGAN"
"""Environment variable with the time at which a process started a stage, before its imports, which take GPU time."""


class AttemptStart(Record):
    """A line of the ledger: the start of an attempt."""

    event: Literal["begin"] = "begin"
    stage: StageName
    attempt: str
    """As `World.attempt`."""
    job: str | None
    """SLURM job; an array element as A_a."""
    restart: int
    """Number of times that SLURM had started the job before."""
    hosts: str
    tasks: int
    gpus: int
    """Number of GPUs of all tasks together; 0 on a CPU."""
    process: str
    """Host, process namespace and process id of rank 0."""
    time: float


class AttemptEnd(Record):
    """A line of the ledger: the end of an attempt."""

    event: Literal["end"] = "end"
    stage: StageName
    attempt: str
    outcome: Outcome
    time: float


class Attempt(Record):
    """An attempt of a stage."""

    begin: AttemptStart
    end: float | None
    """None: it is running, or was killed."""
    last_active: float
    """Time of the end, or else of the last progress."""
    outcome: Outcome | None

    @property
    def stage(self) -> StageName:
        """The stage of the attempt."""
        return self.begin.stage

    @property
    def gpu_hours(self) -> float:
        """GPU-hours up to the last progress."""
        return self.gpu_hours_until(self.last_active)

    def gpu_hours_until(self, now: float) -> float:
        """Return the hours of all its GPUs from start to end, or to now if it is running."""
        return self.begin.gpus * max(0.0, (now if self.end is None else self.end) - self.begin.time) / 3600

    def is_alive(self) -> bool | None:
        """Return whether its process exists; None if that cannot be determined from here."""
        host, _, number = self.begin.process.rpartition(":")
        if host != _here():
            return None
        try:
            return bool(psutil.Process(int(number)).create_time() <= self.begin.time + 60)
        except psutil.Error:
            return False


class Submitted(Record):
    """A line of ``jobs.jsonl``: a SLURM job submitted for a stage."""

    stage: StageName
    job: str
    time: float


AnyLine = TypeVar("AnyLine")
_EVENT: TypeAdapter[AttemptStart | AttemptEnd] = TypeAdapter(AttemptStart | AttemptEnd)


def note_job(paths: RunPaths, stage: StageName, job: str) -> None:
    """Record the SLURM job that was submitted for a stage."""
    _append(paths.jobs, Submitted(stage=stage, job=job, time=time.time()))


def read_jobs(paths: RunPaths) -> tuple[Submitted, ...]:
    """Read the SLURM jobs of a run in the order of their submission."""
    return tuple(_read_valid(TypeAdapter(Submitted), paths.jobs))


@contextmanager
def record_attempt(stage: StageName, paths: RunPaths, world: World) -> Iterator[None]:
    """Let rank 0 record in the ledger when the block starts, and when and how it ends."""
    began = os.environ.pop(BEGAN, "")
    if not world.is_main:
        yield
        return
    _close_killed(stage, paths)
    _append(paths.ledger, _begin(stage, paths, world, float(began or time.time())))
    outcome: Outcome = "failed"
    try:
        yield
        outcome = "finished"
    except (StoppedError, KeyboardInterrupt):
        outcome = "stopped"
        raise
    finally:
        _append(paths.ledger, AttemptEnd(stage=stage, attempt=world.attempt, outcome=outcome, time=time.time()))


def read_attempts(paths: RunPaths) -> tuple[Attempt, ...]:
    """Read all attempts of all stages of a run in the order of their start."""
    attempts: list[Attempt] = []
    progress = load_progress(paths)
    for event in _read_valid(_EVENT, paths.ledger):
        if isinstance(event, AttemptStart):
            attempts.append(Attempt(begin=event, end=None, last_active=_last_active(event, progress), outcome=None))
            continue
        for at, one in reversed(list(enumerate(attempts))):  # it is the end of the last open attempt of that name
            if one.end is None and (one.stage, one.begin.attempt) == (event.stage, event.attempt):
                attempts[at] = one.model_copy(
                    update={"end": event.time, "last_active": event.time, "outcome": event.outcome}
                )
                break
    return tuple(attempts)


def _last_active(begin: AttemptStart, progress: Progress | None) -> float:
    if progress is None or (progress.stage, progress.attempt) != (begin.stage, begin.attempt):
        return begin.time
    return max(begin.time, progress.time)


def _close_killed(stage: StageName, paths: RunPaths) -> None:
    """Record the end of attempts that were killed: only one attempt at a time can be running here."""
    for one in read_attempts(paths):
        if one.stage == stage and one.end is None:
            _append(
                paths.ledger, AttemptEnd(stage=stage, attempt=one.begin.attempt, outcome="killed", time=one.last_active)
            )


def _begin(stage: StageName, paths: RunPaths, world: World, now: float) -> AttemptStart:
    environment = os.environ
    in_step = "SLURM_STEP_ID" in environment and environment.get("SUBMITIT_EXECUTOR") != "local"
    job = environment.get("SLURM_JOB_ID") if in_step else None
    if job and "SLURM_ARRAY_TASK_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    own_job = environment.get("SUBMITIT_EXECUTOR") == "slurm"  # otherwise several stages share an allocation
    started = environment.get("SLURM_JOB_START_TIME", "") if job and own_job else ""
    return AttemptStart(
        stage=stage,
        attempt=world.attempt,
        job=job,
        restart=int(environment.get("SLURM_RESTART_COUNT") or 0),
        hosts=world.nodes,
        tasks=world.world_size,
        gpus=_num_gpus(stage, paths, world),
        process=f"{_here()}:{os.getpid()}",
        time=float(started) if started.isdecimal() else now,
    )


def _num_gpus(stage: StageName, paths: RunPaths, world: World) -> int:
    if world.num_gpus is not None:
        return world.num_gpus * (world.world_size // world.local_world_size)
    return paths.load_submitted().job.slurm.gpus_per_node if stage in RANKED_STAGES else 0


def _here() -> str:
    """Return the name of this host and its namespace of process ids, since a container has its own."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name.partition(":")[2]
    except OSError:
        namespace = ""
    return f"{platform.node()}:{namespace.strip('[]')}"


def _append(path: Path, line: Record) -> None:
    """Append a line in a single write, after a newline if a kill has left a partial line; ignore a full disk."""
    text = json.dumps(line.model_dump(mode="json"), ensure_ascii=False) + "\n"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(descriptor).st_size
            torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, (b"\n" if torn else b"") + text.encode(errors="backslashreplace"))
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("%s: not written (%s); the work continues", path, error.strerror)


def _read_valid(kind: TypeAdapter[AnyLine], path: Path) -> Iterator[AnyLine]:
    """Yield the records in a file, if there is one, skipping lines that a kill has truncated."""
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValidationError):
                yield kind.validate_json(line)
