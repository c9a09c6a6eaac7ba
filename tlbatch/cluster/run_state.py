"""The state of a run, inferred from its own files and from what SLURM knows of its jobs."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tlbatch.cluster.failures import cause_of, last_lines, newest_logs
from tlbatch.cluster.run_files import RunFiles
from tlbatch.cluster.squeue import QueuedJob, Squeue
from tlbatch.core.errors import UserError
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import Progress, span
from tlbatch.runs.records import Failure, Record
from tlbatch.runs.stages import StageName

State = Literal[
    "finished", "running", "starting", "queued", "restarting", "stopped", "failed", "dead", "unknown", "unreadable",
]  # fmt: skip
Queue = Mapping[str, tuple[QueuedJob, ...]]
STALE_S = 120.0
"""Seconds after which a run without progress is called silent, and one that has not started is dead."""
_SETTLE_S = 15.0
"""Seconds in which the marker of a job that has just ended may not be visible yet on a network file system."""
_REMEMBERED_S = 3600.0
"""Seconds after which SLURM has certainly forgotten a job that ended."""
_TAIL_LINES = 10


class Status(Record):
    """The status of one run."""

    run: str
    folder: str
    stage: StageName | None
    """The first stage that has not finished; None: all have."""
    state: State
    why: str = ""
    """Reason of the state, e.g. what a queued job waits for; may be empty."""
    where: str = ""
    done: int | None = None
    total: int | None = None
    unit: str = ""
    images_per_s: float | None = None
    seconds_left: float | None = None
    metric: str = ""
    """The latest value that is known."""
    restarts: int = 0
    """Attempts beyond the first of each stage."""
    gpu_hours: float = 0.0
    cause: str = ""
    """Why the run has failed or is dead."""
    log: str = ""
    """The newest log of a run that has failed or is dead."""
    tail: tuple[str, ...] = ()
    """The end of that log."""

    @property
    def has_ended(self) -> bool:
        """Whether the run will make no more progress by itself."""
        return self.state == "finished" or self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether the run needs attention."""
        return self.state in ("stopped", "failed", "dead", "unreadable")


def infer_state(files: RunFiles, queue: Queue | None, now: float) -> tuple[State, str]:
    """Return the state of a run and the reason; queue is None if SLURM did not answer."""
    if files.stage is None:
        return "finished", ""
    jobs = _own_jobs(files, queue or {})
    running = [job for job in jobs if job.is_running]
    if running:
        return _running(files, now, since=max(job.start or 0.0 for job in running))
    waiting = [job for job in jobs if job.is_waiting]
    if waiting:
        return "restarting" if files.last else "queued", waiting[0].reason
    if files.failed is not None:
        return _failed(files), ""
    if any(job.end is not None and now - job.end < _SETTLE_S for job in jobs):
        return "running", "ending"
    last = files.attempts[-1] if files.attempts else None
    is_outside_slurm = last is not None and last.end is None and last.begin.job is None
    if queue is not None and files.jobs and not is_outside_slurm:
        return "dead", ""
    return _without_slurm(files, now, is_answered=queue is not None)


def active_job(files: RunFiles, queue: Queue) -> str | None:
    """Return the job that is queued or running for the next stage of a run; None if there is none.

    A running job does not count if the stage has failed, since the job then continues for other runs only.
    """
    waiting = [job.id for job in _own_jobs(files, queue) if job.is_waiting]
    running = [job.id for job in _own_jobs(files, queue) if job.is_running and files.failed is None]
    return next(iter(waiting + running), None)


def _own_jobs(files: RunFiles, queue: Queue) -> list[QueuedJob]:
    """Return the run's jobs that SLURM knows, without jobs of another name, which merely reuse an old id.

    The name of a job for several runs is the common prefix of their names, if there is one.
    """
    found = [job for name in dict.fromkeys(files.jobs) for job in queue.get(name, ())]
    submitted = {one.job for one in files.submitted}
    name = files.run.job.name
    return [
        job
        for job in found
        if job.id.partition("_")[0] not in submitted
        or job.name.startswith((name, "tlbatch-"))
        or name.startswith(job.name.removesuffix(f"-{files.stage}"))
    ]


def _running(files: RunFiles, now: float, *, since: float) -> tuple[State, str]:
    """Return the state and reason of a run whose job has been running since a time."""
    if files.failed is not None and files.failed >= since:
        state = _failed(files)
        return (state, "") if state == "failed" else ("running", "stopping")
    return "running", _silence(now - files.progress.time if files.progress else 0.0)


