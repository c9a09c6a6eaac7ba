from collections import Counter
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tlbatch.data.sources import Labelled
from tlbatch.data.splits import counts_by_class, split_images
from tlbatch.job.config import Split


def images(groups: list[tuple[str, str]]) -> list[Labelled]:
    return [Labelled(f"k{number}", Path("x"), label, group) for number, (group, label) in enumerate(groups)]


def test_a_stratified_split_gives_every_class_its_exact_share() -> None:
    some = images([(f"g{number}", str(number % 4)) for number in range(320)])
    splits = split_images(some, Split(method="stratified", test=0.25, val=0.1))
    counts = counts_by_class([int(image.label) for image in some], splits, 4)
    assert counts == {"train": (52,) * 4, "val": (8,) * 4, "test": (20,) * 4}


def test_another_salt_gives_another_split_and_the_same_salt_the_same() -> None:
    some = images([(f"g{number}", "a") for number in range(200)])
    for method in ("hash", "stratified"):
        one = split_images(some, Split(method=method, salt="one"))
        assert one == split_images(some, Split(method=method, salt="one"))
        assert one != split_images(some, Split(method=method, salt="two"))


pairs = st.lists(
    st.tuples(st.sampled_from([f"p{n}" for n in range(30)]), st.sampled_from("abc")), min_size=1, max_size=80
)


@given(pairs, st.sampled_from(["hash", "stratified"]), st.floats(0.05, 0.5), st.floats(0, 0.4))
def test_no_group_is_ever_on_two_sides(groups: list[tuple[str, str]], method: str, test: float, val: float) -> None:
    some = images(groups)
    splits = split_images(some, Split.model_validate({"method": method, "test": test, "val": val}))
    sides = Counter((image.group, split) for image, split in zip(some, splits, strict=True))
    assert len({group for group, _ in sides}) == len(sides)


@given(pairs, pairs)
def test_with_hash_added_images_never_move_a_group(old: list[tuple[str, str]], new: list[tuple[str, str]]) -> None:
    split = Split(method="hash")
    before = split_images(images(old), split)
    after = split_images(images(old + new), split)
    assert after[: len(before)] == before
