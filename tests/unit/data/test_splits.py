import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlbatch.config.base import SplitName
from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.data.build_index import places_of_groups
from tlbatch.data.sources.base import Labelled, key_of
from tlbatch.data.sources.read import read_source
from tlbatch.data.splits import draw_sample, split_images
from tlbatch.runs.records import SPLITS


def labelled(groups: list[tuple[str, str]], part: str = "") -> list[Labelled]:
    return [
        Labelled(f"k{number:04d}", "x.jpg", label, group, part, number) for number, (group, label) in enumerate(groups)
    ]


def data_of(split: dict[str, Any], **others: Any) -> Data:
    return Data.model_validate({"images": "x", "split": split} | others)


def splits_of(
    some: list[Labelled], split: dict[str, Any], known: dict[str, float] | None = None, **others: Any
) -> list[SplitName]:
    rows = split_images(some, data_of(split, **others), {} if known is None else known)
    assert rows.image.tolist() == list(range(len(some)))
    return [SPLITS[split] for split in rows.split.tolist()]


def test_a_stratified_split_gives_every_class_its_exact_share() -> None:
    some = labelled([(f"g{number}", str(number % 4)) for number in range(320)])
    splits = splits_of(some, {"method": "stratified", "test": 0.25, "val": 0.1})
    counts = Counter((split, image.label) for image, split in zip(some, splits, strict=True))
    assert counts == {(s, str(c)): n for s, n in (("train", 52), ("val", 8), ("test", 20)) for c in range(4)}


def test_another_salt_gives_another_split_and_the_same_salt_the_same() -> None:
    some = labelled([(f"g{number}", "a") for number in range(200)])
    for method in ("hash", "stratified"):
        one, again, two = (splits_of(some, {"method": method, "salt": salt}) for salt in ("one", "one", "two"))
        assert one == again != two


pairs = st.lists(
    st.tuples(st.sampled_from([f"p{n}" for n in range(30)]), st.sampled_from("abc")), min_size=1, max_size=80
)
methods = st.sampled_from(["hash", "stratified"])


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", ["train", "Train", "TRAINING", " train\u200b", "trn"]),
        ("val", ["val", "VALID", "Valid ", "validation", "dev"]),
        ("test", ["test", "TEST", "Testing", "t10k", "tst"]),
    ],
)
def test_a_given_split_is_known_in_any_case(split: str, names: list[str]) -> None:
    some = labelled([("a", "0")], "train") + labelled([("b", "0")], "test")
    some += [labelled([(f"c{number}", "1")], name)[0] for number, name in enumerate(names)]
    assert splits_of(some, {"method": "given", "val": 0})[2:] == [split] * len(names)


def test_unknown_splits_are_listed_at_once_and_none_is_proposed_for_training() -> None:
    some = labelled([("a", "0")], "train") + labelled([("b", "0")], "") + labelled([("c", "0")] * 2, 'hold"out')
    with pytest.raises(UserError) as refused:
        splits_of(some, {"method": "given"})
    text = str(refused.value)
    assert "'' (1 image), 'hold\"out' (2 images)" in text
    proposed = tomllib.loads("names=" + text.partition("names=")[2])["names"]
    assert proposed == {"": "test", 'hold"out': "test"}


@pytest.mark.parametrize("method", ["stratified", "hash"])
def test_a_group_of_two_spellings_takes_the_strictest_place_of_either(method: str) -> None:
    """Whichever spelling an earlier night had, and whichever is left."""
    split = {"method": method, "test": 0.3, "val": 0.2}
    numbers = [f"{number}.0" for number in range(40)]
    known: dict[str, float] = {}
    first = dict(zip(numbers, splits_of(labelled([(name, "a") for name in numbers]), split, known), strict=True))
    alone = [name.removesuffix(".0") for name in numbers]
    known.update({"3": 0.99, "4": 0.01})
    some, data = labelled([(name, "a") for name in alone]), data_of(split, source="csv", labels="x", group_column="who")
    rows = split_images(some, data, known, {name: [f"{name}.0"] for name in alone})
    found = dict(zip(alone, [SPLITS[number] for number in rows.split.tolist()], strict=True))
    order = ["test", "val", "train"]
    for name in alone:
        assert order.index(found[name]) <= order.index(first[f"{name}.0"])
    later = split_images(some, data, known)
    assert later.split.tolist() == rows.split.tolist()
    if method == "stratified":
        assert found["4"] == "test"
        renamed = split_images(labelled([(f"0{name}", "a") for name in alone]), data, known)
        assert renamed.split.tolist() == rows.split.tolist()


