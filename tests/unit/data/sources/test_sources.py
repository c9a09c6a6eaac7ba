import gzip
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.decode import decode
from tlbatch.data.sources.base import Source, key_of, key_of_shown, name_of, shown_key
from tlbatch.data.sources.read import read_source

FASHION = Path("/usr/share/datasets/fashion-mnist")


def read(images: Path, labels: Path | None = None, **others: Any) -> Source:
    source = "csv" if labels else others.pop("source", "folders")
    data = Data.model_validate({"images": images, "labels": labels, "source": source} | others)
    return read_source(data, images, labels)


def causes(source: Source) -> dict[str, str]:
    return {rejected.key: rejected.cause for rejected in source.rejected}


@given(st.text(st.characters(exclude_characters="\0"), min_size=1))
def test_keys_hold_no_dots_and_give_the_name_back(name: str) -> None:
    name = name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    assert set(key_of(name)) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-~/%")
    assert name_of(key_of(name)) == name


@given(st.one_of(st.binary(min_size=1), st.from_regex(rb"[ab%\\\xff]*(\\*(udcff|\xff)){1,3}", fullmatch=True)))
def test_names_that_users_see_are_utf_8_and_give_the_key_back(name: bytes) -> None:
    key = key_of(name.decode(errors="surrogateescape"))
    assert key_of_shown(shown_key(key).encode().decode()) == key


def test_names_that_users_see_are_those_of_the_files() -> None:
    names = ["a b.v2/x", "100%20", "a\\b", "Blüte", 'a,"b"\nc', "\udcff", "\\udcff"]
    seen = [shown_key(key_of(name)) for name in names]
    assert seen == [*names[:5], "\\udcff", "\\\\udcff"]


def test_class_folders_give_sorted_keys_and_classes(make_folders: Callable[..., Path]) -> None:
    source = read(make_folders(each=3))
    assert source.classes == ("blue", "green", "red")
    assert [image.key for image in source.images][:4] == ["blue/blue0", "blue/blue1", "blue/blue2", "green/green0"]
    assert source.columns == ("image", "label")


def test_names_in_any_script_or_bytes_are_kept(make_folders: Callable[..., Path]) -> None:
    images = make_folders(classes=("Blüte", "花"), each=1)
    (images / "花" / "花0.jpg").rename(images / "花" / "a.b c.花.JPG")
    os.rename(images / "Blüte" / "Blüte0.jpg", os.fsencode(images / "Blüte") + b"/\xff\xfe.jpg")  # noqa: PTH104
    source = read(images)
    assert source.classes == ("Blüte", "花")
    assert {name_of(image.key) for image in source.images} == {"Blüte/\udcff\udcfe", "花/a.b c.花"}
    assert all(decode(source.read(image)).shape == (40, 48, 3) for image in source.images)


def test_numbers_as_classes_are_in_numeric_order(make_folders: Callable[..., Path]) -> None:
    assert read(make_folders(classes=("10", "9", "0"), each=1)).classes == ("0", "9", "10")


def test_a_csv_names_images_with_or_without_ending_and_groups_eyes(
    tmp_path: Path, make_folders: Callable[..., Path]
) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    labels = tmp_path / "labels.csv"
    labels.write_text("id,grade,who\nx0,1,anna\nx1.jpg,0,ben\ny/y0,1,anna\n", encoding="utf-8")
    columns = {"key_column": "id", "label_column": "grade"}
    source = read(images, labels, group_pattern=r"([xy])\d", **columns)
    assert [(image.key, image.label, image.group) for image in source.images] == [
        ("x0", "1", "x"),
        ("x1", "0", "x"),
        ("y/y0", "1", "y"),
    ]
    assert source.columns == ("id", "grade")
    assert [image.group for image in read(images, labels, group_column="who", **columns).images] == [
        "anna",
        "ben",
        "anna",
    ]


