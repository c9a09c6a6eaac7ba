"""External (Kaggle) leaderboards and submission files."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path

import numpy as np
from scipy.stats import chi2_contingency

from tlbatch.config.base import Metric
from tlbatch.config.report import Reporting
from tlbatch.core.errors import UserError
from tlbatch.core.files import plain_text, to_csv
from tlbatch.core.tables import read_table
from tlbatch.core.text import counted
from tlbatch.core.typing import Bools
from tlbatch.metrics.confusion import Classified, point_scores
from tlbatch.runs.report import Placed

log = logging.getLogger(__name__)
_UNLIKE = 0.01
_DECIMALS = 5


@dataclass(frozen=True)
class Named:
    """True and predicted classes of test images, with image names."""

    names: Sequence[str]
    decided: Classified
    classes: Sequence[str]


def _read(file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return header and rows of a table; UserError if it is none, or a row does not fit the header."""
    table = read_table(file, ["Score", "Usage"])
    for line, cause in table.misfits:
        raise UserError(f"{file}:{line}: {cause}; correct that line")
    return list(table.columns), [dict(zip(table.columns, row, strict=True)) for _, row in table.rows]


def read_board(file: Path) -> list[float]:
    """Read the scores of a Kaggle leaderboard export (column Score), rounded to its five decimals, best first.

    Raises UserError if the column is missing or contains a value that is not a finite number.
    """
    header, rows = _read(file)
    if "Score" not in header or not rows:
        raise UserError(
            f"{file}: no column Score (it has {', '.join(header)}); use the leaderboard as exported by Kaggle"
        )
    try:
        scores = [round(float(row["Score"]), _DECIMALS) for row in rows]
    except ValueError as error:
        raise UserError(f"{file}: column Score: {error}; correct that line") from None
    if not np.isfinite(scores).all():
        raise UserError(f"{file}: column Score: contains a non-finite number; correct that line")
    return sorted(scores, reverse=True)


def place(score: float, board: Sequence[float]) -> str:
    """Describe the rank of a score on ``board``, which is sorted best first; higher is better."""
    score = round(score, _DECIMALS)
    above, level = sum(other > score for other in board), board.count(score)
    total = f"of {len(board)}"
    if level:
        ranks = f"rank {above + 1}" if level == 1 else f"ranks {above + 1} to {above + level}"
        return f"tied with {ranks} {total}"
    if above == 0:
        return f"above rank 1 {total}"
    if above == len(board):
        return f"below rank {len(board)} {total}"
    return f"between ranks {above} and {above + 1} {total}"


def placed(tested: Named, metric: Metric, reporting: Reporting) -> tuple[Placed, ...]:
    """Place the score on each external leaderboard, with warnings where it is not comparable.

    Raises UserError if a file cannot be read.
    """
    boards = {"public": reporting.public_leaderboard, "private": reporting.private_leaderboard}
    found = []
    for name, file in boards.items():
        if file is None:
            continue
        some = np.ones(len(tested.names), np.bool_)
        warnings = [f"scored on this run's {len(some)} test images, not on the leaderboard's: the rank is hypothetical"]
        if reporting.solution is not None:
            some, warnings = _part(tested, reporting.solution, name)
        decided = tested.decided.where(some)
        value = point_scores(decided)[metric] if len(decided.y_true) else np.nan
        score = None if np.isnan(value) else float(value)
        text = "undefined on these images" if score is None else f"{score:.5f}: {place(score, read_board(file))}"
        found.append(Placed(board=name, n=len(decided.y_true), score=score, text=text, warnings=tuple(warnings)))
    return tuple(found)


