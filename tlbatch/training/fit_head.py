"""Phases whose head is fitted in one step on cached vectors, or trained in parallel at several learning rates."""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from tlbatch.config.training import Phase
from tlbatch.data.dataset import labels_of
from tlbatch.data.sampler import Positions, SamplerState, num_batches, training_batches
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.model.attribute_head import attributes_in, fit_attributes
from tlbatch.model.average import moving
from tlbatch.model.checkpoint import OutOfFold
from tlbatch.model.fitted_head import FittedHead, Vectors, best_of
from tlbatch.model.phrase_decoder import PhraseHead, outputs_named
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.training.loop import Validation, checkpoint_candidate, log_epoch, samples_of, validate, weights_of
from tlbatch.training.parallel_heads import Epochs, train_heads
from tlbatch.training.state import Epoch, SplitBatches, TrainingContext

log = logging.getLogger(__name__)


def fit_phase(context: TrainingContext, batches: SplitBatches, phase: Phase, first: Epoch) -> Validation:
    """Fit the head on all training vectors on rank 0, or train one per learning rate, and send it to all ranks."""
    model, world, best_checkpoint = context.model, context.world, context.best_checkpoint
    began = time.monotonic()
    model.to(context.accelerator.device)
    model.set_cut(phase.cut, freeze_batch_norm=True)
    context.changed.update(moving(model))
    found: list[_Fitted | None] = [None]
    if world.is_main:
        vectors = _vectors(context, batches)
        log.info("%s: %d vectors with %d features", phase.fit or "epochs", *vectors.features.shape)
        found = [_fit(context, vectors, phase, first)]
    (fitted,) = broadcast_object_list(found)
    assert fitted is not None
    new = fitted.head.to(context.accelerator.device)
    is_linear = isinstance(new, nn.Sequential) and len(new) == 1 and isinstance(new[0], nn.Linear)
    if isinstance(model.head, nn.Sequential) and is_linear:
        model.head[-1] = new[0]  # after the dropout of later phases
    else:
        model.head = new
    validation = validate(context, batches.val, Views(model.spec.size))
    best_checkpoint.consider(checkpoint_candidate(context, first, validation), model, fitted.out_of_fold)
    tried = {one: loss if np.isfinite(loss) else None for one, loss in fitted.losses.items()}
    line = {"phase": first.phase, "fit": phase.fit or "epochs", "tried": tried}
    log_epoch(context, first, line, validation=validation, seconds=time.monotonic() - began)
    best_checkpoint.write(model)
    return validation


class _Fitted(NamedTuple):
    """What rank 0 sends to the other ranks."""

    head: nn.Module
    losses: Mapping[str, float]
    """Out-of-fold losses, by penalty or learning rate, or by attribute."""
    out_of_fold: OutOfFold


def _fit(context: TrainingContext, vectors: Vectors, phase: Phase, first: Epoch) -> _Fitted:
    if isinstance(context.model.head, PhraseHead):
        return _fit_phrases(context, vectors, phase, context.model.head)
    if phase.fit:
        from tlbatch.model.sklearn_heads import fit_head  # noqa: PLC0415 (scikit-learn takes seconds to import)

        fitted = fit_head(phase.fit, vectors, seed=context.job.seed)
    else:
        fitted = _trained_heads(context, vectors, phase, first)
    best = best_of(fitted.scores)
    log.info("%s is the best of %s: out-of-fold loss %.4f", best, ", ".join(fitted.scores), fitted.scores[best])
    scored = vectors.chosen(fitted.scored)
    out_of_fold = OutOfFold(fitted.outputs, scored.labels, np.asarray(scored.groups, np.bytes_), out_of_fold=True)
    return _Fitted(fitted.head, fitted.scores, out_of_fold)


def _fit_phrases(context: TrainingContext, vectors: Vectors, phase: Phase, head: PhraseHead) -> _Fitted:
    """Fit a linear classifier for each attribute."""
    assert phase.fit, "phrase heads are fitted in one step or trained in epochs"
    vocabulary = outputs_named(context.job, context.images.manifest)
    attributes = attributes_in(vocabulary, context.job.data)
    phrases = head.phrases(torch.from_numpy(vectors.labels).to(head.of_class.device)).cpu().numpy()
    seed, num_tags = context.job.seed, len(vocabulary)
    new, losses = fit_attributes(phase.fit, vectors, phrases, attributes, num_tags=num_tags, seed=seed)
    new.of_class = head.of_class.cpu()
    log.info("out-of-fold losses: %s", ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    nothing = OutOfFold(np.empty((0, 1), np.float32), np.empty(0, np.int64), np.empty(0, "S1"))
    return _Fitted(new, losses, nothing)


def _trained_heads(context: TrainingContext, vectors: Vectors, phase: Phase, first: Epoch) -> FittedHead:
    """Train a head per learning rate, on the same batches as a phase with a single one."""
    job, size = context.job, context.job.train.batch_size
    views = training_views(job.train, context.model.spec.size)
    column = np.zeros(1 + max(views.numbers), np.int64)
    column[list(views.numbers)] = range(len(views.numbers))

    def at(number: int) -> Epoch:
        return Epoch(first.phase, number, first.in_run + number)

    def batches(number: int) -> Iterator[Positions]:
        samples = samples_of(context, phase, at(number))
        state = SamplerState(job.seed, at(number).in_run, 0)
        for _, own in training_batches(state, len(samples), batch_size=size, rank=0, world_size=1):
            positions, drawn = samples.look_up(own)
            yield positions if job.head.view_mean else positions * len(views.numbers) + column[drawn]

    epochs = Epochs(
        batches,
        lambda number: weights_of(context, phase, at(number)),
        steps=num_batches(len(samples_of(context, phase, first)), size),
    )
    head = context.model.head
    assert isinstance(head, nn.Sequential)
    return train_heads(head, phase, vectors, epochs, objective=job.objective, seed=job.seed + first.phase)


def _vectors(context: TrainingContext, batches: SplitBatches) -> Vectors:
    """Return the features of all training images, of every view or of the mean over views, with labels and groups.

    Labels of several tags are (n, tags).
    """
    images, model, job = context.images, context.model, context.job
    rows = images.index[images.rows("train")]
    views = Views(model.spec.size) if job.head.view_mean else training_views(job.train, model.spec.size)
    samples = Samples(len(rows), views, every_view=True)
    size = job.train.batch_size
    slices = (np.arange(start, min(start + size, len(samples))) for start in range(0, len(samples), size))
    features, positions = [], []
    for batch in batches.train.batches(samples, slices):
        inputs = apply_symmetries(batch.inputs.to(context.accelerator.device), batch.symmetry)
        features.append((model.to_cut(inputs) if inputs.dtype == torch.uint8 else inputs).double().cpu().numpy())
        positions.append(batch.positions.numpy())
    of = np.concatenate(positions)
    labels, ordered = labels_of(rows).numpy()[of], job.objective == "regression"
    return Vectors(np.concatenate(features), labels, rows["group"][of], model.num_classes, ordered=ordered)
