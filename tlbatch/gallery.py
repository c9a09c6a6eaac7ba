"""The figures of a report: what the network sees, how it learned, where it errs."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tlbatch.data.index import Index
from tlbatch.data.loader import ImageSet, SplitDataset, load
from tlbatch.data.order import Positions
from tlbatch.data.sources import name_of
from tlbatch.data.views import Samples, Views
from tlbatch.job.paths import RunPaths
from tlbatch.job.records import Best, RunRecord
from tlbatch.job.world import World
from tlbatch.model import insight
from tlbatch.model.checkpoint import trained_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.model.ranks import keep_freed_memory
from tlbatch.report import figures
from tlbatch.report.page import Mistake

log = logging.getLogger(__name__)
_MOST_MISTAKES = 12
_MOST_POINTS = 500
_BATCH = 32
_THUMBNAIL = 224


@dataclass(frozen=True)
class Tested:
    """The test images that could be read, with what was predicted for them."""

    rows: Index
    places: Positions
    """Their rows in the whole index, (n,)."""
    probabilities: npt.NDArray[np.float32]
    """(n, num_classes)."""


def draw_report(
    record: RunRecord, paths: RunPaths, images: ImageSet, best: Best, checkpoint: Path, tested: Tested, world: World
) -> list[Mistake]:
    """Draw the figures of the test images into the report folder; learning curves wherever there were epochs.

    Returns
    -------
    The wrong predictions that were surest of themselves, the worst first.
    """
    folder, classes, metric = paths.report / "figures", best.classes, record.job.metric
    lines = [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]
    epochs = [line for line in lines if "epoch" in line]
    if epochs:
        figures.draw_curves(folder / "curves.png", epochs, metric)
    strategy = paths.load_strategy()
    if strategy is not None:
        figures.draw_strategy(folder / "strategy.png", strategy)
    torch.set_num_threads(world.num_threads)
    keep_freed_memory()
    model = trained_classifier(record, len(classes), checkpoint).eval()
    if not model.by_hand:
        figures.draw_filters(folder / "filters.png", insight.first_filters(model))
    if not len(tested.rows):
        return []
    _draw_images(model, images, tested, folder, seed=record.job.seed)
    return mistakes(images, tested, size=model.spec.size, model=model)


def _draw_images(model: Classifier, images: ImageSet, tested: Tested, folder: Path, *, seed: int) -> None:
    classes, rows, places = images.manifest.classes, tested.rows, tested.places
    chosen, truth = tested.probabilities.argmax(axis=1), rows["label"].astype(np.int64)
    matrix = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(matrix, (truth, chosen), 1)
    figures.draw_confusion(folder / "confusion.png", matrix.tolist(), classes)
    if not model.by_hand:
        first = _read(images, places[:1], model.spec.size)
        maps = insight.activation_maps(model, first[0], insight.telling_places(model))
        figures.draw_activations(folder / "activations.png", first[0].numpy(), maps)
    some = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_MOST_POINTS])
    parts = [
        insight.features(model, _read(images, places[some[start : start + _BATCH]], model.spec.size))
        for start in range(0, len(some), _BATCH)
    ]
    points = insight.flat_map(np.concatenate(parts), seed)
    figures.draw_feature_map(folder / "features.png", points, truth[some], classes)


def mistakes(images: ImageSet, tested: Tested, *, size: int, model: Classifier | None = None) -> list[Mistake]:
    """The 12 wrong predictions that were surest of themselves, each with the evidence for it if there is a model."""
    rows, probabilities, classes = tested.rows, tested.probabilities, images.manifest.classes
    every, chosen = np.arange(len(rows)), probabilities.argmax(axis=1)
    margin = probabilities[every, chosen] - probabilities[every, rows["label"]]
    worst = np.argsort(-margin, kind="stable")[: min(_MOST_MISTAKES, int((chosen != rows["label"]).sum()))]
    seen, cams = _read(images, tested.places[worst], size), None
    if model is not None and len(worst):
        cams = insight.grad_cam(model, seen, torch.from_numpy(chosen[worst]))
    return [
        Mistake(
            key=name_of(rows["key"][at].decode()),
            truth=classes[rows["label"][at]],
            taken_for=classes[chosen[at]],
            probability=float(probabilities[at, chosen[at]]),
            image=figures.thumbnail(seen[number].numpy()),
            heat=None if cams is None else figures.thumbnail(seen[number].numpy(), cams[number]),
        )
        for number, at in enumerate(worst)
    ]


def shown_images(images: ImageSet, keys: Sequence[str]) -> list[bytes]:
    """Thumbnails of the images with some keys."""
    row_of = dict(zip(images.index["key"].tolist(), range(len(images.index)), strict=True))
    rows = np.array([row_of[key.encode()] for key in keys], np.int64)
    return [figures.thumbnail(image.numpy()) for image in _read(images, rows, _THUMBNAIL)]


def _read(images: ImageSet, rows: Positions, size: int) -> torch.Tensor:
    """uint8, (n, size, size, 3), of some rows of the index; black where an image can no longer be read."""
    dataset = SplitDataset(images, rows, Samples(len(rows), Views(size)), strict=False)
    if not len(rows):
        return torch.empty((0, size, size, 3), dtype=torch.uint8)
    (batch,) = load(dataset, [np.arange(len(rows))], workers=0)
    return batch.inputs
