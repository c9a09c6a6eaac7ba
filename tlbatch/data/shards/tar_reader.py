"""Read tars from untrusted sources."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tlbatch.data.shards.tar_writer import BLOCK, RECORD, next_header

_LONGEST_MARK = RECORD + BLOCK  # an end-of-archive mark of two zero blocks, padded to a record
_MAX_NAME = 4096  # PATH_MAX
_MAX_EXTENDED = 1 << 20
_PACKED = (b"\x1f\x8b", b"\x1f\x9d", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"PK\3\4")
COMPRESSED = "is compressed; unpack it first"
"""Cause of the only damage of a compressed tar."""
_FAULT = b""  # no key of an extended header is empty
_NO_FILE = {
    b"1": "is a hard link, not a file",
    b"2": "is a symbolic link, not a file",
    b"3": "is a character device, not a file",
    b"4": "is a block device, not a file",
    b"6": "is a named pipe, not a file",
    b"S": "is a sparse file, which cannot be read in place",
}


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file that lies wholly inside its tar, from byte ``offset`` to ``offset + size``."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Damage:
    """An unusable part of a tar: the name of the member, or of the tar, and why."""

    name: str
    cause: str


@dataclass(frozen=True, slots=True)
class _Header:
    """What a header with a valid checksum states: ``size`` bytes, or -1 if unclear, from offset ``data``."""

    kind: bytes
    name: bytes
    data: int
    size: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class _Stretch:
    """Blocks from ``start`` to ``end`` that are not headers; all that is not zero is in ``first`` to ``last``."""

    start: int
    first: int
    last: int
    end: int


def scan_tar(path: Path) -> tuple[list[Member], list[Damage]]:
    """Return the regular files of an uncompressed tar, in order, and everything else in it or that cannot be read.

    Every field is checked against the size of the file, and after a bad header the search continues at the next block.
    Directories are skipped; concatenated tars, with their end-of-archive marks in place, are valid. Tars have checksums
    of headers only: changed bytes in a member, or in the text of an extended header, are not detected here. Raises
    OSError if the file cannot be opened or read.
    """
    members: list[Member] = []
    damage: list[Damage] = []
    names: set[str] = set()
    with path.open("rb") as file:
        descriptor = file.fileno()
        start = os.pread(descriptor, BLOCK, 0)
        if not start:
            return [], [Damage(path.name, "is empty, not a tar")]
        if start.startswith(_PACKED) and not _is_header(start):
            return [], [Damage(path.name, COMPRESSED)]
        for entry in _entries(descriptor, os.fstat(descriptor).st_size, path.name):
            if isinstance(entry, Damage):
                damage.append(entry)
            elif entry.name in names:
                damage.append(Damage(entry.name, f"stands in the tar more than once, again at offset {entry.offset}"))
            else:
                names.add(entry.name)
                members.append(entry)
    return members, damage


def _entries(descriptor: int, end: int, label: str) -> Iterator[Member | Damage]:
    """Walk the headers of a file of ``end`` bytes; damage outside of any member is named ``label``."""
    at = excused = 0
    extended: dict[bytes, bytes] = {}
    while True:
        block, stretch = _next_header(descriptor, at)
        for cause in _lost(stretch, excused, is_last=not block):
            yield Damage(label, cause)
        if extended and (not block or block[156:157] in b"xXL" or (stretch.end > at and _FAULT not in extended)):
            yield Damage(label, f"the extended header before offset {at} belongs to no readable member")
            extended = {}
        if not block:
            return
        header = _parse(block, stretch.end + BLOCK, end, extended)
        entry: Member | Damage | None = None
        if header.kind in b"xXLK":
            extended |= _extension(descriptor, header)
        elif header.kind != b"g":
            entry, extended = _entry(header, extended), {}
        elif _extension(descriptor, header):
            entry = Damage(label, f"the global header at offset {stretch.end} is unreadable, or renames members")
        if entry:
            yield entry
        # Other kinds should have no data, so what they claim is searched for members, but not reported twice.
        is_believed = header.is_whole and header.kind in b"07\0xXgLK"
        after = next_header(header.data, header.size) if header.is_whole else end
        at = after if is_believed else header.data
        excused = after if entry and not is_believed else 0


def _next_header(descriptor: int, start: int) -> tuple[bytes, _Stretch]:
    """Return the next readable header at or after ``start``, or empty bytes at the end of the file."""
    at = first = last = start
    while (block := os.pread(descriptor, BLOCK, at)) and not _is_header(block):
        if block.strip(b"\0"):
            first = at if first == last else first
            last = at + len(block)
        at += len(block)
    return block, _Stretch(start, first if first < last else at, last, at)


def _lost(stretch: _Stretch, excused: int, *, is_last: bool) -> Iterator[str]:
    first = max(stretch.first, excused)
    zeros = stretch.end - max(stretch.last, excused)
    if first < stretch.last:
        if is_last and stretch.start == 0:
            yield "is not a tar: no header in it is readable"
        else:
            yield f"{stretch.last - first} bytes at offset {first} belong to no readable member"
    elif is_last and stretch.start == stretch.end and not excused:
        yield "ends without an end-of-archive mark, so members may be missing"
    elif zeros == BLOCK and not is_last:
        yield f"the single block of zeros at offset {stretch.end - zeros} is no end-of-archive mark"
    if zeros > _LONGEST_MARK:
        yield f"{zeros} bytes of zeros at offset {stretch.end - zeros} are too many for an end-of-archive mark"


def _is_header(block: bytes) -> bool:
    stated = _number(block[148:156])
    if stated <= 0 or len(block) < BLOCK:
        return False
    total = sum(block) - sum(block[148:156]) + 8 * 32
    # Some old writers summed signed bytes.
    return stated == total or stated == total - 256 * sum(byte > 127 for byte in block)


def _number(field: bytes) -> int:
    """Return the value of an octal field, or of one in GNU's binary form; -1 if it is neither, or negative."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    return -1 if digits.strip(b"01234567") else int(digits or b"0", 8)


