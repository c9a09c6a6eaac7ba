import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    cohen_kappa_score,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
)

from tlbatch.metrics.confusion import (
    Classified,
    bootstrap_tables,
    confusion,
    point_scores,
    score_all_with_intervals,
    score_deployed,
    score_with_intervals,
)
from tlbatch.runs.report import SCORES, Curve, Estimate, Ranked

Matrix = list[list[int]]
UNRANKED = Ranked(auc=Estimate(value=None), average_precision=None, roc=Curve(x=(), y=()), pr=Curve(x=(), y=()))

# The five tables that the VGG-16 retinopathy project of 2016 printed, a row for each true grade, with the accuracy and
# kappa that it printed, the rows of its reports (precision, recall, F1), and the quadratic kappa that each would have
# in the class mix of the public test set (73.79, 7.02, 14.67, 2.27, 2.25 %).
VGG16: dict[str, tuple[Matrix, float, float, str, float]] = {
    "LR#1": (
        [[15, 19, 17, 9, 0], [20, 24, 10, 5, 1], [12, 13, 13, 12, 10], [7, 4, 11, 24, 14], [4, 2, 11, 10, 33]],
        0.36333, 0.51096, "26 25 25 39 40 39 21 22 21 40 40 40 57 55 56", 0.206,
    ),
    "DL#1": (
        [[40, 6, 8, 0, 0], [5, 46, 12, 2, 0], [7, 5, 46, 4, 2], [5, 5, 8, 31, 11], [2, 3, 6, 9, 37]],
        0.66667, 0.74558, "68 74 71 71 71 71 57 72 64 67 52 58 74 65 69", 0.657,
    ),
    "DL#2": (
        [[36, 11, 4, 1, 2], [13, 45, 4, 1, 2], [5, 15, 35, 5, 4], [5, 8, 6, 31, 10], [4, 1, 3, 6, 43]],
        0.63333, 0.70822, "57 67 62 56 69 62 67 55 60 70 52 60 70 75 73", 0.517,
    ),
    "FT#1": (
        [[32, 7, 10, 4, 1], [13, 37, 11, 4, 0], [7, 3, 45, 6, 3], [1, 4, 8, 32, 15], [0, 3, 3, 12, 39]],
        0.61667, 0.74487, "60 59 60 69 57 62 58 70 64 55 53 54 67 68 68", 0.432,
    ),
    "FT#2": (
        [[34, 11, 6, 2, 1], [5, 49, 8, 3, 0], [6, 12, 40, 5, 1], [3, 9, 10, 30, 8], [1, 3, 7, 10, 36]],
        0.63000, 0.72214, "69 63 66 58 75 66 56 62 59 60 50 55 78 63 70", 0.507,
    ),
}  # fmt: skip
TEST_MIX = np.array([39_533, 3_762, 7_861, 1_214, 1_206]) / 53_576

# The public table of a 2015 solution on 35,126 images.
PUBLIC = [
    [24502, 1116, 186, 5, 1], [1175, 829, 437, 2, 0], [490, 791, 3212, 771, 28], [8, 18, 140, 565, 142],
    [3, 3, 50, 146, 506],
]  # fmt: skip

# The reports that a two-phase VGG-16 for flowers17 printed in 2018 before and after its second phase: precision,
# recall, F1 in hundredths and the number of images of each class. No table was printed.
FLOWERS_BEFORE = """92 61 73 18|81 91 86 23|79 75 77 20|62 89 73 18|51 95 67 21|53 100 70 16|95 95 95 20|100 80 89 20
100 86 93 22|100 68 81 19|86 75 80 16|100 84 91 19|86 60 71 20|100 81 90 27|100 96 98 23|94 70 80 23|93 93 93 15"""
FLOWERS_AFTER = """89 94 92 18|100 100 100 23|95 90 92 20|89 89 89 18|90 90 90 21|84 100 91 16|100 95 97 20|90 95 93 20
100 95 98 22|100 95 97 19|94 94 94 16|100 89 94 19|91 100 95 20|100 100 100 27|100 100 100 23|100 96 98 23
100 100 100 15"""


