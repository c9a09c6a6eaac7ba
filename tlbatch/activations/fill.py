"""Fill the cache: the activations at the cuts of a job's phases, for every view of every image."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from tlbatch.activations.encoder import Encoder, Tap, cache_identity, tap_shape, taps_of
from tlbatch.activations.store import ActivationStore, BlockWriter, Keys, bytes_each, free_bytes, view_keys
from tlbatch.config.job import Job
from tlbatch.core.files import digest_of
from tlbatch.core.text import counted
from tlbatch.data.dataset import SampleBatch, SplitDataset
from tlbatch.data.image_set import ImageSet
from tlbatch.data.loader import load, num_workers
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.distributed.process_group import RankContext
from tlbatch.model.classifier import Classifier
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.runs.progress import rank_0_of
from tlbatch.runs.records import RunRecord
from tlbatch.runs.workspace import cache_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FillRequest:
    """Images to be cached, and in which views."""

    images: ImageSet
    rows: Positions
    """Row numbers in the index."""
    views: Views
    strict: bool
    """Whether an unreadable image stops the stage."""

    @property
    def keys(self) -> Keys:
        """Keys of all views, (images * views,)."""
        return view_keys(self.images.index["content"][self.rows], self.views.numbers)


Requests = Mapping[str, FillRequest]
"""By split."""
Stores = Mapping[Tap, Mapping[str, ActivationStore]]
"""Store of each tap and split."""


def fill_cache(record: RunRecord, images: ImageSet, model: Classifier, ranks: RankContext) -> dict[str, str]:
    """Compute the activations that the phases of a job need and the cache lacks, split among the ranks.

    Returns
    -------
    The names of the stores of each phase and split, as `tlbatch.activations.store.open_stores` reads them.
    """
    job, world = record.job, ranks.world
    model.to(ranks.accelerator.device)
    cuts = _cacheable(job, model)
    requests = _requests(record, images, model.spec.size)
    of_cut = {cut: taps_of(model, cut) for cut in sorted(set(cuts.values()))}
    stores = {tap: _stores(record, model, tap, images.manifest.reading) for taps in of_cut.values() for tap in taps}
    if world.is_main:
        for store in {store for of_tap in stores.values() for store in of_tap.values()}:
            store.remove_unfinished()
    for name, request in requests.items():
        for of_tap in stores.values():
            of_tap[name].check(request.keys, part=world.rank, parts=world.world_size)
    ranks.accelerator.wait_for_everyone()
    decided = [_within_budget(job, model, requests, of_cut, stores)]
    (kept,) = broadcast_object_list(decided)  # another node may see a different amount of free disk space
    wanted = {tap: stores[tap] for cut in kept for tap in of_cut[cut]}
    if wanted:
        encoder = Encoder(model, list(wanted), ranks.accelerator)
        for name, request in requests.items():
            opened = [replace(of_tap[name]) for of_tap in wanted.values()]  # which reads the present contents
            _fill(job, name, request, encoder, opened, ranks)
    ranks.accelerator.wait_for_everyone()
    return {
        f"phase.{number}.{name}": ",".join(stores[tap][name].folder.name for tap in of_cut[cut])
        for number, cut in cuts.items()
        if cut in kept
        for name in requests
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


def _requests(record: RunRecord, images: ImageSet, size: int) -> Requests:
    """Return the images and views of each split; no training split if the run does not train."""
    job = record.job
    views = training_views(job.train, size)
    predicted = views if job.head.view_mean else Views(size)
    training = {} if record.checkpoint_of else {"train": FillRequest(images, images.rows("train"), views, strict=True)}
    return training | {
        "val": FillRequest(images, images.rows("val"), predicted, strict=True),
        "test": FillRequest(images, images.rows("test"), predicted, strict=False),
    }


def _stores(record: RunRecord, model: Classifier, tap: Tap, reading: str) -> dict[str, ActivationStore]:
    """Return the store of each split for a tap; random crops have a store of their own."""
    job, kind = record.job, record.job.dtype
    identity = cache_identity(record, model, tap, kind) | ({"reading": reading} if reading else {})
    crops = {"crop_scale": job.train.crop_scale, "symmetries": job.train.augment} if job.train.crop_scale < 1 else {}
    predicted = crops if job.head.view_mean else {}
    return {
        name: ActivationStore(cache_folder(job, digest_of(identity | {"views": views})), kind)
        for name, views in (("train", crops), ("val", predicted), ("test", predicted))
    }


def _within_budget(
    job: Job, model: Classifier, requests: Requests, of_cut: Mapping[int, tuple[Tap, ...]], stores: Stores
) -> list[int]:
    """Return the cuts whose activations fit the budget and the disk; log what each needs."""
    kept = []
    budget = job.cache.budget_gb * 1e9
    free = free_bytes(job.workspace)
    for cut, taps in of_cut.items():
        shape = model.shape_at(cut)
        wanted = {tap: _wanted(requests, stores[tap]) for tap in taps}
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


def _wanted(requests: Requests, stores: Mapping[str, ActivationStore]) -> dict[ActivationStore, Keys]:
    """Return the distinct keys needed in each store: splits may share a store, and images their content."""
    found: dict[ActivationStore, list[Keys]] = {}
    for name, request in requests.items():
        found.setdefault(stores[name], []).append(request.keys)
    return {store: np.unique(np.concatenate(keys)) for store, keys in found.items()}


def _fill(
    job: Job, name: str, request: FillRequest, encoder: Encoder, stores: Sequence[ActivationStore], ranks: RankContext
) -> None:
    """Compute what is missing of a split, divided among the ranks."""
    world, keys, num_views = ranks.world, request.keys, len(request.views.numbers)
    lacking = [store.missing(keys).reshape(-1, num_views).any(axis=1) for store in stores]
    found = [np.flatnonzero(np.any(lacking, axis=0)) if world.is_main else None]
    (missing,) = broadcast_object_list(found)  # another run may be filling the same folder
    part = replace(request, rows=request.rows[np.array_split(missing, world.world_size)[world.rank]])
    start = time.monotonic()
    with ranks.watchdog.expected(f"cache {name}"):
        done = _fill_share(job, part, encoder, stores, ranks, where=rank_0_of(name, world))
    seconds = time.monotonic() - start
    ranks.end_if_stopped(f"after {counted(done, 'activation')}", own_s=seconds)
    if done:
        log.info("%s: %s on rank 0, %.0f views/s", name, counted(done, "view"), done / seconds)


def _fill_share(
    job: Job, part: FillRequest, encoder: Encoder, stores: Sequence[ActivationStore], ranks: RankContext, *, where: str
) -> int:
    """Compute the views of some images until asked to stop; return how many were computed."""
    done, total = 0, len(part.rows) * len(part.views.numbers)
    writers = [BlockWriter(store) for store in stores]
    ranks.reporter.update(0, total, unit="views", where=where)
    for batch, keys, symmetry in _read(job, part, ranks):
        readable = [place for place in range(len(keys)) if place not in batch.errors]
        squares = apply_symmetries(batch.inputs.to(ranks.device, non_blocking=True), symmetry)
        for writer, activations in zip(writers, encoder.encode(squares), strict=True):
            writer.add_missing(keys[readable], activations[readable])
        done += len(keys)
        ranks.reporter.update(done, total, unit="views", where=where)
        ranks.watchdog.step_done()
        if ranks.stop:
            break
    for writer in writers:
        writer.flush()
    return done


def _read(job: Job, part: FillRequest, ranks: RankContext) -> Iterator[tuple[SampleBatch, Keys, torch.Tensor]]:
    """Yield batches of images, keys and symmetries; an image is decoded once for all its symmetries."""
    views, size = part.views, job.train.batch_size
    crops = views.crop_scale < 1
    samples = Samples(len(part.rows), views if crops else Views(views.size), every_view=crops)
    dataset = SplitDataset(part.images, part.rows, samples, strict=part.strict)
    keys = part.keys.reshape(len(samples), 1 if crops else len(views.numbers))
    batches = [np.arange(first, min(first + size, len(samples))) for first in range(0, len(samples), size)]
    loaded = load(dataset, batches, workers=num_workers(job.train, ranks.world, ranks.device.type))
    for batch, own in zip(loaded, batches, strict=True):
        if crops:
            yield batch, keys[own, 0], batch.symmetry
            continue
        for column, symmetry in enumerate(views.numbers):
            yield batch, keys[own, column], torch.full((len(own),), symmetry, dtype=torch.uint8)
