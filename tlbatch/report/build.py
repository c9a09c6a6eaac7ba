"""Build the report of a run from the prediction parts of its ranks, and rank it."""

import json
import logging

import numpy as np

from tlbatch.config.load import changed_keys
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file, digest_of
from tlbatch.data.dataset import open_set
from tlbatch.data.index import read_index
from tlbatch.evaluation.external_leaderboards import read_table
from tlbatch.evaluation.leaderboard import load_entries, rebuild_leaderboard, rival_of
from tlbatch.evaluation.phrases import Phrases, write_scored_phrases
from tlbatch.evaluation.prediction_parts import Width, merge_parts
from tlbatch.evaluation.predictions import Predictions
from tlbatch.evaluation.scoring import Scoring, held_out_of, predictions_of, report_of, thresholds_of
from tlbatch.model.checkpoint import load_best
from tlbatch.report.page import Mistake, Shown, write_page
from tlbatch.report.run_figures import Tested, draw_report
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import SPLITS, RunRecord, load_record
from tlbatch.runs.report import Report
from tlbatch.runs.workspace import leaderboard
from tlbatch.runs.world import World

log = logging.getLogger(__name__)


def rank_run(record: RunRecord, paths: RunPaths) -> None:
    """Rebuild the leaderboard and log the rank of the run."""
    table = rebuild_leaderboard(leaderboard(record.job))
    mine = next((row for _, row in table[table["run"] == record.run].iterrows()), None)
    if mine is None:
        raise UserError(f"{paths.folder}: is not {record.run} in {leaderboard(record.job).parent}; move it back there")
    rivals = table[(table["metric"] == mine["metric"]) & (table["test_digest"] == mine["test_digest"])]
    log.info("rank %s of %d on these test images", mine["rank"], len(rivals))


def read_by(record: RunRecord) -> dict[str, str]:
    """Digest the files that the report is configured to read."""
    job = record.job
    labels = {"labels": job.data.labels} if job.report.subgroups and job.data.labels else {}
    return {key: digest_file(file) for key, file in (job.report.files | labels).items() if file.is_file()}


def parts_digest(paths: RunPaths) -> str:
    """Digest all prediction parts of a run."""
    return digest_of({part.name: digest_file(part) for part in paths.predictions.glob("part-*.npz")})


def build_report(record: RunRecord, paths: RunPaths, world: World) -> None:
    """Merge the prediction parts, score them and write the report."""
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
        held_out = held_out_of(paths, best, raw, merged)
        found, scored = scoring.write(raw, held_out.images, thresholds_of(record, best, raw, merged, held_out))
    report = report_of(scoring, scored, paths, best, num_predicted=len(merged.rows))
    mistakes: list[Mistake] = []
    if record.job.figures:
        read = found.is_read & (found.splits == SPLITS.index("test"))
        tested = Tested(index[merged.rows[read]], merged.rows[read], found.where(read))
        mistakes = draw_report(record, paths, images, best, checkpoint, tested, world)
    report.save(paths.report_json)
    _write_page(report, record, paths, mistakes, rejected)
    rank_run(record, paths)


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
