"""What reduce costs: merging the parts of many predictions, writing them, and the intervals of all scores.

    python tests/bench/bench_reduce.py [MILLIONS]

Merges so many million predictions of 5 classes from 8 parts in random order (10 unless told), writes the first million
as predictions.csv, scores all, and sets the intervals of 3,660 images in 1,830 groups beside a loop over scikit-learn.
Prints seconds and the most memory.
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, cohen_kappa_score

from tlbatch.evaluation.prediction_parts import Part, Width, merge_parts, write_part
from tlbatch.evaluation.predictions import Predictions, write_predictions
from tlbatch.metrics.bootstrap import REPLICATES
from tlbatch.metrics.confusion import Classified, score_with_intervals

PARTS, CLASSES, ROUNDS = 8, 5, 5


def drawn(num: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that are right more often than not."""
    rng = np.random.default_rng(0)
    y_true = rng.integers(0, CLASSES, num)
    probabilities = rng.random((num, CLASSES), np.float32)
    probabilities[np.arange(num), y_true] += 0.5
    return y_true, probabilities / probabilities.sum(axis=1, keepdims=True)


def merge(folder: Path, num: int) -> None:
    """Merge, write and score."""
    y_true, probabilities = drawn(num)
    keys = np.char.add(b"eye", np.arange(num).astype(np.bytes_))
    header = {"run": "bench"}
    order = np.random.default_rng(1).permutation(num)
    for rank in range(PARTS):
        rows = order[rank::PARTS]
        part = Part.of_classes(rows, probabilities[rows], np.full(len(rows), np.nan, np.float32), {})
        write_part(folder, part, header)
    del order, probabilities
    start = time.perf_counter()
    merged = merge_parts(folder, header, np.arange(num), keys=keys, width=Width(CLASSES))
    print(f"merge {num / 1e6:g} million: {time.perf_counter() - start:.1f} s, {memory()}")
    some = np.arange(min(num, 1_000_000))
    found = Predictions(
        keys[some], keys[some], np.full(len(some), 2), np.full(len(some), "", np.object_), tuple("01234"), y_true[some],
        merged.probabilities[some],
    )  # fmt: skip
    start = time.perf_counter()
    write_predictions(folder / "predictions.csv", found)
    print(f"write {len(some) / 1e6:g} million: {time.perf_counter() - start:.1f} s, {memory()}")
    del found
    start = time.perf_counter()
    y_pred = merged.probabilities.argmax(axis=1)
    score_with_intervals(Classified(y_true, y_pred, np.arange(num) // 2, CLASSES), seed=0)
    print(f"all scores of {num / 1e6:g} million in pairs: {time.perf_counter() - start:.1f} s, {memory()}")


def memory() -> str:
    """The most that this process held so far."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most"


def intervals() -> None:
    """All scores at once, beside two of them in a loop."""
    y_true, probabilities = drawn(3660)
    y_pred, groups = probabilities.argmax(axis=1), np.arange(3660) // 2
    ours, theirs = [], []
    for seed in range(ROUNDS):
        start = time.perf_counter()
        score_with_intervals(Classified(y_true, y_pred, groups, CLASSES), seed=seed)
        ours.append(time.perf_counter() - start)
        start, rng = time.perf_counter(), np.random.default_rng(seed)
        for _ in range(20):
            images = (2 * rng.integers(0, 1830, 1830)[:, None] + np.arange(2)).ravel()
            cohen_kappa_score(y_true[images], y_pred[images], labels=range(CLASSES), weights="quadratic")
            accuracy_score(y_true[images], y_pred[images])
        theirs.append((time.perf_counter() - start) * REPLICATES / 20)
    ratios = np.array(theirs) / ours
    print(
        f"{REPLICATES} draws of 3660 images in 1830 groups: all scores {np.median(ours):.2f} s, kappa and accuracy in "
        f"a loop {np.median(theirs):.1f} s: {np.median(ratios):.0f} times ({ratios.min():.0f} to {ratios.max():.0f})"
    )


if __name__ == "__main__":
    intervals()
    with tempfile.TemporaryDirectory() as name:
        merge(Path(name), int(float(sys.argv[1] if sys.argv[1:] else 10) * 1e6))
