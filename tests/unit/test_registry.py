import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tlbatch import registry as command
from tlbatch.config.nightly import Nightly
from tlbatch.core.errors import UserError
from tlbatch.core.files import digest_file
from tlbatch.promotion.records import Champion, Night
from tlbatch.promotion.registry import Registry, open_registry
from tlbatch.promotion.retention import retire, wrong_files
from tlbatch.runs.report import Estimate


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    folder = tmp_path / "space" / "registry" / "eyes"
    folder.mkdir(parents=True)
    return Registry(folder)


Crown = Callable[..., Champion]


@pytest.fixture
def crown(registry: Registry) -> Crown:
    """Return a function that makes a run with one file the champion, as a night does."""

    def make(number: int, *, previous: int | None = None) -> Champion:
        run = registry.folder.parents[1] / "runs" / f"night-{number}"
        model = registry.folder / "models" / f"{number:04d}-{run.name}"
        for folder in (run, model):
            folder.mkdir(parents=True)
            (folder / "weights").write_text(f"{folder.name}", encoding="utf-8")
        files = {f"runs/{run.name}/weights": digest_file(run / "weights")}
        files[f"registry/eyes/models/{model.name}/weights"] = digest_file(model / "weights")
        champion = Champion(
            number=number, task="eyes", run=run.name, time=f"2026-11-{number:02d}",
            rule="gain", previous=previous if previous is not None else number - 1 or None, metric="accuracy",
            score=Estimate(value=0.9, low=0.8, high=0.95), num_train=10, lost=0.0, files=files,
        )  # fmt: skip
        registry.swap(champion)
        registry.note(
            Night(time=champion.time, event="promoted", run=run.name, champion=number, against=number - 1, seen="x")
        )
        return champion

    return make


