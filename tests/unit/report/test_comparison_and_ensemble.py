"""Reports of several runs, and what a report is asked beside its scores, on runs of tiny networks."""

import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tlbatch import cache, predict, reduce, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.cluster.results import show_end
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.evaluation import summary
from tlbatch.report.comparison import compare_runs
from tlbatch.report.ensemble import average_runs
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run
from tlbatch.runs.workspace import leaderboard

pytestmark = pytest.mark.chain


@pytest.fixture
def make(tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path]) -> Callable[..., RunPaths]:
    """A finished run of pictures with a labels file that knows a camera, two pictures to a patient."""

    def made(*overrides: str) -> RunPaths:
        images = tmp_path / "images"
        if not images.exists():
            make_folders(classes=("0", "1", "2"))
        labels = tmp_path / "labels.csv"
        with labels.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "level", "patient", "camera"])
            for image in sorted(images.rglob("*.jpg")):
                number = int(image.stem[1:])
                camera = "=old" if number % 4 < 2 else "new <b>"
                writer.writerow([image.stem, image.parent.name, f"p{image.parent.name}{number // 2}", camera])
        where = [f"data.images={images}", f"data.labels={labels}", f"workspace={tmp_path / 'space'}"]
        job = ["data.source=csv", "data.group_column=patient", *where, *overrides]
        paths = make_run(resolve(load_job([tiny_job], job))).paths
        for stage in (shard, cache, train, predict, reduce):
            stage.run(paths.folder)
        return paths

    return made


def report_of(paths: RunPaths) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths.report_json.read_text("utf-8"))
    return found


def test_small_sub_groups_are_put_together_and_none_left_out(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "_MOST_VALUES", 2)
    paths = make("report.subgroups=['patient']")
    report = report_of(paths)
    assert report["num_groups"] == 3
    assert [one["value"] for one in report["subgroups"]][2:] == ["(1 less frequent value)"]
    assert sum(one["n"] for one in report["subgroups"]) == report["n"]


def test_a_file_that_was_changed_after_it_was_read_is_noticed(make: Callable[..., RunPaths], tmp_path: Path) -> None:
    board = tmp_path / "board.csv"
    board.write_text("TeamId,Score\n1,0.9\n", encoding="utf-8")
    paths = make(f"report.public_leaderboard={board}")
    (paths.report / "submission.csv").unlink()
    reduce.run(paths.folder)
    assert (paths.report / "submission.csv").exists()
    board.write_text("TeamId,Score\n1,0.1\n", encoding="utf-8")
    with pytest.raises(UserError, match="reduce finished here with another report"):
        reduce.run(paths.folder)
    elsewhere = tmp_path / "elsewhere"
    board.write_text("TeamId,Score\n1,0.9\n", encoding="utf-8")
    paths.folder.rename(elsewhere)
    with pytest.raises(UserError, match=r"elsewhere: is not .* in .*runs; move it back there"):
        reduce.run(elsewhere)


def test_a_report_answers_what_the_job_asks_of_it(make: Callable[..., RunPaths], tmp_path: Path) -> None:
    board = tmp_path / "board.csv"
    board.write_text("TeamId,TeamName,Score\n1,a,0.99999\n2,b,-1\n", encoding="utf-8")
    paths = make(
        "metric=quadratic_kappa", "objective=regression", "data.split.val=0.3", "report.questions.ill=['1','2']",
        "report.sensitivity=[0.9]", "report.specificity=[0.8]", "report.subgroups=['camera']",
        "report.deploy_prior={0=0.8,1=0.1,2=0.1}", f"report.public_leaderboard={board}",
    )  # fmt: skip
    report = report_of(paths)
    (question,) = report["questions"]
    aims = [point["aim"] for point in question["points"]]
    assert aims == ["predicted class, no threshold", "sensitivity 0.9 on validation", "specificity 0.8 on validation"]
    assert all(sum(point["counts"]) == report["n"] for point in question["points"])
    assert question["num_positive"] == sum(row["support"] for row in report["classes"][1:])
    cameras = {one["value"]: one["n"] for one in report["subgroups"]}
    assert set(cameras) == {"=old", "new <b>"}
    assert sum(cameras.values()) == report["n"]
    assert report["num_groups"] == report["n"] / 2
    assert report["deployed"]["prior"] == [0.8, 0.1, 0.1]
    assert set(report["thresholds"]["rounding"]) == set(report["thresholds"]["tuned"]) == {"val", "test"}
    assert report["thresholds"]["tuned"]["test"]["value"] == report["score"]
    assert len(report["thresholds"]["fitted"]) == 2
    (place,) = report["external"]
    assert place["text"].endswith(" of 2")


