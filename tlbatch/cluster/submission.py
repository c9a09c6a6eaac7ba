"""Turn the options of submit into runs, their scripts and their jobs."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from tlbatch.cluster import job_arrays, launch
from tlbatch.cluster.create import existing_run, make_run, new_run, open_run, resolve, run_of_allocation
from tlbatch.cluster.follow import wait_for_chain
from tlbatch.cluster.results import print_folds, print_scores, show_end
from tlbatch.cluster.sbatch import one_run, one_share, render
from tlbatch.config.job import Job
from tlbatch.config.load import load_jobs, split_arguments
from tlbatch.core.cli import EXIT_AGAIN
from tlbatch.core.errors import UserError
from tlbatch.runs.run import Run
from tlbatch.runs.stages import StageName


def submit(options: argparse.Namespace) -> int:
    """Do what the options of submit say, and return the exit code."""
    if options.dry_run or options.test_only:
        _show_scripts(_open_runs(options, make=False), test_only=options.test_only)
        return 0
    launch.check_place(launch.target_of(options))
    runs = _open_runs(options, make=True)
    return _submit_one(runs[0], options) if len(runs) == 1 else _submit_several(runs, options)


def _submit_one(run: Run, options: argparse.Namespace) -> int:
    target = launch.target_of(options)
    active = job_arrays.active_jobs([run]) if target == "chain" else {}
    if run.paths in active:
        raise UserError(f"{run.folder}: job {active[run.paths]} is working on it; wait for it, or scancel it first")
    print(f"run folder  {run.folder}", flush=True)
    if target == "chain":
        jobs = launch.submit_chain(run)
        _print_jobs(jobs)
        if not options.wait:
            return 0
        code = wait_for_chain(jobs, run.paths)
    else:
        code = launch.run_and_wait(run, target)
    if code == 0:
        print_scores(run)
    return code


def _submit_several(runs: Sequence[Run], options: argparse.Namespace) -> int:
    left, target = _runs_left(runs), launch.target_of(options)
    if target != "chain":
        for run in left:
            print(f"run folder  {run.folder}", flush=True)
            code = launch.run_and_wait(run, target)
            if code == EXIT_AGAIN:
                return code
        return _end_of_several(runs)
    active = job_arrays.active_jobs(left)
    for run in left:
        status = f"  active, job {active[run.paths]}" if run.paths in active else ""
        print(f"run folder  {run.folder}{status}", flush=True)
    missing = [run for run in left if run.paths not in active]
    if len(missing) == 1:
        _print_jobs(launch.submit_chain(missing[0]))
    elif missing:
        job_arrays.submit_runs(missing)
    if not options.wait:
        print_folds(runs)
        return 0
    if left:
        job_arrays.wait_for_runs(left)
    return _end_of_several(runs)


def _print_jobs(jobs: Mapping[StageName, str]) -> None:
    """Print the id of each submitted job."""
    for stage, job_id in jobs.items():
        print(f"job {job_id:>8}  {stage}", flush=True)


def _runs_left(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that have not finished, and print those that have."""
    left = []
    for run in runs:
        if run.stages_left:
            left.append(run)
        else:
            print(f"run folder  {run.folder}  finished already", flush=True)
    return left


def _end_of_several(runs: Sequence[Run]) -> int:
    """Print the scores of the runs that succeeded and the names of those that failed, and return the exit code."""
    failed = [run for run in runs if run.stages_left]
    if len(failed) < len(runs):
        show_end([run for run in runs if not run.stages_left])
    if failed:
        names = shlex.join(str(run.folder) for run in failed)
        sys.stderr.write(
            f"error: {len(failed)} of {len(runs)} runs failed; resume with python -m tlbatch.submit {names}\n"
        )
    return int(bool(failed))


def _open_runs(options: argparse.Namespace, *, make: bool) -> list[Run]:
    """Return the runs whose folders are named, or those of the job, which may exist already."""
    files, overrides = split_arguments(options.job)
    folders = [file for file in files if (file / "job.json").is_file()]
    if folders and len(folders) < len(files):
        other = next(file for file in files if file not in folders)
        raise UserError(f"{other}: a run resumes with its own job; name run folders, or job files")
    if folders:
        runs = [open_run(folder, overrides) for folder in dict.fromkeys(folders)]
    else:
        runs = _runs_of_jobs(load_jobs(files, overrides), options, make=make)
    for run in runs if make else ():
        launch.check_start(launch.target_of(options), run.job.slurm)
    for run in runs if make else ():
        if not run.paths.record.exists():
            make_run(run.record)
    return runs


def _runs_of_jobs(jobs: Sequence[Job], options: argparse.Namespace, *, make: bool) -> list[Run]:
    """Return a run for each job: one that exists already and can be continued, or a new one."""
    allocation = os.environ.get("SLURM_JOB_ID") if options.in_allocation else None
    restarted = bool(allocation) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    records = [resolve(job).model_copy(update={"allocation": allocation}) for job in jobs]
    several = len(records) > 1
    runs = [
        (restarted and run_of_allocation(str(allocation), record))
        or (several and existing_run(record, save=make))
        or new_run(record)
        for record in records
    ]
    if several and launch.target_of(options) == "chain":
        job_arrays.check_alike(runs)
    return runs


def _show_scripts(runs: Sequence[Run], *, test_only: bool) -> None:
    """Print the batch scripts of the runs, and with ``test_only`` ask SLURM whether it accepts them."""
    left = _runs_left(runs) if len(runs) > 1 else runs
    for run in left:
        print(f"run folder  {run.folder}")
    shown = list(job_arrays.scripts(left)) if len(left) > 1 else [one for run in left for one in _scripts(run)]
    for title, script, _ in shown:
        print(f"\n##### {title}\n{script}")
    if test_only:
        _test_only([(title, alone) for title, _, alone in shown])


def _scripts(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield the title of each job of a run, its script, and the script without its dependency."""
    stages = run.stages_left
    if run.job.slurm.shard_tasks > 1 and "shard" in stages:
        shares = render(one_share(run), after=None)
        yield "shard, first", shares, shares
    for stage, before in zip(stages, (None, *stages), strict=False):
        after = before and f"afterok:<id of {before}>"
        script, alone = (render(one_run(run, stage), after=one) for one in (after, None))
        yield stage, script, alone


def _test_only(scripts: Sequence[tuple[str, str]]) -> None:
    """Ask SLURM whether it would accept each script."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: not found on PATH; --test-only needs SLURM, --dry-run does not")
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
