"""Task: one process of one stage, started by srun or by submitit."""

import argparse
import importlib
import os
import sys
from pathlib import Path

from tlbatch.job.cli import guarded
from tlbatch.job.paths import RunPaths
from tlbatch.job.records import STAGES, StageName, stages_of
from tlbatch.job.world import read_world


def run_stage(stage: StageName, run_dir: str) -> None:
    """Run a stage and leave by SystemExit; what submitit calls on every task.

    submitit passes SystemExit on as the exit code and pickles nothing: the markers in the run folder tell what
    happened.
    """
    sys.exit(_run(stage, Path(run_dir)))


def run_chain(run_dir: str) -> None:
    """Run all stages of a run one after another in this process and leave by SystemExit."""
    folder = Path(run_dir)
    codes = (_run(stage, folder) for stage in stages_of(RunPaths(folder).load_submitted().job))
    sys.exit(next((code for code in codes if code), 0))


def run_share(run_dir: str, number: int, total: int) -> None:
    """Write one of several shares of the shards and leave by SystemExit; what submitit calls in an array task."""
    sys.exit(_run("shard", Path(run_dir), share=(number, total)))


def _run(stage: StageName, run_dir: Path, **options: object) -> int:
    """Import the stage by its name, which keeps this module light, and run it; the exit code."""

    def work(folder: Path) -> None:
        importlib.import_module(f"tlbatch.{stage}").run(folder, **options)

    return guarded(stage, work, run_dir)


def main() -> None:
    """``python -m tlbatch.task STAGE RUN``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.task", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--share", action="store_true", help="shard: write this task's share of the shards, no index")
    arguments = parser.parse_args()
    if arguments.share:
        world = read_world(os.environ)
        run_share(str(arguments.run), world.rank, world.world_size)
    sys.exit(_run(arguments.stage, arguments.run))


if __name__ == "__main__":
    main()
