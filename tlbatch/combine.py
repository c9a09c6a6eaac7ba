"""Several runs: a page that compares them, or one report of their predictions put together."""

import logging
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from tlbatch.data.loader import open_set
from tlbatch.gallery import Tested, mistakes
from tlbatch.job.errors import UserError
from tlbatch.job.files import digest_of
from tlbatch.job.load import changed_keys
from tlbatch.job.paths import RunPaths, leaderboard
from tlbatch.job.records import Manifest, RunRecord, load_record
from tlbatch.job.report import Cost, Ensemble, Report
from tlbatch.report.ensemble import together
from tlbatch.report.leaderboard import Entry, compare_entries, load_entries, rebuild_leaderboard, rival_of
from tlbatch.report.page import Mistake, Shown, write_comparison, write_page
from tlbatch.report.predictions import Predictions, read_predictions
from tlbatch.scoring import Scoring

_THUMBNAIL = 224
log = logging.getLogger(__name__)


def compare_runs(runs: Sequence[Path], name: str | None) -> None:
    """Write a page that compares the runs, every two of them paired on the images that both have.

    Raises
    ------
    UserError
        When one of them has no report, or they have nothing to compare.
    """
    entries = sorted((_entry(folder) for folder in runs), key=lambda entry: entry.order)
    pairs = [(one, other, compare_entries(one, other)) for one, other in combinations(entries, 2)]
    compared = [(one.report.run, found) for one, _, found in pairs if found is not None]
    if not compared:
        raise UserError(f"{runs[0]}: shares no test images, metric and classes with the others; name runs of one task")
    path = runs[0].absolute().parent / f"{name or 'comparison'}.html"
    write_comparison(path, [entry.report for entry in entries], compared)
    log.info("wrote %s", path)
    for first, found in compared:
        log.info("%s against %s: %s", first, found.other, found.verdict)


def average_runs(runs: Sequence[Path], how: Ensemble, name: str | None) -> None:
    """Put the predictions of the runs together, and report and rank them as a run of its own.

    Raises
    ------
    UserError
        When one of them has no report, they do not go together, or there is a run of this name.
    """
    entries = sorted((_entry(folder) for folder in runs), key=lambda entry: entry.report.run)
    names = [entry.report.run for entry in entries]
    if len(set(names)) < 2:
        raise UserError(f"{runs[0]}: an ensemble takes at least two different runs; name more")
    own = name or f"{entries[0].report.job}-{how}-of-{len(names)}-{digest_of(names)[:6]}"
    paths = RunPaths(runs[0].absolute().parent / own)
    if paths.record.exists():
        raise UserError(f"{paths.folder}: there is a run of this name; choose another with --name")
    members = [read_predictions(entry.folder / "predictions.csv", entry.report_classes) for entry in entries]
    found = together(members, names, how)
    times = len(found.of("test").keys), sum(len(member.of("test").keys) for member in members)
    log.info("%d test images, each predicted by %.3g of %d runs", times[0], times[1] / max(1, times[0]), len(names))
    first = RunPaths(entries[0].folder.parent)
    record = first.load()
    manifest = load_record(Manifest, first.set_paths(record.job).manifest, missing="submit the job again")
    tempered, scored = Scoring(record, manifest, paths.report).write(found, found.of("val"), None)
    report = _joined([entry.report for entry in entries], how, own).model_copy(update=dict(scored))
    report.save(paths.report_json)
    rival = rival_of(own, load_entries(paths.folder.parent))
    settings = list(changed_keys(record.job))
    wrong = _mistakes(record, first, tempered) if record.job.figures else []
    write_page(paths.report_page, Shown(report, rival, [], wrong, [], {}, settings))
    rebuild_leaderboard(leaderboard(record.job))
    log.info("%s: %s %s", own, report.metric, report.score)
    log.info("wrote %s", paths.report_page)


def _entry(folder: Path) -> Entry:
    path = RunPaths(folder)
    return Entry(
        path.report, load_record(Report, path.report_json, missing="run reduce first: python -m tlbatch.reduce RUN")
    )


def _mistakes(record: RunRecord, first: RunPaths, found: Predictions) -> list[Mistake]:
    """The surest of the ensemble; its images are found by key in the set of its first run, which holds all folds."""
    images = open_set(first.set_paths(record.job))
    test = found.of("test")
    test = test.where(test.is_read)
    _, mine, places = np.intersect1d(test.keys, images.index["key"], return_indices=True)
    tested = Tested(images.index[places], places, test.probabilities[mine])
    return mistakes(images, tested, size=_THUMBNAIL)


def _joined(reports: Sequence[Report], how: Ensemble, name: str) -> Report:
    """What the ensemble's report says of its making: test images of all members, and their costs together."""
    first = reports[0]
    tests = sorted({report.test_digest for report in reports})
    stages = sorted({stage for report in reports for stage in report.cost.seconds})
    rates = [report.cost.images_per_s for report in reports]
    slower = sum(1 / rate for rate in rates if rate)
    same = len(tests) == 1
    return first.model_copy(
        update={
            "run": name,
            "members": tuple(report.run for report in reports),
            "ensemble": how,
            "strategy": None,
            "checkpoint": None,
            "test_digest": tests[0] if same else digest_of(tests),
            "num_images": first.num_images if same else {},
            "counts": first.counts if same else {},
            "cost": Cost(
                seconds={stage: sum(report.cost.seconds.get(stage, 0.0) for report in reports) for stage in stages},
                gpu_hours=sum(report.cost.gpu_hours for report in reports),
                images_per_s=round(1 / slower, 1) if slower and all(rates) and same else None,
                hosts=tuple(sorted({host for report in reports for host in report.cost.hosts})),
            ),
        }
    )
