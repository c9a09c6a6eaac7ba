"""Drift of a night: comparison of its new images with those of the previous night."""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tlbatch.activations.store import StoreGroup, open_stores, view_keys
from tlbatch.core.files import to_csv, write_text
from tlbatch.core.text import counted
from tlbatch.core.typing import Floats, Ints
from tlbatch.data.image_set import open_images
from tlbatch.data.sources.base import shown_key
from tlbatch.model.heads import Pooling, is_map
from tlbatch.promotion.drift.image_statistics import COLUMNS, known_statistics
from tlbatch.promotion.drift.new_images import Growth, Some, compare_nights
from tlbatch.promotion.drift.records import Drift, Shift
from tlbatch.promotion.drift.two_sample import LabelIssues, Sample, label_issues, shift
from tlbatch.runs.records import SPLITS, Marker, load_record
from tlbatch.runs.run import Run
from tlbatch.runs.world import read_world

MOST_BEFORE = 2_000
"""Most images of the previous night to compare with, which bounds the cost for large sets."""
_CHUNK = 128
_HEADER = ("image", "split", "label", "champion_says", "probability", "probability_of_label")
_TAGS = "images have tags instead of a class"
Predict = Callable[[Sequence[bytes]], npt.NDArray[np.float32]]
"""From the bytes of images in the shards to probabilities (n, classes); NaN for unreadable images."""


def measure_drift(
    run: Run,
    *,
    before: Path | None,
    known: Path,
    predict: Predict | None,
    classes_of_predict: tuple[str, ...],
    threshold: float,
    table: Path,
) -> Drift:
    """Compare the new images of a run with the earlier ones, and their labels with the champion's predictions.

    Parameters
    ----------
    run
        The run, after its stages shard and cache.
    before
        Folder of the index of the previous night; None: there was none.
    known
        File of the image statistics, see `tlbatch.promotion.drift.image_statistics.known_statistics`.
    predict
        Prediction function of the champion; None: there is no champion.
    classes_of_predict
        Classes of its columns.
    threshold
        z above which a shift is marked.
    table
        CSV file of the labels that the champion contradicts, sorted by decreasing margin; it is always written.

    Raises
    ------
    UserError
        When the run's own set is missing or has changed.
    """
    growth = compare_nights(open_images(run), before, most=MOST_BEFORE)
    why = growth.why or ("" if len(growth.new.rows) else "no new images")
    shifts = () if why else tuple(_shifts(run, growth, known, threshold))
    review = _unreviewed(why) if why else _review(growth.new, predict, classes_of_predict)
    write_text(table, to_csv(_HEADER, review.lines))
    found = Drift(
        num_new=len(growth.new.rows),
        num_before=growth.num_before,
        num_relabelled=growth.num_relabelled,
        threshold=threshold,
        shifts=shifts,
        is_marked=any(one.is_above for one in shifts),
        unmeasured=(why,) if why else (*_unmeasured(shifts), *review.unmeasured),
    )
    return found.model_copy(update=review.counts)


def _unmeasured(shifts: Sequence[Shift]) -> Iterator[str]:
    for one in shifts:
        if one.undefined:
            yield f"{one.what}: {one.undefined}"
        if one.num_lacking:
            yield f"{one.what}: {counted(one.num_lacking, 'image')} excluded as unreadable or not cached"


def _shifts(run: Run, growth: Growth, known: Path, threshold: float) -> Iterator[Shift]:
    """Yield the shifts of classes, image statistics and network features."""
    test = partial(shift, threshold=threshold, seed=run.job.seed)
    both = growth.new, growth.before
    if any(some.images.manifest.tags for some in both):
        yield Shift(what="classes", undefined=_TAGS)
    else:
        names = tuple(dict.fromkeys(name for some in both for name in some.images.manifest.classes))
        yield test(*(_classes(some, names) for some in both), what="classes", names=names)
    workers = read_world(os.environ).num_threads
    statistics = (Sample(known_statistics(some, known=known, workers=workers), some.index["group"]) for some in both)
    yield test(*statistics, what="images", names=COLUMNS)
    stored, marker = None, run.paths.marker("cache")
    if marker.exists():
        cached = load_record(Marker, marker, missing="run cache first: python -m tlbatch.cache RUN")
        stored = open_stores(run.job, cached.outputs, phase=0, split="train")
    if stored is None:
        yield Shift(what="features", undefined="the activations of phase 0 are not cached")
    else:
        yield test(*(_features(some, stored) for some in both), what="features", names=())


