"""A sharded set, opened for reading: its splits, labels and shards."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tlbatch.config.base import SplitName
from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file
from tlbatch.core.typing import Ints
from tlbatch.data.index import Index, read_index, split_rows
from tlbatch.data.sampler import Positions
from tlbatch.data.shards.staging import stage_locally
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.records import load_record
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import SetPaths


@dataclass(frozen=True)
class ImageSet:
    """A sharded set, opened for reading."""

    manifest: Manifest
    paths: SetPaths
    shards: tuple[Path, ...]
    """The tars in the order of the index's numbers."""
    chosen: Mapping[SplitName, Positions] | None = None
    """Rows of each split that replace those of the index."""

    @property
    def index(self) -> Index:
        """All rows, mapped into memory."""
        return read_index(self.paths.index_file)

    def rows(self, split: SplitName) -> Ints:
        """Return the row numbers of one split, in the order of the index."""
        return split_rows(self.index, split) if self.chosen is None else self.chosen[split]

    def labels(self, split: SplitName) -> Ints:
        """Return the class numbers of a split, (n,)."""
        return self.index["label"][self.rows(split)].astype(np.int64)

    def tags(self, split: SplitName) -> Ints:
        """Return the tag numbers of a split, (n, tags), padded with -1."""
        return self.index["tags"][self.rows(split)].astype(np.int64)

    def only(self, train: Positions, val: Positions) -> "ImageSet":
        """Return the same set with other training and validation rows, and no test rows."""
        return replace(self, chosen={"train": train, "val": val, "test": np.empty(0, np.int64)})


def open_set(paths: SetPaths, slurm: Slurm | None = None) -> ImageSet:
    """Open a set and compare the size of every shard with the manifest; copy the shards to this node if asked to.

    Raises UserError if the set is incomplete or a file is not as it was written.
    """
    manifest = load_record(Manifest, paths.manifest, missing="run shard first: python -m tlbatch.shard RUN")
    for shard in manifest.shards:
        path = paths.shard(shard.name)
        size = path.stat().st_size if path.exists() else None
        if size != shard.size:
            was = "missing" if size is None else f"{size} bytes, not {shard.size}"
            raise UserError(f"{path}: {was}; remove the folder {paths.folder} and submit again")
    if not paths.index_file.exists() or digest_file(paths.index_file) != manifest.index_digest:
        raise UserError(f"{paths.index_file}: missing or not as it was written; remove its folder and submit again")
    shards = tuple(paths.shard(shard.name) for shard in manifest.shards)
    return ImageSet(manifest, paths, stage_locally(shards, slurm.local_folder) if slurm else shards)


def open_images(run: Run, *, staged: bool = False) -> ImageSet:
    """Open the set of a run; ``staged``: with its shards copied to this node if the job asks for it."""
    return open_set(run.set_paths, run.job.slurm if staged else None)
