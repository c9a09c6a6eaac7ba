"""The drift of a night, on runs of small images: new images, shifts and label issues."""

import csv
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from tlbatch import cache, shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.load import load_job
from tlbatch.config.nightly import Nightly
from tlbatch.data.decode import decode
from tlbatch.data.image_files import UnreadableImageError
from tlbatch.data.image_set import open_images
from tlbatch.promotion.drift import image_statistics, measure
from tlbatch.promotion.drift.measure import measure_drift
from tlbatch.promotion.drift.records import Drift, Shift
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import Marker, load_record
from tlbatch.runs.run import Run

pytestmark = pytest.mark.chain

THRESHOLD = Nightly().drift

CLASSES = ("blue", "green", "red")


def picture(name: str, rng: np.random.Generator, *, light: int = 0) -> Image.Image:
    pixels = rng.integers(20, 120, (40, 48, 3)) + rng.integers(-15, 15)
    pixels[..., 2 - CLASSES.index(name)] += 60
    return Image.fromarray((pixels + light).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True)
class Site:
    """A folder of images that grows, and the runs of its nights."""

    folder: Path
    job: Path
    numbers: "itertools.count[int]"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def table(self) -> list[dict[str, str]]:
        with (self.folder / "doubtful.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def add(self, num: int, *, label: str = "", shares: Sequence[float] = (1, 1, 1), light: int = 0) -> list[Path]:
        """Images of random classes; with a label, in the folder of that class, whatever they show."""
        added = []
        for _ in range(num):
            number = next(self.numbers)
            rng = np.random.default_rng(number)
            name = rng.choice(CLASSES, p=np.array(shares) / sum(shares))
            added.append(self.images / (label or name) / f"{number:05d}.jpg")
            added[-1].parent.mkdir(parents=True, exist_ok=True)
            picture(name, rng, light=light).save(added[-1], quality=95)
        return added

    def night(self, *overrides: str, cached: bool = True) -> RunPaths:
        """Tonight's run, after shard and cache."""
        where = [f"data.images={self.images}", f"workspace={self.folder / 'space'}", f"run=night{next(self.numbers)}"]
        job = load_job([self.job], [*where, "data.audit=warn", "train.augment=none", "phase.1.cut=pool", *overrides])
        paths = make_run(resolve(job)).paths
        shard.run(paths.folder)
        if cached:
            cache.run(paths.folder)
        return paths

    def measure(
        self, paths: RunPaths, before: RunPaths | Path | None, predict: measure.Predict | None = None,
        classes: tuple[str, ...] = CLASSES, threshold: float = THRESHOLD,
    ) -> Drift:  # fmt: skip
        found = measure_drift(
            Run.load(paths.folder),
            before=index_of(before) if isinstance(before, RunPaths) else before,
            known=self.folder / "statistics.npz",
            predict=predict,
            classes_of_predict=classes,
            threshold=threshold,
            table=self.folder / "doubtful.csv",
        )
        found.save(self.folder / "drift.json")
        assert load_record(Drift, self.folder / "drift.json", missing="") == found
        return found


def index_of(paths: RunPaths) -> Path:
    return Run.load(paths.folder).set_paths.index_folder


def by_kind(found: Drift) -> dict[str, Shift]:
    assert [one.what for one in found.shifts] == ["classes", "images", "features"]
    return {one.what: one for one in found.shifts}


@pytest.fixture
def site(tmp_path: Path, tiny_job: Path) -> Site:
    made = Site(tmp_path, tiny_job, itertools.count())
    made.add(90)
    return made


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    found: list[bytes] = []

    def counted(data: bytes, **options: object) -> object:
        found.append(data)
        return decode(data, **options)

    monkeypatch.setattr(image_statistics, "decode", counted)
    return found


def by_colour(files: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """Predict by the strongest colour; greyer images are less certain."""
    said = np.full((len(files), 3), np.nan, np.float32)
    for place, data in enumerate(files):
        try:
            means = decode(data).mean(axis=(0, 1))[::-1] / 20
        except UnreadableImageError:
            continue
        said[place] = np.exp(means - means.max()) / np.exp(means - means.max()).sum()
    return said


def test_first_night_compares_nothing_and_says_why(site: Site, decoded: list[bytes]) -> None:
    found = site.measure(site.night(), None, by_colour)
    assert found == Drift(
        num_new=90, num_before=0, num_relabelled=0, threshold=THRESHOLD, unmeasured=("no previous night",)
    )
    assert (site.folder / "doubtful.csv").read_text("utf-8").count("\n") == 1
    assert decoded == []


def test_similar_images_are_not_marked(site: Site) -> None:
    before = site.night()
    site.add(30)
    found = site.measure(site.night(), before, by_colour)
    assert (found.num_new, found.num_before, found.num_relabelled, found.is_marked) == (30, 90, 0, False)
    for one in by_kind(found).values():
        assert (one.num_new, one.num_before, one.num_lacking, one.undefined) == (30, 90, 0, "")
    assert (found.num_judged, found.num_disagreeing, found.unmeasured, site.table) == (30, 0, (), [])


def test_brighter_images_are_marked_by_brightness_and_features(site: Site) -> None:
    before = site.night()
    site.add(20, light=40)
    found = site.measure(site.night(), before)
    shifts = by_kind(found)
    assert found.is_marked
    assert [shifts[what].is_above for what in ("classes", "images", "features")] == [False, True, True]
    (brightness,) = (one for one in shifts["images"].differences if one.name == "brightness")
    assert brightness.now - brightness.before == pytest.approx(40 / 255, abs=0.02)
    assert not site.measure(site.night(), before, threshold=1e9).is_marked


def test_another_mix_of_classes_and_a_new_class_are_marked(site: Site) -> None:
    before = site.night()
    blue = site.add(40, shares=(10, 1, 1))
    found = site.measure(site.night(), before)
    shift = by_kind(found)["classes"]
    assert shift.is_above
    assert shift.differences[0].name == "blue"
    assert shift.differences[0].now > 0.6 > shift.differences[0].before
    for path in blue:
        path.unlink()
    site.add(12, label="amber")
    site.add(18)
    shift = by_kind(site.measure(site.night("data.classes=['amber','blue','green','red']"), before))["classes"]
    assert shift.is_above
    assert (shift.differences[0].name, shift.differences[0].before) == ("amber", 0)
    assert shift.differences[0].now == pytest.approx(0.4)


def test_a_relabelled_image_is_counted_and_not_new_and_a_renamed_one_is_neither(site: Site) -> None:
    before = site.night()
    first, other, third = sorted((site.images / "red").glob("*.jpg"))[:3]
    for path in (first, other):
        path.rename(site.images / "blue" / path.name)
    third.rename(third.with_name("renamed.jpg"))
    found = site.measure(site.night(), before, by_colour)
    assert (found.num_new, found.num_before, found.num_relabelled) == (0, 90, 2)
    assert (found.shifts, found.unmeasured) == ((), ("no new images",))
    (site.images / "red").rename(site.images / "crimson")
    renamed = site.night("data.classes=['blue','crimson','green']")
    assert site.measure(renamed, before).num_relabelled == len(list((site.images / "crimson").iterdir())) + 2


def test_a_copy_of_an_old_image_is_not_new_and_copies_of_a_new_one_are_one(site: Site) -> None:
    before = site.night()
    (old,) = site.add(1)
    for number in range(20):
        old.with_name(f"copy{number}.jpg").write_bytes(old.read_bytes())
    known = min((site.images / "red").glob("*.jpg"))
    known.with_name("again.jpg").write_bytes(known.read_bytes())
    found = site.measure(site.night(), before)
    assert found.num_new == 1
    assert by_kind(found)["images"].undefined == "too few groups: 1 new (min 5), 90 before (min 10)"
    assert found.unmeasured[0] == "classes: too few groups: 1 new (min 5), 90 before (min 10)"


def test_a_group_counts_once_however_many_images_it_has(site: Site) -> None:
    """Thirty bright images of two patients count as two observations."""
    grouped = r"data.group_pattern=(\d+)(?:-\d+)?$"
    before = site.night(grouped)
    for number, path in enumerate(site.add(30, light=40)):
        path.rename(path.with_name(f"{90000 + number % 2:05d}-{number}.jpg"))
    found = site.measure(site.night(grouped), before)
    assert found.num_new == 30
    assert not found.is_marked
    assert "too few groups: 2 new (min 5)" in by_kind(found)["images"].undefined


def test_the_next_night_decodes_only_its_own_images_and_compares_with_a_limited_number(
    site: Site, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "MOST_BEFORE", 40)
    first = site.night()
    site.add(10)
    second = site.night()
    found = site.measure(second, first)
    assert len(decoded) == 50
    assert [one.num_before for one in found.shifts] == [40] * 3
    index = open_images(Run.load(first.folder)).index
    lowest = set(np.sort(index["content"])[:40])
    with np.load(site.folder / "statistics.npz") as data:
        assert set(data["keys"]) >= lowest
    decoded.clear()
    added = site.add(8)
    site.measure(site.night(), second)
    assert set(decoded) == {path.read_bytes() for path in added}


def test_images_that_left_the_set_are_still_compared_with(site: Site) -> None:
    before = site.night()
    for path in sorted((site.images / "red").glob("*.jpg"))[:10]:
        path.unlink()
    site.add(20)
    shifts = by_kind(site.measure(site.night(), before))
    assert [shift.num_before for shift in shifts.values()] == [90] * 3


def test_labels_and_image_statistics_are_compared_without_a_cache(site: Site) -> None:
    before = site.night("cache.enabled=false")
    site.add(20, light=40)
    for night in (site.night("cache.enabled=false"), site.night(cached=False)):
        found = site.measure(night, before)
        assert [one.is_above for one in found.shifts] == [False, True, False]
        assert found.shifts[2].undefined == "the activations of phase 0 are not cached"
        assert found.unmeasured[0] == "features: the activations of phase 0 are not cached"


@pytest.mark.parametrize("cut", ["blocks.1", "pool"])
def test_features_are_means_over_the_positions_of_a_map(site: Site, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = measure.shift

    def spied(new: measure.Sample, before: measure.Sample, **how: object) -> Shift:
        seen.append((new.values, before.values))
        return original(new, before, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(measure, "shift", spied)
    before = site.night(f"phase.0.cut={cut}", f"phase.1.cut={cut}")
    site.add(10)
    paths = site.night(f"phase.0.cut={cut}", f"phase.1.cut={cut}")
    site.measure(paths, before)
    new, old = seen[2]
    night = measure.compare_nights(open_images(Run.load(paths.folder)), index_of(before), most=2000)
    cached = load_record(Marker, paths.marker("cache"), missing="")
    stored = measure.open_stores(paths.load().job, cached.outputs, phase=0, split="train")
    assert stored is not None
    for some, values in ((night.new, new), (night.before, old)):
        read = stored.read(stored.find(measure.view_keys(some.index["content"], (0,)))).float()
        assert (read.ndim == 4) == (cut != "pool")
        assert np.allclose(values, read.flatten(2).mean(2) if read.ndim == 4 else read, atol=1e-5)


def test_with_random_crops_training_images_are_compared_with_training_images(site: Site) -> None:
    crops = ("train.crop_scale=0.5", "train.random_views=2")
    before = site.night(*crops)
    site.add(30)
    found = site.measure(paths := site.night(*crops), before)
    features = by_kind(found)["features"]
    manifest = open_images(Run.load(paths.folder)).manifest
    assert 0 < features.num_new < 30
    assert features.num_new + features.num_before + features.num_lacking == 120
    assert features.num_lacking == 120 - manifest.num_images["train"]
    lacking = f"features: {features.num_lacking} images excluded as unreadable or not cached"
    assert lacking in found.unmeasured


def test_contradicted_labels_are_listed_by_decreasing_margin(site: Site) -> None:
    before = site.night()
    right = site.add(20)
    wrong = [site.add(1, label=label, shares=shares)[0] for label, shares in (("red", (1, 0, 0)), ("blue", (0, 1, 0)))]
    found = site.measure(site.night(), before, by_colour)
    assert (found.num_judged, found.num_disagreeing) == (22, 2)
    said = by_colour([path.read_bytes() for path in (*right, *wrong)])
    assert found.share_expected == pytest.approx(np.mean(1 - said.max(axis=1)), rel=1e-4)
    assert found.z_disagreeing is not None
    assert {(row["label"], row["champion_says"]) for row in site.table} == {("red", "blue"), ("blue", "green")}
    margins = [float(row["probability"]) - float(row["probability_of_label"]) for row in site.table]
    assert margins == sorted(margins, reverse=True)
    for row in site.table:
        (path,) = (path for path in wrong if path.parent.name == row["label"])
        assert row["image"].endswith(path.stem)
        assert row["split"] in ("train", "val", "test")
        own = by_colour([path.read_bytes()])[0]
        assert float(row["probability"]) == pytest.approx(own.max(), abs=1e-5)
        assert float(row["probability_of_label"]) == pytest.approx(own[CLASSES.index(row["label"])], abs=1e-5)


def test_a_night_whose_labels_were_shuffled_stands_out(site: Site) -> None:
    before = site.night()
    for path in site.add(30):
        path.rename(site.images / CLASSES[int(path.stem) % 3] / path.name)
    found = site.measure(site.night(), before, by_colour)
    assert not found.is_marked
    assert found.num_disagreeing > 10
    assert found.z_disagreeing is not None
    assert found.z_disagreeing > 10


def test_champion_may_lack_classes_and_fail_to_read_images(site: Site) -> None:
    before = site.night()
    site.add(6, label="amber")
    site.add(10)
    calls = []

    def blind(files: Sequence[bytes]) -> npt.NDArray[np.float32]:
        calls.append(len(files))
        said = by_colour(files)[:, [2, 0, 1]]
        said[:1] = np.nan
        return said

    paths = site.night("data.classes=['amber','blue','green','red']")
    found = site.measure(paths, before, blind, classes=("red", "blue", "green"))
    assert (calls, found.num_judged, found.num_disagreeing) == ([10], 9, 0)
    assert found.unmeasured == (
        "labels: 6 new images of a class that the champion does not have",
        "labels: 1 new image could not be read",
    )
    assert site.measure(paths, before).unmeasured == ("labels: there is no champion to compare them with",)


def test_unreadable_images_are_reported_and_not_predicted(site: Site) -> None:
    before = site.night()
    site.add(10)
    paths = site.night()
    images = open_images(Run.load(paths.folder))
    (row,) = measure.compare_nights(images, index_of(before), most=5).new.index[:1]
    with images.shards[row["shard"]].open("r+b") as file:
        file.seek(int(row["offset"]) + 30)
        file.write(b"damaged!")
    found = site.measure(paths, before, by_colour)
    assert (found.num_judged, found.num_disagreeing, by_kind(found)["images"].num_lacking) == (9, 0, 1)
    assert found.unmeasured == (
        "images: 1 image excluded as unreadable or not cached",
        "labels: 1 new image could not be read",
    )


@pytest.mark.parametrize("spoils", ["folder", "index", "strangers"])
def test_unusable_previous_night_is_reported(site: Site, tmp_path: Path, spoils: str) -> None:
    before = index_of(site.night())
    if spoils == "folder":
        before = tmp_path / "nowhere"
    elif spoils == "index":
        (before / "index.npy").write_bytes(b"damaged")
    else:
        for path in site.images.rglob("*.jpg"):
            path.unlink()
    site.add(12)
    found = site.measure(site.night("data.split.salt=new"), before, by_colour)
    (why,) = found.unmeasured
    assert ("no image of the previous night is left" if spoils == "strangers" else "cannot be read: ") in why
    assert (found.shifts, found.num_before, found.is_marked, site.table) == ((), 0, False, [])


def test_images_with_tags_are_compared_only_by_their_statistics(site: Site) -> None:
    """Several tags an image; they are relabelled when their tags change, in whatever order."""
    tagged = [
        "data.source=csv",
        f"data.labels={site.folder / 'labels.csv'}",
        "data.tag_separator=' '",
        "data.label_column=label",
    ]

    def night(number: int) -> RunPaths:
        tags = [f"{CLASSES[at % 3]} {CLASSES[(at + at % 2) % 3]}" for at in range(number)]
        if number > 90:
            tags[0], tags[1] = "red", " ".join(reversed(tags[1].split()))
        lines = [f"{path.relative_to(site.images)},{tag}" for path, tag in zip(everything, tags, strict=False)]
        (site.folder / "labels.csv").write_text("\n".join(["image,label", *lines]) + "\n", "utf-8")
        return site.night(*tagged, cached=False)

    everything = sorted(site.images.rglob("*.jpg"))
    before = night(90)
    everything += site.add(20, light=40)
    found = site.measure(night(110), before, by_colour)
    assert (found.num_new, found.num_relabelled) == (20, 1)
    assert [one.is_above for one in found.shifts] == [False, True, False]
    assert "classes: images have tags instead of a class" in found.unmeasured
    assert "labels: images have tags instead of a class" in found.unmeasured
