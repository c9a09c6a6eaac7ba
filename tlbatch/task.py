"""Run one process of a stage, as srun and submitit do.

Jobs that were queued by the previous version find `run_stage` and similar functions here.
"""

import os
import sys
from pathlib import Path
from typing import get_args

from tlbatch.core.cli import command_parser
from tlbatch.runs.stages import StageName
from tlbatch.runs.task import LOG, execute, run_chain, run_each, run_share, run_stage
from tlbatch.runs.world import read_world

__all__ = ["LOG", "main", "run_chain", "run_each", "run_share", "run_stage"]


def main() -> None:
    """Run ``python -m tlbatch.task STAGE RUN``."""
    parser = command_parser("task", __doc__)
    parser.add_argument("stage", choices=get_args(StageName))
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--share", action="store_true", help="shard: write this task's share of the shards, no index")
    arguments = parser.parse_args()
    if arguments.share:
        world = read_world(os.environ)
        run_share(str(arguments.run), world.rank, world.world_size)
    sys.exit(execute(arguments.stage, arguments.run))


if __name__ == "__main__":
    main()
