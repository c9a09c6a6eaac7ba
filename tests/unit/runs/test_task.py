import pickle
from collections.abc import Callable

import pytest

from tlbatch.runs import task
from tlbatch.runs.paths import RunPaths


@pytest.mark.parametrize("name", ["run_stage", "run_chain", "run_each", "run_share"])
def test_a_job_that_the_version_before_queued_finds_what_it_calls(name: str) -> None:
    """submitit pickles a function as the names of its module and itself."""
    assert pickle.loads(f"ctlbatch.task\n{name}\n.".encode()) is getattr(task, name)


@pytest.mark.chain
def test_a_stage_waits_for_the_marker_that_rank_0_writes_last(
    copy_run: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = copy_run("predict")
    marker = paths.marker("predict")
    text = marker.read_bytes()
    marker.unlink()
    monkeypatch.setattr(task.time, "sleep", lambda _: marker.write_bytes(text))
    assert task.execute("reduce", paths.folder, after="predict") == 0
    marker.unlink()
    monkeypatch.setattr(task.time, "sleep", lambda _: None)
    clock = iter(range(0, 10**6, 50))
    monkeypatch.setattr(task.time, "monotonic", lambda: next(clock))
    assert task.execute("reduce", paths.folder, after="predict") == 2
    assert f"error: {marker}: rank 0 has not written it" in capsys.readouterr().err