def decided(matrix: Matrix, *, each: int = 1) -> Classified:
    """Images of a table, ``each`` of them to a group."""
    num = len(matrix)
    cells = np.repeat(np.arange(num * num), np.array(matrix).ravel())
    return Classified(cells // num, cells % num, np.arange(len(cells)) // each, num)


@pytest.mark.parametrize("name", list(VGG16))
def test_the_printed_tables_of_the_vgg16_project_give_all_its_printed_numbers(name: str) -> None:
    matrix, accuracy, kappa, rows, _ = VGG16[name]
    scores, classes = score_all_with_intervals(decided(matrix), list("01234"), [UNRANKED] * 5, seed=0)
    assert f"{scores['accuracy'].value:.5f}" == f"{accuracy:.5f}"
    assert f"{scores['quadratic_kappa'].value:.5f}" == f"{kappa:.5f}"
    printed = [f"0.{value}" for value in rows.split()]
    found = [one for each in classes for one in (each.precision.value, each.recall.value, each.f1.value)]
    assert [f"{value:.2f}" for value in found] == printed
    assert [each.support for each in classes] == np.array(matrix).sum(axis=1).tolist()
    assert confusion(decided(matrix)) == tuple(tuple(row) for row in matrix)


@pytest.mark.parametrize("name", list(VGG16))
def test_in_the_class_mix_of_the_real_population_the_same_tables_are_worth_less(name: str) -> None:
    matrix, *_, kappa = VGG16[name]
    found = score_deployed(decided(matrix), TEST_MIX, "01234", seed=0)["quadratic_kappa"]
    assert found.value == pytest.approx(kappa, abs=0.0006)
    assert found.low is not None
    assert found.high is not None
    assert found.low < kappa < found.high


def test_the_first_and_the_second_of_the_vgg16_networks_cannot_be_told_apart() -> None:
    """Their intervals are those of 300 images: the published order of .74558 and .74487 says nothing."""
    one, other = (score_with_intervals(decided(VGG16[name][0]), seed=0)["quadratic_kappa"] for name in ("DL#1", "FT#1"))
    assert (one.low, one.high) == (pytest.approx(0.674, abs=0.006), pytest.approx(0.809, abs=0.006))
    assert (other.low, other.high) == (pytest.approx(0.678, abs=0.006), pytest.approx(0.803, abs=0.006))


def test_the_public_table_of_35126_images_gives_its_published_kappa() -> None:
    found = score_with_intervals(decided(PUBLIC), seed=0)
    assert round(found["quadratic_kappa"].value or 0, 5) == 0.88021
    assert round(found["accuracy"].value or 0, 5) == 0.84308


@pytest.mark.parametrize(("text", "right"), [(FLOWERS_BEFORE, 280), (FLOWERS_AFTER, 325)])
def test_a_table_with_the_counts_of_a_flowers17_report_gives_its_printed_numbers(text: str, right: int) -> None:
    """Hits are recall x support; predictions of a class are the only number that gives its precision and F1."""
    rows = [[int(value) for value in row.split()] for row in text.replace("\n", "|").split("|")]
    hits = np.array([round(recall * support / 100) for _, recall, _, support in rows])
    support = np.array([row[3] for row in rows])
    assert hits.sum() == right
    predicted = predictions_of_each(rows, hits, total=int(support.sum()))
    found = score_all_with_intervals(decided(spread(hits, support, predicted)), [str(n) for n in range(17)],
                      [UNRANKED] * 17, seed=0)  # fmt: skip
    for row, each in zip(rows, found[1], strict=True):
        printed = [f"{value / 100:.2f}" for value in row[:3]]
        assert [f"{one.value:.2f}" for one in (each.precision, each.recall, each.f1)] == printed
    assert f"{found[0]['accuracy'].value:.4f}" == {280: "0.8235", 325: "0.9559"}[right]


def predictions_of_each(rows: list[list[int]], hits: np.ndarray, *, total: int) -> np.ndarray:
    """Numbers of predictions that round to the printed precision and F1 and add up to the number of images."""
    fit = []
    for (precision, _, f1, support), hit in zip(rows, hits, strict=True):
        printed = f"{precision / 100:.2f} {f1 / 100:.2f}"
        may_be = range(hit, 3 * support)
        fit.append([num for num in may_be if f"{hit / num:.2f} {2 * hit / (num + support):.2f}" == printed])
    y_pred = np.array([options[0] for options in fit])
    for number, options in enumerate(fit):
        y_pred[number] = min(options, key=lambda num: abs(total - y_pred.sum() + y_pred[number] - num))
    assert y_pred.sum() == total
    return y_pred


def spread(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> Matrix:
    """A table with these hits and margins: misses are dealt out to classes that have predictions left."""
    matrix = np.diag(hits)
    missed, free = support - hits, predicted - hits
    for row in np.argsort(-(missed + free), kind="stable"):
        for _ in range(missed[row]):
            others = np.where(np.arange(len(free)) == row, -1, free + missed * (np.arange(len(free)) != row) / 100)
            column = int(np.argmax(np.where(free > 0, others, -1)))
            matrix[row, column] += 1
            free[column] -= 1
        missed[row] = 0
    assert (matrix.sum(axis=1) == support).all()
    assert (matrix.sum(axis=0) == predicted).all()
    return [[int(value) for value in row] for row in matrix]


def of_scikit_learn(images: Classified, weights: np.ndarray) -> dict[str, float]:
    """All scores over the full list of classes; NaN where undefined."""
    true, found, every = images.y_true, images.y_pred, range(images.num_classes)
    constant, one_sided = len({*true, *found}) == 1, len(set(true)) == 1 or len(set(found)) == 1
    scores = {
        name: np.nan if constant else cohen_kappa_score(true, found, labels=every, weights=way, sample_weight=weights)
        for name, way in (("quadratic_kappa", "quadratic"), ("linear_kappa", "linear"), ("kappa", None))
    } | {
        f"{way}_f1": f1_score(true, found, labels=every, average=way, sample_weight=weights, zero_division=np.nan)
        for way in ("macro", "weighted")
    }
    return scores | {
        "accuracy": accuracy_score(true, found, sample_weight=weights),
        "balanced_accuracy": balanced_accuracy_score(true, found, sample_weight=weights),
        "mcc": np.nan if one_sided else matthews_corrcoef(true, found, sample_weight=weights),
        "grade_error": mean_absolute_error(true, found, sample_weight=weights),
    }


@pytest.mark.filterwarnings("ignore")  # of scikit-learn, where a score is undefined
@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), min_size=4, max_size=4), min_size=4, max_size=4), st.booleans())
def test_scores_are_those_of_scikit_learn(matrix: Matrix, weighted: bool) -> None:  # noqa: FBT001
    images = decided(matrix)
    if not len(images.y_true):
        return
    weights = np.random.default_rng(0).random(len(images.y_true)) if weighted else np.ones(len(images.y_true))
    found = point_scores(images, weights if weighted else None)
    expected = of_scikit_learn(images, weights)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, nan_ok=True, abs=1e-12), name


