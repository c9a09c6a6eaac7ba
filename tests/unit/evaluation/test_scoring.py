import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tlbatch import cache, predict, reduce, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.evaluation.scoring import _cost
from tlbatch.runs import attempts
from tlbatch.runs.attempts import BEGAN, AttemptEnd, AttemptStart, read_attempts
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import ProgressReporter
from tlbatch.runs.records import Marker
from tlbatch.runs.run import Run
from tlbatch.runs.stages import StageName

pytestmark = pytest.mark.chain

STAGES: tuple[StageName, ...] = ("shard", "cache", "train", "predict")


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path]) -> Callable[..., RunPaths]:
    images = make_folders()

    def made(*overrides: str) -> RunPaths:
        where = [f"data.images={images}", f"workspace={tmp_path / 'space'}"]
        return make_run(resolve(load_job([tiny_job], [*where, *overrides]))).paths

    return made


def test_all_lives_cost_gpu_hours_and_a_stage_without_a_ledger_the_life_that_ended_it(
    make: Callable[..., RunPaths],
) -> None:
    paths = make("slurm.gpus_per_node=2")
    run = Run.load(paths.folder)
    for stage in STAGES:
        Marker(stage=stage, inputs={}, outputs={}, world_size=2, seconds=900, hosts=("n1",)).save(paths.marker(stage))
    assert _cost(run, 90).gpu_hours == 1.5
    rows: list[tuple[StageName, float, attempts.Outcome]] = [
        ("train", 3600, "killed"), ("train", 1800, "stopped"), ("train", 900, "finished"), ("reduce", 3600, "failed"),
    ]  # fmt: skip
    for number, (stage, seconds, outcome) in enumerate(rows):
        begin = AttemptStart(
            stage=stage, attempt=f"{number}", job=None, restart=0, hosts="n1", tasks=2, gpus=2, process="n1:1:1",
            time=5,
        )  # fmt: skip
        attempts._append(paths.ledger, begin)
        attempts._append(paths.ledger, AttemptEnd(stage=stage, attempt=f"{number}", outcome=outcome, time=5 + seconds))
    cost = _cost(run, 90)
    assert cost.gpu_hours == 2 * 1.75 + 2 * 0.5
    assert (cost.seconds["train"], cost.images_per_s) == (900, 0.1)


def test_stages_tell_how_far_they_are_and_leave_a_ledger(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[tuple[str, str], list[tuple[int, int]]] = {}
    tell = ProgressReporter.update

    def remember(self: ProgressReporter, done: int, total: int, *, where: str = "", **more: Any) -> None:
        told.setdefault((self._stage, where), []).append((done, total))
        tell(self, done, total, where=where, **more)

    monkeypatch.setattr(ProgressReporter, "update", remember)
    monkeypatch.delenv(BEGAN, raising=False)  # as a process that was not started for this has it
    paths, before = make("data.shard_images=10", "train.augment=flip"), time.time()
    for stage in (shard, cache, train, predict, reduce):
        stage.run(paths.folder)
    assert [(one.stage, one.outcome) for one in read_attempts(paths)] == [
        *((stage, "finished") for stage in STAGES), ("reduce", "finished"),
    ]  # fmt: skip
    assert all(before <= one.begin.time <= one.last_active <= time.time() for one in read_attempts(paths))
    assert [number for number, _ in told["shard", "new images"] if number] == sorted([*range(1, 37), 10, 20, 30])
    ends = {piece: calls[-1] for piece, calls in told.items() if piece[0] != "train"}
    assert ends == {
        ("shard", "new images"): (36, 36), ("cache", "train"): (42, 42), ("cache", "val"): (6, 6),
        ("cache", "test"): (9, 9), ("predict", "val"): (6, 6), ("predict", "test"): (9, 9),
    }  # fmt: skip


def test_only_images_that_are_new_count_and_a_task_tells_its_share(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int, str]] = []

    def remember(self: ProgressReporter, done: int, total: int, *, unit: str, where: str = "") -> None:
        assert (self._stage, unit) == ("shard", "images")
        told.append((done, total, where))

    monkeypatch.setattr(ProgressReporter, "update", remember)
    options = ["data.shard_images=10"]
    shard.run(make("run=first", *options).folder, share=(0, 2))
    assert {where for *_, where in told} == {"share 1 of 2"}
    written = told[-1][0]
    told.clear()
    shard.run(make("run=second", *options).folder)
    assert told[0] == (0, 36 - written, "new images")
    assert told[-1] == (36 - written, 36 - written, "new images")
