"""Handcrafted features: each group answers to what it is meant for; a job of them runs as one of a network does."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from skimage import draw

from tlbatch import cache, predict, reduce, shard, train
from tlbatch.activations import encoder
from tlbatch.activations.encoder import Tap, cache_identity
from tlbatch.activations.store import open_stores, view_keys
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.core.typing import Bools, Floats
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import open_images
from tlbatch.data.views import Samples, Views
from tlbatch.deploy.export import export_run
from tlbatch.deploy.model import ExportedModel
from tlbatch.model.__main__ import listing
from tlbatch.model.backbones import build_backbone
from tlbatch.model.build import build_classifier
from tlbatch.model.cut_points import Chain
from tlbatch.model.handcrafted import descriptors
from tlbatch.model.handcrafted.features import NUM_FEATURES, Handcrafted, features, groups
from tlbatch.model.handcrafted.lesions import blobs_above, dark_blobs, lesions, relief_of
from tlbatch.model.handcrafted.planes import planes_of
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run

Rgb = npt.NDArray[np.uint8]
SIDE = 128
HAND = "phase=[{cut='handcrafted', fit='svm'}]"


def fundus(side: int = SIDE) -> Rgb:
    """A plain orange disc with a little noise, on black."""
    image = np.zeros((side, side, 3), np.uint8)
    rows, columns = draw.disk((side / 2, side / 2), side * 0.47)
    noise = np.random.default_rng(0).integers(-2, 3, (len(rows), 3))
    image[rows, columns] = np.array([180, 100, 50]) + noise
    return image


def spotted(colour: tuple[int, int, int], radius: float, places: list[tuple[int, int]]) -> Rgb:
    image = fundus()
    for place in places:
        image[draw.disk(place, radius)] = colour
    return image


def stripes(angle: float) -> Rgb:
    rows, columns = np.mgrid[:64, :64]
    wave = np.sin(0.6 * (columns * np.cos(angle) + rows * np.sin(angle)))
    return np.repeat((127 + 100 * wave).astype(np.uint8)[..., None], 3, axis=2)


def noise(side: int) -> Rgb:
    return np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)


def reliefs(image: Rgb) -> tuple[Floats, Bools]:
    planes = planes_of(image)
    return relief_of(planes.green, planes.disc)


def counted(image: Rgb, *, dark: bool) -> int:
    relief, inside = reliefs(image)
    return int(blobs_above(dark_blobs(relief if dark else -relief), inside, 0.08).counts.sum())


PLACES = [(40, 50), (70, 80), (90, 45)]


def test_dark_dots_are_counted_and_neither_vessels_nor_the_rim_are() -> None:
    assert counted(fundus(), dark=True) == 0
    assert counted(spotted((120, 40, 20), 2.5, PLACES), dark=True) == 3
    assert counted(spotted((120, 40, 20), 2.5, PLACES), dark=False) == 0
    vessel = fundus()
    vessel[30:100, 62:65] = (120, 40, 20)
    vessel[draw.line(40, 30, 90, 100)] = (120, 40, 20)
    assert reliefs(vessel)[0].min() < -0.3  # it is dark, yet no blob
    assert counted(vessel, dark=True) <= 2  # where two cross


def test_bright_patches_are_exudates_by_area_and_quarter() -> None:
    relief, inside = reliefs(spotted((240, 220, 120), 3.5, PLACES))
    found = blobs_above(dark_blobs(-relief), inside, 0.08)
    assert found.counts.tolist() == [0, 0, 3]
    assert found.area == pytest.approx(3 * len(draw.disk((0, 0), 3.5, shape=None)[0]) / inside.sum(), rel=0.25)
    assert found.quadrants.sum() == pytest.approx(found.area)
    assert (found.quadrants > 0).tolist() == [True, False, True, True]
    relief, inside = reliefs(spotted((240, 220, 120), 2.5, PLACES))
    assert 0 < blobs_above(dark_blobs(-relief), inside, 0.08).area < 0.7 * found.area


def test_a_lesion_moves_the_lesions_of_its_polarity_and_sizes_are_told_apart() -> None:
    plain, dark, bright = (
        lesions(planes.green, planes.disc)
        for planes in map(
            planes_of, (fundus(), spotted((120, 40, 20), 2.5, PLACES), spotted((240, 220, 120), 3.5, PLACES))
        )
    )
    half = len(plain) // 3 // 2  # of the finest of three scales, dark before bright
    assert (np.abs(dark - plain)[:half] > 0.01).sum() >= 6
    assert np.abs(bright - plain)[half : 2 * half].sum() > 3 * np.abs(bright - plain)[:half].sum()


@pytest.mark.parametrize("number", range(3))
def test_stripes_stand_in_the_bin_of_their_direction(number: int) -> None:
    """Bin k of 9 holds gradients around (k + 1/2) 20 degrees."""
    found = descriptors.gradients(planes_of(stripes(np.deg2rad(20 * (3 * number) + 10))).grey)
    assert len(found) == 720
    assert found[:576].reshape(8, 8, 9)[1:-1, 1:-1].mean(axis=(0, 1)).argmax() == (3 * number)


def test_texture_moves_patterns_and_cooccurrences_where_colour_and_lesions_do_not_differ() -> None:
    rows, columns = np.mgrid[:64, :64]
    fine, coarse = ((((rows // width) + (columns // width)) % 2 * 80 + 80.0) / 255 for width in (1, 8))
    assert fine.mean() == pytest.approx(coarse.mean())
    assert np.abs(descriptors.patterns(fine) - descriptors.patterns(coarse)).max() > 0.3
    ranges = [descriptors.cooccurrences(plane)[18] for plane in (fine, coarse)]  # of the contrast of neighbours
    assert ranges[0] > 5 * ranges[1]  # none along the diagonals of the fine one


def test_a_dark_line_is_a_vessel_and_a_bright_one_is_not() -> None:
    plane = np.full((64, 64), 0.6)
    plane[:, 31:34] = 0.3
    assert descriptors.vesselness(plane)[32, 32] > 0.1
    assert descriptors.vesselness(1 - plane)[32, 32] < 0.01
    flat = np.full((64, 64), 0.6)
    assert (descriptors.edges(plane, plane)[:2] > descriptors.edges(flat, flat)[:2] + 0.01).all()


def test_colour_moves_colours_and_neither_gradients_nor_patterns() -> None:
    grey = np.repeat(noise(64)[..., :1] // 2 + 40, 3, axis=2)
    redder = grey.copy()
    redder[..., 0] += 40
    one, other = groups(grey), groups(redder)
    of_red = slice(9 * 16, 9 * 16 + 1)  # its mean, after nine histograms
    assert other["colours"][of_red] - one["colours"][of_red] == pytest.approx(40 / 255, abs=1e-3)
    assert np.abs(other["gradients"] - one["gradients"]).mean() < 0.1 * np.abs(other["colours"] - one["colours"]).mean()


@pytest.mark.parametrize("side", [16, 28, 33, 96, 150])
def test_every_image_has_finite_features_of_one_length(side: int) -> None:
    flat = [np.full((side, side, 3), level, np.uint8) for level in (0, 128, 255)]
    dot = flat[0].copy()
    dot[side // 2, side // 2] = 255
    for image in (*flat, dot, noise(side)):
        found = features(image)
        assert (found.shape, found.dtype) == ((NUM_FEATURES,), np.float32)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 5


def test_features_do_not_depend_on_the_batch_the_threads_or_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [fundus(64), noise(64), stripes(0.3), spotted((120, 40, 20), 2.5, PLACES)[::2, ::2]]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
    net = Handcrafted()
    alone = torch.cat([net(one[None]) for one in pixels])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(net(pixels), alone)
    assert torch.equal(net(pixels.contiguous(memory_format=torch.channels_last)), alone)
    assert torch.equal(alone, torch.from_numpy(np.stack([features(image) for image in images])))
    assert not torch.equal(alone[0], alone[1])
    assert net(pixels.to("meta")).shape == alone.shape


def test_a_classifier_gives_back_the_very_pixels_under_autocast_too() -> None:
    job = load_job([], ["data.images=x", HAND, "model.size=48", "train.mixed_precision=bf16"])
    assert (job.model.backbone, job.dtype) == ("handcrafted", "fp32")
    model = build_classifier(job, 3)
    model.set_cut("handcrafted", freeze_batch_norm=True)
    every = np.arange(48 * 48 * 3, dtype=np.uint64).reshape(48, 48, 3).astype(np.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.to_cut(torch.from_numpy(every[None]))
    assert torch.equal(found[0], torch.from_numpy(features(every)))


def test_the_cut_is_found_by_its_name_and_listed() -> None:
    backbone = build_backbone(load_job([], ["data.images=x", HAND]).model)
    chain = Chain(backbone.net)
    assert [place.name for place in chain.places] == ["none", "handcrafted"]
    assert chain.find("handcrafted") == chain.find("pool") == 1
    with pytest.raises(UserError, match="no such module in the backbone"):
        chain.find("blocks.2")
    assert re.search(rf"handcrafted +{NUM_FEATURES} ", listing("handcrafted", None, every=True)[-1])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            ["phase=[{cut='handcrafted', fit='svm'}, {cut='pool', epochs=2}]"],
            "handcrafted features need cut = handcrafted and a fit in every phase; set both in phase.1",
        ),
        (
            ["phase=[{cut='handcrafted', epochs=2}]"],
            "set both in phase.0, e.g. fit = svm",
        ),
        ([HAND, "model.weights=library"], "uses no network; leave out model.weights, or if recipes share it"),
        ([HAND, "model.backbone=resnet18", "head.after=pool"], "leave out model.backbone, head.after"),
        ([HAND, "model.mean=[0.5, 0.5, 0.5]"], "leave out model.mean"),
        ([HAND, "cache.dtype=fp16"], "cut = handcrafted is cached as fp32 (got cache.dtype = fp16); leave"),
        (["model.backbone=handcrafted", "strategy=auto"], "strategy = auto chooses among cuts of a network"),
    ],
)
def test_what_hand_made_features_do_not_go_with_is_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        load_job([], ["data.images=x", *overrides])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_job: Path) -> Callable[..., RunPaths]:
    """Discs with dark dots, with bright patches and with neither, of all shades; a run of any job on them."""
    space = tmp_path_factory.mktemp("hand")
    generator = np.random.default_rng(0)
    colours = {"dark": (110, 35, 20), "bright": (245, 225, 130), "clear": None}
    for name, colour in colours.items():
        (space / "images" / name).mkdir(parents=True)
        for number in range(16):
            image = fundus(96)
            for place in generator.integers(28, 68, (4, 2)) if colour else ():
                image[draw.disk(place, 2.5)] = colour
            shade = generator.uniform(0.75, 1.0)
            Image.fromarray((image * shade).astype(np.uint8)).save(space / "images" / name / f"{name}{number}.png")

    def made(*overrides: str) -> RunPaths:
        own = [
            f"data.images={space / 'images'}",
            f"workspace={space / 'work'}",
            "data.audit=warn",
            "model.backbone=handcrafted",
        ]
        paths = make_run(
            resolve(load_job([tiny_job], [*own, HAND, "model.size=96", "train.augment=none", *overrides]))
        ).paths
        for stage in (shard, cache, train, predict, reduce):
            stage.run(paths.folder)
        return paths

    return made


@pytest.mark.chain
def test_a_whole_run_tells_lesions_apart_and_its_cache_holds_what_the_images_give(
    runs: Callable[..., RunPaths], tmp_path: Path
) -> None:
    paths = runs("run=whole", "figures=true")
    report = json.loads(paths.report_json.read_text("utf-8"))
    assert report["n"] == 12
    assert report["score"] >= 0.75
    assert (report["backbone"], report["weights"]) == ("handcrafted", "none")
    assert not (paths.report / "figures").exists()
    assert 'aria-label="Feature map. 12 images: ' in paths.report_page.read_text("utf-8")
    record = paths.load()
    images = open_images(Run.load(paths.folder))
    rows = images.rows("test")
    stored = open_stores(
        record.job, json.loads((paths.folder / "markers" / "cache.json").read_text())["outputs"], phase=0, split="test"
    )
    assert stored is not None
    cached = stored.read(stored.find(view_keys(images.index["content"][rows], (0,))))
    batch = SplitDataset(images, rows, Samples(len(rows), Views(96))).__getitems__(list(range(len(rows))))
    assert torch.equal(cached, torch.from_numpy(np.stack([features(image) for image in batch.inputs.numpy()])))
    exported = export_run(paths, tmp_path / "model")
    assert exported.forms["safetensors"].left_out == ""
    assert "handcrafted features" in exported.forms["onnx"].left_out
    answers = ExportedModel.load(tmp_path / "model").predict(
        [Path(record.job.data.images, "dark/dark0.png").read_bytes()]
    )
    assert answers.probabilities.shape == (1, 3)


@pytest.mark.chain
def test_another_head_and_another_precision_share_the_cache_and_another_version_does_not(
    runs: Callable[..., RunPaths], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs("run=one")
    told: list[int] = []
    monkeypatch.setattr(encoder.Encoder, "encode", lambda *_: told.append(1))
    paths = runs("run=other", "phase=[{cut='handcrafted', fit='logistic'}]", "train.mixed_precision=bf16")
    assert not told
    with (paths.report / "predictions.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) >= 12
    record = paths.load()
    model = build_classifier(record.job, 3)
    tap = Tap(1, 0)
    before = cache_identity(record, model, tap, "fp32")
    monkeypatch.setattr(encoder, "VERSION", 99)
    after = cache_identity(record, model, tap, "fp32")
    assert before != after
    assert set(before["versions"]) >= {"scikit-image", "features"}  # type: ignore[call-overload]
