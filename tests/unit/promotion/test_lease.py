"""Leases held by separate processes, which are killed."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tlbatch.promotion import lease
from tlbatch.promotion.lease import LeaseHolder, LeaseTakenError, hold_lease

pytestmark = pytest.mark.chain

HOLD = """
import sys, time
from pathlib import Path
from tlbatch.promotion.lease import hold_lease

with hold_lease(Path(sys.argv[1]), {}, lambda job: None):
    print("held", flush=True)
    time.sleep(60)
"""


def unknown(_: str) -> None:
    return None


def holding(file: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(file)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_lease_of_a_live_holder_is_refused_and_of_a_killed_one_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "registry" / "lock.json"
    process = holding(file)
    with (
        pytest.raises(LeaseTakenError, match=f"process {process.pid} on .*, for [0-9]+ s") as taken,
        hold_lease(file, {}, unknown),
    ):
        raise AssertionError
    process.send_signal(signal.SIGKILL)
    process.wait()
    with hold_lease(file, {}, unknown) as before:
        assert before == taken.value.holder
        assert json.loads(file.read_text("utf-8"))["pid"] == os.getpid()
    assert not file.exists()


def test_lease_of_a_zombie_is_taken_over(tmp_path: Path) -> None:
    """As in a container whose init process does not reap children."""
    file = tmp_path / "lock.json"
    process = holding(file)
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but still a zombie
    with hold_lease(file, {}, unknown) as before:
        assert before is not None
        assert before.pid == process.pid
    process.wait()


def test_later_process_with_the_same_id_is_not_the_holder(tmp_path: Path) -> None:
    file = tmp_path / "lock.json"
    with hold_lease(file, {}, unknown):
        mine = LeaseHolder.model_validate_json(file.read_text("utf-8"))
    mine.model_copy(update={"began": mine.began - 1000}).save(file)
    with hold_lease(file, {}, unknown) as before:
        assert before is not None


@pytest.mark.parametrize(
    ("active", "silence_s", "is_left"),
    [(True, 10_000, True), (False, 0, False), (None, 0, True), (None, 10_000, False)],
    ids=["SLURM has it", "SLURM has it no more", "no answer, just heard of", "no answer, long silent"],
)
def test_holder_on_another_machine_is_checked_by_slurm_or_by_its_heartbeat(
    tmp_path: Path, *, active: bool | None, silence_s: float, is_left: bool
) -> None:
    file = tmp_path / "lock.json"
    LeaseHolder(token="x", host="elsewhere", pid=1, began=0, job="7", since=time.time()).save(file)
    then = time.time() - silence_s
    os.utime(file, (then, then))
    asked: list[str] = []

    def ask(job: str) -> bool | None:
        asked.append(job)
        return active

    if is_left:
        with pytest.raises(LeaseTakenError, match="SLURM job 7"), hold_lease(file, {}, ask):
            raise AssertionError
    else:
        with hold_lease(file, {}, ask) as before:
            assert before is not None
    assert asked == ["7"]


def test_next_attempt_of_a_slurm_job_takes_over(tmp_path: Path) -> None:
    file = tmp_path / "lock.json"
    LeaseHolder(token="x", host="elsewhere", pid=1, began=0, job="7", since=time.time()).save(file)
    with hold_lease(file, {"SLURM_JOB_ID": "7"}, lambda _: True) as before:
        assert before is not None


def test_live_holder_sends_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_BEAT_S", 0.05)
    file = tmp_path / "lock.json"
    with hold_lease(file, {}, unknown):
        os.utime(file, (0, 0))
        time.sleep(0.5)
        assert time.time() - file.stat().st_mtime < 5


def test_only_one_process_takes_over_from_a_dead_holder(tmp_path: Path) -> None:
    file = tmp_path / "lock.json"
    LeaseHolder(token="x", host="elsewhere", pid=1, began=0, job=None, since=0).save(file)
    os.utime(file, (0, 0))

    def enter(_: int) -> str:
        try:
            with hold_lease(file, {}, unknown):
                time.sleep(0.5)
                return "held"
        except LeaseTakenError:
            return "left"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(enter, range(8))) == ["held", *["left"] * 7]


def test_damaged_lease_counts_as_free(tmp_path: Path) -> None:
    file = tmp_path / "lock.json"
    file.write_text("{", encoding="utf-8")
    with hold_lease(file, {}, unknown) as before:
        assert before is None
