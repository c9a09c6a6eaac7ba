"""Write tars deterministically, with headers at a fraction of the cost of tarfile."""

import struct
from typing import BinaryIO

BLOCK = 512
RECORD = 20 * BLOCK
_ZEROS = bytes(RECORD)
_USTAR = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")


class TarStream:
    """Writes a plain POSIX tar into an empty file, member by member."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0

    def add(self, name: str, data: bytes) -> int:
        """Write one member and return the offset of its first byte of data.

        The name must be ASCII and relative; one too long for ustar gets a POSIX extended header.
        """
        raw = name.encode("ascii")
        assert raw, "a member needs a name"
        assert not raw.startswith(b"/"), name
        assert not raw.endswith(b"/"), name
        prefix = b""
        if len(raw) > 100:
            cut = raw.find(b"/", len(raw) - 101)
            if 0 < cut <= 155:
                prefix, raw = raw[:cut], raw[cut + 1 :]
            else:
                rest = len(raw) + len(b" path=\n")
                size = rest + len(str(rest + len(str(rest))))  # a record's length counts its own digits
                record = b"%d path=%s\n" % (size, raw)
                self._put(_header(b"././@PaxHeader", len(record), kind=b"x"), record)
                raw = raw[:100]
        return self._put(_header(raw, len(data), prefix=prefix), data)

    def close(self) -> None:
        """Write the end-of-archive mark; the file stays open."""
        self._file.write(_ZEROS[: 2 * BLOCK + -(self._size + 2 * BLOCK) % RECORD])

    def _put(self, header: bytes, data: bytes) -> int:
        offset = self._size + BLOCK
        self._file.write(header)
        self._file.write(data)
        self._file.write(_ZEROS[: -len(data) % BLOCK])
        self._size = next_header(offset, len(data))
        return offset


def _header(name: bytes, size: int, *, prefix: bytes = b"", kind: bytes = b"0") -> bytes:
    assert size < 8**11, "ustar holds no member of 8 GiB"
    number, text, owner = b"0000000", b"", b"tlbatch"
    fields = (name, b"0000444", number, number, b"%011o" % size, b"%011o" % 0, b" " * 8, kind, text)
    block = bytearray(_USTAR.pack(*fields, b"ustar", b"00", owner, owner, text, text, prefix))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def next_header(offset: int, size: int) -> int:
    """Return the offset of the next header after a member whose data begin at ``offset``."""
    return offset + size + -size % BLOCK
