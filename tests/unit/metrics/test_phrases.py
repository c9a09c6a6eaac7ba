import math
from collections import Counter

import numpy as np
import pytest
from nltk.translate.bleu_score import corpus_bleu
from sklearn.metrics import f1_score

from tlbatch.metrics.phrases import Vocabulary, score_tags
from tlbatch.runs.report import OddPhrases

TAGS = ["floral", "long", "red", "short", "dress", "shirt"]
ODD = OddPhrases(num_empty=0, num_contradicting=0, num_too_long={}, num_several={}, num_unseen={}, unseen={})
ATTRIBUTES = {"colour": ["red"], "length": ["long", "short"], "type": ["dress", "shirt"]}
TRUTH = [["floral", "short", "dress"], ["red", "shirt"], ["long", "dress"], ["red", "long", "dress"]]
PREDICTED = [["floral", "short", "dress"], ["red", "dress"], ["dress", "long"], ["long", "dress"]]


def bleu(y_true: list[list[str]], predicted: list[list[str]]) -> float:
    """As Papineni et al. (2002) write it down, for phrases of at most three tags."""
    logs = 0.0
    for order in (1, 2, 3):
        found = total = 0
        for one, other in zip(y_true, predicted, strict=True):
            true, said = (Counter(zip(*(some[at:] for at in range(order)), strict=False)) for some in (one, other))
            found += sum((true & said).values())
            total += sum(said.values())
        logs += math.log(found / total) / 3 if found else -math.inf
    brevity = 1 - sum(map(len, y_true)) / sum(map(len, predicted))
    return math.exp(logs + min(0, brevity))


def of_tags(*tags: str) -> Vocabulary:
    return Vocabulary(tags, ATTRIBUTES, ODD, len(tags))


VOCABULARY = of_tags(*TAGS)


def test_phrases_are_scored_by_match_edits_and_tags() -> None:
    found = score_tags(TRUTH, PREDICTED, np.arange(4), VOCABULARY, seed=0)
    assert found.exact_match.value == 0.25
    assert found.edit_distance.value == (0 + 1 + 2 + 1) / 4
    assert {tag: one.value for tag, one in found.f1.items()} == pytest.approx(
        {"floral": 1, "long": 1, "red": 2 / 3, "short": 1, "dress": 6 / 7, "shirt": 0}
    )
    assert found.macro_f1.value == pytest.approx((1 + 1 + 2 / 3 + 1 + 6 / 7 + 0) / 6)
    assert found.bleu.value == pytest.approx(bleu(TRUTH, PREDICTED))