def test_per_class_numbers_are_those_of_the_classification_report() -> None:
    images = decided(VGG16["DL#1"][0], each=2)
    report = classification_report(images.y_true, images.y_pred, output_dict=True)
    _, classes = score_all_with_intervals(images, list("01234"), [UNRANKED] * 5, seed=0)
    for each in classes:
        expected = [report[each.name][key] for key in ("precision", "recall", "f1-score")]
        assert [each.precision.value, each.recall.value, each.f1.value] == pytest.approx(expected)


def test_draws_are_of_whole_groups() -> None:
    """With both eyes of a patient alike, an interval is that of half as many images."""
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 5, 600)
    y_pred = np.clip(y_true + rng.integers(-1, 2, 600), 0, 4)
    alone = score_with_intervals(Classified(y_true, y_pred, np.arange(600), 5), seed=0)["accuracy"]
    both = score_with_intervals(Classified(y_true.repeat(2), y_pred.repeat(2), np.arange(1200) // 2, 5), seed=0)[
        "accuracy"
    ]
    assert both.value == alone.value
    assert width(both) == pytest.approx(width(alone), rel=0.05)
    image_wise = score_with_intervals(Classified(y_true.repeat(2), y_pred.repeat(2), np.arange(1200), 5), seed=0)[
        "accuracy"
    ]
    assert width(image_wise) == pytest.approx(width(alone) / np.sqrt(2), rel=0.1)


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_an_interval_is_the_binomial_one_for_single_images() -> None:
    wrong = np.arange(400) < 80
    found = score_with_intervals(
        Classified(np.zeros(400, np.int64), wrong.astype(np.int64), np.arange(400), 2), seed=0
    )["accuracy"]
    reach = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert (found.low, found.high) == (pytest.approx(0.8 - reach, abs=0.006), pytest.approx(0.8 + reach, abs=0.006))


def test_groups_of_any_kind_are_drawn_alike_when_there_are_more_than_fit_into_memory() -> None:
    """Groups of different sizes are all different; many are drawn in blocks, with the same spread."""
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, 5, 60_000)
    y_pred = np.clip(y_true + rng.integers(-1, 2, 60_000), 0, 4)
    sizes = rng.integers(5, 12, 60_000)
    groups = np.repeat(np.arange(60_000), sizes)[:60_000]
    blocks = score_with_intervals(Classified(y_true, y_pred, groups, 5), seed=0)["accuracy"]
    single = score_with_intervals(Classified(y_true, y_pred, np.arange(60_000), 5), seed=0)["accuracy"]
    assert width(blocks) == pytest.approx(width(single), rel=0.1)


