"""What was new in a night: the number of images, their drift, and labels that look wrong."""

import csv
import logging
from pathlib import Path

from tlbatch.core.errors import UserError
from tlbatch.core.files import exact_text
from tlbatch.data.image_set import open_images
from tlbatch.data.index import read_index
from tlbatch.data.sources.base import key_of_shown, shown_key
from tlbatch.deploy.model import ExportedModel
from tlbatch.promotion.drift.measure import Predict, measure_drift
from tlbatch.promotion.night_page import LabelIssue
from tlbatch.promotion.records import Champion, Night
from tlbatch.promotion.registry import Registry, drift_file, review_file
from tlbatch.promotion.rescoring import manifest_of_champion, rescoring_paths
from tlbatch.report.run_figures import shown_images
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Marker, load_record
from tlbatch.runs.run import Run
from tlbatch.runs.stages import stages_of

log = logging.getLogger(__name__)
_MOST_LABEL_ISSUES = 12


def night_of(run: Run, registry: Registry, overruled: str) -> Night:
    """Return the record of the night before the decision: what was new, and how long the stages took.

    Writes drift.json and review.csv into the run's folder.

    Parameters
    ----------
    overruled
        See `tlbatch.promote.run`; if not empty, a damaged champion is skipped in the check of the new labels.

    Raises
    ------
    UserError
        When the run, or the champion that checks the labels, is incomplete or damaged.
    """
    pending, history = registry.pending(), registry.history()
    pending = pending if pending and pending.run == run.name else None
    own = run.set_paths
    before = next((Path(one.index) for one in reversed(history) if one.index and one.run != run.name), None)
    before = before if before and before.is_dir() else None
    champion = registry.champion()
    is_challenged = champion and before and champion.run != run.name
    predict, classes = _predictor(registry, champion, overruled) if champion and is_challenged else (None, ())
    drift = measure_drift(
        run,
        before=before,
        known=registry.folder / "statistics.npz",
        predict=predict,
        classes_of_predict=classes,
        threshold=run.job.nightly.drift,
        table=review_file(run.paths),
    )
    drift.save(drift_file(run.paths))
    seconds = _seconds(run.paths)
    again = rescoring_paths(run.paths)
    if again.record.exists():
        seconds["champion again"] = sum(_seconds(again).values())
    return Night(
        time="",
        event="kept",
        run=run.name,
        num_images=len(read_index(own.index_file)),
        num_new=drift.num_new,
        seconds={name: round(value, 2) for name, value in seconds.items()},
        is_marked=drift.is_marked,
        index=str(own.index_folder),
        seen=pending.seen if pending else None,
        asked=pending.asked if pending else None,
    )


def _predictor(registry: Registry, champion: Champion, overruled: str) -> tuple[Predict | None, tuple[str, ...]]:
    """Return the champion's predictions and classes; none if it is damaged and an override replaces it anyway.

    Raises UserError if it is damaged and the rule decides.
    """
    try:
        model = ExportedModel.load(registry.model_folder(champion))
        classes = manifest_of_champion(registry, champion).classes
    except UserError as error:
        if not overruled:
            raise
        log.warning("the new labels are not checked with the champion: %s", error)
        return None, ()
    return lambda images: model.predict(images, in_shard=True).probabilities, classes


def _seconds(paths: RunPaths) -> dict[str, float]:
    """Return the seconds of each stage of a run, in its last attempt."""
    markers = [paths.marker(stage) for stage in stages_of(paths.load_submitted().job)]
    return {file.stem: load_record(Marker, file, missing="").seconds for file in markers if file.exists()}


def label_issues_of(run: Run) -> list[LabelIssue]:
    """Return the new images whose labels the champion contradicts most, for review."""
    with review_file(run.paths).open(newline="", encoding="utf-8") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(_MOST_LABEL_ISSUES), strict=False)]
    rows = [{name: exact_text(text) for name, text in row.items()} for row in rows]
    keys = [row["key"] if "key" in row else key_of_shown(row["image"]) for row in rows]  # earlier files have keys
    images = shown_images(open_images(run), keys)
    return [
        LabelIssue(shown_key(key), row["label"], row["champion_says"], float(row["probability"]), image)
        for key, row, image in zip(keys, rows, images, strict=True)
    ]
