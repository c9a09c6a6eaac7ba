"""What state a run is in: from its own files, and from what SLURM knows of its jobs."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from tlbatch.cluster.failures import cause_of, last_lines, newest_logs
from tlbatch.cluster.run_files import Seen
from tlbatch.cluster.squeue import Controller, QueuedJob
from tlbatch.core.errors import UserError
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import Progress, span
from tlbatch.runs.records import Failure, Record, StageName

State = Literal[
    "finished", "running", "starting", "queued", "restarting", "stopped", "failed", "dead", "unknown", "unreadable",
]  # fmt: skip
Queue = Mapping[str, tuple[QueuedJob, ...]]
STALE_S = 120.0
"""After which a silent run says so, and one that nobody has begun with is dead."""
_SETTLE_S = 15.0
"""In which the marker of a job that has just ended may still be on its way over a network file system."""
_REMEMBERED_S = 3600.0
"""After which SLURM surely has forgotten a job that has ended."""
_TAIL_LINES = 10


class Status(Record):
    """What is said of one run."""

    run: str
    folder: str
    stage: StageName | None
    """The first that has not finished; None: all have."""
    state: State
    why: str
    """Of the state, e.g. what a queued job waits for; may be empty."""
    where: str
    done: int | None
    total: int | None
    unit: str
    images_per_s: float | None
    seconds_left: float | None
    metric: str
    """The last that is known."""
    restarts: int
    """Attempts beyond the first of each stage."""
    gpu_hours: float
    cause: str
    """Why it has failed or is dead."""
    log: str
    """The newest log of a run that has failed or is dead."""
    tail: tuple[str, ...]
    """The end of that log."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state == "finished" or self.has_failed

    @property
    def has_failed(self) -> bool:
        """Whether somebody must do something."""
        return self.state in ("stopped", "failed", "dead", "unreadable")


def judge(seen: Seen, queue: Queue | None, now: float) -> tuple[State, str]:
    """The state of a run, and why; queue is None where SLURM gave no answer."""
    if seen.stage is None:
        return "finished", ""
    jobs = _own_jobs(seen, queue or {})
    running = [job for job in jobs if job.is_running]
    if running:
        return _running(seen, now, since=max(job.start or 0.0 for job in running))
    waiting = [job for job in jobs if job.is_waiting]
    if waiting:
        return "restarting" if seen.last else "queued", waiting[0].reason
    if seen.failed is not None:
        return _failed(seen), ""
    if any(job.end is not None and now - job.end < _SETTLE_S for job in jobs):
        return "running", "ending"
    last = seen.attempts[-1] if seen.attempts else None
    by_hand = last is not None and last.end is None and last.begin.job is None
    if queue is not None and seen.jobs and not by_hand:
        return "dead", ""
    return _without_slurm(seen, now, is_answered=queue is not None)


def job_at_work(seen: Seen, queue: Queue) -> str | None:
    """The job that will do, or does, the next stage of a run; none where the stage has failed and only others go on."""
    waiting = [job.id for job in _own_jobs(seen, queue) if job.is_waiting]
    running = [job.id for job in _own_jobs(seen, queue) if job.is_running and seen.failed is None]
    return next(iter(waiting + running), None)


def _own_jobs(seen: Seen, queue: Queue) -> list[QueuedJob]:
    """Those that SLURM knows; a job of another name has only got the number of one of long ago.

    A job of several runs has for its name what theirs begin with, if anything.
    """
    found = [job for name in dict.fromkeys(seen.jobs) for job in queue.get(name, ())]
    submitted = {one.job for one in seen.submitted}
    name = seen.record.job.name
    return [
        job
        for job in found
        if job.id.partition("_")[0] not in submitted
        or job.name.startswith((name, "tlbatch-"))
        or name.startswith(job.name.removesuffix(f"-{seen.stage}"))
    ]


def _running(seen: Seen, now: float, *, since: float) -> tuple[State, str]:
    """Of a run that a job is at work on since then, or that nothing is known against."""
    if seen.failed is not None and seen.failed >= since:
        state = _failed(seen)
        return (state, "") if state == "failed" else ("running", "stopping")
    return "running", _silence(now - seen.progress.time if seen.progress else 0.0)


def _silence(seconds: float) -> str:
    return f"silent for {span(seconds)}" if seconds > STALE_S else ""


