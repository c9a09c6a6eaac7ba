"""The leaderboard: one row a run, made anew from the reports each time."""

import json
from pathlib import Path

import pandas as pd
from filelock import FileLock

from tlbatch.job.files import write_text

COLUMNS = (
    "rank", "run", "job", "metric", "score", "accuracy", "quadratic_kappa", "n", "test_digest", "backbone", "weights",
    "synthetic", "commit",
)  # fmt: skip


def rebuild_leaderboard(file: Path) -> pd.DataFrame:
    """Rank all reports in the runs beside ``file`` and write them there.

    Runs are ranked among those with the same metric on the same test images; equal scores share a rank and stand
    in the order of their names. The same reports always give the same bytes.
    """
    with FileLock(file.with_suffix(".lock")):
        rows = [_row(report) for report in sorted(file.parent.glob("*/report/report.json"))]
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        groups = table.groupby(["metric", "test_digest"])["score"]
        table["rank"] = groups.rank(method="min", ascending=False).astype("Int64")
        table = table.sort_values(["metric", "test_digest", "rank", "run"], ignore_index=True)
        write_text(file, table.to_csv(index=False, lineterminator="\n"))
    return table


def _row(file: Path) -> dict[str, object]:
    report = json.loads(file.read_text(encoding="utf-8"))
    return {column: report[column] for column in COLUMNS if column != "rank"}
