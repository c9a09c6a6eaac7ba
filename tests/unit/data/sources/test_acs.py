"""The layout of Apparel Classification with Style."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.sources.base import Source
from tlbatch.data.sources.read import read_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images of classes 4 (long dress) and 7 (shirt)."""
    for number, name in enumerate(("4/a", "4/b", "7/c", "7/d.e")):
        file = tmp_path / "images" / f"{name}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number * 40, np.uint8)).save(file)
    (tmp_path / "train.txt").write_text("4/a\n7/c\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("4/b\n\n7/d.e\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def read(folder: Path) -> Callable[..., Source]:
    def reads(labels: str = "", **data: object) -> Source:
        file = folder / "words.csv" if labels else None
        if file:
            file.write_text(f"image,attributes\n{labels}", encoding="utf-8")
        settings = {"source": "acs", "images": folder, "labels": file, "label_column": "attributes"} | data
        return read_source(Data.model_validate(settings), folder, file)

    return reads


def test_classes_are_types_and_the_lists_are_the_splits(read: Callable[..., Source]) -> None:
    found = read()
    assert found.classes == ("long dress", "shirt")
    assert [(image.key, image.label, image.part) for image in found.images] == [
        ("4/a", "long dress", "train"), ("4/b", "long dress", "test"),
        ("7/c", "shirt", "train"), ("7/d%2Ee", "shirt", "test"),
    ]  # fmt: skip


def test_with_tags_a_label_is_the_words_of_the_image_and_then_its_type(read: Callable[..., Source]) -> None:
    found = read("4/a,floral red\n4/b.jpg,\n7/c,striped\n7/d.e,blue\n", tag_separator=" ")
    assert [image.label for image in found.images] == [
        "floral red long dress",
        "long dress",
        "striped shirt",
        "blue shirt",
    ]
    assert found.classes == ("blue", "dress", "floral", "long", "red", "shirt", "striped")


def test_a_folder_that_is_no_known_number_names_its_type(folder: Path, read: Callable[..., Source]) -> None:
    (folder / "images" / "7").rename(folder / "images" / "kimono")
    for name in ("train", "test"):
        file = folder / f"{name}.txt"
        file.write_text(file.read_text("utf-8").replace("7/", "kimono/"), encoding="utf-8")
    assert read().classes == ("kimono", "long dress")


@pytest.mark.parametrize(
    ("spoils", "key", "cause"),
    [
        (lambda folder: (folder / "images/4/a.jpg").unlink(), "4/a", "train.txt names it, and there is no such image"),
        (
            lambda folder: (folder / "test.txt").write_text("4/b\n"),
            "7/d.e",
            "neither train.txt nor test.txt names it",
        ),
    ],
)
def test_images_and_lists_that_do_not_fit_are_rejected_one_by_one(
    folder: Path, read: Callable[..., Source], spoils: Callable[[Path], None], key: str, cause: str
) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "images/4/z.jpg")
    with (folder / "train.txt").open("a") as file:
        file.write("4/z\n")
    spoils(folder)
    with pytest.raises(UserError, match=cause):
        read()
    found = read(max_rejected=1)
    assert [(one.key, one.cause.startswith(cause)) for one in found.rejected] == [(key, True)]


def test_an_image_with_two_different_words_is_rejected_and_the_same_twice_are_one(read: Callable[..., Source]) -> None:
    words = "4/a,red\n4/b,blue\n7/c,red\n7/d.e,red\n4/b,red\n7/c,red\n"
    found = read(words, tag_separator=" ", max_rejected=1)
    assert [(one.key, one.cause) for one in found.rejected] == [("4/b", "the key is there twice, with two labels")]


def test_an_image_without_words_is_rejected_and_one_in_both_lists_is_an_error(
    folder: Path, read: Callable[..., Source]
) -> None:
    found = read("4/a,red\n4/b,red\n7/c,red\n", tag_separator=" ", max_rejected=1)
    assert [(one.key, one.cause) for one in found.rejected] == [("7/d.e", "the labels file has no line for it")]
    (folder / "test.txt").write_text("4/a\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"test\.txt: 4/a is in train\.txt too; remove it from one"):
        read()


@pytest.mark.parametrize("gone", ["train.txt", "test.txt", "images"])
def test_a_folder_that_is_not_laid_out_so_is_named(folder: Path, read: Callable[..., Source], gone: str) -> None:
    (folder / gone).rename(folder / "elsewhere")
    with pytest.raises(UserError, match=rf"{gone}: .*set data\.images to the folder that holds"):
        read()


def test_words_without_tags_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels of source acs are words of a phrase; set data\.tag_separator"):
        Data(source="acs", images="x", labels="y")
