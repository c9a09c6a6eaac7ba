"""Trials: candidates of strategy = auto, all scored on the same folds of the training images."""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import broadcast_object_list

from tlbatch.activations.batches import BatchSource
from tlbatch.activations.fill import fill_cache
from tlbatch.activations.store import open_stores
from tlbatch.config.job import Job
from tlbatch.core.errors import StoppedError, UserError
from tlbatch.core.files import atomic_file, digest_of
from tlbatch.core.typing import Ints
from tlbatch.data.image_set import ImageSet
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.distributed.process_group import RankContext
from tlbatch.model.checkpoint import BestCheckpoint, pretrained_classifier
from tlbatch.model.fitted_head import Vectors
from tlbatch.model.folds import folds_of
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import RunRecord, job_digest
from tlbatch.runs.strategy import Trial
from tlbatch.training.phases import train_phases
from tlbatch.training.state import TrainingContext
from tlbatch.training.trial_scores import Candidate, CandidatePredictions, Folds, Outputs, decide, trials_of

log = logging.getLogger(__name__)
_ENOUGH = 1000
"""Number of images after which no further fold is scored."""
_REPEATS = 3
"""Number of divisions into folds on which a fitted head is scored on smaller sets: with few images the score depends on
the division."""
Finding = tuple[npt.NDArray[Any], float]
"""A result, and the seconds it took."""


class NotCachedError(UserError):
    """The activations that a candidate needs do not fit in the cache."""


