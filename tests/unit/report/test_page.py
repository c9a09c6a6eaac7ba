"""The page of a run says what its report says, and nothing that stands in a report can do more than be read."""

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).parent))

import sample_report as sample

from tlbatch.report import confusion_matrix, plots
from tlbatch.report.checklist import checklist
from tlbatch.report.comparison import Domain, write_comparison
from tlbatch.report.page import MOST_REJECTED, Mistake, Picture, Shown, write_page
from tlbatch.runs.manifest import Audit
from tlbatch.runs.report import Estimate, Report

HOSTILE = "<script>alert(1)</script>\"'`--></style></title></svg>]]>{{ 7*7 }}{% x %}\n\r\t\x00\x1b\x7f\u202e\ud800&amp;"
BLOCKS = {"p", "th", "td", "tr", "dt", "dd", "li", "div", "section", "h2", "h3"}
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Tags with their attributes, and visible text, of which that in SVG is kept apart."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = self.drawn = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag in BLOCKS else ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "svg" in self.open:
            self.drawn += data + "\n"
        elif "style" not in self.open:
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


def page(tmp_path: Path, shown: Shown) -> str:
    write_page(tmp_path / "page.html", shown)
    return (tmp_path / "page.html").read_bytes().decode()


def bare_page(tmp_path: Path, report: Report | None = None, **changed: Any) -> str:
    none: dict[str, Any] = {"rival": None, "epochs": [], "mistakes": [], "rejected": [], "pictures": []}
    return page(tmp_path, sample.shown(report or sample.bare(), **(none | changed)))


def poisoned(value: Any) -> Any:
    """The same with hostile text for all text that is free."""
    if isinstance(value, BaseModel):
        return value.model_copy(
            update={
                key: poisoned(own)
                for key, own in value
                if key not in ("metric", "verdict", "scenario", "ensemble", "views")
            }
        )
    if isinstance(value, dict):
        keys = {key: key for key in value}
        free = not keys.keys() & ({"train", "val", "test"} | set(sample.SCORES))
        return {f"{HOSTILE}{key}" if free else key: poisoned(own) for key, own in value.items()}
    if isinstance(value, tuple):
        return tuple(poisoned(one) for one in value)
    return HOSTILE + value if isinstance(value, str) else value


def harmless(text: str) -> Page:
    found = Page(text)
    assert not found.open
    assert {tag for tag, _ in found.tags} & {"script", "iframe", "object", "embed", "base", "form"} == set()
    assert not [name for _, attrs in found.tags for name in attrs if name.startswith("on")]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", text)
    assert "{{" in found.text
    return found


def test_no_name_in_a_report_can_be_more_than_text(tmp_path: Path) -> None:
    report = poisoned(sample.report(audit=leaking()))
    mistake = Mistake(HOSTILE, HOSTILE, HOSTILE, 0.5, sample.picture(1), sample.picture(2))
    epochs = [{"phase": HOSTILE, "epoch": HOSTILE, "loss": 1.0}, {"phase": 1, "epoch": 0, "loss": "no number"}]
    shown = Shown(
        report,
        poisoned(sample.comparison()),
        epochs,
        [mistake],
        [(HOSTILE, HOSTILE)],
        [Picture(HOSTILE, HOSTILE, HOSTILE, sample.picture(1, kind="PNG"))],
        [(HOSTILE, HOSTILE)],
        sample.feature_map([HOSTILE]),
    )
    clean = Page(page(tmp_path, sample.shown(sample.report(audit=leaking()), mistakes=[mistake])))
    found = harmless(page(tmp_path, shown))
    assert {tag for tag, _ in found.tags} == {tag for tag, _ in clean.tags}
    assert "<script>alert(1)</script>" in found.drawn
    assert "\\x00" in found.text
    assert "\\ud800" in found.text


def test_no_name_in_a_comparison_can_be_more_than_text(tmp_path: Path) -> None:
    path = tmp_path / "comparison.html"
    write_comparison(path, [Domain([poisoned(sample.report())] * 2, [(HOSTILE, poisoned(sample.comparison()))])])
    harmless(path.read_bytes().decode())


