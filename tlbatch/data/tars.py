"""Shards: plain WebDataset tars with the same bytes for the same images, and the rows that find their images again."""

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import webdataset

from tlbatch.job.files import atomic_file, digest_file
from tlbatch.job.records import SPLITS, ShardFile, SplitName


@dataclass(frozen=True)
class Sample:
    """One image on its way into a shard."""

    key: str
    ending: str
    data: bytes
    label: int
    group: str
    split: SplitName


def write_shard(path: Path, samples: Sequence[Sample], classes: Sequence[str]) -> ShardFile:
    """Write one tar with members ``<key>.<ending>`` and ``<key>.cls``."""
    with atomic_file(path) as file:
        writer = webdataset.TarWriter(file, encoder=False, user="tlbatch", group="tlbatch", mode=0o444, mtime=0)
        for sample in samples:
            writer.write({"__key__": sample.key, "cls": classes[sample.label].encode(), sample.ending: sample.data})
        writer.close()
    return ShardFile(name=path.name, num_images=len(samples), size=path.stat().st_size, digest=digest_file(path))


def index_shard(path: Path, number: int, samples: Sequence[Sample]) -> list[tuple[object, ...]]:
    """Rows of the index for a shard just written, with the places that the tar's own headers name."""
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar}
    rows: list[tuple[object, ...]] = []
    for sample in samples:
        offset, size = places[f"{sample.key}.{sample.ending}"]
        content = hashlib.sha256(sample.data).hexdigest().encode()
        split = SPLITS.index(sample.split)
        rows.append((sample.key.encode(), sample.group.encode(), number, offset, size, sample.label, split, content))
    return rows
