"""Submit a job: to SLURM as a chain of stages, or to this machine.

The job files are merged left to right, then key=value overrides, and validated once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tlbatch.job.cli import EXIT_USER_ERROR
from tlbatch.job.errors import UserError
from tlbatch.job.files import place_named
from tlbatch.job.load import config_keys, load_job
from tlbatch.job.prepare import make_run, resolve, run_paths
from tlbatch.job.records import STAGES, StageName
from tlbatch.watch import print_scores, wait_for_chain


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m tlbatch.submit``."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        with place_named():
            sys.exit(_submit(options))
    except UserError as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"error: {line}\n")
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tlbatch.submit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="keys of a job (default) and what they mean:\n" + key_table(),
    )
    parser.add_argument("job", nargs="+", metavar="JOB.toml|key=value", help="job files and overrides")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="run on this machine and wait; needs no SLURM")
    where.add_argument(
        "--inside", action="store_true", help="run as steps of the SLURM allocation this is in, and wait"
    )
    where.add_argument(
        "--dry-run", action="store_true", help="print the sbatch scripts and the run folder, touch nothing"
    )
    where.add_argument(
        "--check", action="store_true", help="as --dry-run, and let sbatch --test-only judge the scripts"
    )
    parser.add_argument("--wait", action="store_true", help="show the logs, wait for the end and print the scores")
    return parser


def key_table() -> str:
    """One line a key of the job."""
    return "\n".join(f"  {key} ({default}): {text}" for key, default, text in config_keys())


def _submit(options: argparse.Namespace) -> int:
    from tlbatch import launch  # noqa: PLC0415 (submitit would double the time of --help)

    files = [Path(text) for text in options.job if "=" not in text]
    record = resolve(load_job(files, [text for text in options.job if "=" in text]))
    if options.dry_run or options.check:
        paths = run_paths(record)
        print(f"run folder  {paths.folder}")
        shares = record.job.slurm.shard_tasks
        if shares > 1:
            print(f"\n##### shard, first\n{launch.render(record, paths, 'shard', after=None, array_tasks=shares)}")
        for stage, before in zip(STAGES, (None, *STAGES), strict=False):
            print(f"\n##### {stage}\n{launch.render(record, paths, stage, after=before and f'<id of {before}>')}")
        if options.check:
            _test_only({stage: launch.render(record, paths, stage, after=None) for stage in STAGES})
        return 0
    if not (options.local or options.inside) and shutil.which("sbatch") is None:
        raise UserError("sbatch: not found on PATH; add --local to run on this machine, or load SLURM's commands")
    paths = make_run(record)
    print(f"run folder  {paths.folder}", flush=True)
    if options.local:
        code = launch.run_here(record, paths)
    elif options.inside:
        code = launch.run_in_allocation(paths, os.environ)
    else:
        jobs = launch.submit_chain(record, paths)
        for stage, job_id in jobs.items():
            print(f"job {job_id:>8}  {stage}", flush=True)
        if not options.wait:
            return 0
        code = wait_for_chain(jobs, paths)
    if code == 0:
        print_scores(record, paths)
    return code


def _test_only(scripts: dict[StageName, str]) -> None:
    """Ask SLURM whether it would take each script."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not found on PATH; --check needs SLURM, --dry-run does not")
    refused = []
    for stage, text in scripts.items():
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
            script.write(text)
            script.flush()
            done = subprocess.run(["sbatch", "--test-only", script.name], capture_output=True, text=True, check=False)
        print(f"{stage}: {' '.join((done.stderr or done.stdout).split())}")
        if done.returncode:
            refused.append(stage)
    if refused:
        raise UserError(f"SLURM would refuse {', '.join(refused)} (see above); change the slurm section of the job")


if __name__ == "__main__":
    main()
