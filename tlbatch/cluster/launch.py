"""Three ways to run the stages of a run: as a chain of SLURM jobs, on this machine, or in the current allocation."""

import argparse
import importlib.util
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables

from tlbatch.cluster.container import command_of, in_shell, is_bare, mounts_of, start_of
from tlbatch.cluster.failures import report_failure
from tlbatch.cluster.follow import Follower, run_step
from tlbatch.cluster.sbatch import SbatchScript, one_run, one_share, python_command, slurm_parameters
from tlbatch.config.slurm import Slurm
from tlbatch.core.cli import EXIT_AGAIN
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.runs.attempts import note_job
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.permissions import claim_logs
from tlbatch.runs.run import Run
from tlbatch.runs.stage import AGAIN
from tlbatch.runs.stages import RANKED_STAGES, StageName, groups_of, stages_of
from tlbatch.runs.task import run_chain, run_share, run_stage

_POLL_S = 0.5
Target = Literal["local", "allocation", "chain"]
"""This machine, the current allocation, or a chain of separate jobs."""


def check_place(where: Target) -> None:
    """Refuse to submit jobs where there is no SLURM."""
    if where == "chain" and shutil.which("sbatch") is None:
        raise UserError("sbatch: not found on PATH; add --local to run on this machine, or load SLURM's commands")


def check_start(where: Target, slurm: Slurm) -> None:
    """Refuse an environment without torch if the job names no container, and a container that cannot run here."""
    if is_bare(slurm):
        if importlib.util.find_spec("torch") is None:
            raise UserError(
                "torch: not installed here, so tasks need a container; set slurm.container=RUNTIME:IMAGE, or install "
                "it with bash slurm/env.sh quickstart,export"
            )
        return
    if where != "local":
        return
    if slurm.runtime == "pyxis":
        raise UserError(
            "slurm.container: pyxis runs in SLURM's steps only; leave --local out, or set another container"
        )
    program = "ch-run" if slurm.runtime == "charliecloud" else slurm.runtime
    if shutil.which(program) is None:
        raise UserError(f"slurm.container: {program} is not on PATH; load it, or set slurm.container=none")


def submit_chain(run: Run, stages: Sequence[StageName] = ()) -> dict[StageName, str]:
    """Submit some or all remaining stages, each to start once the one before has succeeded; return job ids by stage.

    Raises UserError if sbatch refuses a stage; those submitted before are cancelled.
    """
    claim_logs(run.paths)
    forget_failures(run.paths)
    jobs: dict[StageName, str] = {}
    array = submit_shares(run)
    after = f"afterok:{array}" if array else None
    for stage in stages or run.stages_left:
        with refusal_named(stage, [*filter(None, [array]), *jobs.values()]):
            jobs[stage] = submit_stage(run, stage, after=after)
        after = f"afterok:{jobs[stage]}"
    return jobs


def submit_stage(run: Run, stage: StageName, *, after: str | None) -> str:
    """Submit a stage of a run and return the job id."""
    executor = executor_of(one_run(run, stage), after=after)
    job_id: str = executor.submit(run_stage, stage, str(run.folder)).job_id
    note_job(run.paths, stage, job_id)
    return job_id


def submit_shares(run: Run) -> str | None:
    """Submit the job array that writes shards in parallel and return its id; None where one task is enough."""
    total = run.job.slurm.shard_tasks
    if total == 1 or run.paths.marker("shard").exists():
        return None
    executor = executor_of(one_share(run), after=None)
    with refusal_named("shard", []):
        first, *_ = executor.map_array(run_share, [str(run.folder)] * total, range(total), [total] * total)
    array: str = first.job_id.split("_")[0]
    note_job(run.paths, "shard", array)
    print(f"job {array:>8}  shard, {total} shares", flush=True)
    return array


def executor_of(batch: SbatchScript, *, after: str | None) -> submitit.SlurmExecutor:
    """Return the submitit executor for a stage."""
    executor = submitit.SlurmExecutor(batch.logs, python=python_command(batch))
    executor.update_parameters(**slurm_parameters(batch, after=after))
    return executor


@contextmanager
def refusal_named(stage: StageName, submitted: Sequence[str]) -> Iterator[None]:
    """If sbatch refuses a stage, cancel the jobs before it and raise an error that says what to do."""
    try:
        yield
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        if submitted:
            subprocess.run(["scancel", *submitted], check=False)
        last = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(
            f"{stage}: sbatch refused it ({last}); change the slurm section of the job, or check it with --test-only"
        ) from None


def run_and_wait(run: Run, target: Target, stages: Sequence[StageName] = ()) -> int:
    """Run all or some stages on this machine or in the current allocation, and return the exit code."""
    return run_here(run, stages) if target == "local" else run_in_allocation(run, os.environ, stages)


