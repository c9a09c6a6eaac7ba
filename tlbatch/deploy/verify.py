"""Predictions of a finished run's own model on some of its test images: the reference for every exported format."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from tlbatch.core.errors import UserError
from tlbatch.core.typing import Floats
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import ImageSet, open_images
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.evaluation.predictions import Predictions, read_predictions
from tlbatch.evaluation.summary import temper
from tlbatch.model.backbones import Backbone
from tlbatch.model.checkpoint import trained_classifier
from tlbatch.model.classifier import Classifier, predicted
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Best, RunRecord, load_record
from tlbatch.runs.report import Report
from tlbatch.runs.run import Run
from tlbatch.runs.stage import require_finished

_MOST = 32


@dataclass(frozen=True)
class ReportedRun:
    """A run with a report."""

    record: RunRecord
    report: Report
    best: Best
    checkpoint: Path
    images: ImageSet
    scored: Predictions
    """Predictions of the test images in predictions.csv."""

    @property
    def temperature(self) -> float | None:
        """Temperature kept by the report; None if it kept none."""
        found = self.report.calibration
        return found.temperature if found is not None and found.kept else None


@dataclass(frozen=True)
class ParitySample:
    """Some test images, and the predictions of the run's own model for them."""

    files: tuple[bytes, ...]
    """Bytes as stored in the shards."""
    squares: torch.Tensor
    """Input of the network, uint8, (n, size, size, 3)."""
    probabilities: Floats
    from_predictions: float | None
    """Largest difference from predictions.csv; None if the predictions there depend on the group."""
    spec: Backbone


def load_reported(paths: RunPaths) -> ReportedRun:
    """Read the report, checkpoint and predictions of a run.

    Raises UserError if it has no report, is an ensemble, or one of its files is missing or was changed.
    """
    missing = "run reduce first: python -m tlbatch.reduce RUN"
    if paths.report_json.exists():
        members = load_record(Report, paths.report_json, missing=missing).members
        if members:
            raise UserError(f"{paths.folder}: an ensemble has no weights; export its members: {' '.join(members)}")
    run = Run.load(paths.folder)
    run.job.require_classes("an export")
    require_finished("reduce", run)
    report = load_record(Report, paths.report_json, missing=missing)
    best, checkpoint = paths.load_best()
    if report.checkpoint is None or report.checkpoint.digest != best.digest:
        raise UserError(f"{paths.report_json}: not from checkpoint {checkpoint.name}; submit the job again")
    scored = read_predictions(paths.report / "predictions.csv", best.classes)
    return ReportedRun(run.record, report, best, checkpoint, open_images(run), scored.of("test"))


def predict_sample(run: ReportedRun) -> ParitySample:
    """Predict test images spread over the split as predict and reduce do, on the CPU in 32 bits.

    Raises UserError if none of them can be read.
    """
    job, best, images = run.record.job, run.best, run.images
    model = trained_classifier(run.record, len(best.classes), run.checkpoint).eval()
    model.set_cut(job.phase[best.phase].cut, freeze_batch_norm=False)
    size = model.spec.size
    rows, squares = _readable(images, size)
    views = training_views(job.train, size) if job.head.view_mean else Views(size, best.views)
    dataset = SplitDataset(images, rows, Samples(len(rows), views, every_view=True))
    each = len(views.numbers)
    with _alone() as accelerator:
        found = [
            _of_image(model, dataset, range(first, first + each), accelerator, of_vectors=job.head.view_mean)
            for first in range(0, len(rows) * each, each)
        ]
    probabilities, scored = _at_temperature(run, images.index["key"][rows], np.stack(found))
    apart = np.abs(probabilities - scored)[~np.isnan(scored)]
    return ParitySample(
        files=tuple(dataset.read(row) for row in images.index[rows]),
        squares=squares,
        probabilities=probabilities,
        from_predictions=None if job.head.group_mean or not apart.size else float(apart.max()),
        spec=model.spec,
    )


def _readable(images: ImageSet, size: int) -> tuple[Positions, torch.Tensor]:
    """Return the rows of at most 32 readable test images at equal distances, and their squares."""
    rows = images.rows("test")
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, _MOST).round().astype(np.int64))]
    dataset = SplitDataset(images, rows, Samples(len(rows), Views(size), every_view=True), strict=False)
    batch = dataset.__getitems__(range(len(rows)))
    kept = [place for place in range(len(rows)) if place not in batch.errors]
    if not kept:
        folder = images.paths.folder
        raise UserError(f"{folder}: no sampled test image can be read; remove the folder {folder} and submit again")
    return rows[kept], batch.inputs[kept]


@contextmanager
def _alone() -> Iterator[Accelerator]:
    try:
        yield Accelerator(cpu=True, mixed_precision="no")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001 (a later stage may use other settings)


def _of_image(
    model: Classifier, dataset: SplitDataset, samples: range, accelerator: Accelerator, *, of_vectors: bool
) -> Floats:
    """Return the probabilities of one image from all its views, (num_classes,)."""
    batch = dataset.__getitems__(samples)
    inputs, symmetry = batch.inputs, batch.symmetry
    if of_vectors:
        with torch.inference_mode():
            inputs, symmetry = model.to_cut(apply_symmetries(inputs, symmetry)).mean(0, keepdim=True), symmetry[:1] * 0
    outputs = predicted(model, inputs, symmetry, accelerator)
    return np.asarray(model.probabilities(outputs).numpy().mean(axis=0))


def _at_temperature(run: ReportedRun, keys: npt.NDArray[np.bytes_], raw: Floats) -> tuple[Floats, Floats]:
    """Return probabilities at the kept temperature, and those of the same images in predictions.csv."""
    places = {key: place for place, key in enumerate(run.scored.keys.tolist())}
    scored = run.scored.where(np.array([places[key] for key in keys.tolist()], np.int64))
    own = temper(replace(scored, probabilities=raw), (run.temperature, run.temperature is not None, ""))
    return own.probabilities, scored.probabilities
