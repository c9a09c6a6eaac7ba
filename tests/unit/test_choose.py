"""Strategy auto: it measures on training images alone, takes the cheapest of equals, and the later stages follow it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tlbatch import cache, choose, predict, reduce, shard, train
from tlbatch.activations import fill
from tlbatch.activations.store import ActivationStore, view_keys
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.data.image_set import open_images
from tlbatch.data.views import Views
from tlbatch.distributed.process_group import RankContext
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run
from tlbatch.runs.strategy import Trial
from tlbatch.training import candidates, search
from tlbatch.training.search import Study
from tlbatch.training.trial_scores import Candidate

pytestmark = pytest.mark.chain

AUTO = ["strategy=auto", "phase=[]", "data.audit=warn"]
Make = Callable[..., RunPaths]


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path]) -> Make:
    def made(*overrides: str) -> RunPaths:
        images = tmp_path / "images"
        if not images.exists():
            make_folders()
        where = [f"data.images={images}", f"workspace={tmp_path / 'space'}"]
        return make_run(resolve(load_job([tiny_job], [*where, *overrides]))).paths

    return made


@pytest.mark.usefixtures("fewer_fits")
def test_the_choice_is_made_on_training_images_and_the_later_stages_follow_it(make: Make, tmp_path: Path) -> None:
    paths = make(*AUTO)
    shard.run(paths.folder)
    with pytest.raises(UserError, match="run choose first"):
        cache.run(paths.folder)
    choose.run(paths.folder)
    found = paths.load_strategy()
    assert found is not None
    names = [trial.name for trial in found.short_list]
    assert found.chosen in names
    assert sum(name.startswith("fine-tuned") for name in names) in (1, 2)
    images = open_images(Run.load(paths.folder))
    num_train = images.manifest.num_images["train"]
    assert {trial.num_images for trial in (*found.profile, *found.short_list)} == {num_train}
    held_out = images.index["content"][np.concatenate([images.rows("val"), images.rows("test")])]
    for folder in (tmp_path / "space" / "cache").iterdir():
        assert ActivationStore(folder, "fp32").missing(view_keys(held_out, Views(32, "d4").numbers)).all()
    before = paths.strategy.stat().st_mtime_ns
    for stage in (choose, cache, train, predict, reduce):
        stage.run(paths.folder)
    assert paths.strategy.stat().st_mtime_ns == before
    job = paths.load().job
    assert (job.strategy, [phase.cut for phase in job.phase][-1]) == (
        "phases",
        found.short_list[names.index(found.chosen)].cut,
    )
    assert json.loads(paths.report_json.read_text("utf-8"))["strategy"]["chosen"] == found.chosen


@pytest.mark.usefixtures("fewer_fits")
def test_ordered_classes_are_probed_and_tuned_as_grades(make: Make) -> None:
    paths = make(
        *AUTO, "metric=quadratic_kappa", "data.classes=['blue','green','red']", "train.augment=none", "data.split.val=0"
    )
    for stage in (shard, choose):
        stage.run(paths.folder)
    found = paths.load_strategy()
    assert found is not None
    assert {trial.fit for trial in found.profile} == {"ridge", "neighbours"}
    assert {trial.fit for trial in found.short_list} == {"ridge", "kernel-logistic"}
    job = paths.load().job
    assert (job.objective, job.decision) in (("regression", "most-probable"), ("cross-entropy", "expected-grade"))


@pytest.mark.usefixtures("fewer_fits")
def test_a_cut_that_is_auto_is_chosen_by_probes_and_the_rest_of_the_job_is_kept(make: Make) -> None:
    paths = make("phase.1.cut=auto", "phase.1.epochs=3", "objective=focal", "figures=true", "data.audit=warn")
    for stage in (shard, choose, cache, train, predict, reduce):
        stage.run(paths.folder)
    found, job = paths.load_strategy(), paths.load().job
    assert found is not None
    assert found.chosen == f"cut {job.phase[1].cut}"
    assert job.phase[1].cut in {trial.after[0] for trial in found.profile}
    assert (job.phase[0].cut, job.phase[1].epochs, job.objective) == ("pool", 3, "focal")
    assert 'aria-label="Accuracy by backbone stage. ridge: ' in paths.report_page.read_text("utf-8")


def test_there_is_nothing_to_choose_in_a_job_of_phases(make: Make) -> None:
    paths = make()
    shard.run(paths.folder)
    with pytest.raises(UserError, match="so there is nothing to choose; run cache"):
        choose.run(paths.folder)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["strategy=auto"], "strategy = auto chooses head, objective, decision, phase; leave out phase"),
        (["strategy=auto", "phase=[]", "head.widths=[8]"], "leave out head"),
        (["strategy=auto", "phase=[]", "cache.enabled=false"], "cut = auto and strategy = auto need the cache"),
        (["strategy=auto", "phase=[]", "train.crop_scale=0.5"], "strategy = auto needs a finite number of views"),
        (["phase=[]"], "phase is required; set e.g."),
        (["phase.1.cut=auto", "head.after=blocks.1"], "cut = auto needs the head on top of the backbone"),
    ],
)
def test_what_auto_decides_is_left_out_of_the_job(make: Make, overrides: Sequence[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make(*overrides)


class Scripted:
    """A study whose candidates score what a script says, each a standard error of 0.01."""

    def __init__(self, real: Study, scores: dict[str, float]) -> None:
        self.record, self.labels, self.num_classes = real.record, real.labels, real.num_classes
        self.scores = scores
        self.tuned: list[str] = []
        self.left_out: list[str] = []

    def vectors(self, _job: object) -> np.ndarray:
        return np.zeros((len(self.labels), 10_000))

    def probe(self, candidate: Candidate, _features: np.ndarray) -> Any:
        return SimpleNamespace(candidate=candidate)

    def train(self, candidate: Candidate) -> Any:
        assert not candidate.job.train.tta, "views are for the end"
        self.tuned.append(candidate.job.phase[-1].cut)
        return SimpleNamespace(candidate=candidate)

    def table(self, judged: Sequence[Any]) -> tuple[Trial, ...]:
        rows = []
        for one in judged:
            job, name = one.candidate.job, one.candidate.name
            key = next((key for key in self.scores if key in (name, f"{job.phase[0].fit} {name}")), "other")
            rows.append((one.candidate, self.scores[key]))
        best = max(score for _, score in rows)
        return tuple(
            Trial(
                name=candidate.name, after=candidate.job.head.after, cut=candidate.job.phase[-1].cut,
                fit=str(candidate.job.phase[0].fit), score=score, standard_error=0.01, num_images=300,
                behind=best - score, behind_error=0.01 if score < best else 0.0, seconds=1.0,
            )
            for candidate, score in rows
        )  # fmt: skip


LIKE = {"ridge pool": 0.9, "logistic on pool": 0.9, "other": 0.5}
UNLIKE = {"ridge blocks.1": 0.8, "logistic on blocks.1": 0.8, "middle": 0.9, "other": 0.5}


@pytest.mark.parametrize(
    ("scores", "tuned", "chosen", "scenario"),
    [
        (LIKE, 1, "logistic on pool", "small and like"),
        (LIKE | {"kernel-ridge on pool": 0.904}, 1, "logistic on pool", "small and like"),
        (LIKE | {"kernel-ridge on pool": 0.907}, 1, "kernel-ridge on pool", "small and like"),
        (LIKE | {"middle": 0.95, "all": 0.951}, 2, "fine-tuned after blocks", "small and like"),
        (UNLIKE | {"all": 0.95}, 2, "fine-tuned, all of it", "small and unlike"),
        (UNLIKE | {"all": 0.904}, 2, "fine-tuned after blocks.0", "small and unlike"),
        (UNLIKE | {"middle": 0.7}, 2, "logistic on blocks.1", "small and unlike"),
        (UNLIKE | {"logistic on blocks.1": 0.904}, 2, "fine-tuned after blocks.0", "small and unlike"),
        (UNLIKE | {"logistic on blocks.1": 0.906}, 2, "logistic on blocks.1", "small and unlike"),
        (LIKE | {"middle": 0.904}, 2, "logistic on pool", "small and like"),
    ],
)
def test_the_cheapest_of_equals_wins_or_where_unlike_what_is_tuned_and_most_is_tuned_only_where_that_may_gain(
    make: Make, monkeypatch: pytest.MonkeyPatch, scores: dict[str, float], tuned: int, chosen: str, scenario: str
) -> None:
    paths = make(*AUTO)
    shard.run(paths.folder)
    run = Run.load_submitted(paths.folder)
    record, images = run.record, open_images(run)
    script = Scripted(Study(record, images, RankContext.single_process("choose", paths), paths.folder), dict(scores))
    original = candidates._tuned

    def named(job: Any, cut: str, **size: Any) -> Candidate:
        found = original(job, cut, **size)
        script.scores[found.name] = scores.get("all" if script.tuned else "middle", 0.5)
        return found

    monkeypatch.setattr(candidates, "_tuned", named)
    found = candidates.choose(cast("Study", script))
    assert found.chosen.startswith(chosen)
    assert len(script.tuned) == tuned
    assert found.scenario == scenario


@pytest.mark.usefixtures("fewer_fits")
def test_what_the_cache_may_not_hold_is_left_out_or_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make(*AUTO, "cache.budget_gb=1e-9")
    shard.run(paths.folder)
    with pytest.raises(UserError, match=r"choose needs cached vectors, and they do not fit; raise cache\.budget_gb"):
        choose.run(paths.folder)
    paths = make(*AUTO, "train.augment=rot4", "run=views")
    shard.run(paths.folder)
    needed = []

    def budget(*arguments: Any) -> list[int]:
        needed.append(arguments[2]["val"].views.numbers)
        return [] if len(needed[-1]) > 1 else within(*arguments)

    within = fill._within_budget
    monkeypatch.setattr(fill, "_within_budget", budget)
    monkeypatch.setattr(Study, "train", lambda *_: None)
    choose.run(paths.folder)
    found = paths.load_strategy()
    assert found is not None
    assert len(found.left_out) == 3
    for line in found.left_out:
        assert line.endswith("mean of views: its views do not fit in the cache")


def test_what_would_take_too_long_is_left_out_unless_one_fold_is_all(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make(*AUTO, "strategy_minutes=1e-9", "data.split.val=0")
    shard.run(paths.folder)
    run = Run.load_submitted(paths.folder)
    record, images = run.record, open_images(run)
    ranks = RankContext.single_process("choose", paths)
    monkeypatch.setattr(Study, "_stored", lambda *_: (images, {}))
    monkeypatch.setattr(
        search, "train_phases", lambda session, _: SimpleNamespace(outputs=np.eye(3)[session.images.labels("val")])
    )
    study = Study(record, images, ranks, paths.folder)
    candidate = candidates._tuned(record.job, "blocks.2", num_train=30)
    assert study.train(candidate) is None
    assert study.left_out[0].startswith("fine-tuned after blocks.2: it would take 0.")
    study._folds = study._folds[:1]
    assert study.train(candidate) is not None
    assert len(study.left_out) == 1


def test_as_many_folds_are_judged_as_give_a_thousand_images(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = make(*AUTO)
    shard.run(paths.folder)
    run = Run.load_submitted(paths.folder)
    record, images = run.record, open_images(run)
    rows = np.resize(images.rows("train"), 4000)
    many = replace(images, chosen={"train": rows, "val": rows[:0], "test": rows[:0]})
    monkeypatch.setattr(type(many), "labels", lambda *_: np.arange(4000) % 3)
    monkeypatch.setattr(type(many), "index", {"group": np.arange(10_000)})
    study = Study(record, many, RankContext.single_process("choose", paths), paths.folder)
    assert 1000 <= len(study.scored) < 2000
    assert len(np.unique(study.scored)) == len(study.scored)
    assert len(study._divisions) == 1


def test_heads_of_a_small_set_are_judged_on_three_divisions_into_folds_and_their_scores_averaged(make: Make) -> None:
    paths = make(*AUTO)
    shard.run(paths.folder)
    run = Run.load_submitted(paths.folder)
    record, images = run.record, open_images(run)
    study = Study(record, images, RankContext.single_process("choose", paths), paths.folder)
    generator = np.random.default_rng(0)
    features = np.eye(study.num_classes)[study.labels] + generator.normal(
        0, 0.8, (len(study.labels), study.num_classes)
    )
    told = study.probe(candidates._probe(record.job, "told", ["pool"], "ridge", {}), features)
    untold = study.probe(
        candidates._probe(record.job, "untold", ["pool"], "ridge", {}), generator.normal(size=features.shape)
    )
    assert told.classes.shape == untold.classes.shape == (3, len(study.labels))
    assert len({classes.tobytes() for classes in told.classes}) > 1
    best, worst = study.table([told, untold])
    assert best.score == pytest.approx(np.mean(told.classes == study.labels))
    assert worst.behind == pytest.approx(
        np.mean(told.classes == study.labels) - np.mean(untold.classes == study.labels)
    )
    assert best.behind == 0
    assert 0 < best.standard_error < worst.behind