def test_a_group_of_two_spellings_is_tested_in_one_fold_whatever_ran_before() -> None:
    some = labelled([(str(number), "a") for number in range(20)])
    known = {str(number): (number + 0.5) / 20 for number in range(20)} | {"3.0": 0.9, "17.0": 0.1}
    tested = []
    for fold in (3, 0, 2, 1, 3):
        data = data_of({"folds": 4, "fold": fold, "val": 0.1}, source="csv", labels="x", group_column="who")
        rows = split_images(some, data, known)
        tested.append({some[number].group for number in np.flatnonzero(rows.split == SPLITS.index("test"))})
    assert tested[0] == tested.pop()
    assert sum(map(len, tested)) == len(set().union(*tested)) == 20
    assert (known["3"], known["17"]) == (3.5 / 20, 0.1)


@given(pairs, methods, st.floats(0.05, 0.5), st.floats(0, 0.4), st.sampled_from([0, 0, 2, 3]))
def test_no_group_is_ever_on_two_sides(
    groups: list[tuple[str, str]], method: str, test: float, val: float, folds: int
) -> None:
    some = labelled(groups)
    splits = splits_of(some, {"method": method, "test": test, "val": val, "folds": folds})
    sides = Counter((image.group, split) for image, split in zip(some, splits, strict=True))
    assert len({group for group, _ in sides}) == len(sides)


@given(pairs, pairs, methods, st.sampled_from([0, 3]))
def test_other_images_never_move_a_group(
    old: list[tuple[str, str]], new: list[tuple[str, str]], method: str, folds: int
) -> None:
    known: dict[str, float] = {}
    split = {"method": method, "folds": folds}
    before = splits_of(labelled(old), split, known)
    after = splits_of(labelled(old + new), split, known)
    assert after[: len(before)] == before
    assert splits_of(labelled(new), split, known) == after[len(before) :]
    assert splits_of(labelled(old), split, known) == before


def test_new_groups_keep_the_shares_on_average() -> None:
    known: dict[str, float] = {}
    old = labelled([(f"old{number}", "a") for number in range(40)])
    splits_of(old, {"test": 0.25, "val": 0.1}, known)
    new = labelled([(f"new{number}", "a") for number in range(4000)])
    counts = Counter(splits_of([*old, *new], {"test": 0.25, "val": 0.1}, known)[40:])
    assert abs(counts["test"] - 1000) < 120
    assert abs(counts["val"] - 400) < 80


@pytest.mark.parametrize("method", ["hash", "stratified"])
def test_folds_test_every_group_once_even_when_images_are_added_between_them(method: str) -> None:
    some = labelled([(f"g{number}", str(number % 2)) for number in range(200)])
    more = [*some, *labelled([(f"later{number}", str(number % 2)) for number in range(100)])]
    known: dict[str, float] = {}
    first = [splits_of(some, {"method": method, "folds": 5, "fold": fold}, known) for fold in (0, 1)]
    folds = [splits_of(more, {"method": method, "folds": 5, "fold": fold, "val": 0.1}, known) for fold in range(5)]
    for image in range(len(more)):
        assert [fold[image] for fold in folds].count("test") == 1
    assert [fold[: len(some)] for fold in folds[:2]] == first
    if method == "stratified":
        assert Counter(first[0]) == {"test": 40, "val": 20, "train": 140}


def test_images_with_several_tags_are_spread_by_their_rarest() -> None:
    some = labelled([(f"g{number}", "red dress" if number % 10 else "red hat") for number in range(400)])
    splits = splits_of(some, {"test": 0.25, "val": 0}, tag_separator=" ")
    hats = [split for image, split in zip(some, splits, strict=True) if "hat" in image.label]
    assert Counter(hats) == {"test": 10, "train": 30}


