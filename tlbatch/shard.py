"""Shard: images and labels to WebDataset tars, an index and a manifest."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from filelock import FileLock

from tlbatch.data.audit import HEADER
from tlbatch.data.decode import UnreadableImageError, to_shard
from tlbatch.data.index import digest_split, write_index
from tlbatch.data.listing import label_columns, read_source
from tlbatch.data.reading import digest_lists, read_images
from tlbatch.data.sets import Built, build_index, places_of_groups
from tlbatch.data.sources import Labelled, Source, check_rejected
from tlbatch.data.splits import draw_sample
from tlbatch.data.store import Chunk, Prepared, Store, Unusable, plan_chunks, prepare, read_store, write_chunk
from tlbatch.job.cli import once, stage_main
from tlbatch.job.config import Job
from tlbatch.job.errors import UserError
from tlbatch.job.files import DRAFT_LASTS_S, atomic_folder, digest_file, digest_of, remove_drafts, to_csv, write_text
from tlbatch.job.images import Data
from tlbatch.job.paths import (
    RunPaths,
    SetPaths,
    data_digest,
    groups_file,
    phantom_folder,
    set_folder,
)  # fmt: skip
from tlbatch.job.progress import Teller
from tlbatch.job.records import SPLITS, Audit, Ceiling, Manifest, load_record
from tlbatch.job.world import read_world

log = logging.getLogger(__name__)


def run(run_dir: Path, share: tuple[int, int] | None = None) -> None:
    """Bring the run's set up to date: shard what is new, audit, and write the index that the run will read.

    Parameters
    ----------
    share
        Number of an array task and how many there are: write only this share of the shards, and no index.
    """
    paths = RunPaths(run_dir)
    job = paths.load_submitted().job
    world = read_world(os.environ)
    folder = set_folder(job)
    folder.mkdir(parents=True, exist_ok=True)
    source = read_images(job, workers=world.num_threads)
    _refuse_other_classes(job.data, folder, source)
    job.report.check(source.classes)
    job.nightly.check(source.classes, tuple(job.report.questions))
    if job.report.subgroups and job.data.labels:
        label_columns(job.data, job.data.labels, job.report.subgroups)
    if share is not None:
        chunks = _plan(job, source, read_store(folder, only=_indexed(folder)))
        teller = Teller(paths, world, "shard", saves=share[0] == 0)
        tell = partial(teller.tell, unit="images", where=f"share {share[0] + 1} of {share[1]}")
        _write_chunks(job, source, folder, chunks[share[0] :: share[1]], tell, workers=world.num_threads)
        write_text(paths.share(share[0]), "")
        return
    inputs = {"source": source.digest, "data": data_digest(job), "splits": digest_lists(job.data)}

    def work() -> dict[str, str]:
        for place in (folder, folder.parent):  # a younger draft may be another task's
            remove_drafts(place, older_s=DRAFT_LASTS_S)
        chunks = _plan(job, source, read_store(folder))
        tell = partial(Teller(paths, world, "shard").tell, unit="images", where="new images")
        unusable = _write_chunks(job, source, folder, chunks, tell, workers=world.num_threads)
        index = SetPaths(folder, digest_of([inputs, [one.image.key for one in unusable if one.passing]])[:12])
        if index.manifest.is_file():
            log.info("using the index %s", index.index_folder)
        else:
            shutil.rmtree(index.index_folder, ignore_errors=True)
            _write_index(job, source, index, unusable, paths)
            log.info("wrote the index %s", index.index_folder)
        return {"index": index.index}

    there = not paths.marker("shard").exists() or paths.set_paths(job).manifest.exists()
    with FileLock(folder / ".lock"):
        once("shard", paths, inputs, world, work, is_there=there)


def _refuse_other_classes(data: Data, folder: Path, source: Source) -> None:
    """Tars that are written here hold numbers of classes, so these must mean the same in all of them."""
    if data.tag_separator or data.source == "tars":
        return
    for file in folder.glob("*/manifest.json"):
        classes = load_record(Manifest, file, missing="submit again").classes
        if classes != source.classes:
            raise UserError(
                f"{folder}: its shards are of the classes {', '.join(classes)}, and the source now has "
                f"{', '.join(source.classes)}; list them in data.classes, which makes another set"
            )


def _plan(job: Job, source: Source, store: Store) -> list[Chunk]:
    images = draw_sample(source.images, job.data)
    return plan_chunks(images, store, size=job.data.shard_images, in_place=job.data.source == "tars")


def _indexed(folder: Path) -> set[str]:
    """Tars that an index names: those that all array tasks know of, whenever they start."""
    manifests = [load_record(Manifest, file, missing="submit again") for file in folder.glob("*/manifest.json")]
    return {shard.name for manifest in manifests for shard in manifest.shards}


def _write_chunks(
    job: Job, source: Source, folder: Path, chunks: Sequence[Chunk], tell: Callable[[int, int], None], *, workers: int
) -> list[Unusable]:
    """Write those shards that are not there yet; the images that were left out of them."""
    unusable: list[Unusable] = []
    new = [chunk for chunk in chunks if not (folder / chunk.sidecar).exists()]
    total = sum(len(chunk.images) for chunk in chunks)
    done = total - sum(len(chunk.images) for chunk in new)
    with ThreadPoolExecutor(workers) as pool:  # the codecs release the GIL
        for chunk in new:
            images = _prepared(job.data, source, chunk.images, pool, ahead=8 * workers)
            prepared = _told(images, tell, done, total)
            done += len(chunk.images)
            labels = None if job.data.source == "tars" else _label_members(job.data, source, chunk.images)
            left_out = write_chunk(folder, chunk, prepared, labels)
            log.info("%d of %d new images", done, total)
            for one in left_out:
                log.warning("left out: %s: %s", one.image.key, one.cause)
            unusable.extend(left_out)
            check_rejected([*source.rejected, *(one.rejected for one in unusable)], job.data)
    return unusable


def _told(
    images: Iterator[Prepared | Unusable], tell: Callable[[int, int], None], done: int, total: int
) -> Iterator[Prepared | Unusable]:
    """Hand images on, and say how many there have been."""
    tell(done, total)
    for number, image in enumerate(images, start=done + 1):
        yield image
        tell(number, total)


def _label_members(data: Data, source: Source, images: Sequence[Labelled]) -> Iterator[tuple[str, bytes]]:
    """Ending and bytes; WebDataset's decoders take ``cls`` for a number and ``txt`` for text."""
    if data.tag_separator:
        return (("txt", image.label.encode()) for image in images)
    return (("cls", str(source.classes.index(image.label)).encode()) for image in images)