def run(registry: Registry, *arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        command.main([str(registry.folder), *arguments])
    return int(left.value.code or 0)


def test_list_and_show_name_champions_and_nights(
    registry: Registry, crown: Crown, capsys: pytest.CaptureFixture[str]
) -> None:
    crown(1)
    crown(2)
    registry.note(Night(time="2026-11-03", event="kept", run="night-3", champion=2, against=2, reasons=("no gain",)))
    assert run(registry, "list") == 0
    one, two = capsys.readouterr().out.splitlines()
    assert one.startswith("     1  2026-11-01  accuracy 0.9000 (0.8000 to 0.9500)  night-1  gain")
    assert two.startswith("*    2  2026-11-02")
    assert run(registry, "show") == 0
    said = capsys.readouterr().out
    assert "champion        2, since 2026-11-02 (gain)" in said
    assert said.splitlines()[-1] == "2026-11-03  kept        night-3  no gain"
    assert run(registry, "show", "1") == 0
    assert "champion        1, since" in capsys.readouterr().out


def test_verify_names_missing_and_changed_files(
    registry: Registry, crown: Crown, capsys: pytest.CaptureFixture[str]
) -> None:
    champion = crown(1)
    assert run(registry, "verify") == 0
    assert "2 files unchanged" in capsys.readouterr().out
    weights = registry.run_of(champion).folder / "weights"
    weights.write_text("other", encoding="utf-8")
    assert run(registry, "verify") == 1
    assert f"{weights}: changed since its promotion" in capsys.readouterr().err
    weights.unlink()
    assert wrong_files(registry, champion) == [f"{weights}: missing"]


def test_rollback_restores_the_previous_champion_and_notes_it_in_the_history(
    registry: Registry, crown: Crown, capsys: pytest.CaptureFixture[str]
) -> None:
    crown(1)
    crown(2)
    assert run(registry, "rollback", "--reason", "wrong grades") == 0
    assert registry.champion() == registry.recorded(1)
    last = registry.history()[-1]
    assert (last.event, last.champion, last.reasons) == ("rolled back", 1, ("wrong grades",))
    crown(3, previous=1)
    assert run(registry, "rollback", "--reason", "two\nlines") == 0
    assert run(registry, "show") == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("rolled back   two lines")
    assert run(registry, "rollback") == 2
    assert "champion 1: is the first, so there is no previous one; promote another run" in capsys.readouterr().err
    crown(4, previous=1)
    assert run(registry, "rollback") == 0
    assert registry.champion() == registry.recorded(1)


def test_rollback_to_a_damaged_champion_is_refused(
    registry: Registry, crown: Crown, capsys: pytest.CaptureFixture[str]
) -> None:
    (registry.run_of(crown(1)).folder / "weights").unlink()
    crown(2)
    assert run(registry, "rollback") == 2
    assert "weights: missing); promote another run" in capsys.readouterr().err
    assert registry.champion() == registry.recorded(2)


def test_incomplete_line_is_skipped_and_the_next_one_is_complete(
    registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.note(Night(time="1", event="kept", run="a"))
    whole = registry.history_file.read_bytes()
    registry.history_file.write_bytes(whole + whole[:20])
    registry.note(Night(time="2", event="kept", run="b"))
    assert [night.time for night in registry.history()] == ["1", "2"]
    assert "line 2 is incomplete" in caplog.text
    assert json.loads(registry.history_file.read_bytes().splitlines()[-1]) == {"time": "2", "event": "kept", "run": "b"}


def test_full_disk_is_reported_and_the_next_line_is_complete(tiny_disk: Path) -> None:
    registry = Registry(tiny_disk / "space" / "registry" / "eyes")
    registry.folder.mkdir(parents=True)
    registry.note(Night(time="1", event="kept", run="a"))
    filler = tiny_disk / "filler"
    with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
        file.write(bytes(1 << 20))
    with pytest.raises(UserError, match=r"history\.jsonl: no space left on the device"):
        registry.note(Night(time="2", event="kept", run="b", reasons=("x" * 5000,)))
    filler.unlink()
    registry.note(Night(time="3", event="kept", run="c"))
    assert [night.time for night in registry.history()] == ["1", "3"]


def test_looks_count_challenges_by_other_runs(registry: Registry, crown: Crown) -> None:
    champion = crown(1)
    for name in ("a", "b"):
        registry.note(Night(time=name, event="kept", run=name, against=1))
    registry.note(Night(time="c", event="failed", run="c", against=1))
    registry.note(Night(time="d", event="kept", run="d", against=2))
    assert registry.looks(champion, but="x") == 2
    assert registry.looks(champion, but="b") == 1


def test_only_old_runs_without_a_kept_champion_are_removed(registry: Registry, crown: Crown) -> None:
    runs = registry.folder.parents[1] / "runs"
    for number in range(1, 5):
        crown(number)
    for name in ("old", "last", "by-hand", "old.champion"):
        (runs / name).mkdir()
    for name in ("old", "night-4", "last"):
        registry.note(Night(time=name, event="kept", run=name, champion=4, against=4, seen="x"))
    registry.note(Night(time="hand", event="kept", run="by-hand", champion=4, against=4))
    terms = Nightly(keep_champions=1, keep_nights=1)
    assert sorted(retire(registry, terms, now="last")) == ["night-1", "night-2", "old", "old.champion"]
    assert sorted(one.name for one in runs.iterdir()) == ["by-hand", "last", "night-3", "night-4"]
    assert sorted(one.name for one in (registry.folder / "models").iterdir()) == ["0003-night-3", "0004-night-4"]
    assert retire(registry, terms, now="last") == []
    assert [one.number for one in registry.champions()] == [1, 2, 3, 4]


@pytest.mark.parametrize("num_nights", [1, 4, 6, 7, 9])
def test_keep_nights_recent_nights_are_kept(registry: Registry, crown: Crown, num_nights: int) -> None:
    crown(1)
    runs = registry.folder.parents[1] / "runs"
    nights = [f"kept-{number}" for number in range(num_nights)]
    for name in nights:
        (runs / name).mkdir()
        registry.note(Night(time=name, event="kept", run=name, champion=1, against=1, seen="x"))
    retire(registry, Nightly(keep_nights=7), now=nights[-1])
    assert sorted(one.name for one in runs.iterdir()) == [*nights[-7:], "night-1"]


def test_folder_that_is_no_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no registry; name a folder WORKSPACE/registry/TASK"):
        open_registry(tmp_path)


SWAP = """
import sys
from pathlib import Path
from tlbatch.promotion.registry import Registry

registry = Registry(Path(sys.argv[1]))
one, two = registry.recorded(1), registry.recorded(2)
print("ready", flush=True)
while True:
    registry.swap(one)
    registry.swap(two)
"""


@pytest.mark.chain
def test_killed_at_any_moment_the_champion_is_the_old_or_the_new_one(registry: Registry, crown: Crown) -> None:
    both = [crown(1), crown(2)]
    for kill in range(10):
        process = subprocess.Popen(
            [sys.executable, "-c", SWAP, str(registry.folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01 * kill)
        process.kill()
        process.communicate()
        assert registry.champion() in both
