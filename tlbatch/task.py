"""Task: one process of one stage, started by srun or by submitit."""

import argparse
import importlib
import sys
from pathlib import Path

from tlbatch.job.cli import guarded
from tlbatch.job.records import STAGES, StageName


def run_stage(stage: StageName, run_dir: str) -> None:
    """Run a stage and leave by SystemExit; what submitit calls on every task.

    submitit passes SystemExit on as the exit code and pickles nothing: the markers in the run folder tell what
    happened.
    """
    sys.exit(_run(stage, Path(run_dir)))


def _run(stage: StageName, run_dir: Path) -> int:
    """Import the stage by its name, which keeps this module light, and run it; the exit code."""

    def work(folder: Path) -> None:
        importlib.import_module(f"tlbatch.{stage}").run(folder)

    return guarded(stage, work, run_dir)


def main() -> None:
    """``python -m tlbatch.task STAGE RUN``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.task", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    arguments = parser.parse_args()
    sys.exit(_run(arguments.stage, arguments.run))


if __name__ == "__main__":
    main()