def run_here(run: Run, stages: Sequence[StageName] = ()) -> int:
    """Run all or some stages in turn with submitit's local executor, showing rank 0's log, and return the exit code."""
    slurm, paths = run.job.slurm, run.paths
    forget_failures(paths)
    if slurm.nodes > 1:
        print(f"slurm.nodes = {slurm.nodes}: ignored, all tasks run on this machine", flush=True)
    if slurm.num_cpus_per_task:
        os.environ["TLBATCH_CPUS_PER_TASK"] = str(slurm.num_cpus_per_task)
    for group in groups_of(stages or stages_of(run.job), slurm.num_tasks_per_node):
        uses_all_ranks = not RANKED_STAGES.isdisjoint(group)
        job_id = _run_locally(run, len(group), run_chain, str(run.folder), group, uses_all_ranks=uses_all_ranks)
        if unfinished := _unfinished(group, paths):
            return report_failure(unfinished, paths, job_id)
    return 0


def _unfinished(stages: Sequence[StageName], paths: RunPaths) -> StageName | None:
    """Return the first of some stages that has not finished."""
    return next((stage for stage in stages if not paths.marker(stage).exists()), None)


def _run_locally(
    run: Run, num_stages: int, work: Callable[..., None], *arguments: object, uses_all_ranks: bool = True
) -> str:
    """Start processes for some stages, wait for their end, and return submitit's job id."""
    slurm = run.job.slurm
    python = command_of(slurm, mounts_of([run.record]), [], gpus=uses_all_ranks and slurm.gpus_per_node > 0)
    executor = submitit.LocalExecutor(run.paths.logs, python=shlex.join(python))
    executor.update_parameters(
        timeout_min=slurm.timeout_min * num_stages,
        tasks_per_node=slurm.num_tasks_per_node if uses_all_ranks else 1,
        gpus_per_node=slurm.gpus_per_node if uses_all_ranks else 0,
        stderr_to_stdout=True,
    )
    claim_logs(run.paths)
    with environment_variables(**slurm.environment):
        job = executor.submit(work, *arguments)
    follower = Follower(run.paths, f"{job.job_id}_0_log.out")
    try:
        while not job.done():
            follower.show()
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        job.cancel()
        raise
    finally:
        follower.end()
    return job.job_id


def run_in_allocation(run: Run, environment: Mapping[str, str], stages: Sequence[StageName] = ()) -> int:
    """Run all or some stages with srun in the current allocation, in as few steps as possible; return the exit code.

    Raises UserError if this is no allocation, or one whose numbers of GPUs and tasks differ.
    """
    if "SLURM_JOB_ID" not in environment:
        raise UserError("--in-allocation: not in a SLURM allocation; use sbatch slurm/finetune.sh, or --local")
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
    if gpus and gpus * nodes != tasks:
        raise UserError(
            f"this allocation has {counted(gpus, 'GPU')} per node on {counted(nodes, 'node')}, but "
            f"{counted(tasks, 'task')}; start one task per GPU: sbatch --ntasks-per-node={gpus} slurm/finetune.sh"
        )
    cpus = [f"--cpus-per-task={environment['SLURM_CPUS_PER_TASK']}"] if environment.get("SLURM_CPUS_PER_TASK") else []
    job, paths, mounts = run.job, run.paths, mounts_of([run.record])
    forget_failures(paths)
    own = {**environment, **job.slurm.environment}

    def step(shape: Sequence[str], arguments: Sequence[str], *, gpus: bool = False) -> list[str]:
        start = start_of(job.slurm, mounts, gpus=gpus)
        text = f"{shlex.join(['srun', '--kill-on-bad-exit=1', *cpus, *shape])} {start.srun} {start.python}"
        return in_shell(text, ["-u", "-m", "tlbatch.task", *arguments, str(paths.folder)])

    if job.slurm.shard_tasks > 1 and tasks > 1 and not paths.marker("shard").exists():
        run_step(step([f"--ntasks={tasks}"], ["--share", "shard"]), paths, own)
    attempt = f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_RESTART_COUNT', '0')}"
    for group in groups_of(stages or stages_of(job), tasks):
        uses_all_ranks = not RANKED_STAGES.isdisjoint(group)
        shape = [f"--ntasks={tasks}"] if uses_all_ranks else ["--ntasks=1", "--nodes=1"]
        again = paths.marker(group[0]).with_name(f"{group[0]}.again.{attempt}")
        run_step(step(shape, [",".join(group)], gpus=uses_all_ranks and gpus > 0), paths, {**own, AGAIN: str(again)})
        wants_again = again.exists()
        again.unlink(missing_ok=True)
        if wants_again and int(environment.get("SLURM_RESTART_COUNT", "0")) < job.slurm.max_restarts:
            return EXIT_AGAIN
        if unfinished := _unfinished(group, paths):
            return report_failure(unfinished, paths, environment["SLURM_JOB_ID"])
    return 0


def forget_failures(paths: RunPaths) -> None:
    """Remove old failure records, so that they are not reported as the cause if a stage does not even start."""
    for old in paths.failures("*"):
        old.unlink(missing_ok=True)


def target_of(options: argparse.Namespace) -> Target:
    """Return where a command runs the stages, given ``--local`` and ``--in-allocation``."""
    return "local" if options.local else "allocation" if options.in_allocation else "chain"
