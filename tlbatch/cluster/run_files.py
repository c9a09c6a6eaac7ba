"""The contents of a run folder, as status reads them."""

from dataclasses import dataclass
from pathlib import Path

from tlbatch.runs.attempts import Attempt, Submitted, read_attempts, read_jobs
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import Progress, load_progress
from tlbatch.runs.run import Run
from tlbatch.runs.stages import StageName, stages_of


@dataclass(frozen=True)
class RunFiles:
    """The contents of a run folder."""

    run: Run
    stage: StageName | None
    """The first stage without a marker."""
    attempts: tuple[Attempt, ...]
    submitted: tuple[Submitted, ...]
    """Jobs of the stage."""
    latest: Progress | None
    """The latest progress, of whichever stage."""
    failed: float | None
    """When the stage recorded a failure."""
    made: float
    """When the run was submitted."""

    @property
    def last(self) -> Attempt | None:
        """The last attempt of the stage."""
        return next((one for one in reversed(self.attempts) if one.stage == self.stage), None)

    @property
    def jobs(self) -> list[str]:
        """Ids of the jobs that may be running the stage: its own, and the run's last allocation."""
        allocation = [one.begin.job for one in self.attempts[-1:] if one.begin.job]
        return [one.job for one in self.submitted] + allocation if self.stage else []

    @property
    def last_active(self) -> float:
        """When the run last showed activity."""
        return max([self.made, *(one.last_active for one in self.attempts), *(one.time for one in self.submitted)])

    @property
    def progress(self) -> Progress | None:
        """The latest progress of the stage's last attempt, or of the array tasks that precede it."""
        latest, last = self.latest, self.last
        if latest is None or latest.stage != self.stage:
            return None
        if last is None:
            return latest if self.submitted and latest.time >= self.submitted[0].time else None
        return latest if latest.attempt == last.begin.attempt and latest.time >= last.begin.time else None


def read_run_files(paths: RunPaths) -> RunFiles:
    """Read the contents of a run folder; UserError if it is no run folder, or damaged."""
    run = Run.load_submitted(paths.folder)
    stage = next((one for one in stages_of(run.job) if not paths.marker(one).exists()), None)
    return RunFiles(
        run=run,
        stage=stage,
        attempts=read_attempts(paths),
        submitted=tuple(one for one in read_jobs(paths) if one.stage == stage),
        latest=load_progress(paths),
        failed=max(map(modified, paths.failures(stage)), default=None) if stage else None,
        made=modified(paths.record),
    )


def modified(file: Path) -> float:
    """Return when a file was last modified, in Unix seconds; 0 if it does not exist."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
