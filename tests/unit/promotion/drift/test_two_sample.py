import numpy as np
import numpy.typing as npt
import pytest

from tlbatch.config.nightly import Nightly
from tlbatch.promotion.drift.records import Aspect, Shift
from tlbatch.promotion.drift.two_sample import Sample, label_issues, shift

THRESHOLD = Nightly().drift

Rng = np.random.Generator
LOOKS = ("brightness", "sharpness", "aspect ratio")


def judged(
    new: npt.NDArray[np.floating],  # type: ignore[type-arg]
    before: npt.NDArray[np.floating],  # type: ignore[type-arg]
    *,
    what: Aspect = "images",
    names: tuple[str, ...] = LOOKS,
    each: int = 1,
    seed: int = 0,
) -> Shift:
    first, other = (Sample(values, np.arange(len(values)) // each) for values in (new, before))
    return shift(first, other, what=what, names=names, threshold=THRESHOLD, seed=seed)


def one_hot(classes: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.float64]:
    return np.eye(number)[classes]


def features(rng: Rng, num: int) -> npt.NDArray[np.float32]:
    """Return vectors with few latent factors, like network features."""
    causes = np.random.default_rng(9).normal(size=(12, 160))
    return np.maximum(0, rng.normal(size=(num, 12)) @ causes + rng.normal(size=(num, 160))).astype(np.float32)


@pytest.mark.chain
def test_nights_without_a_shift_are_rarely_marked_and_p_values_are_uniform() -> None:
    """Two classes have the distance with the longest tail: z alone would mark one night of fifty."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(200):
        few, many = (one_hot(rng.integers(0, 2, num), 2) for num in (40, 400))
        found.append(judged(few, many, what="classes", names=("cat", "dog"), seed=seed))
        few, many = (rng.normal(size=(num, 3)) for num in (40, 400))
        found.append(judged(few, many, seed=seed))
        found.append(judged(features(rng, 40), features(rng, 400), what="features", names=(), seed=seed))
    assert sum(one.is_above for one in found) <= 4
    assert sum(one.z is not None and one.z > 4 for one in found[::3]) >= 2, "by z alone they would be"
    for kind in range(3):
        values = np.array([one.p_value for one in found[kind::3]], float)
        assert abs((values < 0.1).mean() - 0.1) < 0.07
        assert abs((values < 0.5).mean() - 0.5) < 0.12


def test_a_real_shift_is_marked_and_what_differs_is_named_with_its_means() -> None:
    rng = np.random.default_rng(0)
    new, before = rng.normal(size=(60, 3)), rng.normal(size=(600, 3))
    new[:, 1] += 1
    found = judged(new, before)
    assert found.is_above
    assert found.z is not None
    assert found.z > 10
    assert found.p_value == pytest.approx(1 / 1001)
    samples = Sample(new, np.arange(60)), Sample(before, np.arange(600))
    assert not shift(*samples, what="images", names=LOOKS, threshold=found.z + 0.1, seed=0).is_above
    first = found.differences[0]
    assert (first.name, first.before, first.now) == (
        "sharpness", pytest.approx(before[:, 1].mean()), pytest.approx(new[:, 1].mean())
    )  # fmt: skip
    moved = judged(features(rng, 60) * 1.15, features(rng, 600), what="features", names=())
    assert moved.is_above
    assert moved.differences == ()
    mixes = rng.choice(3, 60, p=[0.7, 0.2, 0.1]), rng.choice(3, 600, p=[0.2, 0.4, 0.4])
    mixed = judged(*(one_hot(mix, 3) for mix in mixes), what="classes", names=("a", "b", "c"))
    assert mixed.is_above
    assert mixed.differences[0].name == "a"


def test_shift_of_a_previously_constant_column_is_found() -> None:
    rng = np.random.default_rng(0)
    new, before = rng.normal(size=(30, 3)), rng.normal(size=(300, 3))
    before[:, 2], new[:, 2] = 1.5, [1.5, 1.33] * 15
    found = judged(new, before)
    assert found.is_above
    assert found.differences[0].name == "aspect ratio"
    moved = features(rng, 30)
    moved[:15, 0] += 60  # where the others are 0 to 5
    assert judged(moved, features(rng, 300), what="features", names=()).is_above


def test_distance_mean_and_deviation_are_those_of_the_formula() -> None:
    rng = np.random.default_rng(3)
    new, before = rng.normal(size=(20, 3)), rng.normal(size=(50, 3))
    both = np.concatenate([new, before])
    scaled = (both - both.mean(0)) / both.std(0)
    found = judged(new, before)
    assert found.distance == pytest.approx(((scaled[:20].mean(0) - scaled[20:].mean(0)) ** 2).sum())
    drawn = []
    for _ in range(4000):
        order = rng.permutation(70)
        drawn.append(((scaled[order[:20]].mean(0) - scaled[order[20:]].mean(0)) ** 2).sum())
    assert found.mean == pytest.approx(np.mean(drawn), rel=0.1)
    assert found.deviation == pytest.approx(np.std(drawn), rel=0.15)
    assert found.z == pytest.approx((found.distance - found.mean) / found.deviation)  # type: ignore[operator]


def test_images_of_a_group_have_equal_weight_in_the_means() -> None:
    """Groups of one image and of two, more of two: none is left out."""
    rng = np.random.default_rng(3)
    new, before = rng.normal(size=(25, 3)), rng.normal(size=(50, 3))
    groups = [np.repeat(np.arange(num), np.where(np.arange(num) % 3, 2, 1)) for num in (15, 30)]
    scaled = np.concatenate([new, before])
    scaled = (scaled - scaled.mean(0)) / scaled.std(0)
    samples = Sample(new, groups[0]), Sample(before, groups[1])
    found = shift(*samples, what="images", names=LOOKS, threshold=4, seed=0)
    assert (found.num_new, found.num_before) == (25, 50)
    assert found.distance == pytest.approx(((scaled[:25].mean(0) - scaled[25:].mean(0)) ** 2).sum())


def test_shift_of_features_is_found_with_few_images() -> None:
    """With as many components as images, all of them would be equally far apart."""
    rng = np.random.default_rng(0)
    assert judged(features(rng, 12) * 2, features(rng, 20), what="features", names=()).is_above


@pytest.mark.parametrize(("num_before", "each_before"), [(20, 50), (800, 1)])
def test_fifty_equal_images_of_a_group_count_as_one_observation(num_before: int, each_before: int) -> None:
    """Whether the groups before are as large or not."""
    rng = np.random.default_rng(0)
    marked = alone = 0
    for seed in range(40):
        new = np.repeat(rng.normal(size=(6, 3)), 50, axis=0)
        before = np.repeat(rng.normal(size=(num_before, 3)), each_before, axis=0)
        groups = np.arange(300) // 50, np.arange(len(before)) // each_before
        found = shift(
            Sample(new, groups[0]), Sample(before, groups[1]), what="images", names=LOOKS, threshold=4, seed=seed
        )
        marked += found.is_above
        alone += judged(new, before, seed=seed).is_above
    assert marked <= 1
    assert alone > 30, "without groups they would be"


def test_single_images_are_not_further_because_groups_before_are_large() -> None:
    rng = np.random.default_rng(0)
    marked = 0
    for seed in range(40):
        new, before = rng.normal(size=(40, 3)), rng.normal(size=(1000, 3))
        samples = Sample(new, np.arange(40)), Sample(before, np.arange(1000) // 25)
        found = shift(*samples, what="images", names=LOOKS, threshold=4, seed=seed)
        assert (found.num_new, found.num_before) == (40, 40)
        marked += found.is_above
    assert marked <= 1


def test_too_few_groups_are_not_tested_and_reported() -> None:
    rng = np.random.default_rng(0)
    new, before = rng.normal(size=(8, 3)) + 9, rng.normal(size=(80, 3))
    assert judged(new[:5], before).is_above
    found = judged(new[:4], before)
    assert (found.z, found.is_above, found.num_new) == (None, False, 4)
    assert found.undefined == "too few groups: 4 new (min 5), 80 before (min 10)"
    assert "4 new (min 5)" in judged(new, before, each=2).undefined
    nothing = judged(np.empty((0, 3)), np.empty((0, 3)))
    assert (nothing.num_new, nothing.differences, bool(nothing.undefined)) == (0, (), True)


def test_images_without_values_are_left_out_and_counted() -> None:
    rng = np.random.default_rng(0)
    new, before = rng.normal(size=(20, 3)), rng.normal(size=(50, 3))
    new[3, 1] = before[:2, 0] = np.nan
    found = judged(new, before)
    assert (found.num_new, found.num_before, found.num_lacking) == (19, 48, 3)
    assert found.z is not None


def test_images_that_are_all_alike_have_no_shift() -> None:
    found = judged(np.ones((20, 3)), np.ones((50, 3)))
    assert (found.distance, found.z, found.is_above, found.differences) == (0, 0, False, ())


def test_the_same_seed_gives_the_same_report() -> None:
    rng = np.random.default_rng(0)
    new, before = features(rng, 30), features(rng, 100)
    one, two, three = (judged(new, before, what="features", names=(), seed=seed) for seed in (1, 1, 2))
    assert one == two
    assert one.mean != three.mean


def test_labels_that_a_network_contradicts_are_ranked_by_the_margin() -> None:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [np.nan] * 3, [0.0, 0.0, 1.0]])
    found = label_issues(np.array([0, 0, 1, 0, 2]), probabilities)
    assert found.places.tolist() == [1, 2]
    assert found.num_judged == 4
    assert found.expected == pytest.approx(0.4 + 0.2 + 0.5 + 0)
    assert found.z == pytest.approx((2 - 1.1) / np.sqrt(0.24 + 0.16 + 0.25))


def test_shuffled_labels_stand_out_and_those_of_a_calibrated_network_do_not() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.3] * 5, 200)
    true = np.array([rng.choice(5, p=row) for row in probabilities])
    fair, shuffled = label_issues(true, probabilities), label_issues(rng.permutation(true), probabilities)
    assert fair.z is not None
    assert abs(fair.z) < 3
    assert shuffled.z is not None
    assert shuffled.z > 10
    assert len(shuffled.places) > 2 * len(fair.places)


@pytest.mark.parametrize(("num", "z"), [(0, None), (3, None)])
def test_no_images_or_certain_predictions_have_no_z(num: int, z: None) -> None:
    found = label_issues(np.zeros(num, np.int64), np.tile([[1.0, 0.0]], (num, 1)))
    assert (found.num_judged, found.places.tolist(), found.expected, found.z) == (num, [], 0, z)