def _parse(block: bytes, data: int, end: int, extended: dict[bytes, bytes]) -> _Header:
    kind = block[156:157]
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    name = prefix + b"/" + name if prefix else name
    size = _number(block[124:136])
    if kind not in b"xXgLK":
        name, size = extended.get(b"path", name), int(extended.get(b"size", size))
    return _Header(kind, name, data, size, is_whole=0 <= size <= end - data)


def _extension(descriptor: int, header: _Header) -> dict[bytes, bytes]:
    """Read what an extended header states about the next member: path, size, sparse-file marks, or a fault."""
    if not header.is_whole or not 0 < header.size <= _MAX_EXTENDED:
        return {_FAULT: b""}
    data = os.pread(descriptor, header.size, header.data)
    if header.kind in b"LK":
        if header.name != b"././@LongLink":
            return {_FAULT: b""}
        return {b"path": data.partition(b"\0")[0]} if header.kind == b"L" else {}
    records: dict[bytes, bytes] = {}
    data, at = data.rstrip(b"\0"), 0
    while at < len(data):
        digits, _, _ = data[at : at + 20].partition(b" ")
        after = at + int(digits) if digits.isdigit() else at
        key, equals, value = data[at + len(digits) + 1 : after - 1].partition(b"=")
        if not key or not equals or data[after - 1 : after] != b"\n":
            return {_FAULT: b""}
        if value and (key in {b"path", b"size"} or key.startswith(b"GNU.sparse.")):
            records[key] = value
        at = after
    size = records.get(b"size", b"0")
    return records if data and size.isdigit() and len(size) <= 20 else {_FAULT: b""}


def _entry(header: _Header, extended: dict[bytes, bytes]) -> Member | Damage | None:
    """Return the member that a header describes, or why it cannot be used; None for a directory."""
    is_folder = header.kind == b"5" or (header.kind == b"\0" and header.name.endswith(b"/"))
    if is_folder and _FAULT not in extended:
        return None
    name = header.name[:_MAX_NAME].decode(errors="backslashreplace")
    cause = _cause(header, extended)
    return Damage(name, cause) if cause else Member(name, header.data, header.size)


def _cause(header: _Header, extended: dict[bytes, bytes]) -> str | None:
    if _FAULT in extended:
        return "its extended header is unreadable"
    if header.kind not in b"07\0":
        return _NO_FILE.get(header.kind, f"has the unknown type {header.kind!r}")
    if any(key.startswith(b"GNU.sparse.") for key in extended):
        return _NO_FILE[b"S"]
    if header.size < 0:
        return "its size is no number"
    if not header.is_whole:
        return f"is cut short: its {header.size} bytes at offset {header.data} go beyond the end of the tar"
    return _name_cause(header.name)


def _name_cause(name: bytes) -> str | None:
    try:
        name.decode()
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    if not name or name.endswith(b"/") or b"\0" in name or len(name) > _MAX_NAME:
        return f"its name is no file's name, or longer than {_MAX_NAME} bytes"
    if name.startswith(b"/"):
        return "its name is absolute"
    return "its name holds '..'" if b".." in name and b".." in name.split(b"/") else None
