"""Submit a job: to SLURM as a chain of stages, or to this machine.

The job files are merged left to right, then key=value overrides, and validated once. A run that was stopped goes on
where it was when its folder is named in place of them.
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
from tlbatch.job.load import config_keys, load_jobs
from tlbatch.job.paths import RunPaths
from tlbatch.job.prepare import begun_in, make_run, open_run, resolve, run_paths
from tlbatch.job.records import RunRecord, StageName
from tlbatch.watch import print_board, print_scores, wait_for_chain


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
    parser.add_argument(
        "job",
        nargs="+",
        metavar="JOB.toml|key=value|RUN",
        help="job files and overrides, or folders of runs to go on with",
    )
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

    if options.dry_run or options.check:
        for record, paths in _runs(options, make=False):
            _show_scripts(record, paths, check=options.check)
        return 0
    if not (options.local or options.inside) and shutil.which("sbatch") is None:
        raise UserError("sbatch: not found on PATH; add --local to run on this machine, or load SLURM's commands")
    runs = _runs(options, make=True)
    codes = []
    if options.local or options.inside:
        for record, paths in runs:
            print(f"run folder  {paths.folder}", flush=True)
            work = launch.run_here(record, paths) if options.local else launch.run_in_allocation(paths, os.environ)
            codes.append(work)
    else:
        chains: list[dict[StageName, str]] = []
        for record, paths in runs:
            print(f"run folder  {paths.folder}", flush=True)
            behind = chains[-1].get("cache") if chains else None
            chains.append(launch.submit_chain(record, paths, behind=behind))
            for stage, job_id in chains[-1].items():
                print(f"job {job_id:>8}  {stage}", flush=True)
        if not options.wait:
            return 0
        codes = [wait_for_chain(jobs, paths) for jobs, (_, paths) in zip(chains, runs, strict=True)]
    ended = [run for run, code in zip(runs, codes, strict=True) if code == 0]
    if len(runs) == 1 and ended:
        print_scores(*ended[0])
    elif ended:
        print_board(ended)
        _compare([paths for _, paths in ended])
    return max(codes)


def _runs(options: argparse.Namespace, *, make: bool) -> list[tuple[RunRecord, RunPaths]]:
    """The runs that are meant: those whose folders are named, or new ones of the job."""
    overrides = [text for text in options.job if "=" in text and not text.startswith(("/", "."))]  # else a path with =
    overrides = [text for text in overrides if not (Path(text) / "job.json").is_file()]
    files = [Path(text) for text in options.job if text not in overrides]
    folders = [file for file in files if (file / "job.json").is_file()]
    if folders and len(folders) < len(files):
        other = next(file for file in files if file not in folders)
        raise UserError(f"{other}: a run goes on with its own job; name run folders, or job files")
    if folders:
        return [open_run(folder, overrides) for folder in folders]
    allocation = os.environ.get("SLURM_JOB_ID") if options.inside else None
    restarted = bool(allocation) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    runs = []
    for job in load_jobs(files, overrides):
        record = resolve(job).model_copy(update={"allocation": allocation})
        known = begun_in(str(allocation), record) if restarted else None
        runs.append(known or (record, make_run(record) if make else run_paths(record)))
    return runs


def _compare(runs: Sequence[RunPaths]) -> None:
    """Have reduce write the page that compares the recipes; it needs what a login command does not load."""
    command = [sys.executable, "-m", "tlbatch.reduce", *(str(paths.folder) for paths in runs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stderr.strip() or f"not written, exit code {done.returncode}").splitlines()[-1]
    print(f"comparison      {said if done.returncode else runs[0].folder.parent / 'comparison.html'}")


def _show_scripts(record: RunRecord, paths: RunPaths, *, check: bool) -> None:
    from tlbatch import launch  # noqa: PLC0415 (as above)

    stages = paths.stages_left(record.job)
    print(f"run folder  {paths.folder}")
    if record.job.slurm.shard_tasks > 1 and "shard" in stages:
        print(f"\n##### shard, first\n{launch.render(record, paths, 'shard', after=None, shares=True)}")
    for stage, before in zip(stages, (None, *stages), strict=False):
        after = before and f"afterok:<id of {before}>"
        print(f"\n##### {stage}\n{launch.render(record, paths, stage, after=after)}")
    if check:
        _test_only({stage: launch.render(record, paths, stage, after=None) for stage in stages})


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
