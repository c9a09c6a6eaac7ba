"""The audit: exact and near duplicates within and across splits, and whether their labels agree."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlbatch.config.base import SplitName
from tlbatch.config.data import Data
from tlbatch.core.typing import Bools, Ints
from tlbatch.data.index import IndexRows
from tlbatch.data.near_copies import Kind, find_clusters
from tlbatch.data.near_duplicates import Hashes, Spectra
from tlbatch.data.sources.base import Labelled, coded, shown_key
from tlbatch.runs.manifest import Audit
from tlbatch.runs.records import SPLITS

_STRICTEST = ("test", "val", "train")
"""Order in which splits keep an image: a test image never moves to training."""
_PAIRS: tuple[tuple[SplitName, tuple[SplitName, ...]], ...] = (
    ("val", ("train",)),
    ("test", ("train",)),
    ("test", ("val",)),
    ("test", ("train", "val")),
)
_NAMES = {Kind.NEAR: "near", Kind.TURNED: "mirrored or turned", Kind.CROPPED: "cropped"}
HEADER = ("cluster", "image", "split", "label", "group", "kind", "bits", "across", "contradicts", "action")


@dataclass(frozen=True)
class Findings:
    """What the audit found, and the rows that it keeps."""

    record: Audit
    rows: IndexRows
    table: list[tuple[object, ...]]
    """Lines of audit.csv, see `HEADER`."""


@dataclass(frozen=True)
class _Table:
    """One entry per row of the set."""

    image: Ints
    split: Ints
    group: Ints
    label: Ints
    cluster: Ints
    """Smallest image number in the cluster of exact and near duplicates."""
    bits: Ints
    """Hamming distance to the nearest duplicate, -1 where there is none."""
    exact: Bools
    """Whether another row has the same content."""
    kind: Ints
    """`Kind` of its duplicates, the first of them that it has."""

    @property
    def doubled(self) -> Bools:
        """Rows that have a duplicate."""
        return np.bincount(self.cluster, minlength=1)[self.cluster] > 1

    @property
    def contradicting(self) -> Bools:
        """Rows whose cluster has more than one label."""
        low, high = (np.full(int(self.cluster.max(initial=-1)) + 1, start) for start in (np.iinfo(np.int64).max, -1))
        np.minimum.at(low, self.cluster, self.label)
        np.maximum.at(high, self.cluster, self.label)
        return (low < high)[self.cluster]

    def also_in(self, split: int) -> Bools:
        """Return a mask of the rows with a duplicate, or an image of their group, in a split."""
        there = self.split == split
        return np.asarray(np.isin(self.cluster, self.cluster[there]) | np.isin(self.group, self.group[there]))

    def num_in(self, one: SplitName, others: tuple[SplitName, ...]) -> int:
        """Count the rows of one split with a duplicate, or an image of their group, in any of the others."""
        there = np.any([self.also_in(SPLITS.index(other)) for other in others], axis=0)
        return int(((self.split == SPLITS.index(one)) & there).sum())

    def only(self, kept: Bools) -> "_Table":
        """Return the selected rows."""
        return _Table(*(getattr(self, field.name)[kept] for field in fields(self)))

    @property
    def across(self) -> Bools:
        """Rows with a duplicate, or an image of their group, in another split."""
        others = [self.also_in(split) & (self.split != split) for split in range(len(SPLITS))]
        return np.asarray(np.any(others, axis=0))


def audit_rows(
    images: Sequence[Labelled],
    rows: IndexRows,
    data: Data,
    *,
    content: npt.NDArray[np.bytes_],
    near: Hashes,
    spectra: Spectra,
) -> Findings:
    """Find exact and near duplicates, and with ``data.audit = "resolve"`` keep none of them in two splits.

    With ``resolve``, duplicates with different labels are dropped, and groups that share an exact or near duplicate are
    moved into one split: test before validation before training.

    Parameters
    ----------
    content
        Hash of the bytes of each image, (n,).
    near
        Perceptual hash of each image, (n, words), see `tlbatch.data.near_duplicates`.
    spectra
        Lowest frequencies of each image, (n, 24, 24).
    """
    table, num_mirrored = _table(images, rows, data, content, near, spectra)
    actions = np.full(len(rows), "", dtype=object)
    kept, after = rows, table
    if data.audit == "resolve":
        dropped = table.contradicting & table.doubled
        actions[dropped] = "dropped"
        moved_to = _one_split_each(table, ~dropped)
        moved = ~dropped & (moved_to != table.split)
        actions[moved] = [f"moved to {SPLITS[split]}" for split in moved_to[moved].tolist()]
        kept = IndexRows(rows.image[~dropped], moved_to[~dropped])
        after = replace(table, split=moved_to).only(~dropped)
    record = Audit(
        num_exact=int(table.exact.sum()),
        num_near=int((table.doubled & ~table.exact).sum()),
        num_contradicting=int((table.doubled & table.contradicting).sum()),
        across={f"{one} in {' or '.join(others)}": after.num_in(one, others) for one, others in _PAIRS},
        num_turned=_number_of(table, Kind.TURNED),
        num_cropped=_number_of(table, Kind.CROPPED),
        num_mirrored=num_mirrored,
        num_moved=sum(action.startswith("moved") for action in actions),
        num_dropped=int((actions == "dropped").sum()),
    )
    return Findings(record, kept, list(_lines(images, table, actions)))


def _number_of(table: _Table, kind: Kind) -> int:
    return int((table.doubled & ~table.exact & (table.kind == kind)).sum())


def _table(
    images: Sequence[Labelled],
    rows: IndexRows,
    data: Data,
    content: npt.NDArray[np.bytes_],
    near: Hashes,
    spectra: Spectra,
) -> tuple[_Table, int]:
    """Return what is known of each row, and how many images look like another of their group, mirrored or turned."""
    image = rows.image
    _, first, same = np.unique(content, return_index=True, return_inverse=True)
    group, _ = coded(one.group for one in images)
    num_mirrored = 0
    if data.phash_max_distance:
        (cluster, bits, kind), num_mirrored = find_clusters(near, spectra, group, data.phash_max_distance)
    else:
        cluster, bits = first[same].astype(np.int64), np.full(len(same), -1, np.int64)
        kind = np.zeros(len(same), np.int64)
    label, _ = coded(one.label for one in images)
    exact = np.bincount(same[image], minlength=1)[same[image]] > 1
    nearest = np.where(exact, 0, bits[image])
    found = _Table(image, rows.split, group[image], label[image], cluster[image], nearest, exact, kind[image])
    return found, num_mirrored


def _one_split_each(table: _Table, kept: Bools) -> Ints:
    """Return the split of every row after groups that share a cluster are moved to the strictest of their splits."""
    num_groups = int(table.group.max(initial=-1)) + 1
    nodes = num_groups + int(table.cluster.max(initial=-1)) + 1
    links = coo_array(
        (np.ones(int(kept.sum()), np.int8), (table.group[kept], num_groups + table.cluster[kept])), (nodes, nodes)
    )
    _, component = connected_components(links, directed=False)
    rank = np.array([_STRICTEST.index(split) for split in SPLITS])
    strictest = np.full(nodes, len(SPLITS))
    np.minimum.at(strictest, component[table.group[kept]], rank[table.split[kept]])
    back = np.array([*(SPLITS.index(split) for split in _STRICTEST), 0])
    return np.where(kept, back[strictest[component[table.group]]], table.split)


def _lines(images: Sequence[Labelled], table: _Table, actions: npt.NDArray[np.object_]) -> Iterator[tuple[object, ...]]:
    doubled, across, contradicting = table.doubled, table.across, table.contradicting
    listed = np.flatnonzero(doubled | across)
    order = listed[np.lexsort((table.image[listed], table.cluster[listed]))]
    for row in order.tolist():
        image, first = images[table.image[row]], images[table.cluster[row]]
        near = _NAMES[Kind(table.kind[row])] if doubled[row] else "group"
        kind = "exact" if table.exact[row] else near
        bits = max(0, int(table.bits[row])) if doubled[row] else ""
        flags = ("yes" if flag else "" for flag in (across[row], doubled[row] and contradicting[row]))
        split = SPLITS[table.split[row]]
        name = shown_key(image.key)
        group = name if image.group == image.key else image.group
        yield shown_key(first.key), name, split, image.label, group, kind, bits, *flags, actions[row]
