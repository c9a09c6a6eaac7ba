"""Clusters of exact and near duplicates: which images are joined, and which contradict each other."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from tlbatch.core.typing import Bools, Ints
from tlbatch.data.near_copies import find_copies
from tlbatch.data.near_duplicates import Hashes, Spectra
from tlbatch.runs.records import SPLITS

STRICTEST = ("test", "val", "train")
"""Order in which splits keep an image: a test image never moves to training."""
STRICTNESS = np.array([STRICTEST.index(split) for split in SPLITS])
"""Place in `STRICTEST` of each of `SPLITS`."""
MOST = 0.05
"""Largest share of the images in a cluster of duplicates; larger ones are images of one kind, not copies of one."""
_FEW = 8
"""Size up to which a cluster is never too large: one image in its 8 orientations."""


@dataclass(frozen=True)
class Clusters:
    """The duplicates among images; each array has one entry per image, (n,)."""

    content: Ints
    """Number of the first image with the same bytes."""
    near: Ints
    """Smallest number of an image in the cluster of exact and near duplicates."""
    bits: Ints
    """Hamming distance to the nearest duplicate, -1 where there is none."""
    same: Ints
    """Smallest number of an image that it is equal to at full size, however they are stored; see `look_again`."""
    kind: Ints
    """`Kind` of its duplicates that are not exact."""
    num_mirrored: int = 0
    """Number of images that look like another of their group, mirrored or turned."""

    @property
    def large(self) -> Bools:
        """Images of clusters that are too large to be of copies."""
        sizes = np.bincount(self.near, minlength=1)[self.near]
        return np.asarray((sizes > _FEW) & (sizes > MOST * len(self.near)))

    @property
    def joined(self) -> Ints:
        """Smallest number of an image in the cluster whose images stay together; of large ones, only equal files do."""
        return np.where(self.large, self.content, self.near)

    @property
    def equal(self) -> Ints:
        """Smallest number of an image that is really equal to it; in large clusters, only equal files are."""
        return np.where(self.large, self.content, self.same)


def find_clusters(
    content: npt.NDArray[np.bytes_],
    near: Hashes,
    spectra: Spectra,
    groups: Ints,
    max_bits: int,
) -> Clusters:
    """Find exact and near duplicates.

    Parameters
    ----------
    content
        Hash of the bytes of each image, (n,).
    near
        Perceptual hash of each image, (n, words), see `tlbatch.data.near_duplicates`.
    spectra
        Lowest frequencies of each image, (n, 24, 24).
    groups
        Number of the group of each image, (n,).
    max_bits
        Largest distance of near duplicates; 0: find equal bytes only.
    """
    _, first, same = np.unique(content, return_index=True, return_inverse=True)
    exact = first[same].astype(np.int64)
    if max_bits:
        (cluster, bits, kind), num_mirrored = find_copies(near, spectra, groups, max_bits)
    else:
        cluster, bits = exact, np.full(len(exact), -1, np.int64)
        kind, num_mirrored = np.zeros(len(exact), np.int64), 0
    return Clusters(exact, cluster, bits, exact, kind, num_mirrored)


def several_labels(cluster: Ints, label: Ints) -> Bools:
    """Return a mask of the images whose cluster has more than one label, (n,)."""
    low, high = (np.full(int(cluster.max(initial=-1)) + 1, start) for start in (np.iinfo(np.int64).max, -1))
    np.minimum.at(low, cluster, label)
    np.maximum.at(high, cluster, label)
    return np.asarray((low < high)[cluster])


def contradicted(equal: Ints, label: Ints, stated: Ints) -> Bools:
    """Return a mask of the images to drop because an equal image has another label, (n,).

    Those in the strictest of their splits stay, unless they contradict each other.

    Parameters
    ----------
    equal
        Cluster of equal images, (n,).
    stated
        Split that the source gives each image, as a number in `SPLITS`, (n,).
    """
    rank = STRICTNESS[stated]
    best = np.full(int(equal.max(initial=-1)) + 1, len(SPLITS))
    np.minimum.at(best, equal, rank)
    strictest = rank == best[equal]
    dropped = several_labels(equal, label)
    dropped[strictest] = several_labels(equal[strictest], label[strictest])
    return dropped


def joined_groups(group: Ints, cluster: Ints, num_groups: int) -> Ints:
    """Return the component of each group, where groups that share a cluster are in one, (num_groups,)."""
    nodes = num_groups + int(cluster.max(initial=-1)) + 1
    links = coo_array((np.ones(len(group), np.int8), (group, num_groups + cluster)), (nodes, nodes))
    _, component = connected_components(links, directed=False)
    return np.asarray(component[:num_groups].astype(np.int64))


def num_joined(group: Ints, cluster: Ints) -> tuple[int, int]:
    """Return the number of images in clusters of several groups, and of these clusters."""
    across = several_labels(cluster, group)
    return int(across.sum()), len(np.unique(cluster[across]))
