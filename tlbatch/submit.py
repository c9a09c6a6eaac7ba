"""Submit a job to SLURM as a chain of stages, or run it on this machine.

The job files are merged left to right, then key=value overrides, and validated once. To resume a run that was stopped,
name its folder instead. Several runs, from recipes or a sweep, become job arrays.
"""

import argparse
import os
from collections.abc import Sequence

from tlbatch.cluster.results import print_folds
from tlbatch.cluster.submission import end_of_several, open_runs, print_jobs, runs_left, show_scripts, submit_one
from tlbatch.config.load import config_keys
from tlbatch.core.cli import EXIT_AGAIN, run_command, with_new_options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m tlbatch.submit``."""
    options = _parser().parse_intermixed_args(with_new_options(arguments))
    run_command(lambda: _submit(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tlbatch.submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys of a job, with their defaults:\n" + key_table(),
    )
    parser.add_argument(
        "job",
        nargs="+",
        metavar="JOB.toml|key=value|RUN",
        help="job files and overrides, or folders of runs to resume",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run on this machine and wait; needs no SLURM")
    where.add_argument(
        "--in-allocation", action="store_true", help="run as steps of the current SLURM allocation, and wait"
    )
    where.add_argument(
        "--dry-run", action="store_true", help="print the sbatch scripts and the run folder, and change nothing"
    )
    where.add_argument(
        "--test-only",
        action="store_true",
        help="as --dry-run, and check the scripts with sbatch --test-only",
    )
    parser.add_argument("--wait", action="store_true", help="show the logs, wait for the end and print the scores")
    return parser


def key_table() -> str:
    """Return one line per key of the job."""
    return "\n".join(f"  {key} ({default}): {text}" for key, default, text in config_keys())


def _submit(options: argparse.Namespace) -> int:
    from tlbatch.cluster import job_arrays, launch  # noqa: PLC0415 (submitit would double the time of --help)

    if options.dry_run or options.test_only:
        show_scripts(open_runs(options, make=False), test_only=options.test_only)
        return 0
    launch.check_place(launch.target_of(options))
    runs = open_runs(options, make=True)
    if len(runs) == 1:
        return submit_one(runs[0], options)
    left = runs_left(runs)
    if options.local or options.in_allocation:
        for run in left:
            print(f"run folder  {run.folder}", flush=True)
            code = launch.run_here(run) if options.local else launch.run_in_allocation(run, os.environ)
            if code == EXIT_AGAIN:
                return code
        return end_of_several(runs)
    at_work = job_arrays.at_work(left)
    for run in left:
        active = f"  active, job {at_work[run.paths]}" if run.paths in at_work else ""
        print(f"run folder  {run.folder}{active}", flush=True)
    missing = [run for run in left if run.paths not in at_work]
    if len(missing) == 1:
        print_jobs(launch.submit_chain(missing[0]))
    elif missing:
        job_arrays.submit_runs(missing)
    if not options.wait:
        print_folds(runs)
        return 0
    if left:
        job_arrays.wait_for_runs(left)
    return end_of_several(runs)


if __name__ == "__main__":
    main()
