"""A run as a folder that needs neither the run nor a cluster, on small images and a tiny network."""

import csv
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from PIL import Image

from tlbatch import cache, export, predict, reduce, shard, train
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import open_images
from tlbatch.data.views import Samples, Views
from tlbatch.deploy import export as exporting
from tlbatch.deploy.export import export_run
from tlbatch.deploy.graph import run_onnx, run_pt2
from tlbatch.deploy.model import ExportedModel
from tlbatch.deploy.record import Exported
from tlbatch.model.checkpoint import trained_classifier
from tlbatch.report import ensemble
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Best, load_record
from tlbatch.runs.run import Run

pytestmark = pytest.mark.chain

Make = Callable[..., RunPaths]
Floats = npt.NDArray[np.float32]
CLASSES = ("blue", "green", "red")
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory, write_folders: Callable[..., Path]) -> Path:
    """Return a folder with images and room for runs."""
    folder = tmp_path_factory.mktemp("space")
    write_folders(folder / "images")
    for file in sorted((folder / "images").rglob("*.jpg")):  # else images are symmetric
        with Image.open(file) as image:
            pixels = np.array(image)
        pixels[:, 30:] //= 4
        pixels[:12] //= 2
        Image.fromarray(pixels).save(file, quality=95)
    return folder


@pytest.fixture(scope="module")
def make(space: Path, tiny_job: Path) -> Make:
    """Return a function that runs a tiny job through all stages."""

    def made(*overrides: str, images: str = "images", views: str = "") -> RunPaths:
        wanted = [f"data.images={space / images}", f"workspace={space / 'work'}", "slurm.cpus_per_task=1", *overrides]
        paths = make_run(resolve(load_job([tiny_job], wanted))).paths
        for stage in (shard, cache, train):
            stage.run(paths.folder)
        if views:
            best = load_record(Best, paths.best, missing="")
            best.model_copy(update={"views": views}).save(paths.best)
        for stage in (predict, reduce):
            stage.run(paths.folder)
        return paths

    return made


@pytest.fixture(scope="module")
def run(make: Make) -> RunPaths:
    """Return a run of two phases."""
    return make("run=plain", "data.resize=36")


@pytest.fixture(scope="module")
def model(run: RunPaths, space: Path) -> Path:
    """Return its exported model."""
    export_run(run, space / "model")
    return space / "model"


