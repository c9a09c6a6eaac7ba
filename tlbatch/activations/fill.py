"""Filling the cache: the activations at the cuts of a job's phases, once for every view of every image."""

import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tlbatch.activations.encoder import Encoder, Tap, cache_identity, tap_shape, taps_of
from tlbatch.activations.store import Filler, Keys, Store, bytes_each, free_bytes, view_keys
from tlbatch.config.job import Job
from tlbatch.core.files import digest_of
from tlbatch.data.dataset import Batch, ImageSet, SplitDataset, load, num_workers
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.distributed.process_group import Crew
from tlbatch.model.classifier import Classifier
from tlbatch.model.symmetries import turned
from tlbatch.runs.progress import on_rank_0
from tlbatch.runs.records import RunRecord
from tlbatch.runs.workspace import cache_folder
from tlbatch.runs.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pass:
    """Images that are to be had in some views at some cuts."""

    rows: Positions
    """Numbers in the index."""
    views: Views
    strict: bool
    """Whether an image that cannot be read stops the stage."""


def fill_cache(record: RunRecord, images: ImageSet, model: Classifier, crew: Crew) -> dict[str, str]:
    """Compute what the phases of a job need and the cache lacks, each rank its share.

    Returns
    -------
    The names of the stores of each phase and split, as `tlbatch.activations.store.open_stores` reads them.
    """
    job = record.job
    model.to(crew.accelerator.device)
    cuts = _cacheable(job, model)
    passes = _passes(record, images, model.spec.size)
    of_cut = {cut: taps_of(model, cut) for cut in sorted(set(cuts.values()))}
    stores = {tap: _stores(record, model, tap) for taps in of_cut.values() for tap in taps}
    if crew.world.is_main:
        for store in {store for of_tap in stores.values() for store in of_tap.values()}:
            store.remove_unfinished()
    _check(images, passes, stores, crew.world)
    crew.accelerator.wait_for_everyone()
    decided = [_within_budget(job, images, passes, model, of_cut, stores)]
    (kept,) = broadcast_object_list(decided)  # the disk may look different from another node
    _fill(job, images, passes, model, {tap: stores[tap] for cut in kept for tap in of_cut[cut]}, crew)
    crew.accelerator.wait_for_everyone()
    return {
        f"phase.{number}.{name}": ",".join(stores[tap][name].folder.name for tap in of_cut[cut])
        for number, cut in cuts.items()
        if cut in kept
        for name in passes
    }


def _cacheable(job: Job, model: Classifier) -> dict[int, int]:
    """The place of the cut of every phase that can be cached, by the number of the phase; why others cannot is said."""
    found: dict[int, int] = {}
    trained_from = math.inf
    for number, phase in enumerate(job.phase):
        cut = model.find(phase.cut)
        if not job.cache.enabled:
            why = "cache.enabled is false"
        elif cut == 0:
            why = "nothing is frozen"
        elif not training_views(job.train, model.spec.size).numbers:
            why = "random crops are drawn anew in every epoch; train.random_views=8 would draw 8 once"
        elif phase.mixup or phase.cutmix:
            why = "mixup and cutmix need images"
        elif cut > trained_from:
            why = "an earlier phase trains what is frozen in it"
        else:
            why = ""
            found[number] = cut
        if why:
            log.info("phase %d, cut %s: not cached (%s)", number, phase.cut, why)
        trained_from = min(trained_from, cut)
    return found


def _passes(record: RunRecord, images: ImageSet, size: int) -> dict[str, Pass]:
    """What training sees, if the run trains, and what validation and test do."""
    job = record.job
    views = training_views(job.train, size)
    judged = views if job.head.view_mean else Views(size)
    training = {} if record.checkpoint_of else {"train": Pass(images.rows("train"), views, strict=True)}
    return training | {
        "val": Pass(images.rows("val"), judged, strict=True),
        "test": Pass(images.rows("test"), judged, strict=False),
    }


def _stores(record: RunRecord, model: Classifier, tap: Tap) -> dict[str, Store]:
    """Where what a tap gives lies: symmetries of the whole square together, random crops apart."""
    job, kind = record.job, record.job.stored_as
    identity = cache_identity(record, model, tap, kind)
    crops = {"crop_scale": job.train.crop_scale, "symmetries": job.train.augment} if job.train.crop_scale < 1 else {}
    judged = crops if job.head.view_mean else {}
    return {
        name: Store(cache_folder(job, digest_of(identity | {"views": views})), kind)
        for name, views in (("train", crops), ("val", judged), ("test", judged))
    }


def _check(images: ImageSet, passes: dict[str, Pass], stores: dict[Tap, dict[str, Store]], world: World) -> None:
    """Compare what is there with its checksums, each rank its share."""
    for name, one in passes.items():
        for of_tap in stores.values():
            of_tap[name].check(_keys(images, one), part=world.rank, parts=world.world_size)


