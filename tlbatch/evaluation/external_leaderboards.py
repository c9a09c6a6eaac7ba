"""Other people's leaderboards and the files they take."""

import csv
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2_contingency

from tlbatch.config.base import Metric
from tlbatch.config.report import Reporting
from tlbatch.core.errors import UserError
from tlbatch.core.files import plain_text, to_csv
from tlbatch.metrics.confusion import Classified, point_scores
from tlbatch.runs.report import Placed

log = logging.getLogger(__name__)
_UNLIKE = 0.01
_DECIMALS = 5
Table = list[dict[str, str]]


@dataclass(frozen=True)
class Named:
    """Decisions on test images with the images' names."""

    names: Sequence[str]
    decided: Classified
    classes: Sequence[str]


def read_table(file: Path) -> tuple[list[str], Table]:
    """Header and rows of a CSV file.

    Raises
    ------
    UserError
        When it is none.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened, strict=True, restval="")
            rows = [{key: value for key, value in row.items() if key is not None} for row in reader]
            return list(reader.fieldnames or ()), rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{file}: not a CSV file in UTF-8 ({error}); name another") from None


def read_board(file: Path) -> list[float]:
    """Scores of a leaderboard as Kaggle exports it (a column Score), rounded to five decimals as there, the best first.

    Raises
    ------
    UserError
        When it has no such column, or something in it is no number.
    """
    header, rows = read_table(file)
    if "Score" not in header or not rows:
        raise UserError(f"{file}: no column Score (it has {', '.join(header)}); export it as Kaggle does")
    try:
        scores = [round(float(row["Score"]), _DECIMALS) for row in rows]
    except ValueError as error:
        raise UserError(f"{file}: column Score: {error}; mend that line") from None
    if not np.isfinite(scores).all():
        raise UserError(f"{file}: column Score: holds what is no finite number; mend that line")
    return sorted(scores, reverse=True)


def place(score: float, board: Sequence[float]) -> str:
    """Between which ranks a score falls; ``board`` has the best first, and higher is better."""
    score = round(score, _DECIMALS)
    rising = sorted(board)
    above, level = len(board) - bisect_right(rising, score), bisect_right(rising, score) - bisect_left(rising, score)
    total = f"of {len(board)}"
    if level:
        ranks = f"rank {above + 1}" if level == 1 else f"ranks {above + 1} to {above + level}"
        return f"level with {ranks} {total}"
    if above == 0:
        return f"above rank 1 {total}"
    if above == len(board):
        return f"below rank {len(board)} {total}"
    return f"between ranks {above} and {above + 1} {total}"


def placed(tested: Named, metric: Metric, reporting: Reporting) -> tuple[Placed, ...]:
    """Where the score would stand on each external leaderboard, and why it might not.

    Raises
    ------
    UserError
        When a file cannot be read.
    """
    boards = {"public": reporting.public_leaderboard, "private": reporting.private_leaderboard}
    found = []
    for name, file in boards.items():
        if file is None:
            continue
        some = np.ones(len(tested.names), np.bool_)
        warnings = [f"scored on {len(some)} test images of its own, and not on the leaderboard's: no rank was earned"]
        if reporting.solution is not None:
            some, warnings = _part(tested, reporting.solution, name)
        decided = tested.decided.where(some)
        score = point_scores(decided)[metric] if len(decided.y_true) else np.nan
        text = "undefined here" if np.isnan(score) else f"{score:.5f}: {place(score, read_board(file))}"
        found.append(
            Placed(
                board=name,
                n=len(decided.y_true),
                score=None if np.isnan(score) else float(score),
                text=text,
                warnings=tuple(warnings),
            )
        )
    return tuple(found)


def _part(tested: Named, solution: Path, name: str) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Which test images a part of the solution holds, and how they differ from it."""
    header, rows = read_table(solution)
    if header.count("Usage") != 1 or len(set(header)) != 3:
        raise UserError(
            f"{solution}: must have three columns, image, label and Usage (it has {', '.join(header)}); name another"
        )
    key, label = (column for column in header if column != "Usage")
    asked = [row for row in rows if row["Usage"].strip().lower() == name]
    named = found_names([row[key] for row in asked], tested.names)
    theirs = {one or row[key]: row[label].strip() for one, row in zip(named, asked, strict=True)}
    mine = np.array([one in theirs for one in tested.names], np.bool_)
    warnings = []
    if not theirs:
        warnings.append(f"no line of the solution has the Usage {name.capitalize()}")
    if int(mine.sum()) < len(theirs):
        warnings.append(f"scored on {int(mine.sum())} of its {len(theirs)} images: no rank was earned")
    unknown = sorted({one for one in theirs.values() if one not in tested.classes})
    if unknown:
        warnings.append(f"labels of the solution that are no class: {', '.join(unknown[:5])}")
    own = [tested.classes[number] for number in tested.decided.y_true[mine]]
    there = [theirs[one] for one, ok in zip(tested.names, mine, strict=True) if ok]
    others = sum(one != other for one, other in zip(own, there, strict=True))
    if others:
        warnings.append(f"{others} images have another label there: the score is by the labels here")
    counts = np.array([
        [int((tested.decided.y_true[mine] == number).sum()), list(theirs.values()).count(one)]
        for number, one in enumerate(tested.classes)
    ])  # fmt: skip
    counts = counts[counts.sum(axis=1) > 0]
    if len(counts) > 1 and (counts.sum(axis=0) > 0).all() and chi2_contingency(counts).pvalue < _UNLIKE:
        warnings.append("the classes occur in other shares than there: the scores are of different populations")
    return mine, warnings


