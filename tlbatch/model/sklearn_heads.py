"""Heads that scikit-learn fits in one step on cached vectors, as torch modules."""

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import pdist
from sklearn.exceptions import ConvergenceWarning
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.functional import cross_entropy

from tlbatch.config.training import Fit
from tlbatch.core.typing import Floats
from tlbatch.model.fitted_head import FittedHead, Vectors, best_of
from tlbatch.model.folds import folds_to_score
from tlbatch.model.heads import KernelMap, Neighbours

_MOST_POINTS = 2000
_GAMMAS = (0.3, 1.0)
"""Gammas of the radial basis functions, in units of the inverse median squared distance between vectors."""
_LEAST_SPREAD = 0.3
"""Least standard deviation of a column, relative to the mean of all columns."""
_LEAST_EIGENVALUE = 1e-4
"""Least eigenvalue that is kept of the kernel between points, whose diagonal is 1."""
_SMALL = 10_000_000
"""Number of values below which one thread is faster than several."""
_PENALTIES: dict[Fit, tuple[float, ...]] = {
    "logistic": (1e-4, 1e-3, 1e-2, 1e-1, 1, 10),
    "kernel-logistic": (0.1, 0.3, 1, 3, 10, 30, 100),
    "svm": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1),
    "kernel-svm": (0.01, 0.1, 1, 10, 100),
    "ridge": (1, 10, 100, 1e3, 1e4, 1e5),
    "kernel-ridge": (1e-4, 1e-3, 1e-2, 1e-1, 1, 10),
    "neighbours": (1, 3, 5, 10, 20, 50),
}
"""Inverse strengths of the penalty (for ridge: strengths; for neighbours: their number)."""


def fit_head(kind: Fit, vectors: Vectors, *, seed: int) -> FittedHead:
    """Choose the penalty by cross-validation over groups, and fit on all vectors.

    Penalties are compared by the log loss; those of a ridge on grades by the squared error. Scores of an SVM, and of a
    ridge on classes, become log probabilities by a single temperature, fitted on out-of-fold outputs. Raises UserError
    if there are too few groups for two folds.
    """
    with threadpool_limits(1 if vectors.features.size < _SMALL else None):
        return _fit_head(kind, vectors, seed)


def _fit_head(kind: Fit, vectors: Vectors, seed: int) -> FittedHead:
    penalties, folds = _PENALTIES[kind], folds_to_score(vectors.labels, vectors.groups, seed)
    gammas = _GAMMAS if kind.startswith("kernel") else (1.0,)
    scored = np.concatenate([out for _, out in folds])
    parts: dict[tuple[float, float], list[npt.NDArray[np.float32]]] = defaultdict(list)
    for into, out in folds:
        for gamma in gammas:
            for penalty, model in _path(kind, vectors.chosen(into), penalties, gamma, seed):
                parts[penalty, gamma].append(model(vectors.features[out]))
    out_of_fold = {setting: np.concatenate(outputs) for setting, outputs in parts.items()}
    fair = np.concatenate([np.isin(vectors.labels[out], vectors.labels[into]) for into, out in folds])
    truth = vectors.chosen(scored[fair])  # only classes that the fold was fitted on
    heats = {setting: _temperature(kind, outputs[fair], truth) for setting, outputs in out_of_fold.items()}
    losses = {
        setting: _loss(outputs[fair] * np.float32(heat), truth)
        for (setting, heat), outputs in zip(heats.items(), out_of_fold.values(), strict=True)
    }
    best = best_of(losses)
    ((_, model),) = _path(kind, vectors, best[:1], best[1], seed)
    named = {f"{one:g} at {gamma:g}" if len(gammas) > 1 else f"{one:g}": loss for (one, gamma), loss in losses.items()}
    return FittedHead(model.module(heats[best]), out_of_fold[best] * np.float32(heats[best]), scored, named)


class _Model:
    """A scaler, an optional kernel map, and an estimator."""

    def __init__(self, scaler: StandardScaler, kernel: Nystroem | None, estimator: Any, num_classes: int) -> None:  # noqa: ANN401 (scikit-learn has no types)
        self._scaler, self._kernel, self._estimator, self._num_classes = scaler, kernel, estimator, num_classes

    def __call__(self, features: Floats) -> npt.NDArray[np.float32]:
        """Return the outputs of the head, (n, num_outputs)."""
        with torch.inference_mode():
            outputs: npt.NDArray[np.float32] = self.module(1.0)(torch.from_numpy(features).float()).numpy()
        return outputs

    def module(self, heat: float) -> nn.Sequential:
        """Return the model as a torch module, its outputs multiplied by ``heat``."""
        scaler, estimator = self._scaler, self._estimator
        if isinstance(estimator, KNeighborsClassifier):
            points = estimator._fit_X  # noqa: SLF001 (its training vectors have no public name)
            found = Neighbours(*points.shape, num_classes=self._num_classes)
            _fill(found, mean=scaler.mean_, scale=scaler.scale_, points=points, number=estimator.n_neighbors)
            _fill(found, classes=np.eye(self._num_classes)[estimator.classes_[estimator._y]])  # noqa: SLF001
            return nn.Sequential(found)
        weight, bias = _rows(estimator, self._num_classes)
        if self._kernel is None:
            weight = weight / scaler.scale_
            return nn.Sequential(_linear(weight * heat, (bias - weight @ scaler.mean_) * heat))
        points = self._kernel.components_
        kernel = KernelMap(*points.shape)
        _fill(kernel, mean=scaler.mean_, scale=scaler.scale_, points=points, gamma=self._kernel.gamma)
        _fill(kernel, whitening=self._kernel.normalization_)
        return nn.Sequential(kernel, _linear(weight * heat, bias * heat))