def test_the_page_says_which_duplicates_were_listed_only(tmp_path: Path) -> None:
    audit = leaking()
    plain = Page(page(tmp_path, sample.shown(sample.report(audit=audit)))).words
    assert "similar, not equal" not in plain
    assert "listed only" not in plain
    audit = audit.model_copy(update={"num_similar": 7, "num_large": 31})
    text = Page(page(tmp_path, sample.shown(sample.report(audit=audit)))).words
    assert "Of these, kept as similar, not equal 7 images" in text
    assert "In clusters above 5% of the set, listed only 31 images" in text


def leaking() -> Audit:
    across = {"test in train": 3, "test in train or val": 3, "test in val": 0, "val in train": 0}
    return Audit(num_exact=4, num_near=2, num_contradicting=1, across=across, num_moved=0, num_dropped=0)


@pytest.mark.parametrize("report", [sample.report(), sample.many(2), sample.many(33), sample.many(70), sample.bare()])
def test_a_page_is_well_formed_and_asks_for_nothing_outside(tmp_path: Path, report: Report) -> None:
    text = page(tmp_path, sample.shown(report))
    found = Page(text)
    assert not found.open
    assert "default-src 'none'" in text
    targets = [attrs[name] for _, attrs in found.tags for name in ("src", "href") if attrs.get(name)]
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for target in targets:
        assert target is not None
        assert target.startswith("data:") or target.removeprefix("#") in ids
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert "None" not in found.text
    assert "nan" not in found.drawn


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    assert page(tmp_path, sample.shown()) == page(tmp_path, sample.shown())


def numbers_of(value: Any) -> Iterator[float]:
    if isinstance(value, BaseModel):
        yield from numbers_of(dict(value))
    elif isinstance(value, dict):
        yield from numbers_of(list(value.values()))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from numbers_of(one)
    elif isinstance(value, int | float):
        yield value
    elif isinstance(value, str):
        yield from map(float, re.findall(r"\d+\.\d+", value))


def test_every_number_with_four_decimals_is_one_of_the_report(tmp_path: Path) -> None:
    shown = sample.shown()
    found = Page(page(tmp_path, shown))
    given = [*numbers_of(shown.report), *numbers_of(shown.rival), *(one.probability for one in shown.mistakes)]
    known = {f"{abs(number):.4f}" for number in given}
    known |= {f"{number:.4g}" for number in numbers_of(list(shown.epochs))}
    said = re.findall(r"(?<![\d.])\d+\.\d{4}(?!\d)", found.text + found.drawn)
    assert len(said) > 300
    assert set(said) <= known


def test_the_headline_says_score_interval_images_groups_and_rival(tmp_path: Path) -> None:
    words = Page(page(tmp_path, sample.shown())).words
    for said in (
        "Quadratic kappa 0.7363 95 % confidence interval 0.6563 to 0.8083",
        "Test images 103", "Groups 98", "Highest attainable quadratic kappa 0.9312",
        "No difference shown against idrid-ridge-20260113-2210",
        "+0.0442 (\N{MINUS SIGN}0.0117 to +0.0981) on 103 images",
        "Unreadable test images. 2 test images could not be read",
        "Bootstrap by patient/group, 10,000 replicates", "Proportions of 0 or 1 get Wilson intervals",
    ):  # fmt: skip
        assert said in words, said


def test_a_leak_and_synthetic_images_are_said_before_anything_else(tmp_path: Path) -> None:
    report = sample.report(audit=leaking(), synthetic=True, num_errors=0, num_rejected=0)
    words = Page(page(tmp_path, sample.shown(report))).words
    before = words[: words.index("All scores on the test images")]
    assert "Data leakage: the scores are not reliable. A duplicate, a near-duplicate or " in before
    assert "the scores say nothing about real images" in before
    assert "is in training for 3 test images." in before
    assert "Unreadable" not in before


