"""Images of more than 8 bits from the folder to the batch: one range for all, fixed by the first run."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tlbatch import shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.data.dataset import SplitDataset
from tlbatch.data.image_set import ImageSet, open_images
from tlbatch.data.near_duplicates import hashes_of
from tlbatch.data.shards.store import ROW, read_spectra, read_store
from tlbatch.data.value_range import describe_traits
from tlbatch.data.views import Samples, Views
from tlbatch.data.wide_pixels import Trait
from tlbatch.runs.manifest import ValueRange
from tlbatch.runs.run import Run

Sharded = Callable[..., ImageSet]
TOP = 3000
SIDE = 32


def grey(number: int, *, top: int = TOP) -> np.ndarray:
    """Return blobs from 0 to ``top``, others for each number."""
    small = np.random.default_rng(number).random((4, 4))
    large = np.asarray(Image.fromarray((small * 255).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return (large / 255 * top).astype(np.uint16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "films"
    for kind, name in enumerate(["disc", "square"]):
        (root / name).mkdir(parents=True)
        for number in range(12):
            Image.fromarray(grey(100 * kind + number)).save(root / name / f"{name}{number:02d}.png")
    return root


@pytest.fixture
def sharded(tmp_path: Path, tiny_job: Path, folder: Path) -> Sharded:
    def make(*settings: str) -> ImageSet:
        where = [f"data.images={folder}", f"workspace={tmp_path / 'space'}", "data.audit=warn", *settings]
        paths = make_run(resolve(load_job([tiny_job], where))).paths
        shard.run(paths.folder)
        return open_images(Run.load(paths.folder))

    return make


def pixels(images: ImageSet) -> dict[str, np.ndarray]:
    """Return the grey values of all images as the network gets them."""
    rows = np.arange(len(images.index))
    dataset = SplitDataset(images, rows, Samples(len(rows), Views(SIDE)))
    keys = [key.decode() for key in images.index["key"].tolist()]
    inputs = dataset.__getitems__(rows.tolist()).inputs.numpy()
    return dict(zip(keys, inputs[..., 0].astype(int), strict=True))


def test_the_range_is_that_of_the_training_images_and_is_the_same_for_all(sharded: Sharded) -> None:
    images = sharded("data.resize=0")
    found = images.manifest.value_range
    assert found is not None
    assert found.num_images == images.manifest.num_images["train"]
    keys = images.index["key"][images.rows("train")].tolist()
    values = np.concatenate([grey(100 * (key[:4] != b"disc") + int(key[-2:])).ravel() for key in keys])
    np.testing.assert_allclose(found.limits, np.quantile(values, (0.001, 0.999)))
    low, high = found.limits
    for key, shown in pixels(images).items():
        expected = (grey(100 * (key[:4] != "disc") + int(key[-2:])) - low) * 255 / (high - low)
        assert np.abs(shown - expected.round().clip(0, 255)).max() <= 1
    (note,) = [note for note in images.manifest.notes if "more than 8 bits" in note]
    assert note.startswith(
        f"24 images of more than 8 bits: the values {low:g} to {high:g} become black and white (the "
    )
    assert images.manifest.reading


def test_the_first_run_fixes_the_range_for_later_images_and_other_sizes(sharded: Sharded, folder: Path) -> None:
    first = sharded()
    for number in range(12, 20):
        Image.fromarray(grey(number, top=60_000)).save(folder / "disc" / f"disc{number}.png")
    later, smaller = sharded("run=later"), sharded("run=smaller", "data.resize=16")
    assert later.manifest.value_range == smaller.manifest.value_range == first.manifest.value_range
    assert pixels(later)["disc/disc15"].max() == pytest.approx(255, abs=3)
    before, after = pixels(first), pixels(later)
    assert all(np.array_equal(before[key], after[key]) for key in before)


def test_a_range_that_the_job_gives_makes_another_set(sharded: Sharded) -> None:
    scanned, given = sharded(), sharded("run=given", "data.value_range=[0, 6000]")
    assert given.manifest.value_range == ValueRange(low=0, high=6000, num_images=0)
    assert given.paths.folder != scanned.paths.folder
    assert max(shown.max() for shown in pixels(given).values()) == pytest.approx(255 * TOP / 6000, abs=4)


def test_files_that_state_their_range_need_no_other(sharded: Sharded, folder: Path) -> None:
    for file in folder.glob("*/*.png"):
        values = np.asarray(Image.open(file))
        header = f"P5 {SIDE} {SIDE} {TOP}\n".encode()
        file.with_suffix(".pgm").write_bytes(header + values.astype(">u2").tobytes())
        file.unlink()
    images = sharded("data.value_range=[0, 10]")
    assert images.manifest.value_range is None
    assert max(shown.max() for shown in pixels(images).values()) == pytest.approx(255, abs=3)
    assert "24 images of more than 8 bits: their files state the range of values" in images.manifest.notes[-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: Image.fromarray(np.asarray(Image.open(file)) / np.float32(TOP)), "has integers and .* floating"),
        (lambda _: Image.fromarray(np.full((SIDE, SIDE), 700, np.uint16)), "are 700, so their range is not clear"),
    ],
)
def test_a_range_that_is_not_clear_is_asked_for(
    sharded: Sharded, folder: Path, change: Callable[[Path], Image.Image], message: str
) -> None:
    files = sorted(folder.glob("*/*.png"))
    for file in files[::2] if "floating" in message else files:
        image = change(file)
        file.unlink()
        image.save(file.with_suffix(".tif"))
    with pytest.raises(UserError, match=f"data.value_range: .*{message}.*set data.value_range="):
        sharded()


def test_images_of_many_bits_outside_of_training_alone_have_no_range(sharded: Sharded, folder: Path) -> None:
    eight = {file: Image.open(file) for file in folder.glob("*/*.png")}
    split = sharded()
    test = {key.decode() for key in split.index["key"][split.rows("test")].tolist()}
    for file, image in eight.items():
        if f"{file.parent.name}/{file.stem}" not in test:
            Image.fromarray((np.asarray(image) // 16).astype(np.uint8)).save(file)
    for file in split.paths.folder.parent.glob("*.range.json"):
        file.unlink()
    with pytest.raises(UserError, match=r"none of them is in the training split; set data\.value_range"):
        sharded("run=again")


def test_shards_of_earlier_versions_keep_what_was_right_and_make_the_rest_again(
    sharded: Sharded, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(6):
        eight = Image.fromarray((grey(number) // 16).astype(np.uint8))
        eight.save(folder / "disc" / f"disc{number:02d}.png")
    first = sharded()
    old = {row["key"]: first.manifest.shards[row["shard"]].name for row in np.array(first.index)}
    first.paths.index_folder.rename(first.paths.folder / "earlier")
    for file in first.paths.folder.glob("*.npz"):
        with np.load(file) as data:
            kept = {name: data[name] for name in data if name not in ("traits", "reader", "spectra")}
        kept["rejected"], kept["causes"] = np.array([7], np.uint64), np.array(["cannot be decoded (text too long)"])
        np.savez(file, **kept)
    with caplog.at_level(logging.WARNING):
        second = sharded("run=again")
    assert "18 images of more than 8 bits, or with a larger page than the first" in caplog.text
    store = read_store(first.paths.folder)
    assert len(store.sidecars) == 2
    spectra = read_spectra(store).astype(np.float32)
    known = store.rows["stamp"] != 0
    assert np.bitwise_count(hashes_of(spectra[known]) ^ store.rows["near"][known]).sum(axis=1).max() <= 16
    assert not store.rejected
    assert store.rows.dtype == ROW
    assert int((store.rows["stamp"] == 0).sum()) == 18
    new = {row["key"]: second.manifest.shards[row["shard"]].name for row in second.index}
    again = {key for key in new if new[key] != old[key]}
    assert len(again) == 18
    caplog.clear()
    assert sharded("run=third").paths.index_folder == second.paths.index_folder
    assert "sharded again" not in caplog.text


def test_what_is_read_otherwise_is_counted() -> None:
    traits = np.array([0, Trait.WIDE, Trait.WIDE | Trait.NO_RANGE, Trait.PAGES, Trait.DROPPED, Trait.ALPHA], np.uint8)
    notes = describe_traits(traits, ValueRange(low=0, high=100, num_images=5), given=True)
    stated = (
        "1 image of more than 8 bits: their files state the range of values, which is used in place of data.value_range"
    )
    scanned = (
        "1 image of more than 8 bits: the values 0 to 100 become black and white (the 0.1 % and 99.9 % quantiles of 5 "
        "training images; set data.value_range to change it); the other 4 images have 8 bits and are read as they are"
    )
    assert notes == (
        stated,
        scanned,
        "1 image with several pages or frames: the largest page is read, or the first frame",
        "1 image with channels beyond colour and transparency, which are not read",
        "1 image with transparency, which is composed on white",
    )
    assert describe_traits(np.zeros(9, np.uint8), None) == ()
