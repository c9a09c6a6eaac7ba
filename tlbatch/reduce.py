"""Write the report of a run and its page from the predictions of all ranks, and update the leaderboard.

With several runs: write a page that compares them, or with --ensemble a report of their combined predictions.
"""

import os
import re
from pathlib import Path
from typing import get_args

from tlbatch.config.slurm import RUN_NAME
from tlbatch.core.cli import command_parser
from tlbatch.core.files import digest_of
from tlbatch.report.build import build_report, parts_digest, rank_run, read_by
from tlbatch.report.comparison import compare_runs
from tlbatch.report.ensemble import average_runs
from tlbatch.runs.report import Ensemble
from tlbatch.runs.run import Run
from tlbatch.runs.stage import leave, require_finished, run_guarded, run_once
from tlbatch.runs.world import read_world


def run(run_dir: Path) -> None:
    """Write the run's report and add the run to the leaderboard, unless it is done."""
    run, world = Run.load(run_dir), read_world(os.environ)
    paths = run.paths
    inputs = require_finished("predict", run).inputs | {"predictions": parts_digest(paths)}
    inputs["report"] = digest_of([run.job.report.model_dump(mode="json"), read_by(run.job)])
    tables = [paths.report / name for name in ("predictions.csv", "submission.csv")]
    there = all(file.exists() for file in (paths.report_json, paths.report_page, *tables))
    if not run_once("reduce", paths, inputs, world, lambda: build_report(run, world), is_there=there):
        rank_run(run)


def main() -> None:
    """Run ``python -m tlbatch.reduce RUN [RUN ...] [--ensemble [HOW]]``."""
    parser = command_parser("reduce", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, as tlbatch.submit printed it")
    parser.add_argument(
        "--ensemble",
        choices=get_args(Ensemble),
        nargs="?",
        const="mean",
        help="combine the predictions of the runs, or folds: mean of the probabilities (default), of their logarithms, "
        "or of their ranks",
    )
    parser.add_argument(
        "--name", help="name of the ensemble's run folder, or of the page (default: made from the runs' names)"
    )
    given = parser.parse_args()
    if given.name and not re.fullmatch(RUN_NAME, given.name):
        parser.error(f"--name must be letters, digits, '_', '-' or '.' (got {given.name!r})")
    if given.name and not given.ensemble and len(given.runs) == 1:
        parser.error("--name needs an ensemble or a comparison: name more runs")
    runs, several = given.runs, given.runs[0].absolute().parent  # a failure belongs to no single run
    if given.ensemble:
        leave(run_guarded("reduce", lambda _: average_runs(runs, given.ensemble, given.name), several))
    if len(runs) > 1:
        leave(run_guarded("reduce", lambda _: compare_runs(runs, given.name), several))
    leave(run_guarded("reduce", run, runs[0]))


if __name__ == "__main__":
    main()
