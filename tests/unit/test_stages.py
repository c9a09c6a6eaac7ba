"""The stages in this process, on small images and a tiny network with random weights."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from filelock import FileLock
from PIL import Image
from sklearn.metrics import cohen_kappa_score

from tlbatch import cache, predict, reduce, shard, train
from tlbatch.activations.batches import BatchSource
from tlbatch.activations.store import open_stores, view_keys
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import open_images
from tlbatch.data.views import Samples, Views
from tlbatch.evaluation.prediction_parts import Part, Width, write_part
from tlbatch.model import checkpoint
from tlbatch.model.backbones import build_backbone
from tlbatch.model.checkpoint import trained_classifier
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Best, Marker, load_record
from tlbatch.runs.report import SCORES
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import leaderboard
from tlbatch.runs.world import World
from tlbatch.training import phases
from tlbatch.training.train import _check_batches

pytestmark = pytest.mark.chain
ORDER = "data.classes=['blue','green','red']"
"""The order that the colours have where one is needed."""


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path]) -> Callable[..., RunPaths]:
    def made(*overrides: str) -> RunPaths:
        images = tmp_path / "images"
        if not images.exists():
            make_folders()
        return make_run(
            resolve(load_job([tiny_job], [f"data.images={images}", f"workspace={tmp_path / 'space'}", *overrides]))
        ).paths

    return made


def run_all(paths: RunPaths) -> RunPaths:
    for stage in (shard, cache, train, predict, reduce):
        stage.run(paths.folder)
    return paths


def report_of(paths: RunPaths) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(paths.report_json.read_text(encoding="utf-8"))
    return report


def test_images_become_a_report_a_submission_and_a_row_of_the_leaderboard(copy_run: Callable[..., RunPaths]) -> None:
    paths = copy_run()
    report = report_of(paths)
    assert report["n"] == 9
    assert np.array(report["confusion"]).sum(axis=1).tolist() == [3, 3, 3]
    assert report["counts"] == {"train": [7, 7, 7], "val": [2, 2, 2], "test": [3, 3, 3]}
    assert report["audit"]["across"] == {
        "val in train": 0, "test in train": 0, "test in val": 0, "test in train or val": 0,
    }  # fmt: skip
    assert set(report["scores"]) == set(SCORES)
    assert [row["name"] for row in report["classes"]] == ["blue", "green", "red"]
    assert report["cost"]["hosts"]
    assert report["cost"]["images_per_s"] > 0
    predictions = pd.read_csv(paths.report / "predictions.csv")
    assert predictions["image"].is_unique
    assert predictions["split"].value_counts().to_dict() == {"test": 9, "val": 6}
    assert np.allclose(predictions[["p_blue", "p_green", "p_red"]].sum(axis=1), 1, atol=1e-5)
    test = predictions[predictions["split"] == "test"]
    assert report["score"] == pytest.approx((test["label"] == test["prediction"]).mean())
    submission = pd.read_csv(paths.report / "submission.csv")
    assert submission.columns.tolist() == ["image", "label"]
    assert submission["image"].tolist() == test["image"].tolist()
    board = pd.read_csv(leaderboard(paths.load().job))
    assert board[["rank", "run", "score"]].to_numpy().tolist() == [[1, "one", report["score"]]]
    lines = [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]
    assert [(line["phase"], line["epoch"]) for line in lines] == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_same_job_gives_the_same_weights_and_report_again(make: Callable[..., RunPaths]) -> None:
    one, two = run_all(make("run=one")), run_all(make("run=two"))
    other = {"run": "", "cost": {}}
    assert report_of(one) | other == report_of(two) | other
    assert (one.report / "predictions.csv").read_bytes() == (two.report / "predictions.csv").read_bytes()
    board = pd.read_csv(leaderboard(one.load().job))
    assert board[["rank", "run"]].to_numpy().tolist() == [[1, "one"], [1, "two"]]
    assert report_of(run_all(make("run=three", "seed=1")))["digests"] != report_of(one)["digests"]


def test_a_finished_stage_does_nothing_and_another_job_there_is_refused(
    copy_run: Callable[..., RunPaths],
) -> None:
    paths = copy_run()
    before = {file: file.stat().st_mtime_ns for file in paths.folder.rglob("*") if file.is_file()}
    run_all(paths)
    assert {file: file.stat().st_mtime_ns for file in paths.folder.rglob("*") if file.is_file()} == before
    record = paths.load()
    record.model_copy(update={"job": record.job.model_copy(update={"seed": 5})}).save(paths.record)
    with pytest.raises(UserError, match="train finished here with another job"):
        train.run(paths.folder)


def test_the_leaderboard_can_be_deleted_and_comes_back_byte_for_byte(copy_run: Callable[..., RunPaths]) -> None:
    paths = copy_run()
    board = leaderboard(paths.load().job)
    before = board.read_bytes()
    board.unlink()
    reduce.run(paths.folder)
    assert board.read_bytes() == before


def test_the_leaderboard_is_written_before_the_marker_without_which_a_run_goes_on(
    copy_run: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = copy_run("predict")
    board = leaderboard(paths.load().job)
    with monkeypatch.context() as patched:
        patched.setattr(Marker, "save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            reduce.run(paths.folder)
    assert pd.read_csv(board)["run"].tolist() == ["one"]
    assert Run.load(paths.folder).stages_left == ("reduce",)


def test_a_training_that_was_killed_before_it_removed_its_snapshots_goes_on_to_do_so(
    copy_run: Callable[..., RunPaths],
) -> None:
    paths = copy_run("train")
    assert Run.load(paths.folder).stages_left == ("predict", "reduce")
    before = paths.best.stat().st_mtime_ns
    (paths.snapshots / "step-1.1.3").mkdir(parents=True)
    assert Run.load(paths.folder).stages_left == ("train", "predict", "reduce")
    train.run(paths.folder)
    assert paths.best.stat().st_mtime_ns == before
    assert Run.load(paths.folder).stages_left == ("predict", "reduce")


def test_a_stage_removes_what_kills_have_left_in_its_run_folder(copy_run: Callable[..., RunPaths]) -> None:
    paths = copy_run("train")
    paths.predictions.mkdir()
    files = [
        paths.predictions / ".part-00000-of-00001.npz.abcdefg_",
        paths.marker("predict").parent / ".a.json.01234567",
    ]
    for file in files:
        file.touch()
    folder = paths.folder / ".figures.abcdefgh"
    (folder / "deep").mkdir(parents=True)
    predict.run(paths.folder)
    assert [path for path in (*files, folder) if path.exists()] == []


def test_what_lies_before_the_cut_is_byte_identical_after_training(make: Callable[..., RunPaths]) -> None:
    paths = run_all(make("phase.0.epochs=1", "train.augment=none", "data.split.val=0"))
    record = paths.load()
    torch.manual_seed(record.job.seed)
    start = build_backbone(record.job.model).net.state_dict()
    end = safetensors.torch.load_file(next(paths.checkpoints.glob("*.safetensors")))
    changed = {key for key, value in start.items() if not torch.equal(value, end[f"backbone.{key}"])}
    assert {key.split(".")[0] for key in changed} == {"blocks", "conv_head"}
    assert {key.split(".")[1] for key in changed if key.startswith("blocks")} == {"2", "3", "4"}
    assert not any("running" in key for key in changed)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.backbone=timm:test_eficientnet", "timm has no 'test_eficientnet'; similar: test_efficientnet"),
        ("model.backbone=resnet51", "torchvision has no classifier 'resnet51'; similar: resnet"),
        ("model.backbone=jax:resnet", "must be timm:NAME or the name of a torchvision classifier"),
        ("phase.1.cut=block.1", "phase cut 'block.1': no such module in the backbone; similar: blocks.1"),
        ("train.mixed_precision=fp16", "fp16 needs a GPU; set it to bf16 or no"),
        (
            f"objective=regression {ORDER} phase.0.grad_clip=0 phase.0.optimizer={{name='sgd',lr=1e6}}",
            "the loss is not finite in phase 0 epoch 1 step 1 (images ",
        ),
    ],
)
def test_a_bad_model_or_cut_is_named_with_what_there_is(
    make: Callable[..., RunPaths], override: str, says: str
) -> None:
    paths = make(*override.split())
    shard.run(paths.folder)
    with pytest.raises(UserError, match=re.escape(says)):
        for stage in (cache, train):
            stage.run(paths.folder)
    assert not paths.marker("train").exists()
    with pytest.raises(UserError, match="run train first"):
        predict.run(paths.folder)


def test_a_network_that_diverges_in_its_last_step_is_not_scored(make: Callable[..., RunPaths]) -> None:
    """The loss of a step is that before it; without validation images only the predictions tell."""
    last = "phase=[{cut='none',warmup=0,grad_clip=0,optimizer={name='sgd',lr=1e6,backbone_lr=1e6,momentum=0}}]"
    for val, stage in (("0.2", train), ("0", predict)):
        paths = make(
            last, "train.batch_size=64", f"data.split.val={val}", f"run=val{val}", "objective=regression", ORDER
        )
        with pytest.raises(UserError, match="not finite"):
            for one in (shard, cache, train, predict):
                one.run(paths.folder)
        assert not paths.marker("train" if stage is train else "predict").exists()


def test_what_was_changed_or_removed_after_a_stage_is_noticed(copy_run: Callable[..., RunPaths]) -> None:
    paths = copy_run()
    before = report_of(paths) | {"cost": {}}
    paths.report_json.unlink()
    shutil.rmtree(paths.predictions)
    for stage in (predict, reduce):  # made again
        stage.run(paths.folder)
    assert report_of(paths) | {"cost": {}} == before
    record = paths.load_submitted()
    record.model_copy(update={"job": record.job.model_copy(update={"decision": "expected-grade"})}).save(paths.record)
    for stage, done in ((train, "train"), (predict, "train"), (reduce, "predict")):
        with pytest.raises(UserError, match=f"{done} finished here with another job"):
            stage.run(paths.folder)
    record.save(paths.record)
    index = Run.load(paths.folder).set_paths.index_file
    rows = np.load(index)
    rows["label"][0] = 1 - rows["label"][0]
    np.save(index, rows)
    with pytest.raises(UserError, match=r"index\.npy: missing or not as it was written"):
        train.run(paths.folder)


def test_a_head_of_other_classes_is_refused(make: Callable[..., RunPaths]) -> None:
    first = run_all(make("run=one"))
    other = make("run=two", f"head.weights={first.folder}", "data.classes=['red','green','blue']")
    shard.run(other.folder)
    with pytest.raises(UserError, match="has the classes blue, green, red, but this job has red, green, blue"):
        cache.run(other.folder)


def test_a_stage_runs_once_at_a_time_in_a_folder(make: Callable[..., RunPaths]) -> None:
    paths = make()
    shard.run(paths.folder)
    with FileLock(paths.marker("cache").with_suffix(".lock")), pytest.raises(UserError, match="is already running"):
        cache.run(paths.folder)
    cache.run(paths.folder)


def test_a_cut_off_block_of_the_cache_is_named_by_train_and_made_again_by_cache(make: Callable[..., RunPaths]) -> None:
    paths = make()
    for stage in (shard, cache):
        stage.run(paths.folder)
    for block in (paths.folder.parents[1] / "cache").rglob("*.npy"):
        block.write_bytes(block.read_bytes()[:200])
    with pytest.raises(UserError, match="activations are missing"):
        train.run(paths.folder)
    paths.marker("cache").unlink()
    for stage in (cache, train):
        stage.run(paths.folder)


def test_a_lost_doubled_or_foreign_prediction_stops_reduce(copy_run: Callable[..., RunPaths]) -> None:
    paths = copy_run("predict")
    (part,) = paths.predictions.iterdir()
    with np.load(part) as data:
        whole = Part.of_classes(data["rows"], data["probabilities"], data["grades"], {})
        header = json.loads(str(data["header"]))

    def expect(says: str, *parts: Part, head: dict[str, str] = header) -> None:
        shutil.rmtree(paths.predictions)
        for one in parts:
            write_part(paths.predictions, one, head)
        with pytest.raises(UserError, match=says):
            reduce.run(paths.folder)

    def share(start: int, end: int | None = None) -> Part:
        some = slice(start, end)
        return Part.of_classes(whole.rows[some], whole.probabilities[some], whole.grades[some], {})

    expect("1 image not predicted, the first is", share(1))
    expect("15 images predicted twice", whole, share(0, 8), share(8))
    expect("made with weights ", whole, head=header | {"weights": "0"})
    expect(r"shape \(15, 2\), not \(15, 3\)", Part.of_classes(whole.rows, whole.probabilities[:, :2], whole.grades, {}))
    expect(
        r"grades have shape \(14,\), not \(15,\)",
        Part.of_classes(whole.rows, whole.probabilities, whole.grades[1:], {}),
    )
    expect("no predictions; run predict first")
    assert not paths.report_json.exists()
    half = [share(8), share(0, 8), Width(3).no_images()]
    for one in half:
        write_part(paths.predictions, one, header)
    reduce.run(paths.folder)
    write_part(paths.predictions, share(0, 0), header | {"more": "x"})
    with pytest.raises(UserError, match="reduce finished here with another predictions"):
        reduce.run(paths.folder)
    in_three = {file.name: file.read_bytes() for file in paths.report.glob("*.*")}
    assert set(in_three) == {"predictions.csv", "submission.csv", "report.json", "report.html"}
    shutil.rmtree(paths.predictions)
    paths.marker("reduce").unlink()
    write_part(paths.predictions, whole, header)
    reduce.run(paths.folder)
    assert {file.name: file.read_bytes() for file in paths.report.glob("*.*")} == in_three


def test_a_test_image_that_rots_after_sharding_is_an_error_row_and_not_scored(make: Callable[..., RunPaths]) -> None:
    paths = make()
    shard.run(paths.folder)
    images = open_images(Run.load(paths.folder))
    row = images.index[images.rows("test")][4]
    shard_file = images.shards[row["shard"]]
    data = bytearray(shard_file.read_bytes())
    data[int(row["offset"]) : int(row["offset"]) + 40] = bytes(40)
    shard_file.write_bytes(data)
    for stage in (cache, train, predict, reduce):
        stage.run(paths.folder)
    report = report_of(paths)
    assert (report["n"], report["num_errors"]) == (8, 1)
    predictions = pd.read_csv(paths.report / "predictions.csv")
    (lost,) = predictions[predictions["error"].notna()].to_dict("records")
    assert lost["image"] == row["key"].decode()
    assert np.isnan(lost["p_red"])
    submission = pd.read_csv(paths.report / "submission.csv")
    assert (len(submission), int(submission["label"].isna().sum())) == (9, 1)


def test_images_with_several_tags_are_sharded_but_not_trained_on_as_classes(
    make: Callable[..., RunPaths], tmp_path: Path
) -> None:
    make("run=any")
    labels = tmp_path / "labels.csv"
    lines = [f"red{number},{'warm ' if number % 2 else ''}red" for number in range(12)]
    labels.write_text("\n".join(["image,level", *lines]), encoding="utf-8")
    paths = make("data.source=csv", f"data.labels={labels}", "data.tag_separator=' '", "data.split.val=0")
    shard.run(paths.folder)
    with pytest.raises(
        UserError,
        match=r"the images have several tags, but cross-entropy needs one class per image; set objective=tags",
    ):
        cache.run(paths.folder)


def test_bfloat16_trains_and_predicts_on_a_cpu_too(make: Callable[..., RunPaths]) -> None:
    paths = run_all(make("train.mixed_precision=bf16"))
    assert report_of(paths)["n"] == 9
    blocks = [np.load(file).dtype for file in (paths.folder.parents[1] / "cache").rglob("*.npy")]
    assert len(blocks) >= 2  # of both cuts; the second phase takes them in the precision of the first
    assert {str(dtype) for dtype in blocks} == {"uint16"}


def test_a_changed_checkpoint_is_refused(copy_run: Callable[..., RunPaths]) -> None:
    paths = copy_run("train")
    weights = next(paths.checkpoints.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(UserError, match="changed since training"):
        predict.run(paths.folder)


def test_splits_far_from_the_shares_asked_for_are_said_in_log_and_report(
    make: Callable[..., RunPaths], caplog: pytest.LogCaptureFixture
) -> None:
    paths = run_all(make("data.group_pattern=(\\d)$", "data.split.val=0.05", "data.audit=warn", "run=uneven"))
    report = report_of(paths)
    share = report["num_images"]["val"] / 36
    says = f"the val split has {share:.1%} of the images, not 5.0%: groups stay whole, the largest (0) has 6 images"
    assert says in report["warnings"]
    assert says in caplog.text
    assert f"T{says[1:]}." in paths.report_page.read_text("utf-8")
    even = run_all(make("run=even"))
    assert report_of(even)["warnings"] == []


@pytest.mark.parametrize(
    ("stage", "unused"),
    [("shard", "torch"), ("cache", "sklearn"), ("train", "sklearn"), ("predict", "sklearn"), ("reduce", "torch")],
)
def test_a_stage_imports_only_what_it_uses(stage: str, unused: str) -> None:
    code = f"import sys, tlbatch.{stage}; sys.exit({unused!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_stages_in_the_wrong_order_say_which_to_run_first(make: Callable[..., RunPaths], tmp_path: Path) -> None:
    paths = make()
    for stage, first in ((cache, "shard"), (train, "shard"), (predict, "train"), (reduce, "predict")):
        with pytest.raises(UserError, match=f"run {first} first"):
            stage.run(paths.folder)
    with pytest.raises(UserError, match="name a run folder"):
        shard.run(tmp_path)


def test_weights_that_changed_since_submit_are_refused(make: Callable[..., RunPaths], tmp_path: Path) -> None:
    net = build_backbone(make("run=any").load().job.model).net
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(dict(net.state_dict()), file)
    paths = make("run=one", f"model.weights={file}")
    file.write_bytes(file.read_bytes()[:-4] + b"abcd")
    shard.run(paths.folder)
    with pytest.raises(UserError, match="the weights have changed since the job was submitted"):
        cache.run(paths.folder)


def test_fewer_images_in_a_batch_than_ranks_are_refused(make: Callable[..., RunPaths]) -> None:
    paths = make("train.batch_size=1")
    shard.run(paths.folder)
    job = paths.load().job
    with pytest.raises(UserError, match="21 training images in batches of 1 are too few for 2 ranks"):
        _check_batches(job, open_images(Run.load(paths.folder)), World(world_size=2))


@pytest.mark.parametrize("fit", ["logistic", "svm", "kernel-logistic", "neighbours"])
def test_a_head_is_fitted_at_once_and_its_checkpoint_predicts(make: Callable[..., RunPaths], fit: str) -> None:
    views = ["head.view_mean=true", "train.augment=rot4"] if fit == "kernel-logistic" else ["train.augment=none"]
    paths = run_all(make(f"phase=[{{cut='pool', fit='{fit}'}}]", "head.after=['blocks.2', 'pool']", *views))
    report = report_of(paths)
    assert report["score"] >= 0.6  # three colours and a network with random weights
    (line,) = [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]
    assert line["fit"] == fit
    assert len(line["tried"]) >= 5
    predictions = pd.read_csv(paths.report / "predictions.csv")
    val = predictions[predictions["split"] == "val"]
    assert line["val_accuracy"] == pytest.approx((val["label"] == val["prediction"]).mean())


def test_a_rate_is_chosen_and_its_head_is_the_one_that_the_phase_trains_alone(make: Callable[..., RunPaths]) -> None:
    phase = "phase=[{{cut='pool', epochs=20, balance='sampler', optimizer={{name='adamw', lr=0.1}}, lr_grid=[{}]}}]"
    sections = ["head.widths=[8]", "train.augment=rot4"]
    many = run_all(make("run=many", phase.format("1e-9, 0.1"), *sections))
    (line,) = [json.loads(line) for line in many.metrics.read_text(encoding="utf-8").splitlines()]
    assert line["tried"]["0.1"] < line["tried"]["1e-09"]
    alone = run_all(make("run=alone", phase.format(""), "data.split.val=0", *sections))
    chosen = run_all(make("run=chosen", phase.format("0.1"), "data.split.val=0", *sections))
    one, other = (safetensors.torch.load_file(next(run.checkpoints.glob("*.safetensors"))) for run in (alone, chosen))
    for key in one:
        assert torch.allclose(one[key].float(), other[key].float(), atol=1e-4), key


def test_both_eyes_of_a_patient_are_seen_by_the_head(make: Callable[..., RunPaths]) -> None:
    """Images are of one group whose names end alike; the head of one sees its own vector, then that of the other."""
    pairs = [
        "head.group_mean=true",
        r"data.group_pattern=(\d)$",
        "phase=[{cut='pool', fit='ridge'}]",
    ]
    paths = make(*pairs, "train.augment=none", "data.split.val=0")
    run_all(paths)
    job, images = paths.load().job, open_images(Run.load(paths.folder))
    names = load_record(Marker, paths.marker("cache"), missing="").outputs
    rows = images.rows("train")
    stored = open_stores(job, names, phase=0, split="train")
    assert stored is not None
    own = stored.read(stored.find(view_keys(images.index["content"][rows], (0,))))
    feed = BatchSource(images, rows, Views(32), stored, workers=0, head=job.head)
    (batch,) = feed.batches(Samples(len(rows), Views(32)), [np.arange(len(rows))])
    groups = images.index["group"][rows]
    for place, group in enumerate(groups):
        others = [at for at in np.flatnonzero(groups == group) if at != place] or [place]
        assert torch.allclose(batch.inputs[place], torch.cat([own[place], own[others].mean(0)]), atol=1e-6)
    assert any((groups == group).sum() > 1 for group in groups)
    assert report_of(paths)["n"] == len(images.rows("test"))
    uncached = make(*pairs, "train.augment=none", "run=uncached", "cache.budget_gb=1e-9")
    with pytest.raises(UserError, match=r"need cached vectors, and there are none"):
        run_all(uncached)


def test_without_validation_nothing_ends_a_phase_early_or_is_averaged(make: Callable[..., RunPaths]) -> None:
    phase = "phase=[{cut='blocks.1', epochs=4, patience=1, average=true}]"
    paths = run_all(make(phase, "data.split.val=0", "train.tta=true", "decision=expected-grade", ORDER))
    assert len(paths.metrics.read_text(encoding="utf-8").splitlines()) == 4
    best = load_record(Best, paths.best, missing="")
    assert (best.weights, best.views) == ("phase0-epoch3.safetensors", "none")


def test_a_fitted_head_stands_after_its_dropout_and_a_moving_average_counts_batches(
    make: Callable[..., RunPaths],
) -> None:
    fitted = "phase=[{cut='pool', fit='logistic'}, {cut='blocks.1', epochs=1, optimizer={lr=1e-9}}]"
    paths = run_all(make(fitted, "head.dropout=0.5", "run=dropout", "cache.dtype=bf16"))
    lines = [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]
    assert lines[1]["val_accuracy"] == lines[0]["val_accuracy"]
    moving = "phase=[{cut='blocks.1', epochs=2, ema=0.5, average=true}]"
    run_all(make(moving, "head.widths=[8]", "head.batch_norm=true", "run=moving"))


def test_views_are_judged_with_rounded_grades_as_the_upright_ones_were(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    phase = "phase=[{cut='pool', fit='ridge'}, {cut='blocks.2', epochs=2}]"
    seen = []
    original = phases.validate

    def spied(session: Any, feed: Any, views: Any) -> Any:
        seen.append(session.model.thresholds.tolist())
        return original(session, feed, views)

    monkeypatch.setattr(phases, "validate", spied)
    monkeypatch.setattr(checkpoint, "fit_thresholds", lambda *_, **__: np.array([0.2, 0.3]))
    paths = make(phase, "metric=quadratic_kappa", "objective=regression", "train.tta=true", ORDER)
    for stage in (shard, cache, train):
        stage.run(paths.folder)
    tensors = safetensors.torch.load_file(paths.checkpoints / load_record(Best, paths.best, missing="").weights)
    assert tensors["thresholds"].tolist() == pytest.approx([0.2, 0.3])
    assert seen == [[0.5, 1.5]] * len(seen)


def test_views_are_averaged_in_prediction_where_validation_says_so(
    make: Callable[..., RunPaths], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    paths = make("train.tta=true", "train.augment=rot4", "data.split.val=0.3", "slurm.cpus_per_task=1")
    for stage in (shard, cache, train):
        stage.run(paths.folder)
    best = load_record(Best, paths.best, missing="")
    assert f"mean over 4 views: validation {'' if best.views == 'none' else best.val_score}" in caplog.text
    best.model_copy(update={"views": "rot4"}).save(paths.best)
    for stage in (predict, reduce):
        stage.run(paths.folder)
    record = paths.load()
    images = open_images(Run.load(paths.folder))
    rows = images.rows("test")
    model = trained_classifier(record, 3, paths.checkpoints / best.weights).eval()
    dataset = SplitDataset(images, rows, Samples(len(rows), Views(32)))
    squares = dataset.__getitems__(list(range(len(rows)))).inputs
    with torch.inference_mode():
        each = [model.probabilities(model(squares.rot90(turn, (1, 2)))) for turn in range(4)]
    table = pd.read_csv(paths.report / "predictions.csv").query("split == 'test'")
    assert table["image"].tolist() == [key.decode() for key in images.index["key"][rows]]
    assert np.allclose(table[["p_blue", "p_green", "p_red"]], torch.stack(each).mean(0).numpy(), atol=1e-4)


def test_validation_scores_are_those_of_the_predictions_with_views_too(make: Callable[..., RunPaths]) -> None:
    paths = run_all(make("train.tta=true", "train.augment=d4", "data.split.val=0.4", "metric=quadratic_kappa", ORDER))
    best = load_record(Best, paths.best, missing="")
    table = pd.read_csv(paths.report / "predictions.csv").query("split == 'val'")
    names = ["blue", "green", "red"]
    found = cohen_kappa_score(table["label"], table["prediction"], labels=names, weights="quadratic")
    assert best.val_score == pytest.approx(found)


def test_a_fitted_head_is_fine_tuned_by_the_next_phase(make: Callable[..., RunPaths]) -> None:
    paths = run_all(make("phase=[{cut='pool', fit='logistic'}, {cut='blocks.2', epochs=2, optimizer={lr=1e-9}}]"))
    lines = [json.loads(line) for line in paths.metrics.read_text(encoding="utf-8").splitlines()]
    assert [line["phase"] for line in lines] == [0, 1, 1]
    assert lines[1]["val_loss"] == pytest.approx(lines[0]["val_loss"], abs=1e-4)


def test_ordered_grades_are_cut_at_thresholds_that_the_checkpoint_carries(make: Callable[..., RunPaths]) -> None:
    """Classes blue, green, red stand for grades 0, 1, 2."""
    for phase, job in (
        ("phase=[{cut='pool', fit='ridge'}]", ["objective=regression"]),
        ("phase=[{cut='pool', fit='logistic'}]", ["decision=expected-grade"]),
        ("phase=[{cut='blocks.2', epochs=2}]", ["objective=corn", "decision=expected-grade"]),
    ):
        paths = run_all(
            make(
                phase, "metric=quadratic_kappa", ORDER, "data.split.val=0.3", *job, f"run=of-{len(job[0])}{len(phase)}"
            )
        )
        tensors = safetensors.torch.load_file(next(paths.checkpoints.glob("*.safetensors")))
        assert tensors["thresholds"].diff().min() > 0
        assert report_of(paths)["scores"]["quadratic_kappa"]["value"] is not None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["phase.0.fit=logistic", "phase.0.cut=blocks.1"], "phase.0.fit needs frozen features and no hidden layers"),
        (["phase.0.fit=neighbours"], "phase.0.fit = neighbours gives a head that later phases cannot train"),
        (
            ["phase.0.fit=svm", "objective=corn"],
            "phase.0.fit = svm needs objective cross-entropy or tags (got corn); change one",
        ),
        (["phase.0.fit=ridge", "phase.0.mixup=0.2"], "fit has no epochs; leave out mixup"),
        (["phase=[{cut='pool', fit='ridge'}]", "head.weights=x"], "phase.0.fit starts over; leave one of them out"),
        (["phase.0.cut=flatten", "head.pool=gem"], "cut = flatten does not work with head.pool = gem; change one"),
        (["phase.0.lr_grid=[0.1, 0.1]"], "lr_grid must not repeat a rate; name each once"),
        (["phase.0.optimizer={nesterov=true}"], "nesterov needs sgd with momentum; leave it out"),
        (["phase.0.optimizer.lr=1e38"], "phase.0.optimizer.lr: must be at most 1e+30"),
        (["model.mean=[123, 116, 103]"], "model.mean.0: must be at most 1"),
        (["model.std=[0, 1, 1]"], "model.std.0: must be greater than 0"),
        (["data.split.fold=2"], "fold needs folds, which is 0 (got fold 2)"),
        (["data.source=synthetic"], "images are not read with source synthetic, which generates its own"),
        (["data.labels=x.csv"], "labels are read with source csv or acs only; set data.source=csv"),
        (["model.weights="], "model.weights: must not be empty"),
        (["head.view_mean=true"], "head.view_mean needs the cache and cut = pool in all phases; set both"),
        (["phase.0.fit=ridge", "head.pool=gem"], "phase.0 needs fixed vectors, and head.pool = gem is trained"),
        (
            ["phase=[{cut='pool', fit='ridge'}]", "head.group_mean=true", "train.tta=true"],
            "head.group_mean does not work with train.tta; leave one of them out",
        ),
        (["head.group_mean=true"], "head.group_mean needs the cache and cut = pool in all phases"),
        (["phase.1.lr_grid=[0.1]"], "lr_grid needs a head that trains alone; set cut = pool, and leave fit"),
        (["phase.0.lr_grid=[0.1]", "phase.0.ema=0.9"], "lr_grid does not work with ema; leave it out"),
        (["phase.0.lr_grid=[0.1]", "head.batch_norm=true"], "phase.0.lr_grid does not work with head.batch_norm"),
        (["phase.0.lr_grid=[0.1]", "train.crop_scale=0.5"], "phase.0.lr_grid needs a finite number of views"),
        (["head.pool=gem", "head.after=['blocks.1', 'pool']"], "pool gem and attention work on a single module"),
        (["train.tta=true", "train.augment=none"], "tta averages over the symmetries of augment, which is none"),
        (["train.random_views=4"], "random_views needs random crops; set crop_scale below 1"),
        (["train.every_view=true", "train.crop_scale=0.5"], "every_view needs a finite number of views"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_at_submit(
    make: Callable[..., RunPaths], overrides: list[str], says: str
) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        make(*overrides)


def test_the_report_folder_holds_figures_of_what_was_learned(make: Callable[..., RunPaths]) -> None:
    names = {"activations", "filters"}
    paths = run_all(make("figures=true"))
    assert {file.stem for file in (paths.report / "figures").glob("*.png")} == names
    for file in (paths.report / "figures").glob("*.png"):
        with Image.open(file) as image:
            assert len(image.convert("L").getcolors() or range(257)) > 8, file
    again = run_all(make("figures=true", "run=again"))
    for name in names:
        one, other = ((run.report / "figures" / f"{name}.png").read_bytes() for run in (paths, again))
        assert one == other, name
    fitted = run_all(make("figures=true", "run=fitted", "phase=[{cut='pool', fit='neighbours'}]"))
    assert {file.stem for file in (fitted.report / "figures").glob("*.png")} == names
    for paths, drawn in ((again, True), (fitted, False)):
        page = paths.report_page.read_text("utf-8")
        assert page.count('aria-label="Feature map. ') == page.count('aria-label="Confusion matrix. ') == 1
        assert ('aria-label="Loss by epoch. ' in page) == drawn
