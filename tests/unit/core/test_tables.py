"""Tables in the dialects and encodings that people have."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tlbatch.core import tables
from tlbatch.core.errors import UserError
from tlbatch.core.tables import Table, read_table

ROWS = [(f"v{number:03d}", str(number % 2)) for number in range(20)]
Put = Callable[..., Table]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    def written(text: str, encoding: str = "utf-8", name: str = "labels.csv") -> Table:
        (tmp_path / name).write_bytes(text.encode(encoding))
        return read_table(tmp_path / name, ["image", "level"])

    return written


def lines(separator: str = ",", end: str = "\n", form: str = "{}") -> str:
    return "".join(separator.join(form.format(cell) for cell in row) + end for row in (("image", "level"), *ROWS))


@pytest.mark.parametrize(
    ("text", "encoding", "dialect"),
    [
        (lines(), "utf-8", ""),
        (lines(), "utf-8-sig", ""),
        ("\ufeff" + lines(), "utf-8-sig", ""),
        (lines(";"), "utf-8", "separated by semicolons"),
        (lines("\t"), "utf-16", "separated by tabs, encoded in UTF-16"),
        (lines("\t"), "utf-16-le", "separated by tabs, encoded in UTF-16"),
        (lines(), "utf-16-be", "encoded in UTF-16"),
        (lines("|"), "utf-8", "separated by vertical bars"),
        (lines(end="\r"), "utf-8", ""),
        (lines(end="\r\n"), "utf-8", ""),
        (lines(", "), "utf-8", ""),
        (lines(form='"{}"'), "utf-8", ""),
        (lines(form="'{}'"), "utf-8", "quoted by '"),
        (lines() + "\0\0\0", "utf-8", ""),
        ("# made today\n# by hand, with care\n" + lines(), "utf-8", "2 lines before the header"),
        ("sep=;\r\n" + lines(";", "\r\n"), "utf-8", "separated by semicolons, 1 line before the header"),
        (lines() + ",\r\n" * 3, "utf-8", ""),
        (lines(end=",,,\n"), "utf-8", ""),
        (lines(form=" {}\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}"), "utf-8", ""),
    ],
)
def test_any_dialect_gives_the_same_rows(put: Put, text: str, encoding: str, dialect: str) -> None:
    table = put(text, encoding)
    assert table.columns == ("image", "level")
    assert [row for _, row in table.rows] == ROWS
    assert table.misfits == []
    assert table.dialect == dialect


def test_windows_latin_is_read_as_such_and_a_broken_utf_8_is_refused_with_its_line(put: Put, tmp_path: Path) -> None:
    table = put("image,level\na,groß\nb,„klein“\n", "cp1252")
    assert [row[1] for _, row in table.rows] == ["groß", "„klein“"]
    assert table.dialect == "encoded in Latin-1"
    file = tmp_path / "broken.csv"
    file.write_bytes("image,level\na,größer\nb,Äpfel und Öl\n".encode() + b"c,gro\xdf\n")
    with pytest.raises(UserError, match=r"broken\.csv:4: not UTF-8, as the rest of it is; save it again"):
        read_table(file)
    file.write_bytes("image,level\na,綺麗\n".encode("shift-jis"))
    with pytest.raises(UserError, match=r"broken\.csv:2: neither UTF-8 nor Latin-1"):
        read_table(file)


def test_a_header_as_excel_writes_it(put: Put) -> None:
    table = put("Image name,Retinopathy grade,Risk ,,,,\neye_1,2,1,,,,\neye_2,0,,,,,\n,,,,,,\n")
    assert table.columns == ("Image name", "Retinopathy grade", "Risk")
    assert table.rows == [(2, ("eye_1", "2", "1")), (3, ("eye_2", "0", ""))]


def test_rows_that_do_not_fit_are_named_by_line_and_never_shifted(put: Put) -> None:
    table = put('image,level,note\na,1,"two\nlines"\nb,0,x,y\nc,1\nd,0,\ne,1,z,\n')
    assert table.rows == [(3, ("a", "1", "two\nlines")), (6, ("d", "0", "")), (7, ("e", "1", "z"))]
    assert table.misfits == [(4, "too many columns"), (5, "too few columns")]


def test_cells_may_be_long_and_hold_the_other_delimiters(put: Put) -> None:
    table = put("image;level;report\n" + "".join(f"a{n};1;{'x, y, ' * 40_000}\n" for n in range(3)))
    assert table.columns == ("image", "level", "report")
    assert {len(row[2]) for _, row in table.rows} == {len("x, y, " * 40_000) - 1}


def test_a_column_is_named_once(put: Put) -> None:
    table = put("image,level,level\na,1,2\n")
    assert table.column("image", "x") == 0
    with pytest.raises(UserError, match=r"two columns level \(it has image, level, level\); rename one, or set x=NAME"):
        table.column("level", "x")
    with pytest.raises(UserError, match=r"no column grade \(it has image, level, level\); set data.y=NAME"):
        table.column("grade", "data.y")


def test_workbooks_and_parquet_are_read_as_text(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.create_sheet("labels")
    for row in (("image", "level", None), ("007", 2, None), ("b", 2.5, None), (None, None, None), ("c", None, None)):
        book["labels"].append(row)
    book.save(tmp_path / "labels.xlsx")
    table = read_table(tmp_path / "labels.xlsx")
    assert table.columns == ("image", "level")
    assert table.rows == [(2, ("007", "2")), (3, ("b", "2.5")), (5, ("c", ""))]
    assert table.dialect == "sheet labels"
    frame = pl.DataFrame({"image": ["a", "b"], "level": [1, None], "pixels": [b"x", b"y"]})
    frame.write_parquet(tmp_path / "labels.parquet")
    table = read_table(tmp_path / "labels.parquet")
    assert table.columns == ("image", "level")
    assert table.rows == [(1, ("a", "1")), (2, ("b", ""))]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", b"", "is empty; name another file"),
        ("a.xlsx", b"no workbook", r"cannot be read as a workbook \(.*\); save it again"),
        ("a.parquet", b"no parquet", r"cannot be read as Parquet \(.*\); write it again"),
        ("b.csv", b'image,level\na,"1\n', r"not a table \(.*\); mend that line"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        read_table(tmp_path / name)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda name: None if name == "polars" else name)
    for name in ("a.parquet", "a.xlsx"):
        (tmp_path / name).touch()
        with pytest.raises(UserError, match="needs the package polars; install it, or save the table as CSV"):
            read_table(tmp_path / name)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.csv: no such table; name another file"):
        read_table(tmp_path / "none.csv")


def test_a_header_behind_a_hash_is_no_comment(put: Put) -> None:
    table = put("# by hand\n#image,level\n" + lines().partition("\n")[2])
    assert table.columns == ("image", "level")
    assert [row for _, row in table.rows] == ROWS
