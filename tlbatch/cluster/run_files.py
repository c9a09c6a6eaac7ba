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
    told: Progress | None
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
        around = [one.begin.job for one in self.attempts[-1:] if one.begin.job]
        return [one.job for one in self.submitted] + around if self.stage else []

    @property
    def sign_of_life(self) -> float:
        """When the run last showed activity."""
        return max([self.made, *(one.seen for one in self.attempts), *(one.time for one in self.submitted)])

    @property
    def progress(self) -> Progress | None:
        """The latest progress of the stage's last attempt, or of the array tasks that precede it."""
        told, last = self.told, self.last
        if told is None or told.stage != self.stage:
            return None
        if last is None:
            return told if self.submitted and told.time >= self.submitted[0].time else None
        return told if told.attempt == last.begin.attempt and told.time >= last.begin.time else None


def read_run_files(paths: RunPaths) -> RunFiles:
    """Read the contents of a run folder.

    Raises
    ------
    UserError
        If it is no run folder, or damaged.
    """
    run = Run.load_submitted(paths.folder)
    stage = next((one for one in stages_of(run.job) if not paths.marker(one).exists()), None)
    causes = paths.marker(stage).parent.glob(f"{stage}.failed.*.json") if stage else ()
    return RunFiles(
        run=run,
        stage=stage,
        attempts=read_attempts(paths),
        submitted=tuple(one for one in read_jobs(paths) if one.stage == stage),
        told=load_progress(paths),
        failed=max((modified(cause) for cause in causes), default=None),
        made=modified(paths.record),
    )


def modified(file: Path) -> float:
    """Return when a file was last modified, in Unix seconds; 0 if it does not exist."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0
