"""Three ways to start the stages of a run: a SLURM chain, this machine, or the allocation we are in."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from tlbatch.job.errors import UserError
from tlbatch.job.paths import RunPaths
from tlbatch.job.records import STAGES, RunRecord, StageName
from tlbatch.task import run_stage
from tlbatch.watch import Follower, report_failure

WIDE: tuple[StageName, ...] = ("train", "predict")
"""Stages with one task a GPU; the others take one task and no GPU."""
_POLL_S = 0.5


def submit_chain(record: RunRecord, paths: RunPaths) -> dict[StageName, str]:
    """Submit all stages at once, each to begin when the one before has ended well; job ids by stage.

    Raises
    ------
    UserError
        When sbatch refuses a stage; those submitted before are cancelled.
    """
    jobs: dict[StageName, str] = {}
    after: str | None = None
    for stage in STAGES:
        executor = submitit.SlurmExecutor(paths.logs)
        executor.update_parameters(**slurm_parameters(record, stage, after=after))
        try:
            after = executor.submit(run_stage, stage, str(paths.folder)).job_id
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            if jobs:
                subprocess.run(["scancel", *jobs.values()], check=False)
            raise UserError(
                f"{stage}: sbatch refused it ({_last_line(error)}); change the slurm section of the job, or look at it "
                "with --check"
            ) from None
        jobs[stage] = after
    return jobs


def slurm_parameters(record: RunRecord, stage: StageName, *, after: str | None) -> dict[str, Any]:
    """What submitit's SlurmExecutor is told for a stage, in sbatch's own names."""
    slurm = record.job.slurm
    wide = stage in WIDE
    setup = [f"{line} || exit 78" for line in slurm.setup]  # a failing line must not be passed over
    if slurm.cpus_per_task:
        setup.append(f"export SRUN_CPUS_PER_TASK={slurm.cpus_per_task}")  # srun no longer inherits it since 22.05
    chosen = {
        "job_name": f"{record.job.name}-{stage}",
        "time": slurm.timeout_min,
        "nodes": slurm.nodes if wide else 1,
        "ntasks_per_node": slurm.num_tasks_per_node if wide else 1,
        "gpus_per_node": slurm.gpus_per_node if wide and slurm.gpus_per_node else None,
        "cpus_per_task": slurm.cpus_per_task,
        "mem": f"{round(slurm.mem_gb * 1024)}M" if slurm.mem_gb else None,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "dependency": f"afterok:{after}" if after else None,
        "setup": setup or None,
    }
    return {key: value for key, value in chosen.items() if value is not None} | {
        "stderr_to_stdout": True,
        "wckey": None,
        "srun_args": ["--kill-on-bad-exit=1"],
        "additional_parameters": {"kill-on-invalid-dep": "yes"},
    }


def render(record: RunRecord, paths: RunPaths, stage: StageName, *, after: str | None) -> str:
    """The sbatch script of a stage, as submitit will write it; needs no SLURM."""
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(paths.logs))}"
    text: str = _make_sbatch_string(command=command, folder=paths.logs, **slurm_parameters(record, stage, after=after))
    return text


def run_here(record: RunRecord, paths: RunPaths) -> int:
    """Run the stages one after another through submitit's local executor, showing rank 0's log; the exit code."""
    slurm = record.job.slurm
    if slurm.nodes > 1:
        print(f"slurm.nodes = {slurm.nodes}: this machine stands for all of them", flush=True)
    if slurm.cpus_per_task:
        os.environ["TLBATCH_CPUS_PER_TASK"] = str(slurm.cpus_per_task)
    for stage in STAGES:
        executor = submitit.LocalExecutor(paths.logs)
        executor.update_parameters(
            timeout_min=slurm.timeout_min,
            tasks_per_node=slurm.num_tasks_per_node if stage in WIDE else 1,
            gpus_per_node=slurm.gpus_per_node if stage in WIDE else 0,
            stderr_to_stdout=True,
        )
        job = executor.submit(run_stage, stage, str(paths.folder))
        follower = Follower(paths.logs / f"{job.job_id}_0_log.out")
        try:
            while not job.done():
                follower.show()
                time.sleep(_POLL_S)
        except KeyboardInterrupt:
            job.cancel()
            raise
        follower.show()
        if not paths.marker(stage).exists():
            return report_failure(stage, paths, job.job_id)
    return 0


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
    for stage in STAGES:
        shape = [f"--ntasks={tasks}"] if stage in WIDE else ["--ntasks=1", "--nodes=1"]
        if environment.get("SLURM_CPUS_PER_TASK"):
            shape.append(f"--cpus-per-task={environment['SLURM_CPUS_PER_TASK']}")
        command = [sys.executable, "-u", "-m", "tlbatch.task", stage, str(paths.folder)]
        subprocess.run(["srun", "--kill-on-bad-exit=1", *shape, *command], check=False)
        if not paths.marker(stage).exists():
            return report_failure(stage, paths, environment["SLURM_JOB_ID"])
    return 0


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
