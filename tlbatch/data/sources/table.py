"""A folder of images with a CSV file of labels."""

import csv
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.data.sources.base import Found, key_of
from tlbatch.data.sources.files import ENDINGS, ending_of, walk
from tlbatch.runs.manifest import Rejected

log = logging.getLogger(__name__)


def from_csv(images: Path, labels: Path, data: Data, rejected: list[Rejected]) -> Iterator[Found]:
    """List the images named in a CSV file of labels."""
    files = _Files(images, rejected)
    for line, row in _rows(labels, data, rejected):
        name = (row[data.key_column] or "").strip()
        stem = _stem(name)
        path, cause = files.find(name, stem)
        if path is None:
            rejected.append(Rejected(key=key_of(stem), cause=f"{labels}:{line}: {cause}"))
            continue
        group = (row[data.group_column] or "").strip() if data.group_column else ""
        if data.group_column and not group:
            cause = f"{labels}:{line}: nothing in column {data.group_column}"
            rejected.append(Rejected(key=key_of(stem), cause=cause))
            continue
        part = (row[data.split.column] or "").strip() if data.split.column else ""
        label = (row[data.label_column] or "").strip()
        yield Found(stem, f"{images}/{path}", label, group=group, part=part)
    files.tell_unused()


class _Files:
    """The image files of a folder, found by path, or by name if it is unique."""

    def __init__(self, images: Path, rejected: list[Rejected]) -> None:
        self._images = images
        self._by_path: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        self._used = 0
        self._total = 0
        for folder, names in walk(images, ENDINGS, rejected):
            for name in names:
                inner = (folder / name).as_posix()
                stem = os.path.splitext(inner)[0]  # noqa: PTH122
                self._by_path.setdefault(stem, []).append(inner)
                self._total += 1
                if folder.parts:
                    self._by_name.setdefault(os.path.splitext(name)[0], []).append(inner)  # noqa: PTH122

    def find(self, name: str, stem: str) -> tuple[str | None, str]:
        """Return the file; or None, and why there is not exactly one."""
        found = self._by_path.get(stem) or self._by_name.get(stem) or []
        if len(found) > 1 and name != stem:
            found = [inner for inner in found if inner == name or inner.endswith(f"/{name}")]
        if not found:
            return None, f"no image named {name} below {self._images}"
        if len(found) > 1:
            return None, f"{len(found)} images named {name} ({found[0]} and {found[1]})"
        self._used += 1
        return found[0], ""

    def tell_unused(self) -> None:
        """Log the number of files without a label."""
        if self._used < self._total:
            unused = counted(self._total - self._used, "image")
            log.info("%s below %s without a line in the labels file", unused, self._images)


def words_by_image(data: Data, labels: Path) -> dict[str, str | None]:
    """Return the words of each image by its key; None where lines contradict each other."""
    found: dict[str, str | None] = {}
    for _, row in _rows(labels, data, []):
        key, words = key_of(_stem(row[data.key_column] or "")), (row[data.label_column] or "").strip()
        found[key] = words if found.get(key, words) == words else None
    return found


def _stem(name: str) -> str:
    """Return the name of an image without its extension."""
    name = name.strip()
    return os.path.splitext(name)[0] if ending_of(name) in ENDINGS else name  # noqa: PTH122 (a Path per image costs too much)


def label_columns(data: Data, labels: Path, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of some columns of the labels file, by the key of the image.

    Raises UserError if the file has no such column.
    """
    found = {}
    for _, row in _rows(labels, data, [], more=columns):
        found[key_of(_stem(row[data.key_column] or ""))] = tuple((row[column] or "").strip() for column in columns)
    return found


def _rows(
    labels: Path, data: Data, rejected: list[Rejected], *, more: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str | None]]]:
    wanted = [
        ("data.key_column", data.key_column),
        ("data.label_column", data.label_column),
        ("data.group_column", data.group_column),
        ("data.split.column", data.split.column),
        *(("report.subgroups", column) for column in more),
    ]
    try:
        with labels.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            for name, column in wanted:
                if column and column not in (reader.fieldnames or ()):
                    have = ", ".join(reader.fieldnames or ())
                    raise UserError(f"{labels}: no column {column} (it has {have}); set {name}=NAME")
            if len(set(reader.fieldnames or ())) < len(reader.fieldnames or ()):
                raise UserError(f"{labels}: two columns of one name ({', '.join(reader.fieldnames or ())}); rename one")
            for row in reader:
                if any(column and row[column] is None for _, column in wanted):
                    where = f"{labels}:{reader.line_num}"
                    rejected.append(Rejected(key=where, cause="too few columns"))
                    continue
                yield reader.line_num, row
    except FileNotFoundError:
        raise UserError(f"{labels}: no such labels file; set data.labels=PATH") from None
    except OSError as error:
        raise UserError(f"{labels}: cannot be read ({error.strerror}); check its permissions") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{labels}: not a CSV file in UTF-8 ({error}); convert it") from None
