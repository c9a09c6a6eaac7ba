"""The cache: the same training with it as without, nothing computed twice, nothing damaged used."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tlbatch import cache, predict, shard, train
from tlbatch.activations.fill import fill_cache
from tlbatch.activations.store import ActivationStore, view_keys
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import open_images
from tlbatch.data.views import Samples, Views
from tlbatch.distributed.process_group import RankContext
from tlbatch.model.build import build_classifier
from tlbatch.model.checkpoint import pretrained_classifier
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run
from tlbatch.training.step import RunningPhase

pytestmark = pytest.mark.chain

Make = Callable[..., RunPaths]


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path]) -> Make:
    images = make_folders(each=12)

    def made(*overrides: str) -> RunPaths:
        where = [f"data.images={images}", f"workspace={tmp_path / 'space'}", "data.split.val=0.25", "data.audit=warn"]
        return make_run(resolve(load_job([tiny_job], [*where, *overrides]))).paths

    return made


def run(paths: RunPaths, *stages: object) -> RunPaths:
    for stage in stages or (shard, cache):
        stage.run(paths.folder)  # type: ignore[attr-defined]
    return paths


def blocks(tmp_path: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in (tmp_path / "space" / "cache").rglob("*.npy")}


def num_rows(tmp_path: Path) -> int:
    return sum(len(np.load(file, mmap_mode="r")) for file in blocks(tmp_path))


@pytest.fixture
def losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    step = RunningPhase.step

    def recorded(self: RunningPhase, *args: object, **kwargs: object) -> torch.Tensor:
        loss = step(self, *args, **kwargs)  # type: ignore[arg-type]
        found.append(float(loss))
        return loss

    monkeypatch.setattr(RunningPhase, "step", recorded)
    return found


D4 = ["train.augment=d4"]
ROT4 = ["train.augment=rot4", "train.every_view=true"]
RANDOM = ["train.augment=flip", "train.crop_scale=0.5", "train.random_views=3"]


@pytest.mark.parametrize(
    ("cut", "views"),
    [("pool", D4), ("blocks.3", D4), ("blocks.0", D4), ("pool", RANDOM), ("blocks.3", ROT4), ("blocks.0", RANDOM)],
)
def test_every_step_has_the_same_loss_with_the_cache_as_without(
    make: Make, losses: list[float], cut: str, views: list[str]
) -> None:
    """BatchNorm trains and Dropout draws after the cut; the frozen part is in eval mode either way."""
    shared = [
        f"phase.0.cut={cut}", "phase.0.epochs=1", "phase.0.batch_norm=train", "head.widths=[16]", "head.dropout=0.5",
        "head.batch_norm=true",
        "phase.1.cut=blocks.0", "phase.1.epochs=1", "phase.1.batch_norm=train", *views,
        "phase.0.optimizer={name='sgd', lr=0.05}", "phase.1.optimizer={name='sgd', lr=0.05}",  # Adam blows up rounding
    ]  # fmt: skip
    scores = []
    for enabled in ("true", "false"):
        losses_before = len(losses)
        paths = run(make(f"run=cached-{enabled}", f"cache.enabled={enabled}", *shared), shard, cache, train, predict)
        outputs = json.loads(paths.marker("cache").read_text("utf-8"))["outputs"]
        assert len(outputs) == (6 if enabled == "true" else 0)
        lines = [json.loads(line) for line in paths.metrics.read_text("utf-8").splitlines()]
        scores.append([line["val_loss"] for line in lines])
        with np.load(next(paths.predictions.iterdir())) as part:
            scores[-1].extend(part["probabilities"].ravel().tolist())
        steps = losses[losses_before:]
        assert len(steps) >= 6
        scores[-1].extend(steps)
    assert np.allclose(scores[0], scores[1], atol=1e-5)
    assert np.std(scores[0][-6:]) > 1e-3


def test_a_second_run_another_fold_another_head_and_other_views_compute_only_what_is_new(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folds = ["data.split.folds=3", "train.augment=none"]
    run(make("run=one", "data.split.fold=0", *folds))
    before = blocks(tmp_path)
    assert num_rows(tmp_path) == 2 * 36  # two cuts
    run(make("run=two", "data.split.fold=1", "head.widths=[8]", "seed=0", *folds))
    assert blocks(tmp_path) == before
    three = run(make("run=three", "data.split.fold=1", "data.split.folds=3", "train.augment=rot4"))
    num_train = open_images(Run.load(three.folder)).manifest.num_images["train"]
    assert num_rows(tmp_path) == 2 * (36 + 3 * num_train)
    caplog.set_level(logging.INFO)
    run(make("run=four", "data.split.fold=1", "data.split.folds=3", "train.augment=rot4"))
    assert "of which 0 (0 GB) are to be computed" in caplog.text


def test_a_head_on_several_places_shares_the_vectors_of_heads_on_each(make: Make, tmp_path: Path) -> None:
    plain, pool = ["train.augment=none", "data.split.val=0"], "phase=[{cut='pool', fit='ridge'}]"
    for name in ("blocks.0", "pool"):
        run(make(f"run={name}", f"head.after={name}", pool, *plain))
    before = blocks(tmp_path)
    both = make("run=both", "head.after=['blocks.0','pool']", pool, *plain)
    run(both, shard, cache, train, predict)
    assert blocks(tmp_path) == before
    assert num_rows(tmp_path) == 2 * 36
    alone = make("run=alone", "head.after=['blocks.0','pool']", pool, "cache.enabled=false", *plain)
    run(alone, shard, cache, train, predict)
    parts = [np.load(next(paths.predictions.glob("part-*.npz"))) for paths in (both, alone)]
    assert np.allclose(parts[0]["probabilities"], parts[1]["probabilities"], atol=1e-4)


def test_views_that_splits_share_are_computed_once(make: Make, tmp_path: Path) -> None:
    paths = make("train.augment=none")
    run(paths, shard)
    record = paths.load()
    images = open_images(Run.load(paths.folder))
    rows = images.rows("train")
    ranks = RankContext.single_process("cache", paths)
    fill_cache(record, images.only(train=rows, val=rows), pretrained_classifier(record, images.manifest), ranks)
    assert num_rows(tmp_path) == 2 * len(rows)


def test_images_that_are_read_otherwise_are_computed_again(make: Make, tmp_path: Path) -> None:
    paths = make("train.augment=none")
    run(paths, shard)
    record, images = paths.load(), open_images(Run.load(paths.folder))
    ranks = RankContext.single_process("cache", paths)
    for number, reading in enumerate(["", "1", "1 (0.0, 4095.0)", "1"], start=1):
        manifest = images.manifest.model_copy(update={"reading": reading})
        fill_cache(record, replace(images, manifest=manifest), pretrained_classifier(record, manifest), ranks)
        assert num_rows(tmp_path) == 2 * 36 * min(number, 3)


def test_new_images_alone_are_computed(make: Make, tmp_path: Path, write_folders: Callable[..., Path]) -> None:
    run(make("run=one", "train.augment=none"))
    before = blocks(tmp_path)
    extra = write_folders(tmp_path / "extra", each=20)
    for name in ("blue", "green", "red"):
        (extra / name / f"{name}19.jpg").rename(tmp_path / "images" / name / "new.jpg")
    run(make("run=two", "train.augment=none"))
    assert {file: time for file, time in blocks(tmp_path).items() if file in before} == before
    assert num_rows(tmp_path) == 2 * (36 + 3)


@pytest.mark.parametrize("spoils", ["numbers", "keys", "gone"])
def test_a_damaged_block_is_computed_again_and_said(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture, spoils: str
) -> None:
    run(make("run=one"))
    whole = {file.name: file.read_bytes() for file in blocks(tmp_path)}
    victim = min(blocks(tmp_path))
    if spoils == "gone":
        victim.unlink()
    else:
        file = victim if spoils == "numbers" else victim.with_suffix(".npz")
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    run(make("run=two"))
    assert f"{victim}: checksum mismatch; its activations will be computed again" in caplog.text
    assert {file.name: file.read_bytes() for file in blocks(tmp_path)} == whole


def test_what_a_kill_has_left_of_a_block_goes_when_it_is_old(make: Make, tmp_path: Path) -> None:
    run(make("run=one"))
    whole = set((tmp_path / "space" / "cache").rglob("*.*"))
    folder = next(iter(blocks(tmp_path))).parent
    left = [folder / name for name in ("0123456789abcdef.npy", ".0123456789abcdef.npz.abcdefgh")]
    for file in left:
        file.touch()
    run(make("run=two"))
    assert set(folder.parent.rglob("*.*")) == whole | set(left), "another run may be writing them"
    for file in left:
        os.utime(file, (0, 0))
    run(make("run=three"))
    assert set(folder.parent.rglob("*.*")) == whole


def test_activations_that_went_after_caching_are_named_by_train(make: Make, tmp_path: Path) -> None:
    paths = run(make())
    for file in blocks(tmp_path):
        file.unlink()
    with pytest.raises(UserError, match=r"activations are missing; remove .*markers/cache\.json and run python -m"):
        train.run(paths.folder)


@pytest.mark.parametrize(
    ("overrides", "says", "num_cached"),
    [
        (["cache.budget_gb=1e-6"], "exceeds cache.budget_gb = 1e-06, so it runs without the cache", 0),
        (["cache.enabled=false"], "phase 0, cut pool: not cached (cache.enabled is false)", 0),
        (["train.crop_scale=0.5"], "not cached (random crops are drawn again in every epoch; train.random_views=8", 0),
        (["phase.0.mixup=0.2"], "phase 0, cut pool: not cached (mixup and cutmix need images)", 1),
        (["phase.1.cut=none"], "phase 1, cut none: not cached (nothing is frozen)", 1),
        (["phase.0.cut=blocks.0"], "phase 1, cut blocks.1: not cached (an earlier phase trains layers that", 1),
        (["phase.0.cut=blocks.1"], "", 2),
    ],
)
def test_a_phase_that_cannot_be_cached_says_why_and_trains_all_the_same(
    make: Make, caplog: pytest.LogCaptureFixture, overrides: list[str], says: str, num_cached: int
) -> None:
    caplog.set_level(logging.INFO)
    paths = run(make("phase.0.epochs=1", "phase.1.epochs=1", *overrides), shard, cache, train, predict)
    assert says in caplog.text
    outputs = json.loads(paths.marker("cache").read_text("utf-8"))["outputs"]
    assert len(outputs) == 3 * num_cached
    assert paths.best.exists()


def test_a_full_disk_runs_without_the_cache(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tlbatch.activations.fill.free_bytes", lambda _: 1000)
    paths = run(make("phase.0.epochs=1", "phase.1.epochs=1"), shard, cache, train)
    assert "of disk are free, so it runs without the cache" in caplog.text
    assert paths.best.exists()


@pytest.mark.parametrize(("dtype", "size", "tolerance"), [("fp32", 4, 0), ("fp16", 2, 1e-3), ("bf16", 2, 1e-2)])
def test_a_store_gives_back_what_it_was_given_in_any_order_and_type(
    tmp_path: Path, dtype: str, size: int, tolerance: float
) -> None:
    maps = torch.randn(6, 5, 4, 3).contiguous(memory_format=torch.channels_last)
    contents = np.array([f"{number:032x}".encode() for number in range(3)])
    keys = view_keys(contents, (0, 2))
    store = ActivationStore(tmp_path, dtype)  # type: ignore[arg-type]
    store.add(keys[:2], maps[:2])
    store.add(keys[2:], maps[2:])
    found = ActivationStore(tmp_path, dtype)  # type: ignore[arg-type]
    order = np.array([5, 0, 3, 3])
    read = found.read(found.find(keys[order]))
    assert read.element_size() == size
    assert read.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(read.float(), maps[order], rtol=tolerance, atol=tolerance)
    assert found.missing(view_keys(contents[:1], (0, 1))).tolist() == [False, True]
    with pytest.raises(UserError, match="activations are missing"):
        found.find(view_keys(contents, (7,)))


def test_vectors_are_exported_as_npz_and_text_with_parallel_rows(make: Make) -> None:
    paths = run(make("train.augment=rot4"))
    for text in ([], ["--text"]):
        done = subprocess.run(
            [sys.executable, "-m", "tlbatch.vectors", paths.folder, *text], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(paths.folder / "vectors")
    with np.load(paths.folder / "vectors" / "images.npz") as data:
        table = {name: data[name] for name in ("X", "y", "f", "split")}
    assert table["X"].shape == (36, 256)
    lines = {
        letter: (paths.folder / "vectors" / f"images-{letter}.txt").read_text("utf-8").split() for letter in "Xyfs"
    }
    assert np.allclose([[float(value) for value in line.split(",")] for line in lines["X"]], table["X"], atol=1e-5)
    assert [int(label) for label in lines["y"]] == table["y"].tolist()
    assert lines["f"] == table["f"].tolist()
    assert lines["s"] == table["split"].tolist()
    assert {(name.split("/")[0], label) for name, label in zip(lines["f"], lines["y"], strict=True)} == {
        ("blue", "0"), ("green", "1"), ("red", "2"),
    }  # fmt: skip
    record = paths.load()
    images = open_images(Run.load(paths.folder))
    model = build_classifier(record.job, 3).eval()
    model.set_cut("pool", freeze_batch_norm=True)
    rows = images.rows("test")[:3]
    batch = SplitDataset(images, rows, Samples(3, Views(32))).__getitems__([0, 1, 2])
    found = table["X"][[lines["f"].index(key.decode()) for key in images.index["key"][rows]]]
    assert np.allclose(model.to_cut(batch.inputs).numpy(), found, atol=1e-4)
    wrong = [sys.executable, "-m", "tlbatch.vectors", paths.folder, "--phase", "7"]
    done = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not cached; choose another with --phase" in done.stderr


def test_a_run_that_begins_with_the_weights_of_another_shares_what_that_one_has_left_as_it_was(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    phases = "phase=[{cut='blocks.1', epochs=1, optimizer={lr=1e-2}}]"
    first = run(make("run=first", phases), shard, cache, train)
    before = num_rows(tmp_path)
    run(make("run=second", phases, f"model.weights={first.folder}"))
    assert num_rows(tmp_path) == before
    assert "of which 0 (0 GB) are to be computed" in caplog.text
    behind = "phase=[{cut='blocks.3', epochs=1}]"  # after what the first has trained
    run(make("run=third", behind))
    before = num_rows(tmp_path)
    run(make("run=fourth", behind, f"model.weights={first.folder}"))
    assert num_rows(tmp_path) > before


def test_a_full_disk_is_named(make: Make, tmp_path: Path, tiny_disk: Path) -> None:
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "cache").symlink_to(tiny_disk)
    with pytest.raises(UserError, match="no space left on the device"):
        run(make())
    assert not list(tiny_disk.glob("*/.*.npy.*"))
