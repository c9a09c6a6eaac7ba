"""From a run's merged phrases to their scores, its predictions.csv and its submission."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tlbatch.data.loader import ImageSet
from tlbatch.data.phrases import odd_phrases
from tlbatch.data.sources import name_of
from tlbatch.job.records import Best
from tlbatch.job.report import Scored
from tlbatch.report.parts import Part
from tlbatch.report.phrases import Phrases, Tagged, summarise_phrases, write_phrases
from tlbatch.report.tags import Vocabulary
from tlbatch.scoring import Scoring


def write_scored_phrases(
    scoring: Scoring, images: ImageSet, merged: Part, best: Best, causes: Sequence[str]
) -> tuple[Phrases, Scored]:
    """Write predictions.csv and submission.csv; the phrases, and their scores.

    Parameters
    ----------
    causes
        Why images were left out of the set.

    Raises
    ------
    UserError
        When a column does not fit.
    """
    job, manifest = scoring.record.job, scoring.manifest
    index, separator = images.index, job.data.tag_separator
    rows = index[merged.rows]
    truth, written = _tags(rows["tags"], manifest.classes), _tags(merged.phrases, best.classes)
    found = Phrases(
        keys=rows["key"],
        groups=rows["group"],
        splits=rows["split"].astype(np.int64),
        labels=np.array([separator.join(tags) for tags in truth], np.object_),
        written=np.array([separator.join(tags) for tags in written], np.object_),
        log_probabilities=merged.grades,
        errors=np.array([merged.errors.get(row, "") for row in merged.rows.tolist()], np.object_),
    )
    write_phrases(scoring.folder / "predictions.csv", found)
    test = found.of("test")
    names = [name_of(key.decode()) for key in test.keys]
    (commonest, _), *_ = Counter(_tags(images.tags("train"), manifest.classes)).most_common(1)
    scoring.write_submission(dict(zip(names, test.written.tolist(), strict=True)), separator.join(commonest))
    attributes = job.data.attributes_in(manifest.classes)
    odd = odd_phrases(index, manifest, best.classes, best.max_tags, attributes=attributes, causes=causes)
    vocabulary = Vocabulary(manifest.classes, attributes, odd, len(best.classes))
    return found, summarise_phrases(
        Tagged(found, truth, written), vocabulary, scoring.columns(test.keys), seed=job.seed
    )


def _tags(phrases: npt.NDArray[np.integer], names: Sequence[str]) -> list[tuple[str, ...]]:
    """The tags of each phrase."""
    different, of = np.unique(phrases, axis=0, return_inverse=True)
    named = [tuple(names[tag] for tag in row if tag >= 0) for row in different.tolist()]
    return [named[number] for number in of.ravel().tolist()]
