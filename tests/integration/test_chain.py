"""The complete chain as a user runs it: on this machine, on SLURM with submit, and on SLURM with sbatch."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from slurm_cluster import SlurmCluster

from tlbatch import reduce, shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.stages import stages_of

ROOT = Path(__file__).parents[2]
UNRESOLVABLE = ["unshare", "--uts", "sh", "-c", 'hostname no-such-host.invalid && exec "$0" "$@"']
"""Runs a command under a host name that nothing can resolve, as on some nodes; only root may."""
if os.geteuid():
    UNRESOLVABLE = []
Result = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_job: Path, write_folders: Callable[..., Path]) -> Path:
    """A folder with tiny.toml and images/<class>/, with shell metacharacters in its name."""
    folder = tmp_path_factory.mktemp("a b$(c)'d")
    write_folders(folder / "images")
    shutil.copy(tiny_job, folder)
    return folder


def arguments(tiny: Path, *overrides: str) -> list[str]:
    return [str(tiny / "tiny.toml"), f"data.images={tiny / 'images'}", f"workspace={tiny / 'space'}", *overrides]


def submit(tiny: Path, *options: str, run: Callable[..., Result] = subprocess.run) -> Result:
    command = [sys.executable, "-m", "tlbatch.submit", *arguments(tiny, *options)]
    if run is subprocess.run:
        return subprocess.run([*UNRESOLVABLE, *command], capture_output=True, text=True, timeout=300, check=False)
    return run(*command, timeout_s=300)


def report(tiny: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tiny / "space" / "runs" / run / "report" / "report.json").read_text("utf-8"))
    return found


def scored(tiny: Path, run: str) -> dict[str, Any]:
    return report(tiny, run) | {"run": "", "cost": {}}


def predictions(tiny: Path, run: str) -> pd.DataFrame:
    return pd.read_csv(tiny / "space" / "runs" / run / "report" / "predictions.csv")


@pytest.fixture(scope="module")
def two_local_ranks(tiny: Path) -> Result:
    return submit(tiny, "run=local", "slurm.tasks_per_node=2", "--local")


@pytest.mark.chain
def test_on_this_machine_the_log_ends_with_scores_report_and_leaderboard(tiny: Path, two_local_ranks: Result) -> None:
    assert two_local_ranks.returncode == 0, two_local_ranks.stdout + two_local_ranks.stderr
    end = two_local_ranks.stdout.splitlines()[-4:]
    value, low, high = (report(tiny, "local")["scores"]["accuracy"][key] for key in ("value", "low", "high"))
    assert end[0] == f"accuracy        {value:.4f} ({low:.4f} to {high:.4f})"
    assert report(tiny, "local")["scores"]["quadratic_kappa"]["undefined"] == "the classes are not ordered"
    assert end[1:] == [
        "test images     9",
        f"report          {tiny}/space/runs/local/report/report.html",
        f"leaderboard     {tiny}/space/runs/leaderboard.csv",
    ]
    assert "train 2 ranks on CPU, 1 thread each" in two_local_ranks.stdout
    markers = tiny / "space" / "runs" / "local" / "markers"
    assert json.loads((markers / "train.json").read_text("utf-8"))["world_size"] == 2
    parts = sorted(file.name for file in (tiny / "space" / "runs" / "local" / "predictions").iterdir())
    assert len(parts) == 2


SECTIONS = {
    "phases": [],
    "fitted": ["phase=[{cut='pool', fit='kernel-ridge'}]", "data.split.val=0", "head.view_mean=true"],
    "rates": ["phase=[{cut='pool', lr_grid=[1e-3, 1e-2], epochs=2}]", "head.after=['pool', 'blocks.1']"],
    "views": ["train.augment='rot4'", "train.tta=true", "data.split.val=0.5"],
    "averaged": ["phase=[{cut='blocks.1', epochs=3, ema=0.5, average=true, patience=1}]", "head.pool='gem'"],
    "choosing": ["strategy='auto'", "strategy_minutes=1e-9", "phase=[]"],
    "phrases": ["objective='tags'", "data.tag_separator='e'", "decoder={hidden=32, dropout=0}"],
}
"""Jobs that use several ranks in different ways."""
RANKS_WORK = """
import sys
from pathlib import Path
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.stages import RANKED_STAGES, stages_of
from tlbatch.runs.task import run_chain
sys.path.insert(0, sys.argv[1])
from attempts import fit_fewer
fit_fewer()
for folder in sys.argv[2:]:
    job = RunPaths(Path(folder)).load_submitted().job
    try:
        run_chain(folder, [stage for stage in stages_of(job) if stage in RANKED_STAGES])
    except SystemExit as end:
        if end.code:
            raise