def _failed(seen: Seen) -> State:
    cause = _cause_in(seen)
    return "stopped" if isinstance(cause, Failure) and cause.kind == "stopped" else "failed"


def _cause_in(seen: Seen) -> Failure | UserError | None:
    """What the stage left that has failed, or why that cannot be read."""
    assert seen.stage is not None
    try:
        return cause_of(seen.stage, seen.paths)
    except UserError as error:
        return error


def _without_slurm(seen: Seen, now: float, *, is_answered: bool) -> tuple[State, str]:
    """Of a run that no job is at work on, or none that can be asked for."""
    last = seen.attempts[-1] if seen.attempts else None
    is_alive = last.is_alive() if last and last.begin.job is None else None
    if last and last.end is None and is_alive is not False:
        silent = 0.0 if is_alive and not seen.progress else now - last.seen  # not all stages tell anything
        return "running", _silence(silent)
    if seen.jobs and not is_answered:
        return "unknown", "SLURM does not answer"
    is_between = last is None or last.end is not None
    is_fresh = now - seen.sign_of_life < STALE_S
    goes_on = bool(is_alive) and last is not None and last.outcome == "finished"
    return ("starting" if is_between and (is_fresh or goes_on) else "dead"), ""


def describe(seen: Seen, queue: Queue | None, controller: Controller, now: float) -> Status:
    """All that is said of a run."""
    state, why = judge(seen, queue, now)
    progress = seen.progress
    is_open = state in ("running", "unknown")
    hours = [
        one.gpu_hours_until(now) if is_open and one is seen.attempts[-1] else one.gpu_hours for one in seen.attempts
    ]
    has_failed = state in ("stopped", "failed", "dead")
    log = next(iter(newest_logs(seen.paths)), None) if has_failed else None
    return Status(
        run=seen.record.run,
        folder=str(seen.paths.folder),
        stage=seen.stage,
        state=state,
        why=why,
        where=progress.where if progress else "",
        done=progress.done if progress else None,
        total=progress.total if progress else None,
        unit=progress.unit if progress else "",
        images_per_s=progress.images_per_s if progress and state == "running" else None,
        seconds_left=_seconds_left(progress, now) if progress and state == "running" else None,
        metric=_metric(seen),
        restarts=len(seen.attempts) - len({one.stage for one in seen.attempts}),
        gpu_hours=round(sum(hours), 4),
        cause=_cause(seen, state, controller, now) if has_failed else "",
        log=str(log or ""),
        tail=tuple(_end_of(log, _TAIL_LINES)) if log else (),
    )


def unreadable(paths: RunPaths, error: UserError) -> Status:
    """What is said of a run that cannot be read."""
    return Status(
        run=paths.folder.name, folder=str(paths.folder), stage=None, state="unreadable", why="", where="", done=None,
        total=None, unit="", images_per_s=None, seconds_left=None, metric="", restarts=0, gpu_hours=0.0,
        cause=str(error), log="", tail=(),
    )  # fmt: skip


def _seconds_left(progress: Progress, now: float) -> float | None:
    left = progress.seconds_left
    return None if left is None else max(0.0, left - max(0.0, now - progress.time))


def _cause(seen: Seen, state: State, controller: Controller, now: float) -> str:
    assert seen.stage is not None
    if state != "dead":
        cause = _cause_in(seen)
        return cause.message if isinstance(cause, Failure) else str(cause or "")
    end = ""
    if seen.jobs and now - seen.sign_of_life < _REMEMBERED_S:
        end = controller.end_of(seen.jobs[-1] if not seen.submitted else seen.submitted[-1].job)
    way_out = f"go on with python -m tlbatch.submit {shlex.quote(str(seen.paths.folder))}"
    begun = "ended without a result" if seen.last else "did not begin"
    return f"{begun} ({end or 'killed, out of memory, or cancelled'}); {way_out}"


def _metric(seen: Seen) -> str:
    """On test where there is a report; else what was told, or the last line of the run's metrics."""
    name = seen.record.job.metric
    if seen.stage is None:
        report = _json(seen.paths.report_json)
        return f"test {name} {report['score']:.4f}" if report.get("score") is not None else ""
    if seen.told and seen.told.metric:
        return seen.told.metric
    value = _parsed("".join(_end_of(seen.paths.metrics, 1))).get(f"val_{name}")
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
    """The last lines, none of a file that is not there."""
    try:
        return last_lines(file, num_lines)
    except OSError:
        return []
