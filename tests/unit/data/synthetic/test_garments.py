import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tlbatch import shard
from tlbatch.cluster.create import make_run, resolve
from tlbatch.config.data import Synthetic
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError
from tlbatch.data.synthetic.__main__ import main
from tlbatch.data.synthetic.garments.draw import draw
from tlbatch.data.synthetic.garments.phrases import ATTRIBUTES, LENGTHS_OF, SLEEVES_OF, Garment, phrase
from tlbatch.data.synthetic.garments.products import photographs, plan_garments
from tlbatch.data.synthetic.write import make
from tlbatch.runs.manifest import Manifest
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.records import load_record
from tlbatch.runs.run import Run

DRESS = Garment("dress", "red", "floral", "short-sleeved", "midi")


def _make(folder: Path, *, workers: int = 1, **changes: Any) -> Path:
    settings = Synthetic(**({"kind": "garments", "num_images": 8, "side": 64, "seed": 5} | changes))
    make(folder, settings, workers=workers)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "garments.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _read(words: str) -> Garment:
    """Find the attributes from the words of a phrase alone, and what goes without saying from the rules in prose."""
    *before, kind = words.split()
    found = {"pattern": "plain"}
    for word in before:
        (attribute,) = [name for name in ("colour", "pattern", "sleeve", "length") if word in ATTRIBUTES[name]]
        assert attribute not in found or found[attribute] == "plain", f"said twice: {words}"
        found[attribute] = word
    sleeves = {"dress": "sleeveless", "vest": "sleeveless", "skirt": "", "trousers": ""}
    lengths = {"dress": "midi", "skirt": "short", "trousers": "long", "coat": "midi"}
    return Garment(
        kind,
        found["colour"],
        found["pattern"],
        found.get("sleeve", sleeves.get(kind, "long-sleeved")),
        found.get("length", lengths.get(kind, "")),
    )


def _changed(first: Garment, second: Garment, *, seed: int = 0, product: int = 1) -> Any:
    """Whether each pixel differs visibly, of shape (side, side)."""
    one, other = (draw(seed, product, 1, garment=each, side=128).astype(int) for each in (first, second))
    return np.abs(one - other).max(axis=2) > 12


def _rows_of(mask: Any) -> Any:
    return np.flatnonzero(mask.any(axis=1))


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    assert _files(_make(tmp_path / "one")) == _files(_make(tmp_path / "two", workers=2))


def test_a_garment_does_not_depend_on_what_was_drawn_before_it() -> None:
    alone = draw(0, 9, 2, garment=DRESS, side=64)
    draw(0, 8, 1, garment=DRESS, side=64)
    assert np.array_equal(alone, draw(0, 9, 2, garment=DRESS, side=64))


def test_another_seed_draws_other_garments_and_photographs() -> None:
    assert not np.array_equal(draw(0, 1, 1, garment=DRESS, side=64), draw(1, 1, 1, garment=DRESS, side=64))
    assert [each.garment for each in photographs(50, seed=0)] != [each.garment for each in photographs(50, seed=1)]


def test_a_longer_list_begins_with_the_shorter_ones() -> None:
    assert photographs(300, seed=3)[:120] == photographs(120, seed=3)


def test_the_folder_holds_a_table_and_an_image_of_each_row_that_says_it_is_synthetic(tmp_path: Path) -> None:
    folder = _make(tmp_path / "made", side=80)
    rows = _rows(folder)
    assert {path.name for path in folder.iterdir()} == {"garments.csv", "images", "README.txt"}
    assert "All of this is synthetic" in (folder / "README.txt").read_text()
    assert list(rows[0]) == ["image", "phrase", "type", "colour", "pattern", "sleeve", "length"]
    assert {path.name for path in (folder / "images").iterdir()} == {f"{row['image']}.jpeg" for row in rows}
    assert len(rows) == 8
    for path in (folder / "images").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 80))
            assert image.info["comment"] == b"synthetic image by tlbatch"


def test_a_product_has_one_to_three_photographs_of_the_same_garment() -> None:
    made = photographs(2000, seed=1)
    times = Counter(each.product for each in made)
    assert set(times.values()) == {1, 2, 3}
    assert len(made) == 2000
    assert len({(each.product, each.garment) for each in made}) == len(times)
    assert len({each.name for each in made}) == 2000


