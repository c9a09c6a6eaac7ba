"""The named pre-processing steps: finding the disc above all."""

import io
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from tlbatch.config.data import StepName
from tlbatch.data.decode import Rgb
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.preprocess import apply_steps, clahe, fundus_crop, local_average
from tlbatch.data.synthetic.fundus import draw

DISC = (400, 600, 200.0, 300.0, 180.0)


def painted(
    height: int, width: int, row: float, column: float, radius: float, *, level: float = 150, rim: float = 0.6
) -> np.ndarray:
    """An orange disc on black that darkens towards its rim, as floats."""
    rows, columns = np.mgrid[:height, :width] + 0.5
    away = np.hypot(rows - row, columns - column)
    grey = level * (1 - (1 - rim) * (away / radius) ** 2) * (radius + 0.5 - away).clip(0, 1)
    return grey[..., None] * np.array([1, 0.55, 0.25])


def noisy(image: np.ndarray, sigma: float = 0.0, background: float = 0.0, seed: int = 0) -> Rgb:
    noise = np.random.default_rng(seed).normal(background, sigma, image.shape)
    return (image + noise).round().clip(0, 255).astype(np.uint8)


def as_jpeg(rgb: Rgb, quality: int = 75) -> Rgb:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def measured(square: Rgb) -> float:
    """The diameter as a share of the side, as Graham measures it: in the middle rows, above a tenth of the mean."""
    middle = len(square) // 2
    sums = square[middle - 2 : middle + 3].sum(axis=2, dtype=int)
    return float((sums > sums.mean(axis=1, keepdims=True) / 10).sum(axis=1).mean() / len(square))


def middle_of(square: Rgb) -> tuple[float, float]:
    """Where the bright part's middle lies, as a share of the side."""
    bright = square.max(axis=2) > square.max() / 4
    return tuple(float(np.flatnonzero(bright.any(axis)).mean() + 0.5) / len(square) for axis in (1, 0))


