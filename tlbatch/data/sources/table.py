"""A folder of images with a table of labels."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.tables import Table, read_table
from tlbatch.core.text import counted, is_missing
from tlbatch.data.sources.base import Found, key_of
from tlbatch.data.sources.files import ENDINGS, ending_of, walk
from tlbatch.data.sources.listing import Listing

_SHARE_OF_KEYS = 0.5
"""Least share of the values of a column that are images, for it to be taken as the key column."""
_MOST_CLASSES = 100
"""Most distinct values of a column that is proposed for the labels."""


def from_csv(images: Path, labels: Path, data: Data, listing: Listing) -> Iterator[Found]:
    """List the images named in a table of labels."""
    files = _Files(images, listing)
    table = _open(labels, data)
    for line, cause in table.misfits:
        listing.reject(f"{labels}:{line}", cause)
    columns = _Columns.of(table, data, files)
    listing.note(_understood(table, columns))
    names = [row[columns.key] for _, row in table.rows]
    files.drop_common_folders(names)
    for (line, row), name, stem in zip(table.rows, names, _names(names), strict=True):
        path, cause = files.find(name)
        if path is None:
            listing.reject(key_of(stem), f"{labels}:{line}: {cause}")
            continue
        group = "" if columns.group is None or is_missing(row[columns.group]) else row[columns.group]
        part = "" if columns.part is None else row[columns.part]
        label = columns.label_of(row)
        label = "" if is_missing(label) and label not in data.classes else label
        yield Found(stem, f"{images}/{path}", label, group=group, part=part)
    files.tell_what_was_found(listing)


@dataclass(frozen=True)
class _Columns:
    """Which columns of a table hold what, by number."""

    key: int
    label: int | None
    """None if every class has a column of zeros and ones."""
    classes: dict[str, int]
    """Columns of the classes, where there is no label column."""
    group: int | None
    part: int | None

    @staticmethod
    def of(table: Table, data: Data, files: "_Files") -> "_Columns":
        """Find the columns that the job names; with its defaults, the one that names the images, and one-hot labels.

        Raises UserError if a column is missing, with those that may be meant.
        """
        if data.key_column in table.columns or data.key_column != _default("key_column"):
            key = table.column(data.key_column, "data.key_column")
        else:
            key = _key_column(table, files)
        group = table.column(data.group_column, "data.group_column") if data.group_column else None
        part = table.column(data.split.column, "data.split.column") if data.split.column else None
        if data.label_column in table.columns or data.label_column != _default("label_column"):
            return _Columns(key, table.column(data.label_column, "data.label_column"), {}, group, part)
        classes = _one_hot(table, {key, group, part})
        if not classes:
            raise UserError(_without_label(table, {key, group, part}))
        return _Columns(key, None, classes, group, part)

    def label_of(self, row: Sequence[str]) -> str:
        """Return the label of a row; empty if it has none."""
        if self.label is not None:
            return row[self.label]
        return next((name for name, column in self.classes.items() if _is_one(row[column])), "")


def _default(key: str) -> object:
    return Data.model_fields[key].default


def _key_column(table: Table, files: "_Files") -> int:
    """Return the only column most of whose values are images."""
    if files.num_matching(list(filter(None, table.columns))):
        raise UserError(f"{table.file}: its first line names an image, so it has no header; add one, e.g. image,level")
    shares = {}
    for number, name in enumerate(table.columns):
        values = [row[number] for _, row in table.rows if row[number]]
        if values and name:
            shares[number] = files.num_matching(values) / len(values)
    likely = [number for number, share in shares.items() if share >= max(_SHARE_OF_KEYS, 0.9 * max(shares.values()))]
    if len(likely) == 1:
        return likely[0]
    names = [table.columns[number] for number in likely]
    have = ", ".join(filter(None, table.columns))
    problem = f"{' and '.join(names)} both name the images" if names else f"no column names the images (it has {have})"
    raise UserError(f"{table.file}: {problem}; set data.key_column=NAME")


def _one_hot(table: Table, used: set[int | None]) -> dict[str, int]:
    """Return the columns of the classes if all that are left hold zeros and at most a single one in each row."""
    left = {name: number for number, name in enumerate(table.columns) if number not in used and name}
    if len(left) < 2 or not table.rows:
        return {}
    cells = [[row[number] for number in left.values()] for _, row in table.rows]
    if not all(_is_one(cell) or _is_zero(cell) for row in cells for cell in row):
        return {}
    sums = Counter(sum(map(_is_one, row)) for row in cells)
    return left if set(sums) <= {0, 1} and sums[1] else {}


def _is_one(cell: str) -> bool:
    return cell in ("1", "1.0") or cell.casefold() == "true"


def _is_zero(cell: str) -> bool:
    return cell in ("0", "0.0") or cell.casefold() == "false"


def _without_label(table: Table, used: set[int | None]) -> str:
    likely = []
    for number, name in enumerate(table.columns):
        values = {row[number] for _, row in table.rows}
        if number not in used and name and 1 < len(values) <= min(_MOST_CLASSES, len(table.rows) // 2):
            likely.append(f"{name} ({counted(len(values), 'value')})")
    have = ", ".join(filter(None, table.columns))
    hint = f", e.g. {' or '.join(likely)}" if likely else ""
    default = _default("label_column")
    return f"{table.file}: no column {default} (it has {have}); set data.label_column=NAME{hint}"


def _understood(table: Table, columns: _Columns) -> str:
    """Say what was read, in one line."""
    label = f"{table.columns[columns.label]} (label)" if columns.label is not None else "one column for each class"
    more = [
        f"{table.columns[number]} ({what})"
        for what, number in (("group", columns.group), ("split", columns.part))
        if number is not None
    ]
    dialect = f" ({table.dialect})" if table.dialect else ""
    misfits = f", {counted(len(table.misfits), 'row')} that do not fit the header" if table.misfits else ""
    parts = ", ".join([f"{table.columns[columns.key]} (image)", label, *more])
    return f"{table.file}{dialect}: {counted(len(table.rows), 'row')}{misfits}; columns: {parts}"


class _Files:
    """The image files of a folder, found by path, or by name if it is unique; Unicode forms count as equal."""

    def __init__(self, images: Path, listing: Listing) -> None:
        self._images = images
        self._by_path: dict[str, list[str]] = {}
        self._by_name: dict[str, list[str]] = {}
        self._by_number: dict[int, list[str]] = {}
        self._used: set[str] = set()
        self._total = 0
        self._dropped = 0
        """Leading folders of the names in the table that the paths here lack."""
        self._numbered: list[tuple[str, str]] = []
        """Names that were found by their number, with the file."""
        for folder, names in walk(images, ENDINGS, listing):
            for name in names:
                inner = (folder / name).as_posix()
                stem = os.path.splitext(name)[0]  # noqa: PTH122
                self._by_path.setdefault(_composed((folder / stem).as_posix()), []).append(inner)
                self._by_name.setdefault(_composed(stem), []).append(inner)
                if re.fullmatch(r"\d{1,18}", stem):
                    self._by_number.setdefault(int(stem), []).append(inner)
                self._total += 1
        self._unread = {_composed(one) for inner in listing.unread for one in (inner, os.path.splitext(inner)[0])}  # noqa: PTH122

    def num_matching(self, names: Sequence[str]) -> int:
        """Return how many names are images, with or without their folders."""
        return max(self._num_at(names, dropped) for dropped in range(_num_common_folders(names) + 1))

    def drop_common_folders(self, names: Sequence[str]) -> None:
        """Leave out those leading folders of all names without which most of them are found."""
        common = range(_num_common_folders(names) + 1)
        self._dropped = max(common, key=lambda dropped: (self._num_at(names, dropped), -dropped))

    def _num_at(self, names: Sequence[str], dropped: int) -> int:
        return sum(bool(self._candidates(name, dropped)) for name in names)

    def _candidates(self, name: str, dropped: int) -> list[str]:
        """Return the files that a name may mean."""
        inner = "/".join(_parts(name)[dropped:])
        stem = _stem(inner)
        found = self._by_path.get(stem) or self._by_name.get(stem) or []
        if len(found) > 1 and inner != stem:
            found = [one for one in found if _composed(one) == inner or _composed(one).endswith(f"/{inner}")]
        return found

    def find(self, name: str) -> tuple[str | None, str]:
        """Return the file; or None, and why there is not exactly one."""
        found, stem = self._candidates(name, self._dropped), _stem(name)
        if not found and re.fullmatch(r"\d{1,18}", stem):
            found = self._by_number.get(int(stem), [])
            if len(found) == 1:
                self._numbered.append((name, found[0]))
        if not found and "/".join(_parts(name)[self._dropped :]) in self._unread:
            return None, f"an image named {name} below {self._images} is in a format that is not read; convert it"
        if not found:
            return None, f"no image named {name} below {self._images}"
        if len(found) > 1:
            endings = len({_stem(one) for one in found}) == 1
            way_out = "write its ending too" if endings else "write its folder too"
            return None, f"{len(found)} images named {name} ({found[0]} and {found[1]}); {way_out}"
        self._used.add(found[0])
        return found[0], ""

    def tell_what_was_found(self, listing: Listing) -> None:
        """Say how many files have no label, and how names were understood."""
        if self._numbered:
            name, file = self._numbered[0]
            number = counted(len(self._numbered), "image")
            listing.warn(f"{number} found by number alone, such as {file} for {name}")
        if len(self._used) < self._total:
            unused = counted(self._total - len(self._used), "image")
            listing.note(f"{unused} below {self._images} without a line in the labels file")


def _composed(name: str) -> str:
    """Return a name in Unicode's composed form, which file systems do not all keep."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def _parts(name: str) -> list[str]:
    """Return the folders and the name of a path that may be absolute, or of Windows."""
    path = re.sub(r"^[A-Za-z]:(?=[\\/])", "", _composed(name)).replace("\\", "/")
    return [part for part in path.split("/") if part not in ("", ".")]


