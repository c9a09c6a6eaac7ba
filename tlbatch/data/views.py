"""The views of an image: square inputs of the backbone, each a pure function of the image and a number."""

from dataclasses import dataclass

import numpy as np

from tlbatch.config.training import Symmetries, Train
from tlbatch.data.decode import Rgb, decode, decode_plain, plain_size, reduction, resized
from tlbatch.data.sampler import Positions, random_words
from tlbatch.data.wide_pixels import Limits

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""
_NUMBERS: dict[Symmetries, tuple[int, ...]] = {
    "none": (0,),
    "flip": (0, 1),
    "rot4": (0, 2, 4, 6),
    "d4": tuple(range(8)),
}


@dataclass(frozen=True)
class Views:
    """How the views of an image are made, and how many there are.

    Without random crops, the number of a view is that of its symmetry (see `tlbatch.model.symmetries`), so it does not
    depend on which other views there are.
    """

    size: int
    symmetries: Symmetries = "none"
    crop_scale: float = 1.0
    random_views: int = 0

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all views; empty if random crops are drawn again in every epoch."""
        return tuple(range(self.random_views)) if self.crop_scale < 1 else _NUMBERS[self.symmetries]

    def read(
        self, data: bytes, view: int, *, content: bytes, plain: bool, value_range: Limits | None = None
    ) -> tuple[Rgb, int]:
        """Decode an image at sufficient size, crop and scale it, and return the symmetry to be applied.

        Parameters
        ----------
        data
            The bytes of an image file.
        view
            Number of the view.
        content
            Hash of the data in hexadecimal; with the view it keys all randomness.
        plain
            Whether the image is an upright RGB or grey JPEG.
        value_range
            See `tlbatch.data.decode.decode`.

        Returns
        -------
        uint8 array of shape (size, size, 3), and the number of a symmetry of the square (see
        `tlbatch.model.symmetries`), which is applied later, on the device.

        Raises
        ------
        UnreadableImageError
            When the image cannot be decoded any more.
        """
        rgb = None if plain else decode(data, value_range=value_range)
        if self.crop_scale == 1:
            return self._square(data, rgb, None), view
        key = np.array([int(content[:16], 16), view], dtype=np.uint64)
        generator = np.random.Generator(np.random.Philox(key=key))
        return self._square(data, rgb, generator), int(generator.choice(_NUMBERS[self.symmetries]))

    def _square(self, data: bytes, rgb: Rgb | None, generator: np.random.Generator | None) -> Rgb:
        width, height = plain_size(data) if rgb is None else rgb.shape[1::-1]
        box = _random_box(width, height, self.crop_scale, generator) if generator else _centre(width, height)
        if rgb is None:
            factor = reduction(min(box[2] - box[0], box[3] - box[1]), self.size)
            rgb = decode_plain(data, (width, height), factor=factor)
        return self._cropped(rgb, box, (width, height))

    def _cropped(self, rgb: Rgb, box: Box, size: tuple[int, int]) -> Rgb:
        across, down = rgb.shape[1] / size[0], rgb.shape[0] / size[1]  # the image may have been decoded smaller
        left, right = _snapped(box[0] * across, box[2] * across, rgb.shape[1])
        top, bottom = _snapped(box[1] * down, box[3] * down, rgb.shape[0])
        if (bottom - top, right - left) == (self.size, self.size):
            return rgb[top:bottom, left:right]
        return resized(rgb[top:bottom, left:right], (self.size, self.size))


def training_views(train: Train, size: int) -> Views:
    """Return the views that a job trains on."""
    return Views(size, train.augment, train.crop_scale, train.random_views)


@dataclass(frozen=True)
class Samples:
    """The samples of an epoch or a prediction: each is an image of a split in one of its views."""

    num_images: int
    views: Views
    seed: int = 0
    epoch: int = 0
    every_view: bool = False
    """Take each image in all its views, not in one drawn at random."""
    picked: Positions | None = None
    """Positions of images, (n,), possibly repeated; None: all images once."""

    def __len__(self) -> int:
        images = self.num_images if self.picked is None else len(self.picked)
        return images * len(self.views.numbers) if self.every_view else images

    def look_up(self, samples: Positions) -> tuple[Positions, Positions]:
        """Return the position of the image in its split and the number of the view, (n,) each, for some samples."""
        numbers = np.asarray(self.views.numbers, dtype=np.int64)
        if self.every_view:
            places, which = np.divmod(samples, len(numbers))
            views = numbers[which]
        else:
            places = samples
            draws = random_words(samples, seed=self.seed, epoch=self.epoch)
            views = (draws >> np.uint64(1)).astype(np.int64)  # of crops that are drawn again in every epoch
            if len(numbers):
                views = numbers[draws % np.uint64(len(numbers))]
        return (places if self.picked is None else self.picked[places]), views


def _snapped(start: float, stop: float, length: int) -> tuple[int, int]:
    first = min(max(0, round(start)), length - 1)
    return first, max(first + 1, min(length, round(stop)))


def _centre(width: int, height: int) -> Box:
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, least: float, generator: np.random.Generator) -> Box:
    """Draw a crop with a random fraction of the area and an aspect ratio of 3:4 to 4:3, as for Inception."""
    area = width * height * generator.uniform(least, 1)
    aspect = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = min(width, np.sqrt(area * aspect)), min(height, np.sqrt(area / aspect))
    left, top = generator.uniform(0, width - w), generator.uniform(0, height - h)
    return float(left), float(top), float(left + w), float(top + h)
