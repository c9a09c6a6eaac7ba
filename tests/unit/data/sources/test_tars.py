"""WebDataset tars as this project and others write them."""

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.shards.tar_reader import Member, scan_tar
from tlbatch.data.sources.base import Source, name_of
from tlbatch.data.sources.read import read_source
from tlbatch.data.sources.tar_samples import group_samples


def jpeg(colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "JPEG")
    return buffer.getvalue()


JPEG = jpeg()


def write_tar(path: Path, members: Mapping[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def read(folder: Path, **others: Any) -> Source:
    data = Data.model_validate({"images": folder, "source": "tars"} | others)
    return read_source(data, folder, None)


def labelled(*names: str, ending: str = "jpg") -> dict[str, bytes]:
    """Return members of samples with two classes in turn."""
    found: dict[str, bytes] = {}
    for number, name in enumerate(names):
        found |= {f"{name}.{ending}": JPEG, f"{name}.cls": str(number % 2).encode()}
    return found


def about(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def member(name: str) -> Member:
    return Member(name, 512, 1)


def test_members_are_joined_by_the_name_up_to_the_first_dot_of_its_last_part() -> None:
    samples, damage = group_samples([member(n) for n in ("d.x/a.seg.PNG", "d.x/a.CLS", "b.jpg", "a.jpg", "b.cls")])
    assert damage == []
    assert [(key, list(parts)) for key, parts in samples] == [
        ("d.x/a", ["seg.png", "cls"]),
        ("b", ["jpg", "cls"]),
        ("a", ["jpg"]),
    ]


def test_members_apart_are_joined_and_doubles_are_named() -> None:
    samples, damage = group_samples([member(n) for n in ("a.jpg", "b.jpg", "a.cls", "a.JPG", "a.jpg")])
    assert [(key, list(parts)) for key, parts in samples] == [("a", ["jpg", "cls"]), ("b", ["jpg"])]
    assert [one.name for one in damage] == ["a.JPG", "a.jpg"]


def test_hidden_files_are_left_out_and_names_without_extension_are_named() -> None:
    samples, damage = group_samples([member(n) for n in ("._a.jpg", "d/.DS_Store", "README", "a.", ".d/c.jpg")])
    assert [key for key, _ in samples] == [".d/c"]
    assert [one.name for one in damage] == ["README", "a."]


def test_grouping_agrees_with_webdataset(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, {"a/b.c/k.left.jpg": b"1", "a/b.c/k.CLS": b"2", "j.jpg": b"3"})
    theirs = {
        s["__key__"]: set(s) - {"__key__", "__url__", "__local_path__"}
        for s in webdataset.WebDataset(str(path), shardshuffle=False)
    }
    samples, _ = group_samples(scan_tar(path)[0])
    assert {key: set(parts) for key, parts in samples} == theirs


def names(source: Source) -> list[str]:
    return [name_of(image.key) for image in source.images]


def causes(source: Source) -> dict[str, str]:
    return {one.key: one.cause for one in source.rejected}


def test_names_with_dots_end_at_the_last_one_where_each_has_an_image_and_a_label(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", labelled("scan.v2.1", "scan.v2.2", "a.b/plain", "one.left"))
    source = read(tmp_path)
    assert names(source) == ["a.b/plain", "one.left", "scan.v2.1", "scan.v2.2"]
    assert [image.label for image in source.images] == ["0", "1", "0", "1"]
    assert source.notes == ("3 samples with more dots in the name, such as scan.v2.1: the name ends at the last one",)


def test_a_name_with_dots_that_lacks_its_image_is_one_image_lost(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", labelled("scan.1", "scan.2") | {"scan.3.cls": b"1"})
    source = read(tmp_path, max_rejected=1)
    assert names(source) == ["scan.1", "scan.2"]
    assert list(causes(source)) == ["scan.3"]


def test_every_image_of_a_sample_that_cannot_be_told_apart_is_counted(tmp_path: Path) -> None:
    several = {f"scan.{number}.jpg": JPEG for number in range(20)}
    write_tar(tmp_path / "x.tar", labelled("a", "b") | several | {"scan.cls": b"1"})
    with pytest.raises(UserError, match=r"data\.max_rejected=20$"):
        read(tmp_path, max_rejected=19)
    source = read(tmp_path, max_rejected=20)
    assert set(causes(source)) == set(several)
    assert "one of 20 images of the sample scan (0.jpg, 1.jpg, 2.jpg, ...)" in causes(source)["scan.0.jpg"]


def test_one_image_of_several_is_read_only_if_it_is_clear_which(tmp_path: Path) -> None:
    masks = {f"{name}.mask.png": b"a mask" for name in "ab"}
    write_tar(tmp_path / "x.tar", masks | labelled("a", "b"))
    source = read(tmp_path)
    assert [source.read(image) for image in source.images] == [JPEG, JPEG]
    assert source.notes == ("2 samples with several images: jpg is read, mask.png is not",)
    write_tar(tmp_path / "x.tar", {"a.png": b"a mask", "b.png": b"a mask"} | labelled("a", "b"))
    with pytest.raises(UserError, match=r"a\.png: one of 2 images of the sample a \(png, jpg\); set data\.image_part"):
        read(tmp_path)
    source = read(tmp_path, image_part="JPG")
    assert [source.read(image) for image in source.images] == [JPEG, JPEG]


def test_a_named_part_is_the_image_even_where_names_could_end_later(tmp_path: Path) -> None:
    both = {
        f"{name}.{side}.{part}": JPEG if part == "jpg" else b"3"
        for name in "ab"
        for side in "lr"
        for part in ("jpg", "txt")
    }
    write_tar(tmp_path / "x.tar", both | {"a.cls": b"0", "b.cls": b"1", "c.l.png": JPEG, "c.cls": b"1"})
    source = read(tmp_path, image_part="l.jpg", max_rejected=1)
    assert [(image.key, image.label) for image in source.images] == [("a", "0"), ("b", "1")]
    assert causes(source) == {"c.l.png": "no image with the extension l.jpg, which data.image_part names"}


def test_named_parts_are_read(tmp_path: Path) -> None:
    parts = {"image.jpg": JPEG, "label.txt": b"x\n"}
    write_tar(tmp_path / "x.tar", {f"a.{part}": data for part, data in parts.items()} | labelled("b", ending="jfif"))
    assert [(image.key, image.label) for image in read(tmp_path).images] == [("a", "x"), ("b", "0")]


def test_a_json_of_another_part_is_read_only_where_nothing_else_has_a_label(tmp_path: Path) -> None:
    members = labelled("a", "b") | {"a.meta.json": about(level=7), "b.meta.json": b"{"}
    write_tar(tmp_path / "x.tar", members | {"c.jpg": JPEG, "c.meta.json": about(level=1)})
    assert [image.label for image in read(tmp_path).images] == ["0", "1", "1"]


def test_names_that_begin_again_in_each_tar_are_different_images(tmp_path: Path) -> None:
    for number in (2, 10):
        write_tar(tmp_path / f"x-{number}.tar", labelled("1_l", "2_l"))
    source = read(tmp_path)
    assert [image.key for image in source.images] == ["1_l", "2_l", "x-10/1_l", "x-10/2_l"]
    assert source.notes == ("2 samples named as one in an earlier tar: the tar is put before, as in x-10/1_l",)
    grouped = read(tmp_path, group_pattern=r"^(\d)_")
    assert [image.group for image in grouped.images] == ["1", "2", "1", "2"]


def test_another_tar_moves_no_key(tmp_path: Path) -> None:
    write_tar(tmp_path / "x-2.tar", labelled("1", "2"))
    before = {image.key: image.stamp for image in read(tmp_path).images}
    write_tar(tmp_path / "x-10.tar", labelled("1", "2"))
    after = {image.key: image.stamp for image in read(tmp_path).images}
    assert before.items() <= after.items()


@pytest.mark.parametrize(("name", "tool"), [("x.tar.gz", "gunzip"), ("x.TGZ", "gunzip"), ("x.tar.zst", "unzstd")])
def test_a_compressed_tar_is_refused_with_what_unpacks_it(tmp_path: Path, name: str, tool: str) -> None:
    write_tar(tmp_path / "a.tar", labelled("a", "b"))
    (tmp_path / name).write_bytes(b"\x1f\x8b")
    with pytest.raises(UserError, match=f"unpack it first: {tool} {name}"):
        read(tmp_path, max_rejected=9)


def test_a_compressed_tar_with_the_name_of_a_plain_one_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", labelled("a", "b"))
    (tmp_path / "b.tar").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(UserError, match=r"b\.tar: is compressed, so it cannot be read in place; unpack it first"):
        read(tmp_path, max_rejected=9)


def test_what_a_json_says_instead_of_a_class_is_named(tmp_path: Path) -> None:
    values: dict[str, Any] = {"nan": float("nan"), "null": None, "empty": "", "list": [1], "object": {"grade": 1}}
    members = labelled("a", "b")
    for name, value in values.items():
        members |= {f"{name}.jpg": JPEG, f"{name}.json": about(level=value)}
    members |= {"other.jpg": JPEG, "other.json": about(grade=1, who="anna")}
    write_tar(tmp_path / "x.tar", members)
    source = read(tmp_path, max_rejected=6)
    found = {key: cause.removeprefix(f"{tmp_path / 'x.tar'}: ") for key, cause in causes(source).items()}
    assert found == {
        "nan": "has no label",
        "null": "level in the json is null",
        "empty": "has no label",
        "list": "level in the json is a list; set data.tag_separator, or write one class",
        "object": "level in the json is an object",
        "other": "no cls, and no json with level (it has grade, who; set data.label_column=NAME)",
    }


def test_one_class_as_two_kinds_of_number_is_joined_and_booleans_are_said(tmp_path: Path) -> None:
    members = {f"{n}.jpg": JPEG for n in range(4)} | {
        f"{n}.json": about(level=v) for n, v in enumerate((1, 1.0, 0, 0.0))
    }
    write_tar(tmp_path / "x.tar", members)
    assert Counter(image.label for image in read(tmp_path).images) == {"0": 2, "1": 2}
    members = {f"{n}.jpg": JPEG for n in range(2)} | {f"{n}.json": about(level=bool(n)) for n in range(2)}
    write_tar(tmp_path / "x.tar", members)
    source = read(tmp_path)
    assert source.classes == ("False", "True")
    assert source.notes == ("2 labels true or false in the json: the classes are True and False",)


def test_images_that_are_lost_are_counted_whatever_their_format(tmp_path: Path) -> None:
    failed = {"failed.txt": b"a caption", "failed.json": about(level=1)}
    odd = {"h.nef": b"h", "h.cls": b"1", "t.tga": b"t", "t.cls": b"0", "d.svs": b"d", "j.psd": b"j"}
    write_tar(tmp_path / "x.tar", labelled("a", "b") | failed | odd)
    source = read(tmp_path, max_rejected=5)
    assert set(causes(source)) == {"failed", "h.nef", "t.tga", "d.svs", "j.psd"}
    assert causes(source)["h.nef"] == ".nef is not read; convert it to PNG or JPEG"


def test_folders_in_a_tar_that_are_named_as_splits_are_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "set-0.tar", labelled("train/a", "train/b", "valid/c", "test/d"))
    with pytest.raises(UserError, match=r"look like splits; set data\.split\.method=given"):
        read(tmp_path)
    source = read(tmp_path, split={"method": "given"})
    assert [image.part for image in source.images] == ["test", "train", "train", "valid"]
    assert source.notes == ("the split of 4 images is the first folder of the names in the tars",)


def test_tars_that_are_named_as_splits_are_said_where_others_are_drawn(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", labelled("a", "b"))
    write_tar(tmp_path / "test-0.tar", labelled("c", "d"))
    assert read(tmp_path).notes == (
        "the tars are named as splits (test, train); only data.split.method=given keeps to them",
    )
    assert read(tmp_path, split={"method": "given"}).notes == ()
