"""Export a reported run in several formats, each verified against the run's own predictions."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.export import ExportedProgram

from tlbatch import __version__
from tlbatch.config.training import Network
from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, atomic_folder, copy_file, digest_file, write_text
from tlbatch.core.typing import Floats
from tlbatch.deploy.card import write_card
from tlbatch.deploy.graph import program_of, reason_of, run_onnx, run_pt2, to_onnx, to_pt2
from tlbatch.deploy.model import ExportedModel
from tlbatch.deploy.record import CARD, EXPORTED_VERSION, RECORD, WEIGHTS, Exported, Form, FormName, Preprocessing
from tlbatch.deploy.verify import ParitySample, ReportedRun, load_reported, predict_sample
from tlbatch.report.checklist import main_score
from tlbatch.runs.paths import RunPaths

TOLERANCE = 1e-4
"""Largest difference of a probability that counts as rounding."""
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "pt2": ()}
Make = Callable[[ExportedProgram], bytes]
Infer = Callable[[bytes, torch.Tensor], Floats]


def export_run(paths: RunPaths, folder: Path) -> Exported:
    """Write the model of a run to a new folder: model.json, README.md and every format that can be exported.

    Raises UserError if the folder exists, the run has no report, or its reloaded weights give other probabilities.
    """
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: already exists; name another folder, or remove it")
    run = load_reported(paths)
    reference = predict_sample(run)
    with atomic_folder(folder) as draft:
        copy_file(run.checkpoint, draft / WEIGHTS)
        record = _described(run, reference)
        record.save(draft / RECORD)
        model = ExportedModel.load(draft)
        forms = {"safetensors": _checked(model, reference, run.checkpoint)} | _graphs(model, reference, draft)
        record = record.model_copy(update={"forms": forms})
        write_text(draft / CARD, write_card(record, run.report))
        files = {file.name: digest_file(file) for file in sorted(draft.iterdir()) if file.name != RECORD}
        record = record.model_copy(update={"files": files})
        record.save(draft / RECORD)
    return record


def _described(run: ReportedRun, reference: ParitySample) -> Exported:
    """Return the record as it is before any format but the weights exists."""
    best, job, manifest, spec = run.best, run.record.job, run.images.manifest, reference.spec
    return Exported(
        version=EXPORTED_VERSION,
        tlbatch=__version__,
        run=run.record.run,
        created=run.record.created,
        weights=best.digest,
        classes=best.classes,
        network=Network(
            model=job.model.model_copy(update={"weights": "none", "weights_entry": ""}),
            head=job.head.model_copy(update={"weights": ""}),
            objective=job.objective,
            decision=job.decision,
            phase=job.phase,
            train=job.train.model_copy(update={"compile": False}),
            seed=job.seed,
        ),
        phase=best.phase,
        preprocessing=Preprocessing(
            max_pixels=job.data.max_pixels,
            value_range=manifest.limits,
            steps=manifest.steps,
            resize=manifest.resize,
            size=spec.size,
            mean=spec.mean,
            std=spec.std,
            views=best.views,
            view_mean=job.head.view_mean,
        ),
        thresholds=best.thresholds,
        temperature=run.temperature,
        metric=job.metric,
        score=main_score(run.report),
        num_train=manifest.num_images["train"],
        num_checked=len(reference.files),
        from_predictions=None if reference.from_predictions is None else _short(reference.from_predictions),
        forms={},
        files={WEIGHTS: best.digest},
    )


def _checked(model: ExportedModel, reference: ParitySample, checkpoint: Path) -> Form:
    """Return the entry of the weights, compared after they were read back.

    Raises UserError if they give other probabilities than the run.
    """
    difference = _difference(model.predict(reference.files, in_shard=True).probabilities, reference)
    if not difference <= TOLERANCE:
        raise UserError(
            f"{checkpoint}: after reloading, its probabilities differ by {difference:.1e} from the run's own; "
            "export it with the version of tlbatch that trained it"
        )
    return Form(file=WEIGHTS, difference=difference)


def _graphs(model: ExportedModel, reference: ParitySample, folder: Path) -> dict[FormName, Form]:
    """Write the formats that hold the complete graph from square images to probabilities."""
    ways: dict[FormName, tuple[Make, Infer]] = {"onnx": (to_onnx, run_onnx), "pt2": (to_pt2, run_pt2)}
    why = ""
    if model.draws_crops:
        why = "head.view_mean averages random crops of the full image, but a graph only gets its central square"
    elif model.answering.model.by_hand:
        why = "handcrafted features have no graph; use python -m tlbatch.predict FOLDER"
    else:
        try:
            program = program_of(model.answering)
        except Exception as error:  # noqa: BLE001 (torch.export may raise anything)
            why = reason_of(error)
    if why:
        return {name: Form(file=f"model.{name}", difference=None, left_out=why) for name in ways}
    return {name: _graph(program, reference, folder, name, *ways[name]) for name in ways}


def _graph(
    program: ExportedProgram, reference: ParitySample, folder: Path, name: FormName, make: Make, infer: Infer
) -> Form:
    """Export one format, and write it if its probabilities match the run's."""
    file = f"model.{name}"
    lacking = [package for package in _PACKAGES[name] if find_spec(package) is None]
    if lacking:
        why = f"not installed: {', '.join(lacking)}; install the extra export"
        return Form(file=file, difference=None, left_out=why)
    try:
        data = make(program)
        difference = _difference(infer(data, reference.squares), reference)
    except Exception as error:  # noqa: BLE001 (exporters and runtimes may raise anything)
        return Form(file=file, difference=None, left_out=reason_of(error))
    if not difference <= TOLERANCE:
        why = f"its probabilities differ by {difference:.1e} from the run's own, more than {TOLERANCE:.0e}"
        return Form(file=file, difference=difference if np.isfinite(difference) else None, left_out=why)
    with atomic_file(folder / file) as opened:
        opened.write(data)
    return Form(file=file, difference=difference)


def _difference(found: npt.NDArray[np.float32], reference: ParitySample) -> float:
    """Return the largest difference of a probability; NaN if any is NaN."""
    assert found.shape == reference.probabilities.shape
    return _short(float(np.abs(found - reference.probabilities).max()))


def _short(value: float) -> float:
    """Round to two digits: the others depend on the machine."""
    return float(f"{value:.1e}")
