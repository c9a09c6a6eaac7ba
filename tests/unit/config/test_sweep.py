from pathlib import Path

import pytest

from tlbatch.config.load import load_job, load_jobs
from tlbatch.config.sweep import combinations
from tlbatch.core.errors import UserError

JOB = 'name = "eyes"\n[data]\nimages = "here"\n[[phase]]\ncut = "pool"\nepochs = 2\n[[phase]]\ncut = "none"\n'


@pytest.fixture
def job(tmp_path: Path) -> Path:
    file = tmp_path / "job.toml"
    file.write_text(JOB, encoding="utf-8")
    return file


def labels(**lists: object) -> list[str]:
    return [label for label, _ in combinations(lists)]


def test_every_combination_is_a_run_that_is_named_after_it(job: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.write_text("[sweep]\nphase.0.optimizer.lr = [1e-3, 0.1]\nseed = [3, 4]\n", encoding="utf-8")
    jobs = load_jobs([job, sweep], ["run=night", "sweep.seed=[0, 1]", "phase.0.epochs=7"])
    assert [(one.name, one.run) for one in jobs] == [
        (f"eyes-{what}", f"night-{what}") for what in ("lr0.001-seed0", "lr0.001-seed1", "lr0.1-seed0", "lr0.1-seed1")
    ]
    assert [(one.phase[0].optimizer.lr, one.seed) for one in jobs] == [(1e-3, 0), (1e-3, 1), (0.1, 0), (0.1, 1)]
    assert {one.phase[0].epochs for one in jobs} == {7}
    assert [one.sweep for one in jobs] == [{}] * 4
    assert load_jobs([job, sweep], ["sweep={}"])[0].name == "eyes"
    with pytest.raises(UserError, match="recipes and sweep: the job has 4 runs, but only one is possible here"):
        load_job([job, sweep], [])


def test_every_recipe_is_swept_and_may_have_lists_of_its_own(job: Path) -> None:
    recipes = ["recipes.mlp.head.widths=[8]", "recipes.probe.phase=[{cut='pool'}]", "recipes.probe.sweep.seed=[5]"]
    jobs = load_jobs([job], [*recipes, "sweep.train.batch_size=[8, 16]"])
    assert [(one.name, one.train.batch_size, one.head.widths, one.seed) for one in jobs] == [
        ("eyes-mlp-batch_size8", 8, (8,), 0), ("eyes-mlp-batch_size16", 16, (8,), 0),
        ("eyes-probe-batch_size8-seed5", 8, (), 5), ("eyes-probe-batch_size16-seed5", 16, (), 5),
    ]  # fmt: skip


def test_labels_are_short_and_plain_and_none_is_there_twice() -> None:
    assert labels(data={"split": {"fold": [0, 1]}}, seed=[1]) == ["-fold0-seed1", "-fold1-seed1"]
    assert labels(a={"lr": [1]}, b={"lr": [2]}) == ["-a.lr1-b.lr2"]
    assert labels(cut=["pool", "layer 15", "blocks.4"]) == ["-cut-pool", "-cut-layer-15", "-cut-blocks.4"]
    assert labels(flag=[True], widths=[[256, 64], []], head=[1e20]) == [
        "-flag-true-widths256-64-head1e20", "-flag-true-widths_1-head1e20",
    ]  # fmt: skip
    assert labels(lr=[1e-20, 1e20]) == ["-lr1e-20", "-lr1e20"]
    assert labels(weights=["/a b/c", "/a:b/c", "x" * 30]) == ["-weights_0", "-weights_1", "-weights_2"]
    assert labels(optimizer={"x": [1]}, head=[[{"a": 1}], "../b"]) == ["-x1-head_0", "-x1-head..-b"]
    assert labels(**{f"key{number}" * 4: [0, 1] for number in range(6)})[:2] == ["-0", "-1"]


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["sweep.phase.0.optimizer.lr=[0.1, -1]"],
            "sweep.phase.0.optimizer.lr: must be greater than 0 (got -1); raise it",
        ),
        (["sweep.seed=3"], "sweep.seed: must be a list of values (got 3); write e.g. [0, 1]"),
        (["sweep.seed=[]"], "sweep.seed: must be a list of values (got []); write e.g. [0, 1]"),
        (["sweep=3"], "sweep: must be a section of lists (got 3); write e.g. [sweep] with seed = [0, 1]"),
        (["sweep.run=['a', 'b']"], "sweep.run: cannot be swept, since all runs of a sweep share it; leave it out"),
        (
            ["sweep.phase.2.epochs=[1]"],
            "sweep.phase.2: must be one of the job's entries 0 to 1 (got 2); use one of them",
        ),
        (["sweep.sed=[1]"], "sweep.sed: unknown key, did you mean seed?; see --help for the keys"),
        (["sweep.seed=[0, 1]", "seed=4"], "seed: is swept by sweep.seed; leave one of them out"),
        (["sweep.head=[{}]", "head.dropout=0"], "head.dropout: is swept by sweep.head; leave one of them out"),
        (
            ["data.split.folds=2", "sweep.data.split.fold=[0, 1, 2]"],
            "sweep.data.split.fold: folds must be at least 2 and above fold (got folds = 2, fold = 2); change one",
        ),
        (["sweep.seed=[0, 1]", "nmae=1"], "nmae: unknown key, did you mean name?; see --help for the keys"),
        (
            ["sweep.seed=[0, -1]", "sweep.train.batch_size=[0, 1]"],
            (
                "sweep.train.batch_size: must be at least 1 (got 0); raise it\n"
                "sweep.seed: must be at least 0 (got -1); raise it"
            ),
        ),
        (
            [f"sweep.seed={list(range(101))}", f"sweep.data.split.fold={list(range(10))}"],
            "sweep: makes 1010 runs, and a job array holds at most 1000; leave some values out",
        ),
    ],
)
def test_what_is_wrong_with_a_sweep_is_told_once_with_its_key(job: Path, overrides: list[str], lines: str) -> None:
    with pytest.raises(UserError) as error:
        load_jobs([job], overrides)
    assert str(error.value) == lines
