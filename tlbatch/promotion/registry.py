"""The registry of a task: its champion, those before it, and what was decided every night.

A decision is written into the run first, then the champion is swapped in one rename, then the history gets its line:
whoever is killed between two of them goes on with the next.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from tlbatch.config.base import Metric
from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.files import space_named, sync_folder
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.permissions import folder_mode
from tlbatch.runs.records import Record, load_record
from tlbatch.runs.report import Comparison, Estimate
from tlbatch.runs.workspace import SetPaths

log = logging.getLogger(__name__)
Rule = Literal["first", "gain", "more data", "by hand", "none"]
_REMOVE = "remove it; that champion can then not be gone back to"
Event = Literal["promoted", "kept", "nothing new", "failed", "given up", "rolled back"]


class Guarded(Record):
    """A score that must not fall."""

    name: str
    champion: float | None
    challenger: float | None
    bound: float
    """Of the fall."""
    holds: bool


class RuleResult(Record):
    """What the job's rule makes of a run and the champion."""

    rule: Rule
    reasons: tuple[str, ...]
    comparison: Comparison | None = None
    """Of the run with the champion on tonight's test images."""
    level: float = 0.0
    """Probability that this look promotes a model that is no better."""
    lower: float | None = None
    """Of the gain, at that level."""
    slack: float = 0.0
    """What the gain's lower bound may lie below zero, where there are more data."""
    guards: tuple[Guarded, ...] = ()
    lost: float = 0.0
    """By promotions for more data, this one included, less the lower bounds of later gains, if it is promoted."""


class Decision(RuleResult):
    """``promotion.json`` of a run: whether its model takes the place of the champion, and why."""

    task: str
    run: str
    time: str
    champion: int | None
    """Number of the champion that it was compared with."""
    outcome: Literal["promoted", "kept"]
    look: int = 0
    """How often this champion has been challenged, this one included."""
    num_excluded: int = 0
    """Test images that one of the models was trained on, or that share a group with those; they are not compared."""
    num_train: int


class Champion(Record):
    """``champion.json``, and ``champions/<number>.json`` for each there has been."""

    number: int
    task: str
    run: str
    time: str
    rule: Rule
    previous: int | None
    """Number of the champion before it."""
    metric: Metric
    score: Estimate
    """On the test images of its own night."""
    num_train: int
    lost: float
    files: dict[str, str]
    """SHA-256 of all that it is made of, by path: from weights to predictions."""

    @property
    def name(self) -> str:
        """Of what the registry keeps of it."""
        return f"{self.number:04d}-{self.run}"


class Night(Record):
    """A line of ``history.jsonl``."""

    time: str
    event: Event
    run: str | None = None
    champion: int | None = None
    """Number of the champion when the night was over."""
    against: int | None = None
    """Number of the champion that was challenged."""
    reasons: tuple[str, ...] = ()
    num_images: int | None = None
    num_new: int | None = None
    seconds: Mapping[str, float] = {}
    """Of each stage."""
    is_marked: bool = False
    """Whether the new images have drifted."""
    index: str | None = None
    """Folder of the index of the images that there were."""
    seen: str | None = None
    """Digest of the source and the job, by which the next night knows whether anything is new."""
    asked: str | None = None
    """Digest of the job alone."""


class Pending(Record):
    """``night.json``: the night that is under way."""

    run: str
    seen: str
    asked: str
    """See `Night`."""
    began: str


