import io
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlbatch import shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.data.image_set import open_images
from tlbatch.promotion.drift import image_statistics as statistics
from tlbatch.promotion.drift.image_statistics import COLUMNS, image_statistics, known_statistics
from tlbatch.promotion.drift.new_images import Some
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.run import Run

pytestmark = pytest.mark.chain


def of(rgb: np.ndarray, num_bytes: int = 1000) -> dict[str, float]:  # type: ignore[type-arg]
    return dict(zip(COLUMNS, image_statistics(rgb.astype(np.uint8), num_bytes=num_bytes).tolist(), strict=True))


@pytest.fixture
def sharded(tmp_path: Path, tiny_job: Path, make_folders: Callable[..., Path]) -> Callable[[], Some]:
    """Return a function that shards the folder and returns all its images."""
    images, nights = make_folders(each=4), itertools.count()

    def made() -> Some:
        where = [f"data.images={images}", f"workspace={tmp_path / 'space'}", f"run=night{next(nights)}"]
        job = load_job([tiny_job], [*where, "data.audit=warn"])
        paths: RunPaths = make_run(resolve(job)).paths
        shard.run(paths.folder)
        opened = open_images(Run.load(paths.folder))
        return Some(opened, np.arange(len(opened.index)))

    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    found: list[bytes] = []
    original = statistics.decode

    def counted(data: bytes, **options: object) -> object:
        found.append(data)
        return original(data, **options)

    monkeypatch.setattr(statistics, "decode", counted)
    return found


def test_statistics_of_a_plain_picture_are_those_of_their_definition() -> None:
    left_red = np.zeros((10, 30, 3))
    left_red[:, :15] = (200, 0, 0)
    left_red[:, 15:] = 255
    found = of(left_red, 5000)
    luma = np.array([0.299 * 200, 255]) / 255
    assert found == pytest.approx(
        {
            "brightness": luma.mean(), "contrast": luma.std(), "red": 227.5 / 255, "green": 0.5, "blue": 0.5,
            "saturation": 0.5, "sharpness": found["sharpness"], "black share": 0, "white share": 0.5,
            "aspect ratio": 3, "log bytes": np.log(5000),
        },
        abs=1e-5,
    )  # fmt: skip
    assert of(np.full((8, 8, 3), 15))["black share"] == 1
    assert of(np.full((8, 8, 3), 16))["black share"] == 0
    assert of(np.full((1, 1, 3), 15))["sharpness"] == 0


def test_sharpness_is_the_log_of_the_variance_of_the_laplacian_and_falls_when_blurred() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    luma = noise @ np.array([0.299, 0.587, 0.114])
    laplacian = [
        luma[y - 1, x] + luma[y + 1, x] + luma[y, x - 1] + luma[y, x + 1] - 4 * luma[y, x]
        for y in range(1, 39)
        for x in range(1, 49)
    ]
    assert of(noise)["sharpness"] == pytest.approx(np.log1p(np.var(laplacian)), rel=1e-4)
    small = np.asarray(Image.fromarray(noise).resize((25, 20)).resize((50, 40)))
    assert of(small)["sharpness"] < of(noise)["sharpness"] - 2


def test_the_same_picture_has_about_the_same_statistics_in_any_size_and_format() -> None:
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8))
    tables = []
    for width, kind in ((640, "PNG"), (2560, "JPEG"), (2560, "PNG")):
        file = io.BytesIO()
        coarse.resize((width, width * 3 // 4), Image.Resampling.BICUBIC).save(file, kind, quality=95)
        tables.append(statistics._measured(file.getvalue(), None)[:-1])
    assert np.allclose(tables[1:], tables[0], atol=0.02, rtol=0.05)


def test_a_second_night_decodes_only_what_is_new(
    sharded: Callable[[], Some], decoded: list[bytes], tmp_path: Path, write_folders: Callable[..., Path]
) -> None:
    known = tmp_path / "space" / "statistics.npz"
    first = sharded()
    table = known_statistics(first, known=known, workers=2)
    assert (table.shape, len(decoded)) == ((12, len(COLUMNS)), 12)
    extra = write_folders(tmp_path / "extra", each=7)
    for name in ("blue", "green"):
        shutil.copy(extra / name / f"{name}6.jpg", tmp_path / "images" / name / "new.jpg")
    decoded.clear()
    second = sharded()
    grown = known_statistics(second, known=known, workers=2)
    assert len(decoded) == 2
    by_content = dict(zip(first.index["content"].tolist(), table, strict=True))
    for content, row in zip(second.index["content"].tolist(), grown, strict=True):
        assert content not in by_content or np.array_equal(by_content[content], row)
    for content, row in zip(second.index["content"].tolist(), grown, strict=True):
        (data,) = Some(second.images, np.flatnonzero(second.index["content"] == content)).files()
        assert np.array_equal(statistics._measured(data, None), row)
    decoded.clear()
    written = known.stat().st_mtime_ns
    assert np.array_equal(known_statistics(second, known=known, workers=1), grown)
    assert (decoded, known.stat().st_mtime_ns) == ([], written)


@pytest.mark.parametrize("spoils", ["cut", "bit", "text", "columns", "array", "empty"])
def test_damaged_file_is_logged_and_recreated(
    sharded: Callable[[], Some], decoded: list[bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture, spoils: str
) -> None:
    known, images = tmp_path / "statistics.npz", sharded()
    table = known_statistics(images, known=known, workers=1)
    whole = known.read_bytes()
    if spoils == "columns":
        with np.load(known) as data:
            np.savez(known, keys=data["keys"], table=data["table"], columns=data["columns"][::-1])
    elif spoils == "array":
        with known.open("wb") as file:
            np.save(file, table)
    else:
        at = whole.index(table[0].tobytes()[:8])
        bit = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        known.write_bytes({"cut": whole[: len(whole) // 2], "bit": bit, "text": b"no table", "empty": b""}[spoils])
    decoded.clear()
    assert np.array_equal(known_statistics(images, known=known, workers=1), table)
    assert len(decoded) == len(table)
    assert f"{known}: " in caplog.text
    assert "recreating it" in caplog.text
    assert known.read_bytes() == whole


def test_any_corrupt_byte_is_tolerated(sharded: Callable[[], Some], tmp_path: Path) -> None:
    known, images = tmp_path / "statistics.npz", sharded()
    known_statistics(images, known=known, workers=1)
    whole = known.read_bytes()
    for at in range(0, len(whole), 3):
        known.write_bytes(whole[:at] + bytes([whole[at] ^ 0x15]) + whole[at + 1 :])
        statistics._read_known(known)


def test_an_image_that_can_no_longer_be_read_has_no_statistics_and_is_tried_again(
    sharded: Callable[[], Some], decoded: list[bytes], tmp_path: Path
) -> None:
    known, images = tmp_path / "statistics.npz", sharded()
    tar = images.images.shards[0]
    whole = tar.read_bytes()
    row = images.index[4]
    with tar.open("r+b") as file:
        file.seek(int(row["offset"]) + 40)
        file.write(b"damaged!")
    table = known_statistics(images, known=known, workers=2)
    assert np.flatnonzero(np.isnan(table).any(axis=1)).tolist() == [4]
    tar.write_bytes(whole)
    decoded.clear()
    assert not np.isnan(known_statistics(images, known=known, workers=2)).any()
    assert len(decoded) == 1
