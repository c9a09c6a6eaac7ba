"""What runs of a workspace share: shards, groups, cache, leaderboard."""

from dataclasses import dataclass
from pathlib import Path

from tlbatch.config.job import Job
from tlbatch.core.files import digest_of

_MAKES_SHARDS = {
    "source", "images", "urls", "labels", "key_column", "label_column", "tag_separator", "classes", "resize",
    "preprocess", "max_pixels", "shard_images", "synthetic",
}  # fmt: skip
"""Keys of the data section that the bytes of the shards depend on."""
_MAKES_GROUPS = {"source", "images", "urls", "labels", "synthetic", "group_column", "group_pattern"}


@dataclass(frozen=True)
class SetPaths:
    """The folder of one sharded set, and one of its indexes."""

    folder: Path
    """Shards and their sidecars, shared by all indexes."""
    index: str
    """Name of the index: another split, or other images, make another."""

    @property
    def index_folder(self) -> Path:
        """All that belongs to the index; complete if it is there."""
        return self.folder / self.index

    @property
    def manifest(self) -> Path:
        """What the set is."""
        return self.index_folder / "manifest.json"

    @property
    def index_file(self) -> Path:
        """One row an image and split."""
        return self.index_folder / "index.npy"

    @property
    def rejected(self) -> Path:
        """Images left out, and why."""
        return self.index_folder / "rejected.csv"

    @property
    def audit(self) -> Path:
        """Images that are there twice."""
        return self.index_folder / "audit.csv"

    def shard(self, name: str) -> Path:
        """One tar; one that is indexed where it lies has its whole path for a name."""
        return self.folder / name


def set_folder(job: Job) -> Path:
    """Where the shards of the job lie: the same images with the same pre-processing always mean the same folder."""
    kept = job.data.for_digest(include=_MAKES_SHARDS)
    name = job.data.images.name if job.data.images else kept["source"]
    return job.workspace / "shards" / f"{name or 'images'}-{digest_of(kept)[:12]}"


def groups_file(job: Job) -> Path:
    """Where the places of the groups of a source are kept, whatever is made of its images."""
    kept = job.data.for_digest(include=_MAKES_GROUPS)
    name = set_folder(job).name.rpartition("-")[0]
    return job.workspace / "shards" / f"{name}-{digest_of([kept, job.data.split.salt])[:12]}.groups.csv"


def staged_folder(job: Job) -> Path:
    """Where tars from elsewhere are staged."""
    return job.workspace / "staged" / digest_of(list(job.data.urls))[:12]


def data_digest(job: Job) -> str:
    """Digest of the data section, which with the source makes the index."""
    return digest_of(job.data.for_digest())


def synthetic_folder(job: Job) -> Path:
    """Where synthetic images are drawn: their own folder for each setting."""
    return job.workspace / "phantom" / digest_of(job.data.synthetic.for_digest())[:12]


def cache_folder(job: Job, digest: str) -> Path:
    """Where the activations with this digest lie, shared by all runs of the workspace."""
    return job.workspace / "cache" / digest[:16]


def leaderboard(job: Job) -> Path:
    """The leaderboard of all runs of the workspace."""
    return job.workspace / "runs" / "leaderboard.csv"