def test_aptos_and_kaggle_layouts_are_read(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "0a1b.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "2c3d.png")
    labels = tmp_path / "train.csv"
    labels.write_text("id_code,diagnosis\n0a1b,0\n2c3d,4\n", encoding="utf-8")
    source = read(tmp_path, labels, key_column="id_code", label_column="diagnosis")
    assert [(image.key, image.label) for image in source.images] == [("0a1b", "0"), ("2c3d", "4")]
    for eye in ("10_left", "10_right", "13_left"):
        Image.new("RGB", (40, 40)).save(tmp_path / f"{eye}.jpeg")
    labels.write_text("image,level\n10_left,0\n10_right,0\n13_left,2\n", encoding="utf-8")
    assert [image.group for image in read(tmp_path, labels, group_pattern=r"^(\d+)_").images] == ["10", "10", "13"]


def test_several_tags_in_one_field_become_classes(tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    images = make_folders(classes=("x",), each=3)
    labels = tmp_path / "labels.csv"
    labels.write_text("image,level\nx0,floral short dress\nx1,short  shirt\nx2,\n", encoding="utf-8")
    source = read(images, labels, tag_separator=" ", max_rejected=1)
    assert source.classes == ("dress", "floral", "shirt", "short")
    assert causes(source) == {"x2": "has no label"}


def test_a_name_that_two_files_have_is_taken_with_its_ending_or_folder_only(
    tmp_path: Path, make_folders: Callable[..., Path]
) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    Image.new("RGB", (40, 40)).save(images / "x" / "x0.png")
    Image.new("RGB", (40, 40)).save(images / "y" / "x1.jpg")
    labels = tmp_path / "labels.csv"
    labels.write_text("image,level\nx/x0.png,0\nx1,0\nx0,1\ny0,1\n", encoding="utf-8")
    source = read(images, labels, max_rejected=2)
    assert [image.path[-8:] for image in source.images] == ["x/x0.png", "y/y0.jpg"]
    assert "2 images named x1" in causes(source)["x1"]
    assert "2 images named x0" in causes(source)["x0"]


def test_the_digest_follows_labels_and_files(make_folders: Callable[..., Path]) -> None:
    images = make_folders(each=2)
    before = read(images).digest
    assert read(images).digest == before
    (images / "red" / "red1.jpg").rename(images / "blue" / "red1.jpg")
    assert read(images).digest != before


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


def break_no_images(images: Path) -> Path:
    (images / "red" / "none").mkdir(parents=True)
    return images / "red" / "none"


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (break_missing, r"absent: no such folder of images; set data\.images=PATH"),
        (break_empty_class, "class 'white' has no images"),
        (break_one_class, "only one class"),
        (break_loose_file, r"red0\.jpg: lies outside of a class folder.*data\.max_rejected=1"),
        (break_no_images, "no labelled image found"),
    ],
)
def test_a_bad_folder_is_named_with_the_way_out(
    make_folders: Callable[..., Path], breaks: Callable[[Path], Path], says: str
) -> None:
    with pytest.raises(UserError, match=says):
        read(breaks(make_folders(each=2)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,level\nx0,1\nx1,0\nzz,0\n", {"zz": "no image named zz"}),
        ("image,level\nx0,1\nx1,0\ny0,\n", {"y0": "has no label"}),
        ("image,level\nx0,1\nx1,0\ny0,7\n", {"y0": "has the label '7', which data.classes does not list"}),
        ("image,level\nx0,1\nx1,0\nx1,0\n", {"x1": "the key is there twice ("}),
        ("image,level\nx0,1\nx1,0\ny0\n", {":4": "too few columns"}),
    ],
)
def test_a_bad_line_is_listed_with_its_cause_or_stops_the_job(
    tmp_path: Path, make_folders: Callable[..., Path], text: str, says: dict[str, str]
) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    labels = tmp_path / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"data\.max_rejected=1"):
        read(images, labels, classes=("0", "1"))
    source = read(images, labels, classes=("0", "1"), max_rejected=1)
    ((key, cause),) = says.items()
    ((found, why),) = causes(source).items()
    assert found.endswith(key)
    assert cause in why
    assert len(source.images) == 2


