from collections import Counter
from typing import Any

import numpy as np
import pytest

from tlbatch.config.data import Data
from tlbatch.data.audit import audit_rows
from tlbatch.data.clusters import Clusters
from tlbatch.data.placement import Placement, place_images
from tlbatch.data.sources.base import Labelled
from tlbatch.runs.records import SPLITS


def image(key: str, label: str = "a", group: str = "", part: str = "") -> Labelled:
    return Labelled(key, "x.jpg", label, group or key, part, 0)


def data_of(split: dict[str, Any] | None = None, audit: str = "resolve") -> Data:
    return Data.model_validate({"images": "x", "split": split or {}, "audit": audit})


def clusters_of(some: list[Labelled], *near: str, equal: str = "", alike: bool = False) -> Clusters:
    """Each word of `near` and `equal` lists keys of one cluster, separated by +."""
    keys = [one.key for one in some]

    def numbered(words: list[str]) -> np.ndarray:
        found = np.arange(len(some))
        for word in words:
            members = [keys.index(key) for key in word.split("+") if key in keys]
            found[members] = min(members, default=0)
        return found

    cluster = numbered([*equal.split(), *near])
    bits = np.where(np.bincount(cluster, minlength=len(some))[cluster] > 1, 2, -1)
    content = numbered(equal.split())
    return Clusters(content, cluster, bits, cluster if alike else content, np.zeros(len(some), np.int64))


def placed(
    some: list[Labelled], clusters: Clusters, data: Data, known: dict[str, float] | None = None
) -> tuple[Placement, dict[str, str]]:
    found = place_images(some, data, clusters, {} if known is None else known, {})
    return found, {one.key: SPLITS[split] for one, split in zip(some, found.split.tolist(), strict=True)}


def ordinary(number: int = 40) -> list[Labelled]:
    return [image(f"k{n:02d}", "ab"[n % 2]) for n in range(number)]


@pytest.mark.parametrize("audit", ["stop", "warn", "resolve"])
def test_images_that_share_a_duplicate_are_one_group_under_every_setting(audit: str) -> None:
    some = [image("p0", group="p"), image("p1", group="p"), image("q0", group="q"), image("r0"), *ordinary()]
    found, _ = placed(some, clusters_of(some, "p1+q0", equal="k00+k02"), data_of(audit=audit))
    assert len(set(found.groups[:3])) == 1
    assert found.groups[0] in {"p", "q"}
    assert found.groups[4] == found.groups[6] in {"k00", "k02"}
    assert [found.groups[number] for number in (3, 5)] == ["r0", "k01"]
    assert found.notes == ("4 images in 2 clusters of duplicates count as one group each for folds and intervals",)
    assert [one.group for one in some[:3]] == ["p", "p", "q"]


@pytest.mark.parametrize("audit", ["stop", "resolve"])
def test_a_set_without_duplicates_is_split_as_without_the_audit(audit: str) -> None:
    some, known = ordinary(), dict[str, float]()
    found, _ = placed(some, clusters_of(some), data_of(audit=audit), known)
    assert found.groups == [one.key for one in some]
    assert (found.before.split == found.split).all()
    assert not found.moved.any()
    assert found.notes == ()
    assert len(known) == 40


@pytest.mark.parametrize("method", ["stratified", "hash"])
def test_a_near_copy_of_a_test_image_stays_a_test_image_on_all_later_nights(method: str) -> None:
    data = data_of({"method": method, "test": 0.25, "val": 0.1})
    old, known = ordinary(), dict[str, float]()
    _, first = placed(old, clusters_of(old), data, known)
    tested = next(key for key in first if first[key] == "test")
    trained = next(key for key in first if first[key] == "train")
    new = [image(f"new{number}") for number in range(6)]
    joined = [tested, *(one.key for one in new)]

    both = [*old, *new]
    second, found = placed(both, clusters_of(both, "+".join(joined)), data, known)
    assert {found[key] for key in joined} == {"test"}
    assert {name for name, key in zip(second.groups, found, strict=True) if key in joined} == {second.groups[-1]}
    assert {key: found[key] for key in first} == first

    left = [one for one in both if one.key != tested]
    _, third = placed(left, clusters_of(left), data, known)
    assert {third[key] for key in joined[1:]} == {"test"}

    late = [*left, image("late")]
    _, fourth = placed(late, clusters_of(late, f"late+{joined[1]}+{trained}"), data, known)
    assert (fourth["late"], fourth[trained]) == ("test", "test")
    _, fifth = placed(late, clusters_of(late), data, known)
    assert fifth == fourth