def _classes(some: Some, names: Sequence[str]) -> Sample:
    own = np.array([names.index(name) for name in some.images.manifest.classes])
    values = np.zeros((len(some.rows), len(names)))
    values[np.arange(len(values)), own[some.index["label"]]] = 1
    return Sample(values, some.index["group"])


def _features(some: Some, stored: StoreGroup) -> Sample:
    """Return the cached activations of view 0, averaged over all positions; NaN for images without any.

    With random crops in training, the store of the train split holds only crops, the first one as view 0; only training
    images are then compared.
    """
    keys = view_keys(some.index["content"], (0,))
    there = np.flatnonzero(~stored.missing(keys))
    places = stored.find(keys[there])
    vectors = [_pooled(stored, places[start : start + _CHUNK]) for start in range(0, len(there), _CHUNK)]
    values = np.full((len(keys), vectors[0].shape[1] if vectors else 1), np.nan, np.float32)
    if vectors:
        values[there] = np.concatenate(vectors)
    return Sample(values, some.index["group"])


def _pooled(stored: StoreGroup, places: Ints) -> npt.NDArray[np.float32]:
    read = stored.read(places).float()
    shape = tuple(read.shape[1:])
    vectors: npt.NDArray[np.float32] = (Pooling("avg", shape)(read) if is_map(shape) else read.flatten(1)).numpy()
    return vectors


class _Review(NamedTuple):
    """Comparison of the new labels with the champion's predictions."""

    lines: list[tuple[object, ...]]
    """Lines of the table."""
    counts: dict[str, object]
    """Fields of `Drift`."""
    unmeasured: list[str]
    """Why some labels were not compared."""


def _unreviewed(why: str) -> _Review:
    return _Review([], {}, [f"labels: {why}"])


def _review(new: Some, predict: Predict | None, classes: tuple[str, ...]) -> _Review:
    own = new.images.manifest.classes
    if predict is None or new.images.manifest.tags:
        return _unreviewed(_TAGS if predict else "there is no champion to compare them with")
    numbers = np.array([classes.index(name) if name in classes else -1 for name in own], np.int64)
    labels = numbers[new.index["label"]]
    known = Some(new.images, new.rows[labels >= 0])
    labels = labels[labels >= 0]
    probabilities = _predicted(known, predict, len(classes))
    found = label_issues(labels, probabilities)
    strange, unread = len(new.rows) - len(known.rows), len(known.rows) - found.num_judged
    excluded = {"of a class that the champion does not have": strange, "could not be read": unread}
    unmeasured = [f"labels: {counted(number, 'new image')} {what}" for what, number in excluded.items() if number]
    counts: dict[str, object] = {
        "num_judged": found.num_judged,
        "num_disagreeing": len(found.places),
        "share_expected": found.expected / found.num_judged if found.num_judged else None,
        "z_disagreeing": found.z,
    }
    return _Review(list(_lines(known, found, labels, probabilities, classes)), counts, unmeasured)


def _predicted(some: Some, predict: Predict, num_classes: int) -> npt.NDArray[np.float32]:
    """Return probabilities, (n, num_classes); NaN if an image cannot be read."""
    found = [np.empty((0, num_classes), np.float32)]
    for part in some.parts(_CHUNK):
        files = list(part.files())
        probabilities = np.full((len(files), num_classes), np.nan, np.float32)
        read = [place for place, data in enumerate(files) if data is not None]
        if read:
            probabilities[read] = predict([data for data in files if data is not None])
        found.append(probabilities)
    return np.concatenate(found)


def _lines(
    some: Some, found: LabelIssues, labels: Ints, probabilities: Floats, classes: Sequence[str]
) -> Iterator[tuple[object, ...]]:
    for place in found.places.tolist():
        row, label, chosen = some.index[place], int(labels[place]), int(probabilities[place].argmax())
        values = (round(float(probabilities[place, number]), 6) for number in (chosen, label))
        yield (shown_key(row["key"].decode()), SPLITS[row["split"]], classes[label], classes[chosen], *values)
