"""Paths that the runs of a workspace share: shards, groups, cache, leaderboard."""

from dataclasses import dataclass
from pathlib import Path

from tlbatch.config.job import Job
from tlbatch.core.files import digest_of

_MAKES_SHARDS = {
    "source", "images", "urls", "labels", "key_column", "label_column", "tag_separator", "classes", "resize",
    "preprocess", "max_pixels", "shard_images", "synthetic", "spellings", "ignore", "image_part",
    "value_range",
}  # fmt: skip
"""Keys of the data section that the bytes of the shards depend on."""
_MAKES_GROUPS = {"source", "images", "urls", "labels", "synthetic", "group_column", "group_pattern", "dicom_group"}


class Below:
    """A path below a folder of the same object."""

    def __init__(self, name: str, *, of: str = "folder") -> None:
        self._name, self._of = name, of

    def __get__(self, paths: object, _: type) -> Path:
        folder: Path = getattr(paths, self._of)
        return folder / self._name


@dataclass(frozen=True)
class SetPaths:
    """The folder of a sharded set, and one of its indexes."""

    folder: Path
    """Shards and their sidecars, shared by all indexes."""
    index: str
    """Name of the index, which depends on the split and the images."""
    manifest = Below("manifest.json", of="index_folder")
    """The description of the set."""
    index_file = Below("index.npy", of="index_folder")
    """The index, one row per image and split."""
    rejected = Below("rejected.csv", of="index_folder")
    """Images left out, and why."""
    audit = Below("audit.csv", of="index_folder")
    """Duplicate images."""

    @property
    def index_folder(self) -> Path:
        """Folder of the index."""
        return self.folder / self.index

    def shard(self, name: str) -> Path:
        """Return the path of a tar; a tar that is indexed in place has its absolute path as its name."""
        return self.folder / name


def set_folder(job: Job) -> Path:
    """Return the folder of the job's shards: the same images and pre-processing always give the same folder."""
    kept = job.data.for_digest(include=_MAKES_SHARDS)
    name = job.data.images.name if job.data.images else kept["source"]
    return job.workspace / "shards" / f"{name or 'images'}-{digest_of(kept)[:12]}"


def groups_file(job: Job) -> Path:
    """Return the file with the positions of a source's groups, which is independent of pre-processing."""
    kept = job.data.for_digest(include=_MAKES_GROUPS)
    name = set_folder(job).name.rpartition("-")[0]
    method = ["hash"] if job.data.split.method == "hash" else []  # its positions are other ones
    return job.workspace / "shards" / f"{name}-{digest_of([kept, job.data.split.salt, *method])[:12]}.groups.csv"


def value_range_file(job: Job) -> Path:
    """Return the file with the range of values of a source's images, which all sets of the source share."""
    kept = job.data.for_digest(include=_MAKES_GROUPS - {"group_column", "group_pattern", "dicom_group"})
    name = set_folder(job).name.rpartition("-")[0]
    return job.workspace / "shards" / f"{name}-{digest_of(kept)[:12]}.range.json"


def staged_folder(job: Job) -> Path:
    """Return the folder for downloaded tars."""
    return job.workspace / "staged" / digest_of(list(job.data.urls))[:12]


def data_digest(job: Job) -> str:
    """Return the digest of the section data, which with the source determines the index."""
    return digest_of(job.data.for_digest(exclude={"ordered"}))  # which only reports read


def synthetic_folder(job: Job) -> Path:
    """Return the folder of the synthetic images, one for each setting."""
    return job.workspace / "phantom" / digest_of(job.data.synthetic.for_digest())[:12]


def cache_folder(job: Job, digest: str) -> Path:
    """Return the folder of the activations with this digest, shared by all runs of the workspace."""
    return job.workspace / "cache" / digest[:16]


def leaderboard(job: Job) -> Path:
    """Return the path of the leaderboard of all runs of the workspace."""
    return job.workspace / "runs" / "leaderboard.csv"
