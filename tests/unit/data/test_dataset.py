"""The loader over a small set: the same batches however they are read, and what it does with lost images."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tlbatch import shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.base import SplitName
from tlbatch.config.load import load_job
from tlbatch.config.slurm import Slurm
from tlbatch.core.errors import UserError
from tlbatch.data.dataset import SampleBatch, SplitDataset
from tlbatch.data.image_set import ImageSet, open_images, open_set
from tlbatch.data.loader import load
from tlbatch.data.sampler import EpochOrder, SamplerState, prediction_batches, training_batches
from tlbatch.data.shards.staging import stage_locally
from tlbatch.data.views import Samples, Views
from tlbatch.model.symmetries import apply_symmetries
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import SetPaths


@pytest.fixture
def images(tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path]) -> ImageSet:
    where = [f"data.images={make_folders(each=8)}", f"workspace={tmp_path / 'space'}", "data.shard_images=10"]
    paths = make_run(resolve(load_job([tiny_job], where))).paths
    shard.run(paths.folder)
    return open_images(Run.load(paths.folder))


def shares(n: int, *, rank: int = 0, world_size: int = 1) -> list[np.ndarray]:
    state = SamplerState(3, 1, 0)
    return [own for _, own in training_batches(state, n, batch_size=4, rank=rank, world_size=world_size)]


def same(one: SampleBatch, other: SampleBatch) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one[:4], other[:4], strict=True))


RANDOM = Views(32, "d4", crop_scale=0.5)


def reader(
    images: ImageSet, split: SplitName, views: Views = RANDOM, *, seed: int = 3, epoch: int = 1, strict: bool = True
) -> SplitDataset:
    rows = images.rows(split)
    return SplitDataset(images, rows, Samples(len(rows), views, seed, epoch), strict=strict)


@pytest.mark.parametrize(("workers", "start_method"), [(0, "fork"), (1, "fork"), (2, "fork"), (2, "spawn")])
def test_the_batches_are_the_same_for_any_number_and_kind_of_workers(
    images: ImageSet, workers: int, start_method: str
) -> None:
    dataset = reader(images, "train")
    found = list(load(dataset, shares(len(dataset)), workers=workers, start_method=start_method))
    rows = images.index[images.rows("train")]
    assert [batch.positions.tolist() for batch in found] == [share.tolist() for share in shares(len(dataset))]
    for batch in found:
        assert (batch.inputs.dtype, batch.inputs.shape) == (torch.uint8, (len(batch.labels), 32, 32, 3))
        assert batch.labels.tolist() == rows["label"][batch.positions.numpy()].tolist()
        alone = reader(images, "train").__getitems__([int(batch.positions[0])])
        assert same(alone, SampleBatch(*(part[:1] for part in batch[:4]), {}))


def test_two_ranks_together_see_the_batches_of_one(images: ImageSet) -> None:
    dataset = reader(images, "train")
    alone = list(load(dataset, shares(len(dataset)), workers=0))
    ranks = [list(load(dataset, shares(len(dataset), rank=rank, world_size=2), workers=0)) for rank in range(2)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert same(
            batch, SampleBatch(*(torch.cat(pair) for pair in zip(*(part[:4] for part in parts), strict=True)), {})
        )


def test_augmentation_changes_with_sample_and_epoch_and_prediction_has_none(images: ImageSet) -> None:
    def one(views: Views, *, seed: int = 0, epoch: int = 0) -> SampleBatch:
        return reader(images, "train", views, seed=seed, epoch=epoch).__getitems__([0])

    epochs = [one(RANDOM, epoch=epoch) for epoch in (0, 0, 1)]
    assert same(epochs[0], epochs[1])
    assert not same(epochs[0], epochs[2])
    assert same(one(Views(32)), one(Views(32), epoch=9, seed=4))
    for symmetries, all_turns in (("d4", set(range(8))), ("flip", {0, 1}), ("rot4", {0, 2, 4, 6})):
        symmetry = {int(one(Views(32, symmetries), epoch=epoch).symmetry[0]) for epoch in range(60)}
        assert symmetry == all_turns


def test_turns_are_the_symmetries_of_the_square() -> None:
    square = torch.arange(16, dtype=torch.uint8).view(1, 4, 4, 1).repeat(8, 1, 1, 3)
    found = apply_symmetries(square, torch.arange(8, dtype=torch.uint8))
    assert len({bytes(image.numpy().tobytes()) for image in found}) == 8
    assert torch.equal(found[0], square[0])
    assert torch.equal(found[1], square[0].flip(1))
    assert torch.equal(found[2], square[0].rot90(1, (0, 1)))
    assert torch.equal(found[7], square[0].flip(1).rot90(3, (0, 1)))


def spoil(images: ImageSet, split: str, number: int = 0) -> str:
    row = images.index[images.rows(split)][number]
    path = images.shards[row["shard"]]
    data = bytearray(path.read_bytes())
    data[int(row["offset"]) + 2 : int(row["offset"]) + 60] = bytes(58)
    path.write_bytes(data)
    return row["key"].decode()


def test_an_image_lost_after_sharding_stops_training_by_name_even_from_a_worker(images: ImageSet) -> None:
    key = spoil(images, "train")
    for workers in (0, 1):
        dataset = reader(images, "train", Views(32))
        with pytest.raises(UserError, match=rf"^[^\n]*image {key} can no longer be read[^\n]*$"):
            list(load(dataset, [np.arange(len(dataset))], workers=workers))


def test_an_image_lost_after_sharding_is_an_error_row_of_the_prediction(images: ImageSet) -> None:
    spoil(images, "test", 1)
    dataset = reader(images, "test", Views(32), strict=False)
    batches = prediction_batches(len(dataset), batch_size=4, rank=0, world_size=1)
    found = list(load(dataset, batches, workers=0))
    assert sorted(position for batch in found for position in batch.positions.tolist()) == list(
        range(len(images.rows("test")))
    )
    errors = [(int(batch.positions[place]), cause) for batch in found for place, cause in batch.errors.items()]
    assert [position for position, _ in errors] == [1]
    assert errors[0][1]
    assert not found[0].inputs[1].any()


def test_a_shard_cut_short_while_it_is_open_is_an_error_row_too(images: ImageSet) -> None:
    dataset = reader(images, "test", Views(32), strict=False)
    dataset.__getitems__([0])
    for path in images.shards:
        os.truncate(path, 600)
    found = dataset.__getitems__(list(range(len(dataset))))
    assert len(found.errors) == len(dataset)
    assert any("bytes are left of" in cause for cause in found.errors.values())


def test_changed_bytes_that_still_decode_are_noticed(images: ImageSet) -> None:
    row = images.index[images.rows("test")][0]
    other = images.index[images.rows("train")][0]
    path, source = images.shards[row["shard"]], images.shards[other["shard"]].read_bytes()
    data = bytearray(path.read_bytes())
    start, size = int(row["offset"]), int(row["size"])
    data[start : start + size] = source[int(other["offset"]) :][: int(other["size"])].ljust(size, b"\0")[:size]
    path.write_bytes(data)
    found = reader(images, "test", Views(32), strict=False).__getitems__([0])
    assert found.errors == {0: "its bytes have changed since it was indexed"}


def test_more_shards_than_may_be_open_are_read(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tlbatch.data.dataset._MOST_OPEN", 1)
    dataset = reader(images, "train", Views(32))
    everything = list(range(len(dataset)))
    dataset.will_need(everything)
    assert len(dataset.__getitems__(everything[::-1]).labels) == len(everything)
    descriptors = [descriptor for descriptor in Path("/proc/self/fd").iterdir() if descriptor.exists()]
    assert sum(descriptor.resolve() in images.shards for descriptor in descriptors) == 1


def test_shards_are_copied_to_a_nodes_own_disk_once(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAST", str(tmp_path / "fast"))
    local = open_set(images.paths, Slurm(local_folder="$FAST/x"))
    assert all(str(path).startswith(str(tmp_path / "fast" / "x")) for path in local.shards)
    assert [path.read_bytes() for path in local.shards] == [path.read_bytes() for path in images.shards]
    times = [path.stat().st_mtime_ns for path in local.shards]
    assert [path.stat().st_mtime_ns for path in open_set(images.paths, Slurm(local_folder="$FAST/x")).shards] == times
    with pytest.raises(UserError, match=r"slurm\.local_folder: /proc/nowhere.* cannot be used"):
        stage_locally(images.shards, "/proc/nowhere")


def child(images: ImageSet, ending: str) -> str:
    return f"""
