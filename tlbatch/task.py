"""Run one process of one or more stages, as srun and submitit do.

Jobs that were queued by the previous version find `run_stage` and similar functions here.
"""

import argparse
import os
from pathlib import Path
from typing import get_args

from tlbatch.core.cli import command_parser
from tlbatch.runs.stages import StageName
from tlbatch.runs.task import LOG, run_chain, run_each, run_share, run_stage
from tlbatch.runs.world import read_world

__all__ = ["LOG", "main", "run_chain", "run_each", "run_share", "run_stage"]


def main() -> None:
    """Run ``python -m tlbatch.task STAGE[,STAGE...] RUN``."""
    parser = command_parser("task", __doc__)
    parser.add_argument("stages", type=_stages, metavar="STAGE[,STAGE...]", help=", ".join(get_args(StageName)))
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder")
    parser.add_argument("--share", action="store_true", help="shard: write this task's share of the shards, no index")
    arguments = parser.parse_args()
    if arguments.share:
        world = read_world(os.environ)
        run_share(str(arguments.run), world.rank, world.world_size)
    run_chain(str(arguments.run), arguments.stages)


def _stages(text: str) -> list[StageName]:
    known = {name: name for name in get_args(StageName)}
    try:
        return [known[name] for name in text.split(",")]
    except KeyError as error:
        raise argparse.ArgumentTypeError(f"{error} is no stage; choose of {', '.join(known)}") from None


if __name__ == "__main__":
    main()
