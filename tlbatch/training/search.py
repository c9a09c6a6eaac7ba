"""Trials: candidates of strategy = auto, all scored on the same folds of the training images."""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from tlbatch.data.dataset import ImageSet
from tlbatch.data.sampler import Positions
from tlbatch.data.views import Samples, Views, training_views
from tlbatch.distributed.process_group import RankContext
from tlbatch.metrics.scores import bootstrap_scores, score
from tlbatch.metrics.thresholds import fit_thresholds, rounding
from tlbatch.model.checkpoint import BestCheckpoint, pretrained_classifier
from tlbatch.model.objectives import Rule
from tlbatch.model.sklearn_heads import Vectors, fit_head, folds_of
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import RunRecord, job_digest
from tlbatch.runs.strategy import Trial
from tlbatch.runs.world import World
from tlbatch.training.phases import train_phases
from tlbatch.training.state import TrainingContext

log = logging.getLogger(__name__)
_JUDGED = 1000
"""Number of images after which no further fold is scored."""
_REPEATS = 3
"""Number of divisions into folds on which a fitted head is scored on smaller sets: with few images the score depends on
the division."""
Folds = Sequence[tuple[Ints, Ints]]
Outputs = npt.NDArray[np.float32]
Finding = tuple[npt.NDArray[Any], float]
"""A result, and the seconds it took."""


class NotCachedError(UserError):
    """The activations that a candidate needs do not fit in the cache."""


@dataclass(frozen=True)
class Candidate:
    """A training strategy: its name, and the user's job with its settings."""

    name: str
    job: Job