def test_what_a_report_is_asked_must_fit_the_classes_and_the_labels_file(make: Callable[..., RunPaths]) -> None:
    for number, (wrong, says) in enumerate((
        ("report.questions.ill=['9']", r"report\.questions\.ill: unknown class 9; the classes are 0, 1, 2"),
        ("report.questions.ill=['0','1','2']", "must list some but not all of the classes"),
        ("report.deploy_prior={0=0.5}", r"the values must sum to 1 \(got 0\.5\)"),
        ("report.subgroups=['site']", r"no column site \(it has .*\); set report\.subgroups=NAME"),
        ("report.solution=/nowhere.csv", "solution needs a leaderboard; set report.public_leaderboard"),
        ("report.subgroups=['']", r"report\.subgroups\.0: must not be empty"),
        ("report.public_leaderboard=/nowhere.csv", r"report\.public_leaderboard: no such file"),
        ("report.sensitivity=[0.9]", "sensitivity and specificity need questions; set"),
        ("report.sample_submission=/nowhere.csv", r"report\.sample_submission: no such file"),
    )):  # fmt: skip
        with pytest.raises(UserError, match=says):
            make(wrong, f"run=asks{number}")


def test_without_validation_images_thresholds_are_those_of_training_images_out_of_fold(
    make: Callable[..., RunPaths],
) -> None:
    paths = make(
        "metric=quadratic_kappa", "decision=expected-grade", "phase=[{cut='pool', fit='logistic'}]", "data.split.val=0",
        "report.questions.ill=['1','2']", "report.sensitivity=[0.8]",
    )  # fmt: skip
    report = report_of(paths)
    assert report["questions"][0]["points"][1]["aim"] == "sensitivity 0.8 on out-of-fold predictions"
    assert report["questions"][0]["points"][1]["threshold"] is not None
    assert set(report["thresholds"]["tuned"]) == {"train", "test"}
    assert report["thresholds"]["tuned"]["train"]["value"] is not None
    assert "groups of out-of-fold predictions, fewer than the 50" in report["calibration"]["why"]
    file = next(paths.checkpoints.glob("*.unseen.npz"))
    with np.load(file) as unseen:
        assert len(unseen["labels"]) == 2 * sum(report["counts"]["train"])  # in two views
        assert unseen["probabilities"].sum(axis=1) == pytest.approx(1, abs=1e-5)
    file.write_bytes(b"")
    paths.marker("reduce").unlink()
    with pytest.raises(UserError, match=r"unseen\.npz: missing or modified since training"):
        reduce.run(paths.folder)


def test_another_report_of_the_same_run_needs_no_new_predictions(make: Callable[..., RunPaths]) -> None:
    """What a report is asked is no part of what predictions depend on."""
    paths = make("run=one")
    record = paths.load_submitted()
    asked = record.job.report.model_copy(update={"questions": {"ill": ("1", "2")}})
    record.model_copy(update={"job": record.job.model_copy(update={"report": asked})}).save(paths.record)
    with pytest.raises(UserError, match="reduce finished here with another report"):
        reduce.run(paths.folder)
    paths.marker("reduce").unlink()
    reduce.run(paths.folder)
    assert [one["name"] for one in report_of(paths)["questions"]] == ["ill"]


