"""Predict: the chosen checkpoint over validation and test, every image exactly once, one part a rank."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from tlbatch.data.activations import Stored, open_stores, view_keys
from tlbatch.data.feed import Feed
from tlbatch.data.loader import ImageSet, num_workers, open_set
from tlbatch.data.order import Positions, prediction_batches
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.job.cli import finished, once, stage_main
from tlbatch.job.errors import UserError
from tlbatch.job.paths import RunPaths
from tlbatch.job.progress import Teller, on_rank_0
from tlbatch.job.records import Best, Marker, RunRecord, job_digest
from tlbatch.job.section import SplitName
from tlbatch.job.world import World, read_world
from tlbatch.model.checkpoint import load_best, trained_classifier
from tlbatch.model.classifier import Classifier, predicted
from tlbatch.model.ranks import joined_ranks
from tlbatch.report.parts import Part, clear_parts, write_part

log = logging.getLogger(__name__)
PREDICTED: tuple[SplitName, ...] = ("val", "test")


def run(run_dir: Path) -> None:
    """Predict with the run's checkpoint, unless that is done."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    finished("train", paths, record)
    best, weights = load_best(paths)
    images = open_set(paths.set_paths(record.job), record.job.slurm)
    inputs = {"job": job_digest(record), "weights": best.digest, "set": images.manifest.index_digest}
    there = any(paths.predictions.glob("part-*.npz"))
    once(
        "predict",
        paths,
        inputs,
        world,
        lambda: _join_and_predict(record, images, best, weights, paths, world),
        is_there=there,
    )


@dataclass(frozen=True)
class Session:
    """What the prediction of all splits shares."""

    record: RunRecord
    images: ImageSet
    best: Best
    cached: Marker
    model: Classifier
    accelerator: Accelerator
    world: World
    teller: Teller


def _join_and_predict(
    record: RunRecord, images: ImageSet, best: Best, weights: Path, paths: RunPaths, world: World
) -> None:
    job = record.job
    cached = finished("cache", paths, record)
    model = trained_classifier(record, len(best.classes), weights)
    precision = job.train.mixed_precision
    with joined_ranks(world, job.slurm, paths.rendezvous, stage="predict", mixed_precision=precision) as accelerator:
        if world.is_main:
            clear_parts(paths.predictions)
        accelerator.wait_for_everyone()
        model.to(accelerator.device)
        model.set_cut(job.phase[best.phase].cut, freeze_batch_norm=False)
        teller = Teller(paths, world, "predict")
        session = Session(record, images, best, cached, model, accelerator, world, teller)
        parts = [_predict_split(session, split) for split in PREDICTED]
        header = {"run": record.run, "weights": best.digest, "index": images.manifest.index_digest}
        write_part(paths.predictions, Part.joined(parts), header, rank=world.rank, world_size=world.world_size)
        accelerator.wait_for_everyone()
    log.info("%d images on rank 0", sum(len(part.rows) for part in parts))
    for part in parts:
        for row, error in part.errors.items():
            log.warning("%s: not predicted: %s", images.index["key"][row].decode(), error)


def _predict_split(session: Session, split: SplitName) -> Part:
    """Predict the share of this rank in one split; the images are named by their row in the whole index."""
    parts = [Part.empty(len(session.images.manifest.classes))]
    for rows, store in _sources(session, split):
        parts.extend(_predict_rows(session, rows, store, where=on_rank_0(split, session.world)))
    return Part.joined(parts)


def _sources(session: Session, split: SplitName) -> list[tuple[Positions, Stored | None]]:
    """Rows whose activations are cached at the cut that the checkpoint was trained with, and rows that are images."""
    rows = session.images.rows(split)
    stored = open_stores(session.record.job, session.cached.outputs, phase=session.best.phase, split=split)
    if stored is None or session.best.views != "none":
        return [(rows, None)]
    views = _views(session).numbers
    keys = view_keys(session.images.index["content"][rows], views)
    cached = ~stored.missing(keys).reshape(len(rows), len(views)).any(axis=1)
    return [(rows[cached], stored), (rows[~cached], None)]


def _views(session: Session) -> Views:
    """Those of an image whose vectors, or whose probabilities, are averaged."""
    job, size = session.record.job, session.model.spec.size
    return training_views(job.train, size) if job.head.view_mean else Views(size, session.best.views)


def _predict_rows(session: Session, rows: Positions, stored: Stored | None, *, where: str) -> Iterator[Part]:
    job, model, world = session.record.job, session.model, session.world
    workers = num_workers(job.train, world, session.accelerator.device.type)
    feed = Feed(session.images, rows, _views(session), stored, workers=workers, strict=False, head=job.head)
    samples = Samples(len(rows), Views(model.spec.size, session.best.views), every_view=True)
    each = len(samples.views.numbers)
    batches = list(
        prediction_batches(len(rows), batch_size=job.train.batch_size, rank=world.rank, world_size=world.world_size)
    )
    done, total = 0, sum(map(len, batches))
    every = ((batch[:, None] * each + np.arange(each)).ravel() for batch in batches)
    for batch in feed.batches(samples, every):
        outputs = predicted(model, batch.inputs, batch.turns, session.accelerator).to(session.accelerator.device)
        found, grades = (
            values.cpu().numpy().reshape(-1, each, values.shape[1]).mean(axis=1)
            for values in (model.probabilities(outputs), model.grades(outputs))
        )
        if not np.isfinite(found).all():
            raise UserError("the predictions are not finite: training diverged; lower phase.N.optimizer.lr")
        seen = rows[batch.positions.numpy()[::each]]
        errors = {int(seen[place // each]): why for place, why in batch.errors.items() if place % each == 0}
        found[np.isin(seen, list(errors))] = np.nan
        done += len(seen)
        session.teller.tell(done, total, unit="images", where=where)
        yield Part(
            seen, found, grades[:, 0] if model.rule.has_thresholds else np.full_like(found[:, 0], np.nan), errors
        )


if __name__ == "__main__":
    stage_main("predict", run, __doc__)
