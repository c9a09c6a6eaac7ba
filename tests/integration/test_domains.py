"""One command for recipes in two domains, and one page that compares them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.chain

DOMAINS = """
name = "both"
phase = [{ cut = "pool", epochs = 1 }]
[recipes.eyes]
metric = "quadratic_kappa"
recipes = { plain = {}, fitted = { phase = [{ cut = "pool", fit = "logistic" }] } }
[recipes.clothes]
recipes = { plain = {}, fitted = { phase = [{ cut = "pool", fit = "ridge" }] } }
"""


def test_recipes_in_two_domains_end_in_two_tables_and_one_page(
    tmp_path: Path, tiny_job: Path, write_folders: Callable[..., Path]
) -> None:
    job = tmp_path / "both.toml"
    job.write_text(DOMAINS, encoding="utf-8")
    eyes = write_folders(tmp_path / "eyes", classes=("0", "1", "2"))
    clothes = write_folders(tmp_path / "clothes")
    images = [f"recipes.eyes.data.images={eyes}", f"recipes.clothes.data.images={clothes}"]
    command = [sys.executable, "-m", "tlbatch.submit", str(tiny_job), str(job), *images, f"workspace={tmp_path / 'w'}"]
    done = subprocess.run([*command, "run=t", "--local"], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = tmp_path / "w" / "runs"
    names = [f"{domain}-{one}" for domain in ("eyes", "clothes") for one in ("plain", "fitted")]
    reports = {name: read_report(runs, f"t-{name}") for name in names}
    ended = done.stdout[done.stdout.index("\nrecipe ") :]
    first, second, rest = ended.strip().split("\n\n")
    for board, domain, metric in ((first, "eyes", "quadratic_kappa"), (second, "clothes", "accuracy")):
        heading, *rows, tests = board.splitlines()
        assert heading.split()[:2] == ["recipe", metric]
        assert {row.split()[0]: row.split()[1] for row in rows} == {
            f"both-{name}": f"{reports[name]['scores'][metric]['value']:.4f}" for name in names if domain in name
        }
        assert tests == f"test images     {reports[f'{domain}-plain']['n']}"
    assert rest.splitlines() == [f"leaderboard     {runs}/leaderboard.csv", f"comparison      {runs}/comparison.html"]
    page = (runs / "comparison.html").read_text(encoding="utf-8")
    assert "Comparison in 2 domains" in page
    assert re.findall(r'<section id="domain-\d".*\n<h2.*?><bdi>(.*?)</bdi>', page) == ["eyes", "clothes"]
    for name in names:
        assert f"<bdi>t-{name}</bdi>" in page
        assert f"{reports[name]['score']:.4f}".replace("-", "\N{MINUS SIGN}") in page


def read_report(runs: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / run / "report" / "report.json").read_text("utf-8"))
    return found
