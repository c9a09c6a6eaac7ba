"""Tars are written with fixed bytes; of any bytes at all, what cannot be used is named and nothing else is lost."""

import bz2
import gzip
import io
import os
import random
import stat
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tlbatch.data.shards.tar_reader import Damage, Member, scan_tar
from tlbatch.data.shards.tar_writer import TarStream

BLOCK = 512
NAMES = {
    101: "a" * 97 + ".jpg",
    200: "d" * 120 + "/" + "b" * 75 + ".jpg",
    201: "c" * 197 + ".jpg",
    300: "e" * 140 + "/" + "f" * 155 + ".jpg",
}


def written(members: dict[str, bytes]) -> tuple[bytes, list[int]]:
    file = io.BytesIO()
    stream = TarStream(file)
    offsets = [stream.add(name, data) for name, data in members.items()]
    stream.close()
    return file.getvalue(), offsets


def small() -> dict[str, bytes]:
    draw = random.Random(5)
    members = {}
    for number in range(10):
        key = f"s{number}" if number % 5 else f"s{number}" + "x" * 120
        members[f"{key}.jpg"] = b"\xff\xd8" + draw.randbytes(draw.randrange(100, 2000))
        members[f"{key}.cls"] = str(number % 5).encode()
    return members


def scan(folder: Path, data: bytes) -> tuple[list[Member], list[Damage]]:
    path = folder / "x.tar"
    path.write_bytes(data)
    members, damage = scan_tar(path)
    for member in members:
        assert 0 <= member.offset <= member.offset + member.size <= len(data)
    return members, damage


def names(members: list[Member]) -> list[str]:
    return [member.name for member in members]


def causes(damage: list[Damage]) -> str:
    return "; ".join(f"{one.name}: {one.cause}" for one in damage)


def signed(block: bytes) -> bytes:
    plain = block[:148] + b" " * 8 + block[156:]
    return plain[:148] + b"%06o\0 " % sum(plain) + plain[156:]


def forged(data: bytes, at: int, field: slice, value: bytes) -> bytes:
    block = bytearray(data[at : at + BLOCK])
    block[field] = value.ljust(field.stop - field.start, b"\0")
    return data[:at] + signed(bytes(block)) + data[at + BLOCK :]


SIZE, KIND, NAME = slice(124, 136), slice(156, 157), slice(0, 100)


def by_tarfile(entries: list[tarfile.TarInfo], *, form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for entry in entries:
            tar.addfile(entry, io.BytesIO(b"z" * entry.size))
    return file.getvalue()


def entry(name: str, size: int = 700, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def test_tarfile_gnu_tar_and_webdataset_read_what_was_written(tmp_path: Path) -> None:
    members = {name: os.urandom(1000 + size) for size, name in NAMES.items()} | {"e.cls": b"", "k.cls": b"3" * BLOCK}
    data, offsets = written(members)
    assert len(data) % 10240 == 0
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with tarfile.open(path) as tar:
        assert {info.name: tar.extractfile(info).read() for info in tar} == members  # type: ignore[union-attr]
        infos = tar.getmembers()
    assert [info.offset_data for info in infos] == offsets
    assert {(i.mtime, i.mode, i.uid, i.gid, i.uname, i.gname) for i in infos} == {(0, 0o444, 0, 0, *["tlbatch"] * 2)}
    shown = subprocess.run(["tar", "tvf", path], check=True, capture_output=True, text=True)
    assert shown.stderr == ""
    assert [line.split()[-1] for line in shown.stdout.splitlines()] == list(members)
    subprocess.run(["tar", "xf", path, "-C", tmp_path], check=True)
    assert all((tmp_path / name).read_bytes() == payload for name, payload in members.items())
    assert stat.S_IMODE((tmp_path / "e.cls").stat().st_mode) == 0o444
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    expected = {name.removesuffix(".jpg"): payload for name, payload in members.items() if name.endswith(".jpg")}
    assert {s["__key__"]: s["jpg"] for s in samples if "jpg" in s} == expected


def test_short_names_give_the_bytes_of_tarfile_itself() -> None:
    data, _ = written({"a.jpg": b"12", NAMES[200]: b"x" * BLOCK})
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, payload in (("a.jpg", b"12"), (NAMES[200], b"x" * BLOCK)):
            info = entry(name, len(payload), mode=0o444, uname="tlbatch", gname="tlbatch")
            tar.addfile(info, io.BytesIO(payload))
    assert data == file.getvalue()


def test_the_same_members_give_the_same_bytes() -> None:
    assert written(small()) == written(small())


@pytest.mark.parametrize("name", ["", "/a.jpg", "a/", "\u00e9.jpg"])
def test_names_that_are_not_relative_ascii_are_refused(name: str) -> None:
    with pytest.raises((AssertionError, UnicodeEncodeError)):
        TarStream(io.BytesIO()).add(name, b"")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 400), unique=True, max_size=8), st.integers(0, 1100))
