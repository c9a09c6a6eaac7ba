"""Check for new images or labels, retrain, test, and promote the new model or keep the champion.

The job files are merged left to right, then key=value overrides. If nothing is new, it ends in seconds. A night that
was killed is resumed by the next start; while one is running, another start does nothing.
"""

import argparse
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from tlbatch.cluster import launch
from tlbatch.cluster.create import resolve
from tlbatch.cluster.launch import Target, target_of
from tlbatch.config.load import load_job, split_arguments
from tlbatch.core.cli import command_parser, run_command, with_new_options
from tlbatch.core.errors import UserError
from tlbatch.promotion.lease import LeaseTakenError, hold_lease
from tlbatch.promotion.night import hold_night, is_active
from tlbatch.promotion.registry import Registry


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m tlbatch.nightly``."""
    given = _parser().parse_intermixed_args(with_new_options(arguments))
    run_command(lambda: _night(given.job, target_of(given)))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("nightly", __doc__)
    parser.add_argument("job", nargs="+", metavar="JOB.toml|key=value", help="job files and overrides of a single run")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run on this machine; needs no SLURM")
    where.add_argument("--in-allocation", action="store_true", help="run as steps of the current SLURM allocation")
    return parser


def _night(texts: Sequence[str], where: Target) -> int:
    launch.check_place(where)
    job = load_job(*split_arguments(texts))
    job.require_classes("a night")
    if job.run is not None:
        raise UserError("run: every night makes a new run, named after the task and the time; leave it out")
    run = f"{job.task}-{datetime.now(UTC):%Y%m%d-%H%M%S}"  # two tasks may start in the same second
    record = resolve(job.model_copy(update={"run": run}))
    launch.check_start(where, record.job.slurm)
    registry = Registry.of(record.job)
    registry.make(private=job.private)
    try:
        with hold_lease(registry.lock_file, os.environ, is_active) as before:
            return hold_night(record, registry, before, where)
    except LeaseTakenError as taken:
        print(f"a night of {job.task} is already running ({taken}); nothing to do", flush=True)
        return 0


if __name__ == "__main__":
    main()
