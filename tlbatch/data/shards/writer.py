"""Write the shards of a set, in parallel and resumably."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from tlbatch.config.data import Data
from tlbatch.config.job import Job
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.shards.encode import ShardImage, to_shard
from tlbatch.data.shards.store import Chunk, Prepared, ShardStore, Unusable, plan_chunks, prepare, write_chunk
from tlbatch.data.sources.base import Labelled, Source, shown_key
from tlbatch.data.sources.listing import check_rejected
from tlbatch.data.splits import draw_sample
from tlbatch.data.value_range import KnownRange
from tlbatch.data.wide_pixels import Limits, NoRangeError
from tlbatch.runs.manifest import Manifest, Rejected
from tlbatch.runs.records import load_record

log = logging.getLogger(__name__)


def plan_shards(job: Job, source: Source, store: ShardStore) -> list[Chunk]:
    """Assign the images that are still to be written to shards."""
    images = draw_sample(source.images, job.data)
    return plan_chunks(images, store, size=job.data.shard_images, in_place=job.data.source == "tars")


def indexed(folder: Path) -> set[str]:
    """Return the tars named by an index: the same for all array tasks, whenever they start."""
    manifests = [load_record(Manifest, file, missing="submit again") for file in folder.glob("*/manifest.json")]
    return {shard.name for manifest in manifests for shard in manifest.shards}


def write_chunks(
    job: Job, source: Source, folder: Path, chunks: Sequence[Chunk], report: Callable[[int, int], None], *, workers: int
) -> list[Unusable]:
    """Write the missing shards; return the images that were left out."""
    unusable: list[Unusable] = []
    new = [chunk for chunk in chunks if not (folder / chunk.sidecar).exists()]
    total = sum(len(chunk.images) for chunk in chunks)
    done = total - sum(len(chunk.images) for chunk in new)
    known = KnownRange(job, source, workers=workers)
    with ThreadPoolExecutor(workers) as pool:  # the codecs release the GIL
        for chunk in new:
            images = _prepared(job.data, source, chunk.images, pool, known, ahead=8 * workers)
            labels = None if job.data.source == "tars" else _label_members(job.data, source, chunk.images)
            left_out = write_chunk(folder, chunk, _with_progress(images, report, done, total), labels)
            done += len(chunk.images)
            log.info("%d of %d new images", done, total)
            for one in left_out:
                log.warning("left out: %s: %s", shown_key(one.image.key), one.cause)
            unusable.extend(left_out)
            rejected = (Rejected(key=shown_key(one.image.key), cause=one.cause) for one in unusable)
            check_rejected([*source.rejected, *rejected], job.data)
    return unusable


def _with_progress(
    images: Iterator[Prepared | Unusable], report: Callable[[int, int], None], done: int, total: int
) -> Iterator[Prepared | Unusable]:
    """Yield the images, and report progress."""
    report(done, total)
    for number, image in enumerate(images, start=done + 1):
        yield image
        report(number, total)


def _label_members(data: Data, source: Source, images: Sequence[Labelled]) -> Iterator[tuple[str, bytes]]:
    """Return extension and bytes per image; WebDataset decodes ``cls`` as a number and ``txt`` as text."""
    if data.tag_separator:
        return (("txt", image.label.encode()) for image in images)
    return (("cls", str(source.classes.index(image.label)).encode()) for image in images)


def _prepared(
    data: Data,
    source: Source,
    images: Sequence[Labelled],
    pool: ThreadPoolExecutor,
    known: KnownRange,
    *,
    ahead: int,
) -> Iterator[Prepared | Unusable]:
    """Read, decode and hash the images in order, with few in memory at a time."""
    resize = 0 if data.source == "tars" else data.resize

    def encode(raw: bytes, limits: Limits | None) -> ShardImage:
        return to_shard(raw, resize=resize, steps=data.preprocess, max_pixels=data.max_pixels, value_range=limits)

    def work(image: Labelled) -> Prepared | Unusable:
        try:
            raw = source.read(image)
        except OSError as error:
            return Unusable(image, f"cannot be read ({error.strerror})", passing=True)
        try:
            try:
                made = encode(raw, known.limits)
            except NoRangeError:
                made = encode(raw, known.get().limits)
            return prepare(image, made)
        except UnreadableImageError as error:
            return Unusable(image, f"cannot be decoded ({error})")

    rest = iter(images)
    while some := list(islice(rest, ahead)):
        yield from pool.map(work, some)
