"""The manifest of a set of shards."""

from tlbatch.config.base import Metric, SplitName
from tlbatch.config.data import StepName
from tlbatch.runs.records import Record


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