def test_folds_together_are_one_run_on_all_images_and_one_row_of_the_leaderboard(make: Callable[..., RunPaths]) -> None:
    folds = [
        make("data.split.folds=3", "data.split.val=0", f"data.split.fold={fold}", f"run=fold{fold}")
        for fold in range(3)
    ]
    average_runs([paths.folder for paths in folds], "mean", "all")
    whole = RunPaths(folds[0].folder.parent / "all")
    report = report_of(whole)
    assert whole.folder.stat().st_mode & 0o777 == 0o700
    assert (report["n"], report["num_groups"]) == (36, 18)
    assert report["members"] == ["fold0", "fold1", "fold2"]
    parts = pd.concat([pd.read_csv(paths.report / "predictions.csv", dtype=str) for paths in folds]).sort_values(
        "image"
    )
    together = pd.read_csv(whole.report / "predictions.csv", dtype=str)
    assert together["prediction"].tolist() == parts["prediction"].tolist()
    right = (parts["label"] == parts["prediction"]).mean()
    assert report["score"] == pytest.approx(right)
    board = pd.read_csv(leaderboard(folds[0].load().job)).set_index("run")
    assert board.loc["all", "members"] == "fold0 fold1 fold2"
    assert board.loc["all", "rank"] == 1
    assert (whole.report / "submission.csv").read_text("utf-8").count("\n") == 37
    assert whole.report_page.exists()
    average_runs([paths.folder for paths in folds], "mean", "all")  # again is allowed: it is made of reports alone
    assert report_of(whole) == report


def test_an_ensemble_of_runs_is_ranked_against_its_members(make: Callable[..., RunPaths]) -> None:
    runs = [make(f"seed={seed}", f"run=seed{seed}") for seed in range(2)]
    average_runs([paths.folder for paths in runs], "log-mean", "both")
    report = report_of(RunPaths(runs[0].folder.parent / "both"))
    assert report["test_digest"] == report_of(runs[0])["test_digest"]
    board = pd.read_csv(leaderboard(runs[0].load().job))
    assert set(board["run"]) == {"seed0", "seed1", "both"}
    for wrong, says in (
        ([runs[0]], "an ensemble takes at least two different runs"),
        ([*runs, runs[0]], "seed0 is named twice"),
        (
            [runs[0], RunPaths(runs[0].folder.parent / "both")],
            "both: is itself an ensemble; name its members: seed0 seed1",
        ),
    ):
        with pytest.raises(UserError, match=says):
            average_runs([paths.folder for paths in wrong], "mean", None)
    other = make("seed=2", "run=seed2", "train.batch_size=4")
    for name, runs_ in (("seed0", runs), ("both", [*runs, other])):
        with pytest.raises(UserError, match="another run has this name; choose another one with --name"):
            average_runs([paths.folder for paths in runs_], "mean", name)


def test_an_ensemble_tells_of_all_its_members(make: Callable[..., RunPaths]) -> None:
    runs = [make(f"seed={seed}", f"run=seed{seed}", f"train.batch_size={4 + seed}") for seed in range(2)]
    found = json.loads(runs[1].report_json.read_text("utf-8"))
    found |= {"synthetic": True, "backbone": "timm:another", "num_rejected": 3}
    found["audit"]["across"] = {"test in train": 2}
    runs[1].report_json.write_text(json.dumps(found), "utf-8")
    average_runs([paths.folder for paths in runs], "mean", "both")
    whole = RunPaths(runs[0].folder.parent / "both")
    report = report_of(whole)
    assert (report["synthetic"], report["num_rejected"]) == (True, 3)
    assert report["backbone"] == "timm:another + timm:test_efficientnet"
    assert report["seeds"]["job"] == "0 + 1"
    assert report["audit"]["across"]["test in train"] == 2
    page = whole.report_page.read_text("utf-8")
    assert "Synthetic images" in page
    assert "train.batch_size" not in page  # the members do not agree on it
    found["digests"]["source"], found["test_digest"] = "x", "y"
    runs[1].report_json.write_text(json.dumps(found), "utf-8")
    with pytest.raises(UserError, match="seed1: uses other images than seed0"):
        average_runs([paths.folder for paths in runs], "mean", "mixed")


def test_runs_are_compared_on_a_page_and_strangers_refused(make: Callable[..., RunPaths], tmp_path: Path) -> None:
    runs = [make(f"seed={seed}", f"run=seed{seed}") for seed in range(2)]
    compare_runs([paths.folder for paths in runs], None)
    page = (tmp_path / "space" / "runs" / "comparison.html").read_text("utf-8")
    assert "seed0" in page
    assert "seed1" in page
    other = make("data.split.salt=x", "metric=quadratic_kappa", "run=other")
    with pytest.raises(UserError, match="shares no labelled test images and classes with the other runs"):
        compare_runs([runs[0].folder, other.folder], None)


