"""Tables of labels as people have them, and the files that they name."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.sources.base import Source
from tlbatch.data.sources.read import read_source
from tlbatch.data.sources.table import label_columns

Put = Callable[..., Source]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Six images in one folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (40, 40), (number * 30, 0, 0)).save(folder / f"eye_{number}.png")
    return folder


@pytest.fixture
def put(images: Path) -> Put:
    def written(text: str, **keys: Any) -> Source:
        labels = images.parent / "labels.csv"
        labels.write_text(text, encoding="utf-8")
        return read_source(
            Data.model_validate({"images": images, "labels": labels, "source": "csv"} | keys), images, labels
        )

    return written


def rows(form: str = "eye_{}", header: str = "image,level", cells: str = "{}") -> str:
    return "\n".join([header, *(f"{form.format(n)},{cells.format(n % 2)}" for n in range(6))]) + "\n"


@pytest.mark.parametrize(
    "form",
    [
        "eye_{}", "eye_{}.png", "images/eye_{}.png", "images\\eye_{}.png", "/data/eyes/images/eye_{}.png",
        "C:\\data\\eye_{}.png", "./eye_{}", "file/eye_{}",
    ],
)  # fmt: skip
def test_a_folder_that_all_names_share_may_be_missing_here(put: Put, form: str) -> None:
    source = put(rows(form))
    assert [image.label for image in source.images] == ["0", "1"] * 3
    assert not any(image.key.startswith("/") for image in source.images)


def test_a_folder_that_only_some_names_have_is_not_left_out(put: Put) -> None:
    """train/eye_1 and test/eye_1 may be two images."""
    with pytest.raises(UserError, match=r"no image named train/eye_0"):
        put(rows().replace("eye_0", "train/eye_0").replace("eye_1", "test/eye_1"))


def test_a_header_without_the_usual_names_is_searched_for_the_images(
    put: Put, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    idrid = rows(header="Image name ,Retinopathy grade,,,,", cells="{},,,,")
    with pytest.raises(UserError, match=r"no column level .*label_column=NAME, e\.g\. Retinopathy grade \(2"):
        put(idrid)
    source = put(idrid, label_column="Retinopathy grade")
    assert len(source.images) == 6
    assert "6 rows; columns: Image name (image), Retinopathy grade (label)" in caplog.text
    twice = "a,b,level\n" + "".join(f"eye_{n},eye_{n},{n % 2}\n" for n in range(6))
    with pytest.raises(UserError, match=r"several columns name the images \(a, b\); set data\.key_column=NAME"):
        put(twice)
    with pytest.raises(UserError, match=r"no column names the images \(it has a, b\)"):
        put("a,b\n1x,0\n2x,1\n")
    with pytest.raises(UserError, match=r"no column id \(it has image, level\); set data\.key_column=NAME"):
        put(rows(), key_column="id")


def test_a_table_without_a_header_is_told(put: Put) -> None:
    with pytest.raises(UserError, match="its first line names an image, so it has no header; add one"):
        put("\n".join(rows().splitlines()[1:]))


def test_a_column_for_each_class_is_a_label(put: Put, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    text = "image,MEL,NV\n" + "".join(f"eye_{n},{n % 2}.0,{1 - n % 2}.0\n" for n in range(5)) + "eye_5,0,0\n"
    source = put(text, max_rejected=1)
    assert [image.label for image in source.images] == ["NV", "MEL", "NV", "MEL", "NV"]
    assert [one.cause for one in source.rejected] == ["has no label"]
    assert "one column for each class" in caplog.text
    with pytest.raises(UserError, match="no column level"):
        put(text.replace("eye_5,0,0", "eye_5,1,1"))


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "NA", "N/A", "None", "null", "-"])
def test_a_missing_label_is_none_and_a_missing_group_an_own_one(
    put: Put, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    text = "image,level,who\n" + "".join(f"eye_{n},{n % 2},anna\n" for n in range(4))
    text += f"eye_4,{missing},ben\neye_5,0,{missing}\n"
    with pytest.raises(UserError, match=r"eye_4: has no label; .*data\.max_rejected=1"):
        put(text, group_column="who")
    source = put(text, group_column="who", max_rejected=1)
    assert {image.key: image.group for image in source.images} == {
        **{f"eye_{n}": "anna" for n in range(4)}, "eye_5": "eye_5",
    }  # fmt: skip
    assert "1 image with nothing in who: each is a group of its own" in caplog.text
    if missing:
        assert missing in put(text, classes=("0", "1", missing)).classes


def test_groups_in_two_spellings_are_one_if_they_are_numbers(put: Put) -> None:
    text = "image,level,who\n" + "".join(f"eye_{n},{n % 2},{who}\n" for n, who in enumerate(["7", "7.0", "07"] * 2))
    assert {image.group for image in put(text, group_column="who").images} == {"7"}
    words = "image,level,who\n" + "".join(f"eye_{n},{n % 2},{who}\n" for n, who in enumerate(["Ann", "ann", "b"] * 2))
    with pytest.raises(UserError, match=r"groups 'Ann' \(2 images\) and 'ann' \(2 images\) differ in spelling only"):
        put(words, group_column="who")
    assert {image.group for image in put(words, group_column="who", spellings="join").images} == {"Ann", "b"}
    assert {image.group for image in put(words, group_column="who", spellings="apart").images} == {"Ann", "ann", "b"}


def test_names_in_another_unicode_form_are_found_and_case_stays_apart(put: Put, images: Path) -> None:
    for number, name in enumerate(("Ärztin", "ärztin")):
        Image.new("RGB", (40, 40), (0, number, 0)).save(images / unicodedata.normalize("NFD", f"{name}.png"))
    source = put("image,level\nÄrztin,0\närztin,1\n")
    assert [(image.label, Path(image.path).stem[-1]) for image in source.images] == [("0", "n"), ("1", "n")]
    assert len({image.path for image in source.images}) == 2


def test_a_number_finds_a_file_of_that_number_only_if_there_is_one(
    put: Put, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("001", "002", "02"):
        Image.new("RGB", (40, 40)).save(images / f"{name}.bmp")
    source = put("image,level\n1,0\neye_0,1\n")
    assert [Path(image.path).name for image in source.images] == ["001.bmp", "eye_0.png"]
    assert "1 image found by number alone, such as 001.bmp for 1" in caplog.text
    with pytest.raises(UserError, match=r"2 images named 2 \(00?2\.bmp and 00?2\.bmp\)"):
        put("image,level\n2,0\neye_0,1\n")


def test_a_mask_beside_its_image_asks_for_the_ending(put: Put, images: Path) -> None:
    Image.new("RGB", (40, 40)).save(images / "eye_0.bmp")
    with pytest.raises(UserError, match=r"2 images named eye_0 \(.*\); write its ending too"):
        put(rows())
    assert len(put(rows("eye_{}.png")).images) == 6


def test_other_columns_are_read_by_key_in_any_dialect(put: Put, images: Path) -> None:
    put("sep=;\nPatient;image;level\n" + "".join(f"p{n};eye_{n}.png;{n % 2}\n" for n in range(6)))
    source = put("Patient;File;level\n" + "".join(f"p{n};eye_{n}.png;{n % 2}\n" for n in range(6)))
    assert source.columns == ("File", "level")
    data = Data.model_validate({"images": images, "labels": images.parent / "labels.csv", "source": "csv"})
    found = label_columns(data, images.parent / "labels.csv", ["Patient"], source.columns)
    assert found == {f"eye_{n}": (f"p{n}",) for n in range(6)}


def test_an_image_in_a_format_that_is_not_read_is_named_as_such(put: Put, images: Path) -> None:
    (images / "eye_0.png").rename(images / "eye_0.svs")
    with pytest.raises(UserError, match=r"eye_0 .* is in a format that is not read; convert it"):
        put(rows())
    (images / "eye_0.svs").rename(images / "stranger.svs")
    assert len(put(rows(), max_rejected=1).images) == 5


def test_two_images_of_one_name_keep_their_endings(put: Put, images: Path) -> None:
    Image.new("RGB", (40, 40)).save(images / "eye_0.bmp")
    source = put(rows("eye_{}.png") + "eye_0.bmp,1\n")
    assert [image.key for image in source.images] == ["eye_0%2Ebmp", "eye_0%2Epng", *(f"eye_{n}" for n in range(1, 6))]
