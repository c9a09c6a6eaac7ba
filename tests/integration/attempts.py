"""Run attempts of a stage, each in a process forked from one that has imported everything, and kill them at will."""

import importlib
import mmap
import os
import random
import select
import signal
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal

from tlbatch.activations import store
from tlbatch.core.garbage import imports_uncollected
from tlbatch.model import sklearn_heads
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.stage import run_guarded
from tlbatch.runs.stages import STAGES, StageName
from tlbatch.training import search
from tlbatch.training.loop import RankConsensus

STEPS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "fdopen")
"""Calls of ``os`` by which a stage changes the disk; data written to an open file become visible only by them."""
Moment = Literal["before", "inside", "after"]
_LONGEST_S = 300


@dataclass(frozen=True)
class Kill:
    """When to kill an attempt: after a time, or at a step."""

    after_s: float | None = None
    step: int = 0
    """Counted from 1."""
    is_done: bool = False
    """Whether the step is completed first."""


@dataclass(frozen=True)
class Attempt:
    """Outcome of an attempt."""

    code: int
    """Exit code, or the negative number of the signal that ended it."""
    steps: int
    seconds: float
    killed: Moment | None
    """Before the first step of the stage, before its marker was written, or after."""


def prepare() -> None:
    """Import all stages, and make the forked ones write often: many small blocks, a snapshot at every step.

    Fewer fits write as much in less time.
    """
    with imports_uncollected():
        for stage in (*STAGES, "promote"):
            importlib.import_module(f"tlbatch.{stage}")
    store.BLOCK_BYTES = 1 << 12
    fit_fewer()
    sync = RankConsensus.sync

    @wraps(sync)
    def sync_at_once(self: RankConsensus, **_: bool) -> None:
        sync(self, at_once=True)

    RankConsensus.sync = sync_at_once  # type: ignore[method-assign]


def fit_fewer() -> None:
    """Score trials once, and compare a third of the penalties."""
    search._REPEATS = 1
    sklearn_heads._PENALTIES = {fit: penalties[::3] for fit, penalties in sklearn_heads._PENALTIES.items()}


def random_kill(way: Literal["time", "step"], undisturbed: Attempt, generator: random.Random) -> Kill:
    """Choose a random moment within an undisturbed attempt of the stage."""
    if way == "time":
        return Kill(after_s=generator.uniform(0, undisturbed.seconds))
    return Kill(step=generator.randint(1, undisturbed.steps), is_done=generator.random() < 0.5)


def run_attempt(stage: StageName, folder: Path, log: Path, kill: Kill | None = None) -> Attempt:
    """Run a stage to its end, or until its process group is killed."""
    kill = kill or Kill()
    counter = mmap.mmap(-1, 8)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _run(stage, folder, log, kill, counter)
    with suppress(OSError):  # the child does the same; either may be first
        os.setpgid(child, child)
    descriptor = os.pidfd_open(child)
    limit = _LONGEST_S if kill.after_s is None else kill.after_s
    ended, _, _ = select.select([descriptor], [], [], limit)
    os.close(descriptor)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with suppress(ProcessLookupError):  # workers that outlived it
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(status)
    (steps,) = struct.unpack("q", counter[:])
    seconds = time.monotonic() - began
    if not ended and kill.after_s is None:
        raise TimeoutError(f"{stage} did not end in {_LONGEST_S} s; see {log}")
    return Attempt(code, steps, seconds, _moment(stage, folder, steps) if code == -signal.SIGKILL else None)


def _moment(stage: StageName, folder: Path, steps: int) -> Moment:
    if RunPaths(folder).marker(stage).exists():
        return "after"
    return "inside" if steps else "before"


def _run(stage: StageName, folder: Path, log: Path, kill: Kill, counter: mmap.mmap) -> None:
    """Run the stage in the child process; never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        for name in STEPS:
            setattr(os, name, _counted(getattr(os, name), kill, counter))
        code = run_guarded(stage, importlib.import_module(f"tlbatch.{stage}").run, folder)
    finally:
        os._exit(code)


def _counted(call: Callable[..., Any], kill: Kill, counter: mmap.mmap) -> Callable[..., Any]:
    @wraps(call)
    def counted(*args: Any, **kwargs: Any) -> Any:
        number = struct.unpack("q", counter[:])[0] + 1
        counter[:] = struct.pack("q", number)
        if number == kill.step and not kill.is_done:
            os.killpg(0, signal.SIGKILL)
        try:
            return call(*args, **kwargs)
        finally:
            if number == kill.step:
                os.killpg(0, signal.SIGKILL)

    return counted
