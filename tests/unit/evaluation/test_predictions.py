from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tlbatch.core.errors import UserError
from tlbatch.core.files import exact_text
from tlbatch.data.sources.base import key_of
from tlbatch.evaluation.predictions import Predictions, read_predictions, write_predictions

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)


def predictions(keys: list[str], classes: tuple[str, ...] = ("cat", "dog"), *, lost: int | None = None) -> Predictions:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(len(classes)), len(keys)).astype(np.float32)
    errors = np.array([""] * len(keys), np.object_)
    if lost is not None:
        probabilities[lost], errors[lost] = np.nan, "=cannot, be read"
    coded = np.array([key_of(key).encode() for key in keys], np.bytes_)
    labels = np.arange(len(keys)) % len(classes)
    return Predictions(coded, coded, 1 + np.arange(len(keys)) % 2, errors, classes, labels, probabilities)


def test_predictions_come_back_from_their_file_to_the_last_bit(tmp_path: Path) -> None:
    given = predictions(["-a", *(f"a/eye {number}" for number in range(49))], lost=3)
    write_predictions(tmp_path / "p.csv", given)
    found = read_predictions(tmp_path / "p.csv", given.classes)
    for name in ("keys", "splits", "labels"):
        assert np.array_equal(getattr(found, name), getattr(given, name))
    assert [group.decode() for group in found.groups] == ["-a", *(f"a/eye {number}" for number in range(49))]
    assert np.array_equal(found.probabilities, given.probabilities, equal_nan=True)
    assert found.is_read.sum() == 49
    assert found.errors[3] == "'=cannot, be read"


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5, unique=True), st.lists(TEXTS, min_size=2, max_size=4, unique=True))
def test_no_cell_of_text_begins_a_formula_and_any_text_stays_in_its_cell(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], classes: list[str]
) -> None:
    keys = sorted(keys)
    path = tmp_path_factory.mktemp("p") / "p.csv"
    given = predictions(keys, tuple(classes))
    write_predictions(path, given)
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    assert len(table) == len(keys)
    for name in ("image", "group", "label", "prediction"):
        assert not table[name].str.match(r"[=+\-@\t\r]").any()
    assert not any(column[0] in "=+-@\t\r" for column in table.columns)
    found = read_predictions(path, classes)
    for name in ("keys", "splits", "labels", "probabilities"):
        assert np.array_equal(getattr(found, name), getattr(given, name)), name
    assert [exact_text(name) for name in table["image"]] == keys
    assert [group.decode() for group in found.groups] == keys


def test_files_that_hold_keys_are_read_with_those_that_hold_names(tmp_path: Path) -> None:
    names = ["a b.v2", "a%20b", 'x,"y"\nz', "\udcff"]
    given = predictions(names)
    write_predictions(tmp_path / "new.csv", given)
    table = pd.read_csv(tmp_path / "new.csv", dtype=str, keep_default_na=False)
    assert table["image"].tolist() == [*names[:3], "\\udcff"]
    table["image"] = [key_of(name) for name in names]
    table.rename(columns={"image": "key"}).to_csv(tmp_path / "old.csv", index=False)
    for name in ("new.csv", "old.csv"):
        assert np.array_equal(read_predictions(tmp_path / name, given.classes).keys, given.keys)


def test_a_group_of_the_user_is_written_as_it_is(tmp_path: Path) -> None:
    given = predictions(["a b", "c d"])
    write_predictions(tmp_path / "p.csv", replace(given, groups=np.array([b"a%20b", b"who%20"])))
    assert pd.read_csv(tmp_path / "p.csv")["group"].tolist() == ["a b", "who%20"]


def test_a_file_of_other_classes_or_none_is_refused_by_its_name(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", predictions(["a", "b"]))
    with pytest.raises(UserError, match=r"p\.csv: missing or damaged"):
        read_predictions(tmp_path / "p.csv", ("cat", "bird"))
    with pytest.raises(UserError, match=r"q\.csv: missing or damaged"):
        read_predictions(tmp_path / "q.csv", ("cat", "dog"))


def test_no_predictions_are_a_header_alone(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", predictions([]))
    assert (tmp_path / "p.csv").read_text("utf-8") == "image,group,split,label,prediction,p_cat,p_dog,error\n"
    assert len(read_predictions(tmp_path / "p.csv", ("cat", "dog")).keys) == 0