def found_names(asked: Sequence[str], known: Iterable[str]) -> list[str | None]:
    """The names of images that others write perhaps with an ending such as .jpeg; None for unknown ones."""
    names = set(known)
    stems = ((one, splitext(one)[0]) for one in asked)  # noqa: PTH122 (a name may hold slashes)
    return [one if one in names else stem if stem in names else None for one, stem in stems]


def submission(
    answers: Mapping[str, str], sample: Path | None, columns: tuple[str, str], *, filling: str
) -> tuple[str, int]:
    """The text of submission.csv, and for how many images ``filling`` had to stand in.

    Parameters
    ----------
    answers
        Predicted class by the name of the image; empty where it could not be read.
    sample
        The competition's sample submission, whose header and order are taken; without it ``columns`` is the header,
        images that could not be read stay empty, and no text begins a formula; with it texts are exact.

    Raises
    ------
    UserError
        When the sample asks for images that were not predicted, or is none.
    """
    if sample is None:
        return to_csv(columns, list(answers.items())), 0
    header, rows = read_table(sample)
    if len(header) != 2:
        raise UserError(f"{sample}: must have two columns (it has {', '.join(header)}); name a sample submission")
    names = [row[header[0]] for row in rows]
    found = found_names(names, answers)
    missing = [name for name, own in zip(names, found, strict=True) if own is None]
    if missing:
        raise UserError(
            f"{sample}: {len(missing)} of its {len(names)} images are no test images, the first is {missing[0]}; "
            "name another report.sample_submission"
        )
    if not names or len(set(names)) < len(names):
        raise UserError(f"{sample}: names no image, or one twice; name another report.sample_submission")
    if len(names) < len(answers):
        log.warning("submission.csv: %s asks for %d of %d test images", sample, len(names), len(answers))
    own = [answers[name] for name in found if name is not None]
    filled = [(name, answer or filling) for name, answer in zip(names, own, strict=True)]
    if any(plain_text(cell) != cell for row in (header, *filled) for cell in row):
        log.warning("submission.csv: has cells that a spreadsheet would take for formulas, as the competition asks")
    return to_csv(header, filled, exact=True), sum(not answer for answer in own)
