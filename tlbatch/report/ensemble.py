"""Report the averaged predictions of several runs as a run of its own."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tlbatch.config.load import changed_keys
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_of
from tlbatch.data.image_set import open_images
from tlbatch.evaluation.ensemble import together
from tlbatch.evaluation.leaderboard import (
    Entry,
    entries_of,
    entry_of,
    load_entries,
    rebuild_leaderboard,
    rival_of,
)
from tlbatch.evaluation.predictions import Predictions, read_predictions
from tlbatch.evaluation.scoring import Scoring
from tlbatch.report.page import Mistake, Shown, write_page
from tlbatch.runs.manifest import Audit
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.permissions import common_mode
from tlbatch.runs.report import Cost, Ensemble, Report
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import leaderboard

_THUMBNAIL = 224
log = logging.getLogger(__name__)


def average_runs(runs: Sequence[Path], how: Ensemble, name: str | None) -> None:
    """Combine the predictions of several runs, and report and rank the ensemble as a run of its own.

    Raises
    ------
    UserError
        When a run has no report, the runs cannot be combined, or the name is taken.
    """
    entries = sorted(entries_of(runs), key=lambda entry: entry.report.run)
    names = [entry.report.run for entry in entries]
    for entry in entries:
        if entry.report.tags is not None:
            raise UserError(f"{entry.report.run}: predicts phrases; an ensemble needs classification runs")
    if len(names) < 2:
        raise UserError(f"{runs[0]}: an ensemble takes at least two different runs; name more")
    _refuse_strangers(entries)
    own = name or f"{entries[0].report.job}-{how}-of-{len(names)}-{digest_of(names)[:6]}"
    paths = RunPaths(runs[0].absolute().parent / own)
    if paths.record.exists() or (paths.report_json.exists() and entry_of(paths.folder).report.members != tuple(names)):
        raise UserError(f"{paths.folder}: another run has this name; choose another one with --name")
    members = [read_predictions(entry.folder / "predictions.csv", entry.report_classes) for entry in entries]
    found = together(members, names, how)
    times = len(found.of("test").keys), sum(len(member.of("test").keys) for member in members)
    log.info("%d test images, each predicted by %.3g of %d runs", times[0], times[1] / max(1, times[0]), len(names))
    first = Run.load(entries[0].folder.parent)
    manifest = first.load_manifest()
    if not paths.folder.exists():
        paths.folder.mkdir(mode=common_mode(entry.folder.parent for entry in entries))
    tempered, scored = Scoring(first.record, manifest, paths.report).write(found, found.of("val"), None)
    report = _joined([entry.report for entry in entries], how, own).model_copy(update=dict(scored))
    report.save(paths.report_json)
    rival = rival_of(own, load_entries(paths.folder.parent))
    others = [changed_keys(Run.load(entry.folder.parent).job) for entry in entries]
    settings = [setting for setting in others[0] if all(setting in other for other in others)]
    wrong = _mistakes(first, tempered) if first.job.figures else []
    write_page(paths.report_page, Shown(report, rival, [], wrong, [], [], settings))
    rebuild_leaderboard(leaderboard(first.job))
    log.info("%s: %s %s", own, report.metric, report.score)
    log.info("wrote %s", paths.report_page)


def _refuse_strangers(entries: Sequence[Entry]) -> None:
    """Reject ensembles, which have no images of their own, and runs on other images than the first."""
    for entry in entries:
        report = entry.report
        if report.members:
            raise UserError(f"{report.run}: is itself an ensemble; name its members: {' '.join(report.members)}")
        same = entries[0].report
        if report.digests["source"] != same.digests["source"] and report.test_digest != same.test_digest:
            raise UserError(
                f"{report.run}: uses other images than {same.run}; name runs, or folds, of one set of images"
            )


def _mistakes(first: Run, found: Predictions) -> list[Mistake]:
    """Return the most confident errors of the ensemble; images are looked up by key in the set of its first run.

    That set contains the images of all folds.
    """
    from tlbatch.report.run_figures import Tested, mistakes  # noqa: PLC0415 (torch takes seconds to import)

    images = open_images(first)
    test = found.of("test")
    test = test.where(test.is_read)
    _, mine, places = np.intersect1d(test.keys, images.index["key"], return_indices=True)
    tested = Tested(images.index[places], places, test.where(mine))
    return mistakes(images, tested, size=_THUMBNAIL)


def _joined(reports: Sequence[Report], how: Ensemble, name: str) -> Report:
    """Build the report of the ensemble: what its members have in common, and their total cost."""
    tests = sorted({report.test_digest for report in reports})
    stages = sorted({stage for report in reports for stage in report.cost.seconds})
    rates = [report.cost.images_per_s for report in reports]
    slower = sum(1 / rate for rate in rates if rate)
    same = len(tests) == 1
    return reports[0].model_copy(
        update={
            **_shared(reports),
            "run": name,
            "job": _alike([report.job for report in reports]),
            "members": tuple(report.run for report in reports),
            "ensemble": how,
            "strategy": None,
            "checkpoint": None,
            "synthetic": any(report.synthetic for report in reports),
            "audit": _worst([report.audit for report in reports]),
            "num_rejected": max(report.num_rejected for report in reports),
            "notes": tuple(dict.fromkeys(note for report in reports for note in report.notes)),
            "warnings": tuple(dict.fromkeys(warning for report in reports for warning in report.warnings)),
            "test_digest": tests[0] if same else digest_of(tests),
            "cost": Cost(
                seconds={stage: sum(report.cost.seconds.get(stage, 0.0) for report in reports) for stage in stages},
                gpu_hours=sum(report.cost.gpu_hours for report in reports),
                images_per_s=round(1 / slower, 1) if slower and all(rates) and same else None,
                hosts=tuple(sorted({host for report in reports for host in report.cost.hosts})),
            ),
        }
    )


def _shared(reports: Sequence[Report]) -> dict[str, Any]:
    """Return the fields that describe all members: empty, or the joined texts, where the reports differ."""
    found: dict[str, Any] = {}
    for key in ("ceilings", "steps", "resize", "counts", "num_images"):
        values = [getattr(report, key) for report in reports]
        found[key] = values[0] if all(value == values[0] for value in values) else type(values[0])()
    for key in ("backbone", "weights", "commit"):
        found[key] = _all_of([getattr(report, key) for report in reports])
    for key in ("seeds", "digests", "versions"):
        tables = [getattr(report, key) for report in reports]
        found[key] = {name: _all_of([table.get(name) for table in tables]) for name in tables[0]}
    return found


def _alike(names: Sequence[str]) -> str:
    """Return the words that names of equal length share, e.g. eyes-seed0 for eyes-fold0-seed0 and eyes-fold1-seed0."""
    places = [set(words) for words in zip(*(name.split("-") for name in names), strict=False)]
    same = len({name.count("-") for name in names}) == 1
    return "-".join(next(iter(words)) for words in places if len(words) == 1) * same or names[0]


def _all_of(values: Sequence[object]) -> object:
    """Return the common value, or the distinct values joined as text."""
    different = list(dict.fromkeys(values))
    return different[0] if len(different) == 1 else " + ".join(sorted(str(value) for value in different))


def _worst(audits: Sequence[Audit]) -> Audit:
    """Take the maximum of every count over the audits."""
    tables = [audit.model_dump() for audit in audits]
    across = {
        pair: max(table["across"].get(pair, 0) for table in tables) for table in tables for pair in table["across"]
    }
    return Audit(across=across, **{key: max(table[key] for table in tables) for key in tables[0] if key != "across"})
