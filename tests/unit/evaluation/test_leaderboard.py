import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tlbatch.config.report import Reporting
from tlbatch.evaluation.leaderboard import COLUMNS, load_entries, rebuild_leaderboard, rival_of
from tlbatch.evaluation.predictions import Predictions, write_predictions
from tlbatch.evaluation.summary import ReportSettings, summarise
from tlbatch.runs.manifest import Audit
from tlbatch.runs.report import REPORT_VERSION, Cost, Report

AUDIT = Audit(num_exact=0, num_near=0, num_contradicting=0, across={}, num_moved=0, num_dropped=0)


def add(runs: Path, run: str, *, wrong: float, test: str = "t1", seed: int = 0, weights: str = "w.pth") -> None:
    """A run of 200 test images of two classes, some of them wrong; for the same seed, the same first ones."""
    truth = np.arange(200) % 2
    missed = np.random.default_rng(seed).permutation(200) < wrong * 200
    probabilities = np.where(missed[:, None], 1 - np.eye(2)[truth], np.eye(2)[truth]) * 0.8 + 0.1
    keys = np.array([f"{n:03}".encode() for n in range(200)], np.bytes_)
    none = np.array([""] * 200, np.object_)
    found = Predictions(keys, keys, np.full(200, 2), none, ("0", "1"), truth, probabilities.astype(np.float32))
    settings = ReportSettings("accuracy", Reporting(), 0, {}, ordered=True)
    scored = summarise(
        found,
        found,
        found.of("val"),
        (None, False, ""),
        settings,
        names=[key.decode() for key in keys],
        thresholds=None,
    )
    write_predictions(runs / run / "report" / "predictions.csv", found)
    Report(
        **dict(scored), version=REPORT_VERSION, run=run, job="j", members=(), ensemble=None, synthetic=False,
        ceilings=(), strategy=None, counts={}, num_images={}, num_rejected=0, audit=AUDIT, resize=0, steps=(),
        checkpoint=None, backbone="b", weights=weights, seeds={}, test_digest=test, digests={}, versions={},
        commit=None, cost=Cost(seconds={}, gpu_hours=0.5, images_per_s=10.0, hosts=()),
    ).save(runs / run / "report" / "report.json")  # fmt: skip


def test_runs_are_ranked_on_the_same_test_images_only_and_equals_share_a_rank(tmp_path: Path) -> None:
    for run, wrong, test in (("d", 0.3, "t1"), ("a", 0.1, "t1"), ("c", 0.1, "t1"), ("b", 0.9, "t2")):
        add(tmp_path, run, wrong=wrong, test=test)
    board = tmp_path / "leaderboard.csv"
    rebuild_leaderboard(board)
    table = pd.read_csv(board)
    assert table.columns.tolist() == list(COLUMNS)
    assert table["run"].tolist() == ["a", "c", "d", "b"]
    assert table["rank"].tolist() == [1, 1, 3, 1]
    before = board.read_bytes(), board.with_suffix(".md").read_bytes()
    rebuild_leaderboard(board)
    assert (board.read_bytes(), board.with_suffix(".md").read_bytes()) == before


def test_the_distance_to_the_leader_has_a_paired_interval_and_what_cannot_be_told_apart_is_tied(tmp_path: Path) -> None:
    add(tmp_path, "leader", wrong=0.1)
    add(tmp_path, "near", wrong=0.12, seed=1)
    add(tmp_path, "far", wrong=0.4)
    table = rebuild_leaderboard(tmp_path / "leaderboard.csv").set_index("run")
    assert table.loc["far", "behind"] == pytest.approx(0.3)
    assert table.loc["far", "behind_low"] > 0.2
    assert table.loc["far", "tied_with"] == ""
    assert table.loc["near", "behind_low"] < 0 < table.loc["near", "behind_high"]
    assert table["tied_with"].tolist()[:2] == ["near", "leader"]
    page = (tmp_path / "leaderboard.md").read_text("utf-8")
    assert "| 1 | leader | 0.9000 | " in page
    assert "| 2 | near | 0.8800 | 0.8350 to 0.9250 | 0.0200 (no difference shown) |" in page
    assert "| 3 | far | 0.6000 | 0.5300 to 0.6650 | 0.3000 | " in page


def test_the_rival_of_a_run_is_the_best_other_one_on_its_test_images(tmp_path: Path) -> None:
    for run, wrong, test in (("a", 0.1, "t1"), ("b", 0.3, "t1"), ("c", 0.2, "t2")):
        add(tmp_path, run, wrong=wrong, test=test)
    entries = load_entries(tmp_path)
    first, second = rival_of("a", entries), rival_of("b", entries)
    assert first is not None
    assert second is not None
    assert (first.other, first.verdict) == ("b", "better")
    assert (second.other, second.verdict) == ("a", "worse")
    assert rival_of("c", entries) is None


def test_reports_of_other_versions_are_left_out_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path, "good", wrong=0.1)
    shutil.copytree(tmp_path / "good", tmp_path / "good-backup")
    for run in ("old", "older"):
        (tmp_path / run / "report").mkdir(parents=True)
        (tmp_path / run / "report" / "report.json").write_text('{"score": 1}', "utf-8")
    with caplog.at_level(logging.WARNING):
        table = rebuild_leaderboard(tmp_path / "leaderboard.csv")
    assert table["run"].tolist() == ["good"]
    assert [record.getMessage() for record in caplog.records] == [
        "leaderboard: skipped 3 runs whose report is damaged, a copy or from another version, e.g. good-backup"
    ]


def test_a_run_whose_predictions_are_gone_stops_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(tmp_path, "a", wrong=0.1)
    add(tmp_path, "b", wrong=0.3)
    (tmp_path / "b" / "report" / "predictions.csv").unlink()
    assert rival_of("a", load_entries(tmp_path)) is None
    table = rebuild_leaderboard(tmp_path / "leaderboard.csv").set_index("run")
    assert table["rank"].tolist() == [1, 2]
    assert pd.isna(table.loc["b", "behind"])
    assert "a and b cannot be compared: " in caplog.records[-1].getMessage()


def test_what_kills_have_left_beside_the_leaderboard_goes_when_it_is_old(tmp_path: Path) -> None:
    young, old = tmp_path / ".leaderboard.csv.abcdefgh", tmp_path / ".run.abcdefgh"
    young.touch()
    (old / "logs").mkdir(parents=True)
    os.utime(old, (0, 0))
    rebuild_leaderboard(tmp_path / "leaderboard.csv")
    assert (young.exists(), old.exists()) == (True, False)


def test_without_a_report_the_leaderboard_is_a_header(tmp_path: Path) -> None:
    assert rebuild_leaderboard(tmp_path / "leaderboard.csv").empty
    assert (tmp_path / "leaderboard.csv").read_text("utf-8") == ",".join(COLUMNS) + "\n"


def test_no_cell_begins_a_formula(tmp_path: Path) -> None:
    add(tmp_path, "a", wrong=0.1, weights="=cmd|calc.pth")
    rebuild_leaderboard(tmp_path / "leaderboard.csv")
    assert pd.read_csv(tmp_path / "leaderboard.csv")["weights"].tolist() == ["'=cmd|calc.pth"]
