"""The split and the group of every image once duplicates count as one group."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tlbatch.config.data import Data
from tlbatch.core.text import counted
from tlbatch.core.typing import Bools, Ints
from tlbatch.data.clusters import (
    STRICTEST,
    STRICTNESS,
    Clusters,
    contradicted,
    joined_groups,
    num_joined,
    several_labels,
)
from tlbatch.data.group_places import Spellings, hashed_place
from tlbatch.data.index import IndexRows
from tlbatch.data.sources.base import Labelled, coded
from tlbatch.data.splits import split_images, stated_splits
from tlbatch.runs.records import SPLITS


@dataclass(frozen=True)
class Placement:
    """Where images are, before and after duplicates were joined."""

    before: IndexRows
    """The rows of the set if no duplicate were joined."""
    split: Ints
    """Split of each of these rows, (rows,)."""
    moved: Bools
    """Rows that are in another split because of a duplicate, (rows,)."""
    dropped: Bools
    """Images that are left out because an equal one has another label, (n,)."""
    groups: list[str]
    """Group of each image, which is the same for all images of a cluster."""
    notes: tuple[str, ...]
    """What was joined."""


@dataclass(frozen=True)
class _Joined:
    """Groups that share duplicates."""

    group: Ints
    """Group number of each image."""
    names: list[str]
    component: Ints
    """Component of each group."""
    stated: Ints
    """Split that the source gives each image."""

    @property
    def members(self) -> list[list[int]]:
        """Groups of each component of several groups."""
        several = np.flatnonzero(np.bincount(self.component, minlength=1)[self.component] > 1)
        found: dict[int, list[int]] = defaultdict(list)
        for group in several.tolist():
            found[int(self.component[group])].append(group)
        return list(found.values())

    def leads(self, data: Data, known: Mapping[str, float], spelled: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Return the name of the joined group of each group in it: that of its member in the strictest place."""
        rank = np.full(len(self.names), len(SPLITS))
        np.minimum.at(rank, self.group, STRICTNESS[self.stated])
        order = {name: number for number, name in enumerate(known)}
        spellings = Spellings.of(data, known, spelled)

        def strictness(name: str, split: int) -> tuple[float, ...]:
            place = min(spellings.places_of(name, data.split, known), default=1.0)
            return split, place, order.get(name, len(order)), hashed_place(name, data.split.salt)

        found: dict[str, str] = {}
        for members in self.members:
            names = [self.names[group] for group in members]
            ranks = {name: strictness(name, int(rank[group])) for name, group in zip(names, members, strict=True)}
            found.update(dict.fromkeys(names, min(names, key=lambda name: (ranks[name], name))))
        return found


def place_images(
    images: Sequence[Labelled],
    data: Data,
    clusters: Clusters,
    known: dict[str, float],
    spelled: Mapping[str, Sequence[str]],
) -> Placement:
    """Split images, and join the groups that share a duplicate.

    With ``data.audit = "resolve"``, images are dropped where an equal one has another label, and a joined group is in
    one split, and in one fold: the strictest that any of its members was in on this or an earlier night. Otherwise it
    is one group for intervals and inner folds only, and its images stay where they are.

    Parameters
    ----------
    known
        See `split_images`.
    spelled
        Other spellings of groups in the source.
    """
    group, names = coded(image.group for image in images)
    label, _ = coded(image.label for image in images)
    stated = stated_splits(images, data)
    resolves = data.audit == "resolve"
    dropped = contradicted(clusters.equal, label, stated) if resolves else np.zeros(len(images), bool)
    component = joined_groups(group[~dropped], clusters.joined[~dropped], len(names))
    joined = _Joined(group, names, component, stated)
    if resolves:
        leads = joined.leads(data, known, spelled)
        before = split_images(images, data, dict(known) if leads else known, spelled)
        split = _together(images, data, leads, known, spelled) if leads else before.split
        split = _in_one_split(split, component[group], ~dropped)
        apart = np.zeros(len(images), bool)
        apart[~dropped] = several_labels(component[group[~dropped]], before.split[~dropped])
        moved = apart & (split != before.split)
    else:
        before = split_images(images, data, known, spelled)
        leads = joined.leads(data, known, spelled)
        split, moved = before.split, np.zeros(len(before), bool)
    groups = [leads.get(image.group, image.group) for image in images]
    notes = _what_was_joined(group[~dropped], clusters.joined[~dropped])
    return Placement(before, split, moved, dropped, groups, notes)


def _what_was_joined(group: Ints, cluster: Ints) -> tuple[str, ...]:
    num_images, num_clusters = num_joined(group, cluster)
    images, of = counted(num_images, "image"), counted(num_clusters, "cluster")
    note = f"{images} in {of} of duplicates count as one group each for folds and intervals"
    return (note,) if num_clusters else ()


def _together(
    images: Sequence[Labelled],
    data: Data,
    leads: Mapping[str, str],
    known: dict[str, float],
    spelled: Mapping[str, Sequence[str]],
) -> Ints:
    """Return the split of each image, where joined groups have one position."""
    others: dict[str, list[str]] = {name: list(some) for name, some in spelled.items() if name not in leads}
    for name, lead in leads.items():
        others.setdefault(lead, []).extend([name] * (name != lead) + list(spelled.get(name, ())))
    renamed = [replace(image, group=leads.get(image.group, image.group)) for image in images]
    return split_images(renamed, data, known, others).split


def _in_one_split(split: Ints, component: Ints, kept: Bools) -> Ints:
    """Move each component that a source has in several splits to the strictest of them."""
    best = np.full(int(component.max(initial=-1)) + 1, len(SPLITS))
    np.minimum.at(best, component[kept], STRICTNESS[split[kept]])
    back = np.array([*(SPLITS.index(name) for name in STRICTEST), 0])
    return np.where(kept, back[best[component]], split)