def _silence(seconds: float) -> str:
    return f"silent for {span(seconds)}" if seconds > STALE_S else ""


def _failed(files: RunFiles) -> State:
    cause = _cause_in(files)
    return "stopped" if isinstance(cause, Failure) and cause.kind == "stopped" else "failed"


def _cause_in(files: RunFiles) -> Failure | UserError | None:
    """Return the failure record of the stage, or the error that kept it from being read."""
    assert files.stage is not None
    try:
        return cause_of(files.stage, files.run.paths)
    except UserError as error:
        return error


def _without_slurm(files: RunFiles, now: float, *, is_answered: bool) -> tuple[State, str]:
    """Return the state and reason of a run without a known SLURM job."""
    last = files.attempts[-1] if files.attempts else None
    is_alive = last.is_alive() if last and last.begin.job is None else None
    if last and last.end is None and is_alive is not False:
        silent = 0.0 if is_alive and not files.progress else now - last.last_active  # not all stages report progress
        return "running", _silence(silent)
    if files.jobs and not is_answered:
        return "unknown", "SLURM does not answer"
    is_between = last is None or last.end is not None
    is_fresh = now - files.last_active < STALE_S
    goes_on = bool(is_alive) and last is not None and last.outcome == "finished"
    return ("starting" if is_between and (is_fresh or goes_on) else "dead"), ""


def describe(files: RunFiles, queue: Queue | None, squeue: Squeue, now: float) -> Status:
    """Return the status of a run."""
    state, why = infer_state(files, queue, now)
    progress = files.progress
    is_open = state in ("running", "unknown")
    hours = [
        one.gpu_hours_until(now) if is_open and one is files.attempts[-1] else one.gpu_hours for one in files.attempts
    ]
    has_failed = state in ("stopped", "failed", "dead")
    log = next(iter(newest_logs(files.run.paths)), None) if has_failed else None
    return Status(
        run=files.run.name,
        folder=str(files.run.folder),
        stage=files.stage,
        state=state,
        why=why,
        **(progress.model_dump(include={"where", "done", "total", "unit"}) if progress else {}),
        images_per_s=progress.images_per_s if progress and state == "running" else None,
        seconds_left=_seconds_left(progress, now) if progress and state == "running" else None,
        metric=_metric(files),
        restarts=len(files.attempts) - len({one.stage for one in files.attempts}),
        gpu_hours=round(sum(hours), 4),
        cause=_cause(files, state, squeue, now) if has_failed else "",
        log=str(log or ""),
        tail=tuple(_end_of(log, _TAIL_LINES)) if log else (),
    )


def unreadable(paths: RunPaths, error: UserError) -> Status:
    """Return the status of a run that cannot be read."""
    folder = paths.folder
    return Status(run=folder.name, folder=str(folder), stage=None, state="unreadable", cause=str(error))


def _seconds_left(progress: Progress, now: float) -> float | None:
    left = progress.seconds_left
    return None if left is None else max(0.0, left - max(0.0, now - progress.time))


def _cause(files: RunFiles, state: State, squeue: Squeue, now: float) -> str:
    assert files.stage is not None
    if state != "dead":
        cause = _cause_in(files)
        return cause.message if isinstance(cause, Failure) else str(cause or "")
    end = ""
    if files.jobs and now - files.last_active < _REMEMBERED_S:
        end = squeue.final_state(files.jobs[-1] if not files.submitted else files.submitted[-1].job)
    way_out = f"resume with python -m tlbatch.submit {shlex.quote(str(files.run.folder))}"
    how = "ended without a result" if files.last else "did not start"
    return f"{how} ({end or 'killed, out of memory, or cancelled'}); {way_out}"


def _metric(files: RunFiles) -> str:
    """Return the test metric from the report; before there is one, the latest from progress or metrics.jsonl."""
    name = files.run.job.metric
    if files.stage is None:
        report = _json(files.run.paths.report_json)
        return f"test {name} {report['score']:.4f}" if report.get("score") is not None else ""
    if files.latest and files.latest.metric:
        return files.latest.metric
    value = _parsed("".join(_end_of(files.run.paths.metrics, 1))).get(f"val_{name}")
    return "" if value is None else f"validation {name} {value:.4f}"


def _json(file: Path) -> dict[str, float | None]:
    try:
        return _parsed(file.read_text(encoding="utf-8"))
    except OSError:
        return {}


def _parsed(text: str) -> dict[str, float | None]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _end_of(file: Path, num_lines: int) -> Sequence[str]:
    """Return the last lines of a file; none if it does not exist."""
    try:
        return last_lines(file, num_lines)
    except OSError:
        return []