def _within_budget(
    job: Job,
    images: ImageSet,
    passes: dict[str, Pass],
    model: Classifier,
    of_cut: dict[int, tuple[Tap, ...]],
    stores: dict[Tap, dict[str, Store]],
) -> list[int]:
    """The cuts whose activations fit the budget and the disk; what each needs is said."""
    kept = []
    budget = job.cache.budget_gb * 1e9
    free = free_bytes(job.workspace)
    for cut, taps in of_cut.items():
        shape = model.shape_at(cut)
        wanted = {tap: _wanted(images, passes, stores[tap]) for tap in taps}
        num_rows = sum(len(keys) for keys in wanted[taps[0]].values())
        needed = num_rows * bytes_each(shape, job.stored_as)
        lacking = {tap: sum(store.missing(keys).sum() for store, keys in some.items()) for tap, some in wanted.items()}
        missing = sum(lack * bytes_each(tap_shape(model, tap), job.stored_as) for tap, lack in lacking.items())
        place = model.chain.places[cut].name
        log.info(
            "cut %s: %d activations of %s, %.3g GB, of which %d (%.3g GB) are to be computed",
            place, num_rows, "x".join(map(str, shape)), needed / 1e9, max(lacking.values()), missing / 1e9,
        )  # fmt: skip
        if needed > budget:
            log.warning("cut %s: more than cache.budget_gb = %g: it runs without the cache", place, job.cache.budget_gb)
        elif missing > free:
            log.warning("cut %s: only %.3g GB of the disk are free: it runs without the cache", place, free / 1e9)
        else:
            kept.append(cut)
            free -= missing
    return kept


def _wanted(images: ImageSet, passes: dict[str, Pass], stores: dict[str, Store]) -> dict[Store, Keys]:
    """What is wanted of each store, once: splits may share a store, and images their content."""
    found: dict[Store, list[Keys]] = {}
    for name, one in passes.items():
        found.setdefault(stores[name], []).append(_keys(images, one))
    return {store: np.unique(np.concatenate(keys)) for store, keys in found.items()}


def _keys(images: ImageSet, one: Pass) -> Keys:
    return view_keys(images.index["content"][one.rows], one.views.numbers)


def _fill(
    job: Job,
    images: ImageSet,
    passes: dict[str, Pass],
    model: Classifier,
    stores: dict[Tap, dict[str, Store]],
    crew: Crew,
) -> None:
    """Compute what is missing, each rank its share."""
    world = crew.world
    if not stores:
        return
    encoder = Encoder(model, list(stores), crew.accelerator)
    for name, one in passes.items():
        own = [of_tap[name].reopened() for of_tap in stores.values()]
        found = [_missing(images, one, own) if world.is_main else None]
        (missing,) = broadcast_object_list(found)  # another run may be filling the same folder
        share = np.array_split(missing, world.world_size)[world.rank]
        part = Pass(one.rows[share], one.views, strict=one.strict)
        start = time.monotonic()
        with crew.pulse.expected(f"cache {name}"):
            done = _fill_share(job, images, part, encoder, own, crew, where=on_rank_0(name, world))
        seconds = time.monotonic() - start
        crew.end_if_stopped(f"after {done} activations", own_s=seconds)
        if done:
            log.info("%s: %d views on rank 0, %.0f a second", name, done, done / seconds)


def _fill_share(
    job: Job, images: ImageSet, part: Pass, encoder: Encoder, stores: list[Store], crew: Crew, *, where: str
) -> int:
    """Compute the views of some images, until asked to stop; how many."""
    done, total = 0, len(part.rows) * len(part.views.numbers)
    fillers = [Filler(store) for store in stores]
    crew.teller.tell(0, total, unit="views", where=where)
    for batch, keys, turns in _read(job, images, part, crew.world, crew.accelerator):
        readable = [place for place in range(len(keys)) if place not in batch.errors]
        squares = turned(batch.inputs.to(crew.device, non_blocking=True), turns)
        for filler, activations in zip(fillers, encoder.encode(squares), strict=True):
            filler.add_missing(keys[readable], activations[readable])
        done += len(keys)
        crew.teller.tell(done, total, unit="views", where=where)
        crew.pulse.beat()
        if crew.stop:
            break
    for filler in fillers:
        filler.flush()
    return done


def _missing(images: ImageSet, one: Pass, stores: list[Store]) -> Positions:
    """Which of the images lack a view at a cut."""
    num_views = len(one.views.numbers)
    keys = _keys(images, one)
    lacking = [store.missing(keys).reshape(-1, num_views).any(axis=1) for store in stores]
    return np.flatnonzero(np.any(lacking, axis=0))


def _read(
    job: Job, images: ImageSet, part: Pass, world: World, accelerator: Accelerator
) -> Iterator[tuple[Batch, Keys, torch.Tensor]]:
    """Batches of images, keys of their views, and how to turn them; each image is decoded once for all turns."""
    views, size = part.views, job.train.batch_size
    crops = views.crop_scale < 1
    samples = Samples(len(part.rows), views if crops else Views(views.size), every_view=crops)
    dataset = SplitDataset(images, part.rows, samples, strict=part.strict)
    keys = _keys(images, part).reshape(len(samples), 1 if crops else len(views.numbers))
    batches = [np.arange(first, min(first + size, len(samples))) for first in range(0, len(samples), size)]
    loaded = load(dataset, batches, workers=num_workers(job.train, world, accelerator.device.type))
    for batch, own in zip(loaded, batches, strict=True):
        if crops:
            yield batch, keys[own, 0], batch.turns
            continue
        for column, turn in enumerate(views.numbers):
            yield batch, keys[own, column], torch.full((len(own),), turn, dtype=torch.uint8)
