import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from tlbatch import shard
from tlbatch.data.decode import decode
from tlbatch.data.index import read_index
from tlbatch.data.loader import SplitDataset, load, open_set
from tlbatch.data.order import epoch_order, global_batches
from tlbatch.data.views import View
from tlbatch.job.errors import UserError
from tlbatch.job.load import load_job
from tlbatch.job.paths import RunPaths, SetPaths, set_paths
from tlbatch.job.prepare import make_run, resolve


@pytest.fixture
def make(tmp_path: Path, jobs: Path) -> Callable[..., RunPaths]:
    def made(images: Path, *overrides: str) -> RunPaths:
        job = load_job(
            [jobs / "flowers17.toml"],
            [f"data.images={images}", f"workspace={tmp_path / 'space'}", "model.weights=none", *overrides],
        )
        return make_run(resolve(job))

    return made


def sharded(paths: RunPaths) -> SetPaths:
    shard.run(paths.folder)
    return set_paths(paths.load().job)


def test_any_reader_of_webdataset_finds_every_image_with_its_class(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    folder = sharded(make(make_folders(each=8), "data.shard_images=10"))
    names = [shard.name for shard in open_set(folder).manifest.shards]
    assert names == ["000000.tar", "000001.tar", "000002.tar"]
    found = {}
    for sample in webdataset.WebDataset([str(folder.shard(name)) for name in names], shardshuffle=False):
        found[sample["__key__"]] = sample["cls"].decode()
        assert decode(sample["jpg"]).shape == (40, 48, 3)
    assert found == {f"{name}/{name}{number}": name for name in ("blue", "green", "red") for number in range(8)}
    listed = subprocess.run(["tar", "tf", folder.shard(names[2])], capture_output=True, text=True, check=True)
    assert listed.stdout.splitlines()[:2] == ["red/red4.cls", "red/red4.jpg"]


def test_the_index_points_at_the_bytes_that_the_tar_holds(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    folder = sharded(make(make_folders(each=8), "data.shard_images=10"))
    index = read_index(folder.index)
    assert len(index) == 24
    for row in index:
        path = folder.shard(f"{row['shard']:06d}.tar")
        with tarfile.open(path) as tar:
            member = tar.extractfile(f"{row['key'].decode()}.jpg")
            assert member is not None
            data = path.read_bytes()[row["offset"] : row["offset"] + row["size"]]
            assert member.read() == data


def test_the_same_images_give_the_same_bytes(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path], tmp_path: Path
) -> None:
    images = make_folders(each=6)
    one = sharded(make(images, "run=one", f"workspace={tmp_path / 'one'}"))
    two = sharded(make(images, "run=two", f"workspace={tmp_path / 'two'}"))
    files = sorted(file.name for file in one.folder.iterdir())
    assert files == ["000000.tar", "index.npy", "manifest.json", "rejected.csv"]
    assert all((one.folder / name).read_bytes() == (two.folder / name).read_bytes() for name in files)


def test_a_second_run_uses_the_set_and_changed_images_are_a_loud_error(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    images = make_folders(each=6)
    first = make(images, "run=one")
    folder = sharded(first)
    before = folder.manifest.stat().st_mtime_ns
    assert sharded(make(images, "run=two")).manifest.stat().st_mtime_ns == before
    shard.run(first.folder)
    (images / "red" / "red0.jpg").unlink()
    with pytest.raises(UserError, match="finished here from another source"):
        shard.run(first.folder)
    with pytest.raises(UserError, match="the images or labels have changed"):
        sharded(make(images, "run=three"))


def test_unreadable_images_stop_the_job_or_are_listed_up_to_the_limit(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    images = make_folders(each=8)
    broken = images / "red" / "red3.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    with pytest.raises(UserError, match=r"red3\.jpg: cannot be read .*data\.max_rejected=1"):
        shard.run(make(images, "run=strict").folder)
    assert list((images.parent / "space" / "shards").glob("*/manifest.json")) == []
    folder = sharded(make(images, "run=lenient", "data.max_rejected=1"))
    assert len(read_index(folder.index)) == 23
    assert folder.rejected.read_text(encoding="utf-8").startswith(f"image,cause\n{broken},")


def test_a_class_without_test_images_is_refused(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="no image in the test split"):
        shard.run(make(make_folders(each=1)).folder)


def test_a_damaged_set_is_refused_with_the_file_named(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    folder = sharded(make(make_folders(each=6)))
    tar = folder.shard("000000.tar")
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"000000\.tar: .* bytes, not"):
        open_set(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_the_same_batches_for_any_number_of_workers(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path], workers: int
) -> None:
    images = open_set(sharded(make(make_folders(each=8))))
    rows = images.split("train")
    view = View(size=32, augment="d4", crop_scale=0.5, seed=3, epoch=1)
    batches = global_batches(epoch_order(len(rows), seed=3, epoch=1), 4)
    found = list(load(SplitDataset(images.shards(), rows, view), batches, workers=workers))
    assert [batch.positions.tolist() for batch in found] == [batch.tolist() for batch in batches]
    alone = SplitDataset(images.shards(), rows, view)
    for batch in found:
        assert batch.images.dtype == torch.uint8
        assert batch.images.shape == (len(batch.labels), 32, 32, 3)
        assert batch.labels.tolist() == rows["label"][batch.positions.numpy()].tolist()
        one = alone.__getitems__([int(batch.positions[0])])
        assert torch.equal(one.images[0], batch.images[0])


def test_augmentation_changes_with_the_epoch_and_prediction_has_none() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (64, 48, 3), dtype=np.uint8)
    views = [View(size=32, augment="d4", crop_scale=0.5, epoch=epoch).apply(rgb, 5).tobytes() for epoch in (0, 0, 1)]
    assert views[0] == views[1] != views[2]
    assert View(size=32, epoch=0).apply(rgb, 1).tobytes() == View(size=32, epoch=9, seed=4).apply(rgb, 2).tobytes()


def test_an_image_damaged_after_sharding_is_named_even_from_a_worker(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    images = open_set(sharded(make(make_folders(each=6))))
    rows = images.split("test")
    path = images.shards()[0]
    data = bytearray(path.read_bytes())
    data[int(rows[0]["offset"]) + 2 : int(rows[0]["offset"]) + 60] = bytes(58)
    path.chmod(0o644)
    path.write_bytes(data)
    for workers in (0, 1):
        with pytest.raises(UserError, match=r"^[^\n]*can no longer be read[^\n]*$"):
            list(load(SplitDataset(images.shards(), rows, View(size=32)), [np.arange(len(rows))], workers=workers))


def test_a_process_that_fails_while_workers_run_ends_at_once(
    make: Callable[..., RunPaths], make_folders: Callable[..., Path]
) -> None:
    """Workers ignore SIGTERM, by which multiprocessing would end them at exit: it would wait for ever."""
    folder = sharded(make(make_folders(each=8)))
    code = f"""
import numpy as np, sys
from pathlib import Path
from tlbatch.data.loader import SplitDataset, load, open_set
from tlbatch.data.views import View
from tlbatch.job.paths import SetPaths
images = open_set(SetPaths(Path({str(folder.folder)!r})))
loaded = load(SplitDataset(images.shards(), images.split("train"), View(size=32)), [np.arange(4)] * 50, workers=2)
next(loaded)
sys.exit(3)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 3
