"""What writes shards, beside the usual ways; and how ways are measured and images drawn here and in bench_data.py."""

import io
import os
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import simplejpeg
import webdataset
import xxhash
from PIL import Image

from tlbatch.data.near_duplicates import FREQUENCIES, WORDS
from tlbatch.data.shards.encode import to_shard
from tlbatch.data.shards.store import Chunk, Prepared, prepare, write_chunk
from tlbatch.data.sources.base import Labelled
from tlbatch.data.wide_pixels import Trait

ROUNDS = 5
Way = Callable[[], int]
"""Does its work and returns the number of images."""


def spent() -> tuple[float, float]:
    """Seconds of CPU, of this process and of the children it has waited for, and of wall time."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime, time.perf_counter()


def show(what: str, ours: str, other: str, ratio: str, goal: str, *, reached: bool | None) -> None:
    verdict = {True: "reached", False: "MISSED", None: ""}[reached]
    print(f"{what} | {ours} | {other} | {ratio} | {goal} | {verdict}", flush=True)


def compare(what: str, ours: Way, others: dict[str, tuple[Way, float | None]]) -> None:
    """Run all ways in turn and print a line for each of the others; its goal is a ratio of CPU times, or None.

    A ratio is the median over the rounds, for what is measured side by side meets the same neighbours on the machine.
    """
    ways = {"ours": ours} | {name: way for name, (way, _) in others.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 1):
        for name, way in ways.items():
            start = spent()
            num = way()
            end = spent()
            if turn:  # the first warms up
                found[name].append(((end[0] - start[0]) / num * 1e6, (end[1] - start[1]) / num * 1e6))
    rounds = {name: np.array(pairs) for name, pairs in found.items()}
    cost = {name: "{:.1f} ({:.1f})".format(*np.median(pairs, axis=0)) for name, pairs in rounds.items()}
    for name, (_, goal) in others.items():
        ratios = rounds[name] / rounds["ours"]
        cpu, wall = np.median(ratios, axis=0)
        shown = f"{cpu:.2f} from {ratios[:, 0].min():.2f} to {ratios[:, 0].max():.2f} ({wall:.2f})"
        wanted = "" if goal is None else f"{goal:.2f}"
        show(what, f"ours {cost['ours']}", f"{name} {cost[name]}", shown, wanted, reached=goal and bool(cpu >= goal))


def photograph(draw: np.random.Generator, size: tuple[int, int], quality: int, noise: float, fine: float) -> bytes:
    """Structure at every scale, as much of the finest as asked for, with a little sensor noise."""
    width, height = size
    layers = [draw.integers(0, 255, (height // step, width // step, 3), dtype=np.uint8) for step in (128, 32, 8)]
    scaled = [np.asarray(Image.fromarray(layer).resize(size, Image.Resampling.BICUBIC)) for layer in layers]
    mixed = 0.6 * scaled[0] + (0.4 - fine) * scaled[1] + fine * scaled[2] + draw.normal(0, noise, (height, width, 1))
    pixels = np.ascontiguousarray(mixed.clip(0, 255).astype(np.uint8))
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")


def written(folder: Path, num: int, size: tuple[int, int], quality: int, noise: float, fine: float) -> list[Path]:
    """Photographs in five class folders, of about as many bytes a pixel as real ones."""
    draw = np.random.default_rng(0)
    paths = [folder / f"class{number % 5}" / f"{number:05d}.jpg" for number in range(num)]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(draw, size, quality, noise, fine))
    mean = statistics.mean(path.stat().st_size for path in paths)
    print(f"# {num} JPEG of {size[0]} x {size[1]}, {mean / 1e3:.0f} kB", flush=True)
    return paths


def listed(paths: Iterable[Path]) -> list[Labelled]:
    return [
        Labelled(path.stem, str(path), path.parent.name, path.stem, "", number) for number, path in enumerate(paths)
    ]


def bench_shard(space: Path) -> None:
    """Large photographs to shards of 512 px."""
    import cv2

    paths = written(space / "large", 24, (3000, 2000), 92, 0.5, 0.07)
    images = listed(paths)
    data = [path.read_bytes() for path in paths]
    half, small = np.empty((1000, 1500, 3), np.uint8), np.asarray(Image.open(paths[0]).resize((768, 512))).copy()

    def ours() -> int:
        prepared = (prepare(image, to_shard(Path(image.path).read_bytes(), resize=512)) for image in images)
        write_chunk(space, Chunk("large", tuple(images)), prepared, [("cls", b"0")] * len(images))
        return len(images)

    def usual(encode: Callable[[Path], bytes]) -> Way:
        def way() -> int:
            with webdataset.ShardWriter(str(space / "theirs-%06d.tar"), verbose=0) as writer:
                for path in paths:
                    writer.write({"__key__": path.stem, "jpg": encode(path), "cls": 0})
            return len(paths)

        return way

    def pillow(path: Path) -> bytes:
        buffer = io.BytesIO()
        Image.open(path).resize((768, 512), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=92)
        return buffer.getvalue()

    def opencv(path: Path) -> bytes:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
        image = cv2.resize(image, (768, 512), interpolation=cv2.INTER_AREA)
        return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()

    def bare() -> int:
        for one in data:
            simplejpeg.decode_jpeg(one, "RGB", min_height=1000, min_width=1500, buffer=half)
            simplejpeg.encode_jpeg(small, quality=92, colorsubsampling="420")
        return len(data)

    cv2.setNumThreads(1)
    compare(
        "shard 3000x2000 to 512",
        ours,
        {
            "PIL + ShardWriter": (usual(pillow), 5.0),
            "cv2 + ShardWriter": (usual(opencv), 2.5),
            "bare decode at 1/2 + encode": (bare, 0.9),
        },
    )


def bench_write(space: Path) -> None:
    """Images as they are to a shard, in memory where there is a file system for that."""
    memory = Path("/dev/shm")
    fast = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else space))
    try:
        _write_in(fast)
    finally:
        shutil.rmtree(fast)


def _write_in(folder: Path) -> None:
    paths = written(folder, 600, (512, 512), 90, 2.9, 0.15)
    for path in paths:
        path.with_suffix(".cls").write_bytes(b"0")
    images = listed(paths)
    members = [f"{path.relative_to(folder).with_suffix(ending)}" for path in paths for ending in (".cls", ".jpg")]
    no_near_hash, no_spectrum = np.zeros(WORDS, np.uint64), np.zeros((FREQUENCIES, FREQUENCIES), np.float16)

    def hashed(image: Labelled) -> Prepared:
        with open(image.path, "rb") as file:  # noqa: PTH123 (as Source.read)
            data = file.read()
        content = xxhash.xxh3_128_hexdigest(data).encode()
        return Prepared(image, "jpg", data, (len(data), True, content, no_near_hash), Trait.NONE, no_spectrum)

    def ours() -> int:
        write_chunk(folder, Chunk("ours", tuple(images)), map(hashed, images), [("cls", b"0")] * len(images))
        return len(images)

    def tar() -> int:
        subprocess.run(["tar", "cf", folder / "theirs.tar", "-C", folder, *members], check=True)
        return len(images)

    compare(f"write 512, with hash and sidecar, in {folder.parent}", ours, {"GNU tar": (tar, 1 / 1.5)})
