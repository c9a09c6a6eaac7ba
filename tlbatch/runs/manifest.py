"""The manifest of a set of shards."""

from tlbatch.config.base import Metric, SplitName
from tlbatch.config.data import StepName
from tlbatch.runs.records import Record


class ShardFile(Record):
    """A tar file of a set."""

    name: str
    """File name in the set's folder, or the absolute path of a tar that is indexed in place."""
    num_images: int
    """Number of images in the file, some of which an index may leave out."""
    size: int


class Ceiling(Record):
    """The best possible score with these labels, known for synthetic images only."""

    metric: Metric
    score: float
    why: str


class Rejected(Record):
    """An image that could not be used."""

    key: str
    """Name of the image, or of whatever could not be used."""
    cause: str


class ValueRange(Record):
    """The values that become 0 and 255 in images of more than 8 bits that do not state them."""

    low: float
    high: float
    num_images: int
    """Number of training images whose values it was taken from; 0: it is ``data.value_range``."""

    @property
    def limits(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high


class Audit(Record):
    """Results of the audit of a set; audit.csv names the images."""

    num_exact: int
    """Number of images that have an exact duplicate."""
    num_near: int
    """Number of images that have a near duplicate, and no exact one."""
    num_turned: int = 0
    """Number of these that are mirrored or turned copies only."""
    num_cropped: int = 0
    """Number of these that are cropped copies only."""
    num_mirrored: int = 0
    """Number of images that look like another of their group, mirrored or turned, such as the eyes of a patient; these
    are no duplicates."""
    num_contradicting: int
    """Number of images that have a duplicate or near duplicate with another label."""
    across: dict[str, int]
    """Number of images of val and test, by pair of splits, e.g. "test in train", that have a duplicate, a near
    duplicate or an image of the same group in the other split."""
    num_moved: int
    num_dropped: int
    searched: str = ""
    """Which copies were looked for, and which are not found; empty: an earlier version made the audit."""
    num_similar: int = 0
    """Number of images that were kept though a near duplicate has another label, because the two are not equal."""
    num_large: int = 0
    """Number of images with near duplicates in clusters too large to be of copies, which are listed only."""


class Manifest(Record):
    """``manifest.json`` of an index, written last: the index is complete if it exists."""

    source_digest: str
    """Digest of the names, labels, groups, sizes and times of the files read."""
    data_digest: str
    """Digest of the job section from which the index was made."""
    index_digest: str
    """SHA-256 of index.npy, which identifies the keys, labels, splits and contents of all images."""
    test_digest: str
    """Digest of the test split alone; runs with the same one can be compared."""
    classes: tuple[str, ...]
    tags: bool
    """Whether images have several tags instead of a class."""
    counts: dict[SplitName, tuple[int, ...]]
    """Number of images of each class, or with each tag, in each split."""
    num_images: dict[SplitName, int]
    shards: tuple[ShardFile, ...]
    num_rejected: int
    """Number of images left out, which rejected.csv lists."""
    audit: Audit
    resize: int
    steps: tuple[StepName, ...]
    """Pre-processing steps of the images in the shards."""
    columns: tuple[str, str]
    """Columns of the source's labels file: image name and label."""
    synthetic: bool
    ceilings: tuple[Ceiling, ...]
    notes: tuple[str, ...] = ()
    """How the source was read: what was understood, joined, counted or left out."""
    warnings: tuple[str, ...] = ()
    """What is unusual about the splits."""
    value_range: ValueRange | None = None
    """Range of the images of more than 8 bits that do not state theirs; none: there are no such images."""
    reading: str = ""
    """What identifies the reading of images that earlier versions read otherwise; empty: there are none."""

    @property
    def limits(self) -> tuple[float, float] | None:
        """Range of values with which the images in the shards are read."""
        return None if self.value_range is None else self.value_range.limits