def _prepared(
    data: Data, source: Source, images: Sequence[Labelled], pool: ThreadPoolExecutor, *, ahead: int
) -> Iterator[Prepared | Unusable]:
    """Read, decode and hash the images in their order, few of them in memory at a time."""
    resize = 0 if data.source == "tars" else data.resize

    def work(image: Labelled) -> Prepared | Unusable:
        try:
            raw = source.read(image)
        except OSError as error:
            return Unusable(image, f"cannot be read ({error.strerror})", passing=True)
        try:
            return prepare(image, to_shard(raw, resize=resize, steps=data.steps, max_pixels=data.max_pixels))
        except UnreadableImageError as error:
            return Unusable(image, f"cannot be decoded ({error})")

    rest = iter(images)
    while some := list(islice(rest, ahead)):
        yield from pool.map(work, some)


def _write_index(job: Job, source: Source, target: SetPaths, unusable: Sequence[Unusable], paths: RunPaths) -> None:
    """Audit the set and write the index, with what the audit found and the manifest, which is complete or not there."""
    data = job.data
    with places_of_groups(groups_file(job)) as known:
        built = build_index(data, source, read_store(target.folder), unusable, known=known)
    across = sum(built.findings.record.across.values())
    listed = to_csv(HEADER, built.findings.table)
    if across and data.audit == "stop":
        write_text(paths.folder / "audit.csv", listed)
    _tell(built.findings.record, data, paths)
    with atomic_folder(target.index_folder) as draft:
        written = SetPaths(target.folder, draft.name)
        write_index(written.index_file, built.index)
        write_text(written.rejected, to_csv(("key", "cause"), [(row.key, row.cause) for row in built.rejected]))
        write_text(written.audit, listed)
        Manifest(
            source_digest=source.digest,
            data_digest=data_digest(job),
            index_digest=digest_file(written.index_file),
            test_digest=digest_split(built.index, "test", source.classes),
            classes=source.classes,
            tags=bool(data.tag_separator),
            counts=built.counts,
            num_images=built.num_images,
            shards=built.shards,
            num_rejected=len(built.rejected),
            audit=built.findings.record,
            resize=0 if data.source == "tars" else data.resize,
            steps=data.steps,
            columns=source.columns,
            synthetic=data.source == "phantom",
            ceilings=_ceilings(job, built),
        ).save(written.manifest)


def _tell(found: Audit, data: Data, paths: RunPaths) -> None:
    """Log the audit, and stop where it found what the job does not allow."""
    log.info(
        "audit: %d images have an equal one, %d a nearly equal one, %d of them with another label",
        found.num_exact, found.num_near, found.num_contradicting,
    )  # fmt: skip
    if found.num_moved or found.num_dropped:
        log.info(
            "audit: %d images moved into one split with their like, %d dropped", found.num_moved, found.num_dropped
        )
    leaks = [f"{num} images of {pair} too" for pair, num in found.across.items() if num]
    if not leaks:
        return
    if data.audit == "stop":
        raise UserError(
            f"data: the same or nearly the same images are in two splits: {', '.join(leaks)} (see "
            f"{paths.folder / 'audit.csv'}); data.audit=resolve mends it, data.audit=warn accepts it"
        )
    log.warning("audit: the same or nearly the same images are in two splits: %s", ", ".join(leaks))


def _ceilings(job: Job, built: Built) -> tuple[Ceiling, ...]:
    """What a perfect reader of synthetic fundus photographs for the test would score against the noisy labels."""
    if job.data.source != "phantom" or job.data.phantom.kind != "fundus":
        return ()
    from tlbatch.report.metrics import score  # noqa: PLC0415 (scikit-learn takes seconds to import)

    drawn = phantom_folder(job)
    truth = {
        image.key: int(image.label) for image in read_source(job.data, drawn / "train", drawn / "truth.csv").images
    }
    rows = built.findings.rows
    test = [built.images[number] for number in rows.image[rows.split == SPLITS.index("test")].tolist()]
    labels, grades = [int(image.label) for image in test], [truth[image.key] for image in test]
    noise = job.data.phantom.grader_noise
    why = f"the grade drawn, scored against labels that are one grade off with probability {noise}"
    return tuple(
        Ceiling(metric=metric, score=value, why=why)
        for metric in ("accuracy", "quadratic_kappa")
        if (value := score(metric, labels, grades, num_classes=5)) is not None
    )


if __name__ == "__main__":
    stage_main("shard", run, __doc__)
