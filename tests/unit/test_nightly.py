"""Nights on tiny images, with all stages in this process."""

import csv
import importlib
import itertools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlbatch import nightly, promote
from tlbatch.cluster import launch
from tlbatch.core.errors import UserError
from tlbatch.data.index import read_index
from tlbatch.deploy import export
from tlbatch.promotion import champion as champions
from tlbatch.promotion import night
from tlbatch.promotion import registry as registries
from tlbatch.promotion.records import Champion, Decision
from tlbatch.promotion.registry import Registry, promotion_file
from tlbatch.promotion.rescoring import rescoring_paths
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import SPLITS, RunRecord
from tlbatch.runs.run import Run
from tlbatch.runs.stage import run_guarded
from tlbatch.runs.stages import StageName, stages_of

pytestmark = pytest.mark.chain

COLOURS = ("blue", "green", "red")


class Site:
    """A growing set and its registry."""

    def __init__(self, folder: Path, tiny_job: Path) -> None:
        self.folder, self._job = folder, tiny_job
        self._rng = np.random.default_rng(0)
        self.numbers = itertools.count()
        self.options: list[str] = ["nightly.min_samples=3"]
        (folder / "images").mkdir(parents=True)
        self.labels: dict[str, str] = {}

    @property
    def space(self) -> Path:
        return self.folder / "space"

    @property
    def registry(self) -> Registry:
        return Registry(self.space / "registry" / "tiny")

    def add(self, each: int, prefix: str = "") -> None:
        for number, name in enumerate(COLOURS):
            for _ in range(each):
                pixels = self._rng.integers(0, 120, (40, 48, 3), dtype=np.uint8)
                pixels[..., number] += 120
                key = f"{prefix}{name}{len(self.labels)}"
                Image.fromarray(pixels).save(self.folder / "images" / f"{key}.jpg", quality=95)
                self.labels[key] = name
        self.write()

    def write(self) -> None:
        with (self.folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "level"), *self.labels.items()])

    def night(self, *more: str) -> int:
        data = [f"data.images={self.folder / 'images'}", f"data.labels={self.folder / 'labels.csv'}"]
        data += ["data.source=csv", "data.audit=warn", f"workspace={self.space}"]
        with pytest.raises(SystemExit) as left:
            nightly.main([str(self._job), *data, *self.options, *more, "--local"])
        return int(left.value.code or 0)

    def first_night(self) -> None:
        """Run the first night, or restore what it left in an earlier test."""
        kept = self.folder.with_name("first")
        if not kept.exists():
            assert self.night() == 0
            shutil.copytree(self.folder, kept)
            return
        shutil.rmtree(self.folder)
        shutil.copytree(kept, self.folder)
        next(self.numbers)

    def runs(self) -> list[str]:
        folder = self.space / "runs"
        return sorted(one.parent.name for one in folder.glob("*/job.json") if not one.parent.name.endswith(".champion"))

    def last_run(self) -> RunPaths:
        return RunPaths(self.space / "runs" / str(self.registry.history()[-1].run))

    def stored(self) -> tuple[list[Any], list[Any]]:
        """Return every row of the shards, and every row of the cache with its store."""
        sharded = [
            row for file in self.space.glob("shards/*/*.npz") for row in np.load(file)["rows"]["content"].tolist()
        ]
        cached = [(file.parent, key) for file in self.space.glob("cache/*/*.npz") for key in np.load(file)["keys"]]
        return sharded, cached


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nights")


