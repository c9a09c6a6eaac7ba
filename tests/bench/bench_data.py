"""The data plane beside the usual ways to do the same, measured in turn in one process.

    pip install opencv-python-headless       # for one of the rows of shard
    python tests/bench/bench_data.py [shard] [write] [train] [predict] [read] [seek] [mix]

Prints: what | ours | other | ratio | goal | reached or missed. Times are microseconds of CPU an image, and in brackets
of wall time. A ratio says how many times ours is faster: the median of five rounds, the least and the largest, and in
brackets the median for wall time. Images are drawn into a temporary folder. One thread a process.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from bench_shard import Way, bench_shard, bench_write, compare, show, written
from torch.utils.data import ConcatDataset, DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tlbatch import shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.data.dataset import SampleBatch, SplitDataset
from tlbatch.data.image_set import ImageSet, open_images
from tlbatch.data.index import new_index, read_index, split_rows, write_index
from tlbatch.data.loader import load
from tlbatch.data.sampler import EpochOrder, Positions, SamplerState, prediction_batches, training_batches
from tlbatch.data.views import Samples, Views
from tlbatch.distributed.process_group import keep_freed_memory
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.runs.run import Run

BATCH = 64
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def medium(space: Path) -> tuple[Path, list[Path], ImageSet]:
    """512 px images in class folders, and the set made of them by the shard stage, six shards."""
    folder = space / "medium"
    if not folder.exists():
        written(folder, 600, (512, 512), 90, 2.9, 0.15)
    job = Path(__file__).parents[1] / "tiny.toml"
    more = [f"data.images={folder}", f"workspace={space}", "data.resize=512", "data.shard_images=100"]
    more += ["data.audit=warn", "data.split.test=0.01", "data.split.val=0", f"run=r{time.time_ns()}"]
    run = make_run(resolve(load_job([job], more))).paths
    shard.run(run.folder)
    return folder, sorted(folder.rglob("*.jpg")), open_images(Run.load(run.folder))


def reader(images: ImageSet, views: Views, *, strict: bool = True) -> SplitDataset:
    rows = images.rows("train")
    return SplitDataset(images, rows, Samples(len(rows), views), strict=strict)


def batches_of(num_images: int, num_epochs: int) -> Iterable[Positions]:
    epochs = (SamplerState(0, epoch, 0) for epoch in range(num_epochs))
    found = (training_batches(state, num_images, batch_size=BATCH, rank=0, world_size=1) for state in epochs)
    return (share for _, share in chain.from_iterable(found))


def bench_train(space: Path) -> None:
    """512 px images to batches of crops of 224 px; with workers three epochs, so that their start weighs less."""
    folder, _, images = medium(space)
    crop = transforms.RandomResizedCrop(224, scale=(0.25, 1))
    steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(MEAN, DEVIATION)]
    classic = transforms.Compose(steps)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) * 255 for values in (MEAN, DEVIATION))

    def consumed(batches: Iterable[tuple[torch.Tensor, ...]]) -> int:
        return sum(len(batch[0]) for batch in batches)

    def normalised(batch: SampleBatch) -> tuple[torch.Tensor, ...]:
        pixels = apply_symmetries(batch.inputs, batch.symmetry).permute(0, 3, 1, 2).float()
        return (pixels.sub_(mean).div_(deviation),)

    def ours(workers: int, epochs: int) -> Iterable[SampleBatch]:
        dataset = reader(images, Views(224, "flip", crop_scale=0.25))
        return load(dataset, batches_of(len(dataset), epochs), workers=workers)

    def folders(workers: int, epochs: int) -> Way:
        dataset = ConcatDataset([ImageFolder(str(folder), classic)] * epochs)
        return lambda: consumed(DataLoader(dataset, BATCH, shuffle=True, num_workers=workers))

    def usual(workers: int, epochs: int) -> Way:
        def way() -> int:
            tars = [str(path) for path in images.shards] * epochs
            found = webdataset.WebDataset(tars, shardshuffle=100, seed=0).shuffle(1000).decode("pil")
            found = found.to_tuple("jpg", "cls").map_tuple(classic, lambda label: label).batched(BATCH)
            return consumed(DataLoader(found, batch_size=None, num_workers=workers))

        return way

    for workers, epochs in ((0, 1), (2, 3)):
        compare(
            f"train 512 to 224, {workers} workers",
            lambda these=(workers, epochs): consumed(ours(*these)),
            {
                "ImageFolder": (folders(workers, epochs), 2.0),
                "webdataset": (usual(workers, epochs), 2.0),
                "ours, mirrored and normalised": (
                    lambda these=(workers, epochs): consumed(map(normalised, ours(*these))), None,
                ),
            },
        )  # fmt: skip


def bench_predict(space: Path) -> None:
    """512 px images to batches of their squares of 224 px."""
    _, paths, images = medium(space)
    data = [path.read_bytes() for path in paths]
    full, half = np.empty((512, 512, 3), np.uint8), np.empty((256, 256, 3), np.uint8)

    def ours() -> int:
        dataset = reader(images, Views(224), strict=False)
        batches = prediction_batches(len(dataset), batch_size=BATCH, rank=0, world_size=1)
        return sum(len(batch.inputs) for batch in load(dataset, batches, workers=0))

    def bare() -> int:
        for one in data:
            simplejpeg.decode_jpeg(one, "RGB", buffer=full)
        return len(data)

    def bare_half() -> int:
        for one in data:
            simplejpeg.decode_jpeg(one, "RGB", min_height=256, min_width=256, buffer=half)
        return len(data)

    compare("predict 512 to 224", ours, {"bare decode": (bare, 0.9), "bare decode at 1/2": (bare_half, None)})


def bench_read(space: Path) -> None:
    """The bytes of 512 px images in training order, from the page cache."""
    _, _, images = medium(space)
    shards, num_images, epochs = [str(path) for path in images.shards], len(images.index), 20

    def ours() -> int:
        dataset = reader(images, Views(224))
        return sum(
            1 for batch in batches_of(len(dataset), epochs) for row in dataset._look_up(batch) if dataset.read(row)
        )

    def usual() -> int:
        return sum(1 for _ in webdataset.WebDataset(shards * 3, shardshuffle=False))

    def cat() -> int:
        subprocess.run(["cat", *shards * epochs], stdout=subprocess.DEVNULL, check=True)
        return epochs * num_images

    def in_blocks() -> int:
        for path in shards * epochs:
            descriptor = os.open(path, os.O_RDONLY)
            while os.read(descriptor, 8 << 20):
                pass
            os.close(descriptor)
        return epochs * num_images

    others = {"webdataset": (usual, 5.0), "cat": (cat, 1 / 1.5), "os.read of 8 MiB": (in_blocks, 1 / 1.5)}
    compare("read 512 in training order", ours, others)


def bench_seek(space: Path) -> None:
    """Open a large index, and find the middle of an epoch."""
    num = 1_000_000
    keys = [f"{n % 5}/patient{n // 2:07d}_{'left' if n % 2 else 'right'}" for n in range(num)]
    write_index(space / "index.npy", new_index(keys, [key[:16] for key in keys], num_tags=0))

    def opened() -> float:
        start = time.perf_counter()
        index = read_index(space / "index.npy")
        assert index[split_rows(index, "train")[num // 2]]["key"].decode() == keys[num // 2]
        return time.perf_counter() - start

    taken = statistics.median(opened() for _ in range(5))
    show("open an index of 1e6, list a split, look up", f"{taken * 1e3:.1f} ms", "", "", "1 s", reached=taken < 1)
    draw = np.random.default_rng(0)
    for size in (10**6, 10**8):
        took = []
        assert len(EpochOrder(size, seed=1, epoch=0)[:BATCH]) == BATCH  # warms up
        for epoch, where in zip(draw.integers(1000, size=200).tolist(), draw.integers(size, size=200), strict=True):
            start = time.process_time()
            EpochOrder(size, seed=1, epoch=epoch)[int(where) : int(where) + BATCH]
            took.append((time.process_time() - start) * 1e3)
        shown = f"median {statistics.median(took):.2f} ms, largest {max(took):.2f}"
        show(f"seek in {size:.0e}", shown, "", "", "1 ms", reached=max(took) < 1)


def bench_mix(_: Path) -> None:
    """How much the share of a class varies from batch to batch, from shards that are sorted by class."""
    labels = np.repeat(np.arange(5), 20_000)

    def variance(order: np.ndarray) -> float:
        rows = labels[order][: len(order) // 256 * 256].reshape(-1, 256)
        return float(np.mean([np.var((rows == label).mean(axis=1)) for label in range(5)]))

    chance = statistics.mean(variance(np.random.default_rng(epoch).permutation(len(labels))) for epoch in range(8))
    ours = statistics.mean(variance(EpochOrder(len(labels), seed=0, epoch=epoch)[:]) for epoch in range(8)) / chance
    shards = np.random.default_rng(0).permutation(100)
    in_shards = (np.arange(1000) + shards[:, None] * 1000).ravel()
    usual = variance(np.array(list(webdataset.filters.shuffle(1000, seed=0)(iter(in_shards.tolist()))))) / chance
    other = f"webdataset, shards and shuffle(1000) {usual:.1f}"
    show("class mix, variance against chance", f"ours {ours:.2f}", other, "", "1.25", reached=ours <= 1.25)


def main() -> None:
    """Run the benchmarks that are named, or all."""
    ways = (bench_shard, bench_write, bench_train, bench_predict, bench_read, bench_seek, bench_mix)
    known = {way.__name__.removeprefix("bench_"): way for way in ways}
    names = sys.argv[1:] or list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"{unknown[0]}: no such benchmark; there are {', '.join(known)}")
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    keep_freed_memory()  # as train and predict do; it serves all ways here
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            known[name](Path(folder))


if __name__ == "__main__":
    main()
