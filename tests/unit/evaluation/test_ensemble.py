from dataclasses import replace

import numpy as np
import pytest

from tlbatch.core.errors import UserError
from tlbatch.evaluation.ensemble import together
from tlbatch.evaluation.predictions import Predictions


def member(keys: list[str], probabilities: list[list[float]], *, split: int = 2) -> Predictions:
    coded = np.array([key.encode() for key in keys], np.bytes_)
    return Predictions(
        coded, coded, np.full(len(keys), split), np.array([""] * len(keys), np.object_),
        ("a", "b"), np.zeros(len(keys), np.int64), np.array(probabilities, np.float32),
    )  # fmt: skip


ONE = member(["x", "y"], [[0.9, 0.1], [0.2, 0.8]])
TWO = member(["y", "x"], [[0.4, 0.6], [0.1, 0.9]])  # the same images in another order


def test_probabilities_of_an_image_are_averaged_by_its_key() -> None:
    found = together([ONE, TWO], ["one", "two"], "mean")
    assert found.keys.tolist() == [b"x", b"y"]
    assert found.probabilities == pytest.approx(np.array([[0.5, 0.5], [0.3, 0.7]]))


def test_the_mean_of_logarithms_is_the_geometric_mean_and_a_zero_does_not_end_it() -> None:
    found = together([ONE, TWO], ["one", "two"], "log-mean").probabilities
    product = np.sqrt(np.array([[0.9 * 0.1, 0.1 * 0.9], [0.2 * 0.4, 0.8 * 0.6]]))
    assert found == pytest.approx(product / product.sum(axis=1, keepdims=True), rel=1e-5)
    sure = member(["x", "y"], [[1, 0], [0, 1]])
    assert np.isfinite(together([sure, TWO], ["one", "two"], "log-mean").probabilities).all()


def test_ranks_do_not_depend_on_how_sure_a_run_is_of_itself() -> None:
    rng = np.random.default_rng(0)
    keys = [f"{number:02}" for number in range(50)]
    one, two = (member(keys, np.column_stack([yes, 1 - yes]).tolist()) for yes in rng.random((2, 50)))
    odds = (one.probabilities / one.probabilities[:, ::-1]) ** 3
    surer = replace(one, probabilities=odds / (1 + odds))
    found, same = (together([first, two], ["one", "two"], "rank").probabilities for first in (one, surer))
    assert found[:, 0].argsort(kind="stable").tolist() == same[:, 0].argsort(kind="stable").tolist()
    assert found.sum(axis=1) == pytest.approx(1)


def test_ranks_leave_classes_as_rare_as_they_were() -> None:
    rng = np.random.default_rng(0)
    rare = rng.random(500) < 0.05
    keys = [f"{number:03}" for number in range(500)]
    runs = []
    for _ in range(2):
        yes = np.where(rare, rng.uniform(0.7, 0.95, 500), rng.uniform(0.02, 0.4, 500))
        runs.append(member(keys, np.column_stack([1 - yes, yes]).tolist()))
    found = together(runs, ["one", "two"], "rank").probabilities
    assert (found.argmax(axis=1) == rare).all()


def test_folds_are_put_side_by_side_and_folds_of_several_seeds_averaged() -> None:
    first, second = member(["x"], [[0.9, 0.1]]), member(["y"], [[0.2, 0.8]])
    found = together([second, first], ["s", "f"], "mean")
    assert found.keys.tolist() == [b"x", b"y"]
    assert found.probabilities == pytest.approx(ONE.probabilities)
    again = together([second, first, TWO], ["s", "f", "two"], "mean")
    assert again.probabilities == pytest.approx(np.array([[0.5, 0.5], [0.3, 0.7]]))


def test_a_copy_that_two_folds_test_counts_once() -> None:
    found = together([ONE, member(["y", "z"], [[0.4, 0.6], [0.1, 0.9]])], ["one", "two"], "mean")
    assert found.keys.tolist() == [b"x", b"y", b"z"]
    assert found.probabilities == pytest.approx(np.array([[0.9, 0.1], [0.3, 0.7], [0.1, 0.9]]))


def test_validation_images_count_where_all_runs_have_the_same() -> None:
    def with_val(test: Predictions, keys: list[str]) -> Predictions:
        val = member(keys, [[0.5, 0.5]] * len(keys), split=1)
        return replace(val, **{name: np.concatenate([val.arrays[name], test.arrays[name]]) for name in val.arrays})

    same = together([with_val(ONE, ["v"]), with_val(TWO, ["v"])], ["one", "two"], "mean")
    assert same.splits.tolist() == [1, 2, 2]
    other = together([with_val(ONE, ["v"]), with_val(TWO, ["w"])], ["one", "two"], "mean")
    assert other.splits.tolist() == [2, 2]


def test_an_image_that_one_run_could_not_read_has_no_prediction() -> None:
    lost = replace(
        ONE,
        probabilities=np.array([[np.nan, np.nan], [0.2, 0.8]], np.float32),
        errors=np.array(["gone", ""], np.object_),
    )
    for how in ("mean", "rank", "log-mean"):
        found = together([lost, TWO], ["one", "two"], how)
        assert found.is_read.tolist() == [False, True]
        assert found.errors.tolist() == ["gone", ""]


def test_runs_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match="two: its classes differ from those of one"):
        together([ONE, replace(TWO, classes=("a", "c"))], ["one", "two"], "mean")
    with pytest.raises(UserError, match="x: has different labels in one, two"):
        together([ONE, replace(TWO, labels=np.array([0, 1]))], ["one", "two"], "mean")