@dataclass(frozen=True)
class Judged:
    """Predictions of a candidate on the images it is scored on."""

    candidate: Candidate
    classes: Ints
    """Predicted classes, (divisions, m), in the order of the images."""
    seconds: float


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
        self._memory = Memory(folder, ranks.world)
        self._seconds_left = 60 * record.job.strategy_minutes
        self.left_out: list[str] = []
        """Candidates that were not tried, each with the reason."""
        self._rows = images.rows("train")
        self.labels = images.labels("train")
        self.groups = images.index["group"][self._rows]
        seed = record.job.seed
        every = folds_of(self.labels, self.groups, seed)
        self._folds = every[: next((n for n in range(1, len(every)) if _size(every[:n]) >= _JUDGED), len(every))]
        self._divisions: list[Folds] = [self._folds]
        if len(self.labels) < _JUDGED:
            more = [folds_of(self.labels, self.groups, seed + time) for time in range(1, _REPEATS)]
            self._divisions += [folds for folds in more if _size(folds) == _size(self._folds) == len(self.labels)]
        self.judged: Ints = np.sort(np.concatenate([out for _, out in self._folds]))

    @property
    def num_classes(self) -> int:
        """Number of classes in the data set."""
        return len(self.images.manifest.classes)

    def probe(self, candidate: Candidate, features: npt.NDArray[np.float64]) -> Judged:
        """Fit the head of a candidate's only phase on vectors of all training images, (n, d), on rank 0."""

        def work() -> Ints:
            job = candidate.job
            return np.stack([
                self._decide(job, folds, [self._fitted(job, features, *fold) for fold in folds])
                for folds in self._divisions
            ])  # fmt: skip

        key = self._key(candidate, "probe")
        found = self._memory.recall(key)
        if found is None:
            stop, began = self.ranks.stop, time.monotonic()
            fitted = [work() if self.ranks.world.is_main and not stop else None]
            (classes,) = broadcast_object_list(fitted)
            if classes is None:
                raise StoppedError(f"stopped by {stop.signal_name or 'a signal on rank 0'}", again=stop.wants_again)
            found = self._memory.keep(key, classes, time.monotonic() - began)
        return Judged(candidate, *found)

    def _key(self, candidate: Candidate, part: str) -> list[str]:
        """Return the key of a candidate's result."""
        return [candidate.name, job_digest(self._of(candidate.job)), self.images.manifest.index_digest, part]

    def _fitted(self, job: Job, features: npt.NDArray[np.float64], into: Positions, out: Positions) -> Outputs:
        fit = job.phase[0].fit
        assert fit is not None
        ordered = job.objective == "regression"
        vectors = Vectors(features, self.labels, self.groups, self.num_classes, ordered=ordered).chosen(into)
        head = fit_head(fit, vectors, seed=job.seed).head
        with torch.inference_mode():
            outputs: Outputs = head(torch.from_numpy(features[out]).float()).numpy()
        return outputs

    def train(self, candidate: Candidate) -> Judged | None:
        """Run the phases of a candidate in every fold, with the held-out images used only at the end.

        Return None if that would take longer than the minutes left.
        """
        record, outputs, spent = self._of(candidate.job), [], 0.0
        whole, stores = self._stored(candidate.job)
        for number, fold in enumerate(self._folds, start=1):
            key = self._key(candidate, f"fold {number}")
            found = self._memory.recall(key)
            log.info("%s: fold %d of %d%s", candidate.name, number, len(self._folds), ", already done" if found else "")
            if found is None:
                began = time.monotonic()
                seen = self._train_fold(record, whole, stores, *fold)
                found = self._memory.keep(key, seen, time.monotonic() - began)
            outputs.append(found[0])
            spent += found[1]
            if number == 1 < len(self._folds) and self._takes_too_long(candidate, spent):
                return None
        self._seconds_left -= spent
        return Judged(candidate, self._decide(candidate.job, self._folds, outputs)[None], spent)

    def _train_fold(
        self, record: RunRecord, whole: ImageSet, stores: Mapping[str, str], into: Positions, out: Positions
    ) -> Outputs:
        """Train on a fold, and return the outputs of the last checkpoint on its held-out images."""
        model = pretrained_classifier(record, whole.manifest)
        images = whole.only(train=self._rows[into], val=self._rows[out])
        self._folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            paths = RunPaths(Path(scratch))
            context = TrainingContext(
                record.job, images, paths, self.ranks, model, BestCheckpoint(paths, self.ranks.world)
            )
            last = train_phases(context, stores)
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

        Raises
        ------
        NotCachedError
            When they do not fit in the cache.
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
        parts = [
            batch.inputs.double().numpy() for batch in source.batches(Samples(len(self._rows), Views(size)), batches)
        ]
        return np.concatenate(parts)

    def _of(self, job: Job) -> RunRecord:
        return self.record.model_copy(update={"job": job})

    def _decide(self, job: Job, folds: Folds, outputs: Sequence[Outputs]) -> Ints:
        """Return the classes predicted from each fold's outputs, (m,), in the order of the images.

        Thresholds are fitted on the other folds.
        """
        rule, number = Rule(job.objective, by_mean=job.decision == "expected-grade"), self.num_classes
        found = [torch.from_numpy(some) for some in outputs]
        decided = np.empty(len(self.labels), np.int64)
        plain = torch.from_numpy(rounding(number)).float()
        for this, (_, out) in enumerate(folds):
            if not rule.has_thresholds:
                decided[out] = rule.probabilities(found[this], number, plain).argmax(1).numpy()
                continue
            grades = [rule.grades(some, number)[:, 0].double().numpy() for some in found]
            others = [at for at in range(len(folds)) if at != this]
            values = np.concatenate([grades[at] for at in others]) if others else np.empty(0)
            rows = np.concatenate([folds[at][1] for at in others]) if others else np.empty(0, np.int64)
            fitted = fit_thresholds(values, self.labels[rows], self.groups[rows], num_classes=number, search=False)
            decided[out] = np.digitize(grades[this], fitted)
        return decided[self.judged]

    def _mean_score(self, decisions: Ints) -> float | None:
        truth, metric = self.labels[self.judged], self.record.job.metric
        points = [score(metric, truth, classes) for classes in decisions]
        known = [point for point in points if point is not None]
        return float(np.mean(known)) if known else None

    def table(self, judged: Sequence[Judged]) -> tuple[Trial, ...]:
        """Return the scores of candidates and how far each is behind the best, with standard errors."""
        metric, truth, groups = self.record.job.metric, self.labels[self.judged], self.groups[self.judged]
        points = [self._mean_score(one.classes) for one in judged]
        decisions = [classes for one in judged for classes in one.classes]
        every = bootstrap_scores(metric, truth, decisions, groups, seed=self.record.job.seed)
        ends = np.cumsum([len(one.classes) for one in judged])[:-1]
        drawn = np.stack([times.mean(axis=1) for times in np.split(every, ends, axis=1)], axis=1)
        known = [-np.inf if point is None else point for point in points]
        best = int(np.argmax(known))
        return tuple(
            Trial(
                name=one.candidate.name,
                after=one.candidate.job.head.after,
                cut=one.candidate.job.phase[-1].cut,
                fit=str(one.candidate.job.phase[0].fit),
                score=point,
                standard_error=_deviation(own),
                num_images=len(truth),
                behind=None if point is None else known[best] - point,
                behind_error=_deviation(drawn[:, best] - own),
                seconds=one.seconds,
            )
            for one, point, own in zip(judged, points, drawn.T, strict=True)
        )


def _size(folds: Folds) -> int:
    return sum(len(out) for _, out in folds)


def _deviation(values: npt.NDArray[np.float64]) -> float:
    return float(np.nan_to_num(np.nanstd(values))) if np.isfinite(values).any() else 0.0


class Memory:
    """A folder with one file per result, which rank 0 reads and writes; all ranks must call together."""

    def __init__(self, folder: Path, world: World) -> None:
        self._folder, self._world = folder, world

    def recall(self, key: object) -> Finding | None:
        """Return the result of an earlier attempt, if there is one."""
        found: list[Finding | None] = [None]
        file = self._file(key)
        if self._world.is_main and file.exists():
            with np.load(file, allow_pickle=False) as data:
                found = [(data["found"], float(data["seconds"]))]
        broadcast_object_list(found)
        return found[0]

    def keep(self, key: object, found: npt.NDArray[Any], seconds: float) -> Finding:
        """Save a result, with the seconds that rank 0 measured."""
        if self._world.is_main:
            with atomic_file(self._file(key)) as file:
                np.savez(file, found=found, seconds=np.array(seconds))
        (seen,) = broadcast_object_list([seconds])
        return found, seen

    def _file(self, key: object) -> Path:
        return self._folder / f"{digest_of(key)[:16]}.npz"
