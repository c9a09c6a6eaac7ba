"""Turn the options of submit into runs, their scripts and their jobs."""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence

from tlbatch.cluster.create import begun_in, make_run, new_run, open_run, resolve, taken_up
from tlbatch.cluster.follow import wait_for_chain
from tlbatch.cluster.results import print_scores, show_end
from tlbatch.config.load import load_jobs, split_arguments
from tlbatch.core.errors import UserError
from tlbatch.runs.run import Run
from tlbatch.runs.stages import StageName


def submit_one(run: Run, options: argparse.Namespace) -> int:
    """Submit or run a single run and return the exit code."""
    from tlbatch.cluster import job_arrays, launch  # noqa: PLC0415 (as above)

    at_work = {} if options.local or options.in_allocation else job_arrays.at_work([run])
    if run.paths in at_work:
        raise UserError(f"{run.folder}: job {at_work[run.paths]} is working on it; wait for it, or scancel it first")
    print(f"run folder  {run.folder}", flush=True)
    if options.local or options.in_allocation:
        code = launch.run_here(run) if options.local else launch.run_in_allocation(run, os.environ)
    else:
        jobs = launch.submit_chain(run)
        print_jobs(jobs)
        if not options.wait:
            return 0
        code = wait_for_chain(jobs, run.paths)
    if code == 0:
        print_scores(run)
    return code


def print_jobs(jobs: Mapping[StageName, str]) -> None:
    """Print the id of each submitted job."""
    for stage, job_id in jobs.items():
        print(f"job {job_id:>8}  {stage}", flush=True)


def runs_left(runs: Sequence[Run]) -> list[Run]:
    """Return the runs that have not finished, and print those that have."""
    left = [run for run in runs if run.stages_left]
    for run in runs:
        if run not in left:
            print(f"run folder  {run.folder}  finished already", flush=True)
    return left


def end_of_several(runs: Sequence[Run]) -> int:
    """Print the scores of the runs that succeeded and the names of those that failed, and return the exit code."""
    failed = [run for run in runs if run.stages_left]
    ended = [run for run in runs if run not in failed]
    if ended:
        show_end(ended)
    if failed:
        names = shlex.join(str(run.folder) for run in failed)
        sys.stderr.write(
            f"error: {len(failed)} of {len(runs)} runs failed; resume with python -m tlbatch.submit {names}\n"
        )
    return int(bool(failed))


def open_runs(options: argparse.Namespace, *, make: bool) -> list[Run]:
    """Return the runs whose folders are named, or those of the job, which may exist already."""
    from tlbatch.cluster import job_arrays  # noqa: PLC0415 (as above)

    files, overrides = split_arguments(options.job)
    folders = [file for file in files if (file / "job.json").is_file()]
    if folders and len(folders) < len(files):
        other = next(file for file in files if file not in folders)
        raise UserError(f"{other}: a run resumes with its own job; name run folders, or job files")
    if folders:
        opened = [open_run(folder, overrides) for folder in dict.fromkeys(folders)]
        _check_starts(opened, options, make=make)
        return opened
    allocation = os.environ.get("SLURM_JOB_ID") if options.in_allocation else None
    restarted = bool(allocation) and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    records = [resolve(job).model_copy(update={"allocation": allocation}) for job in load_jobs(files, overrides)]
    known = [begun_in(str(allocation), record) if restarted else None for record in records]
    if len(records) > 1:
        known = [one or taken_up(record, save=make) for one, record in zip(known, records, strict=True)]
    placed = [one or new_run(record) for one, record in zip(known, records, strict=True)]
    if len(placed) > 1 and not (options.local or options.in_allocation):
        job_arrays.check_alike(placed)
    _check_starts(placed, options, make=make)
    if make:
        for run in placed:
            if not run.paths.record.exists():
                make_run(run.record)
    return placed


def _check_starts(runs: Sequence[Run], options: argparse.Namespace, *, make: bool) -> None:
    from tlbatch.cluster import launch  # noqa: PLC0415 (as above)

    for run in runs if make else ():
        launch.check_start(launch.target_of(options), run.job.slurm)


def show_scripts(runs: Sequence[Run], *, test_only: bool) -> None:
    """Print the batch scripts of the runs, and with ``test_only`` ask SLURM whether it accepts them."""
    from tlbatch.cluster import job_arrays  # noqa: PLC0415 (as above)

    left = runs_left(runs) if len(runs) > 1 else runs
    for run in left:
        print(f"run folder  {run.folder}")
    shown = list(job_arrays.scripts(left)) if len(left) > 1 else [one for run in left for one in _scripts(run)]
    for title, script, _ in shown:
        print(f"\n##### {title}\n{script}")
    if test_only:
        _test_only([(title, alone) for title, _, alone in shown])


def _scripts(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield the title of each job of a run, its script, and the script without its dependency."""
    from tlbatch.cluster.sbatch import one_run, one_share, render  # noqa: PLC0415 (as above)

    slurm, stages = run.job.slurm, run.stages_left
    if slurm.shard_tasks > 1 and "shard" in stages:
        shares = render(slurm, one_share(run), "shard", after=None, elements=slurm.shard_tasks)
        yield "shard, first", shares, shares
    for stage, before in zip(stages, (None, *stages), strict=False):
        after = before and f"afterok:<id of {before}>"
        script, alone = (render(slurm, one_run(run, stage), stage, after=one) for one in (after, None))
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