def test_every_length_of_name_is_read_back(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], n: int) -> None:
    members = {("ab/" * size)[: size - 1] + "z": b"q" * n for size in sizes}
    data, offsets = written(members)
    found, damage = scan(tmp_path_factory.getbasetemp(), data)
    assert damage == []
    assert found == [Member(name, offset, n) for name, offset in zip(members, offsets, strict=True)]


def test_a_clean_tar_has_no_damage(tmp_path: Path) -> None:
    data, offsets = written(small())
    found, damage = scan(tmp_path, data)
    assert damage == []
    sizes = [len(payload) for payload in small().values()]
    assert found == [Member(*row) for row in zip(small(), offsets, sizes, strict=True)]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_links_and_folders_of_other_writers_are_read(tmp_path: Path, form: int) -> None:
    long = "n" * 120 + "/" + "m" * 90 + ".jpg" if form == tarfile.USTAR_FORMAT else "\u00e9" * 150 + ".jpg"
    data = by_tarfile([entry("d", 0, type=tarfile.DIRTYPE), entry(long), entry("b.jpg")], form=form)
    found, damage = scan(tmp_path, data)
    assert damage == []
    assert names(found) == [long, "b.jpg"]


def test_gnu_tar_writes_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "\u00e9.cls", "w" * 200 + ".jpg"):
        (tmp_path / "in" / name).write_bytes(b"1")
    for form in ("gnu", "pax", "ustar", "v7", "oldgnu"):
        skip = ["--exclude=www*"] if form in {"ustar", "v7"} else []
        subprocess.run(["tar", "cf", tmp_path / "y.tar", f"--format={form}", *skip, "-C", tmp_path, "in"], check=True)
        found, damage = scan_tar(tmp_path / "y.tar")
        assert damage == []
        assert len(found) == (2 if skip else 3)
        assert all((tmp_path / "y.tar").read_bytes()[member.offset :][:1] == b"1" for member in found)
        assert "in/\u00e9.cls" in names(found)


def test_checksums_over_signed_bytes_are_accepted(tmp_path: Path) -> None:
    data = by_tarfile([entry("\u00e9.jpg")], form=tarfile.USTAR_FORMAT)
    total = sum(data[:148]) + 256 + sum(data[156:BLOCK]) - 256 * sum(byte > 127 for byte in data[:BLOCK])
    found, damage = scan(tmp_path, data[:148] + b"%06o\0 " % total + data[156:])
    assert damage == []
    assert names(found) == ["\u00e9.jpg"]


def test_joined_tars_are_read_on_whatever_their_padding(tmp_path: Path) -> None:
    first, second = written({"a.jpg": b"1"})[0], written({"b.jpg": b"2"})[0]
    for joined in (first + second, first[:2048] + second, first[: 4 * BLOCK] + second):
        found, damage = scan(tmp_path, joined)
        assert damage == []
        assert names(found) == ["a.jpg", "b.jpg"]


def test_zeros_that_are_no_end_mark_are_named(tmp_path: Path) -> None:
    data, _ = written({"a.jpg": b"1", "b.jpg": b"2"})
    for count, words in ((1, "single block of zeros at offset 1024"), (30, "15360 bytes of zeros at offset 1024")):
        found, damage = scan(tmp_path, data[:1024] + bytes(count * BLOCK) + data[1024:])
        assert names(found) == ["a.jpg", "b.jpg"]
        assert words in causes(damage)
        assert len(damage) == 1


def test_a_truncated_member_is_named_once(tmp_path: Path) -> None:
    data, offsets = written({"a.jpg": b"1", "b.jpg": b"2" * 3000})
    for size in (offsets[1], offsets[1] + 1, offsets[1] + 2999):
        found, damage = scan(tmp_path, data[:size])
        assert names(found) == ["a.jpg"]
        assert [one.name for one in damage] == ["b.jpg"]
        assert "is cut short" in damage[0].cause


