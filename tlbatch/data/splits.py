"""Who trains, who validates, who tests: by group, so that no group is on two sides."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch.data.index import Rows
from tlbatch.data.recipes import published_rows
from tlbatch.data.sources import Labelled, coded, key_of, tags_of
from tlbatch.job.config import Data, Split, SplitName
from tlbatch.job.errors import UserError
from tlbatch.job.records import SPLITS

GIVEN_NAMES: dict[str, SplitName] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "t10k": "test",
}


def draw_sample(images: Sequence[Labelled], data: Data) -> list[Labelled]:
    """``data.per_class`` images of each label, those whose keys hash lowest; all, where it is 0.

    Raises
    ------
    UserError
        When a label has fewer images.
    """
    if not data.per_class:
        return list(images)
    of_label: dict[str, list[Labelled]] = defaultdict(list)
    for image in images:
        of_label[image.label].append(image)
    drawn: list[Labelled] = []
    for label, some in of_label.items():
        if len(some) < data.per_class:
            raise UserError(
                f"data.per_class: {label!r} has {len(some)} images, not {data.per_class}; ask for fewer, or add images"
            )
        some.sort(key=lambda image: (_position(image.key, str(data.per_class_seed)), image.key))
        drawn.extend(some[: data.per_class])
    return sorted(drawn, key=lambda image: image.key)


def split_images(images: Sequence[Labelled], data: Data, known: Mapping[str, SplitName]) -> Rows:
    """The rows of a set: each image with its split, in the order of the images.

    An image has one row, but may have several with method ``as-published``.

    With method ``hash`` a group's split is a function of (salt, group) alone. With ``stratified`` the groups of a
    stratum (see `_strata`) are taken in the order of their hash until the stratum has its share of test, then of
    validation images; groups that have a split already keep it, and new ones go where most is short. So with neither
    do added images ever move a group.

    Parameters
    ----------
    known
        Split of the groups of an earlier index of the same source.

    Raises
    ------
    UserError
        When a given split is unknown, or a file of the splits names other images.
    """
    split = data.split
    if split.recipe is not None:
        return published_rows(images, split.recipe)
    everyone = np.arange(len(images))
    if split.method == "given":
        return Rows(everyone, _given(images, data))
    groups = _Groups.of(images, data)
    if split.method == "hash":
        of_group = [_by_position(_position(group, split.salt), split) for group in groups.names]
    else:
        of_group = _stratified(groups, split, known)
    return Rows(everyone, _numbers(of_group)[groups.codes])


def _numbers(splits: Iterable[SplitName]) -> npt.NDArray[np.int64]:
    number = {name: place for place, name in enumerate(SPLITS)}
    return np.fromiter((number[split] for split in splits), np.int64)


@dataclass(frozen=True)
class _Groups:
    """The groups of some images."""

    names: list[str]
    codes: npt.NDArray[np.int64]
    """Number of the group of each image."""
    sizes: list[int]
    strata: list[list[int]]
    """Numbers of the groups by their commonest label; where labels hold several tags, by the rarest of an image's."""

    @staticmethod
    def of(images: Sequence[Labelled], data: Data) -> "_Groups":
        codes, names = coded(image.group for image in images)
        strata, num_strata = _strata(images, data)
        pairs, counts = np.unique(codes * num_strata + strata, return_counts=True)
        group, stratum = np.divmod(pairs, num_strata)
        order = np.lexsort((stratum, -counts, group))
        commonest = stratum[order][np.unique(group[order], return_index=True)[1]]
        members = [np.flatnonzero(commonest == number).tolist() for number in range(num_strata)]
        return _Groups(names, codes, np.bincount(codes).tolist(), members)