class Study:
    """The training images, divided into folds by group, and everything that the trials share.

    Folds are scored until they hold 1,000 images, at most five. Sets with fewer images get two more divisions into
    folds for heads that are fitted in one step.
    """

    def __init__(self, record: RunRecord, images: ImageSet, ranks: RankContext, folder: Path) -> None:
        """Divide the training images into folds.

        Parameters
        ----------
        folder
            Where results are kept, for later attempts of the stage.
        """
        self.record, self.images, self.ranks = record, images, ranks
        self._folder = folder
        self._seconds_left = 60 * record.job.strategy_minutes
        self.left_out: list[str] = []
        """Candidates that were not tried, each with the reason."""
        self._rows = images.rows("train")
        self.labels = images.labels("train")
        self.groups = images.index["group"][self._rows]
        seed = record.job.seed
        every = folds_of(self.labels, self.groups, seed)
        self._folds = every[: next((n for n in range(1, len(every)) if _size(every[:n]) >= _ENOUGH), len(every))]
        self._divisions: list[Folds] = [self._folds]
        if len(self.labels) < _ENOUGH:
            more = [folds_of(self.labels, self.groups, seed + time) for time in range(1, _REPEATS)]
            self._divisions += [folds for folds in more if _size(folds) == _size(self._folds) == len(self.labels)]
        self.scored: Ints = np.sort(np.concatenate([out for _, out in self._folds]))

    @property
    def num_classes(self) -> int:
        """Number of classes in the data set."""
        return len(self.images.manifest.classes)

    def probe(self, candidate: Candidate, features: npt.NDArray[np.float64]) -> CandidatePredictions:
        """Fit the head of a candidate's only phase on vectors of all training images, (n, d), on rank 0."""
        job, stop = candidate.job, self.ranks.stop

        def work() -> Ints:
            decisions: Ints | None = None
            if self.ranks.world.is_main and not stop:
                fitted = [[self._fitted(job, features, *fold) for fold in folds] for folds in self._divisions]
                decisions = np.stack([self._decide(job, *both) for both in zip(self._divisions, fitted, strict=True)])
            (decisions,) = broadcast_object_list([decisions])
            if decisions is None:
                raise StoppedError(f"stopped by {stop.signal_name or 'a signal on rank 0'}", again=stop.wants_again)
            return decisions

        return CandidatePredictions(candidate, *self._once(candidate, "probe", work))

    def _once(self, candidate: Candidate, part: str, work: Callable[[], npt.NDArray[Any]]) -> Finding:
        """Return the result of an earlier attempt, or else compute and save it; all ranks must call together."""
        key = [candidate.name, job_digest(self._of(candidate.job)), self.images.manifest.index_digest, part]
        file, is_main = self._folder / f"{digest_of(key)[:16]}.npz", self.ranks.world.is_main
        known: Finding | None = None
        if is_main and file.exists():
            with np.load(file, allow_pickle=False) as data:
                known = data["found"], float(data["seconds"])
        (known,) = broadcast_object_list([known])
        if known is not None:
            log.info("%s: %s already done", candidate.name, part)
            return known
        began = time.monotonic()
        found = work()
        (seconds,) = broadcast_object_list([time.monotonic() - began])  # by the clock of rank 0
        if is_main:
            with atomic_file(file) as opened:
                np.savez(opened, found=found, seconds=np.array(seconds))
        return found, seconds

    def _fitted(self, job: Job, features: npt.NDArray[np.float64], into: Positions, out: Positions) -> Outputs:
        from tlbatch.model.sklearn_heads import fit_head  # noqa: PLC0415 (scikit-learn takes seconds to import)

        fit = job.phase[0].fit
        assert fit is not None
        ordered = job.objective == "regression"
        vectors = Vectors(features, self.labels, self.groups, self.num_classes, ordered=ordered).chosen(into)
        head = fit_head(fit, vectors, seed=job.seed).head
        with torch.inference_mode():
            outputs: Outputs = head(torch.from_numpy(features[out]).float()).numpy()
        return outputs

    def train(self, candidate: Candidate) -> CandidatePredictions | None:
        """Run the phases of a candidate in every fold, with the held-out images used only at the end.

        Return None if that would take longer than the minutes left.
        """
        record, outputs, spent = self._of(candidate.job), [], 0.0
        whole, stores = self._stored(candidate.job)
        for number, fold in enumerate(self._folds, start=1):
            log.info("%s: fold %d of %d", candidate.name, number, len(self._folds))
            work = partial(self._train_fold, record, whole, stores, *fold)
            found, seconds = self._once(candidate, f"fold {number}", work)
            outputs.append(found)
            spent += seconds
            if number == 1 < len(self._folds) and self._takes_too_long(candidate, spent):
                return None
        self._seconds_left -= spent
        return CandidatePredictions(candidate, self._decide(candidate.job, self._folds, outputs)[None], spent)

    def _train_fold(
        self, record: RunRecord, whole: ImageSet, stores: Mapping[str, str], into: Positions, out: Positions
    ) -> Outputs:
        """Train on a fold, and return the outputs of the last checkpoint on its held-out images."""
        model = pretrained_classifier(record, whole.manifest)
        images = whole.only(train=self._rows[into], val=self._rows[out])
        self._folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            paths = RunPaths(Path(scratch))
            best = BestCheckpoint(paths, self.ranks.world)
            last = train_phases(TrainingContext(record.job, images, paths, self.ranks, model, best), stores)
        assert last is not None, "trials have no snapshots, so they always run from the start"
        return last.outputs

    def _takes_too_long(self, candidate: Candidate, fold_s: float) -> bool:
        whole = fold_s * len(self._folds)
        (too_long,) = broadcast_object_list([whole > self._seconds_left])  # by the clock of rank 0
        if too_long:
            left = self._seconds_left / 60
            self.leave_out(candidate, f"it would take {whole / 60:.1f} of the {left:.1f} minutes left")
            self._seconds_left -= fold_s
        return bool(too_long)

    def leave_out(self, candidate: Candidate, why: str) -> None:
        """Log and record that a candidate is not tried."""
        log.info("%s: left out, %s", candidate.name, why)
        self.left_out.append(f"{candidate.name}: {why}")

    def _stored(self, job: Job) -> tuple[ImageSet, Mapping[str, str]]:
        """Fill the cache for the training images alone; return them and the names of the stores."""
        record = self._of(job)
        whole = self.images.only(train=self._rows, val=self._rows)
        model = pretrained_classifier(record, whole.manifest)
        return whole, fill_cache(record, whole, model, self.ranks)

    def vectors(self, job: Job) -> npt.NDArray[np.float64]:
        """Return the head's inputs for all training images in a job of one frozen phase, (n, d); (0, 0) off rank 0.

        Raises NotCachedError if they do not fit in the cache.
        """
        whole, names = self._stored(job)
        stored = open_stores(job, names, phase=0, split="val")
        if stored is None:
            raise NotCachedError(
                "choose needs cached vectors, and they do not fit; raise cache.budget_gb or free disk space"
            )
        if not self.ranks.world.is_main:
            return np.empty((0, 0))
        size = pretrained_classifier(self._of(job), whole.manifest).spec.size
        views = training_views(job.train, size) if job.head.view_mean else Views(size)
        source = BatchSource(whole, self._rows, views, stored, workers=0, head=job.head)
        batches = np.array_split(np.arange(len(self._rows)), -(-len(self._rows) // job.train.batch_size))
        loaded = source.batches(Samples(len(self._rows), Views(size)), batches)
        return np.concatenate([batch.inputs.double().numpy() for batch in loaded])

    def _of(self, job: Job) -> RunRecord:
        return self.record.model_copy(update={"job": job})

    def _decide(self, job: Job, folds: Folds, outputs: Sequence[Outputs]) -> Ints:
        return decide(job, folds, outputs, self.labels, self.groups, num_classes=self.num_classes)[self.scored]

    def table(self, results: Sequence[CandidatePredictions]) -> tuple[Trial, ...]:
        """Return the scores of candidates and how far each is behind the best, with standard errors."""
        return trials_of(results, self.record.job, self.labels[self.scored], self.groups[self.scored])


def _size(folds: Folds) -> int:
    return sum(len(out) for _, out in folds)
