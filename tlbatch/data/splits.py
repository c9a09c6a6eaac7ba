"""Who trains, who validates, who tests: by group, so that no group is on two sides."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from tlbatch.data.sources import Labelled
from tlbatch.job.config import Split
from tlbatch.job.records import SPLITS, SplitName


def split_images(images: Sequence[Labelled], split: Split) -> list[SplitName]:
    """The split of every image, in the order given.

    A group lies in one split as a whole. With method ``hash`` the split is a function of (salt, group) alone, so
    added images never move a group. With ``stratified`` the groups of a class (a group counts for its commonest
    label) are taken in the order of their hash until the class has its share of test, then of validation images.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for image in images:
        members[image.group].append(image.label)
    if split.method == "hash":
        of_group = {group: _by_position(_position(group, split.salt), split) for group in members}
    else:
        of_group = _stratified(members, split)
    return [of_group[image.group] for image in images]


def _position(group: str, salt: str) -> float:
    """Where the group's hash falls in [0, 1)."""
    digest = hashlib.sha256(f"{salt}\0{group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _by_position(position: float, split: Split) -> SplitName:
    if position < split.test:
        return "test"
    return "val" if position < split.test + split.val else "train"


def _stratified(members: dict[str, list[str]], split: Split) -> dict[str, SplitName]:
    strata: dict[str, list[str]] = defaultdict(list)
    for group, labels in members.items():
        commonest = max(Counter(sorted(labels)).items(), key=lambda item: item[1])[0]
        strata[commonest].append(group)
    of_group: dict[str, SplitName] = {}
    for groups in strata.values():
        total = sum(len(members[group]) for group in groups)
        taken = 0
        for group in sorted(groups, key=lambda group: (_position(group, split.salt), group)):
            middle = (taken + len(members[group]) / 2) / total
            of_group[group] = _by_position(middle, split)
            taken += len(members[group])
    return of_group


def counts_by_class(
    labels: Sequence[int], splits: Sequence[SplitName], num_classes: int
) -> dict[SplitName, tuple[int, ...]]:
    """Images of each class in each split."""
    counts = Counter(zip(splits, labels, strict=True))
    return {split: tuple(counts[split, label] for label in range(num_classes)) for split in SPLITS}