def test_rare_tags_are_tested_as_often_as_others_and_every_fold_has_its_share() -> None:
    some = labelled([(f"g{number}", f"tag{number // 2} {'dress' if number % 3 else 'hat'}") for number in range(1000)])
    splits = Counter(splits_of(some, {"test": 0.25, "val": 0.1}, tag_separator=" "))
    assert splits == {"test": 250, "val": 100, "train": 650}
    folds = [splits_of(some, {"folds": 5, "fold": fold, "val": 0}, tag_separator=" ") for fold in range(5)]
    assert [Counter(fold)["test"] for fold in folds] == [200] * 5


def test_given_splits_are_kept_and_validation_is_taken_from_train_where_there_is_none() -> None:
    some = labelled([(f"a{number}", str(number % 2)) for number in range(40)], "train")
    some += labelled([(f"b{number}", str(number % 2)) for number in range(10)], "extra")
    splits = splits_of(some, {"method": "given", "names": {"extra": "test"}, "val": 0.1})
    assert Counter(splits) == {"train": 36, "val": 4, "test": 10}
    assert splits[40:] == ["test"] * 10
    with pytest.raises(UserError, match=r"'extra' \(10 images\); .*names=\{ \"extra\" = 'test' \}"):
        splits_of(some, {"method": "given"})
    with pytest.raises(UserError, match="the source has no test images"):
        splits_of(some[:40], {"method": "given"})


def test_split_files_list_images_with_or_without_ending(tmp_path: Path) -> None:
    some = [Labelled(f"a/k{number}", f"a/k{number}.jpg", "x", f"g{number}", "", number) for number in range(6)]
    (tmp_path / "train.txt").write_text("a/k0\na/k1.jpg\n\na/k2\n", encoding="utf-8")
    (tmp_path / "test.txt").write_text("a/k3\r\na/k4\na/k5\n", encoding="utf-8")
    files = {name: tmp_path / f"{name}.txt" for name in ("train", "test")}
    assert splits_of(some, {"method": "given", "files": files, "val": 0}) == ["train"] * 3 + ["test"] * 3
    (tmp_path / "test.txt").write_text("a/k3\na/k4\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"no file lists 1 image \(a/k5\)"):
        splits_of(some, {"method": "given", "files": files})
    (tmp_path / "test.txt").write_text("a/k0\n", encoding="utf-8")
    with pytest.raises(UserError, match="a/k0 is listed in train too"):
        splits_of(some, {"method": "given", "files": files})
    files["test"] = tmp_path / "absent.txt"
    with pytest.raises(UserError, match="cannot be read"):
        splits_of(some, {"method": "given", "files": files})


def write_lists(folder: Path, train: bytes, test: bytes) -> dict[str, Path]:
    (folder / "train.txt").write_bytes(train)
    (folder / "test.txt").write_bytes(test)
    return {name: folder / f"{name}.txt" for name in ("train", "test")}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("\ufeffa/Blüte 1\na/b.2\n".encode(), "a/x\n".encode("utf-16")),
        ("# made by hand\r\r\na/Blüte 1.jpg \ra/b.2\t\r".encode("latin-1"), b"\na/x.jpg\r\n"),
        ("a\\Blüte 1.jpg\na\\b.2.jpg".encode(), b"a\\x.jpg"),
        ("/data/of us/a/Blüte 1.jpg\n/data/of us/a/b.2.jpg\n".encode(), b"/data/of us/a/x.jpg\n"),
        ("./a/Blu\u0308te 1\nb.2\n".encode(), b"x\n"),
    ],
)
def test_lists_of_splits_are_read_as_people_write_them(tmp_path: Path, train: bytes, test: bytes) -> None:
    some = [Labelled(key_of(name), f"{name}.jpg", "x", name, "", 0) for name in ("a/Blüte 1", "a/b.2", "a/x")]
    files = write_lists(tmp_path, train, test)
    assert splits_of(some, {"method": "given", "files": files, "val": 0}) == ["train", "train", "test"]


