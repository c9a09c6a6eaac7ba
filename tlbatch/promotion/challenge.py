"""Comparison of challenger and champion on the same test images."""

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from tlbatch.core.errors import UserError
from tlbatch.core.text import counted
from tlbatch.core.typing import Bools
from tlbatch.data.index import Index, own_groups, read_index
from tlbatch.evaluation.leaderboard import Entry
from tlbatch.evaluation.predictions import Predictions
from tlbatch.promotion.records import Champion, Decision
from tlbatch.promotion.registry import Registry
from tlbatch.promotion.rescoring import manifest_of_champion, rescoring_of, rescoring_paths
from tlbatch.promotion.rule import Context, PairedTest, apply_rule, first_of
from tlbatch.runs.records import SPLITS, load_record
from tlbatch.runs.report import Report
from tlbatch.runs.run import Run


@dataclass(frozen=True)
class Challenge:
    """A tested run and the champion, if there is one."""

    run: Run
    champion: Champion | None
    look: int = 0
    """How many times the champion has been challenged, including this time."""
    before: tuple[Champion, ...] = ()
    """Earlier champions from which the run's weights may descend."""

    def decided(self) -> Decision:
        """Decide by the job's rule whether the run is promoted.

        Raises UserError if a run is incomplete, or the champion has to predict these test images first.
        """
        terms, report = self.run.job.nightly, self.report
        leaks = [
            f"{counted(number, 'image')} of {pair}" for pair, number in sorted(report.audit.across.items()) if number
        ]
        if self.champion is None:
            rule, reasons = first_of(terms, report.n, leaks)
            return self.decision(outcome="promoted" if rule == "first" else "kept", rule=rule, reasons=reasons)
        classes = self.run.load_manifest().classes
        theirs = manifest_of_champion(self._registry, self.champion).classes
        if classes != theirs:
            why = (
                f"the champion has the classes {', '.join(theirs)}, this run {', '.join(classes)}: scores cannot be "
                "compared; python -m tlbatch.promote RUN --override REASON makes it the champion"
            )
            return self.decision(outcome="kept", rule="none", reasons=(why,))
        one, two, num_excluded = self._in_common(self.champion)
        if not len(one.keys):
            why = "there are no test images on which both models can be compared"
            return self.decision(outcome="kept", rule="none", reasons=(why,), num_excluded=num_excluded)
        paired = PairedTest(
            metric=self.run.job.metric,
            challenger=one.decided,
            champion=two.decided,
            name=self.champion.run,
            classes=classes,
            questions=self.run.job.report.questions,
            seed=self.run.job.seed,
        )
        context = Context(self.look, self.num_train, self.champion.num_train, self.champion.lost, leaks)
        found = apply_rule(terms, paired, context)
        outcome = "kept" if found.rule == "none" else "promoted"
        return self.decision(outcome=outcome, num_excluded=num_excluded, **dict(found))

    def decision(self, **found: object) -> Decision:
        """Return a decision on this challenge with the given fields."""
        fields: dict[str, object] = {
            "task": self.run.job.task,
            "run": self.run.name,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "champion": self.champion and self.champion.number,
            "look": self.look if self.champion else 0,
            "num_train": self.num_train,
        }
        return Decision.model_validate(fields | found)

    @property
    def report(self) -> Report:
        """Report of the challenger."""
        return load_record(Report, self.run.paths.report_json, missing="run reduce first: python -m tlbatch.reduce RUN")

    @property
    def num_train(self) -> int:
        """Number of training images of the challenger."""
        return self.run.load_manifest().num_images["train"]

    @property
    def _registry(self) -> Registry:
        return Registry.of(self.run.job)

    def _in_common(self, champion: Champion) -> tuple[Predictions, Predictions, int]:
        """Return both predictions on test images that neither was trained on, and the number of excluded images."""
        one, two = Entry(self.run.paths.report, self.report).tested(), self._of_champion(champion).tested()
        assert isinstance(one, Predictions), "a challenger predicts classes"
        assert isinstance(two, Predictions), "a champion predicts classes"
        index = read_index(self.run.set_paths.index_file)
        test = index[index["split"] == SPLITS.index("test")]
        known = _known_to(index, test)
        for other in (champion, *self.before):
            file = self._registry.index_of(other).index_file
            if other is champion or file.exists():
                known |= _known_to(read_index(file), test)
        excluded = np.isin(one.keys, test["key"][known])
        one = one.where(~excluded)
        _, mine, theirs = np.intersect1d(one.keys, two.keys, return_indices=True)
        one, two = one.where(mine), two.where(theirs)
        if not np.array_equal(one.labels, two.labels):
            raise UserError(
                f"{self.run.folder}: its test labels differ from those of the champion's predictions; run the night "
                "again"
            )
        return one, two, int(excluded.sum())

    def _of_champion(self, champion: Champion) -> Entry:
        """Return the champion's report on tonight's test images."""
        again = rescoring_of(self.run, champion)
        paths = self._registry.run_of(champion) if again is None else rescoring_paths(self.run.paths)
        way = f"python -m tlbatch.promote {shlex.quote(str(self.run.folder))}"
        if again and not (paths.record.exists() and paths.load_submitted().checkpoint_of == again.checkpoint_of):
            raise UserError(f"{paths.folder}: the champion has not predicted these test images; run {way}")
        return Entry(paths.report, load_record(Report, paths.report_json, missing=way))


def _known_to(index: Index, test: Index) -> Bools:
    """Mask (n,): test images whose content or group was in the training or validation split of a model."""
    known = index[index["split"] != SPLITS.index("test")]
    joined, own = np.isin(test["group"], known["group"]), np.isin(own_groups(test), own_groups(known))
    return np.asarray(joined | own | np.isin(test["content"], known["content"]))