@pytest.fixture
def no_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Export the weights alone: ONNX and pt2 take seconds."""
    monkeypatch.setattr(exporting, "_graphs", lambda *_: {})


def scored(paths: RunPaths) -> tuple[list[str], Floats]:
    """Return keys and probabilities of the test images."""
    table = pd.read_csv(paths.report / "predictions.csv").query("split == 'test'")
    return table["image"].tolist(), table[[f"p_{name}" for name in CLASSES]].to_numpy(np.float32)


def stored(paths: RunPaths, keys: list[str]) -> tuple[list[bytes], torch.Tensor]:
    """Return test images as stored in the shards, and as input of the network."""
    images = open_images(Run.load(paths.folder))
    rows = images.rows("test")
    assert [key.decode() for key in images.index["key"][rows]] == keys
    dataset = SplitDataset(images, rows, Samples(len(rows), Views(32)))
    return [dataset.read(row) for row in images.index[rows]], dataset.__getitems__(range(len(rows))).inputs


FITTED = "phase=[{{cut='pool', fit='{}'}}]"
ORDERED = ["metric=quadratic_kappa", "data.classes=['blue','green','red']"]
JOBS: dict[str, tuple[list[str], str]] = {
    "regression": ([*ORDERED, "objective=regression", FITTED.format("ridge")], ""),
    "expected-grade": ([*ORDERED, "decision=expected-grade", FITTED.format("logistic")], ""),
    "two-phases": (["train.tta=true", "train.augment=rot4"], "rot4"),
    "view-mean": (
        [
            "head.view_mean=true",
            "train.augment=rot4",
            "head.after=['blocks.2', 'pool']",
            FITTED.format("kernel-logistic"),
        ],
        "",
    ),
    "alone-in-its-group": (["head.group_mean=true", FITTED.format("logistic")], ""),
}


@pytest.mark.parametrize("name", JOBS)
def test_every_format_gives_the_scored_probabilities(make: Make, space: Path, name: str) -> None:
    overrides, views = JOBS[name]
    paths, folder = make(f"run={name}", *overrides, views=views), space / f"model-{name}"
    record = export_run(paths, folder)
    keys, expected = scored(paths)
    files, squares = stored(paths, keys)
    answers = ExportedModel.load(folder).predict(files, in_shard=True)
    assert answers.errors == {}
    for found in (
        answers.probabilities,
        run_onnx((folder / "model.onnx").read_bytes(), squares),
        run_pt2((folder / "model.pt2").read_bytes(), squares),
    ):
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-5
    assert [form.left_out for form in record.forms.values()] == ["", "", ""]
    assert all(form.difference is not None and form.difference < 1e-5 for form in record.forms.values())
    if name == "alone-in-its-group":
        assert record.from_predictions is None
    else:
        assert record.from_predictions is not None
        assert record.from_predictions < 1e-5
    assert record.preprocessing.views == (views or "none")


def test_kept_temperature_is_applied_to_the_probabilities(
    make: Make, space: Path, write_folders: Callable[..., Path]
) -> None:
    write_folders(space / "many", each=64)
    paths = make("run=tempered", "data.split.val=0.3", images="many")
    record = export_run(paths, space / "model-tempered")
    assert record.temperature is not None
    assert abs(record.temperature - 1) > 0.1
    assert record.temperature == json.loads(paths.report_json.read_text("utf-8"))["calibration"]["temperature"]
    assert record.num_checked == 32
    keys, expected = scored(paths)
    files, squares = stored(paths, keys)
    assert np.abs(run_onnx((space / "model-tempered/model.onnx").read_bytes(), squares) - expected).max() < 1e-5
    found = ExportedModel.load(space / "model-tempered").predict(files, in_shard=True).probabilities
    assert np.abs(found - expected).max() < 1e-5
    assert "temperature scaling" in (space / "model-tempered/README.md").read_text("utf-8")


def test_random_crops_are_predicted_from_files_but_not_exported_as_graph(make: Make, space: Path) -> None:
    crops = ["head.view_mean=true", "train.crop_scale=0.5", "train.random_views=3", FITTED.format("logistic")]
    paths = make("run=crops", *crops, "data.resize=36")
    record = export_run(paths, space / "model-crops")
    keys, expected = scored(paths)
    found = ExportedModel.load(space / "model-crops").predict(stored(paths, keys)[0], in_shard=True).probabilities
    assert np.abs(found - expected).max() < 1e-5
    raw = [(space / f"images/{key}.jpg").read_bytes() for key in keys]
    assert np.abs(ExportedModel.load(space / "model-crops").predict(raw).probabilities - expected).max() < 1e-5
    assert not record.forms["safetensors"].left_out
    for form in ("onnx", "pt2"):
        assert "crops" in record.forms[form].left_out
        assert not (space / f"model-crops/model.{form}").exists()


@pytest.mark.usefixtures("no_graphs")
def test_images_are_treated_as_alone_in_their_group(make: Make, space: Path) -> None:
    pairs = ["head.group_mean=true", r"data.group_pattern=(\d)$", FITTED.format("logistic"), "data.audit=warn"]
    paths = make("run=pairs", *pairs)
    record = export_run(paths, space / "model-pairs")
    assert record.from_predictions is None
    keys, together = scored(paths)
    files, squares = stored(paths, keys)
    found = ExportedModel.load(space / "model-pairs").predict(files, in_shard=True).probabilities
    best = load_record(Best, paths.best, missing="")
    alone = trained_classifier(paths.load(), 3, paths.checkpoints / best.weights).eval()
    with torch.inference_mode():
        assert np.abs(found - alone.probabilities(alone(squares)).numpy()).max() < 1e-6
    assert np.abs(found - together).max() > 1e-4
    assert "alone in its group" in (space / "model-pairs/README.md").read_text("utf-8")


def test_half_precision_run_is_exported_in_32_bits_with_the_difference_recorded(make: Make, space: Path) -> None:
    record = export_run(make("run=halves", "train.mixed_precision=bf16"), space / "model-halves")
    assert [form.left_out for form in record.forms.values()] == ["", "", ""]
    assert record.from_predictions is not None
    assert 1e-5 < record.from_predictions < 1e-2
    card = (space / "model-halves/README.md").read_text("utf-8")
    assert f"differ by at most {record.from_predictions:.1e} from those that were scored" in card


@pytest.mark.usefixtures("no_graphs")
def test_original_files_are_preprocessed_as_by_shard(make: Make, space: Path) -> None:
    folder = space / "kinds"
    shutil.copytree(space / "images", folder)
    for name in CLASSES:
        for number, save in enumerate((_as_png, _as_grey_alpha, _turned, _as_cmyk, _as_12_bits)):
            for at in range(number, 12, 5):
                file = folder / name / f"{name}{at}.jpg"
                with Image.open(file) as image:
                    image.load()
                file.unlink()
                save(image, file)
    paths = make("run=kinds", "data.resize=36", "data.preprocess=['clahe']", "data.audit=warn", images="kinds")
    record = export_run(paths, space / "model-kinds")
    assert record.preprocessing.value_range == open_images(Run.load(paths.folder)).manifest.limits
    assert "In images of more than 8 bits, the values " in (space / "model-kinds" / "README.md").read_text()
    model = ExportedModel.load(space / "model-kinds")
    keys, expected = scored(paths)
    files = [next(folder.glob(f"{key}.*")) for key in keys]
    assert len({file.suffix for file in files}) > 1
    found = model.predict([file.read_bytes() for file in files])
    assert found.errors == {}
    assert np.abs(found.probabilities - expected).max() < 1e-5
    as_stored = model.predict([file.read_bytes() for file in files], in_shard=True)
    assert np.abs(as_stored.probabilities - expected).max() > 1e-4


def _as_png(image: Image.Image, file: Path) -> None:
    image.save(file.with_suffix(".png"))


def _as_grey_alpha(image: Image.Image, file: Path) -> None:
    image.convert("LA").save(file.with_suffix(".png"))


def _turned(image: Image.Image, file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(file, exif=exif, quality=95)


def _as_cmyk(image: Image.Image, file: Path) -> None:
    image.convert("CMYK").save(file, quality=95)


def _as_12_bits(image: Image.Image, file: Path) -> None:
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 16).save(file.with_suffix(".png"))


def test_a_model_that_knows_no_range_refuses_more_than_8_bits(model: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((64, 64), 700, np.uint16)).save(buffer, "PNG")
    found = ExportedModel.load(model).predict([buffer.getvalue()])
    assert found.errors == {
        0: "samples of 16 bits, and no range of their values is known, as the model was not trained on such images"
    }


def test_export_is_reproducible_and_holds_no_local_paths(run: RunPaths, model: Path, space: Path) -> None:
    export_run(run, space / "again")
    names = sorted(file.name for file in model.iterdir())
    assert names == ["README.md", "model.json", "model.onnx", "model.pt2", "model.safetensors"]
    for name in names:
        data = (model / name).read_bytes()
        assert data == (space / "again" / name).read_bytes(), name
        for place in (space, REPOSITORY / "tlbatch", torch.__path__[0]):
            assert os.fsencode(place) not in data, (name, place)
    record = load_record(Exported, model / "model.json", missing="")
    assert sorted(record.files) == [name for name in names if name != "model.json"]
    assert record.weights == record.files["model.safetensors"]
    assert record.network.model.weights == "none"


def test_card_holds_the_scores_of_the_report(run: RunPaths, model: Path) -> None:
    card = (model / "README.md").read_text("utf-8")
    report = json.loads(run.report_json.read_text("utf-8"))
    assert f"accuracy | {report['score']:.4f} (" in card
    assert "| blue | 7 | 2 | 3 |" in card
    assert "python -m tlbatch.predict" in card
    assert "`model.onnx` and `model.pt2`: the input `images`, uint8, (n, 32, 32, 3)" in card
    assert "Small test set: " in card
    assert "none across splits" in card


def test_graphs_take_any_batch_size(model: Path, run: RunPaths) -> None:
    squares = stored(run, scored(run)[0])[1]
    for call in (run_onnx, run_pt2):
        data = (model / f"model.{'onnx' if call is run_onnx else 'pt2'}").read_bytes()
        together = call(data, squares)
        assert np.allclose(together, np.concatenate([call(data, one[None]) for one in squares]), atol=1e-6)


def copied(model: Path, folder: Path) -> Path:
    shutil.copytree(model, folder)
    return folder


def test_damaged_folder_is_refused(model: Path, tmp_path: Path) -> None:
    damaged = copied(model, tmp_path / "damaged")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    with pytest.raises(UserError, match=r"model\.safetensors: missing or changed since its export"):
        ExportedModel.load(damaged)
    (damaged / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors: missing or changed since its export"):
        ExportedModel.load(damaged)
    with pytest.raises(UserError, match=r"name a folder that python -m tlbatch\.export wrote"):
        ExportedModel.load(tmp_path)
    other = copied(model, tmp_path / "other")
    record = json.loads((other / "model.json").read_text("utf-8"))
    (other / "model.json").write_text(json.dumps(record | {"classes": ["a", "b"]}), "utf-8")
    with pytest.raises(UserError, match=r"describes another network than model\.safetensors"):
        ExportedModel.load(other)
    (other / "model.json").write_text(json.dumps(record | {"phase": "x"}), "utf-8")
    with pytest.raises(UserError, match=r"\(phase: .*\); export the run again"):
        ExportedModel.load(other)


def _raise(*_: object) -> bytes:
    raise RuntimeError("it failed") from ValueError("\x1b[96mno such operation\x1b[0m\nat great length")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("find_spec", lambda _: None, "not installed: onnx, onnxscript, onnxruntime; install the extra export"),
        ("to_onnx", _raise, "ValueError: no such operation"),
        ("run_onnx", lambda data, images: run_onnx(data, images) + 2e-4, "differ by 2.0e-04 from the run's own"),
        ("run_onnx", lambda data, images: run_onnx(data, images) * np.nan, "differ by nan from the run's own"),
    ],
)
def test_format_that_fails_or_differs_is_left_out_with_its_reason(
    run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any, says: str
) -> None:
    monkeypatch.setattr(exporting, name, value)
    record = export_run(run, tmp_path / "model")
    assert says in record.forms["onnx"].left_out
    assert record.forms["pt2"].left_out == ""
    assert {file.name for file in (tmp_path / "model").iterdir()} == {"model.json", *record.files}
    assert "model.onnx" not in record.files
    assert load_record(Exported, tmp_path / "model/model.json", missing="") == record
    card = (tmp_path / "model/README.md").read_text("utf-8")
    assert "`model.onnx` | the complete model" in card
    assert "left out: " in card
    assert "`model.onnx` and" not in card


def test_network_without_graph_is_exported_as_weights(
    run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "program_of", _raise)
    record = export_run(run, tmp_path / "model")
    assert [form.left_out for form in record.forms.values()] == ["", *["ValueError: no such operation"] * 2]
    assert ExportedModel.load(tmp_path / "model").record == record


def test_weights_that_differ_after_reloading_are_not_exported(
    run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ExportedModel.predict

    def off(*given: Any, **options: Any) -> Any:
        found = original(*given, **options)
        return found._replace(probabilities=found.probabilities + 2e-4)

    monkeypatch.setattr(ExportedModel, "predict", off)
    with pytest.raises(UserError, match=r"probabilities differ by 2\.0e-04 from the run's own"):
        export_run(run, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_refused_exports_state_the_reason(run: RunPaths, make: Make, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="already exists; name another folder"):
        export_run(run, tmp_path / "there")
    with pytest.raises(UserError, match="name a run folder"):
        export_run(RunPaths(tmp_path), tmp_path / "model")
    other = make("run=other", "data.resize=36", "seed=1")
    ensemble.average_runs([run.folder, other.folder], "mean", "both")
    with pytest.raises(UserError, match="an ensemble has no weights; export its members: other plain"):
        export_run(RunPaths(run.folder.parent / "both"), tmp_path / "model")
    other.marker("reduce").unlink()
    with pytest.raises(UserError, match="run reduce first"):
        export_run(other, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_paths_of_initial_weights_and_heads_are_not_exported(run: RunPaths, make: Make, space: Path) -> None:
    paths = make("run=heir", "data.resize=36", f"model.weights={run.folder}", f"head.weights={run.folder}")
    record = export_run(paths, space / "model-heir")
    assert (record.network.model.weights, record.network.head.weights) == ("none", "")
    for file in (space / "model-heir").iterdir():
        assert os.fsencode(space) not in file.read_bytes(), file.name
    keys, expected = scored(paths)
    found = ExportedModel.load(space / "model-heir").predict(stored(paths, keys)[0], in_shard=True)
    assert np.abs(found.probabilities - expected).max() < 1e-5


def test_image_without_finite_probabilities_is_an_error_and_others_keep_their_row(
    model: Path, run: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = stored(run, scored(run)[0])[0] * 5  # more than one batch
    opened = ExportedModel.load(model)
    whole = opened.predict(files, in_shard=True).probabilities
    broken = [*files[:40], b"no image", *files[41:]]
    found = opened.predict(iter(broken), in_shard=True)
    assert found.errors == {40: "no image of a known format"}
    assert np.flatnonzero(np.isnan(found.probabilities).any(axis=1)).tolist() == [40]
    others = np.arange(len(files)) != 40
    assert np.abs(found.probabilities - whole)[others].max() < 1e-5
    original = ExportedModel._probabilities

    def sick(*given: Any) -> Floats:
        probabilities = original(*given)
        probabilities[3, 1] = np.inf
        return probabilities

    monkeypatch.setattr(ExportedModel, "_probabilities", sick)
    found = opened.predict(files[:5], in_shard=True)
    assert found.errors == {3: "its probabilities are not finite"}
    assert np.isnan(found.probabilities[3]).all()
    assert opened.predict([]).probabilities.shape == (0, 3)


def call(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        module.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True))


def test_command_writes_a_table_of_predictions(
    run: RunPaths, model: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, expected = scored(run)
    assert call(monkeypatch, predict, model, space / "images", "--csv", tmp_path / "answers.csv") == 0
    rows = rows_of((tmp_path / "answers.csv").read_bytes())
    assert list(rows[0]) == ["image", "predicted", "p_blue", "p_green", "p_red", "error"]
    assert [row["image"] for row in rows] == sorted(str(file) for file in (space / "images").rglob("*.jpg"))
    by_image = {row["image"]: row for row in rows}
    for key, probabilities in zip(keys, expected, strict=True):
        row = by_image[str(space / f"images/{key}.jpg")]
        assert np.allclose([float(row[f"p_{name}"]) for name in CLASSES], probabilities, atol=1e-5)
        assert row["predicted"] == CLASSES[probabilities.argmax()]
        assert re.fullmatch(r"\d\.\d{6}", row["p_red"])
        assert row["error"] == ""


def test_unreadable_files_are_error_rows_and_the_others_are_predicted(
    model: Path, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    names = ["a,b.jpg", 'say "red".jpg', "two\nlines.jpg", "back\rto.jpg", "=1+1.jpg", "übung.jpg", "\udcff.jpg"]
    (tmp_path / "deep/er").mkdir(parents=True)
    for name in names:
        shutil.copy(space / "images/red/red0.jpg", tmp_path / "deep" / name)
    (tmp_path / "deep/er/half.jpg").write_bytes((space / "images/red/red1.jpg").read_bytes()[:400])
    (tmp_path / "deep/er/empty.png").touch()
    (tmp_path / "deep/er/notes.txt").touch()
    (tmp_path / "deep/er/phone.NEF").touch()
    monkeypatch.chdir(tmp_path / "deep")
    last = space / "images/red/red0.jpg"
    assert call(monkeypatch, predict, model, ".", "gone.jpg", last) == 1
    out, err = capfdbinary.readouterr()
    assert b"4 of 12 could not be read" in err
    rows = rows_of(out)
    assert [row["image"] for row in rows] == [
        "'=1+1.jpg", "a,b.jpg", "back\rto.jpg", "er/empty.png", "er/half.jpg", 'say "red".jpg', "two\nlines.jpg",
        "übung.jpg", r"\udcff.jpg", "gone.jpg", str(last), "er/phone.NEF",
    ]  # fmt: skip
    assert {row["image"]: row["error"] for row in rows if row["error"]} == {
        "er/empty.png": "no image of a known format",
        "er/half.jpg": "Truncated File Read",
        "gone.jpg": "No such file or directory",
        "er/phone.NEF": ".nef is not read; convert it to PNG or JPEG",
    }
    assert all((row["predicted"] == "") == bool(row["error"]) == (row["p_red"] == "") for row in rows)
    assert len({row["p_red"] for row in rows if not row["error"]}) == 1


@pytest.mark.usefixtures("no_graphs")
def test_any_class_name_can_be_a_column(
    make: Make, space: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_folders: Callable[..., Path]
) -> None:
    classes = ("=a", 'b, "c"\n|d|', "p_b")
    write_folders(space / "odd", classes=classes)
    paths = make("run=odd", images="odd")
    export_run(paths, space / "model-odd")
    assert call(monkeypatch, predict, space / "model-odd", space / "odd", "--csv", tmp_path / "answers.csv") == 0
    rows = rows_of((tmp_path / "answers.csv").read_bytes())
    assert list(rows[0]) == ["image", "predicted", *(f"p_{name}" for name in classes), "error"]
    assert {row["predicted"] for row in rows} <= {"'=a", *classes[1:]}
    card = (space / "model-odd/README.md").read_text("utf-8")
    assert r'| b, "c" \|d\| | 7 | 2 | 3 |' in card


def test_missing_images_and_models_are_reported(
    run: RunPaths, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, says in (
        ([model, tmp_path / "empty"], "no images found"),
        ([model, tmp_path / "gone.jpg"], "no images found"),
        ([model], "no images found (no paths given)"),
        ([run.folder, tmp_path], "no images found"),
        ([run.folder, __file__], "name a folder that python -m tlbatch.export wrote"),
    ):
        assert call(monkeypatch, predict, *arguments) == 2
        assert says in capsys.readouterr().err
    assert call(monkeypatch, export, run.folder, model) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_run_is_still_predicted_by_the_same_command(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, predict, run.folder) == 0
    assert "predict already done" in capsys.readouterr().out


def test_the_command_exports_and_says_how_well_the_forms_agree(
    run: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, export, run.folder, tmp_path / "model") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["model.safetensors", "model.onnx", "model.pt2"]
    assert lines[3] == str(tmp_path / "model")