def test_lists_may_name_the_files_where_a_table_names_images_without_folders(tmp_path: Path) -> None:
    images = tmp_path / "images"
    some = [Labelled(f"k{number}", f"{images}/a/k{number}.jpg", "x", f"g{number}", "", number) for number in range(2)]
    files = write_lists(tmp_path, b"a/k0.jpg\n", b"a/k1.jpg\n")
    data = data_of({"method": "given", "files": files, "val": 0}, images=images)
    assert [SPLITS[number] for number in split_images(some, data, {}).split.tolist()] == ["train", "test"]


def test_all_unlisted_images_are_counted_and_names_of_no_image_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = [Labelled(f"{number:03}", f"{number:03}.png", "x", f"g{number}", "", number) for number in range(8)]
    files = write_lists(tmp_path, b"000\n001\nabsent.png\n", b"# 5\n#6\n002\n3\n")
    with pytest.raises(UserError, match=r"no file lists 5 images \(003, 004, 005, \.\.\.\); add each to one"):
        splits_of(some, {"method": "given", "files": files})
    assert "train.txt: no usable image for 1 name, such as absent.png" in caplog.text
    assert "test.txt: no usable image for 1 name, such as 3" in caplog.text


def test_a_listed_name_that_several_images_have_is_refused(tmp_path: Path) -> None:
    some = [Labelled(key, f"{key}.png", "x", key, "", 0) for key in ("a/1", "b/1", "#c")]
    with pytest.raises(UserError, match=r"train\.txt: 1 may be a/1\.png or b/1\.png; write its folder"):
        splits_of(some, {"method": "given", "files": write_lists(tmp_path, b"1\n", b"a/1\n")})
    files = write_lists(tmp_path, b"a/1\n# b/1\n", b"b/1.png\n#c\n")
    assert splits_of(some, {"method": "given", "files": files, "val": 0}) == ["train", "test", "test"]


def test_a_sample_takes_the_same_images_of_each_class_whatever_else_there_is() -> None:
    some = labelled([(f"g{number}", str(number % 5)) for number in range(500)])
    data = data_of({}, per_class=20)
    drawn = draw_sample(some, data)
    assert Counter(image.label for image in drawn) == {str(label): 20 for label in range(5)}
    assert [image.key for image in drawn] == sorted(image.key for image in drawn)
    assert draw_sample(some[::-1], data) == drawn
    assert draw_sample(some, data_of({}, per_class=20, per_class_seed=1)) != drawn
    with pytest.raises(UserError, match="'0' has 100 images, not 200"):
        draw_sample(some, data_of({}, per_class=200))


def test_a_sample_of_the_training_images_leaves_the_others_whole() -> None:
    some = labelled([(f"a{number}", str(number % 2)) for number in range(40)], "train")
    some += labelled([(f"b{number}", str(number % 2)) for number in range(30)], "t10k")
    data = data_of({"method": "given", "val": 0}, per_class=5, per_class_of="train")
    drawn = draw_sample(some, data)
    assert Counter((image.part, image.label) for image in drawn) == {
        ("train", "0"): 5, ("train", "1"): 5, ("t10k", "0"): 15, ("t10k", "1"): 15,
    }  # fmt: skip
    assert drawn == sorted(drawn, key=lambda image: image.key)
    with pytest.raises(ValueError, match=r"per_class_of = train needs split\.method = given"):
        data_of({}, per_class=5, per_class_of="train")


def grades() -> list[Labelled]:
    return labelled([(f"g{number}", str(number % 5)) for number in range(1000)])


def rows_of(recipe: str, some: list[Labelled]) -> dict[str, list[int]]:
    rows = split_images(some, data_of({"method": "as-published", "recipe": recipe}), {})
    return {name: rows.image[rows.split == number].tolist() for number, name in enumerate(SPLITS)}


def supports(some: list[Labelled], rows: list[int]) -> list[int]:
    return [sum(some[row].label == str(grade) for row in rows) for grade in range(5)]


