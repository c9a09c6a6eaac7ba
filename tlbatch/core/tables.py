"""Tables as people have them: text in any dialect and encoding, Excel workbooks, Parquet."""

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from tlbatch.core.errors import UserError
from tlbatch.core.text import counted, trimmed

_DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_SAMPLE_ROWS = 200
_WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods")
_PARQUET = (".parquet", ".pq")
_BOMS = (
    (b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\x00\x00", "utf-32-le"), (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be"),
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A table of text, with the cells as the user wrote them, but without white space around them."""

    file: Path
    columns: tuple[str, ...]
    """Names in the header; a column without a name is empty here."""
    rows: list[tuple[int, tuple[str, ...]]]
    """Line number in the file, from 1, and as many cells as there are columns; rows of empty cells are left out."""
    misfits: list[tuple[int, str]] = field(default_factory=list)
    """Line numbers of the rows that do not fit the header, with the cause."""
    dialect: str = ""
    """How the file was read, where it is not comma-separated UTF-8."""

    def column(self, name: str, key: str) -> int:
        """Return the number of a column.

        Raises UserError if there is none of this name, or more than one, and names the job's key that chooses another.
        """
        have = ", ".join(filter(None, self.columns))
        if self.columns.count(name) > 1:
            raise UserError(f"{self.file}: two columns {name} (it has {have}); rename one, or set {key}=NAME")
        if name not in self.columns:
            raise UserError(f"{self.file}: no column {name} (it has {have}); set {key}=NAME")
        return self.columns.index(name)


def read_table(file: Path, wanted: Sequence[str] = ()) -> Table:
    """Read a table.

    Parameters
    ----------
    file
        Text, an Excel workbook (its first sheet that is not empty), or Parquet, told apart by the extension.
    wanted
        Names of columns that the header is likely to have; they decide between delimiters.

    Raises
    ------
    UserError
        When the file is missing, cannot be read, or is no table.
    """
    try:
        match file.suffix.lower():
            case ending if ending in _WORKBOOKS:
                return _of_workbook(file)
            case ending if ending in _PARQUET:
                return _of_parquet(file)
            case _:
                return _of_text(file, file.read_bytes(), wanted)
    except FileNotFoundError:
        raise UserError(f"{file}: no such table; name another file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror}); check its permissions") from None


def read_lines(file: Path) -> tuple[list[str], str]:
    """Return the lines of a text file, without white space around them, and its encoding.

    Raises OSError if the file cannot be read, and UserError if it is in no known encoding.
    """
    text, encoding = _decoded(file, file.read_bytes())
    lines = io.StringIO(text.lstrip("\ufeff").rstrip("\0\x1a"), newline=None)
    return [trimmed(line) for line in lines], encoding


def _of_text(file: Path, data: bytes, wanted: Sequence[str]) -> Table:
    text, encoding = _decoded(file, data)
    lines, first = _from_header(text.lstrip("\ufeff").rstrip("\0\x1a"), wanted)
    delimiter = _delimiter(lines, wanted)
    quote = "'" if _is_quoted(lines, delimiter, "'") else '"'
    said = [f"separated by {_DELIMITERS[delimiter]}"] if delimiter != "," else []
    said += [f"encoded in {encoding}"] if encoding != "UTF-8" else []
    said += ["quoted by '"] if quote == "'" else []
    said += [f"{counted(first, 'line')} before the header"] if first else []
    try:
        rows = [(first + number, row) for number, row in _parsed(lines, delimiter, quote)]
    except csv.Error as error:
        raise UserError(f"{file}: not a table ({error}); mend that line") from None
    return _table(file, rows, ", ".join(said))


def _decoded(file: Path, data: bytes) -> tuple[str, str]:
    """Return the text of a file and the name of its encoding: by its byte order mark, else UTF-16, UTF-8 or Latin-1."""
    for mark, name in _BOMS:
        if data.startswith(mark):
            return _strictly(file, data[len(mark) :], name), name.upper().removesuffix("-LE").removesuffix("-BE")
    sample = data[:4096]
    for name, zeros in (("utf-16-le", sample[1::2]), ("utf-16-be", sample[::2])):
        if len(sample) > 3 and zeros.count(0) > 0.7 * len(zeros):
            return _strictly(file, data, name), "UTF-16"
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        others = len(re.findall(rb"[\xc2-\xf4][\x80-\xbf]+", data))
        if others > len(re.findall(rb"[\x80-\xff]+", data)) / 2:
            raise UserError(f"{file}:{line}: not UTF-8, as the rest of it is; save it again in one encoding") from None
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise UserError(f"{file}:{line}: neither UTF-8 nor Latin-1; save it in UTF-8") from None
    if _share_in_runs(data) > 0.5:
        raise UserError(f"{file}:{line}: neither UTF-8 nor Latin-1; save it in UTF-8")
    return text, "Latin-1"


def _share_in_runs(data: bytes) -> float:
    """Return the share of the bytes above ASCII that are beside another one."""
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    return sum(length for length in runs if length > 1) / sum(runs)


def _strictly(file: Path, data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: begins as {encoding}, but is not ({error.reason}); save it in UTF-8") from None


def _from_header(text: str, wanted: Sequence[str]) -> tuple[list[str], int]:
    """Return the lines from the header on, and the number before it: comments, empty lines, Excel's ``sep=``.

    A comment that contains a wanted name as a cell is the header.
    """
    lines = list(io.StringIO(text, newline=""))
    for number, line in enumerate(lines):
        bare = trimmed(line)
        names = map(trimmed, re.split(r"[,;\t|]", bare[1:]))
        if bare.startswith("#") and not set(wanted).isdisjoint(names):
            return [line.replace("#", "", 1), *lines[number + 1 :]], number
        if bare and not bare.startswith("#") and not re.fullmatch(r"sep=.", bare):
            return lines[number:], number
    return [], len(lines)


def _delimiter(lines: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the delimiter that gives most of the wanted names, then the most even rows, then the most columns."""

    def merit(delimiter: str) -> tuple[int, float, int]:
        rows: list[list[str]] = []
        with suppress(csv.Error):  # which is reported for the delimiter that is chosen
            rows.extend(_stripped(row) for _, row in _parsed(lines, delimiter, '"', _SAMPLE_ROWS))
        if not rows or len(rows[0]) < 2:
            return 0, 0, 0
        named = sum(trimmed(name).strip("'") in wanted for name in rows[0])
        fitting = sum(len(row) == len(rows[0]) for row in rows) / len(rows)
        return named, fitting, len(rows[0])

    return max(_DELIMITERS, key=merit)


def _is_quoted(lines: Sequence[str], delimiter: str, quote: str) -> bool:
    header: list[str] = []
    with suppress(csv.Error):
        header = next((row for _, row in _parsed(lines, delimiter, '"', 1)), [])
    names = [trimmed(name) for name in header if trimmed(name)]
    return bool(names) and all(len(name) > 1 and name[0] == name[-1] == quote for name in names)


def _parsed(
    lines: Sequence[str], delimiter: str, quote: str, most: int | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows with their line numbers, from 1."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        reader = csv.reader(lines, delimiter=delimiter, quotechar=quote, strict=True, skipinitialspace=True)
        for number, row in enumerate(reader):
            if number == most:
                return
            yield reader.line_num, row
    finally:
        csv.field_size_limit(before)


def _stripped(row: Sequence[str]) -> list[str]:
    """Return a row without empty fields at its end."""
    cells = [cell.strip() for cell in row]
    if not "".join(cells).isprintable():
        cells = [trimmed(cell) for cell in cells]
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _table(file: Path, rows: Sequence[tuple[int, Sequence[str]]], dialect: str) -> Table:
    """Return the table of some rows, of which the first is the header."""
    if not rows:
        raise UserError(f"{file}: is empty; name another file")
    columns = _stripped(rows[0][1])
    found, misfits = [], []
    for line, row in rows[1:]:
        cells = _stripped(row)
        if not cells:
            continue
        if len(cells) > len(columns) or len(row) < len(columns):
            misfits.append((line, f"too {'many' if len(cells) > len(columns) else 'few'} columns"))
            continue
        found.append((line, (*cells, *[""] * (len(columns) - len(cells)))))
    return Table(file, tuple(columns), found, misfits, dialect)


def _require(file: Path, *packages: str) -> None:
    for name in packages:
        if find_spec(name) is None:  # as on a login node whose tasks run in a container
            raise UserError(f"{file}: needs the package {name}; install it, or save the table as CSV")


def _of_workbook(file: Path) -> Table:
    _require(file, "fastexcel", "polars")
    import fastexcel  # noqa: PLC0415 (of no use to most tables)

    try:
        book = fastexcel.read_excel(file)
        sheets = {
            name: book.load_sheet(name, header_row=None, dtypes="string").to_polars().rows()
            for name in book.sheet_names
        }
    except fastexcel.FastExcelError as error:
        raise UserError(f"{file}: cannot be read as a workbook ({str(error).splitlines()[0]}); save it again") from None
    filled = [name for name, rows in sheets.items() if rows]
    if not filled:
        raise UserError(f"{file}: all its sheets are empty; name another file")
    others = f", of {len(filled)} that are not empty" if len(filled) > 1 else ""
    rows = [(line, [cell or "" for cell in row]) for line, row in enumerate(sheets[filled[0]], start=1)]
    return _table(file, rows, f"sheet {filled[0]}{others}")


def _of_parquet(file: Path) -> Table:
    _require(file, "polars")
    import polars as pl  # noqa: PLC0415 (of no use to most tables)

    try:
        frame = pl.read_parquet(file)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]}); write it again") from None
    plain = [name for name, kind in frame.schema.items() if not kind.is_nested() and kind != pl.Binary]
    cells = frame.select(pl.col(plain).cast(pl.String)).rows()
    rows = [(line, [cell or "" for cell in row]) for line, row in enumerate(cells, start=1)]
    return _table(file, [(0, plain), *rows], "Parquet")
