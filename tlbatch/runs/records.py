"""Records that stages pass on to each other as JSON files."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tlbatch.config.base import Metric, SplitName
from tlbatch.config.job import Job
from tlbatch.config.slurm import Slurm
from tlbatch.config.training import Symmetries
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_of, to_json, write_text
from tlbatch.runs.stages import StageName

FailureKind = Literal["user", "crash", "hung", "lost", "stopped"]
"""The most likely root cause first, then the consequences on other ranks."""
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")


class Record(BaseModel):
    """A frozen value that is stored as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def save(self, path: Path) -> None:
        """Write the record atomically."""
        write_text(path, to_json(self.model_dump(mode="json")))


AnyRecord = TypeVar("AnyRecord", bound=Record)


def load_record(
    kind: type[AnyRecord], path: Path, *, missing: str, damaged: str = "submit the job as a new run"
) -> AnyRecord:
    """Read a record.

    Raises UserError if the file does not exist or is no such record; the message ends with the way out, ``missing`` or
    ``damaged``.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: does not exist; {missing}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: damaged, or from another version of tlbatch ({field or 'JSON'}: {first['msg']}); {damaged}"
        ) from None


class RunRecord(Record):
    """``job.json``: the resolved job and its provenance."""

    run: str
    job: Job
    weights_digest: str | None
    """SHA-256 of the weights file; none for random weights."""
    tlbatch_version: str
    commit: str | None
    """git commit of the tlbatch checkout, with ``+`` when it had changes."""
    created: str
    images: tuple[str, ...] = ()
    """SHA-256 of the container images of its tasks, the newest last; empty without a container."""
    allocation: str | None = None
    """Id of the SLURM job that made the run and holds all of its stages; None if each stage is a job."""
    checkpoint_of: str | None = None
    """Folder of another run whose checkpoint this one uses instead of training, to predict the images of this job."""

    def resubmitted(self, slurm: Slurm, images: tuple[str, ...]) -> "RunRecord":
        """Return the record with another section slurm, and with the container image that belongs to it."""
        kept = tuple(image for image in self.images if image not in images)
        return self.model_copy(update={"job": self.job.model_copy(update={"slurm": slurm}), "images": kept + images})


class Marker(Record):
    """``markers/<stage>.json``, written last by a stage that finished."""

    stage: StageName
    inputs: dict[str, str]
    """Digest of each input by name."""
    outputs: dict[str, str]
    """Values that later stages need, by name."""
    world_size: int
    seconds: float
    hosts: tuple[str, ...] = ()
    """Nodes that the stage ran on."""


class Failure(Record):
    """``markers/<stage>.failed.<rank>.json``: why a rank of a stage failed."""

    stage: StageName
    rank: int
    message: str
    kind: FailureKind


class Best(Record):
    """``checkpoints/best.json``: the selected checkpoint, written after its weights."""

    weights: str
    """File name of the weights beside this record."""
    digest: str
    phase: int
    epoch: int
    views: Symmetries = "none"
    """Symmetries over which predicted probabilities are averaged."""
    metric: Metric
    val_score: float | None
    """None: no validation split, or the metric is undefined on it."""
    val_loss: float | None
    """Mean log loss on validation, which breaks ties."""
    classes: tuple[str, ...]
    """Classes; for phrases, the tags of the training split."""
    max_tags: int = 0
    """Largest number of tags in a phrase; 0: a classifier."""
    num_parameters: int
    thresholds: tuple[float, ...] = ()
    """Thresholds between grades, fitted on images that the model was not trained on; empty if not used."""
    unseen: str | None = None
    """SHA-256 of the out-of-fold predictions of the training images, which are stored beside the weights; None if the
    head was not cross-validated."""


def job_digest(record: RunRecord) -> str:
    """Return the digest of all that predictions depend on in the job, so not of its place, time, cluster or report."""
    elsewhere = {"slurm", "workspace", "private", "run", "report", "sweep", "nightly"}
    kept = record.job.for_digest(exclude=elsewhere)
    return digest_of({"job": kept, "weights": record.weights_digest})
