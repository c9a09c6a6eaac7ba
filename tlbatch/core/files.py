"""Atomic files, which are either complete under their final name or do not exist; digests, CSV and JSON."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import xxhash

from tlbatch.core.errors import UserError

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_CUT_SHORT = re.compile(r"\d+ requested and \d+ written")
"""numpy's message for a full disk, which has no errno."""
DRAFT_LASTS_S = 24 * 3600
"""Seconds after which a draft is certainly not being written any more."""
_DRAFT = re.compile(r"\..+\.[a-z0-9_]{8}")
"""Names that tempfile makes with the prefixes below."""
_NO_PLACE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENOENT, errno.ENAMETOOLONG}


@contextmanager
def atomic_file(path: Path, *, lasting: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside ``path``, and rename it to ``path`` if the block succeeds.

    If ``lasting``, wait until it would survive a power failure. Raises UserError if the disk or the quota is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with space_named(path), os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o666 & ~umask())
            yield file
            file.flush()
            if lasting:
                os.fsync(descriptor)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if lasting:
        sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """Create a temporary folder beside ``path``, and rename it to ``path`` if the block succeeds.

    The files in it are expected to be written with `atomic_file`, so that they are synced already. Without a mode, the
    permissions follow the umask.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with space_named(path):
            yield draft
            group_kept = draft.stat().st_mode & stat.S_ISGID  # inherited; quotas may depend on it
            draft.chmod(group_kept | (0o777 & ~umask() if mode is None else mode))
            sync_folder(draft)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(path.parent)


def remove_drafts(folder: Path, *, older_s: float | None = None) -> None:
    """Remove the temporary files and folders that killed processes have left in a folder.

    Where other processes may be writing, remove only those unchanged for ``older_s`` seconds.
    """
    for path in folder.glob(".*.*"):
        try:
            age_s = time.time() - path.lstat().st_mtime
        except FileNotFoundError:  # another process has just removed it
            continue
        if not _DRAFT.fullmatch(path.name) or (older_s is not None and age_s < older_s):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def space_named(path: Path) -> Iterator[None]:
    """Turn a full disk into an error that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE or (error.errno is None and _CUT_SHORT.fullmatch(str(error))):
            raise UserError(
                f"{path}: no space left on the device or in the quota; free some, or set workspace=PATH, and run again"
            ) from None
        raise


@contextmanager
def place_named() -> Iterator[None]:
    """Turn a file that cannot be written or read, or a full disk, into an error that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE | _NO_PLACE and error.filename:
            raise UserError(
                f"{error.filename}: {error.strerror}; free space or grant access, or choose another path"
            ) from None
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file, atomically."""
    with atomic_file(target) as file, source.open("rb") as opened:
        shutil.copyfileobj(opened, file)


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write a text file in UTF-8, atomically; file names that are not valid text are escaped with backslashes."""
    with atomic_file(path, lasting=lasting) as file:
        file.write(text.encode(errors="backslashreplace"))


def to_csv(header: Sequence[str], rows: Iterable[Sequence[object]], *, exact: bool = False) -> str:
    """Format rows as CSV with a header and plain newlines, escaping texts that look like formulas unless exact."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([plain_text(cell) if isinstance(cell, str) and not exact else cell for cell in row])
    return text.getvalue()


def plain_text(text: str) -> str:
    """Escape a text that a spreadsheet would read as a formula with a leading apostrophe (OWASP).

    A text that would be a formula without its own leading apostrophes gets another one, so that the result is unique.
    """
    return f"'{text}" if text.lstrip("'").startswith(_FORMULA) else text


def exact_text(text: str) -> str:
    """Undo `plain_text`."""
    return text[1:] if text.startswith("'") and plain_text(text[1:]) == text else text


def to_json(value: object) -> str:
    """Format a value as JSON with sorted keys and a final newline: the same value always gives the same bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def digest_of(value: object) -> str:
    """Return the SHA-256 of a JSON value, as 64 hex digits."""
    return hashlib.sha256(to_json(value).encode()).hexdigest()


def absolute(path: Path) -> Path:
    """Return the absolute path without any .., since the folder that it leads out of may not exist in a container."""
    path = path.expanduser().absolute()
    return path.resolve() if ".." in path.parts else path


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum(path: Path) -> str:
    """Return the XXH3 of a file's bytes, as 32 hex digits, which detects damage but not tampering.

    It is several times faster than SHA-256.
    """
    found = xxhash.xxh3_128()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            found.update(data)
    return found.hexdigest()


def sync_folder(path: Path) -> None:
    """Sync the file names of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def umask() -> int:
    """Return the umask of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
