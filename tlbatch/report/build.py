"""Build the report of a run from the prediction parts of its ranks, and rank it."""

import json
import logging

import numpy as np

from tlbatch.config.job import Job
from tlbatch.config.load import changed_keys
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file, digest_of
from tlbatch.core.tables import read_table
from tlbatch.data.image_set import open_images
from tlbatch.evaluation.leaderboard import load_entries, rebuild_leaderboard, rival_of
from tlbatch.evaluation.phrases import Phrases, write_scored_phrases
from tlbatch.evaluation.prediction_parts import Width, merge_parts
from tlbatch.evaluation.predictions import Predictions
from tlbatch.evaluation.scoring import Scoring, held_out_of, predictions_of, report_of, thresholds_of
from tlbatch.report.page import Drawn, Shown, write_page
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import SPLITS
from tlbatch.runs.report import Report
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import leaderboard
from tlbatch.runs.world import World

log = logging.getLogger(__name__)


def rank_run(run: Run) -> None:
    """Rebuild the leaderboard and log the rank of the run."""
    table = rebuild_leaderboard(leaderboard(run.job))
    mine = next((row for _, row in table[table["run"] == run.name].iterrows()), None)
    if mine is None:
        raise UserError(f"{run.folder}: is not {run.name} in {leaderboard(run.job).parent}; move it back there")
    rivals = table[(table["metric"] == mine["metric"]) & (table["test_digest"] == mine["test_digest"])]
    log.info("rank %s of %d on these test images", mine["rank"], len(rivals))


def read_by(job: Job) -> dict[str, str]:
    """Digest the files that the report is configured to read."""
    labels = {"labels": job.data.labels} if job.report.subgroups and job.data.labels else {}
    return {key: digest_file(file) for key, file in (job.report.files | labels).items() if file.is_file()}


def parts_digest(paths: RunPaths) -> str:
    """Digest all prediction parts of a run."""
    return digest_of({part.name: digest_file(part) for part in paths.predictions.glob("part-*.npz")})


def build_report(run: Run, world: World) -> None:
    """Merge the prediction parts, score them and write the report."""
    paths, images = run.paths, open_images(run)
    best, checkpoint = paths.load_best()
    manifest, index = images.manifest, images.index
    expected = np.flatnonzero(index["split"] != SPLITS.index("train"))
    header = {"run": run.name, "weights": best.digest, "index": manifest.index_digest}
    merged = merge_parts(paths.predictions, header, expected, keys=index["key"], width=Width.of(best))
    scoring = Scoring(run.record, manifest, paths.report)
    rejected = [(key, cause) for _, (key, cause) in read_table(images.paths.rejected, ["image", "cause"]).rows]
    found: Predictions | Phrases
    if best.max_tags:
        found, scored = write_scored_phrases(scoring, images, merged, best, [cause for _, cause in rejected])
    else:
        raw = predictions_of(index, merged, manifest.classes)
        held_out = held_out_of(paths, best, raw, merged)
        found, scored = scoring.write(raw, held_out.images, thresholds_of(run.record, best, raw, merged, held_out))
    report = report_of(scoring, scored, run, best, num_predicted=len(merged.rows))
    drawn = Drawn()
    if run.job.figures:
        from tlbatch.report.run_figures import Tested, draw_report  # noqa: PLC0415 (torch takes seconds to import)

        read = found.is_read & (found.splits == SPLITS.index("test"))
        tested = Tested(index[merged.rows[read]], merged.rows[read], found.where(read))
        drawn = draw_report(run, images, best, checkpoint, tested, world)
    report.save(paths.report_json)
    _write_page(report, run, drawn, rejected)
    rank_run(run)


def _write_page(report: Report, run: Run, drawn: Drawn, rejected: list[tuple[str, str]]) -> None:
    paths = run.paths
    lines = [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]
    rival = rival_of(report.run, load_entries(run.folder.parent))
    settings = list(changed_keys(run.job))
    epochs = [line for line in lines if "epoch" in line]
    shown = Shown(report, rival, epochs, drawn.mistakes, rejected, drawn.pictures, settings, drawn.feature_map)
    write_page(paths.report_page, shown)