def _path(
    kind: Fit, vectors: Vectors, penalties: Sequence[float], gamma: float, seed: int
) -> Iterator[tuple[float, _Model]]:
    """Yield models along the penalties, warm-started from the one before; use each before asking for the next."""
    scaler = _scaler(vectors.features)
    inputs: Floats = scaler.transform(vectors.features)
    kernel = None
    if kind.startswith("kernel"):
        some = inputs[np.random.default_rng(seed).permutation(len(inputs))[:_MOST_POINTS]]
        gamma /= float(np.median(pdist(some[:500], "sqeuclidean"))) or 1
        kernel = _stable(Nystroem(gamma=gamma, n_components=len(some), random_state=seed).fit(some))
        inputs = kernel.transform(inputs)
    estimator = _estimator(kind, len(inputs))
    name = {"neighbours": "n_neighbors", "ridge": "alpha", "kernel-ridge": "alpha"}.get(kind, "C")
    wanted = vectors.columns if kind.endswith("ridge") else vectors.labels
    # At the ends of the grid an estimator may not converge; its loss decides.
    with warnings.catch_warnings(action="ignore", category=ConvergenceWarning):
        for penalty in penalties:
            estimator.set_params(**{name: min(int(penalty), len(inputs)) if kind == "neighbours" else penalty})
            yield penalty, _Model(scaler, kernel, estimator.fit(inputs, wanted), vectors.num_classes)


def _stable(kernel: Nystroem) -> Nystroem:
    """Drop directions with tiny eigenvalues, as from equal points, where whitening would amplify rounding errors."""
    values, directions = np.linalg.eigh(rbf_kernel(kernel.components_, gamma=kernel.gamma))
    kept = values > _LEAST_EIGENVALUE
    kernel.normalization_ = (directions[:, kept] / np.sqrt(values[kept])) @ directions[:, kept].T
    return kernel


def _scaler(features: Floats) -> StandardScaler:
    """Return a scaler to mean 0 and deviation 1, except for columns that hardly vary.

    Otherwise a channel that is zero in all but a few images would outweigh all others in those.
    """
    scaler = StandardScaler().fit(features)
    scaler.scale_ = np.maximum(scaler.scale_, _LEAST_SPREAD * np.sqrt(scaler.var_).mean())
    return scaler


def _estimator(kind: Fit, num_vectors: int) -> Any:  # noqa: ANN401 (scikit-learn has no types)
    match kind:
        case "logistic" | "kernel-logistic":
            return LogisticRegression(max_iter=300, tol=1e-5, warm_start=True)
        case "svm":  # ten times faster than "auto" on 3,000 vectors of 1,860 numbers, with the same scores
            return LinearSVC(dual=True, tol=1e-3, max_iter=100, random_state=0)
        case "kernel-svm":
            return LinearSVC(dual="auto", random_state=0)
        case "ridge" | "kernel-ridge":
            return Ridge()
        case "neighbours":
            return KNeighborsClassifier(min(5, num_vectors))


def _rows(estimator: Any, num_classes: int) -> tuple[Floats, Floats]:  # noqa: ANN401 (scikit-learn has no types)
    """Return weights and biases, a row per output; a class that was not fitted gets zero probability."""
    weight, bias = np.atleast_2d(estimator.coef_), np.atleast_1d(estimator.intercept_)
    if isinstance(estimator, Ridge):
        return weight, bias
    if len(weight) == 1:  # two classes: the score of the second
        weight, bias = np.vstack([0 * weight, weight]), np.append(0 * bias, bias)
    every = np.zeros((num_classes, weight.shape[1])), np.full(num_classes, -1e4)
    every[0][estimator.classes_], every[1][estimator.classes_] = weight, bias
    return every


def _temperature(kind: Fit, outputs: npt.NDArray[np.float32], vectors: Vectors) -> float:
    if not kind.endswith(("svm", "ridge")) or vectors.ordered:
        return 1.0
    heats = np.geomspace(0.05, 50, 61)
    return float(min(heats, key=lambda heat: _loss(outputs * np.float32(heat), vectors)))


def _loss(outputs: npt.NDArray[np.float32], vectors: Vectors) -> float:
    if vectors.ordered:
        return float(((outputs[:, 0] - vectors.labels) ** 2).mean())
    return float(cross_entropy(torch.from_numpy(outputs), torch.from_numpy(vectors.labels)))


def _linear(weight: Floats, bias: Floats) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.load_state_dict({"weight": torch.from_numpy(weight).float(), "bias": torch.from_numpy(bias).float()})
    return layer


def _fill(module: nn.Module, **values: object) -> None:
    for name, value in values.items():
        buffer = module.get_buffer(name)
        buffer.copy_(torch.as_tensor(np.asarray(value), dtype=buffer.dtype))
