"""Several runs on SLURM: a job array per stage, each run an element, so that a failed run does not stop the others."""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from tlbatch.cluster.display import Lines, survey
from tlbatch.cluster.failures import report_failure
from tlbatch.cluster.launch import executor_of, forget_failures, refusal_named, submit_shares, submit_stage
from tlbatch.cluster.run_files import read_run_files
from tlbatch.cluster.run_state import active_job
from tlbatch.cluster.sbatch import SbatchScript, all_runs, each_run, one_run, one_share, render
from tlbatch.cluster.squeue import Squeue
from tlbatch.core.errors import UserError
from tlbatch.runs.attempts import note_job, read_jobs
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.permissions import OWN, claim_logs
from tlbatch.runs.run import Run
from tlbatch.runs.stages import SHARED_STAGES, TABLE, StageName
from tlbatch.runs.task import run_each, run_stage
from tlbatch.runs.workspace import set_folder

_COMMON = tuple(stage.name for stage in TABLE if stage.comes_before_all)
How = Literal["afterany", "aftercorr", "afterok"]
_POLL_S = 5.0


@dataclass(frozen=True)
class Step:
    """A job, or a job array, for one stage of some runs."""

    stage: StageName
    runs: tuple[Run, ...]
    after: tuple[int, ...]
    """Numbers of the steps that it depends on."""
    how: How = "afterany"
    """aftercorr: each run starts once its own element has succeeded."""

    @property
    def is_array(self) -> bool:
        """Whether each run has its own array element."""
        return len(self.runs) > 1 and self.stage not in SHARED_STAGES

    def batch(self) -> SbatchScript:
        """Return the description of its batch script."""
        if len(self.runs) == 1:
            return one_run(self.runs[0], self.stage)
        name = common_name([run.job.name for run in self.runs])
        script = each_run if self.is_array else all_runs
        return script(name, shared_paths(self.runs), self.runs, self.stage)

    def dependency(self, ids: Sequence[str]) -> str | None:
        """Return sbatch's --dependency, given the ids of the steps before."""
        return f"{self.how}:{':'.join(ids[number] for number in self.after)}" if self.after else None


def plan(runs: Sequence[Run]) -> tuple[Step, ...]:
    """Plan what is left to do for several runs: shared stages, then arrays of runs with the same stages left.

    An element that waits for a shared job starts even if that failed, since it may have failed for other runs only;
    the script then checks the marker of the stage before. `aftercorr` needs arrays with the same elements: an element
    without a counterpart is cancelled if any of the others fails.
    """
    steps: list[Step] = []
    left = [run.stages_left for run in runs]
    for stage in _COMMON:
        lacking = tuple(run for run, stages in zip(runs, left, strict=True) if stage in stages)
        if lacking:
            steps.append(Step(stage, lacking, _last(steps)))
    common, alike = _last(steps), dict[tuple[bool, tuple[StageName, ...]], list[Run]]()
    for run, stages in zip(runs, left, strict=True):
        own = tuple(stage for stage in stages if stage not in _COMMON)
        alike.setdefault((own != stages, own), []).append(run)
    for (waits, own), members in alike.items():
        after = common if waits else ()
        how: How = "afterok" if len(members) == 1 else "aftercorr"
        for number, stage in enumerate(own):
            steps.append(Step(stage, tuple(members), _last(steps) if number else after, how if number else "afterany"))
    return tuple(steps)


def _last(steps: Sequence[Step]) -> tuple[int, ...]:
    return (len(steps) - 1,) if steps else ()


def common_name(names: Sequence[str]) -> str:
    """Return the common prefix of some names, up to a dash."""
    alike = os.path.commonprefix([f"{name}-" for name in names])  # noqa: RUF071 (of letters is meant)
    return alike.rpartition("-")[0] or "tlbatch"


def shared_paths(runs: Sequence[Run]) -> RunPaths:
    """Return the paths of the folder for what several runs share: scripts, pickles and the logs of shared jobs."""
    return RunPaths(runs[0].job.workspace / "sweeps" / common_name([run.name for run in runs]))


