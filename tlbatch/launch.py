"""Three ways to start the stages of a run: a SLURM chain, this machine, or the allocation we are in."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError, environment_variables
from submitit.slurm.slurm import _make_sbatch_string

from tlbatch.job.cli import AGAIN, EXIT_AGAIN
from tlbatch.job.errors import UserError
from tlbatch.job.ledger import note_job
from tlbatch.job.paths import RunPaths
from tlbatch.job.private import claim_logs
from tlbatch.job.records import RunRecord, StageName, stages_of
from tlbatch.job.shell import ownership_line, setup_lines
from tlbatch.task import run_chain, run_share, run_stage
from tlbatch.watch import Follower, report_failure, run_step

WIDE: tuple[StageName, ...] = ("choose", "cache", "train", "predict")
"""Stages with one task a GPU; the others take one task and no GPU."""
HOST = Path(__file__).with_name("job").joinpath("host.sh").read_text(encoding="utf-8")
_POLL_S = 0.5


def submit_chain(record: RunRecord, paths: RunPaths, *, behind: str | None = None) -> dict[StageName, str]:
    """Submit all stages at once, each to begin when the one before has ended well; job ids by stage.

    Parameters
    ----------
    behind
        Id of a job that is to end first, well or not: one that fills the same cache.

    Raises
    ------
    UserError
        When sbatch refuses a stage; those submitted before are cancelled.
    """
    claim_logs(paths)
    jobs: dict[StageName, str] = {}
    after = f"afterany:{behind}" if behind else None
    array = _submit_shares(record, paths, after)
    after = f"afterok:{array}" if array else after
    for stage in paths.stages_left(record.job):
        executor = submitit.SlurmExecutor(paths.logs, python=_python())
        executor.update_parameters(**slurm_parameters(record, paths, stage, after=after))
        try:
            jobs[stage] = executor.submit(run_stage, stage, str(paths.folder)).job_id
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            if array or jobs:
                subprocess.run(["scancel", *filter(None, [array]), *jobs.values()], check=False)
            raise _refused(stage, error) from None
        note_job(paths, stage, jobs[stage])
        after = f"afterok:{jobs[stage]}"
    return jobs


def _submit_shares(record: RunRecord, paths: RunPaths, after: str | None) -> str | None:
    """The job array that writes the shards of a large set side by side; its id, None where one task is enough."""
    total = record.job.slurm.shard_tasks
    if total == 1 or paths.marker("shard").exists():
        return None
    executor = submitit.SlurmExecutor(paths.logs, python=_python())
    executor.update_parameters(**share_parameters(record, paths, after=after))
    folder = str(paths.folder)
    try:
        first, *_ = executor.map_array(run_share, [folder] * total, range(total), [total] * total)
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise _refused("shard", error) from None
    array: str = first.job_id.split("_")[0]
    note_job(paths, "shard", array)
    print(f"job {array:>8}  shard, {total} shares", flush=True)
    return array


def _refused(stage: StageName, error: Exception) -> UserError:
    return UserError(
        f"{stage}: sbatch refused it ({_last_line(error)}); change the slurm section of the job, or look at it with "
        "--check"
    )


def slurm_parameters(
    record: RunRecord, paths: RunPaths, stage: StageName, *, after: str | None, done: str | None = None
) -> dict[str, Any]:
    """What submitit's SlurmExecutor is told for a stage, in sbatch's own names.

    Parameters
    ----------
    done
        What is there when the work is done, as the shell is told; the stage's marker where nothing else is named.
    """
    slurm = record.job.slurm
    wide = stage in WIDE
    folder, marker = shlex.quote(str(paths.folder)), shlex.quote(str(paths.marker(stage)))
    cpus = slurm.num_cpus_per_task
    setup = [
        ownership_line([paths.folder, paths.logs]),
        *HOST.splitlines(),
        f"TLBATCH_NOTIFY={shlex.quote(str(slurm.notify or ''))}",
        f"tlbatch_begin {slurm.signal_delay_s} {folder} {stage}",
        *setup_lines(slurm.setup, slurm.environment),
        "set +eu",  # as a line may have set: the end must be reached
    ]
    if cpus:
        setup.append(f"export SRUN_CPUS_PER_TASK={cpus}")  # srun no longer inherits it since 22.05
    chosen = {
        "job_name": f"{record.job.name}-{stage}",
        "time": slurm.timeout_min,
        "nodes": slurm.nodes if wide else 1,
        "ntasks_per_node": slurm.num_tasks_per_node if wide else 1,
        "gpus_per_node": slurm.gpus_per_node if wide and slurm.gpus_per_node else None,
        "cpus_per_task": cpus,
        "mem": f"{round(slurm.mem_gb * 1024)}M" if slurm.mem_gb else None,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "mail_type": slurm.mail_type,
        "mail_user": slurm.mail_user,
        "dependency": after,
    }
    return {key: value for key, value in chosen.items() if value is not None} | {
        "stderr_to_stdout": True,
        "wckey": None,
        "signal_delay_s": slurm.signal_delay_s,
        "setup": setup,
        "srun_args": ["--kill-on-bad-exit=1"],
        "teardown": [f'tlbatch_end $? {done or marker} "$TLBATCH_AGAIN" {slurm.max_restarts}'],
        "additional_parameters": {"kill-on-invalid-dep": "yes", "requeue": True},
    }


def share_parameters(record: RunRecord, paths: RunPaths, *, after: str | None) -> dict[str, Any]:
    """The same for the job array that writes shards side by side."""
    done = f"{shlex.quote(str(paths.share(0).with_suffix('')))}.$SLURM_ARRAY_TASK_ID"
    chosen = slurm_parameters(record, paths, "shard", after=after, done=done)
    return chosen | {"array_parallelism": record.job.slurm.shard_tasks}


def _python() -> str:
    """What starts a task, in the shell: a log of its own for each life, and no signal lost while Python begins.

    submitit puts it behind its own options of srun, of which the last one counts.
    """
    return f'--output="$TLBATCH_LOG" env --block-signal=USR2 {shlex.quote(sys.executable)}'


def render(record: RunRecord, paths: RunPaths, stage: StageName, *, after: str | None, shares: bool = False) -> str:
    """The sbatch script of a stage, or of the array that writes shards, as submitit will write it; needs no SLURM."""
    command = f"{_python()} -u -m submitit.core._submit {shlex.quote(str(paths.logs))}"
    chosen = slurm_parameters(record, paths, stage, after=after)
    if shares:
        chosen = share_parameters(record, paths, after=after) | {"map_count": record.job.slurm.shard_tasks}
    text: str = _make_sbatch_string(command=command, folder=paths.logs, **chosen)
    return text


def run_here(record: RunRecord, paths: RunPaths) -> int:
    """Run the stages one after another through submitit's local executor, showing rank 0's log; the exit code.

    They share a process where there is one task: importing torch takes longer than many a stage.
    """
    slurm, stages = record.job.slurm, stages_of(record.job)
    if slurm.nodes > 1:
        print(f"slurm.nodes = {slurm.nodes}: this machine stands for all of them", flush=True)
    if slurm.num_cpus_per_task:
        os.environ["TLBATCH_CPUS_PER_TASK"] = str(slurm.num_cpus_per_task)
    if slurm.num_tasks_per_node == 1:
        job_id = _run_locally(record, paths, len(stages), run_chain, str(paths.folder))
        failed = [stage for stage in stages if not paths.marker(stage).exists()]
        return report_failure(failed[0], paths, job_id) if failed else 0
    for stage in stages:
        job_id = _run_locally(record, paths, 1, run_stage, stage, str(paths.folder), wide=stage in WIDE)
        if not paths.marker(stage).exists():
            return report_failure(stage, paths, job_id)
    return 0


def _run_locally(
    record: RunRecord,
    paths: RunPaths,
    num_stages: int,
    work: Callable[..., None],
    *arguments: str,
    wide: bool = True,
) -> str:
    """Start processes for some stages and wait for their end; submitit's id of the job."""
    slurm = record.job.slurm
    executor = submitit.LocalExecutor(paths.logs)
    executor.update_parameters(
        timeout_min=slurm.timeout_min * num_stages,
        tasks_per_node=slurm.num_tasks_per_node if wide else 1,
        gpus_per_node=slurm.gpus_per_node if wide else 0,
        stderr_to_stdout=True,
    )
    claim_logs(paths)
    with environment_variables(**slurm.environment):
        job = executor.submit(work, *arguments)
    follower = Follower(paths, f"{job.job_id}_0_log.out")
    try:
        while not job.done():
            follower.show()
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        job.cancel()
        follower.end()
        raise
    follower.end()
    return job.job_id


