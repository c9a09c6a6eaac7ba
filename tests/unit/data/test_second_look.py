"""Whether near duplicates with different labels are equal at full size."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tlbatch.data.clusters import Clusters
from tlbatch.data.second_look import MOST_DIFFERENT, difference, look_again
from tlbatch.data.sources.base import Labelled, Source


def encoded(image: Image.Image, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"))


def film(*marks: tuple[int, int], radius: int = 4, ink: int = 130) -> Image.Image:
    image = Image.new("RGB", (256, 256), (100, 100, 100))
    for x, y in marks:
        ImageDraw.Draw(image).ellipse([x - radius, y - radius, x + radius, y + radius], fill=(ink, ink, ink))
    return image


@pytest.mark.parametrize("folder", ["flowers17", "idrid/images"])
def test_copies_that_were_encoded_anew_or_scaled_are_equal(test_data: Path, folder: str) -> None:
    files = sorted((test_data / folder).rglob("*.jpg"))
    for file in files[:: len(files) // 20]:
        image = Image.open(file).convert("RGB")
        small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC)
        for copy in (encoded(image, 85), encoded(image, 60), encoded(small, 90)):
            assert difference(np.asarray(image), copy) <= MOST_DIFFERENT


def test_a_small_mark_a_colour_and_another_shape_are_a_difference() -> None:
    plain = np.asarray(film())
    assert difference(encoded(film((90, 120), radius=3), 90), plain) > MOST_DIFFERENT
    assert difference(plain, np.asarray(film((90, 120), ink=60))) > MOST_DIFFERENT
    reddish = plain + np.array([30, 0, 0], np.uint8)
    assert difference(plain, reddish) == pytest.approx(30, abs=0.1)
    assert difference(plain, plain[:, :240]) == float("inf")


def test_images_that_are_equal_are_found_beside_others_of_their_cluster(tmp_path: Path) -> None:
    spot, other = film((60, 60)), film((180, 180))
    pictures = [spot, encoded(spot, 90), spot, other, encoded(other, 90), encoded(spot, 90), spot, spot]
    labels = np.array([0, 1, 0, 1, 0, 0, 0, 0])
    near = np.array([0, 0, 2, 2, 2, 2, 6, 6])
    images = []
    for number, picture in enumerate(pictures):
        file = tmp_path / f"{number}.png"
        Image.fromarray(np.asarray(picture)).save(file)
        images.append(Labelled(str(number), str(file), str(labels[number]), str(number), "", number))
    images.append(Labelled("8", str(tmp_path / "gone.png"), "1", "8", "", 8))
    labels, near = np.append(labels, 1), np.append(near, 0)
    own, nothing = np.arange(len(images)), np.zeros(len(images), np.int64)
    clusters = Clusters(own, near, nothing, own, nothing)
    found = look_again(clusters, images, labels, Source(tuple(images), ("0", "1"), ("image", "label"), "", ()))
    assert found.same.tolist() == [0, 0, 2, 3, 3, 2, 6, 7, 8]
    assert found.equal.tolist() == found.same.tolist()
