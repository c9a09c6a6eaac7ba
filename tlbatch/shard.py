"""Shard: images and labels to WebDataset tars, an index and a manifest."""

import itertools
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from tlbatch.data.decode import UnreadableImageError, to_shard
from tlbatch.data.index import digest_split, write_index
from tlbatch.data.phantom import make
from tlbatch.data.sources import Labelled, Source, read_source
from tlbatch.data.splits import counts_by_class, split_images
from tlbatch.data.tars import Sample, index_shard, write_shard
from tlbatch.job.cli import once, stage_main
from tlbatch.job.config import Job
from tlbatch.job.errors import UserError
from tlbatch.job.files import atomic_folder, digest_file, to_csv, write_text
from tlbatch.job.paths import RunPaths, SetPaths, data_digest, phantom_folder, set_paths
from tlbatch.job.records import SPLITS, Ceiling, Manifest, Rejected, SplitName, load_record
from tlbatch.job.world import read_world
from tlbatch.report.metrics import score

log = logging.getLogger(__name__)
Item = TypeVar("Item")


def run(run_dir: Path) -> None:
    """Make the run's set, unless it is there from an earlier run of the same data."""
    paths = RunPaths(run_dir)
    job = paths.load().job
    world = read_world(os.environ)
    folder = set_paths(job)
    folder.folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.folder.with_suffix(".lock")):
        source = _read(job, workers=world.num_threads)
        inputs = {"source": source.digest, "data": data_digest(job)}
        once(
            "shard",
            paths,
            inputs,
            world,
            lambda: _make_or_reuse(job, source, folder, workers=world.num_threads),
        )


def _read(job: Job, *, workers: int) -> Source:
    data = job.data
    if data.source != "phantom":
        assert data.images is not None
        return read_source(data, data.images, data.labels)
    drawn = phantom_folder(job)
    if not drawn.exists():
        p = data.phantom
        log.info("drawing %d synthetic fundus photographs in %s", 5 * p.images_per_grade, drawn)
        drawn.parent.mkdir(parents=True, exist_ok=True)
        make(
            drawn,
            images_per_grade=p.images_per_grade,
            side=p.side,
            grader_noise=p.grader_noise,
            seed=p.seed,
            workers=workers,
        )
    return read_source(data, drawn / "train", drawn / "trainLabels.csv")


def _make_or_reuse(job: Job, source: Source, folder: SetPaths, *, workers: int) -> None:
    if folder.manifest.exists():
        manifest = load_record(Manifest, folder.manifest, missing="run shard again")
        if manifest.source_digest != source.digest:
            raise UserError(
                f"{folder.folder}: the images or labels have changed since it was made; "
                "remove it, or set another data.split.salt, and submit again"
            )
        log.info("using the set %s", folder.folder)
        return
    with atomic_folder(folder.folder) as draft:
        _write_set(job, source, SetPaths(draft), workers=workers)
    log.info("wrote the set %s", folder.folder)


def _write_set(job: Job, source: Source, draft: SetPaths, *, workers: int) -> None:
    splits = dict(zip(source.images, split_images(source.images, job.data.split), strict=True))
    rejected: list[Rejected] = []
    samples = _samples(job, source, splits, rejected, workers=workers)
    rows, shards = [], []
    for number, chunk in enumerate(_chunks(samples, job.data.shard_images)):
        path = draft.shard(f"{number:06d}.tar")
        shards.append(write_shard(path, chunk, source.classes))
        rows.extend(index_shard(path, number, chunk))
        log.info("%d of %d images in %d shards", len(rows), len(source.images), len(shards))
    index = write_index(draft.index, rows)
    labels = index["label"].tolist()
    kept: list[SplitName] = [SPLITS[code] for code in index["split"].tolist()]
    counts = counts_by_class(labels, kept, len(source.classes))
    _check_counts(source.classes, counts)
    write_text(draft.rejected, to_csv(("image", "cause"), [(row.image, row.cause) for row in rejected]))
    Manifest(
        source_digest=source.digest,
        data_digest=data_digest(job),
        index_digest=digest_file(draft.index),
        test_digest=digest_split(index, "test"),
        classes=source.classes,
        counts=counts,
        shards=tuple(shards),
        rejected=tuple(rejected),
        columns=source.columns,
        synthetic=job.data.source == "phantom",
        ceilings=_ceilings(job, source, splits),
    ).save(draft.manifest)


def _samples(
    job: Job, source: Source, splits: dict[Labelled, SplitName], rejected: list[Rejected], *, workers: int
) -> Iterator[Sample]:
    """The images in the order of the source; the unreadable ones go to ``rejected``."""

    def read(image: Labelled) -> Sample | Rejected:
        try:
            ending, data = to_shard(image.path, resize=job.data.resize)
        except UnreadableImageError as error:
            return Rejected(image=str(image.path), cause=str(error))
        return Sample(image.key, ending, data, source.classes.index(image.label), image.group, splits[image])

    with ThreadPoolExecutor(workers) as pool:  # the codecs release the GIL
        for some in _chunks(source.images, 64 * workers):
            for result in pool.map(read, some):
                if isinstance(result, Sample):
                    yield result
                    continue
                rejected.append(result)
                log.warning("%s: unreadable (%s)", result.image, result.cause)
                if len(rejected) > job.data.max_rejected:
                    raise UserError(
                        f"{result.image}: cannot be read ({result.cause}); remove it, or allow some with "
                        f"data.max_rejected={len(rejected)}"
                    )


def _chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def _check_counts(classes: tuple[str, ...], counts: dict[SplitName, tuple[int, ...]]) -> None:
    for split in ("train", "test"):
        for name, count in zip(classes, counts[split], strict=True):
            if count == 0:
                raise UserError(
                    f"class {name!r}: no image in the {split} split; add images of it, or change data.split"
                )


def _ceilings(job: Job, source: Source, splits: dict[Labelled, SplitName]) -> tuple[Ceiling, ...]:
    """What a perfect reader of synthetic test images would score against the noisy labels."""
    if job.data.source != "phantom":
        return ()
    truth_file = phantom_folder(job) / "truth.csv"
    truth = read_source(job.data, phantom_folder(job) / "train", truth_file)
    test = [
        (int(label.label), int(true.label))
        for label, true in zip(source.images, truth.images, strict=True)
        if splits[label] == "test"
    ]
    noise = job.data.phantom.grader_noise
    why = f"the grade drawn, scored against labels that are one grade off with probability {noise}"
    labels, drawn = zip(*test, strict=True)
    return tuple(
        Ceiling(metric=metric, score=value, why=why)
        for metric in ("accuracy", "quadratic_kappa")
        if (value := score(metric, labels, drawn, num_classes=5)) is not None
    )


if __name__ == "__main__":
    stage_main("shard", run, __doc__)
