"""Names of domains and their runs, and the table over all of them."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import sample_report as sample

from tlbatch.report.comparison import Domain, named, write_comparison
from tlbatch.runs.report import Estimate, Report

AHEAD = Estimate(value=0.05, low=0.01, high=0.09)


def runs(domain: str, *contestants: str, **changed: Any) -> list[Report]:
    return [
        sample.report(run=f"talk-{domain}-{one}", job=f"table-{domain}-{one}", test_digest=domain * 9, **changed)
        for one in contestants
    ]


def domain(reports: list[Report], *verdicts: str) -> Domain:
    """The first run against the second, the third, ..."""
    pairs = [
        (reports[0].run, sample.comparison(other=other.run, verdict=verdict, difference=AHEAD, p_value=0.0123))
        for other, verdict in zip(reports[1:], verdicts, strict=False)
    ]
    return Domain(reports, pairs)


def called(*domains: Domain) -> list[tuple[str, list[str]]]:
    return [(one.name, list(one.called.values())) for one in named(domains)]


def rows(path: Path) -> list[list[str]]:
    """The cells of the first table, without what is small print."""
    body = re.search(r"<tbody>(.*?)</tbody>", path.read_text("utf-8"), re.DOTALL)
    assert body
    found = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row, re.DOTALL) for row in body[1].split("</tr>")[:-1]]
    return [[" ".join(re.sub("<[^>]*>", " ", cell).split()) for cell in row] for row in found]


def test_domains_and_their_runs_are_called_by_what_the_names_of_their_jobs_add() -> None:
    eyes, clothes = domain(runs("eyes", "kernel-svm", "network")), domain(runs("clothes", "network", "kernel-svm"))
    lonely = domain(runs("flowers", "kernel-svm"))
    assert called(eyes, clothes, lonely) == [
        ("eyes", ["kernel-svm", "network"]), ("clothes", ["network", "kernel-svm"]), ("flowers", ["kernel-svm"])
    ]  # fmt: skip


def test_where_names_of_jobs_tell_too_little_they_are_those_of_runs_and_test_sets() -> None:
    same = [sample.report(run=run, job="eyes", test_digest="a" * 64) for run in ("first", "second")]
    other = [sample.report(run=run, job="eyes", test_digest="b" * 64) for run in ("third", "fourth")]
    assert called(domain(same), domain(other)) == [
        ("quadratic kappa on aaaaaaaaaaaa", ["first", "second"]),
        ("quadratic kappa on bbbbbbbbbbbb", ["third", "fourth"]),
    ]
    clothes = [one.model_copy(update={"job": "clothes"}) for one in other]
    assert called(domain(same), domain(clothes)) == [("eyes", ["first", "second"]), ("clothes", ["third", "fourth"])]


def test_the_table_has_a_row_a_domain_with_the_best_against_the_next(tmp_path: Path) -> None:
    eyes = domain(runs("eyes", "network", "svm"), "better")
    clothes = domain(runs("clothes", "svm", "network", "trees", metric="accuracy"), "not different", "better")
    lonely = domain(runs("flowers", "svm"))
    page = tmp_path / "comparison.html"
    write_comparison(page, named([eyes, clothes, lonely]))
    kappa, accuracy = "0.7363 (0.6563 to 0.8083)", "0.6300 (0.5600 to 0.6930)"
    difference = "+0.0500 (+0.0100 to +0.0900)"
    assert rows(page) == [
        ["eyes quadratic kappa", "network better than svm", kappa, kappa, "not run", difference, "0.0123", "103"],
        ["clothes accuracy", "no difference shown", *[accuracy] * 3, difference, "0.0123", "103"],
        ["flowers quadratic kappa", "no other run", "not run", kappa, "not run", "none", "none", "103"],
    ]
    text = page.read_text("utf-8")
    assert [text.count(f'<section id="domain-{number}"') for number in range(1, 5)] == [1, 1, 1, 0]
    assert text.count("<h3>Pairwise comparisons</h3>") == 2
    assert "eyes: Unreadable test images" in text


def test_a_run_that_is_worse_on_the_images_of_both_is_not_called_the_better_one() -> None:
    (one,) = named([domain(runs("eyes", "svm", "network"), "worse")])
    assert one.verdict == "network better than svm"
    (apart,) = named([domain(runs("eyes", "svm", "network"))])
    assert apart.verdict == "not comparable"


def test_one_domain_needs_no_table_over_all(tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    write_comparison(page, named([domain(runs("eyes", "network", "svm"), "better")]))
    text = page.read_text("utf-8")
    assert "Comparison of 2 runs" in text
    assert "Overview" not in text
