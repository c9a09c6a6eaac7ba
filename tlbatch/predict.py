"""Predict: the chosen checkpoint over validation and test, every image exactly once, one part a rank."""

import logging
import os
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from tlbatch.data.loader import ImageSet, load_for_prediction, open_set
from tlbatch.job.cli import once, stage_main
from tlbatch.job.config import Job, SplitName
from tlbatch.job.paths import RunPaths
from tlbatch.job.records import Best, RunRecord
from tlbatch.job.world import World, read_world
from tlbatch.model.checkpoint import load_best, load_classifier
from tlbatch.model.classifier import Classifier, build_classifier, probabilities
from tlbatch.model.ranks import joined_ranks
from tlbatch.report.parts import Part, clear_parts, write_part

log = logging.getLogger(__name__)
PREDICTED: tuple[SplitName, ...] = ("val", "test")


def run(run_dir: Path) -> None:
    """Predict with the run's checkpoint, unless that is done."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    best, weights = load_best(paths)
    images = open_set(paths.set_paths(record.job), record.job.slurm)
    inputs = {"weights": best.digest, "set": images.manifest.index_digest}
    once("predict", paths, inputs, world, lambda: _join_and_predict(record, images, best, weights, paths, world))


def _join_and_predict(
    record: RunRecord, images: ImageSet, best: Best, weights: Path, paths: RunPaths, world: World
) -> None:
    job = record.job
    model = build_classifier(job.model, len(best.classes), seed=job.seed, pretrained=False)
    load_classifier(model, weights)
    precision = job.train.mixed_precision
    with joined_ranks(world, job.slurm, paths.rendezvous, stage="predict", mixed_precision=precision) as accelerator:
        if world.is_main:
            clear_parts(paths.predictions)
        accelerator.wait_for_everyone()
        model.to(accelerator.device)
        parts = [_predict_split(job, images, split, model, accelerator, world) for split in PREDICTED]
        header = {"run": record.run, "weights": best.digest, "index": images.manifest.index_digest}
        write_part(paths.predictions, Part.joined(parts), header, rank=world.rank, world_size=world.world_size)
        accelerator.wait_for_everyone()
    log.info("%d images on rank 0", sum(len(part.rows) for part in parts))
    for part in parts:
        for row, error in zip(part.rows[part.errors != ""], part.errors[part.errors != ""], strict=True):
            log.warning("%s: not predicted: %s", images.index["key"][row].decode(), error)


def _predict_split(
    job: Job, images: ImageSet, split: SplitName, model: Classifier, accelerator: Accelerator, world: World
) -> Part:
    """Predict the share of this rank in one split; the images are named by their row in the whole index."""
    in_index = images.rows(split)
    device, size = accelerator.device.type, model.spec.size
    parts = [Part.empty(len(images.manifest.classes))]
    for batch in load_for_prediction(images, split, job.train, world, size=size, device=device, strict=False):
        errors = np.array([batch.errors.get(place, "") for place in range(len(batch.positions))], dtype=np.str_)
        found = probabilities(model, batch.images, accelerator).numpy()
        found[errors != ""] = np.nan
        parts.append(Part(in_index[batch.positions.numpy()], found, errors))
    return Part.joined(parts)


if __name__ == "__main__":
    stage_main("predict", run, __doc__)