def test_photographs_of_a_product_differ_in_the_room_and_share_the_cloth() -> None:
    striped = Garment("skirt", "yellow", "checked", "", "midi")
    first, second = (draw(0, 4, number, garment=striped, side=128).astype(int) for number in (1, 2))
    border = np.ones((128, 128), dtype=bool)
    border[16:-16, 16:-16] = False
    assert (np.abs(first - second)[border].max(axis=1) > 12).mean() > 0.8
    inks = [_inks_of(4, number) for number in (1, 2)]
    assert np.allclose(*inks, atol=0.12)
    assert not np.allclose(_inks_of(5, 1), inks[0], atol=0.12)


def _inks_of(product: int, number: int) -> Any:
    """Shares of red, green and blue in the middle of a plain skirt; lamps differ, so light itself is left out."""
    image = draw(0, product, number, garment=Garment("skirt", "green", "plain", "", "midi"), side=128)
    mean = image[56:72, 56:72].mean(axis=(0, 1))
    return mean / mean.sum() * 3


def test_all_words_occur_and_none_is_everywhere() -> None:
    garments = [each.garment for each in photographs(2000, seed=0)]
    for attribute, words in ATTRIBUTES.items():
        shares = Counter(getattr(garment, attribute) for garment in garments)
        assert set(shares) - {""} == set(words)
        assert min(shares.values()) / 2000 > 0.03
        assert max(shares.values()) / 2000 < 0.6
        assert max(shares.values()) > 1.5 * min(shares[word] for word in words)


def test_words_go_together_with_the_type() -> None:
    garments = [each.garment for each in photographs(3000, seed=0)]
    plain = {
        kind: np.mean([each.pattern == "plain" for each in garments if each.type == kind])
        for kind in ("dress", "trousers")
    }
    assert plain["trousers"] > plain["dress"] + 0.15


def test_the_attributes_can_be_read_from_every_phrase() -> None:
    rows = [row for seed in (0, 1) for row in csv.DictReader(_table(2000, seed).splitlines())]
    assert len({row["phrase"] for row in rows}) > 400
    for row in rows:
        assert _read(row["phrase"]) == Garment(*(row[name] for name in ATTRIBUTES)), row["phrase"]


def _table(num_images: int, seed: int) -> str:
    return plan_garments(Synthetic(num_images=num_images, seed=seed)).files["garments.csv"]


@pytest.mark.parametrize(
    ("garment", "words"),
    [
        (Garment("dress", "red", "floral", "sleeveless", "short"), "floral red short dress"),
        (Garment("dress", "red", "striped", "long-sleeved", "long"), "long-sleeved red striped long dress"),
        (Garment("shirt", "blue", "dotted", "short-sleeved", ""), "dotted blue short-sleeved shirt"),
        (Garment("shirt", "blue", "checked", "long-sleeved", ""), "blue checked shirt"),
        (Garment("coat", "black", "plain", "long-sleeved", "long"), "long black coat"),
        (Garment("coat", "black", "plain", "long-sleeved", "midi"), "black coat"),
        (Garment("trousers", "brown", "plain", "", "long"), "brown trousers"),
        (Garment("trousers", "brown", "floral", "", "short"), "short floral brown trousers"),
        (Garment("skirt", "pink", "checked", "", "midi"), "pink checked midi skirt"),
        (Garment("vest", "green", "striped", "sleeveless", ""), "green striped vest"),
    ],
)
def test_the_order_of_the_words_depends_on_the_garment(garment: Garment, words: str) -> None:
    assert phrase(garment) == words


def test_every_word_but_plain_is_said_somewhere() -> None:
    said = {word for row in csv.DictReader(_table(2000, 0).splitlines()) for word in row["phrase"].split()}
    assert said == {word for words in ATTRIBUTES.values() for word in words} - {"plain"}


@pytest.mark.parametrize("attribute", ["colour", "pattern", "sleeve", "length"])
@pytest.mark.parametrize("product", [1, 2, 3])
def test_another_word_changes_the_garment_and_nothing_else(attribute: str, product: int) -> None:
    other = {"colour": "blue", "pattern": "plain", "sleeve": "long-sleeved", "length": "long"}[attribute]
    changed = _changed(DRESS, replace(DRESS, **{attribute: other}), product=product)
    corners = [
        changed[rows, columns] for rows in (slice(10), slice(-10, None)) for columns in (slice(10), slice(-10, None))
    ]
    assert 0.01 < changed.mean() < 0.6
    assert not np.any(corners)