def test_intervals_are_those_of_redrawn_groups() -> None:
    rng = np.random.default_rng(0)
    y_true = [TRUTH[number] for number in rng.integers(0, 4, 120)]
    predicted = [one if rng.random() < 0.5 else PREDICTED[rng.integers(0, 4)] for one in y_true]
    found = score_tags(y_true, predicted, np.arange(120) // 2, VOCABULARY, seed=0)
    drawn = []
    for _ in range(1000):
        images = (2 * rng.integers(0, 60, 60)[:, None] + np.arange(2)).ravel()
        drawn.append([
            bleu([y_true[at] for at in images], [predicted[at] for at in images]),
            np.mean([y_true[at] == predicted[at] for at in images]),
        ])  # fmt: skip
    for estimate, replicates in zip((found.bleu, found.exact_match), np.array(drawn).T, strict=True):
        expected = np.quantile(replicates, (0.025, 0.975)).tolist()
        assert [estimate.low, estimate.high] == pytest.approx(expected, abs=0.025)


def test_no_images_and_an_absent_tag_are_undefined_and_an_unknown_tag_is_refused() -> None:
    nothing = score_tags([], [], np.arange(0), VOCABULARY, seed=0)
    assert (nothing.n, nothing.bleu.undefined, nothing.f1["red"].value) == (0, "no images", None)
    absent = score_tags([["red"]], [["red"]], np.arange(1), of_tags("red", "blue"), seed=0).f1["blue"]
    assert (absent.value, absent.undefined) == (None, "neither present nor predicted")
    with pytest.raises(ValueError, match="unknown tags: green"):
        score_tags([["red"]], [["green"]], np.arange(1), VOCABULARY, seed=0)


def test_bleu_is_that_of_nltk_where_all_phrases_are_long_and_one_where_all_are_right() -> None:
    rng = np.random.default_rng(2)
    y_true = [[TAGS[at] for at in rng.integers(0, 6, rng.integers(4, 7))] for _ in range(30)]
    predicted = [one if rng.random() < 0.5 else [*one[1:], "red", "red"] for one in y_true]
    found = score_tags(y_true, predicted, np.arange(30), VOCABULARY, seed=0)
    assert found.bleu.value == pytest.approx(corpus_bleu([[one] for one in y_true], predicted))
    mixed = [["red", "dress"]] * 8 + [["red", "long", "dress"]] * 2 + [["dress"]]
    perfect = score_tags(mixed, mixed, np.arange(11), VOCABULARY, seed=0)
    assert (perfect.bleu.value, perfect.exact_match.value, perfect.macro_f1.value) == (1, 1, 1)


def test_means_are_over_what_true_phrases_have_whatever_is_predicted() -> None:
    y_true = [["red", "dress"], ["shirt"]] * 10
    wrong = [["red", "dress"], ["floral", "shirt"]] * 10
    right, other = (score_tags(y_true, some, np.arange(20), VOCABULARY, seed=0) for some in (y_true, wrong))
    assert (right.macro_f1.value, other.macro_f1.value) == (1, 1)
    assert other.f1["floral"].value == 0
    assert (other.attributes["length"].value, other.attributes["length"].undefined) == (
        None,
        "no image has this attribute",
    )
    assert other.num_with == {"colour": 10, "length": 0, "type": 20}
    assert other.mean_attribute.value == 1


def test_an_attribute_is_right_where_all_its_tags_are_in_whatever_order() -> None:
    found = score_tags(TRUTH, PREDICTED, np.arange(4), VOCABULARY, seed=0)
    assert {name: one.value for name, one in found.attributes.items()} == {"colour": 0.75, "length": 1, "type": 0.75}
    assert found.mean_attribute.value == pytest.approx((0.75 + 1 + 0.75) / 3)
    both = score_tags([["long", "short"]], [["long"]], np.arange(1), VOCABULARY, seed=0)
    assert both.attributes["length"].value == 0


def test_f1_is_that_of_scikit_learn_with_the_interval_of_redrawn_groups() -> None:
    rng = np.random.default_rng(1)
    y_true = [TRUTH[number] for number in rng.integers(0, 4, 60)]
    predicted = [PREDICTED[number] for number in rng.integers(0, 4, 60)]
    found = score_tags(y_true, predicted, np.arange(60), VOCABULARY, seed=0)
    yes, answered = (np.array([[tag in one for tag in TAGS] for one in some]) for some in (y_true, predicted))
    expected = f1_score(yes, answered, average=None, zero_division=np.nan)  # all tags are there
    assert [found.f1[tag].value for tag in TAGS] == pytest.approx(expected)
    assert found.macro_f1.value == pytest.approx(f1_score(yes, answered, average="macro"))
    drawn = []
    for _ in range(1000):
        some = rng.integers(0, 60, 60)
        drawn.append(f1_score(yes[some], answered[some], average="macro"))
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert [found.macro_f1.low, found.macro_f1.high] == pytest.approx([low, high], abs=0.03)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_empty_phrase_is_a_prediction_too() -> None:
    found = score_tags([["red", "shirt"], ["long"]], [[], ["long"]], np.arange(2), VOCABULARY, seed=0)
    assert (found.exact_match.value, found.edit_distance.value) == (0.5, 1)
