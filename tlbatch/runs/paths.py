"""The paths in a run folder, and reading its job."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.files import absolute, digest_file
from tlbatch.runs.records import Best, RunRecord, load_record
from tlbatch.runs.stages import StageName
from tlbatch.runs.strategy import Strategy
from tlbatch.runs.workspace import Below


@dataclass(frozen=True)
class RunPaths:
    """The paths in a run folder."""

    folder: Path
    record = Below("job.json")
    """The resolved job."""
    logs = Below("logs")
    """Folder of submitit's scripts and of the logs, one per job and rank."""
    rendezvous = Below("rendezvous")
    """Folder of the files by which the ranks of a stage find each other."""
    metrics = Below("metrics.jsonl")
    """Metrics of train, one JSON object per line."""
    progress = Below("progress.json")
    """Progress of the running stage."""
    ledger = Below("ledger.jsonl")
    """Start and end of every attempt of a stage, one JSON object per line."""
    jobs = Below("jobs.jsonl")
    """Submitted SLURM jobs, one JSON object per line."""
    markers = Below("markers")
    """Folder of what stages record when they finish or fail."""
    checkpoints = Below("checkpoints")
    """Folder of the weights."""
    best = Below("checkpoints/best.json")
    """The record of the selected checkpoint."""
    trials = Below("trials")
    """Folder of the trial trainings of choose, removed when it has finished."""
    snapshots = Below("snapshots")
    """Folder of the snapshots from which a training resumes, removed when it has finished."""
    predictions = Below("predictions")
    """Folder of the predictions, one part per rank."""
    report = Below("report")
    """Folder of the report."""
    report_json = Below("report/report.json")
    """The scores."""
    report_page = Below("report/report.html")
    """The report as a page."""
    strategy = Below("strategy.json")
    """The choices of strategy auto."""

    def unseen(self, best: Best) -> Path:
        """Return the file of the out-of-fold predictions of the training images."""
        return self.checkpoints / Path(best.weights).with_suffix(".unseen.npz")

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """Folders that only the running stage writes to."""
        return self.folder, self.markers, self.checkpoints, self.predictions, self.report, self.report / "figures"

    def marker(self, stage: StageName) -> Path:
        """Return the marker of a stage, which exists if the stage has finished."""
        return self.markers / f"{stage}.json"

    def share(self, number: int) -> Path:
        """Return the marker of an array task, which exists if the task has written its share of the shards."""
        return self.markers / f"shard.share.{number}"

    def failure(self, stage: StageName, rank: int) -> Path:
        """Return the failure record of a rank, which exists if the rank has failed."""
        return self.markers / f"{stage}.failed.{rank}.json"

    def failures(self, stage: StageName | Literal["*"]) -> list[Path]:
        """Return the failure records of a stage, or of all."""
        return sorted(self.markers.glob(f"{stage}.failed.*.json"))

    def load_submitted(self) -> RunRecord:
        """Read the resolved job as it was submitted."""
        return load_record(RunRecord, self.record, missing="name a run folder, as python -m tlbatch.submit printed it")

    def load_strategy(self) -> Strategy | None:
        """Read the choices for a cut or a strategy that is auto; None if the job leaves no choice."""
        if not self.load_submitted().job.chooses:
            return None
        return load_record(Strategy, self.strategy, missing="run choose first: python -m tlbatch.choose RUN")

    def load_best(self) -> tuple[Best, Path]:
        """Read the record of the chosen checkpoint, and return it with the file of its weights, unchanged since.

        Raises UserError if train has not finished, or the file has changed since it was written.
        """
        best = load_record(Best, self.best, missing="run train first: python -m tlbatch.train RUN")
        file = self.checkpoints / best.weights
        if not file.exists() or digest_file(file) != best.digest:
            raise UserError(f"{file}: missing or changed since training; submit the job again")
        return best, file

    def load(self) -> RunRecord:
        """Read the resolved job with the choices of strategy auto filled in."""
        record = self.load_submitted()
        chosen = self.load_strategy() if record.job.chooses else None
        return record.model_copy(update={"job": decided(record.job, chosen.settings)}) if chosen else record


def decided(job: Job, settings: Mapping[str, object]) -> Job:
    """Return a job with strategy phases, given one with strategy auto and the sections that were chosen."""
    return Job.model_validate({**job.model_dump(), "strategy": "phases", **settings})


def weights_file(weights: str) -> Path | None:
    """Return the weights file that ``model.weights`` names, for a run its checkpoint; None for random weights.

    Raises UserError if there is no such file or package.
    """
    if weights == "none":
        return None
    if not weights.startswith("package:"):
        path = absolute(Path(weights))
        if path.is_dir():
            run = RunPaths(path)
            missing = "model.weights names a folder, which must be that of a trained run"
            path = run.checkpoints / load_record(Best, run.best, missing=missing).weights
    else:
        module, _, inner = weights.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(module)
        except (ModuleNotFoundError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            raise UserError(
                f"model.weights: package {module} is not installed; install it, e.g. with bash slurm/env.sh "
                "quickstart,export"
            )
        path = Path(spec.origin).parent / inner
    if not path.is_file():
        raise UserError(f"model.weights: no such file {path}; set model.weights=FILE, or none for random weights")
    return path
