"""Predicted phrases, as arrays and as predictions.csv."""

from pathlib import Path

import numpy as np
import pytest

from tlbatch.core.errors import UserError
from tlbatch.evaluation.phrases import Phrases, Tagged, read_phrases, summarise_phrases
from tlbatch.evaluation.predictions import write_predictions
from tlbatch.metrics.paired import compare
from tlbatch.metrics.phrases import Vocabulary
from tlbatch.runs.report import OddPhrases

ODD = OddPhrases(num_empty=0, num_contradicting=0, num_too_long={}, num_several={}, num_unseen={}, unseen={})
WORDS = Vocabulary(["=red", "long", "coat", "hat"], {}, ODD, 4)


def phrases(labels: list[str], written: list[str], splits: list[int] | None = None) -> Phrases:
    """The last one could not be read where it has no phrase."""
    number = len(labels)
    read = np.array([bool(text) for text in written])
    return Phrases(
        np.array([f"k{at}" for at in range(number)], np.bytes_),
        np.array([f"g{at // 2}" for at in range(number)], np.bytes_),
        np.array(splits or [2] * number),
        np.array(["" if ok else "cannot be read" for ok in read], np.object_),
        np.array(labels, np.object_),
        np.array(written, np.object_),
        np.where(read, -0.25 * np.arange(number), np.nan).astype(np.float32),
    )


SOME = phrases(["=red coat", "long coat", "hat", "coat"], ["=red coat", "coat long", "hat", ""], [1, 2, 2, 2])


def test_what_is_written_is_read_back_and_no_cell_begins_a_formula(tmp_path: Path) -> None:
    file = tmp_path / "predictions.csv"
    write_predictions(file, SOME)
    lines = file.read_text("utf-8").splitlines()
    assert lines[0] == "image,group,split,label,prediction,log_probability,error"
    assert lines[1].startswith("k0,g0,val,'=red coat,'=red coat,-0.0")
    assert lines[4] == 'k3,g1,test,coat,"",,cannot be read'
    back = read_phrases(file)
    for name in ("keys", "groups", "splits", "errors"):
        assert getattr(back, name).tolist() == getattr(SOME, name).tolist()
    assert back.is_read.tolist() == [True, True, True, False]
    assert back.is_right.tolist() == SOME.is_right.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    "spoiled", ["", "key,label\n1,2\n", "{head}\nk,g,nowhere,a,b,1,\n", "{head}\nk,g,test,a,b,x,\n"]
)
def test_a_damaged_file_is_named(tmp_path: Path, spoiled: str) -> None:
    file = tmp_path / "predictions.csv"
    write_predictions(file, SOME)
    head = file.read_text("utf-8").splitlines()[0]
    file.write_text(spoiled.format(head=head), encoding="utf-8")
    with pytest.raises(UserError, match=r"predictions\.csv: missing or damaged .*run reduce again"):
        read_phrases(file)


def test_the_accuracy_is_the_share_of_readable_test_phrases_that_are_exactly_right() -> None:
    truth, written = ([tuple(text.split()) for text in some] for some in (SOME.labels, SOME.written))
    found = summarise_phrases(Tagged(SOME, truth, written), WORDS, {"site": ["a", "b", "b"]}, seed=0)
    assert (found.n, found.num_errors, found.score) == (2, 1, 0.5)
    assert found.scores["accuracy"] == found.tags.exact_match
    assert found.scores["macro_f1"] == found.tags.macro_f1
    assert found.scores["quadratic_kappa"].undefined == "not defined for phrases"
    assert [(one.value, one.n, one.scores["accuracy"].value) for one in found.subgroups] == [("a", 1, 0), ("b", 1, 1)]


def test_two_runs_are_compared_by_the_phrases_that_only_one_has_right() -> None:
    labels = ["hat", "coat"] * 40
    one = phrases(labels, ["hat", "coat"] * 30 + ["hat", "hat"] * 10)
    two = phrases(labels, ["hat", "hat"] * 40)
    found = compare("accuracy", one.decided, two.decided, name="two", seed=0)
    assert (found.only_first, found.only_other, found.verdict) == (30, 0, "better")
    assert found.difference.value == pytest.approx(30 / 80)
