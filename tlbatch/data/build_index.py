"""Build the index of a set: sample, split and audit its images, and locate them in the shards."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from tlbatch.config.base import Metric, SplitName
from tlbatch.config.data import Data
from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_folder, digest_file, to_csv, write_text
from tlbatch.core.text import counted
from tlbatch.data.audit import HEADER, Findings, audit_rows, check_audit
from tlbatch.data.clusters import find_clusters
from tlbatch.data.group_places import places_of_groups
from tlbatch.data.index import Index, digest_split, new_index, split_rows, write_index
from tlbatch.data.placement import place_images
from tlbatch.data.second_look import look_again
from tlbatch.data.shards.store import ShardStore, Unusable, read_spectra
from tlbatch.data.shards.upgrade import reading_of
from tlbatch.data.sources.base import Labelled, Source, coded, shown_key, tags_of
from tlbatch.data.sources.listing import check_rejected
from tlbatch.data.sources.read import read_source
from tlbatch.data.splits import draw_sample
from tlbatch.data.value_range import KnownRange, describe_traits
from tlbatch.data.wide_pixels import Trait
from tlbatch.runs.manifest import Ceiling, Manifest, Rejected, ShardFile
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import SPLITS, load_record
from tlbatch.runs.workspace import SetPaths, data_digest, groups_file, synthetic_folder

log = logging.getLogger(__name__)
_SHARE_OFF = 1 / 3
"""Relative difference of a split's share from the one asked for above which it is said."""


@dataclass(frozen=True)
class Built:
    """An index, and what it was made from."""

    index: Index
    images: list[Labelled]
    findings: Findings
    rejected: list[Rejected]
    shards: tuple[ShardFile, ...]
    counts: dict[SplitName, tuple[int, ...]]
    traits: npt.NDArray[np.uint8]
    """`Trait` of the file of each image of the index, (n,)."""


def build_index(
    data: Data, source: Source, store: ShardStore, unusable: Sequence[Unusable], *, known: dict[str, float]
) -> Built:
    """Sample, split and audit the images of a source, each of which is in the store or known to be unusable.

    Parameters
    ----------
    unusable
        Images that this run could not read.
    known
        See `places_of_groups`.

    Raises
    ------
    UserError
        When too many images are unusable, the splits do not fit the source, or a class has no training or test image.
    """
    sampled = draw_sample(source.images, data)
    place = store.find(sampled)
    images = [image for image, row in zip(sampled, place.tolist(), strict=True) if row >= 0]
    causes = store.rejected | {one.image.stamp: one.cause for one in unusable}
    lost = [image for image, row in zip(sampled, place.tolist(), strict=True) if row < 0]
    rejected = [*source.rejected, *(Rejected(key=shown_key(image.key), cause=causes[image.stamp]) for image in lost)]
    check_rejected(rejected, data)
    place = place[place >= 0]
    content, near = store.rows["content"][place], store.rows["near"][place]
    group, _ = coded(image.group for image in images)
    clusters = find_clusters(content, near, read_spectra(store)[place], group, data.phash_max_distance)
    if data.audit == "resolve":
        label, _ = coded(image.label for image in images)
        clusters = look_again(clusters, images, label, source)
    placed = place_images(images, data, clusters, known, source.spellings)
    findings = audit_rows(images, data, clusters, placed)
    numbers = findings.rows.image
    kept = numbers.tolist()
    index = _indexed([images[number] for number in kept], [placed.groups[number] for number in kept], source, data)
    index["split"] = findings.rows.split
    for column in ("offset", "size", "plain", "content"):
        index[column] = store.rows[column][place[numbers]]
    used, index["shard"] = np.unique(store.tar[place[numbers]], return_inverse=True)
    counts = {split: _counts(index[split_rows(index, split)], len(source.classes)) for split in SPLITS}
    _check_counts(source.classes, counts, tags=bool(data.tag_separator))
    shards = tuple(
        ShardFile(name=store.tars[number], num_images=int((store.tar == number).sum()), size=store.sizes[number])
        for number in used.tolist()
    )
    traits = store.traits[place[np.unique(numbers)]]
    return Built(index, images, findings, rejected, shards, counts, traits)


def _indexed(images: Sequence[Labelled], groups: Sequence[str], source: Source, data: Data) -> Index:
    """Return an index with keys, groups and labels."""
    number = {name: place for place, name in enumerate(source.classes)}
    codes, labels = coded(image.label for image in images)
    tags = [[number[tag] for tag in tags_of(label, data)] for label in labels]
    most = max(map(len, tags), default=0) if data.tag_separator else 0
    index = new_index(
        [image.key for image in images], groups, own_groups=[image.group for image in images], num_tags=most
    )
    if data.tag_separator:
        index["label"] = -1
        index["tags"] = np.array([[*some, *[-1] * (most - len(some))] for some in tags], np.int32)[codes]
    else:
        index["label"] = np.array([some[0] for some in tags], np.int32)[codes]
    return index


def _counts(index: Index, num_classes: int) -> tuple[int, ...]:
    counts = Counter(index["label"].tolist()) + Counter(index["tags"].ravel().tolist())
    return tuple(counts[number] for number in range(num_classes))


def _check_counts(classes: Sequence[str], counts: Mapping[SplitName, Sequence[int]], *, tags: bool) -> None:
    """Raise if a class, or with tags every tag, lacks an image; a tag in test images only is in no phrase."""
    for split in ("train", "test"):
        lacking = [name for name, count in zip(classes, counts[split], strict=True) if count == 0]
        if tags and len(lacking) == len(classes):
            raise UserError(f"no image in the {split} split; add some, or change data.split")
        if lacking and not tags:
            raise UserError(
                f"class {lacking[0]!r}: no image in the {split} split; add images of it, or change data.split"
            )


