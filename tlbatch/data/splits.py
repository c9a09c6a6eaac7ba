"""Training, validation and test splits by group, so that no group is in two of them."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tlbatch.config.base import SplitName
from tlbatch.config.data import Data, Split
from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.core.typing import Ints
from tlbatch.data.group_places import Spellings, hashed_place
from tlbatch.data.index import IndexRows
from tlbatch.data.published_splits import published_rows
from tlbatch.data.sources.base import Labelled, coded, tags_of
from tlbatch.data.sources.files import given_split
from tlbatch.data.split_lists import listed_splits
from tlbatch.runs.records import SPLITS

_SMALL = 20
"""Strata of tags with fewer groups are merged into one."""


def draw_sample(images: Sequence[Labelled], data: Data) -> list[Labelled]:
    """Subsample ``data.per_class`` images of each label, those whose keys hash lowest; all if it is 0.

    With ``data.per_class_of = "train"``, all images of the other splits are kept. Raises UserError if a label has fewer
    images.
    """
    if not data.per_class:
        return list(images)
    of_label: dict[str, list[Labelled]] = defaultdict(list)
    drawn: list[Labelled] = []
    sampled = [data.per_class_of == "all" or name == "train" for name in _names_given(images, data, tell=True)]
    for image, is_sampled in zip(images, sampled, strict=True):
        (of_label[image.label] if is_sampled else drawn).append(image)
    for label, some in of_label.items():
        if len(some) < data.per_class:
            raise UserError(
                f"data.per_class: {label!r} has {counted(len(some), 'image')}, not {data.per_class}; lower it, or add "
                "images"
            )
        some.sort(key=lambda image: (hashed_place(image.key, str(data.per_class_seed)), image.key))
        drawn.extend(some[: data.per_class])
    return sorted(drawn, key=lambda image: image.key)


def split_images(
    images: Sequence[Labelled], data: Data, known: dict[str, float], joined: Mapping[str, Sequence[str]] | None = None
) -> IndexRows:
    """Return the rows of a set: each image with its split, in the order of the images.

    An image has one row, except with method ``as-published``, where it may have several.

    Each group has a position in [0, 1): groups below the test fraction are test groups, and so on (see `_by_place`).
    With method ``hash``, the position is a hash of (salt, group), and of joined groups the lowest. With ``stratified``,
    the initial groups of a stratum (see `_strata`) are spread evenly over [0, 1) in the order of their hash, so that
    each split has its exact fraction; groups added later get the position of their hash. With both methods, new images
    never move a group to another split, unless they join it with a stricter one, and all folds and fractions cut the
    same order.

    Parameters
    ----------
    known
        Positions assigned to groups before; new ones are added.
    joined
        Other names of a group: its spellings, and groups that were joined with it. It takes the lowest position that
        any of them has: without folds, the strictest split; with folds, the same in all of them. All of them keep it.

    Raises
    ------
    UserError
        When a given split is unknown, or an image is in none of the split files.
    """
    split = data.split
    if split.recipe is not None:
        return published_rows(images, split.recipe)
    everyone = np.arange(len(images))
    spellings = Spellings.of(data, known, joined or {})
    if split.method == "given":
        return IndexRows(everyone, _given(images, data, known, spellings))
    groups = _Groups.of(images, data)
    return IndexRows(everyone, _split(groups, split, known, spellings)[groups.codes])


def _split(groups: "_Groups", split: Split, known: dict[str, float], spellings: Spellings) -> Ints:
    """Return the split of every group."""
    if split.method == "hash":
        placed = {name: min(spellings.places_of(name, split, known)) for name in groups.names}
    else:
        for name in groups.names:
            places = spellings.places_of(name, split, known)
            if places:
                known[name] = min(places)
        _spread(groups, split, known)
        placed = {name: known[name] for name in groups.names}
    spellings.keep(placed, known)
    return _numbers(_by_place(place, split) for place in placed.values())


def _numbers(splits: Iterable[SplitName]) -> Ints:
    number = {name: place for place, name in enumerate(SPLITS)}
    return np.fromiter((number[split] for split in splits), np.int64)


@dataclass(frozen=True)
class _Groups:
    """The groups of some images."""

    names: list[str]
    codes: Ints
    """Group number of each image."""
    sizes: list[int]
    strata: list[list[int]]
    """Numbers of the groups, by their most frequent label; with tags, by the rarest tag of an image, and with the
    groups of rare tags in one stratum.
    """

    @staticmethod
    def of(images: Sequence[Labelled], data: Data) -> "_Groups":
        codes, names = coded(image.group for image in images)
        strata, num_strata = _strata(images, data)
        pairs, counts = np.unique(codes * num_strata + strata, return_counts=True)
        group, stratum = np.divmod(pairs, num_strata)
        order = np.lexsort((stratum, -counts, group))
        commonest = stratum[order][np.unique(group[order], return_index=True)[1]]
        members = [np.flatnonzero(commonest == number).tolist() for number in range(num_strata)]
        if data.tag_separator:  # most tags are rare, and a split of few groups would often be empty
            small = [group for some in members if len(some) < _SMALL for group in some]
            members = [some for some in members if len(some) >= _SMALL] + [sorted(small)]
        return _Groups(names, codes, np.bincount(codes).tolist(), members)


def _by_place(place: float, split: Split) -> SplitName:
    """Return the split at a position in [0, 1): test, validation, training; folds shift it by 1 / folds each."""
    test = split.test
    if split.folds:
        test = 1 / split.folds
        place = (place - split.fold / split.folds) % 1
    if place < test:
        return "test"
    return "val" if place < test + split.val else "train"


def _spread(groups: _Groups, split: Split, known: dict[str, float]) -> None:
    """Give every group a position: spread those of a new stratum evenly, and hash those that come later."""
    for members in groups.strata:
        sizes = {groups.names[number]: groups.sizes[number] for number in members}
        hashes = {name: hashed_place(name, split.salt) for name in sizes if name not in known}
        if len(hashes) < len(sizes):
            known.update(hashes)
            continue
        total, taken = sum(sizes.values()), 0
        for name in sorted(hashes, key=lambda name: (hashes[name], name)):
            known[name] = (taken + sizes[name] / 2) / total
            taken += sizes[name]


def _strata(images: Sequence[Labelled], data: Data) -> tuple[Ints, int]:
    """Return the stratum of each image, and the number of strata: its label, or the rarest of its tags."""
    labels, distinct = coded(image.label for image in images)
    counts: Counter[str] = Counter()
    for label, count in zip(distinct, np.bincount(labels).tolist(), strict=True):
        counts.update(dict.fromkeys(tags_of(label, data), count))
    rarest = [min(tags_of(label, data), key=lambda tag: (counts[tag], tag)) for label in distinct]
    number = {tag: place for place, tag in enumerate(sorted(set(rarest)))}
    return np.array([number[tag] for tag in rarest], np.int64)[labels], len(number)


def stated_splits(images: Sequence[Labelled], data: Data) -> Ints:
    """Return the number in `SPLITS` of the split that the source gives each image; training if it gives none."""
    return _numbers(_names_given(images, data, tell=False))


def _given(images: Sequence[Labelled], data: Data, known: dict[str, float], spellings: Spellings) -> Ints:
    """Return the splits of the source; if it has no validation images, draw ``split.val`` of the training groups."""
    split = data.split
    found = _numbers(_names_given(images, data, tell=not data.per_class))  # else the sample was told of them
    if not (found == SPLITS.index("test")).any():
        raise UserError(
            "data.split: the source has no test images; map its names to splits, e.g. data.split.names={valid='test'}"
        )
    if (found == SPLITS.index("val")).any() or not split.val:
        return found
    train = np.flatnonzero(found == SPLITS.index("train"))
    groups = _Groups.of([images[number] for number in train.tolist()], data)
    shares = split.model_copy(update={"test": 0.0, "folds": 0})
    found[train] = _split(groups, shares, known, spellings)[groups.codes]
    return found


def _names_given(images: Sequence[Labelled], data: Data, *, tell: bool) -> Sequence[SplitName]:
    """Return the split that the source gives each image; training if splits are not given."""
    split = data.split
    if split.method != "given":
        return ["train"] * len(images)
    if split.files:
        return listed_splits(images, data, tell=tell)
    parts = Counter(image.part for image in images)
    named = {part: given_split(part, split.names) for part in parts}
    unknown = [part for part, name in named.items() if name is None]
    if unknown:
        shown = ", ".join(f"{part!r} ({counted(parts[part], 'image')})" for part in sorted(unknown))
        mapped = ", ".join(f"{json.dumps(part, ensure_ascii=False)} = 'test'" for part in sorted(unknown))
        raise UserError(
            f"data.split: the source has splits of other names: {shown}; map each to train, val or test, "
            f"e.g. data.split.names={{ {mapped} }}"
        )
    return [name for image in images if (name := named[image.part]) is not None]
