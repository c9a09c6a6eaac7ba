from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlbatch.core.errors import UserError
from tlbatch.evaluation.prediction_parts import Part, Width, merge_parts, read_rows, write_part

HEADER = {"run": "one", "weights": "w"}
KEYS = np.array([f"eye{number}" for number in range(100)], np.bytes_)


def part_of(rows: list[int], *, num_classes: int = 3) -> Part:
    """Numbers that tell the row."""
    at = np.array(rows, np.int64)
    errors = {row: f"cannot be read {row}" for row in rows if row % 10 == 7}
    rising = np.abs(at[:, None]) + np.arange(1, num_classes + 1) ** 2
    probabilities = (rising / rising.sum(axis=1, keepdims=True)).astype(np.float32)
    return Part.of_classes(at, probabilities, at.astype(np.float32) / 2, errors)


def merged(folder: Path, expected: list[int]) -> Part:
    return merge_parts(folder, HEADER, np.array(expected, np.int64), keys=KEYS, width=Width(3))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(40)), st.lists(st.integers(0, 40), max_size=4), st.integers(0, 1), st.integers(1, 3))
def test_any_number_of_parts_in_any_order_merge_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[int], cuts: list[int], first: int, step: int
) -> None:
    expected = [row for row in range(40) if row % step == 0 or row == first]
    rows = [row for row in rows if row in expected]
    folder = tmp_path_factory.mktemp("parts")
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    for rank in range(len(edges) - 1):
        write_part(folder, part_of(rows[edges[rank] : edges[rank + 1]]), HEADER)
    found, whole = merged(folder, expected), part_of(expected)
    assert found.rows.tolist() == expected
    assert np.array_equal(found.probabilities, whole.probabilities)
    assert np.array_equal(found.grades, whole.grades)
    assert list(found.errors.items()) == list(whole.errors.items())


@pytest.mark.parametrize(
    ("rows", "expected", "says"),
    [
        ([[0, 1], [3]], [0, 1, 2, 3], "1 image not predicted, the first is eye2"),
        ([[0, 1], [1, 2]], [0, 1, 2], "1 image predicted twice, the first is eye1"),
        ([[0, 0], [1]], [0, 1], "1 image predicted twice, the first is eye0"),
        ([[0, 5], [1]], [0, 1], "1 image predicted unexpectedly, the first is eye5"),
        ([[0, 1], [500]], [0, 1], "1 image predicted unexpectedly, the first is row 500"),
        ([[0], [-1]], [0], "1 image predicted unexpectedly, the first is row -1"),
    ],
)
def test_what_is_missing_doubled_or_unknown_is_named(
    tmp_path: Path, rows: list[list[int]], expected: list[int], says: str
) -> None:
    for some in rows:
        write_part(tmp_path, part_of(some), HEADER)
    with pytest.raises(UserError, match=says):
        merged(tmp_path, expected)


def test_parts_of_another_run_or_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no predictions; run predict first"):
        merged(tmp_path, [0])
    write_part(tmp_path, part_of([0]), HEADER | {"run": "two"})
    with pytest.raises(UserError, match="made with run two, not one"):
        merged(tmp_path, [0])
    write_part(tmp_path, part_of([0], num_classes=4), HEADER)
    with pytest.raises(UserError, match=r"probabilities have shape \(1, 4\), not \(1, 3\)"):
        merged(tmp_path, [0])
    (file,) = tmp_path.glob("part-*.npz")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        merged(tmp_path, [0])


@pytest.mark.parametrize("wrong", [[np.nan] * 3, [np.inf, 0, 0], [-0.5, 1, 0.5], [0, 0, 0], [0.9, 0.9, 0]])
def test_numbers_that_are_no_probabilities_are_refused(tmp_path: Path, wrong: list[float]) -> None:
    part = part_of([0, 1, 2])
    part.probabilities[1] = wrong
    write_part(tmp_path, part, HEADER)
    with pytest.raises(UserError, match="the probabilities of 1 image do not sum to 1, the first is row 1"):
        merged(tmp_path, [0, 1, 2])


def test_a_part_of_another_kind_of_archive_is_damaged(tmp_path: Path) -> None:
    write_part(tmp_path, part_of([0]), HEADER)
    (file,) = tmp_path.glob("part-*.npz")
    whole = bytearray(file.read_bytes())
    at = whole.rindex(b"PK\x01\x02")
    whole[at + 10] = 99  # a way to compress that zip does not know
    file.write_bytes(bytes(whole))
    with pytest.raises(UserError, match="damaged"):
        merged(tmp_path, [0])


def test_what_was_predicted_is_known_again_and_what_is_of_no_use_removed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for rows in ([3, 1], [7, 0], [5]):
        write_part(tmp_path, part_of(rows), HEADER)
    write_part(tmp_path, part_of([9]), HEADER | {"run": "two"})
    assert sorted(read_rows(tmp_path, HEADER, Width(3)).tolist()) == [0, 1, 3, 5, 7]
    assert "made with run two, not one" in caplog.text
    assert len(list(tmp_path.iterdir())) == 3
    next(tmp_path.glob("*.npz")).write_bytes(b"")
    assert len(read_rows(tmp_path, HEADER, Width(3))) < 5
    assert len(list(tmp_path.iterdir())) == 2