@pytest.fixture
def site(place: Path, tiny_job: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    def run_here(run: Run, stages: Sequence[StageName] = ()) -> int:
        codes = (run_guarded(stage, importlib.import_module(f"tlbatch.{stage}").run, run.folder)
                 for stage in stages or stages_of(run.job))  # fmt: skip
        return next((code for code in codes if code), 0)

    def named(job: Any) -> RunRecord:
        record = resolve(job)
        run = f"night-{next(made.numbers)}"
        return record.model_copy(update={"run": run, "job": record.job.model_copy(update={"run": run})})

    resolve = nightly.resolve
    monkeypatch.setattr(nightly, "resolve", named)  # nights are named by the second
    monkeypatch.setattr(launch, "run_here", run_here)
    monkeypatch.setattr(export, "_graphs", lambda *_: {})  # ONNX and pt2 take seconds, and have their own tests
    made = Site(place / "site", tiny_job)
    made.add(8)
    yield made
    shutil.rmtree(made.folder)


def test_first_night_makes_a_champion_and_the_next_ends_without_changes(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.night() == 0
    champion = site.registry.champion()
    assert champion is not None
    assert site.registry.folder.stat().st_mode & 0o777 == 0o700
    assert (champion.number, champion.run, champion.rule, champion.previous) == (1, site.runs()[0], "first", None)
    (line,) = site.registry.history()
    assert (line.event, line.num_images, line.num_new, line.champion) == ("promoted", 24, 24, 1)
    assert (site.registry.model_folder(champion) / "model.safetensors").exists()
    assert "night's page" in capsys.readouterr().out
    assert site.night() == 0
    assert "nothing new since" in capsys.readouterr().out
    assert [one.event for one in site.registry.history()] == ["promoted", "nothing new"]
    assert len(site.runs()) == 1
    assert site.night("phase.0.epochs=3") == 0  # another job is something new
    assert len(site.runs()) == 2


def test_a_night_computes_what_is_new_and_compares_on_tonights_test_images(site: Site) -> None:
    site.first_night()
    first = site.last_run()
    assert first.folder.name == "night-0"
    site.add(4)
    assert site.night() == 0
    (sharded, cached), second = site.stored(), site.last_run()
    assert len(sharded) == len(set(sharded)) == 36
    assert len(cached) == len(set(cached))  # nothing twice, for the champion neither
    again = rescoring_paths(second)
    assert again.load_submitted().checkpoint_of == str(first.folder)
    weights = [json.loads((one.checkpoints / "best.json").read_text("utf-8"))["digest"] for one in (first, again)]
    assert weights[0] == weights[1]
    decision = Decision.model_validate_json(promotion_file(second).read_bytes())
    test = dict(keys_tested(second).items())
    assert decision.comparison is not None
    assert decision.comparison.n == len(test)
    assert set(keys_tested(first)) <= set(test)
    assert len(test) > len(keys_tested(first))
    assert (decision.look, decision.num_excluded, decision.champion) == (1, 0, 1)


def keys_tested(run: RunPaths) -> dict[bytes, bytes]:
    index = read_index(Run.load_submitted(run.folder).set_paths.index_file)
    test = index[index["split"] == SPLITS.index("test")]
    return dict(zip(test["key"].tolist(), test["group"].tolist(), strict=True))


def test_images_that_the_champion_was_trained_on_are_not_compared(site: Site) -> None:
    site.first_night()
    champion = site.registry.champion()
    assert champion is not None
    index = read_index(site.registry.index_of(champion).index_file)
    moved = [key.decode() for key in index["key"][index["split"] == SPLITS.index("train")][:2]]
    lists = {name: site.folder / f"{name}.txt" for name in SPLITS}
    for name, file in lists.items():
        own = {key.decode() for key in index["key"][index["split"] == SPLITS.index(name)]} - set(moved)
        file.write_text("\n".join([*own, *(moved if name == "test" else [])]), encoding="utf-8")
    files = ", ".join(f"{name} = '{file}'" for name, file in lists.items())
    assert site.night("data.split.method=given", f"data.split.files={{{files}}}") == 0
    decision = Decision.model_validate_json(promotion_file(site.last_run()).read_bytes())
    assert decision.num_excluded == 2


def test_training_images_of_earlier_champions_are_not_compared(site: Site) -> None:
    """Two images move to test in the second night; the third starts from weights that descend from the first."""
    lists = {name: site.folder / f"{name}.txt" for name in SPLITS}
    files = ", ".join(f"{name} = '{file}'" for name, file in lists.items())
    site.options += ["data.split.method=given", f"data.split.files={{{files}}}", "nightly.init_from=champion"]
    site.options += ["nightly.margin=1.0", "nightly.more_data=0"]
    excluded = []
    for count in range(3):
        site.add(int(count == 2))
        part = {key: SPLITS[min(2, number % 8 // 3)] for number, key in enumerate(site.labels)}
        moved = [key for key in part if part[key] == "train"][:2] if count else []
        part |= dict.fromkeys(moved, "test")
        for name, file in lists.items():
            file.write_text("\n".join(key for key in part if part[key] == name), encoding="utf-8")
        assert site.night() == 0
        champion = site.registry.champion()
        assert champion is not None
        decision = Decision.model_validate_json(promotion_file(site.last_run()).read_bytes())
        excluded.append(decision.num_excluded)
        if champion.number <= count:
            promote.run(site.last_run().folder, "the next is to begin with it")
    assert excluded == [0, 2, 2]


def test_night_can_start_from_the_champion(site: Site) -> None:
    assert site.night("nightly.init_from=champion") == 0
    first = site.last_run()
    site.add(4)
    assert site.night("nightly.init_from=champion") == 0
    job = site.last_run().load().job
    assert Path(job.model.weights).parent == first.checkpoints
    assert Path(job.head.weights) == first.folder
    cached = site.stored()[1]
    assert len({store for store, _ in cached}) == 3  # all before blocks.1 is the same, and the top is another


def test_no_night_starts_from_a_champion_of_another_split(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """It may have been trained on current test images, which no later champion would record."""
    assert site.night("nightly.init_from=champion") == 0
    assert site.night("nightly.init_from=champion", "data.split.salt=another") == 0
    assert "another split: this night starts from the pre-trained weights" in capsys.readouterr().out
    job = site.last_run().load().job
    assert (job.model.weights, job.head.weights) == (
        RunPaths(site.space / "runs" / "night-0").load().job.model.weights,
        "",
    )


def test_nights_from_the_champion_need_no_earlier_runs(site: Site) -> None:
    site.options += ["nightly.init_from=champion", "nightly.keep_nights=1", "nightly.keep_champions=0"]
    site.options += ["nightly.margin=1", "nightly.more_data=0.01"]
    for number in range(3):
        assert site.night() == 0
        champion = site.registry.champion()
        assert champion is not None
        assert site.runs() == sorted({champion.run, f"night-{number}"})
        assert not registries_wrong(site, champion)
        site.add(4)
    assert "night-0" not in site.runs()


def test_failed_night_is_resumed_and_given_up_when_images_change(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from tlbatch import train

    work = train.run

    def fails(_: Path) -> None:
        raise UserError("no luck; try again")

    monkeypatch.setattr(train, "run", fails)
    assert site.night() == 2
    (line,) = site.registry.history()
    assert (line.event, line.reasons) == ("failed", ("train: no luck; try again",))
    monkeypatch.setattr(train, "run", work)
    assert site.night() == 0
    assert site.runs() == ["night-0"]
    assert [one.event for one in site.registry.history()] == ["failed", "promoted"]
    monkeypatch.setattr(train, "run", fails)
    site.add(2)
    assert site.night() == 2
    monkeypatch.setattr(train, "run", work)
    site.add(2)
    assert site.night() == 0
    events = [(one.event, one.run) for one in site.registry.history()[2:]]
    assert events[:2] == [("failed", "night-2"), ("given up", "night-2")]
    assert events[2][1] == "night-3"


def test_second_night_at_the_same_time_ends_at_once(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    from tlbatch.promotion.lease import hold_lease

    site.registry.folder.mkdir(parents=True)
    with hold_lease(site.registry.lock_file, {}, lambda _: None):
        assert site.night() == 0
    assert re.search(
        r"a night of tiny is already running \(process \d+ on .*\); nothing to do", capsys.readouterr().out
    )
    assert not site.runs()


KILLS: list[tuple[Any, str]] = [
    (Decision, "save"), (champions, "export_run"), (Champion, "save"), (Registry, "swap"), (Registry, "note"),
    (champions, "write_night"), (champions, "retire"),
]  # fmt: skip


def test_killed_promotion_leaves_a_valid_champion_and_is_resumed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step that changes the registry is cut off before and after it, in the night that has a champion already."""
    site.first_night()
    old = site.registry.champion()
    site.add(4)
    seen = []
    for (owner, name), done in itertools.product(KILLS, (False, True)):
        work = getattr(owner, name)

        def killed(*args: Any, work: Callable[..., Any] = work, done: bool = done, **kwargs: Any) -> Any:
            if done:
                work(*args, **kwargs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, killed)
            assert site.night() == 130, f"{name} was not called"
        champion = site.registry.champion()
        assert champion is not None
        assert champion == old or (champion.number, champion.run) == (2, "night-1")
        assert not registries_wrong(site, champion)
        seen.append(champion.number)
    assert seen == [1] * 7 + [2] * 7
    assert site.night() == 0
    final = site.registry.champion()
    assert final is not None
    assert (final.number, final.run, final.previous) == (2, "night-1", 1)
    assert not registries_wrong(site, final)
    assert [one.event for one in site.registry.history()] == ["promoted", "promoted"]
    models = [one.name for one in (site.registry.folder / "models").iterdir()]
    assert sorted(models) == ["0001-night-0", "0002-night-1"]
    assert site.registry.page("night-1").exists()
    assert not site.registry.night_file.exists()


def registries_wrong(site: Site, champion: Champion) -> list[str]:
    from tlbatch.promotion.retention import wrong_files

    return wrong_files(site.registry, champion)


def test_a_run_can_be_promoted_by_hand_against_the_rule(site: Site) -> None:
    site.first_night()
    site.add(4)
    assert site.night("nightly.min_samples=1000") == 0
    last = site.last_run()
    assert site.registry.history()[-1].event == "kept"
    assert any("fewer than min_samples = 1000" in reason for reason in site.registry.history()[-1].reasons)
    promote.run(last.folder, "asked by the clinic")
    champion = site.registry.champion()
    assert champion is not None
    assert (champion.number, champion.run, champion.rule) == (2, last.folder.name, "by hand")
    assert site.registry.history()[-1].reasons == ("asked by the clinic",)
    with pytest.raises(UserError, match="is already the champion"):
        promote.run(last.folder, "again")


def test_run_is_compared_with_the_current_champion(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.first_night()
    site.add(4)
    assert site.night("nightly.min_samples=1000") == 0
    second = site.last_run()
    site.add(4)
    with monkeypatch.context() as patch:
        patch.setattr(promote, "run", _out_of_luck)
        assert site.night() == 2
    third = site.last_run()
    promote.run(second.folder, "asked by the clinic")
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0))
    promote._rescore(Run.load(third.folder))
    assert rescoring_paths(third).load_submitted().checkpoint_of == str(second.folder)


def test_override_stays_when_its_night_is_resumed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.first_night()
    site.add(4)
    with monkeypatch.context() as patch:
        patch.setattr(night, "make_rescoring", _out_of_luck)
        assert site.night() == 2
    assert [one.event for one in site.registry.history()] == ["promoted", "failed"]
    promote.run(site.last_run().folder, "asked by the clinic")
    assert site.night() == 0
    champion = site.registry.champion()
    assert champion is not None
    assert (champion.number, champion.run, champion.rule) == (2, "night-1", "by hand")
    assert not site.registry.night_file.exists()


def _out_of_luck(*_: object) -> None:
    raise UserError("no luck; try again")


@pytest.mark.parametrize("lost", ["run", "weights", "model", "index"])
def test_damaged_champion_is_reported_with_the_ways_out(
    site: Site, capsys: pytest.CaptureFixture[str], lost: str
) -> None:
    site.first_night()
    champion = site.registry.champion()
    assert champion is not None
    run, model = site.registry.run_of(champion), site.registry.model_folder(champion)
    weights = next(run.checkpoints.glob("*.safetensors"))
    if lost == "weights":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        shutil.rmtree({"run": run.folder, "model": model, "index": site.registry.index_of(champion).index_folder}[lost])
    site.add(4)
    assert site.night() == 2
    (*_, line) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: champion 1 is damaged: ")
    assert line.endswith(f"; python -m tlbatch.promote {site.last_run().folder} --override REASON, then run again")
    last = site.registry.history()[-1]
    assert (last.event, f"error: {last.reasons[0]}") == ("failed", line)
    promote.run(site.last_run().folder, "the champion is lost")
    assert site.night() == 0
    champion = site.registry.champion()
    assert champion is not None
    assert champion.number == 2
    assert not registries_wrong(site, champion)


def test_a_registry_that_has_lost_its_champion_promotes_nothing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.first_night()
    file, site_files = site.registry.champion_file, site.registry.folder / "champions"
    whole = file.read_bytes()
    site.add(4)
    file.unlink()
    assert site.night() == 2
    assert f"missing, but the history names champion 1; restore it from the champion's record in {site_files}" in (
        capsys.readouterr().err
    )
    file.write_bytes(whole[:50])
    assert site.night() == 2
    assert f"restore it from the champion's record in {site_files}" in capsys.readouterr().err
    shutil.copy(site_files / "0001.json", file)
    site.registry.night_file.write_bytes(b"{")
    assert site.night() == 2
    assert "remove it, and run the night again" in capsys.readouterr().err
    site.registry.night_file.unlink()
    assert site.night() == 0
    assert site.registry.history()[-1].against == 1


def test_a_champion_of_other_classes_is_not_compared(site: Site) -> None:
    site.first_night()
    for key in [key for key, name in site.labels.items() if name == "red"]:
        site.labels[key] = "rose"
    site.write()
    assert site.night("data.classes=['blue', 'green', 'rose']") == 0
    (reason,) = site.registry.history()[-1].reasons
    assert reason.startswith("the champion has the classes blue, green, red, this run blue, green, rose")
    assert site.registry.history()[-1].event == "kept"


def test_night_with_only_new_file_times_ends_after_sharding(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.first_night()
    runs = site.runs()
    for file in (site.folder / "images").iterdir():
        os.utime(file, (1, 1))
    assert site.night() == 0
    assert "nothing new: only file times have changed, the images are those of" in capsys.readouterr().out
    assert [one.event for one in site.registry.history()] == ["promoted", "nothing new"]
    assert site.runs() == runs
    assert site.night() == 0
    assert "nothing new since" in capsys.readouterr().out
    os.utime(site.folder / "images" / "blue0.jpg", (2, 2))
    assert site.night("phase.0.epochs=3") == 0  # another job is another night
    assert len(site.runs()) == 2
    site.labels["blue0"] = "red"
    site.write()
    assert site.night("phase.0.epochs=3") == 0
    assert len(site.runs()) == 3


def test_shards_may_be_removed_between_two_nights(site: Site) -> None:
    site.first_night()
    shutil.rmtree(site.space / "shards")
    site.add(4)
    assert site.night() == 0
    last = site.registry.history()[-1]
    assert (last.event, last.against) == ("promoted", 1)
    decision = Decision.model_validate_json(promotion_file(site.last_run()).read_bytes())
    assert decision.comparison is not None
    assert decision.comparison.n == len(keys_tested(site.last_run())) - decision.num_excluded


def test_night_without_comparison_is_no_challenge(site: Site) -> None:
    site.first_night()
    for key in [key for key, name in site.labels.items() if name == "red"]:
        site.labels[key] = "rose"
    site.write()
    assert site.night("data.classes=['blue', 'green', 'rose']") == 0
    champion = site.registry.champion()
    assert champion is not None
    assert site.registry.looks(champion, but="") == 0


def test_run_name_and_unknown_guards_are_refused(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.night("run=x") == 2
    assert "run: every night makes a new run" in capsys.readouterr().err
    assert site.night("nightly.guards={'recall.pink' = 0.1}") == 2
    assert "nightly.guards.recall.pink: unknown 'pink'; known: blue, green, red" in capsys.readouterr().err


def test_current_run_is_kept_with_keep_nights_zero(site: Site) -> None:
    assert site.night("nightly.keep_nights=0") == 0
    site.add(4)
    assert site.night("nightly.keep_nights=0", "nightly.min_samples=1000") == 0
    assert site.last_run().report_json.exists()
    site.add(4)
    assert site.night("nightly.keep_nights=0", "nightly.min_samples=1000") == 0
    assert sorted(one.name for one in (site.space / "runs").iterdir() if one.is_dir()) == [
        "night-0", "night-2", "night-2.champion",
    ]  # fmt: skip


def test_two_tasks_started_in_the_same_second_have_different_runs(
    tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []

    def hold(record: RunRecord, *_: object) -> int:
        runs.append(record.run)
        return 0

    monkeypatch.setattr(nightly, "hold_night", hold)
    data = [f"data.images={make_folders(each=1)}", f"workspace={tmp_path / 'space'}", "--local"]
    for task in ("left", "right"):
        with pytest.raises(SystemExit):
            nightly.main([str(tiny_job), *data, f"nightly.task={task}"])
    assert [run.split("-")[0] for run in runs] == ["left", "right"]


def test_night_page_gives_reasons_and_links_the_report(site: Site, write_page_text: Callable[[Path], str]) -> None:
    site.first_night()
    site.add(4)
    site.labels |= dict.fromkeys(list(site.labels)[-12:], "red")
    site.write()
    assert site.night() == 0
    page = site.registry.page("night-1")
    text = write_page_text(page)
    assert "Against champion 1" in text
    assert "12 new images" in text
    assert (page.parent / re.findall(r'href="([^"#]*report\.html)"', page.read_text("utf-8"))[0]).resolve().exists()
    assert registries.drift_file(site.last_run()).exists()


def test_images_with_names_like_formulas_are_reviewed_like_others(
    site: Site, write_page_text: Callable[[Path], str]
) -> None:
    site.first_night()
    site.add(4, prefix="-1 ")
    site.labels |= dict.fromkeys(list(site.labels)[-12:], "red")
    site.write()
    assert site.night() == 0
    with (site.last_run().folder / "review.csv").open(newline="", encoding="utf-8") as file:
        (doubt, *_) = csv.DictReader(file)
    assert doubt["image"].startswith("'-1 ")
    assert "-1 " in write_page_text(site.registry.page("night-1"))


@pytest.fixture
def write_page_text() -> Callable[[Path], str]:
    def text(page: Path) -> str:
        return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page.read_text("utf-8")))

    return text