def test_a_stray_quote_is_refused_and_swallows_no_rows(tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text('image,level\nx0,1\n"x1,0\ny0,0\ny1,1\n', encoding="utf-8")
    with pytest.raises(UserError, match="not a table"):
        read(make_folders(classes=("x", "y"), each=2), labels, max_rejected=9)
    labels.write_text("image,level,level\nx0,1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"two columns level .*; rename one, or set data\.label_column=NAME"):
        read(tmp_path / "images", labels)


def test_what_is_no_file_or_no_image_is_listed_or_told(
    make_folders: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    images = make_folders(classes=("a", "b"), each=2)
    os.mkfifo(images / "a" / "pipe.jpg")
    (images / "a" / "device.jpg").symlink_to("/dev/zero")
    (images / "b" / "x.NEF").write_bytes(b"x")
    (images / "b" / "notes.txt").write_bytes(b"x")
    (images / "b" / "scan.nii.gz").write_bytes(b"x")
    source = read(images, max_rejected=4)
    assert {key: cause.split(": ")[-1] for key, cause in causes(source).items()} == {
        "a/pipe": "is not a regular file", "a/device": "is not a regular file",
        "b/x.NEF": ".nef is not read; convert it to PNG or JPEG",
        "b/scan.nii.gz": ".nii.gz is not read; convert it to PNG or JPEG",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"data\.max_rejected=4"):
        read(images, max_rejected=2)
    assert "3 files below" in caplog.text
    assert "1 .nef" in caplog.text
    assert "1 .txt" in caplog.text


@pytest.mark.parametrize("ending", ["jfif", "jpe", "ppm", "pgm", "jp2", "avif", "dib", "TIF"])
def test_every_format_that_the_decoders_read_is_listed_and_decoded(
    make_folders: Callable[..., Path], ending: str
) -> None:
    images = make_folders(classes=("a", "b"), each=1)
    kind = {"jfif": "JPEG", "jpe": "JPEG", "ppm": "PPM", "pgm": "PPM", "jp2": "JPEG2000", "TIF": "TIFF"}.get(ending)
    image = Image.new("L" if ending == "pgm" else "RGB", (40, 40), 90 if ending == "pgm" else (90, 90, 90))
    image.save(images / "a" / f"more.{ending}", kind or ending.upper())
    source = read(images)
    (more,) = (image for image in source.images if image.key == "a/more")
    assert np.abs(decode(source.read(more)).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("folder", ["__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", ".ipynb_checkpoints"])
def test_folders_that_systems_leave_are_no_classes_and_hold_no_images(
    make_folders: Callable[..., Path], folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    images = make_folders(each=2)
    for place in (images / folder, images / "red" / folder):
        shutil.copytree(images / "blue", place)
    source = read(images)
    assert source.classes == ("blue", "green", "red")
    assert len(source.images) == 6
    assert (f"left out: {images / folder}, a folder that systems leave" in caplog.text) == (folder[0] != ".")


def test_labels_and_names_that_are_left_out_on_purpose_are_counted(
    make_folders: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    images = make_folders(classes=("0", "1", "Ungradable"), each=3)
    source = read(images, ignore=["ungradable", "*1", "none_*", "10.jpg"])
    assert source.classes == ("0", "1")
    assert [image.key for image in source.images] == ["0/00", "0/02", "1/12"]
    assert source.rejected == ()
    for entry, count in (("ungradable", "3 images"), ("*1", "2 images"), ("none_*", "0 images"), ("10.jpg", "1 image")):
        assert f"ignored: {count} by {entry!r}" in caplog.text
    assert [record.levelname for record in caplog.records if "none_*" in record.message] == ["WARNING"]
    assert read(images).digest != source.digest


def test_names_that_differ_in_their_ending_only_are_two_images(make_folders: Callable[..., Path]) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    Image.new("RGB", (40, 40)).save(images / "x" / "x0.png")
    found = {name_of(image.key): Path(image.path).name for image in read(images).images}
    assert found == {
        "x/x0.jpg": "x0.jpg", "x/x0.png": "x0.png", "x/x1": "x1.jpg", "y/y0": "y0.jpg", "y/y1": "y1.jpg",
    }  # fmt: skip


def test_images_without_an_ending_are_told_by_their_beginning(make_folders: Callable[..., Path]) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    (images / "x" / "x0.jpg").rename(images / "x" / "x0")
    (images / "x" / "README").write_text("no image", encoding="utf-8")
    (images / "y" / "device").symlink_to("/dev/zero")
    os.mkfifo(images / "y" / "pipe")
    assert [image.key for image in read(images).images] == ["x/x0", "x/x1", "y/y0", "y/y1"]


def test_a_workspace_among_the_images_is_left_out(
    make_folders: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    images = make_folders(each=2)
    shutil.copytree(images / "blue", images / "work" / "runs" / "one")
    data = Data.model_validate({"images": images})
    assert read_source(data, images, None, images / "work").classes == ("blue", "green", "red")
    assert f"left out: {images / 'work'}, the workspace" in caplog.text
    assert "work" in read_source(data, images, None).classes


def test_numbers_in_any_form_are_one_label_and_in_numeric_order(
    make_folders: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    images = make_folders(classes=("001", "1", "01", "2", "10.0", "2.50", "-3"), each=1)
    source = read(images)
    assert source.classes == ("-3", "1", "2", "2.50", "10.0")
    assert Counter(image.label for image in source.images)["1"] == 3
    assert "2 images whose label is spelled in another way, e.g. '001' for '1': joined" in caplog.text
    assert read(images, spellings="apart").classes == ("-3", "001", "01", "1", "2", "2.50", "10.0")


def test_words_that_differ_in_spelling_only_stop_the_job(make_folders: Callable[..., Path]) -> None:
    images = make_folders(classes=("Mild", "mild", "Severe"), each=2)
    says = (
        r"labels 'Mild' \(2 images\) and 'mild' \(2 images\) differ in spelling only; set data\.spellings=join if they "
        r"are one label, or data\.spellings=apart if they are not"
    )
    with pytest.raises(UserError, match=says):
        read(images)
    assert read(images, spellings="join").classes == ("Mild", "Severe")
    assert read(images, spellings="apart").classes == ("Mild", "Severe", "mild")
    with pytest.raises(UserError, match=r"'MILD' \(0 images\) and 'Mild' \(2 images\) and 'mild'"):
        read(images, classes=("MILD", "Severe"))
    assert read(images, classes=("MILD", "Severe"), spellings="join").classes == ("MILD", "Severe")


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "Testing"), ("TRAIN", "Valid")])
def test_folders_of_splits_are_not_taken_for_classes(make_folders: Callable[..., Path], names: tuple[str, ...]) -> None:
    images = make_folders(classes=names, each=1)
    with pytest.raises(UserError, match=r"look like splits, not classes; set data\.split\.method=given, or rename"):
        read(images)


def test_an_image_with_two_labels_is_left_out_altogether(tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    images = make_folders(classes=("x", "y"), each=2)
    labels = tmp_path / "labels.csv"
    labels.write_text("image,level\nx0,1\nx1,0\ny0,0\nx0,0\ny1,1\n", encoding="utf-8")
    source = read(images, labels, max_rejected=2)
    assert [image.key for image in source.images] == ["x1", "y0", "y1"]
    assert Counter(rejected.key for rejected in source.rejected) == {"x0": 2}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,grade\nx0,1\n", r"no column level \(it has image, grade\); set data\.label_column=NAME"),
        ("", "is empty; name another file"),
    ],
)
def test_a_labels_file_without_its_columns_is_refused(
    tmp_path: Path, make_folders: Callable[..., Path], text: str, says: str
) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        read(make_folders(classes=("x", "y"), each=2), labels)


def test_a_link_to_a_folder_that_is_not_there_is_listed(tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    """As one that leads out of what a container sees: its class would be gone without a word."""
    images = make_folders()
    (images / "black").symlink_to(tmp_path / "elsewhere" / "black")
    source = read(images, max_rejected=1)
    assert causes(source) == {str(images / "black"): f"a symbolic link to nowhere ({tmp_path}/elsewhere/black)"}


def test_links_to_folders_are_followed_and_a_loop_is_listed(tmp_path: Path, make_folders: Callable[..., Path]) -> None:
    images = make_folders(classes=("a", "b"), each=2)
    (images / "b").rename(tmp_path / "elsewhere")
    (images / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(images)
    (images / "a" / "a9.jpg").symlink_to(images / "a" / "a9.jpg")
    source = read(images, max_rejected=5)
    assert [image.key for image in source.images] == ["a/a0", "a/a1", "b/b0", "b/b1"]
    assert any("leads back" in cause for cause in causes(source).values())
    assert "symbolic links" in causes(source)["a/a9"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not read a folder")
def test_a_folder_that_may_not_be_read_is_listed(write_folders: Callable[..., Path]) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        images = write_folders(Path(folder) / "x", each=1)
        (images / "red" / "closed").mkdir(mode=0o700)
        os.seteuid(65534)
        try:
            source = read(images, max_rejected=1)
        finally:
            os.seteuid(0)
    assert "unreadable folder (Permission denied)" in next(iter(causes(source).values()))


def write_idx(folder: Path, part: str, images: np.ndarray, labels: np.ndarray) -> None:
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
        with gzip.open(folder / f"{part}-{kind}-ubyte.gz", "wb") as file:
            file.write(header + array.tobytes())


def test_idx_pairs_are_read_with_their_part_as_split(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    write_idx(tmp_path, "train", pixels[:4], np.array([1, 0, 1, 0], np.uint8))
    write_idx(tmp_path, "t10k", pixels[4:], np.array([0, 1], np.uint8))
    source = read(tmp_path, source="idx")
    assert [(image.key, image.label, image.part) for image in source.images][:3] == [
        ("t10k/000000", "0", "t10k"),
        ("t10k/000001", "1", "t10k"),
        ("train/000000", "1", "train"),
    ]
    assert (decode(source.read(source.images[2]))[..., 0] == pixels[0]).all()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: data[:-1], "damaged"),
        (lambda data: gzip.compress(gzip.decompress(data)[:-1]), "fewer bytes than its header states"),
        (lambda data: data[:0] + gzip.compress(b"\0\0\x08\3" + bytes(12)), "damaged"),
        (lambda data: gzip.compress(gzip.decompress(data) + b"x"), "more bytes than its header states"),
        (lambda _: gzip.compress(b"\0\0\x0d\3" + bytes(12)), "not an IDX file of 3 dimensions"),
        (lambda _: b"", "not an IDX file|damaged"),
        (lambda _: b"hello", "damaged"),
        (lambda data: gzip.compress(b"\0\0\x08\3" + b"\xff" * 12 + gzip.decompress(data)[16:]), "damaged"),
    ],
)
def test_a_damaged_idx_file_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes], says: str) -> None:
    write_idx(tmp_path, "train", np.zeros((4, 28, 28), np.uint8), np.array([1, 0, 1, 0], np.uint8))
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(UserError, match=says):
        read(tmp_path, source="idx")
    file.unlink()
    with pytest.raises(UserError, match=r"no \*-images-idx3-ubyte\.gz"):
        read(tmp_path, source="idx")


def test_fashion_mnist_of_debian_is_read() -> None:
    if not FASHION.is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    source = read(FASHION, source="idx")
    assert source.classes == tuple("0123456789")
    assert Counter(image.part for image in source.images) == {"train": 60_000, "t10k": 10_000}
    assert Counter(Counter(image.label for image in source.images).values()) == {7000: 10}


def jpeg(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_tars_are_read_with_cls_or_json_as_img2dataset_writes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_tar(tmp_path / "train-0.tar", {"a.jpg": jpeg(), "a.cls": b"1\n", "b.JPG": jpeg("blue"), "b.cls": b"0"})
    about = {"key": "c", "label": "0", "who": "anna"}
    write_tar(tmp_path / "test-0.tar", {"c.jpg": jpeg(), "c.json": json.dumps(about).encode(), "c.txt": b"a caption"})
    source = read(tmp_path, source="tars", label_column="label")
    assert [(image.key, image.label, image.part, image.group) for image in source.images] == [
        ("a", "1", "train", "a"),
        ("b", "0", "train", "b"),
        ("c", "0", "test", "c"),
    ]
    only = tmp_path / "only"
    only.mkdir()
    write_tar(
        only / "x.tar",
        {f"{n}.jpg": jpeg() for n in "cd"} | {f"{n}.json": json.dumps(about | {"label": n}).encode() for n in "cd"},
    )
    assert {image.group for image in read(only, source="tars", label_column="label", group_column="who").images} == {
        "anna"
    }
    shutil.rmtree(only)
    assert source.read(source.images[1]) == jpeg("blue")
    about["who"] = None
    write_tar(tmp_path / "test-0.tar", {"c.jpg": jpeg(), "c.json": json.dumps(about).encode()})
    source = read(tmp_path, source="tars", label_column="label", group_column="who")
    assert [image.group for image in source.images] == ["a", "b", "c"]
    assert "3 images with nothing in who: each is a group of its own" in caplog.text


def test_what_is_wrong_in_a_tar_is_listed(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(), "a.cls": b"1", "b.jpg": jpeg(), "c.cls": b"0", "d.jpg": jpeg(), "d.json": b"{"}
    write_tar(tmp_path / "x.tar", members | {"../e.jpg": jpeg(), "f.jpg": jpeg(), "f.cls": b"0"})
    (tmp_path / "y.tar").write_bytes(b"")
    source = read(tmp_path, source="tars", max_rejected=9)
    assert [image.key for image in source.images] == ["a", "f"]
    found = causes(source)
    assert "no cls, and no json with level" in found["b"]
    assert "no image" in found["c"]
    assert "json cannot be read" in found["d"]
    assert any("../e.jpg" in key for key in found)
    assert any("y.tar" in key for key in found)


def test_a_tar_that_is_renamed_or_swapped_with_another_is_read_again(tmp_path: Path) -> None:
    for name, colour in (("a", "red"), ("b", "blue")):
        write_tar(tmp_path / f"{name}.tar", {f"{colour}.jpg": jpeg(), f"{colour}.cls": colour.encode()})
        os.utime(tmp_path / f"{name}.tar", (0, 0))
    before = read(tmp_path, source="tars")
    (tmp_path / "a.tar").rename(tmp_path / "c.tar")
    (tmp_path / "b.tar").rename(tmp_path / "a.tar")
    (tmp_path / "c.tar").rename(tmp_path / "b.tar")
    swapped = read(tmp_path, source="tars")
    assert {one.key for one in swapped.images} == {one.key for one in before.images}
    assert not {one.stamp for one in swapped.images} & {one.stamp for one in before.images}
    assert swapped.digest != before.digest


def test_a_label_that_is_no_text_is_written_with_backslashes(tmp_path: Path) -> None:
    members = {"a.jpg": jpeg(), "a.json": b'{"level": "\\ud800"}', "b.jpg": jpeg(), "b.cls": b"plain"}
    write_tar(tmp_path / "x.tar", members)
    assert read(tmp_path, source="tars").classes == (r"\ud800", "plain")


def test_the_real_labels_of_the_test_data_are_read(test_data: Path) -> None:
    source = read(test_data / "idrid" / "images", test_data / "idrid" / "labels.csv")
    counts = [sum(image.label == name for image in source.images) for name in source.classes]
    assert (source.classes, counts) == (("0", "1", "2", "3", "4"), [134, 20, 136, 74, 49])
    assert read(test_data / "dogs_vs_cats").classes == ("cat", "dog")
