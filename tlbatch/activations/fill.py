"""Fill the cache: the activations at the cuts of a job's phases, for every view of every image."""

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
from tlbatch.activations.store import ActivationStore, BlockWriter, Keys, bytes_each, free_bytes, view_keys
from tlbatch.config.job import Job
from tlbatch.core.files import digest_of
from tlbatch.core.text import counted
from tlbatch.data.dataset import ImageSet, SampleBatch, SplitDataset, load, num_workers
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.distributed.process_group import RankContext
from tlbatch.model.classifier import Classifier
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.runs.progress import rank_0_of
from tlbatch.runs.records import RunRecord
from tlbatch.runs.workspace import cache_folder
from tlbatch.runs.world import World

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FillRequest:
    """Images to be cached, and in which views."""

    rows: Positions
    """Row numbers in the index."""
    views: Views
    strict: bool
    """Whether an unreadable image stops the stage."""


def fill_cache(record: RunRecord, images: ImageSet, model: Classifier, ranks: RankContext) -> dict[str, str]:
    """Compute the activations that the phases of a job need and the cache lacks, split among the ranks.

    Returns
    -------
    The names of the stores of each phase and split, as `tlbatch.activations.store.open_stores` reads them.
    """
    job = record.job
    model.to(ranks.accelerator.device)
    cuts = _cacheable(job, model)
    passes = _passes(record, images, model.spec.size)
    of_cut = {cut: taps_of(model, cut) for cut in sorted(set(cuts.values()))}
    stores = {tap: _stores(record, model, tap) for taps in of_cut.values() for tap in taps}
    if ranks.world.is_main:
        for store in {store for of_tap in stores.values() for store in of_tap.values()}:
            store.remove_unfinished()
    _check(images, passes, stores, ranks.world)
    ranks.accelerator.wait_for_everyone()
    decided = [_within_budget(job, images, passes, model, of_cut, stores)]
    (kept,) = broadcast_object_list(decided)  # another node may see a different amount of free disk space
    _fill(job, images, passes, model, {tap: stores[tap] for cut in kept for tap in of_cut[cut]}, ranks)
    ranks.accelerator.wait_for_everyone()
    return {
        f"phase.{number}.{name}": ",".join(stores[tap][name].folder.name for tap in of_cut[cut])
        for number, cut in cuts.items()
        if cut in kept
        for name in passes
    }


def _cacheable(job: Job, model: Classifier) -> dict[int, int]:
    """Return the cuts that can be cached, by the number of the phase; log why the others cannot be."""
    found: dict[int, int] = {}
    trained_from = math.inf
    for number, phase in enumerate(job.phase):
        cut = model.find(phase.cut)
        if not job.cache.enabled:
            why = "cache.enabled is false"
        elif cut == 0:
            why = "nothing is frozen"
        elif not training_views(job.train, model.spec.size).numbers:
            why = "random crops are drawn again in every epoch; train.random_views=8 draws 8 once"
        elif phase.mixup or phase.cutmix:
            why = "mixup and cutmix need images"
        elif cut > trained_from:
            why = "an earlier phase trains layers that are frozen here"
        else:
            why = ""
            found[number] = cut
        if why:
            log.info("phase %d, cut %s: not cached (%s)", number, phase.cut, why)
        trained_from = min(trained_from, cut)
    return found


def _passes(record: RunRecord, images: ImageSet, size: int) -> dict[str, FillRequest]:
    """Return the images and views of each split; no training split if the run does not train."""
    job = record.job
    views = training_views(job.train, size)
    judged = views if job.head.view_mean else Views(size)
    training = {} if record.checkpoint_of else {"train": FillRequest(images.rows("train"), views, strict=True)}
    return training | {
        "val": FillRequest(images.rows("val"), judged, strict=True),
        "test": FillRequest(images.rows("test"), judged, strict=False),
    }


def _stores(record: RunRecord, model: Classifier, tap: Tap) -> dict[str, ActivationStore]:
    """Return the store of each split for a tap; random crops have a store of their own."""
    job, kind = record.job, record.job.dtype
    identity = cache_identity(record, model, tap, kind)
    crops = {"crop_scale": job.train.crop_scale, "symmetries": job.train.augment} if job.train.crop_scale < 1 else {}
    judged = crops if job.head.view_mean else {}
    return {
        name: ActivationStore(cache_folder(job, digest_of(identity | {"views": views})), kind)
        for name, views in (("train", crops), ("val", judged), ("test", judged))
    }


def _check(
    images: ImageSet, passes: dict[str, FillRequest], stores: dict[Tap, dict[str, ActivationStore]], world: World
) -> None:
    """Verify the checksums of what is cached, split among the ranks."""
    for name, one in passes.items():
        for of_tap in stores.values():
            of_tap[name].check(_keys(images, one), part=world.rank, parts=world.world_size)


