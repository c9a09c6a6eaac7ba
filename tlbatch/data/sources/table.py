"""A folder of images with a table of labels."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.tables import Table, read_table
from tlbatch.core.text import counted, is_missing
from tlbatch.data.sources.base import Found, key_of
from tlbatch.data.sources.listing import Listing
from tlbatch.data.sources.named_files import NamedFiles, image_names, stem_of

_SHARE_OF_KEYS = 0.5
"""Least share of the values of a column that are images, for it to be taken as the key column."""
_MOST_CLASSES = 100
"""Most distinct values of a column that is proposed for the labels."""


def from_csv(images: Path, labels: Path, data: Data, listing: Listing) -> Iterator[Found]:
    """List the images named in a table of labels."""
    files = NamedFiles(images, listing)
    table = _open(labels, data)
    for line, cause in table.misfits:
        listing.reject(f"{labels}:{line}", cause)
    columns = _Columns.of(table, data, files)
    listing.note(_understood(table, columns))
    label = data.label_column if columns.label is None else table.columns[columns.label]
    listing.columns = table.columns[columns.key], label
    names = [row[columns.key] for _, row in table.rows]
    files.drop_common_folders(names)
    for (line, row), name, stem in zip(table.rows, names, image_names(names), strict=True):
        path, cause = files.find(name)
        if path is None:
            listing.reject(stem, f"{labels}:{line}: {cause}")
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
    def of(table: Table, data: Data, files: NamedFiles) -> "_Columns":
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


def _key_column(table: Table, files: NamedFiles) -> int:
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
    names = ", ".join(table.columns[number] for number in likely)
    have = ", ".join(filter(None, table.columns))
    problem = f"several columns name the images ({names})" if names else f"no column names the images (it has {have})"
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
    misfits = f", {counted(len(table.misfits), 'row')} not fitting the header" if table.misfits else ""
    parts = ", ".join([f"{table.columns[columns.key]} (image)", label, *more])
    return f"{table.file}{dialect}: {counted(len(table.rows), 'row')}{misfits}; columns: {parts}"


def words_by_image(data: Data, labels: Path) -> dict[str, str | None]:
    """Return the words of each image by its key; None where lines contradict each other."""
    table = _open(labels, data)
    key_column = table.column(data.key_column, "data.key_column")
    label_column = table.column(data.label_column, "data.label_column")
    found: dict[str, str | None] = {}
    for _, row in table.rows:
        key, words = key_of(stem_of(row[key_column])), row[label_column]
        found[key] = words if found.get(key, words) == words else None
    return found


def label_columns(
    data: Data, labels: Path, columns: Sequence[str], read_as: tuple[str, str]
) -> dict[str, tuple[str, ...]]:
    """Return the values of some columns of the labels file, by the key of the image.

    Parameters
    ----------
    read_as
        Names of the columns from which the source was read, see `Source.columns`.

    Raises
    ------
    UserError
        When the file has no such column.
    """
    table = _open(labels, data)
    numbers = [table.column(column, "report.subgroups") for column in columns]
    key = table.column(read_as[0] if data.source == "csv" else data.key_column, "data.key_column")
    names = image_names([row[key] for _, row in table.rows])
    return {
        key_of(name): tuple(row[number] for number in numbers) for name, (_, row) in zip(names, table.rows, strict=True)
    }


def _open(labels: Path, data: Data) -> Table:
    wanted = (data.key_column, data.label_column, data.group_column, data.split.column)
    return read_table(labels, [name for name in wanted if name])