def refuse_other_classes(data: Data, folder: Path, source: Source) -> None:
    """Raise if the classes differ from those of shards written earlier, which hold class numbers."""
    if data.tag_separator or data.source == "tars":
        return
    for file in folder.glob("*/manifest.json"):
        classes = load_record(Manifest, file, missing="submit again").classes
        if classes != source.classes:
            raise UserError(
                f"{folder}: its shards are of the classes {', '.join(classes)}, but the source now has "
                f"{', '.join(source.classes)}; list them in data.classes, which makes another set"
            )


def write_audited_index(
    job: Job,
    source: Source,
    target: SetPaths,
    store: ShardStore,
    unusable: Sequence[Unusable],
    known_range: KnownRange,
    paths: RunPaths,
) -> None:
    """Audit the set and write the index, the audit and the manifest, in a folder that appears only when complete."""
    data = job.data
    with places_of_groups(groups_file(job)) as known:
        built = build_index(data, source, store, unusable, known=known)
        check_audit(built.findings, data, paths)
    unusual = (*_split_warnings(data, source.classes, built), *built.findings.warnings)
    for warning in unusual:
        log.warning("%s", warning)
    value_range = known_range.get() if (built.traits & Trait.NO_RANGE).any() else None
    traits = describe_traits(built.traits, value_range, given=data.value_range is not None)
    notes = (*built.findings.notes, *traits)
    for note in traits:
        log.info("%s", note)
    with atomic_folder(target.index_folder) as draft:
        written = SetPaths(target.folder, draft.name)
        write_index(written.index_file, built.index)
        write_text(written.rejected, to_csv(("image", "cause"), [(row.key, row.cause) for row in built.rejected]))
        write_text(written.audit, to_csv(HEADER, built.findings.table))
        Manifest(
            source_digest=source.digest,
            data_digest=data_digest(job),
            index_digest=digest_file(written.index_file),
            test_digest=digest_split(built.index, "test", source.classes),
            classes=source.classes,
            tags=bool(data.tag_separator),
            counts=built.counts,
            num_images={split: len(split_rows(built.index, split)) for split in SPLITS},
            shards=built.shards,
            num_rejected=len(built.rejected),
            audit=built.findings.record,
            resize=0 if data.source == "tars" else data.resize,
            steps=data.preprocess,
            columns=source.columns,
            synthetic=data.source == "synthetic",
            ceilings=_ceilings(job, built),
            notes=(*source.notes, *notes),
            warnings=unusual,
            value_range=value_range,
            reading=reading_of(built.traits, known_range),
        ).save(written.manifest)


def _split_warnings(data: Data, classes: Sequence[str], built: Built) -> tuple[str, ...]:
    """Describe splits whose share of the images is a third off the share asked for, and classes that they lack."""
    split = data.split
    wanted = {"test": 1 / split.folds if split.folds else split.test, "val": split.val}
    total = len(built.index)
    found = []
    held_out: tuple[SplitName, ...] = ("test", "val")
    word = "tag" if data.tag_separator else "class"
    for name in held_out if split.method in ("stratified", "hash") else ():
        share, aim = sum(built.index["split"] == SPLITS.index(name)) / total, wanted[name]
        if abs(share - aim) > _SHARE_OFF * aim:
            found.append(f"the {name} split has {share:.1%} of the images, not {aim:.1%}: {_why_off(built)}")
    for name in held_out:
        lacking = [one for one, count in zip(classes, built.counts[name], strict=True) if not count]
        if lacking and len(lacking) < len(classes):
            more = f" and {counted(len(lacking) - 1, 'other')}" if len(lacking) > 1 else ""
            found.append(f"the {name} split has no image of {word} {lacking[0]}{more}")
    return tuple(found)


def _why_off(built: Built) -> str:
    """Name what most likely makes the splits differ from the shares asked for."""
    audit, sizes = built.findings.record, Counter(image.group for image in built.images)
    (group, size), *_ = sizes.most_common(1) or [("", 0)]
    if audit.num_moved + audit.num_dropped:
        moved = counted(audit.num_moved, "image")
        return f"{moved} moved to the split of a duplicate, {audit.num_dropped} dropped"
    if size > 1:
        return f"groups stay whole, the largest ({group}) has {counted(size, 'image')}"
    return f"there are only {counted(len(built.images), 'image')}"


def _ceilings(job: Job, built: Built) -> tuple[Ceiling, ...]:
    """Return the best possible scores on synthetic fundus photographs: the true grades against the noisy labels."""
    if job.data.source != "synthetic" or job.data.synthetic.kind != "fundus":
        return ()
    from tlbatch.metrics.scores import score  # noqa: PLC0415 (scikit-learn takes seconds to import)

    drawn = synthetic_folder(job)
    drawn_images = read_source(job.data, drawn / "train", drawn / "truth.csv").images
    truth = {image.key: int(image.label) for image in drawn_images}
    rows = built.findings.rows
    test = [built.images[number] for number in rows.image[rows.split == SPLITS.index("test")].tolist()]
    labels, grades = [int(image.label) for image in test], [truth[image.key] for image in test]
    noise = job.data.synthetic.grader_noise
    why = f"the grade drawn, scored against labels that are one grade off with probability {noise}"
    return tuple(
        Ceiling(metric=metric, score=value, why=why)
        for metric in sorted(get_args(Metric))
        if (value := score(metric, labels, grades)) is not None
    )
