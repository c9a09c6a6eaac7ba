"""The audit: exact and near duplicates within and across splits, and whether their labels agree."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np

from tlbatch.config.base import SplitName
from tlbatch.config.data import Data
from tlbatch.core.errors import UserError
from tlbatch.core.files import to_csv, write_text
from tlbatch.core.text import counted
from tlbatch.core.typing import Bools, Ints
from tlbatch.data.clusters import MOST, Clusters, several_labels
from tlbatch.data.index import IndexRows
from tlbatch.data.near_copies import MOST_CROPPED, Kind
from tlbatch.data.placement import Placement
from tlbatch.data.sources.base import Labelled, coded, shown_key
from tlbatch.runs.manifest import Audit
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import SPLITS

log = logging.getLogger(__name__)
_PAIRS: tuple[tuple[SplitName, tuple[SplitName, ...]], ...] = (
    ("val", ("train",)),
    ("test", ("train",)),
    ("test", ("val",)),
    ("test", ("train", "val")),
)
_NAMES = {Kind.NEAR: "near", Kind.TURNED: "mirrored or turned", Kind.CROPPED: "cropped"}
_TOO_LARGE = f"listed only: cluster above {MOST:.0%} of the set"
HEADER = ("cluster", "image", "split", "label", "group", "kind", "bits", "across", "contradicts", "action")


@dataclass(frozen=True)
class Findings:
    """What the audit found, and the rows that it keeps."""

    record: Audit
    rows: IndexRows
    table: list[tuple[object, ...]]
    """Lines of audit.csv, see `HEADER`."""
    notes: tuple[str, ...]
    """What was joined, and the shares of the splits where images were moved or dropped."""
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """One entry per row of the set."""

    image: Ints
    split: Ints
    group: Ints
    label: Ints
    cluster: Ints
    """Smallest image number in the cluster of exact and near duplicates."""
    joined: Ints
    """Smallest image number in the cluster of duplicates that must be in one split."""
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
        return several_labels(self.cluster, self.label)

    def also_in(self, split: int) -> Bools:
        """Return a mask of the rows with a duplicate, or an image of their group, in a split."""
        there = self.split == split
        return np.asarray(np.isin(self.joined, self.joined[there]) | np.isin(self.group, self.group[there]))

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


def audit_rows(images: Sequence[Labelled], data: Data, clusters: Clusters, placed: Placement) -> Findings:
    """Count and list exact and near duplicates, what was done about them, and which are still in two splits."""
    table = _table(images, placed.before, clusters)
    kept = ~placed.dropped[table.image]
    equal, large = clusters.equal[table.image], clusters.large[table.image] & ~table.exact
    similar = kept & table.contradicting & ~several_labels(equal, table.label)
    stays = np.where(kept, -1, _stays(equal, table.split, kept))
    after = replace(table, split=placed.split).only(kept)
    record = Audit(
        num_exact=int(table.exact.sum()),
        num_near=int((table.doubled & ~table.exact).sum()),
        num_contradicting=int((table.doubled & table.contradicting).sum()),
        across={f"{one} in {' or '.join(others)}": after.num_in(one, others) for one, others in _PAIRS},
        num_turned=_number_of(table, Kind.TURNED),
        num_cropped=_number_of(table, Kind.CROPPED),
        num_mirrored=clusters.num_mirrored,
        num_moved=int(placed.moved.sum()),
        num_dropped=int((~kept).sum()),
        num_similar=int(similar.sum()),
        num_large=int(large.sum()),
        searched=_searched(data, len(images)),
    )
    actions = {
        "dropped": ~kept & (stays < 0),
        **{f"dropped: contradicts a {split} image": stays == number for number, split in enumerate(SPLITS)},
        **{f"moved to {split}": placed.moved & (placed.split == number) for number, split in enumerate(SPLITS)},
        "kept: similar, not equal": similar,
        _TOO_LARGE: kept & large,
    }
    lines = list(_lines(images, table, _texts(actions, len(kept))))
    notes = [*placed.notes, *_contradicted(stays)]
    if data.audit == "resolve" and (notes or record.num_dropped or record.num_moved):
        notes.append(_shares(after.split))
    return Findings(record, IndexRows(after.image, after.split), lines, tuple(notes), _large_clusters(clusters))


def _stays(equal: Ints, split: Ints, kept: Bools) -> Ints:
    """Return the split of the equal images that are kept, -1 if none is, (rows,)."""
    found = np.full(int(equal.max(initial=-1)) + 1, -1)
    found[equal[kept]] = split[kept]
    return np.asarray(found[equal])


def _searched(data: Data, num_images: int) -> str:
    """Say which copies were looked for, and which are not found."""
    if not data.phash_max_distance:
        return "Looked for: equal files only, as data.phash_max_distance is 0"
    margins = "about equal margins" if num_images > MOST_CROPPED else "any margins"
    return (
        "Looked for: copies that are equal, nearly equal, mirrored, turned by quarters, or cropped by up to 10 % on "
        f"each side with {margins}. Not found are other rotations, larger crops, and crops that are also mirrored or "
        "turned"
    )


def _number_of(table: _Table, kind: Kind) -> int:
    return int((table.doubled & ~table.exact & (table.kind == kind)).sum())


def _table(images: Sequence[Labelled], rows: IndexRows, clusters: Clusters) -> _Table:
    image = rows.image
    group, _ = coded(one.group for one in images)
    label, _ = coded(one.label for one in images)
    same = clusters.content[image]
    exact = np.bincount(same, minlength=1)[same] > 1
    return _Table(
        image, rows.split, group[image], label[image], clusters.near[image], clusters.joined[image],
        np.where(exact, 0, clusters.bits[image]), exact, clusters.kind[image],
    )  # fmt: skip


def _texts(actions: Mapping[str, Bools], num_rows: int) -> list[str]:
    """Return what was done with each row."""
    texts: list[list[str]] = [[] for _ in range(num_rows)]
    for text, rows in actions.items():
        for row in np.flatnonzero(rows).tolist():
            texts[row].append(text)
    return ["; ".join(some) for some in texts]


def _lines(images: Sequence[Labelled], table: _Table, actions: Sequence[str]) -> Iterator[tuple[object, ...]]:
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


def _contradicted(stays: Ints) -> Iterator[str]:
    """Say how many images were dropped because an equal one of a stricter split stays."""
    for split in np.unique(stays[stays >= 0]).tolist():
        gone = counted(int((stays == split).sum()), "image")
        yield f"{gone} dropped: an equal {SPLITS[split]} image has another label, and stays"


def _shares(split: Ints) -> str:
    counts = np.bincount(split, minlength=len(SPLITS)).tolist()
    shares = (
        f"{name} {count:,} ({count / max(1, len(split)):.1%})" for name, count in zip(SPLITS, counts, strict=True)
    )
    return f"images of each split after duplicates were resolved: {', '.join(shares)}"


def _large_clusters(clusters: Clusters) -> tuple[str, ...]:
    large = clusters.large
    images, of = counted(int(large.sum()), "image"), counted(len(np.unique(clusters.near[large])), "cluster")
    text = (
        f"{images} in {of} of near duplicates above {MOST:.0%} of the set: audit.csv lists them; only those with equal "
        "bytes are joined, moved or dropped, as the others look alike but are hardly copies"
    )
    return (text,) if large.any() else ()


def check_audit(findings: Findings, data: Data, paths: RunPaths) -> None:
    """Log the findings of the audit, and raise where the job does not allow them; the run then has an audit.csv."""
    found = findings.record
    log.info(
        "audit: %s with an exact duplicate, %d with a near duplicate (%d mirrored or turned, %d cropped); %d of these "
        "with a different label",
        counted(found.num_exact, "image"), found.num_near, found.num_turned, found.num_cropped, found.num_contradicting,
    )  # fmt: skip
    if found.num_similar:
        log.info(
            "audit: %s with a near duplicate of a different label kept: similar, not equal",
            counted(found.num_similar, "image"),
        )
    if found.num_moved or found.num_dropped:
        moved = counted(found.num_moved, "image")
        log.info("audit: %s moved to the split of a duplicate, %d dropped", moved, found.num_dropped)
    for note in findings.notes:
        log.info("audit: %s", note)
    leaks = [f"{counted(num, 'image')} of {pair} too" for pair, num in found.across.items() if num]
    if not leaks:
        return
    if data.audit == "stop":
        listed = paths.folder / "audit.csv"
        write_text(listed, to_csv(HEADER, findings.table))
        raise UserError(
            f"data: the same or nearly the same images are in two splits: {', '.join(leaks)} (see {listed}); set "
            "data.audit=resolve to fix it, or data.audit=warn to accept it"
        )
    log.warning("audit: the same or nearly the same images are in two splits: %s", ", ".join(leaks))
