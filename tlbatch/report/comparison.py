"""The comparison page of several runs, on one or several data sets."""

import logging
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

from tlbatch.config.base import Metric
from tlbatch.core.errors import UserError
from tlbatch.evaluation.leaderboard import Entry, compare_entries, entries_of
from tlbatch.report.page import SCORE_NAMES, render, warnings_of
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.report import Comparison, Report

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Domain:
    """Runs that can be compared, directly or through other runs, or a single run that cannot be compared."""

    reports: Sequence[Report]
    """Best first."""
    comparisons: Sequence[tuple[str, Comparison]] = ()
    """Name of the first run and its comparison with another, for all pairs that can be compared."""
    name: str = ""
    called: Mapping[str, str] = field(default_factory=dict)
    """Names of the runs in the overview of all domains, by run."""

    @property
    def metrics(self) -> list[Metric]:
        """Metrics by which the runs are ranked."""
        return sorted({one.metric for one in self.reports})

    @property
    def num_pairs(self) -> int:
        """Pairs of runs, comparable or not."""
        return len(self.reports) * (len(self.reports) - 1) // 2

    @property
    def same_test(self) -> bool:
        """Whether all runs were tested on the same images."""
        return len({one.test_digest for one in self.reports}) == 1

    @property
    def classes(self) -> list[str]:
        """Class names, if all runs share them; else empty."""
        names = [[one.name for one in report.classes] for report in self.reports]
        return names[0] if all(one == names[0] for one in names) else []

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """Warnings to show before the scores, with the runs that they apply to."""
        warned: dict[tuple[str, str], list[str]] = {}
        for one in self.reports:
            for warning in warnings_of(one):
                warned.setdefault(warning, []).append(one.run)
        return [
            (title if len(runs) == len(self.reports) else f"{title} ({', '.join(runs)})", text)
            for (title, text), runs in warned.items()
        ]

    @property
    def decided(self) -> Comparison | None:
        """Comparison of the best run with the second-best; None if they cannot be compared."""
        found = (one for first, one in self.comparisons if first == self.reports[0].run)
        return next((one for one in found if one.other == self.reports[1].run), None)

    @property
    def verdict(self) -> str:
        """Verdict of that comparison in words."""
        found = self.decided
        if found is None:
            return "no other run" if len(self.reports) == 1 else "not comparable"
        best, other = self.called[self.reports[0].run], self.called[found.other]
        sides = {"better": (best, other), "worse": (other, best)}
        return "{} better than {}".format(*sides[found.verdict]) if found.verdict in sides else found.verdict

    def of(self, contestant: str) -> Report | None:
        """Return the run of that name in the overview."""
        return next((one for one in self.reports if self.called[one.run] == contestant), None)


def write_comparison(path: Path, domains: Sequence[Domain]) -> None:
    """Write the page that compares runs, atomically."""
    contestants = dict.fromkeys(name for domain in domains for name in domain.called.values())
    template = "comparison.html.j2" if len(domains) == 1 else "domains.html.j2"
    render(path, template, {
        "domains": domains,
        "versus": domains[0],
        "contestants": list(contestants),
        "warnings": [(f"{one.name}: {title}", text) for one in domains for title, text in one.warnings],
    })  # fmt: skip


def named(domains: Sequence[Domain]) -> list[Domain]:
    """Name the domains and their runs after their jobs.

    The words that all job names begin with are dropped; a domain is named by the words that its jobs then share at the
    beginning, and a run by the rest. Where these names are empty or ambiguous, a domain is named by its metric and test
    set, and a run by its own name.
    """
    jobs = [[report.job.split("-") for report in domain.reports] for domain in domains]
    skipped = _num_alike(words for own in jobs for words in own)
    ends = [_num_alike(own) for own in jobs]
    rests = [["-".join(words[end:]) for words in own] for own, end in zip(jobs, ends, strict=True)]
    known = sorted({rest for own in rests for rest in own if rest}, key=len, reverse=True)
    found = []
    for domain, own, end, rest in zip(domains, jobs, ends, rests, strict=True):
        name = "-".join(own[0][min(skipped, end) : end])
        if len(own) == 1:
            rest = [next((one for one in known if name.endswith(f"-{one}")), "")]  # noqa: PLW2901
            name = name.removesuffix(f"-{rest[0]}")
        useful = all(rest) and len(set(rest)) == len(rest)
        runs = [report.run for report in domain.reports]
        called = dict(zip(runs, rest if useful else runs, strict=True))
        found.append(replace(domain, name=name, called=called))
    if len({domain.name for domain in found} - {""}) < len(found):
        return [replace(one, name=_test_set(one.reports[0])) for one in found]
    return found


def _num_alike(names: Iterable[Sequence[str]]) -> int:
    """Count the leading words that all names share."""
    names = list(names)
    columns = enumerate(zip(*names, strict=False))
    return next((at for at, words in columns if len(set(words)) > 1), min(map(len, names)))


def _test_set(report: Report) -> str:
    return f"{SCORE_NAMES[report.metric]} on {report.test_digest[:12]}"


def compare_runs(runs: Sequence[Path], name: str | None) -> None:
    """Write a page with pairwise comparisons of the runs, each on the images that both have.

    Raises
    ------
    UserError
        When a run has no report, or no two runs can be compared.
    """
    entries = sorted(entries_of(runs), key=lambda entry: entry.order)
    pairs = [(one, other, compare_entries(one, other)) for one, other in combinations(entries, 2)]
    compared = {(one.report.run, other.report.run): found for one, other, found in pairs if found is not None}
    if not compared:
        raise UserError(
            f"{runs[0]}: shares no labelled test images and classes with the other runs; name runs of one task"
        )
    path = runs[0].absolute().parent / f"{name or 'comparison'}.html"
    given = [RunPaths(folder).report for folder in runs]
    groups = sorted(_groups(entries, compared), key=lambda group: min(given.index(entry.folder) for entry in group))
    domains = named([_domain(group, compared) for group in groups])
    write_comparison(path, domains)
    log.info("wrote %s", path)
    for (first, other), found in compared.items():
        log.info("%s against %s: %s", first, other, found.verdict)
    for domain in domains if len(domains) > 1 else []:
        log.info("%s: %s", domain.name, domain.verdict)


def _groups(entries: Sequence[Entry], compared: Container[tuple[str, str]]) -> list[list[Entry]]:
    """Group the runs that are ranked together or can be compared, directly or through other runs."""
    groups: list[list[Entry]] = []
    for entry in entries:
        own = [
            group
            for group in groups
            if any(one.terms == entry.terms or (one.report.run, entry.report.run) in compared for one in group)
        ]
        groups = [group for group in groups if group not in own]
        groups.append([*(one for group in own for one in group), entry])
    return groups


def _domain(group: Sequence[Entry], compared: Mapping[tuple[str, str], Comparison]) -> Domain:
    best_first = sorted(group, key=lambda entry: entry.order)
    runs = {entry.report.run for entry in group}
    own = [(first, found) for (first, _), found in compared.items() if first in runs]
    return Domain([entry.report for entry in best_first], own)
