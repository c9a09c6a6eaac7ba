"""Heads fitted by scikit-learn give as torch modules what scikit-learn says, and choose sensible penalties."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from torch import nn

from tlbatch.config.training import Fit
from tlbatch.core.errors import UserError
from tlbatch.model.fitted_head import FittedHead, Vectors, best_of
from tlbatch.model.heads import head_like
from tlbatch.model.sklearn_heads import fit_head

KINDS = ["logistic", "ridge", "kernel-ridge", "svm", "kernel-logistic", "kernel-svm", "neighbours"]


def vectors(n: int = 120, classes: int = 3, *, ring: bool = False, ordered: bool = False) -> Vectors:
    """Clouds a class; with ``ring`` the last class lies around the others, where no plane parts it."""
    generator = np.random.default_rng(0)
    labels = np.arange(n) % classes
    features = generator.normal(0, 1, (n, 6)) * [1, 1, 1, 1, 4, 1]
    features[:, 0] += 4 * labels
    if ring:
        angle = generator.uniform(0, 2 * np.pi, n)
        radius = np.where(labels == classes - 1, 8.0, 1.0)
        features = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) + generator.normal(0, 0.4, (n, 2))
    return Vectors(features, labels, np.array([f"g{number // 2}" for number in range(n)]), classes, ordered)


def chosen(fitted: FittedHead, features: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        outputs = fitted.head(torch.from_numpy(features).float()).numpy()
    return np.rint(outputs[:, 0]).clip(0, 2) if outputs.shape[1] == 1 else outputs.argmax(1)


@pytest.mark.parametrize(
    ("kind", "ordered"), [*((kind, False) for kind in KINDS), ("ridge", True), ("kernel-ridge", True)]
)
def test_every_kind_tells_clouds_apart_on_vectors_it_has_not_seen(kind: str, *, ordered: bool) -> None:
    given = vectors(ordered=ordered)
    fitted = fit_head(kind, given, seed=0)
    least = 0.7 if kind == "ridge" and not ordered else 0.9  # its planes mask the class in the middle
    assert (chosen(fitted, given.features) == given.labels).mean() > least
    unseen = fitted.outputs
    guesses = np.rint(unseen[:, 0]) if ordered else unseen.argmax(1)
    assert sorted(fitted.scored) == list(range(120))
    assert (guesses == given.labels[fitted.scored]).mean() > 0.7


@pytest.mark.parametrize("kind", ["kernel-logistic", "kernel-ridge", "kernel-svm"])
def test_equal_vectors_do_not_make_a_kernel_blow_up_what_is_rounding(kind: Fit) -> None:
    given = vectors(ring=True)
    given.features[1::2] = given.features[::2]  # a copy of each, in its group
    head = fit_head(kind, given, seed=0).head
    seen = torch.from_numpy(given.features).float()
    with torch.inference_mode():
        plain, nudged = head(seen).softmax(1), head(seen * (1 + 1e-6)).softmax(1)
    assert (plain - nudged).abs().max() < 1e-3


def test_a_channel_that_is_dead_in_most_images_does_not_outweigh_the_others() -> None:
    given = vectors(ordered=True)
    generator = np.random.default_rng(1)
    dead = np.where(generator.random((120, 40)) < 0.02, generator.uniform(0, 1e-3, (120, 40)), 0)
    fitted = fit_head("ridge", replace(given, features=np.hstack([given.features, dead])), seed=0)
    plain = fit_head("ridge", given, seed=0)
    assert min(fitted.scores.values()) < 1.1 * min(plain.scores.values())


def test_a_class_in_one_image_does_not_blur_the_probabilities_of_the_others() -> None:
    few = vectors(120, 2)
    given = Vectors(few.features, np.where(np.arange(120) == 7, 2, few.labels), few.groups, 3)
    given.features[7, 1] = 30
    fitted = fit_head("svm", given, seed=0)
    with torch.inference_mode():
        sure = fitted.head(torch.from_numpy(given.features).float()).softmax(1).max(1).values.mean()
    assert sure > 0.85
    assert min(fitted.scores.values()) < 0.5


def test_a_class_in_one_group_is_judged_where_two_classes_are_left_or_refused() -> None:
    given = vectors(60, 2)
    one = Vectors(given.features, given.labels, np.where(given.labels == 1, "a", given.groups), 2)
    fitted = fit_head("logistic", one, seed=0)
    assert set(given.labels[fitted.scored]) == {0}
    halves = Vectors(given.features, given.labels, np.where(given.labels == 1, "a", "b"), 2)
    with pytest.raises(UserError, match="all training images of a class are in one group"):
        fit_head("logistic", halves, seed=0)


@pytest.mark.parametrize(
    ("kind", "reference"),
    [("logistic", lambda c: LogisticRegression(C=c, max_iter=300)), ("ridge", lambda c: Ridge(alpha=c)),
     ("svm", lambda c: LinearSVC(C=c, dual="auto", random_state=0)), ("neighbours", KNeighborsClassifier)],
)  # fmt: skip
def test_the_module_decides_as_scikit_learn_with_the_penalty_chosen(kind: str, reference: object) -> None:
    given = vectors(ordered=kind == "ridge")
    fitted = fit_head(kind, given, seed=0)
    best = best_of(fitted.scores)
    penalty = int(best) if kind == "neighbours" else float(best)
    own = make_pipeline(StandardScaler(), reference(penalty)).fit(given.features, given.labels)  # type: ignore[operator]
    theirs = own.predict(given.features)
    if kind == "ridge":
        with torch.no_grad():
            outputs = fitted.head(torch.from_numpy(given.features).float())[:, 0].numpy()
        assert np.allclose(outputs, theirs, atol=1e-3)
    else:
        assert (chosen(fitted, given.features) == theirs).mean() > 0.99


def test_a_kernel_bends_where_a_plane_cannot_and_agrees_with_a_support_vector_machine() -> None:
    given = vectors(classes=2, ring=True)
    scores = {
        kind: (chosen(fit_head(kind, given, seed=0), given.features) == given.labels).mean()
        for kind in ("logistic", "svm", "kernel-logistic", "kernel-svm", "kernel-ridge")
    }
    assert max(scores["logistic"], scores["svm"]) < 0.7
    assert min(scores["kernel-logistic"], scores["kernel-svm"], scores["kernel-ridge"]) == 1
    own = make_pipeline(StandardScaler(), SVC()).fit(given.features, given.labels)
    assert (own.predict(given.features) == given.labels).all()


@pytest.mark.parametrize("kind", ["svm", "ridge", "logistic", "kernel-logistic"])
def test_outputs_are_log_probabilities_that_fit_their_errors(kind: str) -> None:
    given = vectors(400)
    noisy = Vectors(given.features + np.random.default_rng(1).normal(0, 2, given.features.shape) * [1, 0, 0, 0, 0, 0],
                    given.labels, given.groups, 3)  # fmt: skip
    fitted = fit_head(kind, noisy, seed=0)
    confidence = torch.from_numpy(fitted.outputs).softmax(1).max(1).values.mean()
    accuracy = (fitted.outputs.argmax(1) == noisy.labels[fitted.scored]).mean()
    assert float(confidence) == pytest.approx(accuracy, abs=0.05)


def test_groups_are_never_on_both_sides_of_a_fold() -> None:
    """Noise whose label is that of its group: who splits groups believes it can be learned."""
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(20), 6)
    features = generator.normal(0, 1, (20, 5))[groups] + generator.normal(0, 0.01, (120, 5))
    labels = generator.permutation(np.arange(20) % 2)[groups]
    honest = fit_head("kernel-logistic", Vectors(features, labels, groups, 2), seed=0)
    leaky = fit_head("kernel-logistic", Vectors(features, labels, np.arange(120), 2), seed=0)
    assert min(honest.scores.values()) > 0.5
    assert min(leaky.scores.values()) < 0.2


def test_a_class_without_training_vectors_is_never_chosen_and_one_group_is_refused() -> None:
    given = vectors()
    wider = Vectors(given.features, given.labels, given.groups, 5)
    for kind in ("logistic", "kernel-svm", "neighbours"):
        assert set(chosen(fit_head(kind, wider, seed=0), given.features)) <= {0, 1, 2}
    with pytest.raises(UserError, match="all training images are in one group"):
        fit_head("logistic", Vectors(given.features, given.labels, np.zeros(120), 3), seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_fitted_head_back(kind: str) -> None:
    given = vectors()
    fitted = fit_head(kind, given, seed=0)
    tensors = {f"head.{key}": value for key, value in fitted.head.state_dict().items()}
    head = head_like(tensors, nn.Sequential(nn.Linear(6, 3)))
    head.load_state_dict(fitted.head.state_dict())
    inputs = torch.randn(5, 6)
    assert torch.equal(head(inputs), fitted.head(inputs))