def test_where_nothing_is_known_the_page_says_so(tmp_path: Path) -> None:
    words = Page(bare_page(tmp_path)).words
    for said in (
        "undefined (no images)", "There is no other run", "Calibration was not assessed", "There were no epochs",
        "Commit not known", "Hosts not known", "rate not known",
    ):  # fmt: skip
        assert said in words, said
    assert "Confusion matrix" not in words
    assert "Most confident errors" not in words


def test_an_ensemble_refers_to_its_members(tmp_path: Path) -> None:
    report = sample.report(members=("a-1", "b-2"), ensemble="log-mean", checkpoint=None, counts={}, num_images={})
    words = Page(bare_page(tmp_path, report)).words
    assert "log-mean of a-1, b-2" in words
    assert "The ensemble members were trained separately" in words


def test_numbers_stand_in_the_matrix_up_to_20_classes_and_no_matrix_is_drawn_of_more_than_60(tmp_path: Path) -> None:
    for number, written, drawn in ((2, True, True), (20, True, True), (21, False, True), (61, False, False)):
        text = bare_page(tmp_path, sample.many(number))
        assert ('class="heat"' in text) == drawn
        assert ('count middle"' in text) == written
        assert ("is omitted" in text) != drawn


def test_a_matrix_tells_each_cell_and_each_class() -> None:
    drawn = str(confusion_matrix.draw(((8, 2), (0, 0)), ("cat", "dog")))
    assert "cat predicted as dog: 2 of 10 (20 %)" in drawn
    assert "cat: 8 of 10 correct, 2 predicted as dog; dog: 0 of 0 correct." in drawn
    assert 'fill-opacity="0.800"' in drawn


def test_an_epoch_that_ran_again_counts_once_and_what_is_unknown_leaves_a_gap() -> None:
    lines: list[dict[str, Any]] = [
        {"phase": 0, "epoch": 0, "loss": 9.0}, {"phase": 0, "epoch": 0, "loss": 3.0},
        {"phase": 0, "epoch": 1, "loss": float("nan")}, {"phase": 1, "epoch": 0, "loss": 1.0},
    ]  # fmt: skip
    (drawn,) = plots.training(lines, "accuracy")
    assert "3 epochs in 2 phases; training from 3 to 1, lowest 1, highest 3." in drawn
    path = re.search(r'stroke-dasharray="none" d="(M[^"]+)"', drawn)
    assert path is not None
    assert path[1].count("M") == 2
    assert plots.training([], "accuracy") == []
    assert plots.training([{"phase": 0, "epoch": 0, "loss": None}], "accuracy") == []
    assert len(plots.training([{"loss": 1.5e24, "val_accuracy": 0}], "accuracy")) == 2


def test_a_forest_shows_scores_without_interval_or_value() -> None:
    rows = [("a", Estimate(value=0.5), True), ("b", Estimate(value=None, undefined="no images"), False)]
    drawn = plots.forest("accuracy", rows)
    assert "a: 0.5000; b: undefined." in drawn
    assert drawn.count("<circle") == 1
    assert "nan" not in plots.forest("accuracy", rows[1:])


def test_candidates_have_standard_errors_and_the_chosen_one_stands_out() -> None:
    drawn = plots.candidates("accuracy", sample.strategy())
    assert "fine-tuned after blocks.4: 0.7284 \N{PLUS-MINUS SIGN} 0.0213; " in drawn
    assert re.findall('class="tick end strong"[^>]*>([^<]+)', drawn) == ["fine-tuned after blocks.4"]


def test_probes_are_drawn_by_stage_with_a_line_for_each_fit() -> None:
    drawn = plots.probes("accuracy", sample.strategy())
    assert "ridge: stem 0.3011 \N{PLUS-MINUS SIGN} 0.0213, " in drawn
    assert "flatten undefined; neighbours: stem 0.2872" in drawn
    assert re.findall(r"rotate\(-90\)\">([^<]+)", drawn) == ["stem", "blocks.4", "pool", "flatten", "accuracy"]
    assert drawn.count("<circle") == drawn.count(" whisker") == 6
    undefined = sample.strategy().profile[3:4]
    assert "nan" not in plots.probes("accuracy", sample.strategy().model_copy(update={"profile": undefined}))


