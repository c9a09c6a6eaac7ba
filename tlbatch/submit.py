"""Submit a job: to SLURM as a chain of stages, or to this machine.

The job files are merged left to right, then key=value overrides, and validated once. A run that was stopped goes on
where it was when its folder is named in place of them. Several runs, of recipes or a sweep, become job arrays.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from tlbatch.board import print_folds, show_end
from tlbatch.job.cli import EXIT_AGAIN, leave_with, where_of
from tlbatch.job.errors import UserError
from tlbatch.job.load import config_keys, load_jobs, split_arguments
from tlbatch.job.paths import RunPaths
from tlbatch.job.prepare import Run, begun_in, make_run, open_run, resolve, run_paths, taken_up
from tlbatch.job.records import RunRecord, StageName
from tlbatch.watch import print_scores, wait_for_chain


def main(arguments: Sequence[str] | None = None) -> None:
    """``python -m tlbatch.submit``."""
    options = _parser().parse_intermixed_args(arguments)
    leave_with(lambda: _submit(options))


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
    from tlbatch import arrays, launch  # noqa: PLC0415 (submitit would double the time of --help)

    if options.dry_run or options.check:
        _show_scripts(_runs(options, make=False), check=options.check)
        return 0
    launch.check_place(where_of(options))
    runs = _runs(options, make=True)
    if len(runs) == 1:
        return _submit_one(*runs[0], options)
    left = _left(runs)
    if options.local or options.inside:
        for record, paths in left:
            print(f"run folder  {paths.folder}", flush=True)
            code = launch.run_here(record, paths) if options.local else launch.run_in_allocation(paths, os.environ)
            if code == EXIT_AGAIN:
                return code
        return _end_of_several(runs)
    at_work = arrays.at_work(left)
    for _, paths in left:
        print(f"run folder  {paths.folder}{f'  at work, job {at_work[paths]}' if paths in at_work else ''}", flush=True)
    missing = [run for run in left if run[1] not in at_work]
    if len(missing) == 1:
        _print_jobs(launch.submit_chain(*missing[0]))
    elif missing:
        arrays.submit_runs(missing)
    if not options.wait:
        print_folds(runs)
        return 0
    if left:
        arrays.wait_for_runs(left)
    return _end_of_several(runs)


def _submit_one(record: RunRecord, paths: RunPaths, options: argparse.Namespace) -> int:
    from tlbatch import arrays, launch  # noqa: PLC0415 (as above)

    at_work = {} if options.local or options.inside else arrays.at_work([(record, paths)])
    if paths in at_work:
        raise UserError(f"{paths.folder}: job {at_work[paths]} is at work on it; wait for it, or scancel it first")
    print(f"run folder  {paths.folder}", flush=True)
    if options.local or options.inside:
        code = launch.run_here(record, paths) if options.local else launch.run_in_allocation(paths, os.environ)
    else:
        jobs = launch.submit_chain(record, paths)
        _print_jobs(jobs)
        if not options.wait:
            return 0
        code = wait_for_chain(jobs, paths)
    if code == 0:
        print_scores(record, paths)
    return code


def _print_jobs(jobs: Mapping[StageName, str]) -> None:
    for stage, job_id in jobs.items():
        print(f"job {job_id:>8}  {stage}", flush=True)


def _left(runs: Sequence[Run]) -> list[Run]:
    """The runs that have not finished; of the others that is said."""
    for record, paths in runs:
        if not paths.stages_left(record.job):
            print(f"run folder  {paths.folder}  finished already", flush=True)
    return [(record, paths) for record, paths in runs if paths.stages_left(record.job)]


def _end_of_several(runs: Sequence[Run]) -> int:
    """Say what the runs that ended well came to, and which failed; the exit code."""
    failed = _unfinished(runs)
    ended = [run for run in runs if run not in failed]
    if ended:
        show_end(ended)
    if failed:
        names = " ".join(shlex.quote(str(paths.folder)) for _, paths in failed)
        sys.stderr.write(
            f"error: {len(failed)} of {len(runs)} runs failed; go on with python -m tlbatch.submit {names}\n"
        )
    return int(bool(failed))


def _unfinished(runs: Sequence[Run]) -> list[Run]:
    return [(record, paths) for record, paths in runs if paths.stages_left(record.job)]


def _runs(options: argparse.Namespace, *, make: bool) -> list[Run]:
    """The runs that are meant: those whose folders are named, or those of the job, which may be there from before."""
    from tlbatch import arrays  # noqa: PLC0415 (as above)

    files, overrides = split_arguments(options.job)
    folders = [file for file in files if (file / "job.json").is_file()]
    if folders and len(folders) < len(files):
        other = next(file for file in files if file not in folders)
        raise UserError(f"{other}: a run goes on with its own job; name run folders, or job files")
    if folders:
        opened = [open_run(folder, overrides) for folder in dict.fromkeys(folders)]
        _check_starts(opened, options, make=make)
        return opened
    allocation = os.environ.get("SLURM_JOB_ID") if options.inside else None
    restarted = bool(allocation) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    records = [resolve(job).model_copy(update={"allocation": allocation}) for job in load_jobs(files, overrides)]
    known = [begun_in(str(allocation), record) if restarted else None for record in records]
    if len(records) > 1:
        known = [one or taken_up(record, save=make) for one, record in zip(known, records, strict=True)]
    placed = [one or (record, run_paths(record)) for one, record in zip(known, records, strict=True)]
    if len(placed) > 1 and not (options.local or options.inside):
        arrays.check_alike(placed)
    _check_starts(placed, options, make=make)
    if make:
        for record, paths in placed:
            if not paths.record.exists():
                make_run(record)
    return placed


def _check_starts(runs: Sequence[Run], options: argparse.Namespace, *, make: bool) -> None:
    from tlbatch import launch  # noqa: PLC0415 (as above)

    for record, _ in runs if make else ():
        launch.check_start(where_of(options), record.job.slurm)


def _show_scripts(runs: Sequence[Run], *, check: bool) -> None:
    from tlbatch import arrays  # noqa: PLC0415 (as above)

    left = _left(runs) if len(runs) > 1 else runs
    for _, paths in left:
        print(f"run folder  {paths.folder}")
    shown = list(arrays.scripts(left)) if len(left) > 1 else [one for run in left for one in _scripts(*run)]
    for title, script, _ in shown:
        print(f"\n##### {title}\n{script}")
    if check:
        _test_only([(title, alone) for title, _, alone in shown])


def _scripts(record: RunRecord, paths: RunPaths) -> Iterator[tuple[str, str, str]]:
    """Title and script of each job of a run, as it will be submitted and as it would be with nothing before."""
    from tlbatch.script import one_run, one_share, render  # noqa: PLC0415 (as above)

    slurm, stages = record.job.slurm, paths.stages_left(record.job)
    if slurm.shard_tasks > 1 and "shard" in stages:
        shares = render(slurm, one_share(record, paths), "shard", after=None, elements=slurm.shard_tasks)
        yield "shard, first", shares, shares
    for stage, before in zip(stages, (None, *stages), strict=False):
        after = before and f"afterok:<id of {before}>"
        script, alone = (render(slurm, one_run(record, paths, stage), stage, after=one) for one in (after, None))
        yield stage, script, alone


def _test_only(scripts: Sequence[tuple[str, str]]) -> None:
    """Ask SLURM whether it would take each script."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not found on PATH; --check needs SLURM, --dry-run does not")
    refused = []
    for title, text in scripts:
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
            script.write(text)
            script.flush()
            done = subprocess.run(["sbatch", "--test-only", script.name], capture_output=True, text=True, check=False)
        print(f"{title}: {' '.join((done.stderr or done.stdout).split())}")
        if done.returncode:
            refused.append(title)
    if refused:
        raise UserError(f"SLURM would refuse {', '.join(refused)} (see above); change the slurm section of the job")


if __name__ == "__main__":
    main()