"""
"""Runs the multi-rank stages of several runs in one process, as importing torch takes longer than they do."""


def prepared(tiny: Path, run: str, *sections: str) -> RunPaths:
    job = load_job([tiny / "tiny.toml"], arguments(tiny, f"run={run}", *sections)[1:])
    paths = make_run(resolve(job)).paths
    shard.run(paths.folder)
    return paths


@pytest.fixture(scope="module")
def two_ranks(tiny: Path) -> dict[str, RunPaths]:
    """Return the runs of all jobs, run by two processes."""
    runs = {name: prepared(tiny, f"{name}-two", *sections) for name, sections in SECTIONS.items()}
    world = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_JOB_ID": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS_WORK, str(Path(__file__).parent), *(str(one.folder) for one in runs.values())],
            env={**os.environ, **world, "SUBMITIT_LOCAL_GLOBALID": str(rank), "SUBMITIT_LOCAL_LOCALID": str(rank)},
        )
        for rank in (0, 1)
    ]
    try:
        assert [rank.wait(300) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
    return runs


@pytest.mark.chain
@pytest.mark.usefixtures("fewer_fits")
@pytest.mark.parametrize("name", SECTIONS)
def test_one_rank_and_two_give_the_same_predictions_to_rounding(
    tiny: Path, two_ranks: dict[str, RunPaths], name: str
) -> None:
    alone = prepared(tiny, f"{name}-one", *SECTIONS[name])
    for stage in stages_of(alone.load_submitted().job)[1:]:
        importlib.import_module(f"tlbatch.{stage}").run(alone.folder)
    reduce.run(two_ranks[name].folder)
    one, two = predictions(tiny, f"{name}-one"), predictions(tiny, f"{name}-two")
    assert one["image"].tolist() == two["image"].tolist()
    columns = [name for name in one if name.startswith("p_") or name == "log_probability"]
    assert columns == (["log_probability"] if name == "phrases" else ["p_blue", "p_green", "p_red"])
    assert name != "phrases" or one["prediction"].tolist() == two["prediction"].tolist()
    assert np.allclose(one[columns], two[columns], atol=1e-3)


@pytest.mark.chain
def test_recipes_and_sweeps_end_with_a_table_and_a_page_that_compares_them(tiny: Path) -> None:
    recipes = tiny / "recipes.toml"
    recipes.write_text("[recipes.usual]\n[sweep]\nhead.dropout = [0, 0.5]\n", encoding="utf-8")
    done = submit(tiny, str(recipes), "run=both", "phase.1.epochs=1", "--local")
    assert done.returncode == 0, done.stdout + done.stderr
    heading, *rows, tests, board, comparison = done.stdout.splitlines()[-6:]
    assert heading.split() == ["recipe", "accuracy", "(95", "%", "interval)"]
    names = [f"usual-dropout{value}" for value in ("0", "0.5")]
    scores = {f"tiny-{name}": report(tiny, f"both-{name}")["scores"]["accuracy"]["value"] for name in names}
    assert sorted(rows) == [row for row in sorted(rows) if f"{scores[row.split()[0]]:.4f}" == row.split()[1]]
    assert tests == f"test images     {report(tiny, 'both-usual-dropout0')['n']}"
    assert board == f"leaderboard     {tiny}/space/runs/leaderboard.csv"
    assert comparison == f"comparison      {tiny}/space/runs/comparison.html"
    page = (tiny / "space" / "runs" / "comparison.html").read_text(encoding="utf-8")
    assert all(
        run in page for run in ("Comparison of 2 runs", *(f"both-{name}" for name in names), "no difference shown")
    )
    again = submit(tiny, str(recipes), "run=both", "phase.1.epochs=1", "--local")
    assert again.stdout.splitlines()[-6:] == done.stdout.splitlines()[-6:]
    assert [line.endswith("  finished already") for line in again.stdout.splitlines()[:3]] == [True, True, False]


@pytest.mark.chain
def test_a_dry_run_prints_every_script_and_touches_nothing(tiny: Path) -> None:
    done = submit(tiny, "workspace=/nowhere/at/all", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash") == 5
    assert re.search(r"^run folder  /nowhere/at/all/runs/tiny-\d{8}-\d{6}$", done.stdout, re.MULTILINE)
    assert "#SBATCH --dependency='afterok:<id of shard>'" in done.stdout
    assert not Path("/nowhere").exists()


@pytest.mark.chain
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["train.batchsize=1", "--local"], "train.batchsize: unknown key, did you mean train.batch_size?"),
        (["data.images=/nowhere", "--local"], "data.images: no such folder /nowhere; set data.images=PATH"),
        (["model.weights=/no/file.pth", "--local"], "model.weights: no such file /no/file.pth"),
        (["model.weights=package:nothing_here/x.pth", "--local"], "package nothing_here is not installed"),
        (["run=local", "--local"], "a run of this name exists already; choose another with run=NAME"),
        (["--in-allocation"], "--in-allocation: not in a SLURM allocation"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    tiny: Path, two_local_ranks: Result, options: list[str], says: str
) -> None:
    assert two_local_ranks.returncode == 0
    done = submit(tiny, *options)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.chain
def test_a_stage_that_fails_on_a_user_error_says_so_in_one_line(tiny: Path) -> None:
    done = submit(tiny, "model.backbone=timm:none_such", "run=bad", "--local")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cache: model.backbone: timm has no 'none_such'"), done.stdout + done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "error: " not in done.stdout


@pytest.mark.chain
def test_a_full_disk_leaves_no_half_written_file(tiny: Path, tiny_disk: Path) -> None:
    done = submit(tiny, f"workspace={tiny_disk}", "data.resize=0", "--local")
    left = [file.name for file in (tiny_disk / "shards").rglob("*") if file.is_file() and file.name != ".lock"]
    assert done.returncode == 2, done.stdout + done.stderr
    assert "no space left on the device or in the quota; free some, or set workspace=PATH" in done.stderr
    assert left == []


@pytest.mark.cluster
def test_submit_returns_at_once_and_the_chain_runs_over_two_nodes(
    tiny: Path, slurm: SlurmCluster, two_local_ranks: Result
) -> None:
    assert two_local_ranks.returncode == 0
    done = submit(tiny, "run=chain", "slurm.nodes=2", "slurm.shard_tasks=2", "data.shard_images=8", run=slurm.run)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^job +\d+  shard, 2 shares$", done.stdout, re.MULTILINE)
    jobs = dict(re.findall(r"^job +(\d+)  (\w+)$", done.stdout, re.MULTILINE))
    assert list(jobs.values()) == ["shard", "cache", "train", "predict", "reduce"]
    assert slurm.job_field(list(jobs)[-1], "JobState") == "PENDING"
    assert set(slurm.wait(list(jobs), 240).values()) == {"COMPLETED"}
    logs = tiny / "space" / "runs" / "chain" / "logs"
    shares = sorted(file for file in logs.glob("shard-*_*-rank0.log") if "new images" in file.read_text("utf-8"))
    assert [re.search(r"_(\d)\.0-rank0", file.name)[1] for file in shares] == ["0", "1"]
    train_log = (logs / f"train-{list(jobs)[2]}.0-rank0.log").read_text("utf-8")
    assert "train 2 ranks on CPU, 1 thread each" in train_log
    assert predictions(tiny, "chain").equals(predictions(tiny, "local"))
    assert scored(tiny, "chain") | {"digests": {}} == scored(tiny, "local") | {"digests": {}}  # other shards
    board = pd.read_csv(tiny / "space" / "runs" / "leaderboard.csv").set_index("run")
    assert board["score"]["chain"] == board["score"]["local"]


@pytest.mark.cluster
def test_the_dry_run_shows_the_very_scripts_that_are_submitted(tiny: Path, slurm: SlurmCluster) -> None:
    options = ["run=shown", "slurm.nodes=2", "slurm.mem_gb=0.5", "slurm.setup=['export A=1']"]
    shown = submit(tiny, *options, "--dry-run", run=slurm.run).stdout
    done = submit(tiny, *options, run=slurm.run)
    jobs = {stage: job for job, stage in re.findall(r"^job +(\d+)  (\w+)$", done.stdout, re.MULTILINE)}
    slurm.run("scancel", *jobs.values())
    scripts = dict(re.findall(r"^##### (\w+)\n(.*?)(?=\n##### |\Z)", shown, re.MULTILINE | re.DOTALL))
    for stage, job in jobs.items():
        script = (tiny / "space" / "runs" / "shown" / "logs" / f"{job}_submission.sh").read_text("utf-8")
        plain = re.sub(r"'afterok:<id of (\w+)>'", lambda found: f"afterok:{jobs[found[1]]}", scripts[stage])
        assert script.strip() == plain.strip()
        assert "eval 'export A=1'" in script


@pytest.mark.cluster
def test_test_only_asks_slurm(tiny: Path, slurm: SlurmCluster) -> None:
    good = submit(tiny, "run=checked", "--test-only", run=slurm.run)
    assert good.returncode == 0, good.stderr
    assert len(re.findall(r"^\w+: sbatch: Job \d+ to start", good.stdout, re.MULTILINE)) == 5
    bad = submit(tiny, "run=checked", "slurm.nodes=3", "--test-only", run=slurm.run)
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: SLURM would refuse cache, train, predict")
    assert not (tiny / "space" / "runs" / "checked").exists()
    refused = submit(tiny, "run=refused", "slurm.partition=none", run=slurm.run)
    assert refused.returncode == 2
    assert "error: shard: sbatch refused it" in refused.stderr


@pytest.mark.cluster
def test_a_failed_stage_ends_the_chain_and_wait_names_the_cause(tiny: Path, slurm: SlurmCluster) -> None:
    done = submit(tiny, "run=fails", "slurm.nodes=2", "slurm.gpus_per_node=1", "--wait", run=slurm.run)
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(r"error: cache: n[12]: 1 GPU requested, but torch sees none; check nvidia-smi", done.stderr)
    jobs = re.findall(r"^job +(\d+)", done.stdout, re.MULTILINE)
    states = slurm.wait(jobs, 60)
    assert list(states.values()) == ["COMPLETED", "FAILED", "CANCELLED", "CANCELLED", "CANCELLED"]


@pytest.mark.cluster
def test_sbatch_runs_the_same_chain_in_one_allocation(tiny: Path, slurm: SlurmCluster, two_local_ranks: Result) -> None:
    assert two_local_ranks.returncode == 0
    log = tiny / "batch.log"
    done = slurm.run(
        "sbatch", "--parsable", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", f"--output={log}",
        "slurm/finetune.sh", *arguments(tiny, "run=batch", "slurm.shard_tasks=2"), cwd=ROOT,
        env={"TLBATCH_ENV": sys.prefix},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert slurm.wait([done.stdout.strip()], 240) == {done.stdout.strip(): "COMPLETED"}, log.read_text("utf-8")
    text = log.read_text("utf-8")
    assert "train 2 ranks on CPU, 1 thread each" in text
    assert f"leaderboard     {tiny}/space/runs/leaderboard.csv" in text
    assert predictions(tiny, "batch").equals(predictions(tiny, "local"))
    assert scored(tiny, "batch") == scored(tiny, "local")


@pytest.mark.cluster
def test_sbatch_with_more_gpus_than_tasks_says_how_to_ask(tiny: Path, slurm: SlurmCluster) -> None:
    log = tiny / "gpus.log"
    done = slurm.run(
        "sbatch", "--wait", "--gpus-per-node=2", f"--output={log}", "slurm/finetune.sh", *arguments(tiny),
        cwd=ROOT, env={"TLBATCH_ENV": sys.prefix},
    )  # fmt: skip
    assert done.returncode == 2
    assert "start one task per GPU: sbatch --ntasks-per-node=2 slurm/finetune.sh" in log.read_text("utf-8")


@pytest.mark.cluster
def test_a_cancelled_training_saves_on_all_ranks_at_a_step_and_ends_the_chain_with_the_cause(
    tiny: Path, slurm: SlurmCluster
) -> None:
    done = submit(tiny, "run=signalled", "slurm.nodes=2", "phase.1.epochs=100000", run=slurm.run)
    jobs = {stage: job for job, stage in re.findall(r"^job +(\d+)  (\w+)$", done.stdout, re.MULTILINE)}
    paths = RunPaths(tiny / "space" / "runs" / "signalled")
    deadline = time.monotonic() + 120
    while not paths.metrics.exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    slurm.run("scancel", jobs["train"])
    ends = dict.fromkeys([jobs["train"], jobs["predict"]], "CANCELLED")
    assert slurm.wait(list(ends), 60) == ends
    causes = [json.loads(paths.failure("train", rank).read_text("utf-8")) for rank in (0, 1)]
    assert [cause["kind"] for cause in causes] == ["stopped", "stopped"]
    assert len({re.sub(r"by .*? in", "", cause["message"]) for cause in causes}) == 1
    place = re.search(r"stopped by .* in phase (\d) epoch (\d+) step (\d+); progress was saved", causes[0]["message"])
    assert place is not None
    assert (paths.snapshots / f"step-{place[1]}.{place[2]}.{place[3]}").is_dir()
