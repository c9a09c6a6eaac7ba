"""Scoring: from the merged predictions of a run to its report, predictions.csv and submission.csv."""

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tlbatch import __version__
from tlbatch.config.base import SplitName
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file, write_text
from tlbatch.core.text import counted
from tlbatch.data.index import Index
from tlbatch.data.sources.base import name_of
from tlbatch.data.sources.table import label_columns
from tlbatch.evaluation.external_leaderboards import submission
from tlbatch.evaluation.prediction_parts import Part
from tlbatch.evaluation.predictions import Predictions, located, write_predictions
from tlbatch.evaluation.summary import ReportSettings, evaluate_thresholds, fit_temperature_on, summarise, temper
from tlbatch.metrics.thresholds import rounding
from tlbatch.runs.attempts import read_attempts
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.provenance import image_commit
from tlbatch.runs.records import SPLITS, Best, Marker, RunRecord, job_digest, load_record
from tlbatch.runs.report import REPORT_VERSION, Cost, Report, Scored, Thresholds
from tlbatch.runs.run import Run
from tlbatch.runs.stages import RANKED_STAGES, StageName, stages_of

log = logging.getLogger(__name__)
_PACKAGES = ("torch", "torchvision", "timm", "accelerate", "webdataset", "scikit-learn", "numpy")


@dataclass(frozen=True)
class Scoring:
    """Everything needed to score a run or an ensemble."""

    record: RunRecord
    manifest: Manifest
    folder: Path
    """The report folder."""

    def write(
        self, raw: Predictions, held_out: Predictions, thresholds: Thresholds | None
    ) -> tuple[Predictions, Scored]:
        """Write predictions.csv and submission.csv, and return the predictions as temperature-scaled with their scores.

        Parameters
        ----------
        held_out
            Validation or out-of-fold predictions, never of test images.

        Raises
        ------
        UserError
            When a column, a leaderboard or a sample submission does not match the run.
        """
        fitted = fit_temperature_on(held_out)
        found, held_out = temper(raw, fitted), temper(held_out, fitted)
        write_predictions(self.folder / "predictions.csv", found)
        test = found.of("test")
        names = [name_of(key.decode()) for key in test.keys]
        job, classes = self.record.job, self.manifest.classes
        commonest = classes[int(np.argmax(self.manifest.counts["train"]))]
        self.write_submission(dict(zip(names, test.predicted, strict=True)), commonest)
        settings = ReportSettings(job.metric, job.report, job.seed, self.columns(test.keys), bool(job.ordered_by))
        return found, summarise(found, raw, held_out, fitted, settings, names=names, thresholds=thresholds)

    def columns(self, keys: npt.NDArray[np.bytes_]) -> Mapping[str, Sequence[str]]:
        """Read the subgroup columns of the labels file for the given images."""
        job = self.record.job
        if not job.report.subgroups or job.data.labels is None:
            return {}
        values = label_columns(job.data, job.data.labels, job.report.subgroups, self.manifest.columns)
        none = ("",) * len(job.report.subgroups)
        rows = [values.get(key.decode(), none) for key in keys]
        return {name: [row[at] for row in rows] for at, name in enumerate(job.report.subgroups)}

    def write_submission(self, answers: Mapping[str, str], commonest: str) -> None:
        """Write submission.csv.

        Parameters
        ----------
        answers
            Predicted label by image name; empty where the image could not be read.
        commonest
            Label to submit for unreadable images.
        """
        sample = self.record.job.report.sample_submission
        text, num_filled = submission(answers, sample, self.manifest.columns, filling=commonest)
        if num_filled:
            log.warning("submission.csv: %s submitted as %s", counted(num_filled, "unreadable image"), commonest)
        write_text(self.folder / "submission.csv", text)


def predictions_of(index: Index, merged: Part, classes: tuple[str, ...]) -> Predictions:
    """Combine the merged predictions with keys, groups, splits and labels from the index."""
    labels = index["label"][merged.rows].astype(np.int64)
    return Predictions(**located(index, merged), classes=classes, labels=labels, probabilities=merged.probabilities)


@dataclass(frozen=True)
class HeldOut:
    """Validation or out-of-fold predictions of a run."""

    images: Predictions
    grades: npt.NDArray[np.float32]
    """Regression output to be thresholded, (n,)."""


