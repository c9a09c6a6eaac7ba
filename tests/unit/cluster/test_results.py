"""What is printed at the end of several runs, and which of them are compared."""

from pathlib import Path
from typing import Any

import pytest

from tlbatch.cluster import results
from tlbatch.runs.paths import RunPaths


def report(job: str, score: float | None, **changed: Any) -> dict[str, Any]:
    found = {"value": score, "low": None if score is None else score - 0.1, "high": None if score is None else 0.95}
    return {
        "run": f"run-{job}", "job": job, "metric": "accuracy", "score": score, "scores": {"accuracy": found},
        "strategy": None, "synthetic": False, "ceilings": [], "n": 50, "test_digest": "a",
    } | changed  # fmt: skip


def kappa(job: str, score: float) -> dict[str, Any]:
    scores = {"quadratic_kappa": {"value": score, "low": None, "high": None}, "accuracy": {"value": 0.5}}
    return report(job, score, metric="quadratic_kappa", scores=scores, n=7, test_digest="b")


def test_runs_of_two_domains_are_two_tables_each_with_the_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    reports = [kappa("e-svm", 0.25), report("c-svm", None), kappa("e-network", 0.75), report("c-network", 0.875)]
    results.print_board(reports, Path("b.csv"))
    assert capsys.readouterr().out == (
        "\n"
        "recipe     quadratic_kappa (95 % interval) accuracy\n"
        "e-network  0.7500                          0.5000\n"
        "e-svm      0.2500                          0.5000\n"
        "test images     7\n"
        "\n"
        "recipe     accuracy (95 % interval)\n"
        "c-network  0.8750 (0.7750 to 0.9500)\n"
        "c-svm      undefined\n"
        "test images     50\n"
        "\n"
        "leaderboard     b.csv\n"
    )


def test_runs_are_compared_where_two_share_test_images_and_no_domain_has_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def reduce(_: object, ended: list[RunPaths]) -> str:
        asked.append(len(ended))
        return "" if len(ended) > 2 else "error: refused"

    monkeypatch.setattr(results, "_reduce", reduce)
    one, other = [report(f"a{number}", 0.5) for number in range(21)], [kappa(f"b{number}", 0.5) for number in range(20)]
    for reports in (one, [*one, *other], [one[0], other[0]], [*one[:20], *other], one[:2]):
        results._compare([], [RunPaths(tmp_path / entry["run"]) for entry in reports], reports)
    assert asked == [40, 2]
    assert capsys.readouterr().out.splitlines() == [
        f"comparison      {tmp_path}/comparison.html", "comparison      error: refused"
    ]  # fmt: skip
