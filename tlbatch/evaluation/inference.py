"""Inference over validation and test images, every image exactly once, in one part per rank."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import broadcast_object_list

from tlbatch.activations.batches import BatchSource
from tlbatch.activations.store import StoreGroup, open_stores, view_keys
from tlbatch.config.base import SplitName
from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.data.image_set import ImageSet
from tlbatch.data.loader import num_workers
from tlbatch.data.sampler import Positions, prediction_batches
from tlbatch.data.sources.base import shown_key
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.distributed.process_group import RankContext, join_process_group
from tlbatch.evaluation.prediction_parts import Part, Width, read_rows, write_part
from tlbatch.model.checkpoint import trained_classifier
from tlbatch.model.classifier import Classifier, predicted
from tlbatch.model.phrase_decoder import NONE, PhraseHead, unpacked
from tlbatch.runs.progress import rank_0_of
from tlbatch.runs.records import Best, Marker
from tlbatch.runs.run import Run
from tlbatch.runs.stage import require_finished
from tlbatch.runs.world import World

log = logging.getLogger(__name__)
PREDICTED: tuple[SplitName, ...] = ("val", "test")


@dataclass(frozen=True)
class InferenceContext:
    """Everything shared by the prediction of all splits."""

    job: Job
    images: ImageSet
    best: Best
    cached: Marker
    model: Classifier
    ranks: RankContext
    known: Positions
    """Rows already predicted by an earlier attempt of the stage."""


def join_and_predict(run: Run, images: ImageSet, best: Best, weights: Path, world: World) -> None:
    """Join the process group and write this rank's prediction parts."""
    paths, cached = run.paths, require_finished("cache", run)
    model = trained_classifier(run.record, len(best.classes), weights)
    header = {"run": run.name, "weights": best.digest, "index": images.manifest.index_digest}
    with join_process_group("predict", run, world) as ranks:
        found = [read_rows(paths.predictions, header, Width.of(best)) if world.is_main else None]
        (known,) = broadcast_object_list(found)
        assert known is not None
        if len(known):
            log.info("%s already predicted by an earlier attempt", counted(len(known), "image"))
        model.to(ranks.device)
        model.set_cut(run.job.phase[best.phase].cut, freeze_batch_norm=False)
        context = InferenceContext(run.job, images, best, cached, model, ranks, known)
        began = time.monotonic()
        num = _write_parts(context, paths.predictions, header)
        ranks.end_if_stopped(f"after {counted(num, 'image')} on rank {world.rank}", own_s=time.monotonic() - began)
        log.info("%s on rank 0", counted(num, "image"))


def _write_parts(context: InferenceContext, folder: Path, header: Mapping[str, str]) -> int:
    """Predict the images of this rank, writing parts periodically, until asked to stop; return how many."""
    ranks, every_s = context.ranks, 60 * context.job.slurm.snapshot_interval_min
    nothing = Width.of(context.best).no_images()
    parts, num, written = [nothing], 0, time.monotonic()
    for part in _share(context):
        parts.append(part)
        num += len(part.rows)
        if ranks.stop:
            break
        if time.monotonic() - written > every_s:
            _write(context, folder, Part.joined(parts), header)
            parts, written = parts[:1], time.monotonic()
    if len(parts) > 1 or (ranks.world.is_main and not len(context.known)):
        _write(context, folder, Part.joined(parts), header)
    return num


def _share(context: InferenceContext) -> Iterator[Part]:
    for split in PREDICTED:
        with context.ranks.watchdog.expected(f"predict {split}"):
            for rows, store in _sources(context, split):
                yield from _predict_rows(context, rows, store, where=rank_0_of(split, context.ranks.world))


def _write(context: InferenceContext, folder: Path, part: Part, header: Mapping[str, str]) -> None:
    write_part(folder, part, header)
    for row, error in part.errors.items():
        log.warning("%s: not predicted: %s", shown_key(context.images.index["key"][row].decode()), error)


def _sources(context: InferenceContext, split: SplitName) -> list[tuple[Positions, StoreGroup | None]]:
    """Split the rows into those with activations cached at the checkpoint's cut and those to read as images."""
    rows = context.images.rows(split)
    stored = open_stores(context.job, context.cached.outputs, phase=context.best.phase, split=split)
    if stored is None or context.best.views != "none":
        return [(rows, None)]
    views = _views(context).numbers
    keys = view_keys(context.images.index["content"][rows], views)
    cached = ~stored.missing(keys).reshape(len(rows), len(views)).any(axis=1)
    return [(rows[cached], stored), (rows[~cached], None)]


def _views(context: InferenceContext) -> Views:
    """Return the views of an image over which features or probabilities are averaged."""
    job, size = context.job, context.model.spec.size
    return training_views(job.train, size) if job.head.view_mean else Views(size, context.best.views)


def _predict_rows(
    context: InferenceContext, rows: Positions, stored: StoreGroup | None, *, where: str
) -> Iterator[Part]:
    job, model, ranks, world = context.job, context.model, context.ranks, context.ranks.world
    cut = prediction_batches(len(rows), batch_size=job.train.batch_size, rank=world.rank, world_size=world.world_size)
    is_new = ~np.isin(rows, context.known)
    batches = [batch[is_new[batch]] for batch in cut]  # cut before filtering: batches keep their images
    done, total = 0, sum(map(len, batches))
    if not total:
        return
    ranks.reporter.update(0, total, unit="images", where=where)
    workers = num_workers(job.train, world, ranks.device.type)
    source = BatchSource(context.images, rows, _views(context), stored, workers=workers, strict=False, head=job.head)
    samples = Samples(len(rows), Views(model.spec.size, context.best.views), every_view=True)
    each = len(samples.views.numbers)
    every = ((batch[:, None] * each + np.arange(each)).ravel() for batch in batches if len(batch))
    for batch in source.batches(samples, every):
        outputs = predicted(model, batch.inputs, batch.symmetry, ranks.accelerator).to(ranks.device)
        predicted_rows = rows[batch.positions.numpy()[::each]]
        errors = {int(predicted_rows[place // each]): why for place, why in batch.errors.items() if place % each == 0}
        done += len(predicted_rows)
        ranks.reporter.update(done, total, unit="images", where=where)
        ranks.watchdog.step_done()
        yield part_from_outputs(model, outputs, predicted_rows, errors, each=each)


def part_from_outputs(
    model: Classifier, outputs: torch.Tensor, rows: Positions, errors: Mapping[int, str], *, each: int
) -> Part:
    """Convert outputs of the head to a part; each image has ``each`` consecutive rows of outputs.

    Raises UserError if a number is not finite.
    """
    unread = np.isin(rows, list(errors))
    if isinstance(model.head, PhraseHead):
        written, log_probabilities, _ = unpacked(outputs.cpu())
        scores, phrases = log_probabilities.numpy().copy(), written.numpy().astype(np.int32)
        _check_finite(scores)
        scores[unread], phrases[unread] = np.nan, NONE
        return Part(rows, np.empty((len(rows), 0), np.float32), scores, errors, phrases)
    found, grades = (
        values.cpu().numpy().reshape(-1, each, values.shape[1]).mean(axis=1)
        for values in (model.probabilities(outputs), model.grades(outputs))
    )
    _check_finite(found)
    found[unread] = np.nan
    cut = grades[:, 0] if model.rule.has_thresholds else np.full(len(rows), np.nan, np.float32)
    return Part.of_classes(rows, found, cut, errors)


def _check_finite(values: npt.NDArray[np.float32]) -> None:
    if not np.isfinite(values).all():
        raise UserError("the predictions are not finite: training diverged; lower phase.N.optimizer.lr")