def test_a_tar_cut_between_members_has_no_end_mark(tmp_path: Path) -> None:
    data, _ = written({"a.jpg": b"1", "b.jpg": b"2"})
    for size in (1024, 512 + 1):
        found, damage = scan(tmp_path, data[:size])
        assert names(found) == ["a.jpg"]
        assert causes(damage) == "x.tar: ends without an end-of-archive mark, so members may be missing"
    found, damage = scan(tmp_path, data[:1100])
    assert causes(damage) == "x.tar: 76 bytes at offset 1024 belong to no readable member"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_bad_checksum_loses_one_member_and_names_its_bytes(tmp_path: Path, number: int) -> None:
    data, offsets = written({f"{name}.jpg": b"1" * 1500 for name in "abc"})
    at = offsets[number] - BLOCK
    broken = data[:at] + b"?" + data[at + 1 :]
    found, damage = scan(tmp_path, broken)
    assert names(found) == [f"{name}.jpg" for name in "abc" if name != "abc"[number]]
    assert causes(damage) == f"x.tar: 2048 bytes at offset {at} belong to no readable member"


def test_junk_after_the_end_is_named(tmp_path: Path) -> None:
    data, _ = written({"a.jpg": b"1"})
    found, damage = scan(tmp_path, data + b"junk")
    assert names(found) == ["a.jpg"]
    assert causes(damage) == "x.tar: 4 bytes at offset 10240 belong to no readable member"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty, not a tar"),
        (b"x", "is not a tar"),
        (b"\xff\xd8" * 5000, "is not a tar"),
        (gzip.compress(written(small())[0]), "is compressed; unpack it first"),
        (bz2.compress(written(small())[0]), "is compressed; unpack it first"),
        (b"\x28\xb5\x2f\xfd" * 300, "is compressed; unpack it first"),
    ],
)
def test_what_is_no_tar_is_called_so(tmp_path: Path, data: bytes, words: str) -> None:
    found, damage = scan(tmp_path, data)
    assert found == []
    assert len(damage) == 1
    assert words in damage[0].cause


def test_an_empty_archive_is_a_tar(tmp_path: Path) -> None:
    assert scan(tmp_path, bytes(10240)) == ([], [])


def test_what_cannot_be_opened_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan_tar(tmp_path / "none.tar")
    with pytest.raises(IsADirectoryError):
        scan_tar(tmp_path)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (entry("/etc/a.jpg"), "/etc/a.jpg: its name is absolute"),
        (entry("d/../../a.jpg"), "d/../../a.jpg: its name holds '..'"),
        (entry("l.jpg", 0, type=tarfile.SYMTYPE, linkname="a"), "l.jpg: is a symbolic link, not a file"),
        (entry("l.jpg", 0, type=tarfile.LNKTYPE, linkname="a" * 150), "l.jpg: is a hard link, not a file"),
        (entry("l.jpg", 0, type=tarfile.CHRTYPE), "l.jpg: is a character device, not a file"),
        (entry("l.jpg", 0, type=tarfile.BLKTYPE), "l.jpg: is a block device, not a file"),
        (entry("l.jpg", 0, type=tarfile.FIFOTYPE), "l.jpg: is a named pipe, not a file"),
        (entry("l.jpg", 0, type=b"Q"), "l.jpg: has the unknown type b'Q'"),
        (entry("a.jpg"), "a.jpg: stands in the tar more than once"),
        (entry("bad\udcff.jpg"), "bad\\xff.jpg: its name is not UTF-8"),
        (entry("p" * 5000), "longer than 4096 bytes"),
    ],
)
@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_that_are_no_plain_files_are_named(
    tmp_path: Path, info: tarfile.TarInfo, words: str, form: int
) -> None:
    found, damage = scan(tmp_path, by_tarfile([entry("a.jpg"), info, entry("z.jpg")], form=form))
    assert names(found) == ["a.jpg", "z.jpg"]
    assert words in causes(damage)
    assert len(damage) == 1


def test_a_sparse_file_of_gnu_tar_is_named(tmp_path: Path) -> None:
    with (tmp_path / "s.jpg").open("wb") as file:
        for number in range(3):
            file.seek(number << 20)
            file.write(b"1" * 4096)
    (tmp_path / "z.jpg").write_bytes(b"1")
    for form in ("gnu", "pax"):
        command = ["tar", "cSf", str(tmp_path / "x.tar"), f"--format={form}", "-C", str(tmp_path), "s.jpg", "z.jpg"]
        subprocess.run(command, check=True)
        found, damage = scan_tar(tmp_path / "x.tar")
        assert names(found) == ["z.jpg"]
        assert all("is a sparse file" in one.cause for one in damage)
        assert len(damage) == 1


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (b"\xff" * 12, "its size is no number"),
        (b"-0000000001", "its size is no number"),
        (b"9", "its size is no number"),
        (b"\x80" + b"\x7f" * 11, "is cut short"),
        (b"77777777777", "is cut short"),
        (b"0", "1500 bytes"),
    ],
)
def test_a_forged_size_does_not_hide_the_next_member(tmp_path: Path, size: bytes, words: str) -> None:
    data, offsets = written({f"{name}.jpg": b"1" * 1500 for name in "abc"})
    found, damage = scan(tmp_path, forged(data, offsets[1] - BLOCK, SIZE, size))
    assert {"a.jpg", "c.jpg"} <= set(names(found))
    assert words.replace("1500", "1536") in causes(damage)
    assert len(damage) == 1