def test_the_name_of_a_joined_group_lasts_while_its_strictest_member_does() -> None:
    some = [image("a"), image("b"), *ordinary()]
    known = {"a": 0.9, "b": 0.1}
    for _ in range(3):
        found, _ = placed(some, clusters_of(some, "a+b"), data_of(), known)
        assert found.groups[:2] == ["b", "b"]
    assert known["a"] == known["b"] == 0.1


@pytest.mark.parametrize("method", ["stratified", "hash"])
def test_joined_groups_are_tested_in_one_fold_whichever_fold_is_asked_for(method: str) -> None:
    some = [image(f"k{n:02d}", "ab"[n % 2]) for n in range(60)]
    clusters = clusters_of(some, *(f"k{n:02d}+k{n + 1:02d}+k{n + 30:02d}" for n in range(0, 20, 2)))
    known: dict[str, float] = {}
    folds = [
        placed(some, clusters, data_of({"method": method, "folds": 5, "fold": fold}), known)[1]
        for fold in (3, 0, 4, 1, 2)
    ]
    for one in some:
        assert [fold[one.key] for fold in folds].count("test") == 1
    for fold in folds:
        for n in range(0, 20, 2):
            assert len({fold[key] for key in (f"k{n:02d}", f"k{n + 1:02d}", f"k{n + 30:02d}")}) == 1


def test_new_sets_keep_their_shares_though_every_image_has_a_copy() -> None:
    some = ordinary(200)
    clusters = clusters_of(some, *(f"k{n:02d}+k{n + 2:02d}" for n in range(200) if n % 4 < 2))
    _, found = placed(some, clusters, data_of({"test": 0.2, "val": 0.1}))
    assert Counter(found.values()) == {"train": 140, "val": 20, "test": 40}


def test_folds_are_even_though_every_image_has_three_copies() -> None:
    some = [image(f"k{n:03d}") for n in range(200)]
    clusters = clusters_of(some, *("+".join(f"k{n + 50 * copy:03d}" for copy in range(4)) for n in range(50)))
    tested = [
        Counter(placed(some, clusters, data_of({"folds": 5, "fold": fold}), {})[1].values())["test"]
        for fold in range(5)
    ]
    assert tested == [40] * 5


def given_set() -> list[Labelled]:
    rows = [("t", "test"), ("v", "val"), ("f", "train")]
    return [image(f"{name}{n}", "ab"[n % 2], part=part) for name, part in rows for n in range(10)]


def test_where_equal_images_of_a_given_split_contradict_the_training_one_goes() -> None:
    some = given_set()
    equal = "t0+f1 v0+f3 t2+v3 f4+f5 t4+t5+f6 t6+f8 t8+f9+f2"
    clusters, data = clusters_of(some, equal=equal), data_of({"method": "given"})
    found, splits = placed(some, clusters, data)
    dropped = {one.key for one, gone in zip(some, found.dropped.tolist(), strict=True) if gone}
    assert dropped == {"f1", "f3", "v3", "f4", "f5", "t4", "t5", "f6", "f9", "f2"}
    assert (splits["f8"], splits["t0"], splits["v0"]) == ("test", "test", "val")
    findings = audit_rows(some, data, clusters, found)
    actions = {row[1]: row[-1] for row in findings.table}
    assert (actions["f1"], actions["t0"], actions["f8"]) == ("dropped: contradicts a test image", "", "moved to test")
    assert (actions["f3"], actions["f4"], actions["f6"]) == ("dropped: contradicts a val image", "dropped", "dropped")
    assert (findings.record.num_dropped, findings.record.num_moved) == (10, 1)
    assert not any(findings.record.across.values())
    assert findings.notes[-3:-1] == (
        "1 image dropped: an equal val image has another label, and stays",
        "4 images dropped: an equal test image has another label, and stays",
    )
    assert findings.notes[-1] == (
        "images of each split after duplicates were resolved: train 2 (10.0%), val 9 (45.0%), test 9 (45.0%)"
    )


