"""What a report shows of a network and its test images: pictures, a map of the features, and errors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tlbatch.core.files import atomic_file
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import ImageSet
from tlbatch.data.index import Index
from tlbatch.data.loader import load
from tlbatch.data.sampler import Positions
from tlbatch.data.sources.base import shown_key
from tlbatch.data.views import Samples, Views
from tlbatch.distributed.process_group import keep_freed_memory
from tlbatch.evaluation.phrases import Phrases
from tlbatch.evaluation.predictions import Predictions
from tlbatch.model import interpret
from tlbatch.model.checkpoint import trained_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.report import figures
from tlbatch.report.page import Drawn, Mistake, Picture
from tlbatch.report.plots import FeatureMap
from tlbatch.runs.records import Best
from tlbatch.runs.run import Run
from tlbatch.runs.world import World

_MOST_MISTAKES = 12
_MOST_POINTS = 500
_BATCH = 32
_THUMBNAIL = 224


@dataclass(frozen=True)
class Tested:
    """The readable test images with their predictions."""

    rows: Index
    places: Positions
    """Their rows in the index of the set, (n,)."""
    found: Predictions | Phrases
    """Predictions for the n images."""


def draw_report(run: Run, images: ImageSet, best: Best, checkpoint: Path, tested: Tested, world: World) -> Drawn:
    """Draw what the page shows of the network and the test images; pictures go into the report folder, too."""
    torch.set_num_threads(world.num_threads)
    keep_freed_memory()
    model = trained_classifier(run.record, len(best.classes), checkpoint).eval()
    pictures = [] if model.by_hand else list(_pictures(model, images, tested))
    for picture in pictures:
        with atomic_file(run.paths.report / "figures" / f"{picture.name}.png") as file:
            file.write(picture.image)
    if not len(tested.rows):
        return Drawn(pictures=pictures)
    wrong = mistakes(images, tested, size=model.spec.size, model=model)
    return Drawn(wrong, pictures, _feature_map(model, images, tested, seed=run.job.seed))


def _pictures(model: Classifier, images: ImageSet, tested: Tested) -> Iterator[Picture]:
    if len(tested.rows):
        (first,) = _read(images, tested.places[:1], model.spec.size)
        maps = interpret.activation_maps(model, first, interpret.telling_places(model))
        yield figures.draw_activations(first.numpy(), maps)
    filters = interpret.first_filters(model)
    if len(filters):
        yield figures.draw_filters(filters)


def _feature_map(model: Classifier, images: ImageSet, tested: Tested, *, seed: int) -> FeatureMap | None:
    """Embed the features of at most 500 test images in the plane; None for phrases, which have no classes."""
    if isinstance(tested.found, Phrases):
        return None
    some = np.sort(np.random.default_rng(seed).permutation(len(tested.rows))[:_MOST_POINTS])
    parts = [
        interpret.features(model, _read(images, tested.places[some[start : start + _BATCH]], model.spec.size))
        for start in range(0, len(some), _BATCH)
    ]
    points = interpret.flat_map(np.concatenate(parts), seed)
    return FeatureMap(points.tolist(), tested.rows["label"][some].tolist(), images.manifest.classes)


def mistakes(images: ImageSet, tested: Tested, *, size: int, model: Classifier | None = None) -> list[Mistake]:
    """Return the 12 most confident errors, with Grad-CAM overlays if a classification model is given."""
    worst, labels, chosen = _worst_phrases(tested.found) if isinstance(tested.found, Phrases) else _worst(tested.found)
    pixels, cams = _read(images, tested.places[worst], size), None
    if model is not None and chosen is not None and len(worst):
        cams = interpret.grad_cam(model, pixels, torch.from_numpy(chosen))
    return [
        Mistake(
            key=shown_key(tested.rows["key"][at].decode()),
            truth=truth,
            predicted=predicted,
            probability=probability,
            image=figures.thumbnail(pixels[number].numpy()),
            heat=None if cams is None else figures.thumbnail(pixels[number].numpy(), cams[number]),
        )
        for number, (at, (truth, predicted, probability)) in enumerate(zip(worst, labels, strict=True))
    ]


_Labels = list[tuple[str, str, float]]
"""True class or phrase of each image, predicted one, and its probability."""


def _worst(found: Predictions) -> tuple[Positions, _Labels, Positions | None]:
    """Return the positions of the images, their description, and their predicted classes."""
    every, chosen = np.arange(len(found.keys)), found.probabilities.argmax(axis=1)
    margin = found.probabilities[every, chosen] - found.probabilities[every, found.labels]
    worst = np.argsort(-margin, kind="stable")[: min(_MOST_MISTAKES, int((chosen != found.labels).sum()))]
    labels = [
        (found.classes[found.labels[at]], found.classes[chosen[at]], float(found.probabilities[at, chosen[at]]))
        for at in worst
    ]
    return worst, labels, chosen[worst]


def _worst_phrases(found: Phrases) -> tuple[Positions, _Labels, Positions | None]:
    order = np.argsort(-found.log_probabilities, kind="stable")
    worst = order[~found.is_right[order]][:_MOST_MISTAKES]
    sure = np.exp(found.log_probabilities[worst].astype(np.float64)).tolist()
    return worst, list(zip(found.labels[worst], found.written[worst], sure, strict=True)), None


def shown_images(images: ImageSet, keys: Sequence[str]) -> list[bytes]:
    """Return thumbnails of the images with the given keys."""
    row_of = dict(zip(images.index["key"].tolist(), range(len(images.index)), strict=True))
    rows = np.array([row_of[key.encode()] for key in keys], np.int64)
    return [figures.thumbnail(image.numpy()) for image in _read(images, rows, _THUMBNAIL)]


def _read(images: ImageSet, rows: Positions, size: int) -> torch.Tensor:
    """Read some rows of the index as uint8, (n, size, size, 3); unreadable images are black."""
    dataset = SplitDataset(images, rows, Samples(len(rows), Views(size)), strict=False)
    if not len(rows):
        return torch.empty((0, size, size, 3), dtype=torch.uint8)
    (batch,) = load(dataset, [np.arange(len(rows))], workers=0)
    return batch.inputs
