"""The shape of everything that crosses from one stage to another."""

from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from tlbatch.job.cluster import Slurm
from tlbatch.job.config import Job
from tlbatch.job.errors import UserError
from tlbatch.job.files import digest_of, to_json, write_text
from tlbatch.job.images import StepName
from tlbatch.job.learning import Symmetries
from tlbatch.job.section import Metric, SplitName

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


class Trial(Record):
    """What a candidate of strategy = auto scored on training images that it was not trained on."""

    name: str
    after: tuple[str, ...]
    """Modules that the head stands on."""
    cut: str
    """Cut of the last phase."""
    fit: str
    """How the head is fitted."""
    score: float | None
    standard_error: float
    """Of the score, by a bootstrap over groups."""
    num_images: int
    """Images that it was judged on."""
    behind: float | None
    """The score of the best of its list less its own."""
    behind_error: float
    """Standard error of that, by the same draws for both."""
    seconds: float


class Strategy(Record):
    """``strategy.json``: what strategy = auto has chosen, and why."""

    chosen: str
    """Name of the trial."""
    why: str
    scenario: Literal["small and like", "small and unlike", "large and like", "large and unlike"]
    """Size of the training set, and whether its images are like those that the backbone was trained on."""
    scenario_why: str
    metric: Metric
    num_train: int
    profile: tuple[Trial, ...]
    """Probes at every stage of the backbone, from its input to its top."""
    short_list: tuple[Trial, ...]
    """The candidates, the cheapest first."""
    left_out: tuple[str, ...] = ()
    """Those that were not tried, and why."""
    settings: dict[str, object]
    """The sections of the job that were decided."""


class ShardFile(Record):
    """One tar of a set."""

    name: str
    """File name in the set's folder, or the absolute path of a tar that is indexed where it lies."""
    num_images: int
    """Images in it, some of which an index may leave out."""
    size: int


class Ceiling(Record):
    """The best score that the labels allow, known for synthetic images only."""

    metric: Metric
    score: float
    why: str


class Rejected(Record):
    """An image that could not be used."""

    key: str
    """Key of the image, or what there is of a name."""
    cause: str


class Audit(Record):
    """What the audit of a set found; audit.csv names the images."""

    num_exact: int
    """Images of which there is an equal one."""
    num_near: int
    """Images of which there is a nearly equal one, and no equal one."""
    num_contradicting: int
    """Images of which an equal or nearly equal one has another label."""
    across: dict[str, int]
    """Rows of val and test, by splits, e.g. "test in train", of which an equal or nearly equal image, or
    an image of the same group, is in the other split."""
    num_moved: int
    num_dropped: int


class Manifest(Record):
    """``manifest.json`` of an index, written last: the index is complete if it is there."""

    source_digest: str
    """Digest of the names, labels, groups, sizes and times of the files read."""
    data_digest: str
    """Digest of the section of the job that made the index."""
    index_digest: str
    """SHA-256 of index.npy: stands for the keys, labels, splits and contents of all images."""
    test_digest: str
    """Digest of the test split alone; runs with the same one can be ranked against each other."""
    classes: tuple[str, ...]
    tags: bool
    """Whether an image has several tags in place of a class."""
    counts: dict[SplitName, tuple[int, ...]]
    """Images of each class, or with each tag, in each split."""
    num_images: dict[SplitName, int]
    shards: tuple[ShardFile, ...]
    num_rejected: int
    """Images left out, which rejected.csv lists."""
    audit: Audit
    resize: int
    steps: tuple[StepName, ...]
    """Pre-processing of every image in the shards."""
    columns: tuple[str, str]
    """Header of the source's labels file: name of the image, label."""
    synthetic: bool
    ceilings: tuple[Ceiling, ...]


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


class Place(Record):
    """How far a training has come, between two steps."""

    phase: int
    epoch: int = 0
    """In the phase."""
    step: int = 0
    """In the epoch."""
    position: int = 0
    """Samples of the epoch that all ranks together have taken."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Later places are greater."""
        return self.phase, self.epoch, self.position


class SnapshotRecord(Record):
    """``snapshot.json``, written last into a snapshot of a training: it is complete if this is there."""

    inputs: dict[str, str]
    """Digest of each input of the training by name."""
    place: Place
    under_way: bool
    """Whether the phase has begun, and optimiser, schedule and averages are there."""
    world_size: int
    without_gain: int
    """Epochs since validation was better."""
    seconds: float
    """Spent on the epoch so far."""
    best: Best | None
    """The checkpoint that validation has chosen so far."""
    metrics: str
    """metrics.jsonl as it was."""
    checksums: dict[str, str]
    """Of every file, by name."""
    digest: str = ""
    """Of all this."""

    def signed(self) -> "SnapshotRecord":
        """The same with its digest."""
        return self.model_copy(update={"digest": digest_of(self.model_dump(mode="json", exclude={"digest"}))})


def job_digest(record: RunRecord) -> str:
    """Digest of everything in the job that predictions depend on: not of its place, time, cluster or report."""
    elsewhere = {"slurm", "workspace", "private", "run", "report", "sweep", "nightly"}
    kept = record.job.model_dump(mode="json", exclude=elsewhere)
    return digest_of({"job": kept, "weights": record.weights_digest})
