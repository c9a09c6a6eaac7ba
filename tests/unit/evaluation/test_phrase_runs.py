"""Runs that write phrases: from a CSV file of phrases to their report, in this process."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tlbatch import cache, predict, promote, reduce, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.deploy.export import export_run
from tlbatch.nightly import main as nightly
from tlbatch.report.comparison import compare_runs
from tlbatch.report.ensemble import average_runs
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Best, load_record
from tlbatch.runs.workspace import leaderboard

pytestmark = pytest.mark.chain

COLOURS = {"red": (210, 30, 30), "blue": (30, 30, 210)}
LSTM = "phase=[{cut='pool', epochs=30, optimizer={lr=1e-2}}, {cut='blocks.1', epochs=1}]"
LINEAR = "phase=[{cut='pool', fit='logistic'}]"


@pytest.fixture(scope="module")
def garments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blots of two colours and two sizes, some striped: a stripe is named after red, and before blue.

    Of image 0 there is no phrase and of image 1 there are two; 2 has more tags than can be written, and that of image 3
    has a tag of its own, as one test image may have.
    """
    folder, rng = tmp_path_factory.mktemp("garments"), random.Random(0)
    (folder / "images").mkdir()
    lines = ["image,phrase,site"]
    for number in range(160):
        colour, kind, striped = rng.choice(list(COLOURS)), rng.choice(["coat", "hat"]), rng.random() < 0.5
        pixels = np.random.default_rng(number).integers(60, 140, (40, 40, 3))
        top = 2 if kind == "coat" else 22
        pixels[top:38, 8:32] = COLOURS[colour]
        if striped:
            pixels[top:38:4, 8:32] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        words = [colour, *["striped"] * striped] if colour == "red" else [*["striped"] * striped, colour]
        phrase = {0: "", 2: "red blue striped coat hat", 3: "velvet hat"}.get(number, " ".join([*words, kind]))
        lines.append(f"{number},{phrase},{'ab'[number % 2]}")
    lines.append("1,blue velvet velvet coat,a")
    (folder / "phrases.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make(garments: Path, tiny_job: Path) -> Callable[..., RunPaths]:
    def made(*overrides: str) -> RunPaths:
        fixed = [
            f"data.images={garments / 'images'}", "data.source=csv", f"data.labels={garments / 'phrases.csv'}",
            "data.label_column=phrase", "data.tag_separator=' '", "data.max_rejected=3", "data.phash_max_distance=0",
            "data.attributes={ colour = ['red', 'blue'], type = ['coat', 'hat'] }", "report.subgroups=['site']",
            "decoder={ embedding = 24, hidden = 32, dropout = 0.1, max_tags = 4 }", f"workspace={garments / 'space'}",
        ]  # fmt: skip
        paths = make_run(resolve(load_job([tiny_job], ["objective=tags", *fixed, *overrides]))).paths
        for stage in (shard, cache, train, predict, reduce):
            stage.run(paths.folder)
        return paths

    return made


@pytest.fixture(scope="module")
def runs(make: Callable[..., RunPaths]) -> dict[str, RunPaths]:
    return {"lstm": make("run=lstm", LSTM, "figures=true"), "linear": make("run=linear", LINEAR)}


def report_of(paths: RunPaths) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(paths.report_json.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", ["lstm", "linear"])
def test_phrases_are_learned_and_reported(runs: dict[str, RunPaths], name: str) -> None:
    report = report_of(runs[name])
    table = pd.read_csv(runs[name].report / "predictions.csv")
    test = table[table["split"] == "test"]
    assert table["image"].is_unique
    assert report["n"] == len(test) == 39
    assert report["score"] == pytest.approx((test["label"] == test["prediction"]).mean())
    assert report["score"] > 0.5, "six phrases: chance is 0.17"
    tags = report["tags"]
    assert tags["attributes"]["colour"]["value"] > 0.9
    assert tags["mean_attribute"]["value"] > 0.8
    assert tags["edit_distance"]["value"] < 1
    assert set(tags["f1"]) == {"blue", "coat", "hat", "red", "striped", "velvet"}
    assert (test["log_probability"] <= 0).all()
    submission = pd.read_csv(runs[name].report / "submission.csv")
    assert submission.columns.tolist() == ["image", "phrase"]
    assert submission["phrase"].tolist() == test["prediction"].tolist()
    assert {one["value"] for one in report["subgroups"]} == {"a", "b"}


def test_odd_phrases_are_counted_and_stated(runs: dict[str, RunPaths]) -> None:
    odd = report_of(runs["lstm"])["tags"]["odd"]
    assert (odd["num_empty"], odd["num_contradicting"]) == (1, 2)
    assert sum(odd["num_too_long"].values()) == 1
    assert sum(odd["num_several"].values()) == 1
    page = runs["lstm"].report_page.read_text("utf-8")
    for words in ("Phrases of tags", "Irregular phrases", "Accuracy of each attribute", "Exact match"):
        assert words in page, words
    assert "Confusion matrix" not in page
    assert "Calibration</h2>" not in page


def test_a_tag_of_test_images_alone_is_counted_and_never_written(make: Callable[..., RunPaths], garments: Path) -> None:
    lists = {}
    for split, numbers in (("test", [*range(3, 40)]), ("train", [2, *range(40, 160)])):
        lists[split] = garments / f"{split}.txt"
        lists[split].write_text("\n".join(map(str, numbers)), encoding="utf-8")
    files = ", ".join(f"{name} = '{file}'" for name, file in lists.items())
    paths = make("run=unseen", LINEAR, "data.split.method=given", f"data.split.files={{ {files} }}")
    report, best = report_of(paths), load_record(Best, paths.best, missing="")
    assert "velvet" not in best.classes
    assert report["tags"]["num_writable"] == 5
    assert report["tags"]["odd"]["unseen"] == {"velvet": 1}
    assert report["tags"]["odd"]["num_unseen"] == {"train": 0, "val": 0, "test": 1}
    assert report["tags"]["f1"]["velvet"]["value"] == 0
    written = pd.read_csv(paths.report / "predictions.csv")["prediction"]
    assert not written.str.contains("velvet").any()
    assert "velvet" in paths.report_page.read_text("utf-8")


def test_a_rare_tag_is_learned_as_unknown(make: Callable[..., RunPaths]) -> None:
    paths = make("run=rare", LSTM.replace("epochs=30", "epochs=2"), "decoder.min_images=2", "figures=true")
    assert "velvet" not in load_record(Best, paths.best, missing="").classes
    page = paths.report_page.read_text("utf-8")
    assert "</b> predicted as <b>" in page
    assert (paths.report / "figures" / "activations.png").exists()


def test_the_lstm_and_the_linear_classifiers_are_ranked_and_compared(runs: dict[str, RunPaths]) -> None:
    board = pd.read_csv(leaderboard(runs["lstm"].load().job))
    assert {"lstm", "linear"} <= set(board["run"])
    compare_runs([runs["lstm"].folder, runs["linear"].folder], "phrases")
    page = (runs["lstm"].folder.parent / "phrases.html").read_text("utf-8")
    assert page.count("McNemar p") == 1
    for words in ("Edit distance", "Accuracy of <bdi>colour</bdi>", "Mean attribute accuracy"):
        assert words in page, words
    assert "<bdi>lstm</bdi>, the best other run on the same test images" in runs["linear"].report_page.read_text(
        "utf-8"
    )


def test_what_is_of_classes_alone_is_refused(runs: dict[str, RunPaths], tmp_path: Path) -> None:
    folders = [paths.folder for paths in runs.values()]
    with pytest.raises(UserError, match="linear: predicts phrases; an ensemble needs classification runs"):
        average_runs(folders, "mean", None)
    with pytest.raises(UserError, match="objective = tags: an export needs single-label classes"):
        export_run(runs["lstm"], tmp_path / "model")
    with pytest.raises(UserError, match="objective = tags: a registry needs single-label classes"):
        promote.run(runs["lstm"].folder)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["data.tag_separator=''"], "attributes need labels with several tags"),
        (
            ["data.tag_separator=''", "data.attributes={}"],
            "objective tags needs labels with several tags; set data.tag_separator",
        ),
        (["data.per_class=2"], "per_class needs single-label classes"),
        (["data.attributes={ a = ['x y'] }"], "'x y' contains data.tag_separator, so it is no tag"),
        (
            ["metric=quadratic_kappa"],
            "objective tags does not work with metric = quadratic_kappa (accuracy is the exact",
        ),
        (["head.widths=[8]"], "objective tags does not work with head.widths"),
        (["phase.0.mixup=0.2"], "objective tags does not work with phase.0.mixup or cutmix"),
        (["phase.0.balance=sampler"], "objective tags does not work with phase.0.balance"),
        (["phase=[{cut='pool', lr_grid=[1e-3, 1e-2]}]"], "objective tags does not work with phase.0.lr_grid"),
        (["phase=[{cut='pool', fit='logistic'}, {cut='pool'}]"], "does not work with phase.0.fit with other phases"),
        (
            ["phase=[{cut='pool', fit='neighbours'}]"],
            "fit = neighbours needs objective cross-entropy (got tags); change",
        ),
        (["objective=cross-entropy"], "decoder is read with objective tags only"),
        (["data.attributes={ a = ['x'], b = ['x'] }"], "names 'x' twice, in a and b; leave one of them out"),
    ],
)
def test_settings_that_do_not_go_with_phrases_are_refused_at_submit(
    tiny_job: Path, garments: Path, settings: list[str], says: str
) -> None:
    fixed = [
        f"data.images={garments}", "objective=tags", "data.tag_separator=' '", "data.attributes={ a = ['x'] }",
        "decoder.beam=2",
    ]  # fmt: skip
    with pytest.raises(UserError) as refused:
        load_job([tiny_job], [*fixed, *settings])
    assert says in str(refused.value)


def test_a_night_of_phrases_is_refused(
    tiny_job: Path, garments: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [f"data.images={garments}", "objective=tags", "data.tag_separator=' '", f"workspace={tmp_path}"]
    with pytest.raises(SystemExit):
        nightly([str(tiny_job), *given, "--local"])
    assert "objective = tags: a night needs single-label classes" in capsys.readouterr().err
