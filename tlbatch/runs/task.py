"""A process of a stage, started by srun or submitit."""

import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from tlbatch.core.errors import UserError
from tlbatch.core.garbage import imports_uncollected
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Failure, load_record
from tlbatch.runs.stage import leave, run_guarded
from tlbatch.runs.stages import StageName
from tlbatch.runs.world import World, read_world

LOG = "TLBATCH_LOG"
"""Environment variable with the pattern of the tasks' logs, as passed to srun."""


def run_stage(stage: StageName, run_dir: str) -> None:
    """Run a stage and exit; submitit calls this on every task.

    submitit passes SystemExit on as the exit code and pickles no result: the markers in the run folder say what
    happened.
    """
    leave(execute(stage, Path(run_dir)))


def run_chain(run_dir: str, stages: Sequence[StageName]) -> None:
    """Run some stages of a run one after another in this process, and exit."""
    pairs = zip(stages, (None, *stages), strict=False)
    codes = (execute(stage, Path(run_dir), after=before) for stage, before in pairs)
    leave(next((code for code in codes if code), 0))


def run_each(stage: StageName, run_dirs: Sequence[str]) -> None:
    """Run a stage of several runs one after another in this process, and exit.

    A failed run does not stop the others, unless time has run out, or other tasks wait for one that crashed.
    """
    world, codes = read_world(os.environ), []
    for paths in (RunPaths(Path(run_dir)) for run_dir in run_dirs):
        with _own_log(paths, world):
            code = execute(stage, paths.folder)
        codes.append(code)
        failure = paths.failure(stage, world.rank)
        kind = load_record(Failure, failure, missing="run the stage again").kind if failure.exists() else None
        if kind == "stopped":
            leave(code)
        print(f"{paths.folder.name}: {'failed' if code else 'done'}, see {paths.logs}", flush=True)
        if code and kind != "user" and world.world_size > 1:
            break
    sys.exit(max(codes))


@contextmanager
def _own_log(paths: RunPaths, world: World) -> Iterator[None]:
    """Redirect the output to the logs of the run, if the batch script names a log."""
    if LOG not in os.environ:
        yield
        return
    name = Path(os.environ[LOG]).name.replace("%t", str(world.rank))
    log = (paths.logs / name).open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    with log, redirect_stdout(log), redirect_stderr(log):
        yield


def run_share(run_dir: str, number: int, total: int) -> None:
    """Write one of several shares of the shards, and exit; submitit calls this in an array task."""
    leave(execute("shard", Path(run_dir), share=(number, total)))


def execute(stage: StageName, run_dir: Path, *, after: StageName | None = None, **options: object) -> int:
    """Import a stage by its name, which keeps this module light, run it, and return its exit code.

    A stage ``after`` which it runs in the same processes must have written its marker.
    """

    def work(folder: Path) -> None:
        with imports_uncollected():
            module = importlib.import_module(f"tlbatch.{stage}")
        if after is not None:
            _await_marker(after, RunPaths(folder))
        module.run(folder, **options)

    return run_guarded(stage, work, run_dir)


def _await_marker(stage: StageName, paths: RunPaths) -> None:
    """Wait until rank 0 has written the marker of a stage, which it does last."""
    deadline = time.monotonic() + paths.load_submitted().job.slurm.rendezvous_s
    while not paths.marker(stage).exists():
        if time.monotonic() > deadline:
            raise UserError(f"{paths.marker(stage)}: rank 0 has not written it; see its log, then submit the run again")
        time.sleep(0.05)