def test_a_feature_map_has_a_legend_up_to_18_classes_and_tooltips_for_more() -> None:
    for number, is_named in ((1, True), (18, True), (19, False), (300, False)):
        found = sample.feature_map([f"class {at}" for at in range(number)])
        drawn = plots.feature_map(found)
        assert drawn.count("<text") == (number if is_named else 0)
        assert drawn.count("M") - drawn.count("M14 0") == 400, "a mark for each image"
        assert len(set(re.findall('fill:([^"]+)" d="M[^m]*(m[^M"]*)', drawn))) >= min(number, 18)
        assert f"<title>{found.labels.count(0)} of class 0</title>" in drawn
        assert len(drawn) < 40_000
    one = plots.feature_map(plots.FeatureMap([(0.0, 0.0)], [0], ["a", "b"]))
    assert "1 image: 1 of a, 0 of b." in one
    assert "nan" not in one


def test_pictures_stand_below_the_feature_map_with_their_captions(tmp_path: Path) -> None:
    found = Page(page(tmp_path, sample.shown()))
    assert "Feature map: test images in the feature space" in found.words
    assert "First-layer filters 16 of 32 filters, 3 x 3." in found.words
    assert "More figures" not in Page(bare_page(tmp_path, feature_map=None)).words


def test_fifty_rejected_images_are_named_and_the_rest_counted(tmp_path: Path) -> None:
    text = page(tmp_path, sample.shown())
    assert text.count("truncated file") == MOST_REJECTED == 50
    assert "And 3 more images." in text
    assert "<details>" not in bare_page(tmp_path)


def test_the_checklist_leaves_open_what_no_report_knows() -> None:
    items = checklist(sample.report(), num_mistakes=7, rival=sample.comparison())
    filled = {item.topic: item.found for item in items if item.found}
    assert filled["Performance in subgroups; fairness"] == "by camera, sex"
    assert filled["Comparison with another model"].startswith(
        "idrid-ridge-20260113-2210: no difference shown (0.0442 ("
    )
    assert {"Funding and competing interests", "Ethics approval and informed consent"} <= {item.topic for item in items}
    assert not {"Funding and competing interests", "External validation"} & set(filled)
    bare = checklist(sample.bare(), num_mistakes=0, rival=None)
    assert [item.topic for item in bare] == [item.topic for item in items]


def test_limits_follow_from_the_numbers(tmp_path: Path) -> None:
    words = Page(page(tmp_path, sample.shown())).words
    assert "Subgroup camera = Topcon NW400 has a lower quadratic kappa" in words
    assert "Lowest recall: class mild, 0.2000" in words
    assert "Canon CR-2, the" not in words


def test_a_comparison_ranks_runs_and_names_pairs_that_cannot_be_compared(tmp_path: Path) -> None:
    reports = [sample.report(), sample.report(run="second"), sample.report(run="third", metric="accuracy", score=0.63)]
    path = tmp_path / "comparison.html"
    domains = [Domain(reports, [(reports[0].run, sample.comparison(other="second", verdict="better"))])]
    write_comparison(path, domains)
    words = Page(path.read_text()).words
    assert "Comparison of 3 runs" in words
    assert f"{reports[0].run} second better +0.0442" in words
    assert "2 of 3 pairs could not be compared" in words
    assert "Rejected images." in words
    before = path.read_bytes()
    write_comparison(path, domains)
    assert path.read_bytes() == before
    write_comparison(path, [Domain([*reports[:2], sample.report(run="third", num_rejected=0)])])
    assert f"Rejected images ({reports[0].run}, second)." in Page(path.read_text()).words


def test_a_leak_into_two_splits_is_said_of_each_and_of_both(tmp_path: Path) -> None:
    across = {"test in train": 3, "test in train or val": 4, "test in val": 1, "val in train": 0}
    report = sample.report(audit=leaking().model_copy(update={"across": across}))
    words = Page(page(tmp_path, sample.shown(report))).words
    each = (
        "is in training for 3 test images; in training or validation for 4 test images; in validation for 1 test image"
    )
    assert words.count(each) == 2
    assert "No image, near-duplicate" not in words