import os, signal, sys, time
import numpy as np
from pathlib import Path
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import open_images, open_set
from tlbatch.data.loader import load
from tlbatch.data.views import Samples, Views
from tlbatch.runs.workspace import SetPaths
if __name__ == "__main__":
    images = open_set(SetPaths(Path({str(images.paths.folder)!r}), {images.paths.index!r}))
    rows = images.rows("train")
    dataset = SplitDataset(images, rows, Samples(len(rows), Views(32)))
    {ending}
"""


@pytest.mark.chain
def test_a_process_that_fails_while_workers_run_ends_at_once(images: ImageSet) -> None:
    """Workers ignore SIGTERM, by which multiprocessing would end them at exit: it would wait for ever."""
    code = child(images, "next(load(dataset, [np.arange(4)] * 50, workers=2)); sys.exit(3)")
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 3


@pytest.mark.chain
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_outlive_the_signals_that_slurm_sends_to_every_process(
    images: ImageSet, tmp_path: Path, start_method: str
) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        child(
            images,
            f"""
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    print("ready", flush=True)
    found = 0
    for batch in load(dataset, [np.arange(4)] * 100, workers=2, start_method={start_method!r}):
        found += 1
        time.sleep(0.005)
    print(found, flush=True)
""",
        ),
        encoding="utf-8",
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while not select.select([process.stdout], [], [], 0.02)[0]:  # from before the workers start until all is read
            for number in (signal.SIGUSR2, signal.SIGTERM):
                os.killpg(process.pid, number)
        assert json.loads(process.stdout.read()) == 100
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_order_of_an_epoch_is_that_of_the_set(images: ImageSet) -> None:
    dataset = reader(images, "train")
    seen = [position for share in shares(len(dataset)) for position in share.tolist()]
    assert seen == EpochOrder(len(dataset), seed=3, epoch=1)[:].tolist()


def test_a_set_that_is_not_there_says_which_stage_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run shard first"):
        open_set(SetPaths(tmp_path, "absent"))
