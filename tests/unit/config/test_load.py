import tomllib
from pathlib import Path

import pytest

from tlbatch.config import renamed
from tlbatch.config.load import changed_keys, config_keys, load_job, load_jobs
from tlbatch.core.errors import UserError

SMALL = '[data]\nimages = "here"\n[[phase]]\ncut = "pool"\nepochs = 2\n[[phase]]\ncut = "none"\n'


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL, encoding="utf-8")
    return file


def test_files_merge_left_to_right_and_overrides_win(small: Path, tmp_path: Path) -> None:
    site = tmp_path / "site.toml"
    site.write_text('[slurm]\npartition = "gpu"\nnodes = 2\n[data]\nimages = "elsewhere"\n', encoding="utf-8")
    job = load_job([site, small], ["phase.1.epochs=7", "slurm.nodes=3", "data.images=/a b/c"])
    assert (job.slurm.partition, job.slurm.nodes) == ("gpu", 3)
    assert [phase.epochs for phase in job.phase] == [2, 7]
    assert job.data.images == Path("/a b/c")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("phase.1.optimizer.lr=-1", "phase.1.optimizer.lr: must be greater than 0 (got -1); raise it"),
        ("phase.0.epochs=0", "phase.0.epochs: must be at least 1 (got 0); raise it"),
        (
            "phase.0.epochs=soon",
            "phase.0.epochs: must be a valid integer, unable to parse string as an integer (got 'soon'); change it",
        ),
        ("train.batchsize=3", "train.batchsize: unknown key, did you mean train.batch_size?; see --help for the keys"),
        ("trian.batch_size=3", "trian: unknown key, did you mean train?; see --help for the keys"),
        (
            "train.mixed_precision=int4",
            "train.mixed_precision: must be one of 'no', 'fp16' or 'bf16' (got 'int4'); choose one of them",
        ),
        ("data.split.test=1.5", "data.split.test: must be less than 1 (got 1.5); lower it"),
        ("data.split.val=0.8", "data.split: val + test must be less than 1 (got 0.8 + 0.25); lower one"),
        (
            "data.group_pattern=^x",
            "data.group_pattern: must contain a group in parentheses; write e.g. '^(.*)_(left|right)$'",
        ),
        ("phase.2.epochs=1", "phase.2: must be one of the job's entries 0 to 1 (got 2); use one of them"),
        ("epochs", "epochs: not of the form key=value; write e.g. phase.0.epochs=3"),
        ("train=3", "train: must be a section (got 3); see --help for its keys"),
        ("slurm.timeout_min=2", "slurm.timeout_min: must be at least 5 (got 2); raise it"),
        (
            "run=../up",
            (
                "run: must be letters, digits, '_', '-' or '.', and begin with a letter or digit (got '../up'); "
                "choose another name"
            ),
        ),
    ],
)
def test_a_wrong_value_gives_one_line_with_field_value_and_way_out(small: Path, override: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        load_job([small], [override])
    assert str(error.value) == line


def test_all_wrong_fields_are_reported_together(small: Path) -> None:
    with pytest.raises(UserError) as error:
        load_job([small], ["train.batch_size=0", "phase.0.epochs=0", "nmae=x"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "phase.0.epochs",
        "train.batch_size",
        "nmae",
    ]


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("name = \n", encoding="utf-8")
    with pytest.raises(UserError, match="no such job file"):
        load_job([tmp_path / "absent.toml"], [])
    with pytest.raises(UserError, match=r"broken\.toml: not valid TOML"):
        load_job([broken], [])


def test_every_key_has_a_docstring() -> None:
    assert [key for key, _, text in config_keys() if not text] == []


def test_every_shipped_job_loads_and_its_first_comment_says_the_command(jobs: Path) -> None:
    jobs_there = sorted(jobs.glob("*.toml"))
    assert jobs_there
    site = jobs.parent / "slurm" / "site.toml"
    for file in jobs_there:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        script = "nightly" if "nightly" in tree else "finetune"
        own = {
            f"recipes.{name}.": recipe["data"] for name, recipe in tree.get("recipes", {}).items() if "data" in recipe
        }
        places = {"csv": ["data.images=somewhere", "data.labels=somewhere.csv"], "synthetic": []}
        options = [
            f"{of}{place}"
            for of, data in (own or {"": tree.get("data", {})}).items()
            for place in places.get(data.get("source", "folders"), ["data.images=somewhere"])
        ]
        for files in ([site, file], [file]):
            load_jobs(files, options)
        assert (
            f"slurm/{script}.sh {'' if file.stem == 'quickstart' else 'jobs/' + file.name}".strip()
            in file.read_text(encoding="utf-8")
        )


RECIPES = """
[recipes.usual]
[recipes.wide]
head = { widths = [8], dropout = 0.1 }
phase = [{ cut = "pool", epochs = 7 }]
"""


def test_every_recipe_is_a_job_of_its_own_and_overrides_win_over_it(small: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text('name = "eyes"\n' + RECIPES, encoding="utf-8")
    usual, wide = load_jobs([small, more], ["run=night", "phase.0.epochs=3", "head.dropout=0.5"])
    assert [(job.name, job.run) for job in (usual, wide)] == [
        ("eyes-usual", "night-usual"),
        ("eyes-wide", "night-wide"),
    ]
    assert [[phase.epochs for phase in job.phase] for job in (usual, wide)] == [[3, 1], [3]]
    assert [(job.head.widths, job.head.dropout) for job in (usual, wide)] == [((), 0.5), ((8,), 0.5)]
    assert [job.head.widths for job in load_jobs([small, more], ["recipes.wide.head.widths=[9]"])][1] == (9,)
    with pytest.raises(UserError, match=r"recipes\.wide\.haed: unknown key"):
        load_jobs([small, more], ["recipes.wide.haed=1"])
    with pytest.raises(UserError, match="recipes and sweep: the job has 2 runs, but only one is possible here"):
        load_job([small, more], [])


DOMAINS = """
[recipes.eyes]
metric = "quadratic_kappa"
data.split = { folds = 2 }
sweep.data.split.fold = [0, 1]
[recipes.eyes.recipes.plain]
[recipes.eyes.recipes.wide]
head.widths = [8]
[recipes.clothes]
recipes = { plain = {}, wide = { head.widths = [9] } }
"""


def test_a_recipe_lends_its_keys_and_its_sweep_to_those_it_holds(small: Path, tmp_path: Path) -> None:
    more = tmp_path / "more.toml"
    more.write_text('name = "both"\n' + DOMAINS, encoding="utf-8")
    jobs = load_jobs(
        [small, more], ["recipes.eyes.data.images=a", "recipes.clothes.recipes.wide.data.images=b", "run=r", "seed=7"]
    )
    assert [job.run for job in jobs] == [
        "r-eyes-plain-fold0", "r-eyes-plain-fold1", "r-eyes-wide-fold0", "r-eyes-wide-fold1",
        "r-clothes-plain", "r-clothes-wide",
    ]  # fmt: skip
    assert [str(job.data.images) for job in jobs] == ["a"] * 4 + [str(load_job([small], []).data.images), "b"]
    assert [job.metric for job in jobs] == ["quadratic_kappa"] * 4 + ["accuracy"] * 2
    assert [job.head.widths for job in jobs[2:]] == [(8,), (8,), (), (9,)]
    assert {job.seed for job in jobs} == {7}
    with pytest.raises(UserError) as error:
        load_jobs([small, more], ["recipes.eyes.data.source=csv"])
    assert str(error.value).splitlines() == [
        f"recipes.eyes.recipes.{name}.data: labels is required with source csv; set data.labels=FILE"
        for name in ("plain", "wide")
    ]
    with pytest.raises(UserError, match=r"^recipes: two of them have the run name both-eyes-wide-fold0; rename one$"):
        load_jobs(
            [small, more], ["recipes.eyes-wide.data.split.folds=2", "recipes.eyes-wide.sweep.data.split.fold=[0]"]
        )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[recipes.wide]\nhead.widths = [0]\n", "recipes.wide.head.widths.0: must be at least 1 (got 0); raise it"),
        ("[recipes.wide]\nhaed = 1\n", "recipes.wide.haed: unknown key, did you mean head?; see --help for the keys"),
        ("recipes = [1]\n", "recipes: must be sections by name, e.g. [recipes.mlp]; see --help for their keys"),
        (
            "[recipes.a.recipes]\nb = 1\n",
            "recipes.a.recipes: must be sections by name, e.g. [recipes.mlp]; see --help for their keys",
        ),
        ("[recipes.a.recipes.b]\nseed = -1\n", "recipes.a.recipes.b.seed: must be at least 0 (got -1); raise it"),
    ],
)
def test_a_wrong_value_in_a_recipe_is_named_with_the_recipe(small: Path, tmp_path: Path, text: str, line: str) -> None:
    more = tmp_path / "more.toml"
    more.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        load_jobs([small, more], [])
    assert str(error.value) == line


def test_the_keys_that_were_changed_are_told_with_their_values_and_shell_lines_never() -> None:
    job = load_job([], [
        "data.images=eyes", "phase=[{cut='pool'}, {cut='none', optimizer={lr=0.5}}]", "slurm.setup=['export PLACE=x']",
        "head.widths=[8]", "seed=0",
    ])  # fmt: skip
    assert list(changed_keys(job)) == [
        ("data.images", "eyes"), ("head.widths", "(8,)"), ("phase.1.cut", "none"), ("phase.1.optimizer.lr", "0.5"),
    ]  # fmt: skip


def test_a_time_limit_that_leaves_no_time_to_work_is_refused_with_the_sum() -> None:
    given = ["data.images=eyes", "phase=[{cut='pool'}]", "slurm.timeout_min=6"]
    assert load_job([], [*given, "slurm.signal_delay_s=180"]).slurm.timeout_min == 6
    with pytest.raises(UserError) as error:
        load_job([], [*given, "slurm.signal_delay_s=200"])
    assert str(error.value) == (
        "slurm: timeout_min = 6 gives 360 s, but SLURM warns 200 s before the end and up to 60 s earlier, and a stage "
        "takes up to 120 s to start; set timeout_min to at least 7, or a lower signal_delay_s"
    )


def test_renamed_keys_are_read_with_a_warning_in_files_overrides_recipes_and_sweeps(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    renamed._warn.cache_clear()
    file = tmp_path / "job.toml"
    file.write_text(
        SMALL + "[data.phantom]\nseed = 3\n[slurm]\nhang_s = 7\n[recipes.a]\nnightly.begin = 'champion'\n"
        "[sweep]\ndata.near_bits = [1, 2]\n"
    )
    jobs = load_jobs([file], ["phase.0.rates=[0.1, 0.2]", "slurm.watchdog_timeout_s=9"])
    assert [job.data.phash_max_distance for job in jobs] == [1, 2]
    assert {job.slurm.watchdog_timeout_s for job in jobs} == {9}
    assert {(job.nightly.init_from, job.phase[0].lr_grid, job.data.synthetic.seed) for job in jobs} == {
        ("champion", (0.1, 0.2), 3)
    }
    assert sorted(line.split(";")[0] for line in caplog.messages) == [
        "data.near_bits is now called data.phash_max_distance",
        "nightly.begin is now called nightly.init_from",
        "phase.N.rates is now called phase.N.lr_grid",
        "slurm.hang_s is now called slurm.watchdog_timeout_s",
    ]


def test_a_key_under_both_names_stops_the_job(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text(SMALL + "[slurm]\nhang_s = 7\nwatchdog_timeout_s = 8\n")
    with pytest.raises(UserError, match=r"slurm.watchdog_timeout_s: is set under its old name and its new one"):
        load_jobs([file], [])
