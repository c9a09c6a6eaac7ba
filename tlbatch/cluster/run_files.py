"""What lies in a run folder, as somebody finds it who watches."""

from dataclasses import dataclass
from pathlib import Path

from tlbatch.runs.attempts import Attempt, Submitted, read_attempts, read_jobs
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import Progress, load_progress
from tlbatch.runs.records import RunRecord, StageName, stages_of


@dataclass(frozen=True)
class RunFiles:
    """What lies in a run folder."""

    paths: RunPaths
    record: RunRecord
    stage: StageName | None
    """The first without a marker."""
    attempts: tuple[Attempt, ...]
    submitted: tuple[Submitted, ...]
    """Jobs of the stage."""
    told: Progress | None
    failed: float | None
    """When the stage left a cause of failure."""
    made: float
    """When the run was submitted."""

    @property
    def last(self) -> Attempt | None:
        """The last attempt of the stage."""
        return next((one for one in reversed(self.attempts) if one.stage == self.stage), None)

    @property
    def jobs(self) -> list[str]:
        """Ids of what may be at work on the stage: its jobs, and the allocation that the run was last at work in."""
        around = [one.begin.job for one in self.attempts[-1:] if one.begin.job]
        return [one.job for one in self.submitted] + around if self.stage else []

    @property
    def sign_of_life(self) -> float:
        """When something was last seen of the run."""
        return max([self.made, *(one.seen for one in self.attempts), *(one.time for one in self.submitted)])

    @property
    def progress(self) -> Progress | None:
        """What the last attempt of the stage told last, or one of the tasks that share it before it begins."""
        told, last = self.told, self.last
        if told is None or told.stage != self.stage:
            return None
        if last is None:
            return told if self.submitted and told.time >= self.submitted[0].time else None
        return told if told.attempt == last.begin.attempt and told.time >= last.begin.time else None


def read_run_files(paths: RunPaths) -> RunFiles:
    """Read what lies in a run folder.

    Raises
    ------
    UserError
        When it is no run folder, or damaged.
    """
    record = paths.load_submitted()
    stage = next((one for one in stages_of(record.job) if not paths.marker(one).exists()), None)
    causes = paths.marker(stage).parent.glob(f"{stage}.failed.*.json") if stage else ()
    return RunFiles(
        paths=paths,
        record=record,
        stage=stage,
        attempts=read_attempts(paths),
        submitted=tuple(one for one in read_jobs(paths) if one.stage == stage),
        told=load_progress(paths),
        failed=max((modified(cause) for cause in causes), default=None),
        made=modified(paths.record),
    )


def modified(file: Path) -> float:
    """When a file was written last, in unix seconds; one that has just gone was never written."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
