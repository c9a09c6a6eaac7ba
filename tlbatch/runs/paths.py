"""The folder of one run."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.files import absolute
from tlbatch.runs.records import Best, Marker, RunRecord, StageName, load_record, stages_of
from tlbatch.runs.strategy import Strategy
from tlbatch.runs.workspace import SetPaths, set_folder


@dataclass(frozen=True)
class RunPaths:
    """The folder of one run."""

    folder: Path

    @property
    def record(self) -> Path:
        """The resolved job."""
        return self.folder / "job.json"

    @property
    def logs(self) -> Path:
        """What submitit writes: scripts, and one log a job and rank."""
        return self.folder / "logs"

    @property
    def rendezvous(self) -> Path:
        """Where the ranks of a stage find each other."""
        return self.folder / "rendezvous"

    @property
    def metrics(self) -> Path:
        """One JSON object a line, from train."""
        return self.folder / "metrics.jsonl"

    @property
    def progress(self) -> Path:
        """How far the stage that is at work is."""
        return self.folder / "progress.json"

    @property
    def ledger(self) -> Path:
        """One JSON object a line: begin and end of every attempt of a stage."""
        return self.folder / "ledger.jsonl"

    @property
    def jobs(self) -> Path:
        """One JSON object a line: the SLURM jobs that were submitted."""
        return self.folder / "jobs.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Weights."""
        return self.folder / "checkpoints"

    @property
    def best(self) -> Path:
        """The record of the chosen checkpoint."""
        return self.checkpoints / "best.json"

    def unseen(self, best: Best) -> Path:
        """Predictions of training images by heads that had not seen them."""
        return self.checkpoints / Path(best.weights).with_suffix(".unseen.npz")

    @property
    def trials(self) -> Path:
        """What has been tried for a choice; gone when it is made."""
        return self.folder / "trials"

    @property
    def snapshots(self) -> Path:
        """What a training goes on from; gone when it has finished."""
        return self.folder / "snapshots"

    @property
    def predictions(self) -> Path:
        """One part a rank."""
        return self.folder / "predictions"

    @property
    def report(self) -> Path:
        """What reduce writes."""
        return self.folder / "report"

    @property
    def report_json(self) -> Path:
        """The scores."""
        return self.report / "report.json"

    @property
    def report_page(self) -> Path:
        """The same as a page."""
        return self.report / "report.html"

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """Folders into which nobody but the stage that is at work writes."""
        figures = self.report / "figures"
        return self.folder, self.folder / "markers", self.checkpoints, self.predictions, self.report, figures

    def marker(self, stage: StageName) -> Path:
        """There, if the stage has finished."""
        return self.folder / "markers" / f"{stage}.json"

    def share(self, number: int) -> Path:
        """There, if an array task has written its share of the shards."""
        return self.folder / "markers" / f"shard.share.{number}"

    def stages_left(self, job: Job) -> tuple[StageName, ...]:
        """The stages that have not finished, in their order."""
        scratch = {"choose": self.trials, "train": self.snapshots}  # removed last, after the marker is written
        left = {stage for stage, folder in scratch.items() if folder.exists()}
        return tuple(stage for stage in stages_of(job) if stage in left or not self.marker(stage).exists())

    def failure(self, stage: StageName, rank: int) -> Path:
        """There, if the rank has failed."""
        return self.folder / "markers" / f"{stage}.failed.{rank}.json"

    def set_paths(self, job: Job) -> "SetPaths":
        """The set that the run's shard stage made or found.

        Raises
        ------
        UserError
            When that stage has not finished.
        """
        done = load_record(Marker, self.marker("shard"), missing="run shard first: python -m tlbatch.shard RUN")
        return SetPaths(set_folder(job), done.outputs["index"])

    @property
    def strategy(self) -> Path:
        """What strategy = auto has chosen."""
        return self.folder / "strategy.json"

    def load_submitted(self) -> RunRecord:
        """Read the resolved job as it was submitted."""
        return load_record(RunRecord, self.record, missing="name a run folder, as python -m tlbatch.submit printed it")

    def load_strategy(self) -> Strategy | None:
        """What was chosen for a cut or a strategy that is auto; nothing where the job says all itself."""
        if not self.load_submitted().job.chooses:
            return None
        return load_record(Strategy, self.strategy, missing="run choose first: python -m tlbatch.choose RUN")

    def load(self) -> RunRecord:
        """Read the resolved job, with what strategy = auto has chosen in its place."""
        record, chosen = self.load_submitted(), self.load_strategy()
        if chosen is None:
            return record
        return record.model_copy(update={"job": decided(record.job, chosen.settings)})


def decided(job: Job, settings: Mapping[str, object]) -> Job:
    """A job of phases from one whose strategy is auto, and the sections that were decided."""
    return Job.model_validate({**job.model_dump(), "strategy": "phases", **settings})


def weights_file(weights: str) -> Path | None:
    """The file that ``model.weights`` names, of another run its checkpoint, or None for random weights.

    Raises
    ------
    UserError
        When there is no such file or package.
    """
    if weights == "none":
        return None
    if not weights.startswith("package:"):
        path = absolute(Path(weights))
        if path.is_dir():
            run = RunPaths(path)
            missing = "model.weights names a folder, which must be a run that has been trained"
            path = run.checkpoints / load_record(Best, run.best, missing=missing).weights
    else:
        module, _, inner = weights.removeprefix("package:").partition("/")
        try:
            spec = importlib.util.find_spec(module)
        except (ModuleNotFoundError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            raise UserError(f"model.weights: package {module} is not installed; install it (see README, extras)")
        path = Path(spec.origin).parent / inner
    if not path.is_file():
        raise UserError(f"model.weights: no file {path}; set model.weights=FILE, or none for random weights")
    return path
