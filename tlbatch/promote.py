"""Promote: compare a run with the champion on the same test images, and swap the champion where the job's rule says so.

A night does this by itself; by hand it is for runs that were made otherwise, and to overrule.
"""

import argparse
import csv
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from tlbatch.challenge import Challenge
from tlbatch.data.index import read_index
from tlbatch.data.loader import open_set
from tlbatch.data.sources import name_of
from tlbatch.drift import measure_drift
from tlbatch.export import export_run
from tlbatch.exported import ExportedModel
from tlbatch.gallery import shown_images
from tlbatch.job.cli import finished, guarded, once
from tlbatch.job.drift import Drift
from tlbatch.job.errors import UserError
from tlbatch.job.files import exact_text, remove_drafts
from tlbatch.job.paths import RunPaths
from tlbatch.job.records import Manifest, Marker, RunRecord, load_record, stages_of
from tlbatch.job.registry import Champion, Decision, Night, Registry, drift_file, promotion_file, review_file
from tlbatch.job.rescoring import make_rescoring, rescoring_paths
from tlbatch.job.retention import digests_of, retire
from tlbatch.job.world import read_world
from tlbatch.report.nightpage import Doubt, ShownNight, write_night

log = logging.getLogger(__name__)
_MOST_DOUBTS = 12


def run(run_dir: Path, overruled: str = "") -> None:
    """Decide on the run, and do what follows, unless that is done.

    Parameters
    ----------
    overruled
        Why to make it the champion whatever the rule says; empty: the rule decides.
    """
    paths, world = RunPaths(run_dir), read_world(os.environ)
    record = paths.load()
    if record.checkpoint_of is not None:
        raise UserError(f"{run_dir}: holds what a champion predicts again, and is no challenger; name another run")
    reduced = finished("reduce", paths, record)
    if overruled:
        paths.marker("promote").unlink(missing_ok=True)
        promotion_file(paths).unlink(missing_ok=True)
    else:
        overruled = _overruled_before(paths)
    inputs = {"job": reduced.inputs["job"], "predictions": reduced.inputs["predictions"], "overruled": overruled}
    if not once("promote", paths, inputs, world, lambda: _promote(record, paths, overruled)):
        decision = load_record(Decision, promotion_file(paths), missing="--anyway REASON decides again")
        log.info("%s: %s; --anyway REASON overrules it", decision.outcome, "; ".join(decision.reasons))


def _overruled_before(paths: RunPaths) -> str:
    """Why the rule was overruled when the run was decided on, which stands; empty where it was not."""
    marker = paths.marker("promote")
    return load_record(Marker, marker, missing="try again").inputs["overruled"] if marker.exists() else ""


def _promote(record: RunRecord, paths: RunPaths, overruled: str) -> None:
    registry = Registry.of(record.job)
    night = _night_of(record, paths, registry, overruled)
    with FileLock(registry.folder / ".lock"):
        for folder in (registry.folder, *(registry.folder / name for name in ("champions", "models", "nights"))):
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
                "against": decision.champion,
                "reasons": decision.reasons,
            }))  # fmt: skip
        shown = ShownNight(
            decision=decision,
            champion=champion,
            history=registry.history(),
            drift=load_record(Drift, drift_file(paths), missing="try again"),
            doubts=_doubts(record, paths),
            report=os.path.relpath(paths.report_page, registry.page(record.run).parent),
        )
        write_night(registry.page(record.run), shown)
        retire(registry, record.job.nightly, now=record.run)
    log.info("%s: %s", decision.outcome, "; ".join(decision.reasons))
    log.info("wrote %s", registry.page(record.run))


def _night_of(record: RunRecord, paths: RunPaths, registry: Registry, overruled: str) -> Night:
    """What is known of the night before anything is decided: what was new, and what it took."""
    pending, history = registry.pending(), registry.history()
    own = paths.set_paths(record.job).index_folder
    before = next((Path(one.index) for one in reversed(history) if one.index and one.run != record.run), None)
    before = before if before and before.is_dir() else None
    champion = registry.champion()
    judge = _judge(registry, champion, overruled) if champion and before and champion.run != record.run else None
    drift = measure_drift(
        paths,
        before=before,
        known=registry.statistics_file,
        predict=judge.predict if judge else None,
        classes_of_predict=judge.classes if judge else (),
        threshold=record.job.nightly.drift,
        table=review_file(paths),
    )
    drift.save(drift_file(paths))
    seconds = _seconds(paths)
    again = rescoring_paths(paths)
    if again.record.exists():
        seconds["champion again"] = sum(_seconds(again).values())
    return Night(
        time="",
        event="kept",
        run=record.run,
        num_images=len(read_index(own / "index.npy")),
        num_new=drift.num_new,
        seconds={name: round(value, 2) for name, value in seconds.items()},
        is_marked=drift.is_marked,
        index=str(own),
        seen=pending.seen if pending and pending.run == record.run else None,
    )


@dataclass(frozen=True)
class _Judge:
    """What the champion says of images."""

    predict: Callable[[Sequence[bytes]], npt.NDArray[np.float32]]
    classes: tuple[str, ...]


