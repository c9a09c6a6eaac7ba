"""The batch scripts: the options of sbatch for a stage, and the shell code around its tasks."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from tlbatch.cluster.container import Mount, mounts_of, start_of
from tlbatch.config.slurm import Slurm
from tlbatch.core.shell import ownership_line, setup_lines
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run
from tlbatch.runs.stages import RANKED_STAGES, StageName, stages_of

_ELEMENT = "tlbatch_run=${tlbatch_runs[${SLURM_ARRAY_TASK_ID:-0}]}"
HOST = Path(__file__).with_name("host.sh").read_text(encoding="utf-8")


@dataclass(frozen=True)
class SbatchScript:
    """The contents of a batch script; strings below `runs` are quoted for the shell."""

    stage: StageName
    slurm: Slurm
    name: str
    """Name of the SLURM job, without the stage."""
    logs: Path
    """Folder where submitit writes."""
    folder: str
    """Folder for the logs of the tasks, and for the file that requests a requeue."""
    owned: tuple[str, ...]
    """Folders that nobody else may write to."""
    mounts: tuple[Mount, ...]
    """Paths of the host that are mounted in a container."""
    done: str
    """Files that exist once the work is done."""
    runs: tuple[Path, ...] = ()
    """Folders of several runs, of which each element of a job array takes one; empty for a single run."""
    elements: int | None = None
    """Number of elements of the job array; None for a plain job."""
    at_once: int = 1
    """Elements of an array that run at the same time."""
    needed: str = ""
    """File that must exist at the start, where the jobs before cannot guarantee it."""


def one_run(run: Run, stage: StageName) -> SbatchScript:
    """Return the script for a stage of one run."""
    folder, logs, marker = map(_word, (run.folder, run.paths.logs, run.paths.marker(stage)))
    mounts = mounts_of([run.record])
    return SbatchScript(stage, run.job.slurm, run.job.name, run.paths.logs, folder, (folder, logs), mounts, marker)


def one_share(run: Run) -> SbatchScript:
    """Return the script for a job array that writes shards in parallel."""
    done = f"{_word(run.paths.share(0).with_suffix(''))}.$SLURM_ARRAY_TASK_ID"
    number = run.job.slurm.shard_tasks
    return replace(one_run(run, "shard"), done=done, elements=number, at_once=number)


def each_run(name: str, shared: RunPaths, runs: Sequence[Run], stage: StageName) -> SbatchScript:
    """Return the script for a stage of several runs, each an array element; submitit writes to the shared folder."""
    folder, job = '"$tlbatch_run"', runs[0].job
    before = stages_of(job)[stages_of(job).index(stage) - 1]
    return replace(
        all_runs(name, shared, runs, stage),
        folder=folder,
        owned=(_word(shared.folder), _word(shared.logs), folder, f"{folder}/logs"),
        done=f"{folder}/markers/{stage}.json",
        elements=len(runs),
        at_once=job.slurm.array_parallelism,
        needed=f"{folder}/markers/{before}.json",
    )


def all_runs(name: str, shared: RunPaths, runs: Sequence[Run], stage: StageName) -> SbatchScript:
    """Return the script for a stage of several runs in a single job, whose logs lie in the shared folder."""
    folder = _word(shared.folder)
    owned = folder, _word(shared.logs), '"${tlbatch_runs[@]}"', '"${tlbatch_runs[@]/%//logs}"'
    done = f'"${{tlbatch_runs[@]/%//markers/{stage}.json}}"'
    folders, mounts = tuple(run.folder for run in runs), mounts_of(run.record for run in runs)
    return SbatchScript(stage, runs[0].job.slurm, name, shared.logs, folder, owned, mounts, done, folders)


def _word(path: Path) -> str:
    return shlex.quote(str(path))


def slurm_parameters(batch: SbatchScript, *, after: str | None) -> dict[str, Any]:
    """Return the parameters of submitit's SlurmExecutor for a stage, named as sbatch's options."""
    slurm, uses_all_ranks = batch.slurm, batch.stage in RANKED_STAGES
    cpus = slurm.num_cpus_per_task
    setup = [
        *(["tlbatch_runs=(", *(f"  {_word(folder)}" for folder in batch.runs), ")", _ELEMENT] if batch.runs else []),
        ownership_line(batch.owned),
        *HOST.splitlines(),
        *([f"tlbatch_need {batch.needed}"] if batch.needed else []),
        f"TLBATCH_NOTIFY={shlex.quote(str(slurm.notify or ''))}",
        f"tlbatch_begin {slurm.signal_delay_s} {batch.folder} {batch.stage}",
        *setup_lines(slurm.setup, slurm.environment),
        "set +eu",  # a setup line may have set these, and tlbatch_end must be reached
    ]
    if cpus:
        setup.append(f"export SRUN_CPUS_PER_TASK={cpus}")  # srun no longer inherits it since 22.05
    chosen = {
        "job_name": f"{batch.name}-{batch.stage}",
        "time": slurm.timeout_min,
        "nodes": slurm.nodes if uses_all_ranks else 1,
        "ntasks_per_node": slurm.num_tasks_per_node if uses_all_ranks else 1,
        "gpus_per_node": slurm.gpus_per_node if uses_all_ranks and slurm.gpus_per_node else None,
        "cpus_per_task": cpus,
        "mem": f"{round(slurm.mem_gb * 1024)}M" if slurm.mem_gb else None,
        "dependency": after,
        **{key: getattr(slurm, key) for key in ("partition", "account", "qos", "constraint", "mail_type", "mail_user")},
    }
    return {key: value for key, value in chosen.items() if value is not None} | {
        "stderr_to_stdout": True,
        "wckey": None,
        "array_parallelism": batch.at_once,
        "signal_delay_s": slurm.signal_delay_s,
        "setup": setup,
        "srun_args": ["--kill-on-bad-exit=1"],
        "teardown": [f'tlbatch_end $? "$TLBATCH_AGAIN" {slurm.max_restarts} {batch.done}'],
        "additional_parameters": {"kill-on-invalid-dep": "yes", "requeue": True},
    }


def python_command(batch: SbatchScript) -> str:
    """Return the shell command that starts a task, with a log for each attempt and signals blocked until Python runs.

    submitit puts it after its own options of srun; of repeated options the last one counts.
    """
    start = start_of(batch.slurm, batch.mounts, gpus=batch.stage in RANKED_STAGES and batch.slurm.gpus_per_node > 0)
    return " ".join(filter(None, ['--output="$TLBATCH_LOG"', start.srun, start.python]))


def render(batch: SbatchScript, *, after: str | None) -> str:
    """Render the script as submitit will write it."""
    command = f"{python_command(batch)} -u -m submitit.core._submit {_word(batch.logs)}"
    parameters = slurm_parameters(batch, after=after)
    if batch.elements is not None:
        parameters["map_count"] = batch.elements
    text: str = _make_sbatch_string(command=command, folder=batch.logs, **parameters)
    return text
