from collections.abc import Callable
from pathlib import Path

import pytest

from tlbatch.data.sources import key_of, name_of, read_source
from tlbatch.job.config import Data
from tlbatch.job.errors import UserError

DATA = Data(images=Path("unused"))


def test_keys_hold_no_dots_and_give_the_name_back() -> None:
    for name in ("cat/cat.12", "Blüte/ä b.c", "100%/x_y-z~", "17_left"):
        assert "." not in key_of(name)
        assert name_of(key_of(name)) == name
    assert key_of("17_left") == "17_left"


def test_class_folders_give_sorted_keys_and_classes(make_folders: Callable[..., Path]) -> None:
    source = read_source(DATA, make_folders(each=3), None)
    assert source.classes == ("blue", "green", "red")
    assert [image.key for image in source.images][:4] == ["blue/blue0", "blue/blue1", "blue/blue2", "green/green0"]
    assert source.columns == ("image", "label")


def test_numbers_as_classes_are_in_numeric_order(make_folders: Callable[..., Path]) -> None:
    assert read_source(DATA, make_folders(classes=("10", "9", "0"), each=1), None).classes == ("0", "9", "10")


def test_a_csv_names_images_with_or_without_ending_and_groups_eyes(
    tmp_path: Path, make_folders: Callable[..., Path]
) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    labels = tmp_path / "labels.csv"
    labels.write_text("id,grade,other\nx0,1,a\nx1.jpg,0,b\ny/y0,1,c\n", encoding="utf-8")
    data = Data(
        images=images, source="csv", labels=labels, key_column="id", label_column="grade", group_pattern=r"([xy])\d"
    )
    source = read_source(data, images, labels)
    assert [(image.key, image.label, image.group) for image in source.images] == [
        ("x0", "1", "x"),
        ("x1", "0", "x"),
        ("y/y0", "1", "y"),
    ]
    assert source.columns == ("id", "grade")


def test_the_digest_follows_labels_and_files(make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=2)
    before = read_source(DATA, images, None).digest
    assert read_source(DATA, images, None).digest == before
    (images / "red" / "red1.jpg").rename(images / "blue" / "red1.jpg")
    assert read_source(DATA, images, None).digest != before


def break_missing(images: Path) -> Path:
    return images / "absent"


def break_empty_class(images: Path) -> Path:
    (images / "white").mkdir()
    return images


def break_one_class(images: Path) -> Path:
    for name in ("green", "red"):
        for file in (images / name).iterdir():
            file.unlink()
        (images / name).rmdir()
    return images


def break_loose_file(images: Path) -> Path:
    (images / "red" / "red0.jpg").rename(images / "red0.jpg")
    return images


def break_doubled_key(images: Path) -> Path:
    (images / "red" / "red0.jpg").rename(images / "red" / "red1.png")
    return images


def break_no_images(images: Path) -> Path:
    (images / "red" / "none").mkdir(parents=True)
    return images / "red" / "none"


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (break_missing, r"absent: no such folder of images; set data\.images=PATH"),
        (break_empty_class, "class 'white' has no images"),
        (break_one_class, "only one class"),
        (break_loose_file, "lies outside of a class folder"),
        (break_doubled_key, "both have the key red/red1"),
        (break_no_images, "no labelled image found"),
    ],
)
def test_a_bad_folder_is_named_with_the_way_out(
    make_folders: Callable[..., Path], breaks: Callable[[Path], Path], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        read_source(DATA, breaks(make_folders(each=2)), None)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,grade\nx0,1\n", r"no column level \(it has image, grade\); set data\.label_column=NAME"),
        ("image,level\nx0,1\nzz,0\n", r"labels\.csv:3: no image named zz"),
        ("image,level\nx0,\nx1,0\n", r"labels\.csv:2: x0 has no label"),
        ("image,level\nx0,1\nx0,0\n", "both have the key x0"),
        ("image,level\nx0,1\nx1,7\n", "has the label '7', which data.classes does not list"),
        ("image,level\nx0\n", r"labels\.csv:2: too few columns"),
    ],
)
def test_a_bad_labels_file_is_named_with_its_line(
    tmp_path: Path, make_folders: Callable[..., Path], text: str, says: str
) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    labels = tmp_path / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    data = Data(images=images, source="csv", labels=labels, classes=("0", "1"))
    with pytest.raises(UserError, match=says):
        read_source(data, images, labels)


def test_the_real_labels_of_the_test_data_are_read(test_data: Path) -> None:
    data = Data(images=test_data / "idrid" / "images", source="csv", labels=test_data / "idrid" / "labels.csv")
    assert data.images is not None
    source = read_source(data, data.images, data.labels)
    counts = [sum(image.label == name for image in source.images) for name in source.classes]
    assert (source.classes, counts) == (("0", "1", "2", "3", "4"), [134, 20, 136, 74, 49])
