"""Results of finished runs: scores, folds combined into one report, and the page that compares them."""

import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from tlbatch.cluster.container import command_of, mounts_of
from tlbatch.config.base import Metric
from tlbatch.core.files import digest_of
from tlbatch.core.text import counted
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import leaderboard

_MOST_COMPARED = 20
"""Runs on the same test images; with more, there are too many pairs to read."""
SYNTHETIC = "synthetic images: the scores say that the software works, nothing about real ones"


def show_end(runs: Sequence[Run]) -> None:
    """Combine complete sets of folds, print the scores of all runs, and write the comparison page."""
    combined: dict[RunPaths, RunPaths] = {}
    for folds in _complete_folds(runs):
        if made := _combine(folds):
            combined |= {run.paths: made for run in folds}
    ended = list(dict.fromkeys(combined.get(run.paths, run.paths) for run in runs))
    reports = [_report(paths) for paths in ended]
    print_board(reports, leaderboard(runs[0].job))
    for paths in dict.fromkeys(combined.values()):
        print(f"folds together  {paths.folder}")
    _compare(runs, ended, reports)


def print_folds(runs: Sequence[Run]) -> None:
    """Print the command that combines the folds of a job, for every job with a complete set of them."""
    for folds in _complete_folds(runs):
        names = shlex.join(str(run.folder) for run in folds)
        print(f"folds together  python -m tlbatch.reduce {names} --ensemble")


def _complete_folds(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the folds of each job that has a complete set of them."""
    of_job: dict[str, list[Run]] = {}
    for run in runs:
        if run.job.objective == "tags":  # phrases have no mean
            continue
        tree = run.job.model_dump(mode="json", exclude={"name", "run", "slurm"})
        del tree["data"]["split"]["fold"]
        of_job.setdefault(digest_of(tree), []).append(run)
    return [folds for folds in of_job.values() if len(folds) == folds[0].job.data.split.folds]


def _combine(folds: Sequence[Run]) -> RunPaths | None:
    """Make one report of all folds, named as the run without its fold; None if reduce refuses, and print why."""
    first = folds[0]
    name = re.sub(rf"-fold{first.job.data.split.fold}(?=-|$)", "", first.name, count=1)
    name = f"{name}-folds" if name == first.name else name
    error = _reduce(folds, [run.paths for run in folds], "--ensemble", "--name", name)
    if error:
        print(f"folds together  {error}")
    return None if error else RunPaths(first.folder.parent / name)


def _compare(runs: Sequence[Run], ended: Sequence[RunPaths], reports: Sequence[dict[str, Any]]) -> None:
    """Have reduce write the comparison page if at least two runs have the same test images."""
    times = Counter(report["test_digest"] for report in reports)
    if 1 < max(times.values()) <= _MOST_COMPARED:
        print(f"comparison      {_reduce(runs, ended) or ended[0].folder.parent / 'comparison.html'}")


def _reduce(runs: Sequence[Run], ended: Sequence[RunPaths], *options: str) -> str:
    """Run reduce on several runs, in their container if they have one, and return its error message; empty if none.

    A separate process runs it, since it imports libraries that commands on login nodes do not load.
    """
    arguments = ["-m", "tlbatch.reduce", *(str(paths.folder) for paths in ended), *options]
    command = command_of(runs[0].job.slurm, mounts_of(run.record for run in runs), arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    error = (done.stderr.strip() or f"not written, exit code {done.returncode}").splitlines()[-1]
    return error if done.returncode else ""


def _report(paths: RunPaths) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths.report_json.read_text(encoding="utf-8"))
    return found


def print_board(reports: Sequence[dict[str, Any]], board: Path) -> None:
    """Print the score of each run, grouped by test images, best first, and the choices of strategy auto."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for report in reports:
        groups.setdefault((report["metric"], report["test_digest"]), []).append(report)
    for group in groups.values():
        print()
        _print_group(group)
    if len(groups) > 1:
        print()
    print(f"leaderboard     {board}")


def _print_group(reports: Sequence[dict[str, Any]]) -> None:
    best_first = sorted(reports, key=lambda report: (report["score"] is None, -(report["score"] or 0), report["run"]))
    metric, first = reports[0]["metric"], reports[0]
    if first["synthetic"]:
        print(SYNTHETIC)
    width = max(len(report["job"]) for report in reports)
    heading = f"{metric} (95 % interval)"
    print(f"{'recipe':<{width}}  {heading:<32}{'' if metric == 'accuracy' else 'accuracy'}".rstrip())
    for report in best_first:
        chosen = report["strategy"]
        auto = f"chosen: {chosen['chosen']} ({chosen['scenario']})" if chosen else ""
        other = "" if metric == "accuracy" else shown(report["scores"]["accuracy"]["value"])
        print(f"{report['job']:<{width}}  {estimated(report['scores'][metric]):<32}{other:<10}{auto}".rstrip())
    ceiling = [one["score"] for one in first["ceilings"] if one["metric"] == metric]
    if ceiling:
        print(f"{'best reachable':<{width}}  {ceiling[0]:.4f}")
    print(f"test images     {first['n']:,}")


def shown(value: float | None) -> str:
    """Format a score with four decimals."""
    return "undefined" if value is None else f"{value:.4f}"


def estimated(estimate: Mapping[str, Any]) -> str:
    """Format a value with its interval, as far as they are defined."""
    interval = "" if estimate["low"] is None else f" ({estimate['low']:.4f} to {estimate['high']:.4f})"
    return f"{shown(estimate['value'])}{interval}"


def print_scores(run: Run) -> None:
    """Print the scores of a run, and where its report is."""
    report = _report(run.paths)
    ceilings = {ceiling["metric"]: ceiling for ceiling in report["ceilings"]}
    print()
    if report["synthetic"]:
        print(SYNTHETIC)
    for metric in sorted(get_args(Metric)):
        if report["scores"][metric]["value"] is None and metric != report["metric"]:
            continue
        best = f"   best reachable with these labels {ceilings[metric]['score']:.4f}" if metric in ceilings else ""
        print(f"{metric:<16}{estimated(report['scores'][metric])}{best}")
    for name in ("edit_distance", "bleu", "mean_attribute") if report.get("tags") else ():
        print(f"{name:<16}{estimated(report['tags'][name])}")
    groups = "" if report["num_groups"] == report["n"] else f" of {counted(report['num_groups'], 'group')}"
    print(f"test images     {report['n']:,}{groups}")
    if report["strategy"]:
        chosen = report["strategy"]
        print(f"chosen          {chosen['chosen']}: {chosen['why']}")
        print(f"                {chosen['scenario']}: {chosen['scenario_why']}")
    if report["num_errors"]:
        unread = counted(report["num_errors"], "test image")
        print(f"not predicted   {unread} could not be read, see predictions.csv")
    for pair, num in report["audit"]["across"].items():
        if num:
            print(
                f"leak            {pair}: {counted(num, 'image')}, as duplicates or by group; do not trust the scores"
            )
    print(f"report          {run.paths.report_page}")
    print(f"leaderboard     {leaderboard(run.job)}")