def _num_common_folders(names: Sequence[str]) -> int:
    """Return the number of leading folders that all names share."""
    folders = [_parts(name)[:-1] for name in names if name]
    if not folders:
        return 0
    pairs = zip(min(folders), max(folders), strict=False)  # what these two share, all share
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def words_by_image(data: Data, labels: Path) -> dict[str, str | None]:
    """Return the words of each image by its key; None where lines contradict each other."""
    table = _open(labels, data)
    key_column = table.column(data.key_column, "data.key_column")
    label_column = table.column(data.label_column, "data.label_column")
    found: dict[str, str | None] = {}
    for _, row in table.rows:
        key, words = key_of(_stem(row[key_column])), row[label_column]
        found[key] = words if found.get(key, words) == words else None
    return found


def _names(listed: Sequence[str]) -> list[str]:
    """Return the names of listed images: without their extension, unless only that tells two of them apart."""
    plain = ["/".join(_parts(name)) or name for name in listed]
    counts = Counter(map(_stem, set(plain)))
    return [name if counts[_stem(name)] > 1 else _stem(name) for name in plain]


def _stem(name: str) -> str:
    """Return the name of an image without its extension."""
    return os.path.splitext(name)[0] if ending_of(name) in ENDINGS else name  # noqa: PTH122 (a Path per image costs too much)


def label_columns(data: Data, labels: Path, columns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the values of some columns of the labels file, by the key of the image.

    Raises UserError if the file has no such column.
    """
    table = _open(labels, data)
    numbers = [table.column(column, "report.subgroups") for column in columns]
    images = data.images
    key = (
        table.column(data.key_column, "data.key_column")
        if data.key_column in table.columns or data.key_column != _default("key_column") or images is None
        else _key_column(table, _Files(images, Listing()))
    )
    names = _names([row[key] for _, row in table.rows])
    return {
        key_of(name): tuple(row[number] for number in numbers) for name, (_, row) in zip(names, table.rows, strict=True)
    }


def _open(labels: Path, data: Data) -> Table:
    wanted = (data.key_column, data.label_column, data.group_column, data.split.column)
    return read_table(labels, [name for name in wanted if name])
