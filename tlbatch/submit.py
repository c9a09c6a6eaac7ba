"""Submit a job to SLURM as a chain of stages, or run it on this machine.

The job files are merged left to right, then key=value overrides, and validated once. To resume a run that was stopped,
name its folder instead. Several runs, from recipes or a sweep, become job arrays.
"""

import argparse
from collections.abc import Sequence

from tlbatch.config.load import config_keys
from tlbatch.core.cli import command_parser, run_command, with_new_options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``python -m tlbatch.submit``."""
    options = _parser().parse_intermixed_args(with_new_options(arguments))
    run_command(lambda: _submit(options))


def _parser() -> argparse.ArgumentParser:
    parser = command_parser("submit", __doc__, epilog="keys of a job, with their defaults:\n" + key_table())
    parser.add_argument(
        "job", nargs="+", metavar="JOB.toml|key=value|RUN", help="job files and overrides, or folders of runs to resume"
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
        "--test-only", action="store_true", help="as --dry-run, and check the scripts with sbatch --test-only"
    )
    parser.add_argument("--wait", action="store_true", help="show the logs, wait for the end and print the scores")
    return parser


def key_table() -> str:
    """Return one line per key of the job."""
    return "\n".join(f"  {key} ({default}): {text}" for key, default, text in config_keys())


def _submit(options: argparse.Namespace) -> int:
    from tlbatch.cluster.submission import submit  # noqa: PLC0415 (submitit would double the time of --help)

    return submit(options)


if __name__ == "__main__":
    main()
