"""Counts of unusual phrases in a set, for the report."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from tlbatch.data.index import Index, split_rows
from tlbatch.data.sources.base import NO_LABEL, TWO_LABELS
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.records import SPLITS
from tlbatch.runs.report import OddPhrases


def odd_phrases(
    index: Index,
    manifest: Manifest,
    vocabulary: Sequence[str],
    max_tags: int,
    *,
    attributes: Mapping[str, Sequence[str]],
    causes: Iterable[str],
) -> OddPhrases:
    """Count the phrases that cannot be learned or written as they are.

    Parameters
    ----------
    vocabulary
        Tags that predicted phrases may contain.
    max_tags
        Largest number of tags in a predicted phrase.
    attributes
        Tags of each attribute, of which an image should have at most one.
    causes
        Why images were excluded from the set.
    """
    tags = index["tags"]
    known = np.isin(np.arange(len(manifest.classes)), [manifest.classes.index(tag) for tag in vocabulary])
    unknown = (tags >= 0) & ~np.append(known, True)[tags]
    test = split_rows(index, "test")
    counts = Counter(tags[test][unknown[test]].tolist())
    several = np.zeros(len(index), np.bool_)
    for own in attributes.values():
        several |= np.isin(tags, [manifest.classes.index(tag) for tag in own]).sum(axis=1) > 1
    left_out = Counter(cause.partition(" (")[0] for cause in causes)
    return OddPhrases(
        num_empty=left_out[NO_LABEL],
        num_contradicting=left_out[TWO_LABELS] + manifest.audit.num_contradicting,
        num_too_long={
            name: int(((tags[split_rows(index, name)] >= 0).sum(axis=1) > max_tags).sum()) for name in SPLITS
        },
        num_several={name: int(several[split_rows(index, name)].sum()) for name in SPLITS},
        num_unseen={name: int(unknown[split_rows(index, name)].any(axis=1).sum()) for name in SPLITS},
        unseen={manifest.classes[number]: count for number, count in sorted(counts.items())},
    )
