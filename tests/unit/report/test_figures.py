"""Every picture has the expected size with something on it, and is the same for the same values."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tlbatch.report.figures import draw_activations, draw_filters, thumbnail
from tlbatch.report.page import Picture

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 255, (40, 40, 3), dtype=np.uint8)


def activations() -> Picture:
    values = np.arange(100 * 16, dtype=np.float32).reshape(100, 4, 4)
    return draw_activations(PHOTO, {"a": values, "<odd>": np.zeros((100, 4, 4)), "end": np.eye(2)[None]})


def only_the_image() -> Picture:
    return draw_activations(PHOTO, {})


def filters() -> Picture:
    return draw_filters(np.linspace(0, 1, 200 * 27).reshape(200, 3, 3, 3))


def one_filter() -> Picture:
    return draw_filters(PHOTO[None, :5, :5] / 255)


def pixels(image: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(int)


def colours(image: bytes) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.unique(pixels(image).reshape(-1, 3), axis=0).tolist()}


@pytest.mark.parametrize(("draw", "size", "says"), [
    (activations, (1446, 964), "the image; a (64 of 100 channels, 4 x 4); <odd> (64 of 100 channels, 4 x 4); end (1 "),
    (only_the_image, (482, 482), "the image"), (filters, (698, 698), "144 of 200 filters, 3 x 3"),
    (one_filter, (60, 60), "1 of 1 filters, 5 x 5"),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_a_picture_is_a_png_of_its_size_and_the_same_bytes_again(
    draw: Callable[[], Picture], size: tuple[int, int], says: str
) -> None:
    drawn = draw()
    with Image.open(io.BytesIO(drawn.image)) as image:
        assert (image.format, image.size, image.info) == ("PNG", size, {})
    assert len(colours(drawn.image)) > 20
    assert says in drawn.caption
    assert draw() == drawn


def test_the_heat_of_a_thumbnail_lies_over_the_hot_corner() -> None:
    cam = np.zeros((4, 4), np.float32)
    cam[0, 3] = 1
    drawn = pixels(thumbnail(np.full((200, 200, 3), 120, np.uint8), cam))
    assert drawn.shape == (200, 200, 3)
    hot = np.argwhere(drawn[..., 0] - drawn[..., 2] > 60)  # red less blue
    assert hot[:, 0].max() < 100, "in the upper half"
    assert hot[:, 1].min() > 100, "at the right"
    plain = pixels(thumbnail(np.full((900, 600, 3), 120, np.uint8)))
    assert plain.shape == (224, 149, 3)
    assert (plain == 120).all(), "without a heat map the picture stands alone"


def test_of_many_channels_those_that_vary_are_shown() -> None:
    values = np.zeros((200, 2, 2), np.float32)
    values[150, 0, 0] = 1
    drawn = draw_activations(PHOTO // 255, {"end": values})
    assert (253, 231, 37) in colours(drawn.image), "the brightest of viridis"
    assert (68, 1, 84) in colours(drawn.image), "the darkest"