def _within_budget(
    job: Job,
    images: ImageSet,
    passes: dict[str, FillRequest],
    model: Classifier,
    of_cut: dict[int, tuple[Tap, ...]],
    stores: dict[Tap, dict[str, ActivationStore]],
) -> list[int]:
    """Return the cuts whose activations fit the budget and the disk; log what each needs."""
    kept = []
    budget = job.cache.budget_gb * 1e9
    free = free_bytes(job.workspace)
    for cut, taps in of_cut.items():
        shape = model.shape_at(cut)
        wanted = {tap: _wanted(images, passes, stores[tap]) for tap in taps}
        num_rows = sum(len(keys) for keys in wanted[taps[0]].values())
        needed = num_rows * bytes_each(shape, job.dtype)
        lacking = {tap: sum(store.missing(keys).sum() for store, keys in some.items()) for tap, some in wanted.items()}
        missing = sum(lack * bytes_each(tap_shape(model, tap), job.dtype) for tap, lack in lacking.items())
        place = model.chain.places[cut].name
        log.info(
            "cut %s: %d activations of %s, %.3g GB, of which %d (%.3g GB) are to be computed",
            place, num_rows, "x".join(map(str, shape)), needed / 1e9, max(lacking.values()), missing / 1e9,
        )  # fmt: skip
        if needed > budget:
            log.warning(
                "cut %s: exceeds cache.budget_gb = %g, so it runs without the cache", place, job.cache.budget_gb
            )
        elif missing > free:
            log.warning("cut %s: only %.3g GB of disk are free, so it runs without the cache", place, free / 1e9)
        else:
            kept.append(cut)
            free -= missing
    return kept


def _wanted(
    images: ImageSet, passes: dict[str, FillRequest], stores: dict[str, ActivationStore]
) -> dict[ActivationStore, Keys]:
    """Return the distinct keys needed in each store: splits may share a store, and images their content."""
    found: dict[ActivationStore, list[Keys]] = {}
    for name, one in passes.items():
        found.setdefault(stores[name], []).append(_keys(images, one))
    return {store: np.unique(np.concatenate(keys)) for store, keys in found.items()}


def _keys(images: ImageSet, one: FillRequest) -> Keys:
    return view_keys(images.index["content"][one.rows], one.views.numbers)


def _fill(
    job: Job,
    images: ImageSet,
    passes: dict[str, FillRequest],
    model: Classifier,
    stores: dict[Tap, dict[str, ActivationStore]],
    ranks: RankContext,
) -> None:
    """Compute what is missing, split among the ranks."""
    world = ranks.world
    if not stores:
        return
    encoder = Encoder(model, list(stores), ranks.accelerator)
    for name, one in passes.items():
        own = [of_tap[name].reopened() for of_tap in stores.values()]
        found = [_missing(images, one, own) if world.is_main else None]
        (missing,) = broadcast_object_list(found)  # another run may be filling the same folder
        share = np.array_split(missing, world.world_size)[world.rank]
        part = FillRequest(one.rows[share], one.views, strict=one.strict)
        start = time.monotonic()
        with ranks.watchdog.expected(f"cache {name}"):
            done = _fill_share(job, images, part, encoder, own, ranks, where=rank_0_of(name, world))
        seconds = time.monotonic() - start
        ranks.end_if_stopped(f"after {counted(done, 'activation')}", own_s=seconds)
        if done:
            log.info("%s: %s on rank 0, %.0f views/s", name, counted(done, "view"), done / seconds)


def _fill_share(
    job: Job,
    images: ImageSet,
    part: FillRequest,
    encoder: Encoder,
    stores: list[ActivationStore],
    ranks: RankContext,
    *,
    where: str,
) -> int:
    """Compute the views of some images until asked to stop; return how many were computed."""
    done, total = 0, len(part.rows) * len(part.views.numbers)
    fillers = [BlockWriter(store) for store in stores]
    ranks.reporter.update(0, total, unit="views", where=where)
    for batch, keys, symmetry in _read(job, images, part, ranks.world, ranks.accelerator):
        readable = [place for place in range(len(keys)) if place not in batch.errors]
        squares = apply_symmetries(batch.inputs.to(ranks.device, non_blocking=True), symmetry)
        for filler, activations in zip(fillers, encoder.encode(squares), strict=True):
            filler.add_missing(keys[readable], activations[readable])
        done += len(keys)
        ranks.reporter.update(done, total, unit="views", where=where)
        ranks.watchdog.step_done()
        if ranks.stop:
            break
    for filler in fillers:
        filler.flush()
    return done


def _missing(images: ImageSet, one: FillRequest, stores: list[ActivationStore]) -> Positions:
    """Return the positions of the images with a missing view."""
    num_views = len(one.views.numbers)
    keys = _keys(images, one)
    lacking = [store.missing(keys).reshape(-1, num_views).any(axis=1) for store in stores]
    return np.flatnonzero(np.any(lacking, axis=0))


def _read(
    job: Job, images: ImageSet, part: FillRequest, world: World, accelerator: Accelerator
) -> Iterator[tuple[SampleBatch, Keys, torch.Tensor]]:
    """Yield batches of images, keys and symmetries; an image is decoded once for all its symmetries."""
    views, size = part.views, job.train.batch_size
    crops = views.crop_scale < 1
    samples = Samples(len(part.rows), views if crops else Views(views.size), every_view=crops)
    dataset = SplitDataset(images, part.rows, samples, strict=part.strict)
    keys = _keys(images, part).reshape(len(samples), 1 if crops else len(views.numbers))
    batches = [np.arange(first, min(first + size, len(samples))) for first in range(0, len(samples), size)]
    loaded = load(dataset, batches, workers=num_workers(job.train, world, accelerator.device.type))
    for batch, own in zip(loaded, batches, strict=True):
        if crops:
            yield batch, keys[own, 0], batch.symmetry
            continue
        for column, turn in enumerate(views.numbers):
            yield batch, keys[own, column], torch.full((len(own),), turn, dtype=torch.uint8)