def _position(group: str, salt: str) -> float:
    """Where the group's hash falls in [0, 1)."""
    digest = hashlib.sha256(f"{salt}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _by_position(position: float, split: Split) -> SplitName:
    """The split at a place in [0, 1): test first, then validation; each fold begins where the one before ended."""
    test = split.test
    if split.folds:
        test = 1 / split.folds
        position = (position - split.fold / split.folds) % 1
    if position < test:
        return "test"
    return "val" if position < test + split.val else "train"


def _stratified(groups: _Groups, split: Split, known: Mapping[str, SplitName]) -> list[SplitName]:
    of_group = {number: known[name] for number, name in enumerate(groups.names) if name in known}
    for members in groups.strata:
        new = _in_order([number for number in members if number not in of_group], groups, split)
        if len(new) == len(members):
            _fill_in_order(new, groups.sizes, split, of_group)
        else:
            _fill_what_is_short(members, new, groups.sizes, split, of_group)
    return [of_group[number] for number in range(len(groups.names))]


def _in_order(numbers: list[int], groups: _Groups, split: Split) -> list[int]:
    return sorted(numbers, key=lambda number: (_position(groups.names[number], split.salt), groups.names[number]))


def _strata(images: Sequence[Labelled], data: Data) -> tuple[npt.NDArray[np.int64], int]:
    """Number of the label of each image, in their order; with several tags, of its rarest in the whole source."""
    labels, distinct = coded(image.label for image in images)
    counts: Counter[str] = Counter()
    for label, count in zip(distinct, np.bincount(labels).tolist(), strict=True):
        counts.update(dict.fromkeys(tags_of(label, data), count))
    rarest = [min(tags_of(label, data), key=lambda tag: (counts[tag], tag)) for label in distinct]
    number = {tag: place for place, tag in enumerate(sorted(set(rarest)))}
    return np.array([number[tag] for tag in rarest], np.int64)[labels], len(number)


def _fill_in_order(numbers: Sequence[int], sizes: Sequence[int], split: Split, of_group: dict[int, SplitName]) -> None:
    total = sum(sizes[number] for number in numbers)
    taken = 0
    for number in numbers:
        of_group[number] = _by_position((taken + sizes[number] / 2) / total, split)
        taken += sizes[number]


def _fill_what_is_short(
    numbers: Sequence[int], new: Sequence[int], sizes: Sequence[int], split: Split, of_group: dict[int, SplitName]
) -> None:
    total = sum(sizes[number] for number in numbers)
    test = 1 / split.folds if split.folds else split.test
    short = {"test": test * total, "val": split.val * total, "train": (1 - test - split.val) * total}
    for number in numbers:
        if number in of_group:
            short[of_group[number]] -= sizes[number]
    for number in new:
        of_group[number] = max(SPLITS, key=lambda name: (short[name], name == "train"))
        short[of_group[number]] -= sizes[number]


def _given(images: Sequence[Labelled], data: Data) -> npt.NDArray[np.int64]:
    """What the source says; where it has no validation images, ``split.val`` of the training groups, stratified."""
    split = data.split
    names = _listed(images, split.files) if split.files else (_named(image.part, split) for image in images)
    found = _numbers(names)
    if not (found == SPLITS.index("test")).any():
        raise UserError(
            "data.split: the source has no test images; say what it calls them, e.g. data.split.names={valid='test'}"
        )
    if (found == SPLITS.index("val")).any() or not split.val:
        return found
    train = np.flatnonzero(found == SPLITS.index("train"))
    groups = _Groups.of([images[number] for number in train.tolist()], data)
    of_group: dict[int, SplitName] = {}
    for members in groups.strata:
        shares = split.model_copy(update={"test": 0.0, "folds": 0})
        _fill_in_order(_in_order(members, groups, split), groups.sizes, shares, of_group)
    found[train] = _numbers(of_group[number] for number in range(len(groups.names)))[groups.codes]
    return found


def _named(part: str, split: Split) -> SplitName:
    names = GIVEN_NAMES | split.names
    if part not in names:
        raise UserError(
            f"data.split: the source calls a split {part!r}; say which it is, e.g. data.split.names={{{part}='train'}}"
        )
    return names[part]


def _listed(images: Sequence[Labelled], files: Mapping[SplitName, Path]) -> list[SplitName]:
    of_key: dict[str, SplitName] = {}
    for name, file in files.items():
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: cannot be read ({error}); set data.split.files.{name}=FILE") from None
        for line in filter(None, map(str.strip, lines)):
            key = key_of(line)
            if of_key.setdefault(key, name) != name:
                raise UserError(f"{file}: {line} is listed in {of_key[key]} too; remove it from one")
    found: list[SplitName] = []
    for image in images:
        ending = "." + image.path.rpartition(".")[2]
        chosen = of_key.get(image.key) or of_key.get(image.key + key_of(ending))
        if chosen is None:
            raise UserError(f"data.split.files: no file lists {image.key}; add it to one")
        found.append(chosen)
    return found
