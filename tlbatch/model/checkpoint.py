"""Checkpoints: whole or not there, with the record that says what they are."""

import math
from pathlib import Path

import safetensors.torch

from tlbatch.job.errors import UserError
from tlbatch.job.files import atomic_file, digest_file
from tlbatch.job.paths import RunPaths
from tlbatch.job.records import Best, load_record
from tlbatch.job.world import World
from tlbatch.model.backbones import read_tensors
from tlbatch.model.classifier import Classifier


def save_weights(model: Classifier, path: Path) -> str:
    """Write all weights and statistics as safetensors; return the file's SHA-256."""
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    with atomic_file(path) as file:
        file.write(safetensors.torch.save(tensors))
    return digest_file(path)


def keep_best(best: Best | None, offered: Best, model: Classifier, paths: RunPaths, world: World) -> Best:
    """Keep the checkpoint with the higher validation score, among equals the one with the lower log loss.

    Where validation says nothing (no such split, undefined score) the last one is kept. The new weights are on disk
    before the record names them, and the old ones go only then.
    """
    if best is not None and _rank(offered) < _rank(best):
        return best
    if world.is_main:
        digest = save_weights(model, paths.checkpoints / offered.weights)
        offered.model_copy(update={"digest": digest}).save(paths.best)
        for old in paths.checkpoints.glob("*.safetensors"):
            if old.name != offered.weights:
                old.unlink()
    return offered


def _rank(best: Best) -> tuple[float, float]:
    return (
        -math.inf if best.val_score is None else best.val_score,
        -math.inf if best.val_loss is None else -best.val_loss,
    )


def load_best(paths: RunPaths) -> tuple[Best, Path]:
    """The record of the chosen checkpoint and its weights, compared with their digest.

    Raises
    ------
    UserError
        When train has not finished or the file is not as it was written.
    """
    best = load_record(Best, paths.best, missing="run train first: python -m tlbatch.train RUN")
    path = paths.checkpoints / best.weights
    if not path.exists() or digest_file(path) != best.digest:
        raise UserError(f"{path}: missing or not as train wrote it; submit the job again")
    return best, path


def load_classifier(model: Classifier, path: Path) -> None:
    """Fill the whole classifier, head included."""
    model.load_state_dict(read_tensors(path))
