"""Mirrored, turned and cropped copies of real photographs, and the clusters of all copies."""

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlbatch.config.data import Data
from tlbatch.data import near_copies
from tlbatch.data.near_copies import Kind, cropped_copies, find_copies, turned_copies
from tlbatch.data.near_duplicates import FREQUENCIES, WORDS, close_pairs, hashes_of, low_frequencies

NEAR = Data(images=Path("x")).phash_max_distance
Change = Callable[[Image.Image], Image.Image]


def cropped(*margins: float) -> Change:
    left, right, top, bottom = margins

    def change(image: Image.Image) -> Image.Image:
        w, h = image.size
        return image.crop((round(left * w), round(top * h), round(w - right * w), round(h - bottom * h)))

    return change


TURNS: dict[str, Change] = {
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "half": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "left": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "right": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "transposed": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    "transversed": lambda image: image.transpose(Image.Transpose.TRANSVERSE),
}
CROPS = {
    "3 %": cropped(0.03, 0.03, 0.03, 0.03),
    "7 %": cropped(0.07, 0.07, 0.07, 0.07),
    "10 %": cropped(0.1, 0.1, 0.1, 0.1),
    "left 10 %": cropped(0.1, 0, 0, 0),
    "unequal": cropped(0.02, 0.09, 0.06, 0.01),
}


def loaded(test_data: Path, folder: str, number: int) -> list[Image.Image]:
    files = sorted((test_data / folder).rglob("*.jpg"))
    return [Image.open(file).convert("RGB") for file in files[:: len(files) // number]][:number]


def encoded(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return Image.open(buffer)


def spectra_of(images: list[Image.Image]) -> np.ndarray:
    return np.stack([low_frequencies(np.asarray(image)) for image in images])


def found_by(search: Callable[..., object], images: list[Image.Image]) -> set[tuple[int, int]]:
    spectra = spectra_of(images)
    pairs = list(search(spectra.astype(np.float16), hashes_of(spectra), NEAR))
    return {tuple(sorted(both)) for some in pairs for both in zip(some.one.tolist(), some.other.tolist(), strict=True)}


def assert_copies(found: set[tuple[int, int]], images: list[Image.Image]) -> None:
    """Assert that pairs are of an image and its own copy, or of images that are copies already."""
    hashes = hashes_of(spectra_of(images))
    alike = {
        pair
        for some in close_pairs(hashes, hashes, NEAR)
        for pair in zip(some.one.tolist(), some.other.tolist(), strict=True)
    }
    assert all(other - one == 40 or tuple(sorted((one % 40, other % 40))) in alike for one, other in found)


@pytest.mark.parametrize(
    ("search", "change"),
    [*((turned_copies, TURNS[name]) for name in TURNS), *((cropped_copies, CROPS[name]) for name in CROPS)],
    ids=[*TURNS, *CROPS],
)
@pytest.mark.parametrize("folder", ["flowers17", "idrid/images"])
def test_changed_photographs_are_found_and_no_others(
    test_data: Path, folder: str, search: Callable[..., object], change: Change
) -> None:
    images = loaded(test_data, folder, 40)
    found = found_by(search, images + [encoded(change(image)) for image in images])
    assert len(found & {(number, 40 + number) for number in range(40)}) >= 38
    assert_copies(found, images)


def test_in_large_sets_crops_with_equal_margins_are_found(test_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_copies, "MOST_CROPPED", 10)
    images = loaded(test_data, "flowers17", 40)
    for change in ("3 %", "7 %", "10 %"):
        found = found_by(cropped_copies, images + [encoded(CROPS[change](image)) for image in images])
        assert len(found & {(number, 40 + number) for number in range(40)}) >= 36
        assert_copies(found, images)


def test_clusters_name_the_kind_of_copy_and_leave_out_the_eyes_of_a_patient(test_data: Path) -> None:
    one, other, third = loaded(test_data, "flowers17", 3)
    images = [
        one,
        TURNS["mirrored"](one),
        other,
        TURNS["mirrored"](other),
        third,
        CROPS["10 %"](third),
        one.resize((200, 200)),
    ]
    spectra = spectra_of(images)
    groups = np.array([0, 1, 2, 2, 3, 4, 5])
    found, num_mirrored = find_copies(hashes_of(spectra), spectra.astype(np.float16), groups, NEAR)
    assert found.cluster.tolist() == [0, 0, 2, 3, 4, 4, 0]
    assert [Kind(kind) for kind in found.kind[[1, 5, 6]].tolist()] == [Kind.TURNED, Kind.CROPPED, Kind.NEAR]
    assert (found.bits >= 0).tolist() == [True, True, False, False, True, True, True]
    assert num_mirrored == 2


def test_equal_hashes_are_one_cluster_and_no_images_are_none() -> None:
    spectra = np.zeros((300_000, FREQUENCIES, FREQUENCIES), np.float16)
    start = time.process_time()
    found, _ = find_copies(
        np.tile(np.arange(WORDS, dtype=np.uint64), (len(spectra), 1)), spectra, np.arange(len(spectra)), NEAR
    )
    assert (set(found.cluster.tolist()), set(found.bits.tolist())) == ({0}, {0})
    assert time.process_time() - start < 30
    nothing, num_mirrored = find_copies(np.empty((0, WORDS), np.uint64), spectra[:0], np.empty(0, np.int64), NEAR)
    assert [column.tolist() for column in nothing] == [[], [], []]
    assert num_mirrored == 0
