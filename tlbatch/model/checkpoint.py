"""Checkpoints: written atomically, with a record that describes them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, digest_file
from tlbatch.core.typing import Ints
from tlbatch.metrics.thresholds import fit_thresholds
from tlbatch.model.attribute_head import restored_head
from tlbatch.model.average import moving
from tlbatch.model.backbones import load_weights
from tlbatch.model.build import build_classifier
from tlbatch.model.classifier import Classifier
from tlbatch.model.phrase_decoder import PhraseHead, outputs_named
from tlbatch.model.weights_file import Input, read_tensors, write_weights
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.paths import RunPaths, weights_file
from tlbatch.runs.records import Best, RunRecord
from tlbatch.runs.world import World


def pretrained_classifier(record: RunRecord, manifest: Manifest) -> Classifier:
    """Build the classifier as it is when the first phase starts.

    Raises UserError if there is no such backbone or cut, weights of backbone or head do not fit or have changed, or the
    images have tags instead of classes.
    """
    job = record.job
    if manifest.tags and job.objective != "tags":
        raise UserError(
            f"objective: the images have several tags, but {job.objective} needs one class per image; set "
            "objective=tags, or leave data.tag_separator empty"
        )
    file = weights_file(job.model.weights)
    if file is not None and digest_file(file) != record.weights_digest:
        raise UserError(f"{file}: the weights have changed since the job was submitted; submit it again")
    names = outputs_named(job, manifest)
    model = build_classifier(job, len(names), described_by=file)
    if isinstance(model.head, PhraseHead):
        model.head.read_classes(names, manifest.classes)
    if file is not None:
        load_weights(model.spec, file, match=job.model.match, entry=job.model.weights_entry)
    for phase in job.phase:  # reports a wrong cut of the last phase before the first starts
        model.find(phase.cut)
    if job.head.weights:
        _load_head(model, RunPaths(Path(job.head.weights)), names)
    return model


def _load_head(model: Classifier, run: RunPaths, classes: tuple[str, ...]) -> None:
    best, file = run.load_best()
    if best.classes != classes and best.max_tags:
        differ = sorted(set(best.classes) ^ set(classes))
        raise UserError(
            f"head.weights: the head of {run.folder} has {len(best.classes)} tags, but this job has {len(classes)} "
            f"({', '.join(differ[:3])} differ); give this job the same training split and decoder.min_images"
        )
    if best.classes != classes:
        raise UserError(
            f"head.weights: the head of {run.folder} has the classes {', '.join(best.classes)}, but this job has "
            f"{', '.join(classes)}; give this job the same classes in the same order"
        )
    own = model.head.state_dict()
    given = {key.removeprefix("head."): value for key, value in read_tensors(file).items() if key.startswith("head.")}
    shapes, wanted = ({key: tuple(value.shape) for key, value in tensors.items()} for tensors in (given, own))
    wrong = sorted({key for key, _ in shapes.items() ^ wanted.items()})
    if wrong:
        raise UserError(
            f"head.weights: the head of {run.folder} does not fit ({', '.join(wrong[:3])} differ); give this job the "
            "same head section, features and classes"
        )
    model.head.load_state_dict(given)


@dataclass(frozen=True)
class OutOfFold:
    """Predictions for images that the model, or one fitted in the same way, was not trained on."""

    outputs: npt.NDArray[np.float32]
    """Outputs of the head, (n, num_outputs)."""
    labels: Ints
    groups: npt.NDArray[np.bytes_]
    out_of_fold: bool = False
    """Whether these are training images, by heads fitted on the other folds, instead of the validation split."""


class BestCheckpoint:
    """Keeps the checkpoint with the highest validation score; ties go to the lower log loss.

    Without validation (no such split, or an undefined score) the last one is kept. The kept checkpoint stays in memory
    until `write`.
    """

    best: Best | None
    """Record of the kept checkpoint; complete once it is written."""

    def __init__(self, paths: RunPaths, world: World) -> None:
        self.best = None
        self._paths = paths
        self._world = world
        self._kept: dict[str, torch.Tensor] | None = None
        self._out_of_fold: OutOfFold | None = None

    def consider(self, offered: Best, model: Classifier, out_of_fold: OutOfFold) -> bool:
        """Keep a checkpoint unless it is worse; return whether it is better. Thresholds fit ``out_of_fold``."""
        if self.best is not None and _rank(offered) < _rank(self.best):
            return False
        better = self.best is None or _rank(offered) > _rank(self.best)
        self.best, self._out_of_fold = offered, out_of_fold
        self._kept = {key: value.detach().cpu().clone() for key, value in moving(model).items()}
        return better

    def state(self) -> dict[str, Any]:
        """Return the kept checkpoint in memory, as tensors; empty once it is written."""
        if self._kept is None or self._out_of_fold is None:
            return {}
        groups = self._out_of_fold.groups
        return {
            "tensors": self._kept,
            "outputs": torch.from_numpy(self._out_of_fold.outputs),
            "labels": torch.from_numpy(self._out_of_fold.labels),
            "groups": torch.from_numpy(groups.view(np.uint8).reshape(len(groups), groups.itemsize)),
            "out_of_fold": self._out_of_fold.out_of_fold,
        }

    def load(self, best: Best | None, state: dict[str, Any]) -> None:
        """Restore what was kept when a snapshot was saved; checkpoints written since then are no longer the best."""
        self.best = best
        if state:
            groups = state["groups"].numpy()
            groups = groups.view(f"S{groups.shape[1]}").ravel()
            outputs, labels = state["outputs"].numpy(), state["labels"].numpy()
            self._out_of_fold = OutOfFold(outputs, labels, groups, state["out_of_fold"])
            self._kept = state["tensors"]
        if best is not None and best.digest and self._world.is_main:
            best.save(self._paths.best)

    def write(self, model: Classifier) -> None:
        """Write the checkpoint that was kept since the last write: first the weights, then the record.

        Thresholds between grades are fitted on the images of the kept outputs, if there are any.
        """
        if self._kept is None or self.best is None or self._out_of_fold is None or not self._world.is_main:
            return
        outputs, labels = torch.from_numpy(self._out_of_fold.outputs), self._out_of_fold.labels
        if model.rule.has_thresholds and len(labels):
            grades = model.rule.grades(outputs, model.num_classes)[:, 0].double().numpy()
            thresholds = fit_thresholds(grades, labels, self._out_of_fold.groups, num_classes=model.num_classes)
            self._kept["thresholds"] = torch.from_numpy(thresholds).float()
        tensors = model.state_dict() | self._kept
        path = self._paths.checkpoints / self.best.weights
        write_weights(path, tensors, Input(size=model.spec.size, mean=model.spec.mean, std=model.spec.std))
        found: dict[str, object] = {"digest": digest_file(path), "thresholds": (), "unseen": None}
        if self._out_of_fold.out_of_fold:
            file = self._paths.unseen(self.best)
            found["unseen"] = _save_out_of_fold(file, self._out_of_fold, model, tensors["thresholds"])
        if model.rule.has_thresholds:
            found["thresholds"] = tuple(tensors["thresholds"].tolist())
        self.best = self.best.model_copy(update=found)
        self.best.save(self._paths.best)
        self._kept = None

    def clean(self) -> None:
        """Remove checkpoints that are no longer the best, once no snapshot can lead back to them."""
        if self.best is None or not self._world.is_main:
            return
        kept = {self._paths.best, self._paths.checkpoints / self.best.weights, self._paths.unseen(self.best)}
        for old in set(self._paths.checkpoints.iterdir()) - kept:
            old.unlink()


def _save_out_of_fold(path: Path, found: OutOfFold, model: Classifier, thresholds: torch.Tensor) -> str:
    """Write out-of-fold probabilities and grades; return the file's SHA-256."""
    outputs = torch.from_numpy(found.outputs)
    with atomic_file(path) as file:
        np.savez(
            file,
            probabilities=model.rule.probabilities(outputs, model.num_classes, thresholds.cpu()).numpy(),
            grades=model.rule.grades(outputs, model.num_classes)[:, 0].numpy(),
            labels=found.labels,
            groups=found.groups,
        )
    return digest_file(path)


def _rank(best: Best) -> tuple[float, float]:
    score, loss = best.val_score, best.val_loss
    return -math.inf if score is None else score, -math.inf if loss is None else -loss


def trained_classifier(record: RunRecord, num_classes: int, checkpoint: Path) -> Classifier:
    """Load the classifier of a checkpoint, head included."""
    model = build_classifier(record.job, num_classes, described_by=checkpoint)
    load_trained(model, checkpoint)
    return model


def load_trained(model: Classifier, checkpoint: Path) -> None:
    """Load the weights of a checkpoint into a classifier, with a head of the same kind."""
    tensors = read_tensors(checkpoint)
    model.head = restored_head(tensors, model.head)
    model.load_state_dict(tensors)
