"""The page that compares runs: one set of them on the same images, or several such sets and a table over all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tlbatch.job.report import Comparison, Report
from tlbatch.job.section import Metric
from tlbatch.report.page import SCORE_NAMES, render, warnings_of


@dataclass(frozen=True)
class Domain:
    """Runs that can be compared, directly or by way of others, or a run that can be compared with none."""

    reports: Sequence[Report]
    """The best first."""
    comparisons: Sequence[tuple[str, Comparison]] = ()
    """The name of the first run and what it is against another, for all pairs that can be compared."""
    name: str = ""
    called: Mapping[str, str] = field(default_factory=dict)
    """What the runs are called in the table over all domains."""

    @property
    def metrics(self) -> list[Metric]:
        """Those that rank the runs."""
        return sorted({one.metric for one in self.reports})

    @property
    def num_pairs(self) -> int:
        """Pairs of runs, comparable or not."""
        return len(self.reports) * (len(self.reports) - 1) // 2

    @property
    def same_test(self) -> bool:
        """Whether all were tested on the same images."""
        return len({one.test_digest for one in self.reports}) == 1

    @property
    def classes(self) -> list[str]:
        """Their names, where the runs share them."""
        names = [[one.name for one in report.classes] for report in self.reports]
        return names[0] if all(one == names[0] for one in names) else []

    @property
    def warnings(self) -> list[tuple[str, str]]:
        """What a reader must know before the scores, and of which runs."""
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
        """The best run against the next, where they can be compared."""
        found = (one for first, one in self.comparisons if first == self.reports[0].run)
        return next((one for one in found if one.other == self.reports[1].run), None)

    @property
    def verdict(self) -> str:
        """What that says, in words."""
        found = self.decided
        if found is None:
            return "no rival" if len(self.reports) == 1 else "not comparable"
        best, other = self.called[self.reports[0].run], self.called[found.other]
        sides = {"better": (best, other), "worse": (other, best)}
        return "{} better than {}".format(*sides[found.verdict]) if found.verdict in sides else found.verdict

    def of(self, contestant: str) -> Report | None:
        """The run of that name in the table."""
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
    """The domains with names for them and their runs, from those of their jobs.

    The words that all jobs begin with are left out; a domain is called what its jobs then begin with, and a run by the
    rest. Where that tells too little, it is the metric and the test set, and the name of the run.
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
    """How many words all of the names begin with."""
    names = list(names)
    columns = enumerate(zip(*names, strict=False))
    return next((at for at, words in columns if len(set(words)) > 1), min(map(len, names)))


def _test_set(report: Report) -> str:
    return f"{SCORE_NAMES[report.metric]} on {report.test_digest[:12]}"