def test_the_leaking_recipe_gives_the_published_supports_and_the_143_leaks() -> None:
    """The supports are those printed with the published kappas of .74558, .70822, .74487 and .72214."""
    some = grades()
    rows = rows_of("retinopathy-dl", some)
    fit, train, test = rows["train"], rows["train"] + rows["val"], rows["test"]
    assert supports(some, test) == [54, 65, 64, 60, 57]
    assert (len(fit), len(train), len(test)) == (630, 700, 300)
    assert (len(set(train)), len(set(test))) == (540, 275)
    leaked = [row for row in test if row in set(train)]
    assert len(leaked) == 143
    assert supports(some, leaked) == [28, 34, 34, 22, 25]
    assert sum(row in set(fit) for row in test) == 136
    assert sum(row in set(fit) for row in rows["val"]) == 25


def test_the_logistic_regression_of_the_same_project_was_split_cleanly() -> None:
    some = grades()
    rows = rows_of("retinopathy-lr", some)
    assert supports(some, rows["test"]) == [60] * 5
    assert sorted(rows["train"] + rows["test"]) == list(range(1000))
    with pytest.raises(UserError, match=r"set data\.per_class=200"):
        rows_of("retinopathy-lr", some[1:])


def test_the_flowers_recipe_gives_the_published_supports_and_validates_on_test() -> None:
    some = labelled([(f"g{number}", f"{number // 80:02d}") for number in range(1360)])
    rows = rows_of("flowers17", some)
    assert rows["val"] == rows["test"]
    counts = Counter(row // 80 for row in rows["test"])
    assert sorted(counts.values()) == [15, 16, 16, 18, 18, 19, 19, 20, 20, 20, 20, 21, 22, 23, 23, 23, 27]
    assert (counts[1], counts[5], counts[7], counts[11]) == (
        15,
        21,
        27,
        22,
    )  # windflower, crocus, sunflower, fritillary
    from sklearn.model_selection import train_test_split

    assert sorted(train_test_split(np.arange(1360), test_size=0.25, random_state=42)[1].tolist()) == rows["test"]


def test_dogs_vs_cats_tests_on_the_folder_valid(tmp_path: Path, write_folders: Callable[..., Path]) -> None:
    for part in ("train", "valid"):
        write_folders(tmp_path / "x" / part, classes=("cats", "dogs"), each=3)
    for split, wanted in (
        ({"method": "as-published", "recipe": "dogs-vs-cats"}, {"train": 6, "test": 6}),
        ({"method": "given", "names": {"valid": "test"}, "val": 0.34}, {"train": 4, "val": 2, "test": 6}),
    ):
        data = data_of(split, images=tmp_path / "x")
        source = read_source(data, tmp_path / "x", None)
        assert source.classes == ("cats", "dogs")
        assert source.images[0].key == "train/cats/cats0"
        assert Counter(SPLITS[split] for split in split_images(source.images, data, {}).split) == wanted
    with pytest.raises(UserError, match="needs folders train and valid"):
        split_images(labelled([("g", "a")]), data_of({"method": "as-published", "recipe": "dogs-vs-cats"}), {})


@pytest.mark.parametrize(
    ("split", "says"),
    [
        ({"folds": 1}, "folds must be at least 2"),
        ({"folds": 3, "fold": 3}, "folds must be at least 2 and above fold"),
        ({"val": 0.6, "folds": 2}, r"val \+ test must be less than 1 .*; lower val, or raise folds"),
        ({"method": "as-published"}, "need each other"),
        ({"recipe": "flowers17"}, "need each other"),
        ({"column": "split"}, "read with method given only"),
        ({"method": "given", "folds": 2}, "folds need method"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(split: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        data_of(split)


def test_the_places_of_groups_outlive_the_set_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.groups.csv"
    odd = 'a "quoted", group\nof two lines'
    with places_of_groups(file) as places:
        places.update({odd: 1 / 3, "b": 0.1 + 0.2})
    with places_of_groups(file) as places:
        assert places == {odd: 1 / 3, "b": 0.1 + 0.2}
    file.write_text("group,place\na,b,c\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"x\.groups\.csv: damaged"), places_of_groups(file):
        pass