def test_a_file_called_a_folder_is_not_lost_silently(tmp_path: Path) -> None:
    data, offsets = written({f"{name}.jpg": b"1" * 1500 for name in "abc"})
    found, damage = scan(tmp_path, forged(data, offsets[1] - BLOCK, KIND, b"5"))
    assert names(found) == ["a.jpg", "c.jpg"]
    assert "1536 bytes" in causes(damage)


@pytest.mark.parametrize("kind", list("xgLKX"))
@pytest.mark.parametrize("size", [b"0", b"5", b"4000000", b"77777777777", b"\xff" * 12, b"\x80" + b"\x7f" * 11])
def test_crafted_extended_headers_are_damage_in_little_memory(tmp_path: Path, kind: str, size: bytes) -> None:
    data, offsets = written({"a.jpg": b"1", "b.jpg": b"9" * (3 << 20), "c.jpg": b"3"})
    bomb = forged(forged(data, offsets[1] - BLOCK, KIND, kind.encode()), offsets[1] - BLOCK, SIZE, size)
    tracemalloc.start()
    found, damage = scan(tmp_path, bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20
    assert "a.jpg" in names(found)
    assert "c.jpg" in names(found) or "c.jpg" in causes(damage)
    assert damage


@pytest.mark.parametrize(
    "record",
    [
        b"12 path=../x\n",
        b"99999999999999999999 path=x\n",
        b"0 path=x\n",
        b"-9 path=x\n",
        b"9" * 400 + b" path=x\n",
        b"12 size=1e9\n",
        b"16 size=\xd9\xa1\xd9\xa1\xd9\xa1\n",
        b"11 size=-1\n",
        b"30 size=99999999999999999999\n\n\n",
        b"10 path=a\0",
        b"11 path=a\0\n",
        b"8 pathx\n",
        b"\0" * 20,
        b"5 =x\n\n",
        b"21 GNU.sparse.map=a\n\n",
    ],
)
def test_bad_records_of_an_extended_header_are_damage(tmp_path: Path, record: bytes) -> None:
    data, offsets = written({"a.jpg": b"1", "x": record, "b.jpg": b"2", "c.jpg": b"3"})
    found, damage = scan(tmp_path, forged(data, offsets[1] - BLOCK, KIND, b"x"))
    assert names(found) == ["a.jpg", "c.jpg"]
    assert len(damage) == 1


def test_an_extended_header_applies_to_the_member_right_after_it_only(tmp_path: Path) -> None:
    long = "l" * 150
    data, offsets = written({"a.jpg": b"1", long: b"2", "c.jpg": b"3"})
    at = offsets[1] - BLOCK
    for broken in (
        data[:at] + b"?" * BLOCK + data[at + BLOCK :],
        data[: at - 1024] + data[at - 1024 : at] + data[at - 1024 :],
    ):
        found, damage = scan(tmp_path, broken)
        assert "c.jpg" in names(found)
        assert "belongs to no readable member" in causes(damage)
    found, damage = scan(tmp_path, data[:at] + bytes(1024))
    assert names(found) == ["a.jpg"]
    assert "belongs to no readable member" in causes(damage)


def test_global_headers_may_comment_but_not_rename(tmp_path: Path) -> None:
    for record, is_fine in ((b"18 comment=abcdef\n", True), (b"10 path=q\n", False), (b"??", False)):
        data, offsets = written({"g": record, "b.jpg": b"2"})
        found, damage = scan(tmp_path, forged(data, offsets[0] - BLOCK, KIND, b"g"))
        assert names(found) == ["b.jpg"]
        assert (damage == []) == is_fine


# The fuzz test follows each block of the original through the mutations: -1 is a block that was changed or made up.

Blocks = list[tuple[int, bytes]]


def flip(blocks: Blocks, draw: random.Random, _heads: list[int]) -> None:
    at = draw.randrange(len(blocks))
    data = bytearray(blocks[at][1])
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    blocks[at] = (-1, bytes(data))


def drop(blocks: Blocks, draw: random.Random, _heads: list[int]) -> None:
    at = draw.randrange(len(blocks))
    del blocks[at : at + draw.choice((1, 1, 2, 3, 6))]


def repeat(blocks: Blocks, draw: random.Random, _heads: list[int]) -> None:
    at, to = draw.randrange(len(blocks)), draw.randrange(len(blocks))
    blocks[to:to] = blocks[at : at + draw.choice((1, 1, 2, 3, 6))]


def insert(blocks: Blocks, draw: random.Random, _heads: list[int]) -> None:
    at, count = draw.randrange(len(blocks)), draw.choice((1, 2, 3, 30))
    blocks[at:at] = [(-1, draw.choice((bytes(BLOCK), draw.randbytes(BLOCK))))] * count


def cut(blocks: Blocks, draw: random.Random, _heads: list[int]) -> None:
    at = draw.randrange(len(blocks))
    blocks[at:] = [(-1, blocks[at][1][: draw.randrange(1, BLOCK + 1)])]


def forge(blocks: Blocks, draw: random.Random, heads: list[int]) -> None:
    places = [at for at, (origin, _) in enumerate(blocks) if origin in heads]
    if not places:
        return
    at = draw.choice(places)
    field = draw.choice((SIZE, SIZE, SIZE, KIND, KIND, NAME, slice(345, 500), slice(257, 265), slice(100, 108)))
    values: list[bytes] = [
        b"%o" % draw.randrange(1 << draw.choice((4, 10, 14, 33))),
        draw.randbytes(field.stop - field.start),
        b"\xff" * (field.stop - field.start),
        b"",
    ]
    if field == KIND:
        values = [bytes([draw.choice((*b"0123456789xgXLKSMVD\0", draw.randrange(256)))])]
    if field == NAME:
        values += [b"../x", b"/x", b"s1.jpg", b"././@LongLink"]
    block = bytearray(blocks[at][1])
    if len(block) == BLOCK:
        block[field] = draw.choice(values)[: field.stop - field.start].ljust(field.stop - field.start, b"\0")
        blocks[at] = (-1, signed(bytes(block)))


MUTATIONS: tuple[Callable[[Blocks, random.Random, list[int]], None], ...] = (
    flip,
    drop,
    repeat,
    insert,
    cut,
    forge,
    forge,
)


def test_no_mutation_crashes_the_scan_or_loses_a_member_silently(tmp_path: Path) -> None:
    members = small()
    data, offsets = written(members)
    blocks = [(at // BLOCK, data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    places = []
    for (name, payload), offset in zip(members.items(), offsets, strict=True):
        num_heads = 3 if len(name) > 100 else 1
        first = offset // BLOCK - num_heads
        places.append((name, num_heads, range(first, first + num_heads - (-len(payload) // BLOCK)), len(payload)))
    heads = [offset // BLOCK - 1 for offset in offsets] + [place.start for _, num, place, _ in places if num == 3]
    strays = {place.start + 1 for _, num_heads, place, _ in places if num_heads == 3}
    draw = random.Random(20)
    num_damaged = num_whole = 0
    for _ in range(3000):
        mutated = list(blocks)
        for _ in range(draw.choice((1, 1, 2, 4))):
            if mutated:
                draw.choice(MUTATIONS)(mutated, draw, heads)
        found, damage = scan(tmp_path, b"".join(block for _, block in mutated))
        assert all(isinstance(one.name, str) and one.cause for one in damage)
        num_damaged += bool(damage)
        origins = [origin for origin, _ in mutated]
        spans = [(member.offset, member.offset + member.size) for member in found]
        for name, num_heads, place, size in places:
            for at in (at for at, origin in enumerate(origins) if origin == place.start):
                is_swallowed = any(start <= at * BLOCK < end for start, end in spans)
                # A name of its own left over from a member cut out exactly goes to the next one: no reader can tell.
                is_renamed = at > 0 and origins[at - 1] in strays
                if origins[at : at + len(place)] == list(place) and not is_swallowed and not is_renamed:
                    is_found = Member(name, (at + num_heads) * BLOCK, size) in found
                    assert is_found or damage, (name, at)
                    num_whole += is_found
    assert num_damaged > 1500
    assert num_whole > 20000


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=3000))
def test_any_bytes_at_all_are_scanned(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    _, damage = scan(tmp_path_factory.getbasetemp(), data)
    assert damage or not data.strip(b"\0")
