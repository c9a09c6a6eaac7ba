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
from tlbatch.promotion.records import Champion, Decision
from tlbatch.promotion.registry import Registry, drift_file, promotion_file
from tlbatch.promotion.retention import digests_of, retire
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Marker, load_record
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import SetPaths

log = logging.getLogger(__name__)


def overruled_before(paths: RunPaths) -> str:
    """Return the reason of an earlier override for this run, which stays in force; empty if there was none."""
    marker = paths.marker("promote")
    return load_record(Marker, marker, missing="try again").inputs["overruled"] if marker.exists() else ""


def promote_run(run: Run, overruled: str) -> None:
    """Compare the run with the champion, and replace the champion if the rule or an override says so."""
    registry = Registry.of(run.job)
    registry.make(private=run.job.private)
    night = night_of(run, registry, overruled)
    with FileLock(registry.folder / ".lock"):
        for name in ("", "champions", "models", "indexes", "nights"):
            remove_drafts(registry.folder / name)
        decision = _decision(run, registry, overruled)
        if decision.outcome == "promoted":
            _crown(run, registry, decision)
        champion = registry.champion()
        own = run.name, decision.time, decision.reasons
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
            drift=load_record(Drift, drift_file(run.paths), missing="try again"),
            label_issues=label_issues_of(run),
            report=os.path.relpath(run.paths.report_page, registry.page(run.name).parent),
        )
        write_night(registry.page(run.name), shown)
        retire(registry, run.job.nightly, now=run.name)
    log.info("%s: %s", decision.outcome, "; ".join(decision.reasons))
    log.info("wrote %s", registry.page(run.name))


def _decision(run: Run, registry: Registry, overruled: str) -> Decision:
    """Return the decision saved before an interruption, if it is still valid, or decide now."""
    champion, file = registry.champion(), promotion_file(run.paths)
    if file.exists():
        found = load_record(Decision, file, missing="try again")
        is_own = champion is not None and champion.run == run.name
        if found.champion == (champion and champion.number) or (is_own and found.outcome == "promoted"):
            return found
    if champion is not None and champion.run == run.name:
        raise UserError(f"{run.folder}: is already the champion; promote another run")
    look = registry.looks(champion, but=run.name) + 1 if champion else 0
    before = registry.champions() if run.job.nightly.init_from == "champion" else []
    challenge = Challenge(run, champion, look, tuple(before))
    if overruled:
        decision = challenge.decision(outcome="promoted", rule="by hand", reasons=(overruled,))
    else:
        decision = challenge.decided()
    decision.save(file)
    return decision


def _crown(run: Run, registry: Registry, decision: Decision) -> None:
    """Export the model and make the run the champion; until the last rename the previous champion stays in place."""
    before = registry.champion()
    if before is not None and before.run == run.name:
        return
    known = registry.champions()
    begun = [one.number for one in known if (one.run, one.time) == (run.name, decision.time)]  # before a kill
    number = begun[0] if begun else max((one.number for one in known), default=0) + 1
    report = Challenge(run, before).report
    champion = Champion(
        number=number,
        task=run.job.task,
        run=run.name,
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
        export_run(run.paths, model)
    if not index.index_folder.exists():
        own = run.set_paths
        with atomic_folder(index.index_folder) as draft:  # in case the shards are removed
            for file in (own.index_file, own.manifest):
                copy_file(file, draft / file.name)
    registry.swap(champion.model_copy(update={"files": digests_of(_files(run.paths, index, model), run.job.workspace)}))


def _files(paths: RunPaths, index: SetPaths, model: Path) -> list[Path]:
    """Return all files that a champion needs, from its weights to its predictions."""
    report = (paths.report_json, paths.report / "predictions.csv", paths.metrics, paths.record)
    folders = (paths.checkpoints, paths.predictions, model)
    found = [*report, index.manifest, index.index_file, *(file for folder in folders for file in folder.iterdir())]
    return sorted(file for file in found if file.is_file())
