"""One process of one stage, started by srun or by submitit."""

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Failure, StageName, load_record
from tlbatch.runs.stage import run_guarded
from tlbatch.runs.world import World, read_world

LOG = "TLBATCH_LOG"
"""Variable with the log of each task, as srun is told it."""


def run_stage(stage: StageName, run_dir: str) -> None:
    """Run a stage and leave by SystemExit; what submitit calls on every task.

    submitit passes SystemExit on as the exit code and pickles nothing: the markers in the run folder tell what
    happened.
    """
    sys.exit(execute(stage, Path(run_dir)))


def run_chain(run_dir: str, stages: Sequence[StageName]) -> None:
    """Run some stages of a run one after another in this process and leave by SystemExit."""
    codes = (execute(stage, Path(run_dir)) for stage in stages)
    sys.exit(next((code for code in codes if code), 0))


def run_each(stage: StageName, run_dirs: Sequence[str]) -> None:
    """Run a stage of several runs one after another in this process and leave by SystemExit.

    One that fails leaves the others as they are, unless the time has run out, or other tasks wait for one that crashed.
    """
    world, codes = read_world(os.environ), []
    for paths in (RunPaths(Path(run_dir)) for run_dir in run_dirs):
        with _own_log(paths, world):
            code = execute(stage, paths.folder)
        codes.append(code)
        failure = paths.failure(stage, world.rank)
        kind = load_record(Failure, failure, missing="run the stage again").kind if failure.exists() else None
        if kind == "stopped":
            sys.exit(code)
        print(f"{paths.folder.name}: {'failed' if code else 'done'}, see {paths.logs}", flush=True)
        if code and kind != "user" and world.world_size > 1:
            break
    sys.exit(max(codes))


@contextmanager
def _own_log(paths: RunPaths, world: World) -> Iterator[None]:
    """Let what is printed go into the logs of the run; where no batch script names a log it goes where it went."""
    if LOG not in os.environ:
        yield
        return
    name = Path(os.environ[LOG]).name.replace("%t", str(world.rank))
    log = (paths.logs / name).open("a", buffering=1, encoding="utf-8", errors="backslashreplace")
    with log, redirect_stdout(log), redirect_stderr(log):
        yield


def run_share(run_dir: str, number: int, total: int) -> None:
    """Write one of several shares of the shards and leave by SystemExit; what submitit calls in an array task."""
    sys.exit(execute("shard", Path(run_dir), share=(number, total)))


def execute(stage: StageName, run_dir: Path, **options: object) -> int:
    """Import the stage by its name, which keeps this module light, and run it; the exit code."""

    def work(folder: Path) -> None:
        importlib.import_module(f"tlbatch.{stage}").run(folder, **options)

    return run_guarded(stage, work, run_dir)
