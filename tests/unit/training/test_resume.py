"""Trainings that are interrupted, in this process, and what they come to when they go on."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tlbatch import cache, choose, predict, reduce, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import StoppedError, UserError
from tlbatch.data.dataset import SampleBatch
from tlbatch.distributed import process_group
from tlbatch.evaluation import inference
from tlbatch.evaluation.prediction_parts import Part
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import RunRecord, load_record
from tlbatch.runs.signals import StopFlag
from tlbatch.runs.strategy import Strategy
from tlbatch.training import loop, phases, snapshot
from tlbatch.training.search import Study
from tlbatch.training.snapshot import SnapshotRecord
from tlbatch.training.train import KILL_WAIT

pytestmark = pytest.mark.chain

JOBS = {
    "plain": [],
    "dropped": ["head.dropout=0.5", "phase.1.optimizer={name='sgd', lr=1e-2, momentum=0.9}", "phase.1.patience=1"],
    "averaged": [
        (
            "phase=[{cut='pool', fit='ridge'}, {cut='blocks.1', epochs=3, ema=0.5, average=true, schedule='cosine', "
            "warmup=0.2, optimizer={lr=1e-2, decay_to='start', weight_decay=0.1}}]"
        ),
    ],
    "images": ["cache.enabled=false", "phase.1.mixup=0.2", "phase.1.balance='sampler'", "phase.1.accumulate=2"],
    "views": ["train.augment='rot4'", "train.tta=true", "data.split.val=0.5", "train.workers=1"],
    "patient": ["phase.1.epochs=9", "phase.1.patience=2", "phase.1.optimizer={name='sgd', lr=1e-30}"],
    "statistics": ["phase.1.batch_norm='train'"],
    "phrases": ["objective='tags'", "data.tag_separator='e'", "decoder={hidden=16}", "phase.1.label_smoothing=0.1"],
    "unjudged": ["data.split.val=0", "phase.0.fit='logistic'", "phase.0.epochs=1"],
}


@pytest.fixture(scope="module")
def make(
    tmp_path_factory: pytest.TempPathFactory, tiny_job: Path, write_folders: Callable[..., Path]
) -> Callable[..., RunPaths]:
    folder = tmp_path_factory.mktemp("resume")
    write_folders(folder / "images")

    def made(*overrides: str, cached: bool = True) -> RunPaths:
        fixed = [f"data.images={folder / 'images'}", f"workspace={folder / 'space'}"]
        paths = make_run(resolve(load_job([tiny_job], [*fixed, *overrides]))).paths
        shard.run(paths.folder)
        if cached:
            cache.run(paths.folder)
        return paths

    return made


class Interrupter:
    """Asks every training to end at the calls, counted from its last begin, that a list names."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at: Iterator[int] = iter(())
        self._left = -1
        self._flags: list[StopFlag] = []
        monkeypatch.setattr(process_group, "StopFlag", self._flag)
        step, judge = loop.RankConsensus.sync, phases.validate

        def sync(consensus: loop.RankConsensus, **_: bool) -> None:
            self.count()
            step(consensus, at_once=True)

        def validate(*args: Any) -> Any:
            self.count()
            return judge(*args)

        monkeypatch.setattr(loop.RankConsensus, "sync", sync)
        monkeypatch.setattr(phases, "validate", validate)

    def _flag(self) -> StopFlag:
        self._flags = [StopFlag()]
        self._left = next(self.at, -1)
        return self._flags[0]

    def count(self) -> None:
        """Called at every place where a training can be asked to end."""
        self._left -= 1
        if self._left == 0:
            self._flags[0].signal_name = "SIGUSR2"


@pytest.fixture
def interrupter(monkeypatch: pytest.MonkeyPatch) -> Interrupter:
    return Interrupter(monkeypatch)


def num_interruptions(paths: RunPaths, interrupter: Interrupter, at: list[int]) -> int:
    """Train until it is finished; how often it was interrupted."""
    interrupter.at = iter(at)
    for interruptions in range(1000):
        try:
            train.run(paths.folder)
        except StoppedError:
            continue
        return interruptions
    raise AssertionError("it never ended")


def results(paths: RunPaths) -> dict[str, Any]:
    """All that must be the same to the last bit."""
    timed = {"seconds", "val_seconds", "images_per_s"}
    lines = [json.loads(line) for line in paths.metrics.read_text("utf-8").splitlines()]
    return {
        "files": {
            file.name: file.read_bytes() for file in paths.checkpoints.iterdir() if file.suffix in (".json", ".npz")
        },
        "weights": {
            file.name: {key: value.numpy().tobytes() for key, value in safetensors.torch.load_file(file).items()}
            for file in paths.checkpoints.glob("*.safetensors")
        },
        "metrics": [{key: value for key, value in line.items() if key not in timed} for line in lines],
    }


