"""The leaderboard: one row per run, rebuilt from the reports each time."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from filelock import FileLock

from tlbatch.core.errors import UserError
from tlbatch.core.files import DRAFT_LASTS_S, plain_text, remove_drafts, write_text
from tlbatch.core.text import counted
from tlbatch.evaluation.phrases import Phrases, read_phrases
from tlbatch.evaluation.predictions import Predictions, read_predictions
from tlbatch.metrics.paired import compare
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import load_record
from tlbatch.runs.report import SCORES, Comparison, Report

log = logging.getLogger(__name__)
SECOND = tuple(name for name in SCORES if name in ("quadratic_kappa", "accuracy", "balanced_accuracy", "macro_f1"))
COLUMNS = (
    "rank", "run", "job", "metric", "score", "low", "high", *SECOND, "log_loss", "n", "num_groups", "num_errors",
    "behind", "behind_low", "behind_high", "tied_with", "test_digest", "backbone", "weights", "members",
    "images_per_s", "gpu_hours", "synthetic", "commit",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A report and its folder."""

    folder: Path
    """The report folder."""
    report: Report

    @property
    def terms(self) -> tuple[str, str]:
        """Metric and test set: reports are ranked only if they share both."""
        return self.report.metric, self.report.test_digest

    @property
    def order(self) -> tuple[str, str, float, str]:
        """Sort key: best first among reports that can be ranked; ties by name."""
        score = self.report.score
        return *self.terms, np.inf if score is None else -score, self.report.run

    def tested(self) -> Predictions | Phrases:
        """Load the predictions of the readable test images, sorted by key."""
        file = self.folder / "predictions.csv"
        found = (read_phrases(file) if self.report.tags else read_predictions(file, self.report_classes)).of("test")
        found = found.where(found.is_read)
        return found.where(np.argsort(found.keys, kind="stable"))

    @property
    def report_classes(self) -> tuple[str, ...]:
        """Names of the classes in order."""
        return tuple(one.name for one in self.report.classes)


def load_entries(runs: Path) -> list[Entry]:
    """Load all reports of the runs in a folder, in leaderboard order.

    Damaged reports, those of other versions, and copies of a run under another name are skipped.
    """
    found, left_out = [], []
    for file in sorted(runs.glob("*/report/report.json")):
        run = file.parent.parent.name
        try:
            report = load_record(Report, file, missing="run reduce again")
        except UserError:
            report = None
        if report is not None and report.run == run:
            found.append(Entry(file.parent, report))
        else:
            left_out.append(run)
    if left_out:
        log.warning(
            "leaderboard: skipped %s whose report is damaged, a copy or from another version, e.g. %s",
            counted(len(left_out), "run"), left_out[0],
        )  # fmt: skip
    return sorted(found, key=lambda entry: entry.order)


def compare_entries(first: Entry, other: Entry) -> Comparison | None:
    """Compare two runs, paired on the images that both could read, in the metric of the first.

    None if they share less than half of their images, or if classes or labels differ.
    """
    if first.report_classes != other.report_classes:
        return None
    one, two = first.tested(), other.tested()
    _, mine, theirs = np.intersect1d(one.keys, two.keys, return_indices=True)
    if not len(mine) or len(mine) < min(len(one.keys), len(two.keys)) / 2:
        return None
    one, two = one.where(mine), two.where(theirs)
    if not np.array_equal(one.labels, two.labels):
        return None
    return compare(first.report.metric, one.decided, two.decided, name=other.report.run, seed=0)


def rival_of(run: str, entries: Sequence[Entry]) -> Comparison | None:
    """Compare the run with the best other run on the same test images, if there is one."""
    (mine,) = [entry for entry in entries if entry.report.run == run]
    others = [entry for entry in entries if entry.terms == mine.terms and entry is not mine]
    return _compared(mine, others[0]) if others else None


def _compared(first: Entry, other: Entry) -> Comparison | None:
    """Compare two runs; None with a warning if predictions are missing, so that other runs are still reported."""
    try:
        return compare_entries(first, other)
    except UserError as error:
        log.warning("%s and %s cannot be compared: %s", first.report.run, other.report.run, error)
        return None