@pytest.mark.parametrize("alike", [False, True])
def test_only_images_that_are_equal_are_dropped_for_their_labels(alike: bool) -> None:  # noqa: FBT001
    some, data = ordinary(), data_of()
    clusters = clusters_of(some, "k00+k01", "k05+k06+k07", equal="k05+k06", alike=alike)
    found, splits = placed(some, clusters, data)
    record = audit_rows(some, data, clusters, found).record
    table = {row[1]: row[-1] for row in audit_rows(some, data, clusters, found).table}
    assert record.num_contradicting == 5
    if alike:
        assert (record.num_dropped, record.num_similar) == (5, 0)
        return
    assert (record.num_dropped, record.num_similar) == (2, 3)
    assert (table["k05"], table["k06"]) == ("dropped", "dropped")
    assert all(str(table[key]).endswith("kept: similar, not equal") for key in ("k00", "k01", "k07"))
    assert splits["k00"] == splits["k01"]


def test_a_cluster_above_five_percent_is_listed_and_only_equal_files_in_it_are_joined() -> None:
    some, data = ordinary(100), data_of()
    crowd = [f"k{n:02d}" for n in range(0, 40, 2)]
    clusters = clusters_of(some, "+".join(crowd), equal="k00+k02", alike=True)
    found, splits = placed(some, clusters, data)
    assert [name for name, count in Counter(found.groups).items() if count > 1] == [found.groups[0]]
    assert splits["k00"] == splits["k02"]
    assert len({splits[key] for key in crowd}) > 1
    findings = audit_rows(some, data, clusters, found)
    assert {row[1] for row in findings.table} == set(crowd)
    assert {row[-1] for row in findings.table if row[1] not in {"k00", "k02"}} == {
        "listed only: cluster above 5% of the set"
    }
    assert (findings.record.num_large, findings.record.num_exact) == (18, 2)
    assert not any(findings.record.across.values())
    (warning,) = findings.warnings
    assert warning.startswith("20 images in 1 cluster of near duplicates above 5% of the set")


@pytest.mark.parametrize(("copies", "large"), [(8, False), (9, True)])
def test_eight_copies_are_never_too_many(copies: int, large: bool) -> None:  # noqa: FBT001
    some = ordinary(30)
    assert clusters_of(some, "+".join(f"k{n:02d}" for n in range(copies))).large.any() == large


def test_one_twentieth_of_a_set_is_not_too_large() -> None:
    some = ordinary(400)
    assert not clusters_of(some, "+".join(f"k{n:02d}" for n in range(20))).large.any()
    assert clusters_of(some, "+".join(f"k{n:02d}" for n in range(21))).large.sum() == 21


def test_the_audit_says_which_copies_it_looked_for() -> None:
    some = ordinary()
    clusters = clusters_of(some)
    found, _ = placed(some, clusters, data_of())
    searched = audit_rows(some, data_of(), clusters, found).record.searched
    assert "cropped by up to 10 % on each side with any margins. Not found are other rotations" in searched
    equal_only = data_of().model_copy(update={"phash_max_distance": 0})
    assert audit_rows(some, equal_only, clusters, found).record.searched.startswith("Looked for: equal files only")
