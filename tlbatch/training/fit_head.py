"""A phase whose head is fitted at once on cached vectors, or trained side by side at several rates."""

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
from tlbatch.data.sampler import Positions, State, num_batches, training_batches
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.model.attribute_head import attributes_in, fit_attributes
from tlbatch.model.checkpoint import Unseen, moving
from tlbatch.model.phrase_decoder import PhraseHead, outputs_named
from tlbatch.model.sklearn_heads import FittedHead, Vectors, best_of, fit_head
from tlbatch.model.symmetries import turned
from tlbatch.training.loop import Validation, candidate, samples_of, tell, validate, weights_of
from tlbatch.training.parallel_heads import Epochs, train_heads
from tlbatch.training.state import Epoch, Feeds, Session

log = logging.getLogger(__name__)


def fit_phase(session: Session, feeds: Feeds, phase: Phase, first: Epoch) -> Validation:
    """Let rank 0 fit the head at once on all training vectors, or train one a rate, and give it to the others."""
    model, world, keeper = session.model, session.world, session.keeper
    began = time.monotonic()
    model.to(session.accelerator.device)
    model.set_cut(phase.cut, freeze_batch_norm=True)
    session.changed.update(moving(model))
    found: list[_Fitted | None] = [None]
    if world.is_main:
        vectors = _vectors(session, feeds)
        log.info("%s: %d vectors of %d numbers", phase.fit or "epochs", *vectors.features.shape)
        found = [_fit(session, vectors, phase, first)]
    (fitted,) = broadcast_object_list(found)
    assert fitted is not None
    new = fitted.head.to(session.accelerator.device)
    if isinstance(model.head, nn.Sequential) and isinstance(new, nn.Sequential) and _is_linear(new):
        model.head[-1] = new[0]  # after the dropout of later phases
    else:
        model.head = new
    validation = validate(session, feeds.val, Views(model.spec.size))
    keeper.offer(candidate(session, first, validation), model, fitted.unseen)
    tried = {one: loss if np.isfinite(loss) else None for one, loss in fitted.losses.items()}
    line = {"phase": first.phase, "fit": phase.fit or "epochs", "tried": tried}
    tell(session, first, line, validation=validation, seconds=time.monotonic() - began)
    keeper.write(model)
    return validation


def _is_linear(head: nn.Sequential) -> bool:
    return len(head) == 1 and isinstance(head[0], nn.Linear)


class _Fitted(NamedTuple):
    """What rank 0 gives to the others."""

    head: nn.Module
    losses: Mapping[str, float]
    """On unseen vectors, by what was tried, or by attribute."""
    unseen: Unseen


def _fit(session: Session, vectors: Vectors, phase: Phase, first: Epoch) -> _Fitted:
    if isinstance(session.model.head, PhraseHead):
        return _fit_phrases(session, vectors, phase, session.model.head)
    if phase.fit:
        fitted = fit_head(phase.fit, vectors, seed=session.job.seed)
    else:
        fitted = _trained_heads(session, vectors, phase, first)
    best = best_of(fitted.scores)
    log.info("%s of %s is best: loss %.4f on unseen vectors", best, ", ".join(fitted.scores), fitted.scores[best])
    judged = vectors.chosen(fitted.judged)
    unseen = Unseen(fitted.outputs, judged.labels, np.asarray(judged.groups, np.bytes_), out_of_fold=True)
    return _Fitted(fitted.head, fitted.scores, unseen)


def _fit_phrases(session: Session, vectors: Vectors, phase: Phase, head: PhraseHead) -> _Fitted:
    """A linear classifier for each attribute."""
    assert phase.fit, "phrases are fitted at once, or in epochs"
    vocabulary = outputs_named(session.job, session.images.manifest)
    attributes = attributes_in(vocabulary, session.job.data)
    phrases = head.phrases(torch.from_numpy(vectors.labels).to(head.of_class.device)).cpu().numpy()
    new, losses = fit_attributes(
        phase.fit, vectors, phrases, attributes, num_tags=len(vocabulary), seed=session.job.seed
    )
    new.of_class = head.of_class.cpu()
    log.info("losses on unseen vectors: %s", ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
    nothing = Unseen(np.empty((0, 1), np.float32), np.empty(0, np.int64), np.empty(0, "S1"))
    return _Fitted(new, losses, nothing)


def _trained_heads(session: Session, vectors: Vectors, phase: Phase, first: Epoch) -> FittedHead:
    """A head a rate, over the same batches that the phase would take with one."""
    job, size = session.job, session.job.train.batch_size
    views = _views(session)
    column = np.zeros(1 + max(views.numbers), np.int64)
    column[list(views.numbers)] = range(len(views.numbers))

    def at(number: int) -> Epoch:
        return Epoch(first.phase, number, first.in_run + number)

    def batches(number: int) -> Iterator[Positions]:
        samples = samples_of(session, phase, at(number))
        state = State(job.seed, at(number).in_run, 0)
        for _, own in training_batches(state, len(samples), batch_size=size, rank=0, world_size=1):
            positions, seen = samples.look_up(own)
            yield positions if job.head.view_mean else positions * len(views.numbers) + column[seen]

    epochs = Epochs(
        batches,
        lambda number: weights_of(session, phase, at(number)),
        steps=num_batches(len(samples_of(session, phase, first)), size),
    )
    head = session.model.head
    assert isinstance(head, nn.Sequential)
    return train_heads(head, phase, vectors, epochs, objective=job.objective, seed=job.seed + first.phase)


def _views(session: Session) -> Views:
    return training_views(session.job.train, session.model.spec.size)


def _vectors(session: Session, feeds: Feeds) -> Vectors:
    """The features of all training images in all their views, or of their mean, and what is known of them; labels of
    several tags are (n, tags).
    """
    images, model, job = session.images, session.model, session.job
    rows = images.index[images.rows("train")]
    views = Views(model.spec.size) if job.head.view_mean else _views(session)
    samples = Samples(len(rows), views, every_view=True)
    size = job.train.batch_size
    batches = (np.arange(start, min(start + size, len(samples))) for start in range(0, len(samples), size))
    features, positions = [], []
    for batch in feeds.train.batches(samples, batches):
        seen = turned(batch.inputs.to(session.accelerator.device), batch.turns)
        features.append((model.to_cut(seen) if seen.dtype == torch.uint8 else seen).double().cpu().numpy())
        positions.append(batch.positions.numpy())
    of = np.concatenate(positions)
    return Vectors(
        np.concatenate(features),
        labels_of(rows).numpy()[of],
        rows["group"][of],
        model.num_classes,
        ordered=job.objective == "regression",
    )
