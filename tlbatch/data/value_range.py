"""The range of values of images of more than 8 bits, one for all images of a source that do not state their own."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from threading import Lock

import numpy as np
import numpy.typing as npt
import xxhash
from filelock import FileLock

from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.core.typing import Floats
from tlbatch.data.decode import open_raw
from tlbatch.data.group_places import read_places
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.sources.base import Labelled, Source, name_of
from tlbatch.data.splits import draw_sample, split_images
from tlbatch.data.wide_pixels import Limits, Trait
from tlbatch.runs.manifest import ValueRange
from tlbatch.runs.records import SPLITS, load_record
from tlbatch.runs.workspace import groups_file, value_range_file

QUANTILES = (0.001, 0.999)
MOST_IMAGES = 1000
_EACH = 4096
"""Values taken of each image, evenly spaced, so that all images count alike."""


_TEXTS = {
    Trait.PAGES: "with several pages or frames: the largest page is read, or the first frame",
    Trait.DROPPED: "with channels beyond colour and transparency, which are not read",
    Trait.ALPHA: "with transparency, which is composed on white",
}


@dataclass(frozen=True)
class _Scanned:
    key: str
    values: Floats
    is_float: bool


class KnownRange:
    """The range of a job's images, determined when the first image needs it, and then kept for the source.

    It is ``data.value_range``, or else that of earlier runs on the same source, or else a scan of training images.
    """

    def __init__(self, job: Job, source: Source, *, workers: int) -> None:
        self._job = job
        self._source = source
        self._workers = workers
        self._lock = Lock()
        self._found: ValueRange | None = None

    @property
    def limits(self) -> Limits | None:
        """The range, if an image has needed it."""
        return None if self._found is None else self._found.limits

    def get(self) -> ValueRange:
        """Return the range; UserError if the training images do not determine it."""
        with self._lock:
            if self._found is None:
                self._found = self._determine()
        return self._found

    def _determine(self) -> ValueRange:
        given = self._job.data.value_range
        if given is not None:
            return ValueRange(low=given[0], high=given[1], num_images=0)
        file = value_range_file(self._job)
        with FileLock(file.with_suffix(".lock")):
            if not file.exists():
                scan_range(self._source, self._training(), workers=self._workers).save(file)
            return load_record(ValueRange, file, missing="submit again")

    def _training(self) -> list[Labelled]:
        """Return the images of the training split, as it is before the audit."""
        data = self._job.data
        images = draw_sample(self._source.images, data)
        file = groups_file(self._job)
        known = read_places(file) if file.exists() else {}
        rows = split_images(images, data, known, self._source.spellings)
        chosen = np.unique(rows.image[rows.split == SPLITS.index("train")])
        found = [images[number] for number in chosen.tolist()]
        return sorted(found, key=lambda image: xxhash.xxh3_64_intdigest(image.key.encode()))


def describe_traits(
    traits: npt.NDArray[np.uint8], value_range: ValueRange | None, *, given: bool = False
) -> tuple[str, ...]:
    """Say how many images were read otherwise than as plain RGB of 8 bits, and how.

    Parameters
    ----------
    traits
        `Trait` of the file of each image, (n,).
    value_range
        That of the images that state none.
    given
        Whether the job sets ``data.value_range``.
    """

    def number_with(trait: Trait) -> str:
        num = int((traits & trait != 0).sum())
        return counted(num, "image") if num else ""

    notes = []
    stated = (traits & Trait.WIDE != 0) & (traits & Trait.NO_RANGE == 0)
    if stated.any():
        instead = ", which is used in place of data.value_range" if given else ""
        notes.append(
            f"{counted(int(stated.sum()), 'image')} of more than 8 bits: their files state the range of values{instead}"
        )
    if value_range is not None:
        low, high = value_range.limits
        others = int((traits & Trait.WIDE == 0).sum())
        plain = f"; the other {counted(others, 'image')} have 8 bits and are read as they are" if others else ""
        notes.append(
            f"{number_with(Trait.NO_RANGE)} of more than 8 bits: the values {low:g} to {high:g} become "
            f"black and white ({_whence(value_range)}){plain}"
        )
    for trait, text in _TEXTS.items():
        if number := number_with(trait):
            notes.append(f"{number} {text}")
    return tuple(notes)


def _whence(found: ValueRange) -> str:
    if not found.num_images:
        return "data.value_range"
    low, high = (f"{100 * share:g} %" for share in QUANTILES)
    images = counted(found.num_images, "training image")
    return f"the {low} and {high} quantiles of {images}; set data.value_range to change it"


def scan_range(source: Source, training: Sequence[Labelled], *, workers: int) -> ValueRange:
    """Determine the range from up to `MOST_IMAGES` training images that state none: `QUANTILES` of their values.

    Raises UserError if there are no such images, they are of one value, or integers are mixed with floats.
    """
    scanned = list(islice(_scanned(source, training, workers), MOST_IMAGES))
    if not scanned:
        raise UserError(
            "data.value_range: images of more than 8 bits do not state the range of their values, and none of them is "
            "in the training split; set data.value_range=[LOW, HIGH]"
        )
    floats, whole = ([one for one in scanned if one.is_float == kind] for kind in (True, False))
    if floats and whole:
        raise UserError(
            f"data.value_range: {name_of(whole[0].key)} has integers and {name_of(floats[0].key)} floating-point "
            "numbers, which one range does not fit; convert one kind, or set data.value_range=[LOW, HIGH]"
        )
    values = np.concatenate([one.values for one in scanned])
    low, high = np.quantile(values, QUANTILES).tolist()
    if not low < high:
        raise UserError(
            f"data.value_range: {100 * (QUANTILES[1] - QUANTILES[0]):g} % of the values of the training images are "
            f"{low:g}, so their range is not clear; set data.value_range=[LOW, HIGH]"
        )
    return ValueRange(low=low, high=high, num_images=len(scanned))


def _scanned(source: Source, training: Iterable[Labelled], workers: int) -> Iterator[_Scanned]:
    """Yield values of each image that needs a range; those that cannot be read are rejected elsewhere."""

    def work(image: Labelled) -> _Scanned | None:
        try:
            samples, traits = open_raw(source.read(image))
        except (OSError, UnreadableImageError):
            return None
        if samples is None or not traits & Trait.NO_RANGE:
            return None
        flat = samples.values.reshape(-1).astype(np.float64)
        flat = flat[np.isfinite(flat)]
        return _Scanned(image.key, flat[:: max(1, flat.size // _EACH)], bool(traits & Trait.FLOAT))

    rest = iter(training)
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(rest, 8 * workers)):
            yield from (one for one in pool.map(work, some) if one is not None and one.values.size)