def _part(tested: Named, solution: Path, name: str) -> tuple[Bools, list[str]]:
    """Select the test images in a part of the solution, with warnings about differences from it."""
    header, rows = _read(solution)
    if header.count("Usage") != 1 or len(set(header)) != 3:
        raise UserError(
            f"{solution}: must have three columns, image, label and Usage (it has {', '.join(header)}); name another"
        )
    key, label = (column for column in header if column != "Usage")
    listed = [row for row in rows if row["Usage"].strip().lower() == name]
    named = found_names([row[key] for row in listed], tested.names)
    theirs = {one or row[key]: row[label].strip() for one, row in zip(named, listed, strict=True)}
    mine = np.array([one in theirs for one in tested.names], np.bool_)
    warnings = []
    if not theirs:
        warnings.append(f"no row of the solution has Usage {name.capitalize()}")
    if mine.sum() < len(theirs):
        warnings.append(f"scored on {mine.sum()} of its {len(theirs)} images: the rank is hypothetical")
    unknown = sorted({one for one in theirs.values() if one not in tested.classes})
    if unknown:
        warnings.append(f"labels of the solution that are not classes of this run: {', '.join(unknown[:5])}")
    own = zip(tested.names, tested.decided.y_true, strict=True)
    others = sum(theirs.get(name, tested.classes[number]) != tested.classes[number] for name, number in own)
    if others:
        warnings.append(
            f"{counted(others, 'image')} with a different label in the solution: scored with the labels of this run"
        )
    labels = list(theirs.values())
    counts = np.column_stack([
        np.bincount(tested.decided.y_true[mine], minlength=len(tested.classes)),
        [labels.count(one) for one in tested.classes],
    ])  # fmt: skip
    counts = counts[counts.sum(axis=1) > 0]
    if len(counts) > 1 and (counts.sum(axis=0) > 0).all() and chi2_contingency(counts).pvalue < _UNLIKE:
        warnings.append(
            "the class distribution differs from that of the solution: the scores refer to different populations"
        )
    return mine, warnings


def found_names(listed: Sequence[str], known: Iterable[str]) -> list[str | None]:
    """Match image names, with or without a suffix such as .jpeg, to known names; None for unknown ones."""
    names = set(known)
    stems = ((one, splitext(one)[0]) for one in listed)  # noqa: PTH122 (a name may contain slashes)
    return [one if one in names else stem if stem in names else None for one, stem in stems]


def submission(
    answers: Mapping[str, str], sample: Path | None, columns: tuple[str, str], *, filling: str
) -> tuple[str, int]:
    """Return the text of submission.csv, and the number of images for which ``filling`` was used.

    Parameters
    ----------
    answers
        Predicted class by image name; empty where the image could not be read.
    sample
        The competition's sample submission, which sets header and order, with text written verbatim. Without it,
        ``columns`` is the header, unreadable images stay empty, and text cells are safe from formula injection.

    Raises
    ------
    UserError
        When the sample lists images that were not predicted, or is not a sample submission.
    """
    if sample is None:
        return to_csv(columns, list(answers.items())), 0
    header, rows = _read(sample)
    if len(header) != 2:
        raise UserError(f"{sample}: must have two columns (it has {', '.join(header)}); name a sample submission")
    names = [row[header[0]] for row in rows]
    found = found_names(names, answers)
    missing = [name for name, own in zip(names, found, strict=True) if own is None]
    if missing:
        raise UserError(
            f"{sample}: {len(missing)} of its {counted(len(names), 'image')} not in the test split, the first is "
            f"{missing[0]}; name another report.sample_submission"
        )
    if not names or len(set(names)) < len(names):
        raise UserError(f"{sample}: lists no image, or one twice; name another report.sample_submission")
    if len(names) < len(answers):
        log.warning("submission.csv: %s lists only %d of %d test images", sample, len(names), len(answers))
    own = [answers[name] for name in found if name is not None]
    filled = [(name, answer or filling) for name, answer in zip(names, own, strict=True)]
    if any(plain_text(cell) != cell for row in (header, *filled) for cell in row):
        log.warning(
            "submission.csv: some cells look like spreadsheet formulas; they are written verbatim for the competition"
        )
    return to_csv(header, filled, exact=True), sum(not answer for answer in own)
