"""Phases from cached activations beside the same phases without, on real photographs, in turn in one process.

    python tests/bench/bench_cache.py PATH/flowers17 [frozen] [tuned]

frozen: 25 epochs with all frozen, in one view, in one random view of four, and in all four views of every image: all
that cache and train do, against 25 times one epoch without the cache, its steps and its validation. tuned: the
steps of an epoch of the last third from the cached cut, from the images, and of the whole network. Medians of three
rounds, with the least and the largest ratio.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tlbatch import cache, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.distributed.process_group import keep_freed_memory
from tlbatch.runs.paths import RunPaths

ROUNDS, EPOCHS = 3, 25
JOB = Path(__file__).parents[2] / "jobs" / "flowers17.toml"
FROZEN = "phase=[{{cut='pool', epochs={epochs}, optimizer={{lr=1e-2}}}}]"
TUNED = "phase=[{{cut='{cut}', epochs=1, optimizer={{lr=1e-3, backbone_lr=3e-4}}}}]"


def prepared(images: Path, space: Path, *overrides: str) -> RunPaths:
    """A run whose set is sharded; a hundredth of the images tests, so that the phase is all there is."""
    where = [
        f"data.images={images}",
        f"workspace={space}",
        "data.split.test=0.01",
        "data.split.val=0.1",
        "data.resize=256",
        "model.size=224",
        "head={}",
        "train.crop_scale=1",
        "train.random_views=0",
        "figures=false",
    ]
    paths = make_run(resolve(load_job([JOB], [*where, *overrides, f"run=r{time.time_ns()}"]))).paths
    shard.run(paths.folder)
    return paths


class Timed(NamedTuple):
    """What a run took, in seconds, and how well it did."""

    whole: float
    """Cache and train."""
    steps: float
    """Of the first epoch."""
    judging: float
    """Its validation."""
    score: float


def timed(paths: RunPaths) -> Timed:
    """Run cache and train."""
    start = time.perf_counter()
    cache.run(paths.folder)
    train.run(paths.folder)
    end = time.perf_counter()
    lines = [json.loads(line) for line in paths.metrics.read_text("utf-8").splitlines()]
    score = max(line["val_accuracy"] for line in lines)
    return Timed(end - start, lines[0]["seconds"], lines[0]["val_seconds"], score)


def ratio(name: str, ours: list[float], theirs: list[float], goal: float) -> None:
    """Print a row."""
    found = [their / our for our, their in zip(ours, theirs, strict=True)]
    middle = statistics.median(found)
    print(
        f"{name:<58}{statistics.median(ours):>8.1f} s {statistics.median(theirs):>8.1f} s {middle:>7.1f}"
        f"  {min(found):.1f} to {max(found):.1f}  goal {goal:g} {'reached' if middle >= goal else 'MISSED'}",
        flush=True,
    )


def bench_frozen(images: Path, space: Path) -> None:
    """25 frozen epochs."""
    ways = {
        "one view": (["train.augment=none"], 20.0),
        "one random view of four": (["train.augment=rot4"], 5.0),
        "all four views": (["train.augment=rot4", "train.every_view=true"], 20.0),
    }
    for name, (views, goal) in ways.items():
        ours, theirs = [], []
        for _ in range(ROUNDS):
            shutil.rmtree(space / "cache", ignore_errors=True)
            cached = timed(prepared(images, space, *views, FROZEN.format(epochs=EPOCHS)))
            ours.append(cached.whole)
            plain = timed(prepared(images, space, *views, FROZEN.format(epochs=1), "cache.enabled=false"))
            theirs.append(EPOCHS * (plain.steps + plain.judging))
        ratio(f"25 frozen epochs, {name} (validation {cached.score:.3f})", ours, theirs, goal)


def bench_tuned(images: Path, space: Path) -> None:
    """An epoch of fine-tuning."""
    ours, uncached, whole = [], [], []
    for _ in range(ROUNDS):
        for cut, enabled, found in (
            ("blocks.4", "true", ours),
            ("blocks.4", "false", uncached),
            ("none", "false", whole),
        ):
            how = ["train.augment=flip", TUNED.format(cut=cut), f"cache.enabled={enabled}"]
            one = timed(prepared(images, space, *how))
            found.append(one.steps)
            print(f"  {cut} cache {enabled}: {one.steps:.1f} s, validation {one.score:.3f}", flush=True)
    ratio("an epoch of the last third from the cached cut: without cache", ours, uncached, 2)
    ratio("an epoch of the last third from the cached cut: whole network", ours, whole, 5)


def main() -> None:
    """Run what is asked for."""
    images, *names = sys.argv[1:]
    keep_freed_memory()
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    with tempfile.TemporaryDirectory() as folder:
        for name, bench in (("frozen", bench_frozen), ("tuned", bench_tuned)):
            if not names or name in names:
                bench(Path(images).absolute(), Path(folder))


if __name__ == "__main__":
    main()