def _judge(registry: Registry, champion: Champion, overruled: str) -> _Judge | None:
    """The champion's exported model; None where it is damaged and is to be replaced whatever the rule says.

    Raises
    ------
    UserError
        When it is damaged and the rule decides.
    """
    try:
        model = ExportedModel.load(registry.model_folder(champion))
        index = Path(champion.index)
        classes = load_record(Manifest, index / "manifest.json", missing="the champion is not whole").classes
    except UserError as error:
        if not overruled:
            raise
        log.warning("the champion is not asked about the new labels: %s", error)
        return None

    def predict(images: Sequence[bytes]) -> npt.NDArray[np.float32]:
        return model.predict(images, in_shard=True).probabilities

    return _Judge(predict, classes)


def _seconds(paths: RunPaths) -> dict[str, float]:
    """What the stages of a run took, in its last life."""
    markers = [paths.marker(stage) for stage in stages_of(paths.load_submitted().job)]
    return {file.stem: load_record(Marker, file, missing="").seconds for file in markers if file.exists()}


def _decision(record: RunRecord, paths: RunPaths, registry: Registry, overruled: str) -> Decision:
    """What was decided before a kill, if it still stands, or what is decided now."""
    champion, file = registry.champion(), promotion_file(paths)
    if file.exists():
        found = load_record(Decision, file, missing="try again")
        is_own = champion is not None and champion.run == record.run
        if found.champion == (champion and champion.number) or (is_own and found.outcome == "promoted"):
            return found
    if champion is not None and champion.run == record.run:
        raise UserError(f"{paths.folder}: is the champion already; python -m tlbatch.registry list shows them")
    look = registry.looks(champion, registry.history(), but=record.run) + 1 if champion else 0
    before = registry.champions() if record.job.nightly.begin == "champion" else []
    challenge = Challenge(record, paths, champion, look, tuple(before))
    if overruled:
        decision = challenge.decision(outcome="promoted", rule="by hand", reasons=(overruled,))
    else:
        decision = challenge.decided()
    decision.save(file)
    return decision


def _crown(record: RunRecord, paths: RunPaths, registry: Registry, decision: Decision) -> None:
    """Export the model, and make the run the champion: until the last rename the one before it is."""
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
        folder=str(paths.folder.absolute()),
        model=f"{number:04d}-{record.run}",
        time=decision.time,
        rule=decision.rule,
        previous=before.number if before else None,
        metric=report.metric,
        score=report.scores[report.metric],
        num_train=decision.num_train,
        lost=decision.lost,
        index=str(paths.set_paths(record.job).index_folder),
        files={},
    )
    model = registry.model_folder(champion)
    if not model.exists():
        export_run(paths, model)
    registry.swap(champion.model_copy(update={"files": digests_of(_files(paths, record, model), record.job.workspace)}))


def _files(paths: RunPaths, record: RunRecord, model: Path) -> dict[Path, str | None]:
    """All that a champion needs, from its weights to its predictions."""
    index = paths.set_paths(record.job)
    report = (paths.report_json, paths.report / "predictions.csv", paths.metrics, paths.record)
    folders = (paths.checkpoints, paths.predictions, model)
    found = [*report, index.manifest, index.index_file, *(file for folder in folders for file in folder.iterdir())]
    return dict.fromkeys(sorted(file for file in found if file.is_file()))


def _doubts(record: RunRecord, paths: RunPaths) -> list[Doubt]:
    """The new images whose labels the champion contradicts most, to look at."""
    with review_file(paths).open(newline="", encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(_MOST_DOUBTS), strict=False)]
    rows = [{name: exact_text(text) for name, text in row.items()} for row in rows]
    images = shown_images(open_set(paths.set_paths(record.job)), [row["key"] for row in rows])
    return [
        Doubt(name_of(row["key"]), row["label"], row["champion_says"], float(row["probability"]), image)
        for row, image in zip(rows, images, strict=True)
    ]


def _rescore(paths: RunPaths) -> None:
    """Have the champion predict the run's test images here, where it has not.

    Raises
    ------
    UserError
        When that fails.
    """
    record = paths.load()
    champion = Registry.of(record.job).champion()
    other = make_rescoring(record, paths, champion) if champion and champion.run != record.run else None
    if other is None:
        return
    command = [sys.executable, "-m", "tlbatch.submit", "--local", str(other.folder)]
    if subprocess.run(command, check=False).returncode:
        raise UserError(f"{other.folder}: the champion could not predict these images; mend what the lines above say")


def main() -> None:
    """``python -m tlbatch.promote RUN [--anyway REASON]``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.promote", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, as tlbatch.submit printed it")
    parser.add_argument("--anyway", metavar="REASON", default="", help="make it the champion whatever the rule says")
    given = parser.parse_args()

    def work(folder: Path) -> None:
        if not given.anyway and not RunPaths(folder).marker("promote").exists():
            _rescore(RunPaths(folder))
        run(folder, given.anyway)

    sys.exit(guarded("promote", work, given.run))


if __name__ == "__main__":
    main()