@pytest.fixture(scope="module")
def undisturbed(make: Callable[..., RunPaths]) -> Callable[[str], dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}

    def run(name: str) -> dict[str, Any]:
        if name not in found:
            paths = make(f"run={name}-whole", *JOBS[name])
            train.run(paths.folder)
            found[name] = results(paths)
        return found[name]

    return run


@pytest.mark.parametrize("name", JOBS)
def test_a_training_that_is_interrupted_everywhere_ends_with_the_same_bits(
    make: Callable[..., RunPaths], undisturbed: Callable[[str], dict[str, Any]], interrupter: Interrupter, name: str
) -> None:
    """Lives that are ended at the second, third or fifth place that they come to: a step, or a validation."""
    whole = undisturbed(name)
    paths = make(f"run={name}-cut", *JOBS[name])
    assert num_interruptions(paths, interrupter, [2, 3, 2, 5] * 100) > 3
    assert results(paths) == whole
    assert not paths.snapshots.exists()
    assert len(list(paths.checkpoints.glob("*.safetensors"))) == 1


@pytest.mark.parametrize("name", ["dropped", "images"])
def test_a_training_that_is_killed_goes_on_from_the_last_snapshot_to_the_same_bits(
    make: Callable[..., RunPaths],
    undisturbed: Callable[[str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """A kill in the middle of writing a snapshot, in an attempt that has written others."""
    whole = undisturbed(name)
    paths = make(f"run={name}-killed", *JOBS[name], "slurm.snapshot_interval_min=1e-9")
    sync, write = loop.RankConsensus.sync, snapshot._write
    writes = 0

    def killed(path: Path, state: snapshot.StateDict) -> str:
        nonlocal writes
        writes += 1
        if writes % 7 == 0:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        return write(path, state)

    monkeypatch.setattr(loop.RankConsensus, "sync", lambda consensus, **_: sync(consensus, at_once=True))
    monkeypatch.setattr(snapshot, "_write", killed)
    interruptions = 0
    while not paths.marker("train").exists():
        try:
            train.run(paths.folder)
        except KeyboardInterrupt:
            interruptions += 1
            assert len(list(paths.snapshots.glob("*.tmp"))) == 1
            assert len([folder for folder in paths.snapshots.iterdir() if folder.suffix != ".tmp"]) in (1, 2)
    assert interruptions > 1
    assert results(paths) == whole


def stopped(make: Callable[..., RunPaths], interrupter: Interrupter, run: str, *overrides: str) -> RunPaths:
    """A training with two snapshots that was ended in its second phase."""
    paths = make(f"run={run}", *JOBS["plain"], *overrides)
    for at in (6, 2):
        interrupter.at = iter([at])
        with pytest.raises(StoppedError, match=r"by SIGUSR2 in phase \d epoch \d step \d; .*submit RUN") as stop:
            train.run(paths.folder)
        assert stop.value.again
    assert len(list(paths.snapshots.iterdir())) == 2
    return paths


def newest(paths: RunPaths) -> Path:
    return max(paths.snapshots.iterdir())


@pytest.mark.parametrize("file", ["shared.pt", "rank-00000.pt", "snapshot.json"])
@pytest.mark.parametrize("damage", ["flipped", "short", "gone"])
def test_a_damaged_snapshot_is_passed_over_with_a_warning(
    make: Callable[..., RunPaths],
    undisturbed: Callable[[str], dict[str, Any]],
    interrupter: Interrupter,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: str,
) -> None:
    paths = stopped(make, interrupter, f"{damage}-{file}")
    victim, data = newest(paths) / file, bytearray((newest(paths) / file).read_bytes())
    data[len(data) // 2] ^= 4
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(data if damage == "flipped" else data[:-9])
    older = min(paths.snapshots.iterdir())
    caplog.set_level("INFO")
    train.run(paths.folder)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert str(victim) in warnings[0] or str(victim.parent) in warnings[0]
    assert f"resumes in phase {older.name[5]}" in caplog.text
    assert results(paths) == undisturbed("plain")


def test_with_all_snapshots_damaged_the_training_begins_anew(
    make: Callable[..., RunPaths], undisturbed: Callable[[str], dict[str, Any]], interrupter: Interrupter
) -> None:
    paths = stopped(make, interrupter, "hopeless")
    for folder in paths.snapshots.iterdir():
        (folder / "shared.pt").write_bytes(b"")
    train.run(paths.folder)
    assert results(paths) == undisturbed("plain")


def test_a_snapshot_of_another_job_is_refused(make: Callable[..., RunPaths], interrupter: Interrupter) -> None:
    paths = stopped(make, interrupter, "other")
    file = newest(paths) / "snapshot.json"
    record = load_record(SnapshotRecord, file, missing="")
    record.model_copy(update={"inputs": record.inputs | {"job": "0"}}).signed().save(file)
    with pytest.raises(UserError, match="the training started with another job; submit the job again"):
        train.run(paths.folder)


def test_with_another_number_of_ranks_the_rest_of_the_epoch_is_seen_once(
    make: Callable[..., RunPaths],
    interrupter: Interrupter,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = stopped(make, interrupter, "ranks")
    file = newest(paths) / "snapshot.json"
    record = load_record(SnapshotRecord, file, missing="")
    record.model_copy(update={"world_size": 3}).signed().save(file)
    seen: list[int] = []
    add = loop.RankConsensus.add

    def watched(consensus: loop.RankConsensus, batch: SampleBatch, loss: torch.Tensor) -> None:
        epoch = consensus._state.epoch
        if (epoch.phase, epoch.number) == (record.place.phase, record.place.epoch):
            seen.extend(batch.positions.tolist())
        add(consensus, batch, loss)

    monkeypatch.setattr(loop.RankConsensus, "add", watched)
    train.run(paths.folder)
    assert "saved by 3 ranks and resumed by 1: every remaining sample of the epoch is used once" in caplog.text
    assert 0 < record.place.position < 21
    assert len(seen) == len(set(seen)) == 21 - record.place.position


def test_a_prediction_that_is_interrupted_goes_on_and_every_image_is_predicted_once(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = [
        "train.augment='rot4'",
        "train.tta=true",
        "train.batch_size=2",
        "phase.0.epochs=1",
        "phase.1.epochs=1",
    ]
    whole, cut = (make(f"run=predict-{name}", *one, "data.split.val=0.4") for name in ("whole", "cut"))
    for paths in (whole, cut):
        train.run(paths.folder)
    predict.run(whole.folder)
    flags: list[StopFlag] = []
    work = inference._predict_rows

    def flag() -> StopFlag:
        flags.append(StopFlag())
        return flags[-1]

    def interrupted(*args: Any, **options: Any) -> Iterator[Part]:
        for number, part in enumerate(work(*args, **options)):
            if number == 2:
                flags[-1].signal_name = "SIGUSR2"
            yield part

    monkeypatch.setattr(process_group, "StopFlag", flag)
    monkeypatch.setattr(inference, "_predict_rows", interrupted)
    interruptions = 0
    while not cut.marker("predict").exists():
        try:
            predict.run(cut.folder)
        except StoppedError:
            interruptions += 1
    assert interruptions > 2
    assert len(list(cut.predictions.iterdir())) == interruptions + 1
    for paths in (whole, cut):
        reduce.run(paths.folder)
    assert (whole.report / "predictions.csv").read_bytes() == (cut.report / "predictions.csv").read_bytes()


@pytest.mark.usefixtures("fewer_fits")
def test_a_choice_that_is_interrupted_goes_on_with_what_it_has_found(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = {}
    trained: dict[str, list[str]] = {}
    work = Study._train_fold
    for name in ("whole", "cut"):
        paths = make(f"run=choice-{name}", "strategy='auto'", "phase=[]", "data.split.val=0", cached=False)
        trained[name] = []

        def counted(study: Study, record: RunRecord, *args: Any, at: list[str] = trained[name]) -> Any:
            at.append(record.job.phase[-1].cut)
            if at is trained.get("cut") and len(at) in (3, 4):
                raise KeyboardInterrupt
            return work(study, record, *args)

        monkeypatch.setattr(Study, "_train_fold", counted)
        while not paths.marker("choose").exists():
            with suppress(KeyboardInterrupt):
                choose.run(paths.folder)
        found = load_record(Strategy, paths.strategy, missing="").model_dump()
        for trial in (*found["profile"], *found["short_list"]):
            trial["seconds"] = 0
        chosen[name] = found
        assert not paths.trials.exists()
    assert chosen["cut"] == chosen["whole"]
    assert len(trained["cut"]) == len(trained["whole"]) + 2


def test_saving_that_takes_longer_than_slurm_leaves_is_warned_of_once(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KILL_WAIT, "1")  # a second to leave in: nothing remains to save in
    paths = make("run=slow-disk", "slurm.snapshot_interval_min=1e-9", "slurm.signal_delay_s=100")
    sync = loop.RankConsensus.sync
    monkeypatch.setattr(loop.RankConsensus, "sync", lambda consensus, **_: sync(consensus, at_once=True))
    train.run(paths.folder)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [
        (
            "saving took 0 s, but only 0 s are available: a job that is preempted or requeued at once loses up to "
            "slurm.snapshot_interval_min = 1e-09 min; KillWait in slurm.conf is too short"
        ),
    ]
