"""The shape of everything that crosses from one stage to another."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tlbatch.config.base import Metric, SplitName
from tlbatch.config.job import Job
from tlbatch.config.slurm import Slurm
from tlbatch.config.training import Symmetries
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_of, to_json, write_text

StageName = Literal["shard", "choose", "cache", "train", "predict", "reduce", "promote"]
FailureKind = Literal["user", "crash", "hung", "lost", "stopped"]
"""The likeliest cause first: what other ranks saw of it, and how they were ended, comes after it."""
STAGES: tuple[StageName, ...] = ("shard", "choose", "cache", "train", "predict", "reduce")
"""Of every run; promote comes after them, and only where a registry is asked for."""
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
    """Read a record back.

    Raises
    ------
    UserError
        When the file is not there (the text ends with ``missing``, the way out) or not of this kind (with ``damaged``).
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: not there; {missing}") from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{path}: damaged or of another version of tlbatch ({field or 'JSON'}: {first['msg']}); {damaged}"
        ) from None


class RunRecord(Record):
    """``job.json``: the resolved job and what it was resolved with."""

    run: str
    job: Job
    weights_digest: str | None
    """SHA-256 of the weights file; none for random weights."""
    tlbatch_version: str
    commit: str | None
    """git commit of the tlbatch checkout, with ``+`` when it had changes."""
    created: str
    images: tuple[str, ...] = ()
    """SHA-256 of the container images that its tasks have run in, the newest last; none without a container."""
    allocation: str | None = None
    """Id of the SLURM job that made the run and holds all of its stages; none where each stage is a job."""
    checkpoint_of: str | None = None
    """Folder of another run whose checkpoint this one takes in place of training, to predict the images of this job."""

    def resubmitted(self, slurm: Slurm, images: tuple[str, ...]) -> "RunRecord":
        """The same with another section slurm, and the image that goes with it."""
        kept = tuple(image for image in self.images if image not in images)
        return self.model_copy(update={"job": self.job.model_copy(update={"slurm": slurm}), "images": kept + images})


def stages_of(job: Job) -> tuple[StageName, ...]:
    """The stages of a job in their order; not all have something to choose."""
    return tuple(stage for stage in STAGES if stage != "choose" or job.chooses)


class Marker(Record):
    """``markers/<stage>.json``, written last by a stage that finished."""

    stage: StageName
    inputs: dict[str, str]
    """Digest of each input by name."""
    outputs: dict[str, str]
    """What later stages need to know of its work, by name."""
    world_size: int
    seconds: float
    hosts: tuple[str, ...] = ()
    """Nodes that the stage ran on."""


class Failure(Record):
    """``markers/<stage>.failed.<rank>.json``: why a rank of a stage stopped."""

    stage: StageName
    rank: int
    message: str
    kind: FailureKind


class Best(Record):
    """``checkpoints/best.json``: the chosen checkpoint, written after its weights."""

    weights: str
    """File name of the weights beside this record."""
    digest: str
    phase: int
    epoch: int
    views: Symmetries = "none"
    """Whose probabilities are averaged in prediction."""
    metric: Metric
    val_score: float | None
    """None: no validation split, or the metric is undefined on it."""
    val_loss: float | None
    """Mean log loss on validation, which decides between equal scores."""
    classes: tuple[str, ...]
    """With tags: those of the training split, which phrases are written with."""
    max_tags: int = 0
    """Tags of a phrase at most; 0: it tells classes apart."""
    num_parameters: int
    thresholds: tuple[float, ...] = ()
    """Between grades, where they decide; fitted on images the model was not trained on."""
    unseen: str | None = None
    """SHA-256 of predictions of training images by heads that had not seen them, which lie beside the weights; none
    where the head was not fitted on folds."""


def job_digest(record: RunRecord) -> str:
    """Digest of everything in the job that predictions depend on: not of its place, time, cluster or report."""
    elsewhere = {"slurm", "workspace", "private", "run", "report", "sweep", "nightly"}
    kept = record.job.for_digest(exclude=elsewhere)
    return digest_of({"job": kept, "weights": record.weights_digest})
