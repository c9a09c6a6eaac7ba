"""Plans and scripts for several runs, and the shell around a stage with a squeue and a scontrol that write down."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tlbatch.cluster import job_arrays, results
from tlbatch.cluster.create import existing_run, make_run, new_run, resolve
from tlbatch.cluster.job_arrays import common_name, plan, scripts, shared_paths
from tlbatch.config.load import load_jobs
from tlbatch.core.errors import UserError
from tlbatch.runs import task
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Failure, FailureKind
from tlbatch.runs.run import Run
from tlbatch.runs.stages import StageName
from tlbatch.runs.world import World

Make = Callable[..., list[Run]]
FAKE_SRUN = """#!/bin/bash
printf '%s\\n' "$TLBATCH_LOG" "$TLBATCH_AGAIN" "$TLBATCH_DEADLINE" > "$FAKE/seen.$SLURM_ARRAY_TASK_ID"
mkdir -p "${TLBATCH_AGAIN%/*}"
case "$DO" in
  finish) touch "${TLBATCH_AGAIN%/*}/train.json" ;;
  again) touch "$TLBATCH_AGAIN" ;;
  fail) exit 2 ;;
esac
"""
FAKE_SQUEUE = '#!/bin/bash\n[ "$2" = --jobs=7_1 ] && echo 2030-01-01T00:10:00\n'
FAKE_SCONTROL = '#!/bin/bash\necho "$@" >> "$FAKE/scontrol"\n[ "$1" != requeue ]\n'


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path) -> Make:
    def made(*options: str) -> list[Run]:
        fixed = [f"data.images={tmp_path}", f"workspace={tmp_path / '''a 'b' $(c)'''}", "run=s"]
        records = [resolve(job) for job in load_jobs([tiny_job], [*fixed, *options])]
        return [make_run(record) for record in records]

    return made


def finish(run: Run, *stages: StageName) -> None:
    for stage in stages:
        run.paths.marker(stage).parent.mkdir(exist_ok=True)
        run.paths.marker(stage).touch()


def shown(runs: list[Run]) -> list[tuple[str, list[str], str | None]]:
    steps = plan(runs)
    ids = [f"{number}" for number in range(len(steps))]
    return [(step.stage, [run.name.removeprefix("s-") for run in step.runs], step.dependency(ids)) for step in steps]


def test_a_new_sweep_is_a_job_for_what_is_shared_and_an_array_for_each_other_stage(make: Make) -> None:
    names = ["seed0", "seed1", "seed2"]
    runs = make("sweep.seed=[0, 1, 2]")
    assert shown(runs) == [
        ("shard", names, None), ("cache", names, "afterany:0"), ("train", names, "afterany:1"),
        ("predict", names, "aftercorr:2"), ("reduce", names, "aftercorr:3"),
    ]  # fmt: skip
    assert [step.is_array for step in plan(runs)] == [False, False, True, True, True]


def test_runs_that_are_submitted_again_have_no_cause_of_before(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = make("sweep.seed=[0, 1]")
    for run in runs:
        Failure(stage="shard", rank=0, message="of yesterday", kind="user").save(run.paths.failure("shard", 0))
    monkeypatch.setattr(job_arrays, "_submit", lambda *_: "7")
    job_arrays.submit_runs(runs)
    assert not [run for run in runs if run.paths.failure("shard", 0).exists()]


def test_only_what_is_missing_is_run_and_arrays_hold_runs_that_miss_the_same(make: Make) -> None:
    runs = make("sweep.seed=[0, 1, 2, 3, 4]")
    for run in runs[1:]:
        finish(run, "shard", "cache")
    for run in runs[2:]:
        finish(run, "train", "predict")
    finish(runs[4], "reduce")
    assert shown(runs[:4]) == [
        ("shard", ["seed0"], None), ("cache", ["seed0"], "afterany:0"),
        ("train", ["seed0"], "afterany:1"), ("predict", ["seed0"], "afterok:2"), ("reduce", ["seed0"], "afterok:3"),
        ("train", ["seed1"], None), ("predict", ["seed1"], "afterok:5"), ("reduce", ["seed1"], "afterok:6"),
        ("reduce", ["seed2", "seed3"], None),
    ]  # fmt: skip


def test_runs_that_choose_do_so_before_the_cache_is_filled_for_all(make: Make) -> None:
    recipes = ["recipes.a.strategy=auto", "recipes.a.phase=[]", "recipes.b.phase=[{cut='auto'}]", "recipes.c.seed=1"]
    assert shown(make(*recipes))[:4] == [
        ("shard", ["a", "b", "c"], None), ("choose", ["a", "b"], "afterany:0"),
        ("cache", ["a", "b", "c"], "afterany:1"), ("train", ["a", "b", "c"], "afterany:2"),
    ]  # fmt: skip


def test_what_runs_share_is_named_by_what_their_names_begin_with() -> None:
    assert common_name(["eyes-fold0-lr1", "eyes-fold1-lr1"]) == "eyes"
    assert common_name(["eyes-fold0-lr0.1", "eyes-fold0-lr0.01"]) == "eyes-fold0"
    assert common_name(["eyes", "eyes-more"]) == "eyes"
    assert common_name(["eyes", "flowers"]) == "tlbatch"


def test_runs_that_ask_slurm_for_different_things_are_refused_in_one_line(make: Make) -> None:
    runs = make("sweep.slurm.mem_gb=[1, 2]")
    with pytest.raises(
        UserError, match=r"^slurm: s-mem_gb2 and s-mem_gb1 differ in this section, which all elements .* share; "
    ):
        list(scripts(runs))


def test_scripts_ask_for_so_many_at_once_and_have_a_shell_that_can_read_them(make: Make, tmp_path: Path) -> None:
    runs = make("sweep.seed=[0, 1, 2]", "slurm.array_parallelism=2", "slurm.shard_tasks=5")
    found = list(scripts(runs))
    assert [title for title, _, _ in found] == [
        "shard, first, of s-seed0", "shard, 3 runs, one after another", "cache, 3 runs, one after another",
        "train, 3 runs, an array", "predict, 3 runs, an array", "reduce, 3 runs, an array",
    ]  # fmt: skip
    for title, script, alone in found:
        (tmp_path / "script.sh").write_text(script, encoding="utf-8")
        subprocess.run(["bash", "-n", tmp_path / "script.sh"], check=True)
        assert ("#SBATCH --array=0-2%2\n" in script) == title.endswith("an array")
        assert "dependency" not in alone
    assert "#SBATCH --array=0-4%5\n" in found[0][1]
    assert "#SBATCH --dependency='aftercorr:<id of train>'\n" in found[4][1]


@pytest.mark.parametrize(("do", "code"), [("finish", 0), ("again", 77), ("fail", 2), ("begin too early", 1)])
def test_an_element_has_its_own_run_logs_and_mark_to_start_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, do: str, code: int
) -> None:
    runs = make("sweep.seed=[0, 1, 2]")
    shared_paths(runs).logs.mkdir(parents=True)
    script = next(text for title, text, _ in scripts(runs) if title.startswith("train"))
    if do != "begin too early":
        finish(runs[1], "cache")
    done = run_script(script, tmp_path, monkeypatch, DO=do, SLURM_ARRAY_TASK_ID="1", SLURM_RESTART_COUNT="3")
    assert done.returncode == code, done.stderr
    folder = runs[1].folder
    if do == "begin too early":
        assert f"error: {folder}/markers/cache.json is missing: the previous stage failed for this run" in done.stderr
        assert not (tmp_path / "seen.1").exists()
        return
    log, again, deadline = (tmp_path / "seen.1").read_text("utf-8").splitlines()
    assert log == f"{folder}/logs/train-7_1.3-rank%t.log"
    assert again == f"{folder}/markers/train.again.7_1.3"
    assert deadline.isdecimal()
    requeued = "requeue 7_1" in (tmp_path / "scontrol").read_text("utf-8").splitlines()
    assert requeued == (do == "again")
    assert [sorted(file.name for file in run.folder.iterdir()) for run in runs[::2]] == [["job.json", "logs"]] * 2


@pytest.mark.parametrize("missing", [None, 2])
def test_a_shared_job_has_ended_well_when_it_has_for_all(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: int | None
) -> None:
    runs = make("sweep.seed=[0, 1, 2]")
    shared_paths(runs).logs.mkdir(parents=True)
    script = next(text for title, text, _ in scripts(runs) if title.startswith("cache"))
    for number, run in enumerate(runs):
        finish(run, *() if number == missing else ("cache",))
    done = run_script(script, tmp_path, monkeypatch, DO="fail" if missing else "nothing")
    assert done.returncode == (0 if missing is None else 2), done.stderr
    runs[2].paths.logs.chmod(0o777)
    assert run_script(script, tmp_path, monkeypatch, DO="nothing").returncode == 78


def run_script(
    script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **environment: str
) -> subprocess.CompletedProcess[str]:
    for name, text in (("srun", FAKE_SRUN), ("squeue", FAKE_SQUEUE), ("scontrol", FAKE_SCONTROL)):
        (folder / name).write_text(text, encoding="utf-8")
        (folder / name).chmod(0o755)
    (folder / "script.sh").write_text(script, encoding="utf-8")
    if "SLURM_ARRAY_TASK_ID" in environment:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    given = {"FAKE": str(folder), "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **environment}
    return subprocess.run(
        ["bash", folder / "script.sh"], env={**os.environ, **given}, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("kinds", "ranks", "tried", "code"),
    [
        ([None, None, None], 1, 3, 0), ([None, "crash", None], 1, 3, 1), (["user", None, "crash"], 1, 3, 2),
        ([None, "stopped", None], 1, 2, 0), (["crash", None, None], 2, 1, 1), (["user", None, None], 2, 3, 2),
    ],
)  # fmt: skip
def test_a_run_that_fails_in_a_shared_job_does_not_stop_the_others(
    make: Make, monkeypatch: pytest.MonkeyPatch, kinds: list[FailureKind | None], ranks: int, tried: int, code: int
) -> None:
    """Unless its time has run out, or another rank may wait for the one that crashed."""
    runs = make("sweep.seed=[0, 1, 2]")
    of_folder = {run.folder: kind for run, kind in zip(runs, kinds, strict=True)}
    seen: list[Path] = []

    def execute(stage: StageName, folder: Path) -> int:
        seen.append(folder)
        print("what the stage says")
        kind = of_folder[folder]
        if kind:
            Failure(stage=stage, rank=1, message="", kind=kind).save(RunPaths(folder).failure(stage, 1))
        return {"user": 2, "crash": 1}.get(kind or "", 0)

    monkeypatch.setattr(task, "execute", execute)
    monkeypatch.setattr(task, "read_world", lambda _: World(rank=1, world_size=ranks))
    monkeypatch.setenv(task.LOG, "/some%%where/logs/cache-7.0-rank%t.log")
    with pytest.raises(SystemExit) as end:
        task.run_each("cache", [str(run.folder) for run in runs])
    assert (len(seen), end.value.code) == (tried, code)
    logs = [run.paths.logs / "cache-7.0-rank1.log" for run in runs[:tried]]
    assert [log.read_text("utf-8") for log in logs] == ["what the stage says\n"] * tried


def test_a_run_of_the_same_name_is_taken_up_where_only_slurm_is_asked_for_something_else(make: Make) -> None:
    (run,) = make()
    record, paths = run.record, run.paths
    asked = record.model_copy(
        update={"job": record.job.model_copy(update={"slurm": record.job.slurm.model_copy(update={"mem_gb": 3.0})})}
    )
    found = existing_run(asked, save=False)
    assert found == Run(asked, paths)
    assert paths.load_submitted() == record
    existing_run(asked, save=True)
    assert paths.load_submitted() == asked
    other = record.model_copy(update={"job": record.job.model_copy(update={"seed": 1})})
    assert existing_run(other, save=True) is None
    with pytest.raises(UserError, match="a run of this name exists already"):
        new_run(other)


def test_folds_that_are_all_there_are_named_with_the_command_that_puts_them_together(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = make("data.split.folds=2", "sweep.seed=[0, 1]", "sweep.data.split.fold=[0, 1]")
    results.print_folds(runs[:3])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("folds together  python -m tlbatch.reduce '")
    assert line.endswith("s-seed0-fold1' --ensemble")
