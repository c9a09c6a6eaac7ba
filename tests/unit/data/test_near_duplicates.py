import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageFilter

from tlbatch.config.data import Data
from tlbatch.core.typing import Ints
from tlbatch.data.near_duplicates import NO_COPY, WORDS, Hashes, close_pairs, hashes_of, low_frequencies, merged

NEAR = Data(images=Path("x")).phash_max_distance


def near_hash(rgb: np.ndarray) -> Hashes:
    return hashes_of(low_frequencies(rgb))


def near_clusters(hashes: Hashes, max_bits: int) -> tuple[Ints, Ints]:
    """Return the smallest row of each cluster, and the distance to the nearest other row, -1 where there is none."""
    bits = np.full(len(hashes), NO_COPY)
    found = list(close_pairs(hashes, hashes, max_bits))
    for pairs in found:
        assert (pairs.one < pairs.other).all()
        for rows in (pairs.one, pairs.other):
            np.minimum.at(bits, rows, pairs.bits)
    label = merged(np.arange(len(hashes)), found)
    _, first, of = np.unique(label, return_index=True, return_inverse=True)
    return first[of], np.where(bits == NO_COPY, -1, bits)


def distance(one: Image.Image, other: Image.Image) -> int:
    return int(np.bitwise_count(near_hash(np.asarray(one)) ^ near_hash(np.asarray(other))).sum())


def again(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded again": lambda image: again(image, 50),
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1.5)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("folder", ["flowers17", "idrid/images", "dogs_vs_cats"])
def test_copies_of_real_photographs_are_near(test_data: Path, folder: str, change: str) -> None:
    files = sorted((test_data / folder).rglob("*.jpg"))
    images = [Image.open(file).convert("RGB") for file in files[:: len(files) // 40]]
    found = np.array([distance(image, CHANGES[change](image)) for image in images])
    assert (found <= NEAR).mean() > 0.95


def test_different_fundus_photographs_are_not_near_and_the_known_copies_are(test_data: Path) -> None:
    files = sorted((test_data / "idrid" / "images").iterdir())
    hashes = np.stack([near_hash(np.asarray(Image.open(file).convert("RGB"))) for file in files])
    cluster, bits = near_clusters(hashes, NEAR)
    copies = {
        (files[int(cluster[row])].stem, files[row].stem) for row in np.flatnonzero(cluster != np.arange(len(files)))
    }
    assert {(one[-3:], other[-3:]) for one, other in copies} == {
        ("021", "391"), ("028", "327"), ("045", "333"), ("073", "375"), ("079", "279"),
    }  # fmt: skip
    assert sorted(bits.tolist()) == [-1] * 403 + [0] * 10


def test_flat_images_are_all_alike() -> None:
    hashes = np.stack([near_hash(np.full((40, 60, 3), level, np.uint8)) for level in (0, 7, 255)])
    assert near_clusters(hashes, NEAR)[0].tolist() == [0, 0, 0]


def by_force(hashes: np.ndarray, max_bits: int) -> tuple[list[int], list[int]]:
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2, dtype=np.int64)
    cluster = list(range(len(hashes)))
    for one, other in np.argwhere(apart <= max_bits):
        low, high = sorted((cluster[one], cluster[other]))
        cluster = [low if each == high else each for each in cluster]
    np.fill_diagonal(apart, 999)
    nearest = apart.min(axis=1) if len(hashes) > 1 else np.array([999])
    return cluster, [int(bits) if bits <= max_bits else -1 for bits in nearest]


@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 4), st.integers(0, 32))
def test_the_clusters_are_those_of_comparing_all_with_all(seed: int, n: int, num_origins: int, max_bits: int) -> None:
    draw = np.random.default_rng(seed)
    origins = draw.integers(0, 2**63, (num_origins, WORDS), dtype=np.uint64)
    hashes = origins[draw.integers(0, num_origins, n)]
    for row in hashes:
        for bit in draw.integers(0, 64 * WORDS, draw.integers(0, 30)).tolist():
            row[bit // 64] ^= np.uint64(1) << np.uint64(bit % 64)
    cluster, bits = near_clusters(hashes, max_bits)
    assert (cluster.tolist(), bits.tolist()) == by_force(hashes, max_bits)


def test_no_images_have_no_pairs() -> None:
    nothing = np.empty((0, WORDS), np.uint64)
    assert not any(len(pairs.one) for pairs in close_pairs(nothing, nothing, 8))


@pytest.mark.chain
def test_many_hashes_that_share_most_bits_take_seconds() -> None:
    start = time.process_time()
    draw = np.random.default_rng(0)
    alike = np.zeros((4_000, WORDS), np.uint64)
    alike[:, 1:] = draw.integers(0, 2**63, (4_000, WORDS - 1), dtype=np.uint64)
    cluster, _ = near_clusters(alike, NEAR)
    assert (cluster == np.arange(len(alike))).all()
    assert time.process_time() - start < 30