def scripts(runs: Sequence[Run]) -> Iterator[tuple[str, str, str]]:
    """Yield the title of every job, its script, and the script without its dependency."""
    check_alike(runs)
    for run in _first_of_sets(runs):
        text = render(one_share(run), after=None)
        yield f"shard, first, of {run.folder.name}", text, text
    steps = plan(runs)
    ids = [f"<id of {step.stage}>" for step in steps]
    for step in steps:
        script, alone = (render(step.batch(), after=after) for after in (step.dependency(ids), None))
        yield f"{step.stage}, {_title(step)}", script, alone


def _title(step: Step) -> str:
    if len(step.runs) == 1:
        return step.runs[0].name
    return f"{len(step.runs)} runs, {'an array' if step.is_array else 'one after another'}"


def check_alike(runs: Sequence[Run]) -> None:
    """Refuse runs that differ in their section slurm."""
    first = runs[0]
    for run in runs:
        if run.job.slurm != first.job.slurm:
            raise UserError(
                f"slurm: {run.name} and {first.name} differ in this section, which all elements of a job array share; "
                "submit the runs one at a time"
            )


def submit_runs(runs: Sequence[Run]) -> None:
    """Submit what is left to do for several runs; if sbatch refuses a step, cancel those submitted before."""
    check_alike(runs)
    shared = shared_paths(runs)
    shared.folder.mkdir(mode=OWN, parents=True, exist_ok=True)
    for paths in (shared, *(run.paths for run in runs)):
        claim_logs(paths)
        forget_failures(paths)
    shares = [array for run in _first_of_sets(runs) if (array := submit_shares(run))]
    ids: list[str] = []
    for step in plan(runs):
        after = step.dependency(ids) or (f"afterany:{':'.join(shares)}" if shares and step.stage == "shard" else None)
        with refusal_named(step.stage, [*shares, *ids]):
            ids.append(_submit(step, after))
        print(f"job {ids[-1]:>8}  {step.stage}, {_title(step)}", flush=True)


def _first_of_sets(runs: Sequence[Run]) -> list[Run]:
    """Return one run for each set of shards that a job array is to write."""
    first = {set_folder(run.job): run for run in reversed(runs) if not run.paths.marker("shard").exists()}
    return [run for run in first.values() if run.job.slurm.shard_tasks > 1]


def _submit(step: Step, after: str | None) -> str:
    if len(step.runs) == 1:
        return submit_stage(step.runs[0], step.stage, after=after)
    executor = executor_of(step.batch(), after=after)
    folders = [str(run.folder) for run in step.runs]
    if not step.is_array:
        job_id: str = executor.submit(run_each, step.stage, folders).job_id
        for run in step.runs:
            note_job(run.paths, step.stage, job_id)
        return job_id
    elements = executor.map_array(run_stage, [step.stage] * len(folders), folders)
    for run, element in zip(step.runs, elements, strict=True):
        note_job(run.paths, step.stage, element.job_id)
    return str(elements[0].job_id).partition("_")[0]


def active_jobs(runs: Sequence[Run]) -> dict[RunPaths, str]:
    """Map runs to the SLURM job that is queued or running for their next stage, for those that have one."""
    files = [read_run_files(run.paths) for run in runs]
    queue = Squeue().query(job for one in files for job in one.jobs) or {}
    return {one.run.paths: job for one in files if (job := active_job(one, queue))}


def wait_for_runs(runs: Sequence[Run]) -> None:
    """Show the state of the runs until all have ended, then explain the failures."""
    squeue, lines, num_ended = Squeue(), Lines(as_json=False), 0
    folders = [run.paths for run in runs]
    while num_ended < 2:  # a marker can appear a little later
        found = survey(folders, squeue, time.time(), named=True)
        lines.show(found)
        num_ended = num_ended + 1 if all(one.has_ended for one in found) else 0
        time.sleep(_POLL_S)
    for run in runs:
        if left := run.stages_left:
            sys.stderr.write(f"{run.name}: failed\n")
            jobs = [one.job for one in read_jobs(run.paths) if one.stage == left[0]]
            report_failure(left[0], run.paths, jobs[-1] if jobs else "")