def test_what_is_undefined_says_why_and_is_never_zero_or_one() -> None:
    def of(y_true: list[int], y_pred: list[int]) -> dict[str, Estimate]:
        images = Classified(np.array(y_true, np.int64), np.array(y_pred, np.int64), np.arange(len(y_true)), 3)
        return dict(score_with_intervals(images, seed=0))

    nothing = of([], [])
    assert {each.undefined for each in nothing.values()} == {"no images"}
    same = of([1, 1, 1], [1, 1, 1])
    assert (same["quadratic_kappa"].value, same["quadratic_kappa"].undefined) == (
        None,
        "all images belong to one class",
    )
    constant = of([0, 1, 2, 2], [1, 1, 1, 1])
    assert constant["quadratic_kappa"].value == 0
    assert (constant["mcc"].value, constant["mcc"].undefined) == (None, "all images are predicted as one class")
    right = of([0, 1, 2, 0, 1, 2, 1, 2], [0, 1, 2, 0, 1, 2, 1, 2])
    assert right["quadratic_kappa"].undefined == "no interval: identical in all replicates"
    assert right["accuracy"].low == pytest.approx(0.6756, abs=1e-4)  # Wilson's, of 8 of 8


def test_an_absent_middle_grade_keeps_the_distances() -> None:
    y_true, y_pred = np.array([0, 3, 4, 4]), np.array([0, 3, 4, 3])
    assert point_scores(Classified(y_true, y_pred, np.arange(4), 5))["quadratic_kappa"] == pytest.approx(
        0.95, abs=0.005
    )


def test_a_class_that_is_absent_or_never_predicted_has_no_number_but_a_reason() -> None:
    images = Classified(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 0]), np.arange(4), 3)
    _, (_, second, third) = score_all_with_intervals(images, list("abc"), [UNRANKED] * 3, seed=0)
    assert (second.precision.value, second.precision.undefined) == (None, "never predicted")
    assert second.recall.value == 0
    assert (third.recall.undefined, third.f1.undefined) == ("no images of this class", "neither present nor predicted")


@pytest.mark.parametrize("labels", [np.array([0.0, 1.0]), np.array(["0", "1"]), np.array([0, 5]), np.array([-1, 0])])
def test_labels_that_are_no_codes_of_the_classes_are_refused(labels: np.ndarray) -> None:
    """scikit-learn sorts strings by the alphabet and drops what is not in the list, both silently."""
    with pytest.raises(ValueError, match="must be integers from 0 to 4"):
        Classified(labels, np.array([0, 1]), np.arange(2), 5)


def test_a_mix_with_a_class_that_no_test_image_has_is_undefined() -> None:
    images = Classified(np.array([0, 0]), np.array([0, 1]), np.arange(2), 2)
    found = score_deployed(images, np.array([0.5, 0.5]), ["eye", "hand"], seed=0)
    assert {each.undefined for each in found.values()} == {"no test images of class hand"}


def test_in_another_mix_every_score_is_that_of_images_drawn_in_it() -> None:
    """Each image of a class taken as often as the mix has it more often than the test images."""
    prior = np.array([0.1, 0.3, 0.6])
    y_true, y_pred = np.repeat([0, 1, 2], 20), np.tile([0, 1, 2, 2, 1, 0, 0, 1, 2, 1], 6)
    found = score_deployed(Classified(y_true, y_pred, np.arange(60), 3), prior, "abc", seed=0)
    times = np.array([1, 3, 6])[y_true]
    drawn = Classified(y_true.repeat(times), y_pred.repeat(times), np.arange(times.sum()), 3)
    plain = score_with_intervals(drawn, seed=0)
    for name in SCORES:
        assert found[name].value == pytest.approx(plain[name].value), name
        low, high = found[name].low, found[name].high
        assert low is not None and high is not None and low < found[name].value < high, name  # noqa: PT018


def test_ten_thousand_draws_are_made_and_the_same_seed_gives_the_same() -> None:
    images = decided(VGG16["FT#2"][0])
    first, again = bootstrap_tables(images, seed=3), bootstrap_tables(images, seed=3)
    assert first.sums.shape == (10_000, 30)
    assert np.array_equal(first.sums, again.sums)
    assert set(SCORES) == set(score_with_intervals(images, seed=3))