def run_in_allocation(paths: RunPaths, environment: Mapping[str, str]) -> int:
    """Run the stages one after another with srun in the allocation around us; the exit code.

    Raises
    ------
    UserError
        When we are in no allocation, or it has more GPUs than tasks on a node.
    """
    if "SLURM_JOB_ID" not in environment:
        raise UserError("--inside: not in a SLURM allocation; use sbatch slurm/finetune.sh, or --local")
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    gpus = int(environment.get("SLURM_GPUS_ON_NODE") or 0)
    if gpus and gpus * nodes != tasks:
        raise UserError(
            f"this allocation has {gpus} GPUs a node on {nodes} nodes, but {tasks} tasks; start one task a GPU: "
            f"sbatch --ntasks-per-node={gpus} slurm/finetune.sh"
        )
    cpus = [f"--cpus-per-task={environment['SLURM_CPUS_PER_TASK']}"] if environment.get("SLURM_CPUS_PER_TASK") else []
    srun = ["srun", "--kill-on-bad-exit=1", *cpus]
    task = ["env", "--block-signal=USR2", sys.executable, "-u", "-m", "tlbatch.task"]
    job = paths.load_submitted().job
    own = {**environment, **job.slurm.environment}
    if job.slurm.shard_tasks > 1 and tasks > 1 and not paths.marker("shard").exists():
        share = [*srun, f"--ntasks={tasks}", *task, "--share", "shard", str(paths.folder)]
        run_step(share, paths, own)
    attempt = f"{environment['SLURM_JOB_ID']}.{environment.get('SLURM_RESTART_COUNT', '0')}"
    for stage in stages_of(job):
        shape = [f"--ntasks={tasks}"] if stage in WIDE else ["--ntasks=1", "--nodes=1"]
        again = paths.marker(stage).with_name(f"{stage}.again.{attempt}")
        run_step([*srun, *shape, *task, stage, str(paths.folder)], paths, {**own, AGAIN: str(again)})
        if again.exists():
            return EXIT_AGAIN
        if not paths.marker(stage).exists():
            return report_failure(stage, paths, environment["SLURM_JOB_ID"])
    return 0


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