def test_a_longer_sleeve_changes_what_lies_beside_the_body_only() -> None:
    shirt = Garment("shirt", "white", "plain", "sleeveless", "")
    changed = _changed(shirt, replace(shirt, sleeve="long-sleeved"))
    middle = changed[48:96, 56:72]
    sides = changed[48:96, [*range(16, 44), *range(84, 112)]]
    assert middle.mean() < 0.02
    assert sides.mean() > 0.15


def test_a_longer_garment_is_narrower_in_proportion() -> None:
    skirt = Garment("skirt", "black", "plain", "", "short")
    shapes = []
    for length in LENGTHS_OF["skirt"]:
        red = replace(skirt, length=length, colour="red")
        mask = _changed(replace(red, colour="blue"), red)
        shapes.append(len(_rows_of(mask)) / len(_rows_of(mask.T)))
    assert shapes[0] < shapes[1] - 0.2 < shapes[2] - 0.4


def test_a_colour_histogram_alone_does_not_tell_the_garments_apart() -> None:
    made = photographs(500, seed=2)
    histograms = np.array(
        [_histogram(draw(2, each.product, each.number, garment=each.garment, side=64)) for each in made]
    )
    train, test = slice(0, 380), slice(380, None)
    shared = {each.product for each in made[train]} & {each.product for each in made[test]}
    away = np.abs(histograms[test, None] - histograms[None, train]).sum(axis=2)
    for attribute, most in (("type", 0.4), ("colour", 0.6), ("pattern", 0.55)):
        truth = np.array([getattr(each.garment, attribute) for each in made])
        agree = truth[train][away.argmin(axis=1)] == truth[test]
        fresh = np.array([each.product not in shared for each in made[test]])
        assert agree[fresh].mean() < most


def _histogram(image: Any) -> Any:
    cells = (image // 64).astype(int) @ (16, 4, 1)
    return np.bincount(cells.ravel(), minlength=64) / cells.size


def test_every_kind_of_garment_can_be_drawn_at_the_smallest_size() -> None:
    for kind in ATTRIBUTES["type"]:
        for sleeve in SLEEVES_OF.get(kind, ("",)):
            for length in LENGTHS_OF.get(kind, ("",)):
                images = [draw(0, 1, 1, garment=Garment(kind, colour, "plain", sleeve, length), side=64).astype(int)
                          for colour in ("white", "black")]  # fmt: skip
                share = (np.abs(images[0] - images[1]).max(axis=2) > 60).mean()
                assert 0.08 < share < 0.6, (kind, sleeve, length)


def test_the_command_writes_garments_and_refuses_the_folder_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "made"), "--kind", "garments", "--images", "5", "--side", "64", "--seed", "5"]
    monkeypatch.setattr("sys.argv", ["phantom", *words])
    main()
    assert _files(tmp_path / "made") == _files(_make(tmp_path / "other", num_images=5))
    with pytest.raises(SystemExit):
        main()
    assert "exists already" in capsys.readouterr().err


@pytest.fixture
def sharded(tmp_path: Path, tiny_job: Path) -> Callable[..., Manifest]:
    def work(*overrides: str) -> Manifest:
        keys = ["data.source=synthetic", "data.synthetic.kind=garments", "data.synthetic.num_images=300"]
        keys += ["data.synthetic.side=64", "data.group_pattern='^(\\d+)_'", *overrides]
        job = load_job([tiny_job], [f"workspace={tmp_path / 'space'}", *keys])
        paths: RunPaths = make_run(resolve(job)).paths
        shard.run(paths.folder)
        manifest = Run.load_submitted(paths.folder).set_paths.manifest
        return load_record(Manifest, manifest, missing="")

    return work


def test_a_job_reads_phrases_as_tags_and_attributes_as_classes(sharded: Callable[..., Manifest]) -> None:
    tags = sharded("data.label_column=phrase", "data.tag_separator=' '")
    assert (tags.tags, tags.synthetic, sum(tags.num_images.values()), tags.ceilings) == (True, True, 300, ())
    assert {"dress", "red", "floral"} <= set(tags.classes)
    types = sharded("data.label_column=type")
    assert (types.tags, types.synthetic, sum(types.num_images.values()), types.ceilings) == (False, True, 300, ())
    assert types.classes == tuple(sorted(ATTRIBUTES["type"]))
    assert types.columns == ("image", "type")


def test_a_column_that_there_is_not_is_named_with_those_that_there_are(sharded: Callable[..., Manifest]) -> None:
    with pytest.raises(UserError, match=r"no column level \(it has image, phrase, type, .*\); set data.label_column"):
        sharded("data.synthetic.num_images=4")