def local_contrast(channel: np.ndarray) -> float:
    """The mean standard deviation within tiles of 16 x 16 pixels."""
    height, width = channel.shape
    return float(channel.reshape(height // 16, 16, width // 16, 16).std(axis=(1, 3)).mean())


@settings(max_examples=120, deadline=None)
@given(
    frame=st.tuples(st.integers(250, 700), st.integers(250, 900)),
    share=st.floats(0.25, 0.98),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    level=st.floats(30, 255),
    rim=st.floats(0.4, 1),
    sigma=st.floats(0, 2),
    seed=st.integers(0, 99),
)
def test_a_whole_disc_is_found_wherever_it_lies(
    frame: tuple[int, int], share: float, place: tuple[float, float], level: float, rim: float, sigma: float, seed: int
) -> None:
    radius = share * min(frame) / 2
    row, column = (radius + at * (side - 2 * radius) for at, side in zip(place, frame, strict=True))
    square = fundus_crop(noisy(painted(*frame, row, column, radius, level=level, rim=rim), sigma, seed=seed))
    assert square.shape == (len(square), len(square), 3)
    assert len(square) == pytest.approx(2 * radius, rel=0.02, abs=3)
    assert middle_of(square) == pytest.approx((0.5, 0.5), abs=0.02)


@settings(max_examples=80, deadline=None)
@given(
    frame=st.tuples(st.integers(250, 500), st.integers(600, 900)),
    cut=st.floats(1.02, 1.4),
    at=st.tuples(st.floats(0.45, 0.55), st.floats(0, 1)),
    level=st.floats(30, 255),
    sigma=st.floats(0, 2),
    turned=st.integers(0, 1),
)
def test_a_disc_cut_on_two_sides_keeps_its_diameter(
    frame: tuple[int, int], cut: float, at: tuple[float, float], level: float, sigma: float, turned: int
) -> None:
    radius = min(cut * frame[0], frame[1] - 2) / 2
    row, column = at[0] * frame[0], radius + at[1] * (frame[1] - 2 * radius)
    image = noisy(painted(*frame, row, column, radius, level=level), sigma)
    square = fundus_crop(np.rot90(image, turned).copy())
    assert len(square) == pytest.approx(2 * radius, rel=0.02)
    padding = np.rot90(square, -turned)
    assert not padding[0].any() or not padding[-1].any()


@pytest.mark.parametrize("share", [0.52, 0.6, 0.66])
def test_a_disc_cut_on_all_sides_keeps_its_diameter(share: float) -> None:
    square = fundus_crop(noisy(painted(400, 400, 200, 200, share * 400), sigma=1))
    assert len(square) == pytest.approx(2 * share * 400, rel=0.02)


@pytest.mark.parametrize("quality", [20, 75, 95])
def test_noise_of_a_jpeg_in_the_black_does_no_harm(quality: int) -> None:
    square = fundus_crop(as_jpeg(noisy(painted(*DISC, level=60), sigma=3, background=8), quality))
    assert len(square) == pytest.approx(360, rel=0.02)


def test_text_in_the_margin_and_a_notch_do_no_harm() -> None:
    image = Image.fromarray(noisy(painted(*DISC, level=60)))
    pen = ImageDraw.Draw(image)
    pen.text((5, 5), "Patient 12345  OD  2015-03-02", fill="white", font_size=24)
    pen.rectangle((470, 180, 500, 215), fill=(60, 30, 15))
    square = fundus_crop(np.asarray(image))
    assert len(square) == pytest.approx(360, rel=0.02)


def test_a_disc_in_shadow_on_one_side_keeps_its_diameter() -> None:
    shade = np.linspace(0.12, 1, 600)[None, :, None]
    assert len(fundus_crop(noisy(painted(*DISC) * shade))) == pytest.approx(360, rel=0.03)


def test_what_is_cropped_already_stays_as_it_is() -> None:
    once = fundus_crop(noisy(painted(*DISC)))
    assert len(fundus_crop(once)) == pytest.approx(len(once), abs=2)


def test_the_radius_does_not_depend_on_the_resolution() -> None:
    sides = [len(fundus_crop(noisy(painted(*(int(by * x) for x in DISC))))) / by for by in (0.25, 1, 3)]
    assert sides == pytest.approx([360] * 3, rel=0.02)


def test_a_photograph_without_margin_gives_its_middle_square() -> None:
    image = np.random.default_rng(0).integers(60, 200, (300, 500, 3), dtype=np.uint8)
    assert np.array_equal(fundus_crop(image), image[:, 100:400])


def test_a_bright_rectangle_gives_its_middle_square() -> None:
    image = np.zeros((400, 600, 3), np.uint8)
    image[100:300] = 120
    assert fundus_crop(image).shape == (200, 200, 3)


@pytest.mark.parametrize("radius", [2, 10, 18])
def test_a_spot_is_no_disc(radius: float) -> None:
    with pytest.raises(UnreadableImageError, match="no fundus disc found"):
        fundus_crop(noisy(painted(400, 600, 200, 300, radius)))


@pytest.mark.parametrize("level", [0, 5, 120, 255])
@pytest.mark.parametrize("side", [1, 3, 400])
def test_where_nothing_is_brighter_than_the_background_there_is_no_disc(level: int, side: int) -> None:
    with pytest.raises(UnreadableImageError, match="no fundus disc found"):
        fundus_crop(np.full((side, 2 * side, 3), level, np.uint8))


def test_noise_alone_is_no_disc() -> None:
    with pytest.raises(UnreadableImageError, match="no fundus disc found"):
        fundus_crop(as_jpeg(noisy(np.zeros((400, 600, 3)), sigma=4)))


@settings(max_examples=100, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 999), top=st.integers(0, 255))
def test_any_image_gives_a_square_or_the_error(height: int, width: int, seed: int, top: int) -> None:
    image = np.random.default_rng(seed).integers(0, top + 1, (height, width, 3), dtype=np.uint8)
    try:
        square = fundus_crop(image)
    except UnreadableImageError:
        return
    assert square.dtype == np.uint8
    assert square.shape == (len(square), len(square), 3)
    assert 1 <= len(square) <= 1.05 * np.hypot(height, width) + 1


def test_real_photographs_are_cut_to_their_disc(test_data: Path) -> None:
    squares = [fundus_crop(np.asarray(Image.open(path))) for path in sorted((test_data / "idrid/images").glob("*.jpg"))]
    assert len(squares) == 413
    assert [index for index, square in enumerate(squares) if abs(measured(square) - 1) > 0.03] == []
    sides = np.array([len(square) for square in squares])
    assert np.all(abs(sides / np.median(sides) - 1) < 0.03)  # one camera took them all


def test_drawn_photographs_are_cut_to_their_disc() -> None:
    for patient in range(1, 13):
        assert measured(fundus_crop(draw(0, patient, "left", grade=patient % 5, side=384))) == pytest.approx(
            1, abs=0.03
        )


@pytest.mark.parametrize("level", [0, 90, 255])
@pytest.mark.parametrize("shape", [(64, 64, 3), (50, 90, 3), (9, 8, 3)])
def test_a_flat_image_becomes_grey_by_the_local_average(level: int, shape: tuple[int, ...]) -> None:
    assert np.array_equal(local_average(np.full(shape, level, np.uint8)), np.full(shape, 128))


def test_the_local_average_takes_away_exposure_and_keeps_detail() -> None:
    image = np.full((200, 200, 3), 60, np.uint8)
    image[:, 100:] = 160
    image[50, 40] += 20
    even = local_average(image).astype(int)
    assert abs(even[100, 40] - 128).max() <= 1
    assert abs(even[100, 160] - 128).max() <= 1
    assert (even[50, 40] > 128 + 60).all()


def test_the_local_average_is_grey_outside_of_nine_tenths_of_the_radius() -> None:
    image = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    even = local_average(image)
    rows, columns = np.mgrid[:200, :300]
    away = np.hypot(rows - 99.5, columns - 149.5)
    assert (even[away > 90] == 128).all()
    assert (even[away < 90] != 128).mean() > 0.9


def test_clahe_raises_the_local_contrast_and_keeps_the_colour() -> None:
    image = draw(0, 1, "left", grade=2, side=256)
    equal = clahe(image)
    assert (equal.shape, equal.dtype) == (image.shape, image.dtype)
    before, after = (local_contrast(rgb[48:208, 48:208, 1]) for rgb in (image, equal))
    assert after > 1.3 * before
    red, green, blue = equal[48:208, 48:208].mean(axis=(0, 1))
    assert red > green > blue


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 9, 3), (3, 7, 3), (15, 17, 3), (90, 80, 3)])
def test_any_image_goes_through_clahe_and_the_local_average_without_a_warning(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for step in (clahe, local_average):
        assert (step(image).shape, step(image).dtype) == (shape, np.uint8)


@pytest.mark.parametrize("level", [0, 90, 255])
def test_a_flat_image_stays_flat_under_clahe(level: int) -> None:
    flat = np.full((64, 80, 3), level, np.uint8)
    assert abs(clahe(flat).astype(int) - flat).max() <= 1


def test_steps_run_in_the_order_given_and_repeat_exactly() -> None:
    image = as_jpeg(noisy(painted(*DISC), sigma=5))
    done = apply_steps(image, ["fundus_crop", "clahe", "local_average"])
    assert np.array_equal(done, local_average(clahe(fundus_crop(image))))
    assert np.array_equal(done, apply_steps(image, ["fundus_crop", "clahe", "local_average"]))
    assert not np.array_equal(done, apply_steps(image, ["fundus_crop", "local_average", "clahe"]))
    assert apply_steps(image, []) is image


@pytest.mark.parametrize("step", get_args(StepName))
def test_each_step_scales_to_the_size_asked_for_and_leaves_its_input_alone(step: StepName) -> None:
    image = noisy(painted(*DISC))
    image.flags.writeable = False
    assert min(apply_steps(image, [step], size=100).shape[:2]) == 100
    assert apply_steps(image, [step]).shape[0] in {400, len(fundus_crop(image))}


def test_the_steps_after_the_crop_see_the_scaled_disc() -> None:
    image = noisy(painted(*DISC))
    small = apply_steps(image, ["fundus_crop"], size=100)
    assert small.shape == (100, 100, 3)
    assert np.array_equal(apply_steps(image, ["fundus_crop", "clahe"], size=100), clahe(small))


def test_a_missing_disc_is_told_by_apply_steps_too() -> None:
    with pytest.raises(UnreadableImageError, match="no fundus disc found"):
        apply_steps(np.zeros((100, 100, 3), np.uint8), ["fundus_crop", "clahe"])