@dataclass(frozen=True)
class Registry:
    """The folder of a task."""

    folder: Path

    @staticmethod
    def of(job: Job) -> "Registry":
        """Of a job whose workspace is absolute."""
        return Registry(job.workspace / "registry" / job.task)

    def make(self, *, private: bool) -> None:
        """Make the folder, if it is not there, for its owner alone or as the umask says."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(folder_mode(private=private))

    @property
    def champion_file(self) -> Path:
        """Which champion it is now."""
        return self.folder / "champion.json"

    @property
    def history_file(self) -> Path:
        """One JSON object a line."""
        return self.folder / "history.jsonl"

    @property
    def night_file(self) -> Path:
        """There, while a night is under way, or was when it was killed."""
        return self.folder / "night.json"

    @property
    def lock_file(self) -> Path:
        """There, while somebody holds the registry."""
        return self.folder / "lock.json"

    @property
    def statistics_file(self) -> Path:
        """Statistics of every image there has been."""
        return self.folder / "statistics.npz"

    def record_file(self, number: int) -> Path:
        """A champion there has been."""
        return self.folder / "champions" / f"{number:04d}.json"

    def model_folder(self, champion: Champion) -> Path:
        """Its exported model."""
        return self.folder / "models" / champion.name

    def index_of(self, champion: Champion) -> SetPaths:
        """The images that it knows; of the set, only index and manifest are kept here."""
        return SetPaths(self.folder / "indexes", champion.name)

    def run_of(self, champion: Champion) -> RunPaths:
        """Its run."""
        return RunPaths(self.folder.parent.parent / "runs" / champion.run)

    def page(self, run: str) -> Path:
        """Of the night that made a run."""
        return self.folder / "nights" / f"{run}.html"

    def champion(self) -> Champion | None:
        """The champion, if there is one.

        Raises
        ------
        UserError
            When its file is damaged, or is gone though the history names a champion.
        """
        way = f"copy that of the champion from {self.folder / 'champions'} to it"
        if self.champion_file.exists():
            return load_record(Champion, self.champion_file, missing="it was removed just now; try again", damaged=way)
        last = next((night.champion for night in reversed(self.history()) if night.champion is not None), None)
        if last is not None:
            raise UserError(f"{self.champion_file}: not there, though the history names champion {last}; {way}")
        return None

    def pending(self) -> Pending | None:
        """The night that is under way, or was when it was killed."""
        if not self.night_file.exists():
            return None
        return load_record(Pending, self.night_file, missing="try again", damaged="remove it, and run the night again")

    def recorded(self, number: int) -> Champion:
        """A champion there has been.

        Raises
        ------
        UserError
            When its record is gone.
        """
        missing = "python -m tlbatch.registry list names those that are there"
        return load_record(Champion, self.record_file(number), missing=missing, damaged=_REMOVE)

    def champions(self) -> list[Champion]:
        """All there have been and that are kept, the first first."""
        files = sorted((self.folder / "champions").glob("[0-9]*.json"))
        return [load_record(Champion, file, missing="try again", damaged=_REMOVE) for file in files]

    def ancestors(self, champion: Champion, most: int) -> list[Champion]:
        """Those before it, the nearest first, as far as they are kept."""
        found: list[Champion] = []
        while len(found) < most and champion.previous is not None and self.record_file(champion.previous).exists():
            champion = self.recorded(champion.previous)
            found.append(champion)
        return found

    def swap(self, champion: Champion) -> None:
        """Make it the champion, in one rename."""
        champion.save(self.record_file(champion.number))
        champion.save(self.champion_file)

    def history(self) -> list[Night]:
        """All nights, the first first; a line that a kill has cut off is passed over."""
        if not self.history_file.exists():
            return []
        found = []
        for number, line in enumerate(self.history_file.read_bytes().splitlines(), start=1):
            try:
                found.append(Night.model_validate_json(line))
            except ValidationError:
                log.warning("%s: line %d is no whole line and is passed over", self.history_file, number)
        return found

    def note(self, night: Night) -> None:
        """Append a line, on the disk when this returns."""
        line = night.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with space_named(self.history_file), self.history_file.open("ab") as file:
            cut_off = file.tell() and not self.history_file.read_bytes().endswith(b"\n")
            file.write(b"\n" + line if cut_off else line)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)

    def looks(self, champion: Champion, *, but: str) -> int:
        """How often a champion has been challenged since it was promoted, apart from by one run."""
        return len({
            night.run for night in self.history()
            if night.against == champion.number and night.event in ("promoted", "kept") and night.run != but
        })  # fmt: skip


def promotion_file(paths: RunPaths) -> Path:
    """What was decided on a run."""
    return paths.folder / "promotion.json"


def drift_file(paths: RunPaths) -> Path:
    """How the images that were new to a run differ from those before."""
    return paths.folder / "drift.json"


def review_file(paths: RunPaths) -> Path:
    """New images whose labels the champion contradicts."""
    return paths.folder / "review.csv"


def open_registry(folder: Path) -> Registry:
    """A registry that is there.

    Raises
    ------
    UserError
        When it is none.
    """
    registry = Registry(folder.absolute())
    if not (registry.champion_file.exists() or registry.history_file.exists()):
        raise UserError(f"{folder}: no registry; name a folder WORKSPACE/registry/TASK in which a night has ended")
    return registry
