"""The paths in a run folder, and reading its job."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.files import absolute
from tlbatch.runs.records import Best, RunRecord, load_record
from tlbatch.runs.stages import StageName
from tlbatch.runs.strategy import Strategy


@dataclass(frozen=True)
class RunPaths:
    """The paths in a run folder."""

    folder: Path

    @property
    def record(self) -> Path:
        """The resolved job."""
        return self.folder / "job.json"

    @property
    def logs(self) -> Path:
        """Folder of submitit's scripts and of the logs, one per job and rank."""
        return self.folder / "logs"

    @property
    def rendezvous(self) -> Path:
        """Folder of the files by which the ranks of a stage find each other."""
        return self.folder / "rendezvous"

    @property
    def metrics(self) -> Path:
        """Metrics of train, one JSON object per line."""
        return self.folder / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """Progress of the running stage."""
        return self.folder / "progress.json"

    @property
    def ledger(self) -> Path:
        """Start and end of every attempt of a stage, one JSON object per line."""
        return self.folder / "ledger.jsonl"

    @property
    def jobs(self) -> Path:
        """Submitted SLURM jobs, one JSON object per line."""
        return self.folder / "jobs.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Folder of the weights."""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """The record of the selected checkpoint."""
        return self.checkpoints / "best.json"

    def unseen(self, best: Best) -> Path:
        """Return the file of the out-of-fold predictions of the training images."""
        return self.checkpoints / Path(best.weights).with_suffix(".unseen.npz")

    @property
    def trials(self) -> Path:
        """Folder of the trial trainings of choose, removed when it has finished."""
        return self.folder / "trials"

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots from which a training resumes, removed when it has finished."""
        return self.folder / "snapshots"

    @property
    def predictions(self) -> Path:
        """Folder of the predictions, one part per rank."""
        return self.folder / "predictions"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.folder / "report"

    @property
    def report_json(self) -> Path:
        """The scores."""
        return self.report / "report.json"

    @property
    def report_page(self) -> Path:
        """The report as a page."""
        return self.report / "report.html"

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """Folders that only the running stage writes to."""
        figures = self.report / "figures"
        return self.folder, self.folder / "markers", self.checkpoints, self.predictions, self.report, figures

    def marker(self, stage: StageName) -> Path:
        """Return the marker of a stage, which exists if the stage has finished."""
        return self.folder / "markers" / f"{stage}.json"

    def share(self, number: int) -> Path:
        """Return the marker of an array task, which exists if the task has written its share of the shards."""
        return self.folder / "markers" / f"shard.share.{number}"

    def failure(self, stage: StageName, rank: int) -> Path:
        """Return the failure record of a rank, which exists if the rank has failed."""
        return self.folder / "markers" / f"{stage}.failed.{rank}.json"

    @property
    def strategy(self) -> Path:
        """The choices of strategy auto."""
        return self.folder / "strategy.json"

    def load_submitted(self) -> RunRecord:
        """Read the resolved job as it was submitted."""
        return load_record(RunRecord, self.record, missing="name a run folder, as python -m tlbatch.submit printed it")

    def load_strategy(self) -> Strategy | None:
        """Read the choices for a cut or a strategy that is auto; None if the job leaves no choice."""
        if not self.load_submitted().job.chooses:
            return None
        return load_record(Strategy, self.strategy, missing="run choose first: python -m tlbatch.choose RUN")

    def load(self) -> RunRecord:
        """Read the resolved job with the choices of strategy auto filled in."""
        record, chosen = self.load_submitted(), self.load_strategy()
        if chosen is None:
            return record
        return record.model_copy(update={"job": decided(record.job, chosen.settings)})


def decided(job: Job, settings: Mapping[str, object]) -> Job:
    """Return a job with strategy phases, given one with strategy auto and the sections that were chosen."""
    return Job.model_validate({**job.model_dump(), "strategy": "phases", **settings})


def weights_file(weights: str) -> Path | None:
    """Return the weights file that ``model.weights`` names, for a run its checkpoint; None for random weights.

    Raises
    ------
    UserError
        If there is no such file or package.
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
