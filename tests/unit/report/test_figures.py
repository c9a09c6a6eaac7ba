"""Every figure is a PNG of the expected size with something on it, and the same for the same values."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlbatch.report.figures import (
    draw_activations,
    draw_confusion,
    draw_curves,
    draw_feature_map,
    draw_filters,
    draw_strategy,
    thumbnail,
)
from tlbatch.runs.strategy import Strategy, Trial

Draw = Callable[[Path], None]
NOTE = (400, 100)
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 255, (40, 40, 3), dtype=np.uint8)
POINTS = RNG.normal(size=(90, 2)).astype(np.float32)
LINES: list[dict[str, Any]] = [
    {"phase": phase, "epoch": epoch, "loss": 2 - 0.3 * epoch - phase, "val_accuracy": 0.5 + 0.1 * epoch,
     "val_loss": 1.0, "lr": 0.1}
    for phase in range(2) for epoch in range(3)
]  # fmt: skip


def activations(path: Path) -> None:
    values = np.arange(100 * 16, dtype=np.float32).reshape(100, 4, 4)
    draw_activations(path, PHOTO, {"a": values, "$odd_$": np.zeros((100, 4, 4)), "end": np.eye(2)[None]})


def filters(path: Path) -> None:
    draw_filters(path, np.linspace(0, 1, 200 * 27).reshape(200, 3, 3, 3))


def curves(path: Path) -> None:
    draw_curves(path, LINES, "accuracy")


def feature_map(path: Path) -> None:
    draw_feature_map(path, POINTS, np.arange(90) % 20, [f"_class {number}" for number in range(20)])


def many_classes(path: Path) -> None:
    draw_feature_map(path, POINTS, np.arange(90) % 21, [f"class {number}" for number in range(21)])


def matrix(path: Path) -> None:
    draw_confusion(path, [[8, 1], [0, 0]], ["cat" * 20, "d$o$g_{"])


def trial(name: str, score: float | None, *, fit: str = "ridge", after: str = "pool") -> Trial:
    return Trial(
        name=name, after=(after,), cut="pool", fit=fit, score=score, standard_error=0.02, num_images=300, behind=0.0,
        behind_error=0.01, seconds=1.0,
    )  # fmt: skip


def strategy(path: Path) -> None:
    profile = [trial(at, 0.5, fit=fit, after=at) for fit in ("ridge", "neighbours") for at in ("a.$b$", "pool")]
    short_list = [trial("logistic on a.$b$", 0.8), trial("undefined", None), trial("fine-tuned after " + "c" * 60, 0.9)]
    draw_strategy(path, Strategy(
        chosen="undefined", why="", scenario="small and like", scenario_why="", metric="accuracy", num_train=300,
        profile=tuple(profile), short_list=tuple(short_list), settings={},
    ))  # fmt: skip


FULL: list[tuple[Draw, tuple[int, int]]] = [
    (activations, (1380, 980)), (filters, (640, 670)), (curves, (1100, 420)),
    (feature_map, (900, 650)), (many_classes, (900, 650)), (matrix, (484, 384)), (strategy, (1100, 510)),
]  # fmt: skip


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image.convert("RGB"))


def colours(path: Path) -> set[tuple[int, ...]]:
    return {tuple(pixel) for pixel in np.unique(pixels(path).reshape(-1, 3), axis=0).tolist()}


@pytest.mark.parametrize(("draw", "size"), FULL, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.filterwarnings("error")
def test_a_figure_is_a_png_of_its_size_and_the_same_bytes_again(
    tmp_path: Path, draw: Draw, size: tuple[int, int]
) -> None:
    digests = set()
    for number in range(2):
        path = tmp_path / str(number) / "figure.png"
        draw(path)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
        assert [found.name for found in path.parent.iterdir()] == ["figure.png"], "no draft is left"
    assert len(digests) == 1
    with Image.open(path) as image:
        assert (image.format, image.size) == ("PNG", size)
        assert not {"Software", "Creation Time"} & set(image.info)
    assert len(colours(path)) > 20


EMPTY: list[tuple[str, Draw, tuple[int, int]]] = [
    ("no maps", lambda path: draw_activations(path, PHOTO, {}), (460, 490)),
    ("no filters", lambda path: draw_filters(path, np.empty((0, 1, 1, 3))), NOTE),
    ("no epochs", lambda path: draw_curves(path, [], "accuracy"), NOTE),
    ("no points", lambda path: draw_feature_map(path, np.empty((0, 2)), np.empty(0, int), ["a"]), (900, 650)),
    ("no class", lambda path: draw_feature_map(path, np.empty((0, 2)), np.empty(0, int), []), (900, 650)),
    ("no points, many classes",
     lambda path: draw_feature_map(path, np.empty((0, 2)), np.empty(0, int), ["a"] * 30), (900, 650)),
    ("no matrix", lambda path: draw_confusion(path, [], []), NOTE),
]  # fmt: skip


@pytest.mark.parametrize(("draw", "size"), [case[1:] for case in EMPTY], ids=[case[0] for case in EMPTY])
@pytest.mark.filterwarnings("error")
def test_nothing_to_show_gives_a_figure_too(tmp_path: Path, draw: Draw, size: tuple[int, int]) -> None:
    draw(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.size == size
    assert len(colours(tmp_path / "figure.png")) > 1


@pytest.mark.filterwarnings("error")
def test_an_undefined_metric_leaves_the_rest_of_the_curves(tmp_path: Path) -> None:
    lines = [line | {"val_accuracy": None, "val_loss": None} for line in LINES]
    draw_curves(tmp_path / "curves.png", lines, "accuracy")
    blue, red = (63, 144, 218), (189, 31, 1)
    assert blue in colours(tmp_path / "curves.png")
    left = pixels(tmp_path / "curves.png")
    curves(tmp_path / "all.png")
    assert not np.array_equal(left, pixels(tmp_path / "all.png"))
    assert red in colours(tmp_path / "all.png")


def test_of_an_epoch_that_was_run_twice_the_last_line_counts(tmp_path: Path) -> None:
    draw_curves(tmp_path / "once.png", LINES, "accuracy")
    draw_curves(tmp_path / "twice.png", [LINES[0] | {"loss": 9.0}, *LINES], "accuracy")
    assert (tmp_path / "once.png").read_bytes() == (tmp_path / "twice.png").read_bytes()


def test_the_heat_of_a_thumbnail_lies_over_the_hot_corner() -> None:
    cam = np.zeros((4, 4), np.float32)
    cam[0, 3] = 1
    grey = np.full((200, 200, 3), 120, np.uint8)
    drawn = np.asarray(Image.open(io.BytesIO(thumbnail(grey, cam)))).astype(int)
    assert drawn.shape == (200, 200, 3)
    hot = np.argwhere(drawn[..., 0] - drawn[..., 2] > 60)  # red less blue
    assert hot[:, 0].max() < 100, "in the upper half"
    assert hot[:, 1].min() > 100, "at the right"
    plain = np.asarray(Image.open(io.BytesIO(thumbnail(np.full((900, 600, 3), 120, np.uint8)))))
    assert plain.shape == (224, 149, 3)
    assert (plain == 120).all(), "without a heat map the picture stands alone"


def test_of_many_channels_those_that_vary_are_shown(tmp_path: Path) -> None:
    values = np.zeros((200, 2, 2), np.float32)
    values[150, 0, 0] = 1
    draw_activations(tmp_path / "varied.png", PHOTO // 255, {"end": values})
    assert (253, 231, 36) in colours(tmp_path / "varied.png"), "the brightest of viridis"


def test_more_classes_than_colours_give_a_scale(tmp_path: Path) -> None:
    feature_map(tmp_path / "few.png")
    many_classes(tmp_path / "many.png")
    assert {(63, 144, 218), (146, 218, 221)} - colours(tmp_path / "many.png")
    assert len(colours(tmp_path / "many.png")) > 200


def test_counts_are_written_only_where_they_can_be_read(tmp_path: Path) -> None:
    def dark(num_classes: int) -> int:
        path = tmp_path / f"{num_classes}.png"
        draw_confusion(path, np.ones((num_classes, num_classes), int).tolist(), ["a"] * num_classes)
        drawn = pixels(path)
        height, width = drawn.shape[:2]
        inside = drawn[height // 3 : height // 2, width // 3 : width // 2]
        return int((inside.max(axis=2) < 100).sum())

    assert dark(30) > 0
    assert dark(31) == 0
    assert dark(61) == 0
