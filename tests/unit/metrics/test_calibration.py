import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from tlbatch.metrics.calibration import calibrate, evaluate_temperature, fit_temperature, reliability, tempered


def simulated(temperature: float, *, n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are too sure of themselves by a temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4)) * 1.5
    y_true = np.array([rng.choice(4, p=row) for row in softmax(logits, axis=1)])
    return softmax(logits * temperature, axis=1), y_true


def test_the_temperature_that_was_put_in_is_found_and_mends_the_probabilities() -> None:
    probabilities, y_true = simulated(2.5)
    assert fit_temperature(probabilities, y_true) == pytest.approx(2.5, rel=0.08)
    fitted = evaluate_temperature(probabilities, y_true, np.arange(len(y_true)), images="images")
    assert fitted[1]
    others, labels = simulated(2.5, seed=1)
    found = calibrate(others, labels, np.arange(len(labels)), fitted, seed=0)
    assert found is not None
    assert found.after is not None
    assert (found.before.ece.value or 0) > 0.1
    assert (found.after.ece.high or 1) < 0.05
    assert (found.after.log_loss.value or 9) < (found.before.log_loss.value or 0)
    assert (tempered(others, 2.5).argmax(axis=1) == others.argmax(axis=1)).all()


def test_a_temperature_that_does_not_gain_on_unseen_images_is_not_kept() -> None:
    kept = [evaluate_temperature(*simulated(1.0, n=80, seed=seed), np.arange(80), images="x")[1] for seed in range(20)]
    assert sum(kept) < 12
    temperature, kept_one, why = evaluate_temperature(*simulated(1.0, n=40), np.arange(40), images="validation images")
    assert (temperature, kept_one) == (None, False)
    assert "40 groups of validation images, fewer than the 50" in why


def test_losses_are_those_of_scikit_learn_and_bins_add_up() -> None:
    probabilities, y_true = simulated(1.3, n=500)
    found = reliability(probabilities, y_true, np.arange(500) // 2, seed=0)
    assert found.log_loss.value == pytest.approx(log_loss(y_true, probabilities))
    onehot = np.eye(4)[y_true]
    assert found.brier.value == pytest.approx(((probabilities - onehot) ** 2).sum(axis=1).mean())
    assert sum(one.n for one in found.bins) == 500
    gaps = [one.n / 500 * abs(one.confidence - (one.accuracy.value or 0)) for one in found.bins]
    assert found.ece.value == pytest.approx(sum(gaps))
    for score in (found.log_loss, found.brier, found.ece):
        assert score.low is not None
        assert score.high is not None
        assert score.low < (score.value or 0) < score.high


def test_a_certain_mistake_costs_much_and_not_endlessly() -> None:
    found = reliability(np.array([[1.0, 0], [0.5, 0.5]]), np.array([1, 0]), np.arange(2), seed=0)
    assert found.log_loss.value is not None
    assert 15 < found.log_loss.value < 20


def test_without_test_images_there_is_no_calibration() -> None:
    assert calibrate(np.empty((0, 3)), np.empty(0, np.int64), np.empty(0, np.int64), (None, False, ""), seed=0) is None
