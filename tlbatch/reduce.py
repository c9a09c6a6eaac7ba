"""Reduce: the parts of all ranks to one report and its page, and all reports to the leaderboard.

With several runs: a page that compares them, or with --ensemble a report of their predictions put together.
"""

import argparse
import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import get_args

import numpy as np

from tlbatch.combine import average_runs, compare_runs
from tlbatch.data.index import read_index
from tlbatch.data.loader import open_set
from tlbatch.gallery import Tested, draw_report
from tlbatch.job.cli import finished, guarded, once
from tlbatch.job.cluster import RUN_NAME
from tlbatch.job.errors import UserError
from tlbatch.job.files import digest_file, digest_of
from tlbatch.job.load import changed_keys
from tlbatch.job.paths import RunPaths, leaderboard
from tlbatch.job.records import SPLITS, Manifest, RunRecord, load_record
from tlbatch.job.report import Ensemble, Report
from tlbatch.job.world import World, read_world
from tlbatch.model.checkpoint import load_best
from tlbatch.report.external import read_table
from tlbatch.report.leaderboard import load_entries, rebuild_leaderboard, rival_of
from tlbatch.report.page import Mistake, Shown, write_page
from tlbatch.report.parts import Width, merge_parts
from tlbatch.report.phrases import Phrases
from tlbatch.report.predictions import Predictions
from tlbatch.scoring import Scoring, predictions_of, report_of, thresholds_of, tuning_of
from tlbatch.tagging import write_scored_phrases

log = logging.getLogger(__name__)


def run(run_dir: Path) -> None:
    """Write the run's report and rank it, unless that is done."""
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    predicted = finished("predict", paths, record)
    inputs = predicted.inputs | {"predictions": _parts_digest(paths)}
    inputs["report"] = digest_of([record.job.report.model_dump(mode="json"), _read_by(record)])
    tables = [paths.report / name for name in ("predictions.csv", "submission.csv")]
    there = all(file.exists() for file in (paths.report_json, paths.report_page, *tables))
    if not once("reduce", paths, inputs, world, lambda: _reduce(record, paths, world), is_there=there):
        _rank(record, paths)


def _rank(record: RunRecord, paths: RunPaths) -> None:
    """Make the leaderboard anew, and say where the run stands on it."""
    table = rebuild_leaderboard(leaderboard(record.job))
    mine = next((row for _, row in table[table["run"] == record.run].iterrows()), None)
    if mine is None:
        raise UserError(f"{paths.folder}: is not {record.run} in {leaderboard(record.job).parent}; move it back there")
    rivals = table[(table["metric"] == mine["metric"]) & (table["test_digest"] == mine["test_digest"])]
    log.info("rank %s of %d on these test images", mine["rank"], len(rivals))


def _read_by(record: RunRecord) -> dict[str, str]:
    """Digests of the files that the report is asked to read."""
    job = record.job
    labels = {"labels": job.data.labels} if job.report.subgroups and job.data.labels else {}
    return {key: digest_file(file) for key, file in (job.report.files | labels).items() if file.is_file()}


def _parts_digest(paths: RunPaths) -> str:
    return digest_of({part.name: digest_file(part) for part in paths.predictions.glob("part-*.npz")})


def _reduce(record: RunRecord, paths: RunPaths, world: World) -> None:
    folder = paths.set_paths(record.job)
    manifest = load_record(Manifest, folder.manifest, missing="run shard first: python -m tlbatch.shard RUN")
    best, checkpoint = load_best(paths)
    index = read_index(folder.index_file)
    asked = np.flatnonzero(index["split"] != SPLITS.index("train"))
    header = {"run": record.run, "weights": best.digest, "index": manifest.index_digest}
    merged = merge_parts(paths.predictions, header, asked, keys=index["key"], width=Width.of(best))
    scoring, images = Scoring(record, manifest, paths.report), open_set(folder)
    rejected = [(row["key"], row["cause"]) for row in read_table(folder.rejected)[1]]
    found: Predictions | Phrases
    if best.max_tags:
        found, scored = write_scored_phrases(scoring, images, merged, best, [cause for _, cause in rejected])
    else:
        raw = predictions_of(index, merged, manifest.classes)
        tuning = tuning_of(paths, best, raw, merged)
        found, scored = scoring.write(raw, tuning.images, thresholds_of(record, best, raw, merged, tuning))
    report = report_of(scoring, scored, paths, best, num_predicted=len(merged.rows))
    mistakes: list[Mistake] = []
    if record.job.figures:
        read = found.is_read & (found.splits == SPLITS.index("test"))
        tested = Tested(index[merged.rows[read]], merged.rows[read], found.where(read))
        mistakes = draw_report(record, paths, images, best, checkpoint, tested, world)
    report.save(paths.report_json)
    _write_page(report, record, paths, mistakes, rejected)
    _rank(record, paths)


def _write_page(
    report: Report, record: RunRecord, paths: RunPaths, mistakes: list[Mistake], rejected: list[tuple[str, str]]
) -> None:
    lines = [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]
    figures = {
        name: file.read_bytes()
        for name in ("features", "activations", "filters", "strategy")
        if (file := paths.report / "figures" / f"{name}.png").exists()
    }
    rival = rival_of(report.run, load_entries(paths.folder.parent))
    settings = list(changed_keys(record.job))
    epochs = [line for line in lines if "epoch" in line]
    write_page(paths.report_page, Shown(report, rival, epochs, mistakes, rejected, figures, settings))


def main() -> None:
    """``python -m tlbatch.reduce RUN [RUN ...] [--ensemble [HOW]]``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.reduce", description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folder, as tlbatch.submit printed it")
    parser.add_argument(
        "--ensemble",
        choices=get_args(Ensemble),
        nargs="?",
        const="mean",
        help="put the predictions of the runs, or folds, together: mean of the probabilities (default), of their "
        "logarithms, or of their ranks",
    )
    parser.add_argument("--name", help="of the ensemble's run folder, or of the page; empty: made from the runs' names")
    given = parser.parse_args()
    if given.name and not re.fullmatch(RUN_NAME, given.name):
        parser.error(f"--name must be letters, digits, '_', '-' or '.' (got {given.name!r})")
    if given.name and not given.ensemble and len(given.runs) == 1:
        parser.error("--name is of an ensemble or a comparison: name more runs")
    runs, several = given.runs, given.runs[0].absolute().parent  # a failure is none of one run
    if given.ensemble:
        sys.exit(guarded("reduce", lambda _: average_runs(runs, given.ensemble, given.name), several))
    if len(runs) > 1:
        sys.exit(guarded("reduce", lambda _: compare_runs(runs, given.name), several))
    sys.exit(guarded("reduce", run, runs[0]))


if __name__ == "__main__":
    main()
