import json
from pathlib import Path

import pandas as pd

from tlbatch.report.leaderboard import COLUMNS, rebuild_leaderboard


def add(runs: Path, run: str, *, score: float | None, test: str = "t1") -> None:
    report = dict.fromkeys(COLUMNS, "x") | {"run": run, "score": score, "metric": "accuracy", "test_digest": test}
    folder = runs / run / "report"
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def test_runs_are_ranked_on_the_same_test_images_only_and_equals_share_a_rank(tmp_path: Path) -> None:
    for run, score, test in (("d", 0.7, "t1"), ("a", 0.9, "t1"), ("c", 0.9, "t1"), ("b", 0.1, "t2")):
        add(tmp_path, run, score=score, test=test)
    add(tmp_path, "e", score=None)
    board = tmp_path / "leaderboard.csv"
    rebuild_leaderboard(board)
    table = pd.read_csv(board)
    assert table["run"].tolist() == ["a", "c", "d", "e", "b"]
    assert table["rank"].fillna(0).tolist() == [1, 1, 3, 0, 1]
    before = board.read_bytes()
    rebuild_leaderboard(board)
    assert board.read_bytes() == before