def rebuild_leaderboard(file: Path) -> pd.DataFrame:
    """Rank the reports of all runs beside ``file``, and write the table there and as Markdown beside it.

    Runs are ranked among those with the same metric and test images; equal scores share a rank and are sorted by
    name. The same reports always give the same bytes.

    Returns
    -------
    The table; ``behind`` is the leader's score minus the run's, with its paired interval, and ``tied_with`` names
    the leader where this interval includes zero, and for the leader all such runs.
    """
    with FileLock(file.with_suffix(".lock")):
        remove_drafts(file.parent, older_s=DRAFT_LASTS_S)
        entries = load_entries(file.parent)
        groups = [list(group) for _, group in groupby(entries, key=lambda entry: entry.terms)]
        tables = [_ranked(group) for group in groups]
        table = pd.concat([pd.DataFrame(columns=list(COLUMNS)).astype(object), *tables], ignore_index=True)
        write_text(file, table.to_csv(index=False, lineterminator="\n"))
        write_text(file.with_suffix(".md"), _markdown(groups, tables))
    return table


def _ranked(group: Sequence[Entry]) -> pd.DataFrame:
    leader = group[0]
    rows = [_row(entry) for entry in group]
    tied = []
    for entry, row in zip(group[1:], rows[1:], strict=True):
        found = _compared(leader, entry) if entry.report.score is not None else None
        if found is None:
            continue
        apart = found.difference
        row |= {"behind": apart.value, "behind_low": apart.low, "behind_high": apart.high}
        if found.verdict == "not different":
            row["tied_with"] = leader.report.run
            tied.append(entry.report.run)
    rows[0] |= {"behind": None if leader.report.score is None else 0.0, "tied_with": " ".join(tied)}
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(object)
    table["rank"] = table["score"].astype("Float64").rank(method="min", ascending=False).astype("Int64").astype(object)
    return table


def _row(entry: Entry) -> dict[str, object]:
    report = entry.report
    main, loss = report.scores[report.metric], report.calibration
    own = {name: getattr(report, name) for name in COLUMNS if name in Report.model_fields}
    row: dict[str, object] = own | {name: report.scores[name].value for name in SECOND}
    row |= {"low": main.low, "high": main.high, "members": " ".join(report.members), "tied_with": ""}
    row |= {"log_loss": (loss.after if loss.kept and loss.after else loss.before).log_loss.value if loss else None}
    row |= {"images_per_s": report.cost.images_per_s, "gpu_hours": report.cost.gpu_hours}
    return {name: plain_text(value) if isinstance(value, str) else value for name, value in row.items()}


def _markdown(groups: Sequence[Sequence[Entry]], tables: Sequence[pd.DataFrame]) -> str:
    lines = ["# Leaderboard", ""]
    for group, table in zip(groups, tables, strict=True):
        first = group[0].report
        metric = first.metric.replace("_", " ")
        lines += [
            f"## {metric} on {first.n} test images (`{first.test_digest[:12]}`)",
            "",
            *(["Synthetic images: the scores say nothing about real images.", ""] if first.synthetic else []),
            f"| rank | run | {metric} | 95 % interval | behind the leader | 95 % interval, paired |",
            "|---:|---|---:|---|---:|---|",
        ]
        for row in table.to_dict("records"):
            tied = row["rank"] != 1 and row["tied_with"]
            behind = "" if row["rank"] == 1 else f"{_number(row['behind'])}{' (no difference shown)' if tied else ''}"
            paired = "" if row["rank"] == 1 else _range(row["behind_low"], row["behind_high"])
            rank = "" if pd.isna(row["rank"]) else row["rank"]
            lines.append(
                f"| {rank} | {row['run']} | {_number(row['score'])} | {_range(row['low'], row['high'])} "
                f"| {behind} | {paired} |"
            )
        lines.append("")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None or pd.isna(value) else f"{value:.4f}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None or pd.isna(low) else f"{low:.4f} to {high:.4f}"


def entries_of(runs: Sequence[Path]) -> list[Entry]:
    """Load the reports of the given runs, each named once."""
    found = [entry_of(folder) for folder in runs]
    names = [entry.report.run for entry in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{runs[0].parent}: {', '.join(twice)} is named twice; name each run once")
    return found


def entry_of(folder: Path) -> Entry:
    """Load the report of one run."""
    path = RunPaths(folder)
    return Entry(
        path.report, load_record(Report, path.report_json, missing="run reduce first: python -m tlbatch.reduce RUN")
    )
