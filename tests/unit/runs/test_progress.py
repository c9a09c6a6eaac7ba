import json
import logging
import os
import subprocess
import time
from pathlib import Path

import pytest

from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import StoppedError, UserError
from tlbatch.runs import attempts, progress
from tlbatch.runs.attempts import Submitted, note_job, read_attempts, read_jobs, record_attempt
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.progress import Progress, ProgressReporter, load_progress, rate, span
from tlbatch.runs.stage import run_guarded, run_once
from tlbatch.runs.world import World


class Clock:
    """Stands for the module time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now + 1e9


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def paths(tmp_path: Path, tiny_job: Path) -> RunPaths:
    (tmp_path / "images").mkdir()
    where = [f"data.images={tmp_path / 'images'}", f"workspace={tmp_path}", "run=r", "slurm.gpus_per_node=2"]
    return make_run(resolve(load_job([tiny_job], where))).paths


def told(paths: RunPaths) -> Progress:
    found = load_progress(paths)
    assert found is not None
    return found


def test_progress_is_written_at_once_then_every_two_seconds_and_at_the_end_of_a_piece(
    paths: RunPaths, clock: Clock
) -> None:
    reporter = ProgressReporter(paths, World(), "train")
    seen = []
    for step in range(100):
        reporter.update(step, 99, unit="steps", where="phase 1 epoch 3", images=8 * step)
        seen.append(told(paths).done)
        clock.now += 0.1
    assert seen[:21] == [0] * 20 + [20]
    assert sorted(set(seen)) == [0, 20, 40, 60, 80, 99]
    assert told(paths).time < clock.time()


def test_speed_is_measured_from_where_this_process_began_and_not_from_what_it_found_done(
    paths: RunPaths, clock: Clock
) -> None:
    reporter = ProgressReporter(paths, World(attempt="7-0-1"), "train")
    reporter.update(300, 400, unit="steps", where="phase 1 epoch 3", images=2400)
    assert told(paths).images_per_s is None
    clock.now += 10
    reporter.update(350, 400, unit="steps", where="phase 1 epoch 3", images=2800, metric="validation accuracy 0.9312")
    clock.now += 10
    reporter.update(360, 400, unit="steps", where="phase 1 epoch 3", images=2880)
    expected = {"stage": "train", "attempt": "7-0-1", "images_per_s": 24.0, "metric": "validation accuracy 0.9312"}
    assert expected.items() <= told(paths).model_dump().items()
    assert told(paths).seconds_left == pytest.approx(40 * 20 / 60)
    clock.now += 100
    reporter.update(0, 400, unit="steps", where="phase 1 epoch 4", images=0)
    clock.now += 10
    reporter.update(5, 400, unit="steps", where="phase 1 epoch 4", images=40)
    assert told(paths).images_per_s == pytest.approx(4)
    clock.now += 10
    reporter.update(1, 400, unit="steps", where="phase 1 epoch 4", images=8)
    assert told(paths).images_per_s is None


def test_the_log_has_a_plain_line_every_half_a_minute(
    paths: RunPaths, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    reporter = ProgressReporter(paths, World(), "train")
    for step in range(401):
        reporter.update(step, 400, unit="steps", where="phase 1 epoch 3", images=190 * step)
        clock.now += 0.5
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 6
    assert lines[0] == "phase 1 epoch 3: step 60 of 400, 380 images/s, 3 min left"
    assert "\r" not in "".join(lines)


@pytest.mark.parametrize(
    ("unit", "where", "speed", "left", "says"),
    [
        ("images", "test", None, None, "test: 5 of 9 images"),
        ("views", "", 3.04, 7260.0, "5 of 9 views, 3.0 images/s, 2 h 1 min left"),
        ("steps", "phase 0 epoch 1", 95.4, 240.0, "phase 0 epoch 1: step 5 of 9, 95 images/s, 4 min left"),
    ],
)
def test_a_line_says_what_is_known(
    unit: progress.Unit, where: str, speed: float | None, left: float | None, says: str
) -> None:
    one = Progress(
        stage="train", attempt="", where=where, done=5, total=9, unit=unit, images_per_s=speed, seconds_left=left,
        metric="", time=0,
    )  # fmt: skip
    assert str(one) == says


def test_times_and_speeds_are_in_the_unit_that_people_use() -> None:
    times = {0.2: "0 s", 59.4: "59 s", 59.6: "1 min", 3569: "59 min", 3571: "1 h 0 min", 47 * 3600: "47 h 0 min"}
    assert {seconds: span(seconds) for seconds in times} == times
    assert span(49 * 3600) == "2 days"
    assert (rate(9.94), rate(95.4)) == ("9.9", "95")


def test_other_ranks_and_other_tasks_of_a_stage_write_nothing(paths: RunPaths, clock: Clock) -> None:
    ProgressReporter(paths, World(rank=1, world_size=2), "train").update(1, 1, unit="steps")
    ProgressReporter(paths, World(), "shard", saves=False).update(1, 1, unit="images")
    clock.now += 100
    assert load_progress(paths) is None
    assert {file.name for file in paths.folder.iterdir()} == {"job.json", "logs"}


def test_ends_of_pieces_are_written_as_long_as_that_takes_little_of_the_time(
    paths: RunPaths, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []

    def slow(path: Path, _: str, *, lasting: bool) -> None:
        writes.append((path, lasting))
        clock.now += 0.2

    monkeypatch.setattr(progress, "write_text", slow)
    reporter = ProgressReporter(paths, World(), "train")
    for epoch in range(1000):
        clock.now += 0.01
        reporter.update(1, 1, unit="steps", where=f"epoch {epoch}")
    assert 0.2 * len(writes) < 0.2 * (clock.now - 1000)
    assert set(writes) == {(paths.progress, False)}


def test_a_place_that_cannot_be_written_stops_no_work_and_is_said_once(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    paths = RunPaths(tmp_path / "file" / "run")
    reporter = ProgressReporter(paths, World(), "train")
    for step in range(9):
        clock.now += 5
        reporter.update(step, 9, unit="steps")
    assert len([one for one in caplog.records if "cannot be written" in one.getMessage()]) == 1
    with record_attempt("train", RunPaths(tmp_path), World(num_gpus=1)):
        pass
    (tmp_path / "ledger.jsonl").unlink()
    (tmp_path / "ledger.jsonl").mkdir()
    with record_attempt("train", RunPaths(tmp_path), World(num_gpus=1)):
        pass


def test_telling_costs_a_fraction_of_a_millisecond(paths: RunPaths) -> None:
    reporter = ProgressReporter(paths, World(), "train")
    reporter.update(0, 10**6, unit="steps")
    best = float("inf")
    for turn in range(5):
        began = time.perf_counter()
        for step in range(2000):
            reporter.update(turn * 2000 + step, 10**6, unit="steps", where="phase 1 epoch 3", images=step)
        best = min(best, (time.perf_counter() - began) / 2000)
    print(f"{best * 1e6:.1f} us a call")
    assert best < 1e-4


def test_progress_that_cannot_be_read_is_none(paths: RunPaths) -> None:
    assert load_progress(paths) is None
    paths.progress.write_text('{"stage": "train"', encoding="utf-8")
    assert load_progress(paths) is None


def events(paths: RunPaths) -> list[dict[str, object]]:
    return [json.loads(line) for line in paths.ledger.read_text(encoding="utf-8").splitlines()]


def test_the_ledger_has_begin_and_end_of_an_attempt(paths: RunPaths) -> None:
    before = time.time()
    world = World(world_size=2, local_world_size=2, attempt="41", nodes="n1")
    with record_attempt("train", paths, world):
        assert read_attempts(paths)[0].outcome is None
    begin, end = events(paths)
    kept = {"event": "begin", "stage": "train", "attempt": "41", "job": None, "restart": 0, "hosts": "n1", "tasks": 2}
    assert kept | {"gpus": 2} == {name: value for name, value in begin.items() if name not in ("time", "process")}
    assert {name: value for name, value in end.items() if name != "time"} == {
        "event": "end", "stage": "train", "attempt": "41", "outcome": "finished",
    }  # fmt: skip
    (one,) = read_attempts(paths)
    assert before <= one.begin.time <= one.last_active == end["time"]
    with record_attempt("train", paths, World(rank=1, world_size=2)):
        pass
    assert len(events(paths)) == 2


@pytest.mark.parametrize(
    ("error", "outcome"), [(StoppedError("x"), "stopped"), (UserError("x"), "failed"), (ZeroDivisionError(), "failed")]
)
def test_the_ledger_says_how_an_attempt_ended(paths: RunPaths, error: Exception, outcome: str) -> None:
    with pytest.raises(type(error)), record_attempt("train", paths, World()):
        raise error
    assert [one.outcome for one in read_attempts(paths)] == [outcome]


@pytest.mark.parametrize(
    ("variables", "job", "restart"),
    [
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "3"}, "12", 3),
        (
            {"SLURM_JOB_ID": "14", "SLURM_STEP_ID": "0", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "2"},
            "12_2",
            0,
        ),
        ({"SLURM_JOB_ID": "12"}, None, 0),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SUBMITIT_EXECUTOR": "local"}, None, 0),
    ],
)  # fmt: skip
def test_the_ledger_names_the_job_as_slurm_does(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], job: str | None, restart: int
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SUBMITIT_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with record_attempt("train", paths, World(world_size=8, local_world_size=4, num_gpus=4)):
        pass
    (one,) = read_attempts(paths)
    assert (one.begin.job, one.begin.restart, one.begin.gpus) == (job, restart, 8)


@pytest.mark.parametrize(("executor", "begin"), [("slurm", 1700000000.0), ("", 1700000100.0)])
def test_a_stage_that_is_a_job_of_its_own_begins_with_its_job(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, executor: str, begin: float
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    monkeypatch.setenv("SLURM_JOB_START_TIME", "1700000000")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", executor)
    monkeypatch.setenv(attempts.BEGAN, "1700000100.0")
    with record_attempt("train", paths, World(num_gpus=1)):
        pass
    assert read_attempts(paths)[0].begin.time == begin
    assert attempts.BEGAN not in os.environ


def test_a_killed_attempt_is_closed_with_the_last_sign_of_it_and_all_lives_cost(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    monkeypatch.setattr(attempts, "time", clock)
    killed = [record_attempt("train", paths, World(attempt="9-0-0")) for _ in range(2)]
    for one in killed:  # after 3600 s, and before it told anything
        one.__enter__()
        if clock.now == 1000:
            clock.now += 3600
            ProgressReporter(paths, World(attempt="9-0-0"), "train").update(1, 9, unit="steps")
        clock.now += 400
    with record_attempt("train", paths, World(attempt="9-0-1")):
        clock.now += 1800
    known = read_attempts(paths)
    assert [one.outcome for one in known] == ["killed", "killed", "finished"]
    assert [one.gpu_hours for one in known] == pytest.approx([2, 0, 1])
    assert [line["event"] for line in events(paths)] == ["begin", "end", "begin", "end", "begin", "end"]


def test_a_torn_line_costs_only_itself(paths: RunPaths) -> None:
    with record_attempt("shard", paths, World()):
        pass
    with paths.ledger.open("a", encoding="utf-8") as file:
        file.write('{"event": "begin", "stage": "tr')
    assert [one.stage for one in read_attempts(paths)] == ["shard"]
    with record_attempt("cache", paths, World()):
        pass
    assert [(one.stage, one.outcome) for one in read_attempts(paths)] == [("shard", "finished"), ("cache", "finished")]


def test_a_finished_stage_that_is_run_again_writes_no_line(paths: RunPaths) -> None:
    for _ in range(2):
        run_once("train", paths, {}, World(), lambda: None)
    assert [line["event"] for line in events(paths)] == ["begin", "end"]


def test_the_attempt_of_a_command_begins_before_its_imports(paths: RunPaths) -> None:
    def work(_: Path) -> None:
        time.sleep(0.3)  # as an import
        run_once("train", paths, {}, World(), lambda: None)

    before = time.time()
    assert run_guarded("train", work, paths.folder) == 0
    assert read_attempts(paths)[0].begin.time < before + 0.2


def test_an_attempt_knows_whether_its_process_is_there(paths: RunPaths) -> None:
    with record_attempt("train", paths, World()):
        (one,) = read_attempts(paths)
        assert one.is_alive() is True
        with subprocess.Popen(["true"]) as gone:
            gone.wait()
        here = one.begin.process.rpartition(":")[0]
        dead = one.model_copy(update={"begin": one.begin.model_copy(update={"process": f"{here}:{gone.pid}"})})
        assert dead.is_alive() is False
        taken = one.model_copy(update={"begin": one.begin.model_copy(update={"time": one.begin.time - 10**6})})
        assert taken.is_alive() is False
        away = one.model_copy(update={"begin": one.begin.model_copy(update={"process": "elsewhere:1:1"})})
        assert away.is_alive() is None


def test_jobs_are_kept_in_the_order_of_their_submission(paths: RunPaths) -> None:
    assert read_jobs(paths) == ()
    note_job(paths, "shard", "12")
    note_job(paths, "train", "13")
    assert [(one.stage, one.job) for one in read_jobs(paths)] == [("shard", "12"), ("train", "13")]
    assert all(isinstance(one, Submitted) and one.time > 1e9 for one in read_jobs(paths))