def held_out_of(paths: RunPaths, best: Best, found: Predictions, merged: Part) -> HeldOut:
    """Return the predictions of the validation images or, without any, out-of-fold predictions of training images.

    Raises UserError if the file of out-of-fold predictions is missing or modified.
    """
    val = found.splits == SPLITS.index("val")
    if val.any() or best.unseen is None:
        return HeldOut(found.where(val), merged.grades[val])
    file = paths.unseen(best)
    if not file.exists() or digest_file(file) != best.unseen:
        raise UserError(f"{file}: missing or modified since training; submit the job again")
    with np.load(file, allow_pickle=False) as data:
        labels, groups = data["labels"], data["groups"]
        splits, errors = np.full(len(labels), SPLITS.index("train")), np.full(len(labels), "", np.object_)
        images = Predictions(groups, groups, splits, errors, found.classes, labels, data["probabilities"])
        return HeldOut(images, data["grades"])


def thresholds_of(
    record: RunRecord, best: Best, found: Predictions, merged: Part, held_out: HeldOut
) -> Thresholds | None:
    """Score rounding and fitted thresholds; None without thresholds, or if each of several views is thresholded."""
    if not best.thresholds or best.views != "none":
        return None
    cuts = rounding(len(found.classes)), np.array(best.thresholds)
    other: SplitName = "val" if (held_out.images.splits == SPLITS.index("val")).all() else "train"
    test = found.splits == SPLITS.index("test")
    grades: dict[SplitName, npt.NDArray[np.float32]] = {other: held_out.grades, "test": merged.grades[test]}
    images: dict[SplitName, Predictions] = {other: held_out.images, "test": found.where(test)}
    return evaluate_thresholds(record.job.metric, cuts, grades, images, seed=record.job.seed)


def report_of(scoring: Scoring, scored: Scored, run: Run, best: Best, *, num_predicted: int) -> Report:
    """Assemble the report of one run."""
    record, job, manifest = run.record, run.job, scoring.manifest
    return Report(
        **dict(scored),
        version=REPORT_VERSION,
        run=record.run,
        job=job.name,
        members=(),
        ensemble=None,
        synthetic=manifest.synthetic,
        ceilings=manifest.ceilings,
        strategy=run.paths.load_strategy(),
        counts=manifest.counts,
        num_images=manifest.num_images,
        num_rejected=manifest.num_rejected,
        notes=manifest.notes,
        warnings=manifest.warnings,
        audit=manifest.audit,
        resize=manifest.resize,
        steps=manifest.steps,
        checkpoint=best,
        backbone=job.model.backbone,
        weights=Path(job.model.weights).name,
        seeds={"job": job.seed, "split_salt": job.data.split.salt},
        test_digest=manifest.test_digest,
        digests={
            "job": job_digest(record),
            "set": manifest.index_digest,
            "source": manifest.source_digest,
            "pretrained": record.weights_digest,
        },
        versions={"tlbatch": __version__, "python": platform.python_version()}
        | {name: version(name) for name in _PACKAGES},
        commit=image_commit() or record.commit,
        cost=_cost(run, num_predicted),
    )


def _cost(run: Run, num_predicted: int) -> Cost:
    done: dict[StageName, Marker] = {
        stage: load_record(Marker, run.paths.marker(stage), missing=f"run {stage} first: python -m tlbatch.{stage} RUN")
        for stage in stages_of(run.job)
        if run.paths.marker(stage).exists() and stage != "reduce"
    }
    seconds: dict[str, float] = {stage: round(marker.seconds, 1) for stage, marker in done.items()}
    took = seconds.get("predict")
    return Cost(
        seconds=seconds,
        gpu_hours=round(_gpu_hours(run, done), 4),
        images_per_s=round(num_predicted / took, 1) if took else None,
        hosts=tuple(sorted({host for marker in done.values() for host in marker.hosts})),
    )


def _gpu_hours(run: Run, done: Mapping[StageName, Marker]) -> float:
    """Sum GPU hours over all attempts of the earlier stages; for a stage without recorded attempts, of its last run."""
    attempts = [one for one in read_attempts(run.paths) if one.stage != "reduce"]
    unrecorded = done.keys() & set(RANKED_STAGES) - {one.stage for one in attempts}
    last = (done[stage] for stage in done if stage in unrecorded and run.job.slurm.gpus_per_node)
    return sum(one.seconds * one.world_size / 3600 for one in last) + sum(one.gpu_hours for one in attempts)
