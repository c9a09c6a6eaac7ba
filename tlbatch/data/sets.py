"""The index of a set: sampled, split, audited, and tied to the shards that hold its images."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from filelock import FileLock

from tlbatch.data.audit import Findings, audit_rows
from tlbatch.data.index import Index, new_index, split_rows
from tlbatch.data.sources import Labelled, Source, check_rejected, coded, tags_of
from tlbatch.data.splits import draw_sample, split_images
from tlbatch.data.store import Store, Unusable
from tlbatch.job.errors import UserError
from tlbatch.job.files import to_csv, write_text
from tlbatch.job.images import Data
from tlbatch.job.records import SPLITS, Rejected, ShardFile
from tlbatch.job.section import SplitName


@dataclass(frozen=True)
class Built:
    """An index, and what it was made from."""

    index: Index
    images: list[Labelled]
    findings: Findings
    rejected: list[Rejected]
    shards: tuple[ShardFile, ...]
    counts: dict[SplitName, tuple[int, ...]]

    @property
    def num_images(self) -> dict[SplitName, int]:
        """Rows of each split."""
        return {split: len(split_rows(self.index, split)) for split in SPLITS}


def build_index(
    data: Data, source: Source, store: Store, unusable: Sequence[Unusable], *, known: dict[str, float]
) -> Built:
    """Sample, split and audit the images of a source, all of which the store holds or has found unusable.

    Parameters
    ----------
    unusable
        Images that could not be read just now.
    known
        See `places_of_groups`.

    Raises
    ------
    UserError
        When too many images are unusable, the splits do not fit the source, or a class is in no training or test image.
    """
    sampled = draw_sample(source.images, data)
    place = store.find(sampled)
    images = [image for image, row in zip(sampled, place.tolist(), strict=True) if row >= 0]
    causes = store.rejected | {one.image.stamp: one.cause for one in unusable}
    lost = [image for image, row in zip(sampled, place.tolist(), strict=True) if row < 0]
    rejected = [*source.rejected, *(Rejected(key=image.key, cause=causes[image.stamp]) for image in lost)]
    check_rejected(rejected, data)
    place = place[place >= 0]
    rows = split_images(images, data, known)
    content, near = store.rows["content"][place], store.rows["near"][place]
    findings = audit_rows(images, rows, data, content=content, near=near)
    numbers = findings.rows.image
    index = _indexed([images[number] for number in numbers.tolist()], source, data)
    index["split"] = findings.rows.split
    for column in ("offset", "size", "plain", "content"):
        index[column] = store.rows[column][place[numbers]]
    used, index["shard"] = np.unique(store.tar[place[numbers]], return_inverse=True)
    counts = {split: _counts(index[split_rows(index, split)], len(source.classes)) for split in SPLITS}
    if data.tag_separator:  # a tag of test images alone is one that no phrase can be written with
        _check_sizes(index)
    else:
        _check_counts(source.classes, counts)
    shards = tuple(_shard_file(store, number, stored=int((store.tar == number).sum())) for number in used.tolist())
    return Built(index, images, findings, rejected, shards, counts)


@contextmanager
def places_of_groups(file: Path) -> Iterator[dict[str, float]]:
    """The places that groups have in the order that splits cut, to be added to; they outlive every index.

    Raises
    ------
    UserError
        When the file is damaged.
    """
    with FileLock(file.with_suffix(".lock")):
        places = _read_places(file) if file.exists() else {}
        before = len(places)
        yield places
        if len(places) > before:
            write_text(file, to_csv(("group", "place"), places.items()))


def _read_places(file: Path) -> dict[str, float]:
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return {group: float(place) for group, place in islice(csv.reader(lines, strict=True), 1, None)}
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: damaged ({error}); put it back from a copy, or remove it for new splits") from None


def _indexed(images: Sequence[Labelled], source: Source, data: Data) -> Index:
    """An index with keys, groups and labels."""
    number = {name: place for place, name in enumerate(source.classes)}
    codes, labels = coded(image.label for image in images)
    tags = [[number[tag] for tag in tags_of(label, data)] for label in labels]
    most = max(map(len, tags), default=0) if data.tag_separator else 0
    index = new_index([image.key for image in images], [image.group for image in images], num_tags=most)
    if data.tag_separator:
        index["label"] = -1
        index["tags"] = np.array([[*some, *[-1] * (most - len(some))] for some in tags], np.int32)[codes]
    else:
        index["label"] = np.array([some[0] for some in tags], np.int32)[codes]
    return index


def _counts(index: Index, num_classes: int) -> tuple[int, ...]:
    counts = Counter(index["label"].tolist()) + Counter(index["tags"].ravel().tolist())
    return tuple(counts[number] for number in range(num_classes))


def _check_counts(classes: Sequence[str], counts: Mapping[SplitName, Sequence[int]]) -> None:
    for split in ("train", "test"):
        for name, count in zip(classes, counts[split], strict=True):
            if count == 0:
                raise UserError(
                    f"class {name!r}: no image in the {split} split; add images of it, or change data.split"
                )


def _check_sizes(index: Index) -> None:
    for split in ("train", "test"):
        if not len(split_rows(index, split)):
            raise UserError(f"no image in the {split} split; add some, or change data.split")


def _shard_file(store: Store, number: int, *, stored: int) -> ShardFile:
    return ShardFile(name=store.tars[number], num_images=stored, size=store.sizes[number])
