"""Decide between champion and challenger, and replace the champion."""

import logging
import os
from pathlib import Path

from filelock import FileLock

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_folder, copy_file, remove_drafts
from tlbatch.deploy.export import export_run
from tlbatch.promotion.challenge import Challenge
from tlbatch.promotion.drift.records import Drift
from tlbatch.promotion.night_page import ShownNight, write_night
from tlbatch.promotion.night_record import label_issues_of, night_of
from tlbatch.promotion.registry import Champion, Decision, Registry, drift_file, promotion_file
from tlbatch.promotion.retention import digests_of, retire
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Marker, RunRecord, load_record
from tlbatch.runs.workspace import SetPaths

log = logging.getLogger(__name__)
_MOST_DOUBTS = 12


def overruled_before(paths: RunPaths) -> str:
    """Return the reason of an earlier override for this run, which stays in force; empty if there was none."""
    marker = paths.marker("promote")
    return load_record(Marker, marker, missing="try again").inputs["overruled"] if marker.exists() else ""


def promote_run(record: RunRecord, paths: RunPaths, overruled: str) -> None:
    """Compare the run with the champion, and replace the champion if the rule or an override says so."""
    registry = Registry.of(record.job)
    registry.make(private=record.job.private)
    night = night_of(record, paths, registry, overruled)
    with FileLock(registry.folder / ".lock"):
        for folder in (
            registry.folder,
            *(registry.folder / name for name in ("champions", "models", "indexes", "nights")),
        ):
            remove_drafts(folder)
        decision = _decision(record, paths, registry, overruled)
        if decision.outcome == "promoted":
            _crown(record, paths, registry, decision)
        champion = registry.champion()
        own = record.run, decision.time, decision.reasons
        if own not in [(one.run, one.time, one.reasons) for one in registry.history()]:
            registry.note(night.model_copy(update={
                "time": decision.time,
                "event": decision.outcome,
                "champion": champion.number if champion else None,
                "against": decision.champion if decision.comparison else None,
                "reasons": decision.reasons,
            }))  # fmt: skip
        shown = ShownNight(
            decision=decision,
            champion=champion,
            history=registry.history(),
            drift=load_record(Drift, drift_file(paths), missing="try again"),
            doubts=label_issues_of(record, paths),
            report=os.path.relpath(paths.report_page, registry.page(record.run).parent),
        )
        write_night(registry.page(record.run), shown)
        retire(registry, record.job.nightly, now=record.run)
    log.info("%s: %s", decision.outcome, "; ".join(decision.reasons))
    log.info("wrote %s", registry.page(record.run))


def _decision(record: RunRecord, paths: RunPaths, registry: Registry, overruled: str) -> Decision:
    """Return the decision saved before an interruption, if it is still valid, or decide now."""
    champion, file = registry.champion(), promotion_file(paths)
    if file.exists():
        found = load_record(Decision, file, missing="try again")
        is_own = champion is not None and champion.run == record.run
        if found.champion == (champion and champion.number) or (is_own and found.outcome == "promoted"):
            return found
    if champion is not None and champion.run == record.run:
        raise UserError(f"{paths.folder}: is already the champion; python -m tlbatch.registry list shows all champions")
    look = registry.looks(champion, but=record.run) + 1 if champion else 0
    before = registry.champions() if record.job.nightly.init_from == "champion" else []
    challenge = Challenge(record, paths, champion, look, tuple(before))
    if overruled:
        decision = challenge.decision(outcome="promoted", rule="by hand", reasons=(overruled,))
    else:
        decision = challenge.decided()
    decision.save(file)
    return decision


def _crown(record: RunRecord, paths: RunPaths, registry: Registry, decision: Decision) -> None:
    """Export the model and make the run the champion; until the last rename the previous champion stays in place."""
    before = registry.champion()
    if before is not None and before.run == record.run:
        return
    known = registry.champions()
    begun = [one.number for one in known if (one.run, one.time) == (record.run, decision.time)]  # before a kill
    number = begun[0] if begun else max((one.number for one in known), default=0) + 1
    report = Challenge(record, paths, before).report
    champion = Champion(
        number=number,
        task=record.job.task,
        run=record.run,
        time=decision.time,
        rule=decision.rule,
        previous=before.number if before else None,
        metric=report.metric,
        score=report.scores[report.metric],
        num_train=decision.num_train,
        lost=decision.lost,
        files={},
    )
    model, index = registry.model_folder(champion), registry.index_of(champion)
    if not model.exists():
        export_run(paths, model)
    if not index.index_folder.exists():
        _copy_index(paths.set_paths(record.job), index)
    registry.swap(champion.model_copy(update={"files": digests_of(_files(paths, index, model), record.job.workspace)}))


def _copy_index(of_run: SetPaths, kept: SetPaths) -> None:
    """Keep the index of a champion's images, in case the shards are removed."""
    with atomic_folder(kept.index_folder) as draft:
        for file in (of_run.index_file, of_run.manifest):
            copy_file(file, draft / file.name)


def _files(paths: RunPaths, index: SetPaths, model: Path) -> list[Path]:
    """Return all files that a champion needs, from its weights to its predictions."""
    report = (paths.report_json, paths.report / "predictions.csv", paths.metrics, paths.record)
    folders = (paths.checkpoints, paths.predictions, model)
    found = [*report, index.manifest, index.index_file, *(file for folder in folders for file in folder.iterdir())]
    return sorted(file for file in found if file.is_file())