def test_runs_of_two_domains_are_compared_within_each_in_the_order_they_are_named(
    make: Callable[..., RunPaths], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def runs(domain: str, *overrides: str) -> list[Path]:
        names = [f"{domain}-{seed}" for seed in "01"]
        return [make(f"seed={name[-1]}", f"run=r-{name}", f"name=t-{name}", *overrides).folder for name in names]

    eyes, clothes = runs("eyes"), runs("clothes", "data.split.salt=x", "metric=quadratic_kappa")
    with caplog.at_level("INFO", logger="tlbatch.report.comparison"):
        compare_runs([clothes[0], eyes[0], eyes[1], clothes[1]], None)
    page = (tmp_path / "space" / "runs" / "comparison.html").read_text("utf-8")
    assert page.index('<h2 id="domain-1-title"><bdi>clothes<') < page.index('<h2 id="domain-2-title"><bdi>eyes<')
    pairs = [message for message in caplog.messages if " against " in message]
    assert sorted({frozenset(pair.partition(":")[0].split(" against ")) for pair in pairs}, key=sorted) == [
        {"r-clothes-0", "r-clothes-1"}, {"r-eyes-0", "r-eyes-1"}
    ]  # fmt: skip
    assert [message.partition(":")[0] for message in caplog.messages[-2:]] == ["clothes", "eyes"]
    with pytest.raises(UserError, match="shares no labelled test images and classes with the other runs"):
        compare_runs([clothes[0], eyes[0]], None)


def test_the_end_of_a_job_puts_folds_together_and_compares_what_came_of_them(
    make: Callable[..., RunPaths], capsys: pytest.CaptureFixture[str]
) -> None:
    folds = [
        make("data.split.folds=2", "data.split.val=0", f"data.split.fold={fold}", f"run=r-{name}-fold{fold}",
             f"name=t-{name}-fold{fold}", f"seed={seed}")
        for seed, name in enumerate(("plain", "other")) for fold in range(2)
    ]  # fmt: skip
    loaded = [Run.load(paths.folder) for paths in folds]
    show_end(loaded)
    heading, *rows, tests, _, first, second, compared = capsys.readouterr().out.strip().splitlines()
    assert sorted(row.split()[0] for row in rows) == ["t-other", "t-plain"]
    assert tests == "test images     36"
    runs = folds[0].folder.parent
    assert [first, second] == [f"folds together  {runs}/r-plain", f"folds together  {runs}/r-other"]
    assert compared == f"comparison      {runs}/comparison.html"
    page = (runs / "comparison.html").read_text("utf-8")
    assert "Comparison of 2 runs" in page
    assert "fold0" not in page
    assert heading.startswith("recipe")
    show_end([loaded[0], *loaded[2:]])
    assert len(re.findall("^t-", capsys.readouterr().out, re.MULTILINE)) == 2  # a fold, and one of whole sets


def test_the_command_takes_one_run_several_or_an_ensemble(
    make: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = [make(f"seed={seed}", f"run=seed{seed}") for seed in range(2)]

    def command(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["reduce", *words])
        with pytest.raises(SystemExit) as ended:
            reduce.main()
        return int(ended.value.code or 0)

    folders = [str(paths.folder) for paths in runs]
    assert command(folders[0]) == 0
    assert command(*folders) == 0
    assert command(*folders, "--ensemble") == 0
    assert command(*folders, "--ensemble", "rank", "--name", "ranks") == 0
    assert command(folders[0], "--ensemble") == 2
    assert "an ensemble takes at least two different runs" in capfd.readouterr().err
    assert command(folders[0], "--name", "x") == 2
    assert command(*folders, "--ensemble", "--name", "../x") == 2
    assert command(str(runs[0].folder.parent / "none"), folders[0]) == 2
    assert not list(runs[0].folder.glob("markers/*failed*"))
    assert (runs[0].folder.parent / "ranks" / "report" / "report.json").exists()
