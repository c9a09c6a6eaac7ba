"""The data plane beside the usual ways to do the same: CPU time an image, interleaved, medians of five rounds.

    pip install opencv-python-headless       # for one of the rows
    python tests/bench/bench_data.py [shard] [train] [predict] [read] [write] [seek] [mix]

Prints what, ours and theirs in microseconds of CPU (of wall time), how many times ours is faster, and the goal.
Images are drawn into a temporary folder. One thread a process.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import io
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
import xxhash
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tlbatch import shard
from tlbatch.data.decode import to_shard
from tlbatch.data.index import new_index, read_index, write_index
from tlbatch.data.loader import ImageSet, SplitDataset, load, open_set
from tlbatch.data.near import WORDS
from tlbatch.data.order import EpochOrder, State, prediction_batches, training_batches
from tlbatch.data.sources import Labelled
from tlbatch.data.store import Chunk, Prepared, prepare, write_chunk
from tlbatch.data.views import View
from tlbatch.job.load import load_job
from tlbatch.job.prepare import make_run, resolve
from tlbatch.model.ranks import keep_freed_memory

ROUNDS, BATCH = 5, 64
Way = Callable[[], int]


def spent() -> tuple[float, float]:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()


def compare(what: str, ours: Way, others: dict[str, tuple[Way, float]]) -> None:
    """Run all ways in turn, each of which returns its number of images; print a line for each of the others."""
    ways = {"ours": ours} | {name: way for name, (way, _) in others.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = spent()
            num = way()
            end = spent()
            if turn:  # the first warms up
                found[name].append(((end[0] - start[0]) / num * 1e6, (end[1] - start[1]) / num * 1e6))
    cpu, wall = (
        {name: statistics.median(pair[at] for pair in pairs) for name, pairs in found.items()} for at in (0, 1)
    )
    for name, (_, goal) in others.items():
        ratio = cpu[name] / cpu["ours"]
        print(
            f"{what} | ours {cpu['ours']:.1f} ({wall['ours']:.1f}) | {name} {cpu[name]:.1f} ({wall[name]:.1f}) | "
            f"{ratio:.2f} times | goal {goal:g} | {'reached' if ratio >= goal else 'MISSED'}",
            flush=True,
        )


def photograph(draw: np.random.Generator, width: int, height: int, quality: int, noise: float) -> bytes:
    """Structure at every scale with a little sensor noise: about as many bytes a pixel as a real photograph."""
    layers = [draw.integers(0, 255, (height // step, width // step, 3), dtype=np.uint8) for step in (128, 32, 8)]
    scaled = [np.asarray(Image.fromarray(layer).resize((width, height), Image.Resampling.BICUBIC)) for layer in layers]
    mixed = 0.6 * scaled[0] + 0.25 * scaled[1] + 0.15 * scaled[2] + draw.normal(0, noise, (height, width, 1))
    pixels = np.ascontiguousarray(mixed.clip(0, 255).astype(np.uint8))
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")


def written(folder: Path, num: int, width: int, height: int, quality: int, noise: float) -> list[Path]:
    draw = np.random.default_rng(0)
    paths = []
    for number in range(num):
        path = folder / f"class{number % 5}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(draw, width, height, quality, noise))
        paths.append(path)
    sizes = [path.stat().st_size for path in paths]
    print(f"{num} JPEG of {width} x {height}, {statistics.mean(sizes) / 1e3:.0f} kB", flush=True)
    return paths


def listed(paths: Iterable[Path]) -> list[Labelled]:
    return [
        Labelled(path.stem, str(path), path.parent.name, path.stem, "", number) for number, path in enumerate(paths)
    ]


def bench_shard(space: Path) -> None:
    import cv2

    paths = written(space / "large", 12, 3000, 2000, 92, 0.6)
    images = listed(paths)
    small = np.ascontiguousarray(Image.open(paths[0]).resize((768, 512)))

    def ours() -> int:
        prepared = (prepare(image, to_shard(Path(image.path).read_bytes(), resize=512)) for image in images)
        write_chunk(space, Chunk("large", tuple(images)), prepared, [("cls", b"0")] * len(images))
        return len(images)

    def sink(encode: Callable[[Path], bytes]) -> Way:
        def way() -> int:
            with webdataset.ShardWriter(str(space / "theirs-%06d.tar"), verbose=0) as writer:
                for path in paths:
                    writer.write({"__key__": path.stem, "jpg": encode(path), "cls": 0})
            return len(paths)

        return way

    def pillow(path: Path) -> bytes:
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").resize((768, 512), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
        return buffer.getvalue()

    def opencv(path: Path) -> bytes:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        image = cv2.resize(image, (768, 512), interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()

    def bare() -> int:
        for path in paths:
            simplejpeg.decode_jpeg(path.read_bytes(), "RGB", min_height=1000, min_width=1500)
            simplejpeg.encode_jpeg(small, quality=92, colorsubsampling="420")
        return len(paths)

    others = {"PIL + ShardWriter": (sink(pillow), 5.0), "cv2 + ShardWriter": (sink(opencv), 2.5)}
    compare("shard 3000x2000 to 512", ours, others | {"bare decode + encode": (bare, 0.9)})


def medium(space: Path) -> tuple[Path, list[Path], ImageSet]:
    """512 px images in class folders, and the set made of them by the shard stage."""
    folder = space / "medium"
    if not folder.exists():
        written(folder, 600, 512, 512, 90, 3)
    job = Path(__file__).parents[1] / "tiny.toml"
    more = [f"data.images={folder}", f"workspace={space}", "data.resize=512", "data.audit=warn", "data.split.test=0.01"]
    run = make_run(resolve(load_job([job], [*more, "data.split.val=0", f"run=r{time.time_ns()}"])))
    shard.run(run.folder)
    return folder, sorted(folder.rglob("*.jpg")), open_set(run.set_paths(run.load().job))


def bench_train(space: Path) -> None:
    folder, _, images = medium(space)
    normal = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    crop = transforms.RandomResizedCrop(224, scale=(0.25, 1))
    classic = transforms.Compose([crop, transforms.RandomHorizontalFlip(), transforms.ToTensor(), normal])
    tars = [str(path) for path in images.shards]

    def consumed(batches: Iterable[tuple[torch.Tensor, ...]]) -> int:
        return sum(len(batch[0]) for batch in batches)

    def ours(workers: int) -> Way:
        def way() -> int:
            dataset = SplitDataset(images, "train", View(size=224, augment="flip", crop_scale=0.25))
            found = training_batches(State(0, 0, 0, ""), len(dataset), batch_size=BATCH, rank=0, world_size=1)
            return consumed(load(dataset, (share for _, share in found), workers=workers))

        return way

    def folders(workers: int) -> Way:
        dataset = ImageFolder(str(folder), classic)
        return lambda: consumed(torch.utils.data.DataLoader(dataset, BATCH, shuffle=True, num_workers=workers))

    def usual(workers: int) -> Way:
        def way() -> int:
            found = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).shuffle(1000).decode("pil")
            found = found.to_tuple("jpg", "cls").map_tuple(classic, lambda label: label).batched(BATCH)
            return consumed(torch.utils.data.DataLoader(found, batch_size=None, num_workers=workers))

        return way

    for workers in (0, 2):
        others = {"ImageFolder": (folders(workers), 2.0), "webdataset": (usual(workers), 2.0)}
        compare(f"train 512 to 224, {workers} workers", ours(workers), others)


def bench_predict(space: Path) -> None:
    _, paths, images = medium(space)
    data = [path.read_bytes() for path in paths]
    full, half = np.empty((512, 512, 3), np.uint8), np.empty((256, 256, 3), np.uint8)

    def ours() -> int:
        dataset = SplitDataset(images, "train", View(size=224), strict=False)
        batches = prediction_batches(len(dataset), batch_size=BATCH, rank=0, world_size=1)
        return sum(len(batch.images) for batch in load(dataset, batches, workers=0))

    def bare() -> int:
        for one in data:
            simplejpeg.decode_jpeg(one, "RGB", buffer=full)
        return len(data)

    def bare_half() -> int:
        for one in data:
            simplejpeg.decode_jpeg(one, "RGB", min_height=256, min_width=256, buffer=half)
        return len(data)

    compare("predict 512 to 224", ours, {"bare decode": (bare, 0.9), "bare decode at 1/2": (bare_half, 0)})


def bench_read(space: Path) -> None:
    _, _, images = medium(space)
    dataset = SplitDataset(images, "train", View(size=224))
    rows = images.index[images.rows("train")]
    order = EpochOrder(len(dataset), seed=0, epoch=0)[:].tolist()

    def ours() -> int:
        for _ in range(10):
            for position in order:
                dataset.read(rows[position])
        return 10 * len(order)

    def usual() -> int:
        return sum(1 for _ in webdataset.WebDataset([str(path) for path in images.shards], shardshuffle=False))

    def cat() -> int:
        for _ in range(10):
            subprocess.run(["cat", *images.shards], stdout=subprocess.DEVNULL, check=True)
        return 10 * len(order)

    def in_blocks() -> int:
        for _ in range(10):
            for path in images.shards:
                descriptor = os.open(path, os.O_RDONLY)
                while os.read(descriptor, 8 << 20):
                    pass
                os.close(descriptor)
        return 10 * len(order)

    others = {"webdataset": (usual, 5.0), "cat": (cat, 1 / 1.5), "os.read of 8 MiB": (in_blocks, 1 / 1.5)}
    compare("read 512, in training order", ours, others)


def bench_write(space: Path) -> None:
    _, paths, _ = medium(space)
    fast = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else space))
    for path in paths:
        (fast / path.name).write_bytes(path.read_bytes())
        (fast / f"{path.stem}.cls").write_bytes(b"0")
    copies = sorted(fast.glob("*.jpg"))
    images = listed(copies)
    no_hash = np.zeros(WORDS, np.uint64)

    def hashed(image: Labelled) -> Prepared:
        with open(image.path, "rb") as file:  # noqa: PTH123
            data = file.read()
        return Prepared(image, "jpg", data, (len(data), True, xxhash.xxh3_128_hexdigest(data).encode(), no_hash))

    def ours() -> int:
        write_chunk(fast, Chunk("ours", tuple(images)), map(hashed, images), [("cls", b"0")] * len(images))
        return len(images)

    def tar() -> int:
        names = [name for image in images for name in (f"{image.key}.cls", f"{image.key}.jpg")]
        subprocess.run(["tar", "cf", fast / "theirs.tar", "-C", fast, *names], check=True)
        return len(images)

    compare("write 512, with hash and index", ours, {"GNU tar": (tar, 1 / 1.5)})
    subprocess.run(["rm", "-r", fast], check=True)


def bench_seek(space: Path) -> None:
    num = 1_000_000
    keys = [f"{n % 5}/patient{n // 2:07d}_{'left' if n % 2 else 'right'}" for n in range(num)]
    index = new_index(keys, ["g"] * num, num_tags=0)
    write_index(space / "index.npy", index)
    start = time.perf_counter()
    assert read_index(space / "index.npy")[num // 2]["key"]
    print(f"open the index of 1,000,000 images | {time.perf_counter() - start:.4f} s | goal 1 s")
    for size in (10**6, 10**8):
        took = []
        for epoch in range(200):
            where = (epoch * 7919 * 4099) % (size - BATCH)
            start = time.perf_counter()
            EpochOrder(size, seed=1, epoch=epoch)[where : where + BATCH]
            took.append((time.perf_counter() - start) * 1e3)
        print(f"seek in {size:.0e} | median {statistics.median(took):.2f} ms, largest {max(took):.2f} | goal 1 ms")


def bench_mix(_: Path) -> None:
    labels = np.repeat(np.arange(5), 20_000)

    def variance(order: np.ndarray) -> float:
        rows = labels[order][: len(order) // 256 * 256].reshape(-1, 256)
        return float(np.mean([np.var((rows == label).mean(axis=1)) for label in range(5)]))

    chance = statistics.mean(variance(np.random.default_rng(epoch).permutation(len(labels))) for epoch in range(8))
    ours = statistics.mean(variance(EpochOrder(len(labels), seed=0, epoch=epoch)[:]) for epoch in range(8))
    shards = np.random.default_rng(0).permutation(100)
    in_shards = (np.arange(1000) + shards[:, None] * 1000).ravel()
    usual = variance(np.array(list(webdataset.filters.shuffle(1000, seed=0)(iter(in_shards.tolist())))))
    usual_shown = f"shuffled shards, then shuffle(1000) {usual / chance:.0f}"
    print(f"class mix, variance against chance | ours {ours / chance:.2f} | {usual_shown} | goal 1.25")


def main() -> None:
    """Run the benchmarks that are named, or all."""
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    keep_freed_memory()  # as train and predict do; it serves all ways here
    names = sys.argv[1:] or ["shard", "train", "predict", "read", "write", "seek", "mix"]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            globals()[f"bench_{name}"](Path(folder))


if __name__ == "__main__":
    main()
