"""The registry of a task: its current and earlier champions, and the history of its nights.

A decision is written to the run first, then the champion is replaced in one rename, then the history gets its line. A
process killed between two of these steps continues with the next one when it is started again.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tlbatch.config.job import Job
from tlbatch.core.errors import UserError
from tlbatch.core.files import space_named, sync_folder
from tlbatch.promotion.records import Champion, Night, Pending
from tlbatch.runs.paths import RunPaths
from tlbatch.runs.permissions import folder_mode
from tlbatch.runs.records import load_record
from tlbatch.runs.workspace import SetPaths

log = logging.getLogger(__name__)
_REMOVE = "remove it; a rollback to that champion is then impossible"


@dataclass(frozen=True)
class Registry:
    """The registry folder of a task."""

    folder: Path

    @staticmethod
    def of(job: Job) -> "Registry":
        """Return the registry of a job whose workspace is absolute."""
        return Registry(job.workspace / "registry" / job.task)

    def make(self, *, private: bool) -> None:
        """Create the folder if it is missing, private to its owner or with the permissions of the umask."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            self.folder.chmod(folder_mode(private=private))

    @property
    def champion_file(self) -> Path:
        """Record of the current champion."""
        return self.folder / "champion.json"

    @property
    def history_file(self) -> Path:
        """All nights, one JSON object per line."""
        return self.folder / "history.jsonl"

    @property
    def night_file(self) -> Path:
        """Record of an unfinished night; it exists while a night runs or after it was killed."""
        return self.folder / "night.json"

    @property
    def lock_file(self) -> Path:
        """Lease on the registry; it exists while a night holds it."""
        return self.folder / "lock.json"

    def record_file(self, number: int) -> Path:
        """Return the record file of a champion."""
        return self.folder / "champions" / f"{number:04d}.json"

    def model_folder(self, champion: Champion) -> Path:
        """Return the folder of a champion's exported model."""
        return self.folder / "models" / champion.name

    def index_of(self, champion: Champion) -> SetPaths:
        """Return the set of a champion's images, of which only index and manifest are kept here."""
        return SetPaths(self.folder / "indexes", champion.name)

    def run_of(self, champion: Champion) -> RunPaths:
        """Return the run of a champion."""
        return RunPaths(self.folder.parent.parent / "runs" / champion.run)

    def page(self, run: str) -> Path:
        """Return the path of the page of a run's night."""
        return self.folder / "nights" / f"{run}.html"

    def champion(self) -> Champion | None:
        """Return the champion, if there is one.

        Raises UserError if its file is damaged, or is missing although the history names a champion.
        """
        way = f"restore it from the champion's record in {self.folder / 'champions'}"
        if self.champion_file.exists():
            return load_record(Champion, self.champion_file, missing="it was removed just now; try again", damaged=way)
        last = next((night.champion for night in reversed(self.history()) if night.champion is not None), None)
        if last is not None:
            raise UserError(f"{self.champion_file}: missing, but the history names champion {last}; {way}")
        return None

    def pending(self) -> Pending | None:
        """Return the unfinished night, if there is one."""
        if not self.night_file.exists():
            return None
        return load_record(Pending, self.night_file, missing="try again", damaged="remove it, and run the night again")

    def recorded(self, number: int) -> Champion:
        """Return a champion by its number; UserError if its record is missing."""
        missing = "python -m tlbatch.registry FOLDER list shows the champions that are kept"
        return load_record(Champion, self.record_file(number), missing=missing, damaged=_REMOVE)

    def champions(self) -> list[Champion]:
        """Return all champions whose records are kept, oldest first."""
        files = sorted((self.folder / "champions").glob("[0-9]*.json"))
        return [load_record(Champion, file, missing="try again", damaged=_REMOVE) for file in files]

    def ancestors(self, champion: Champion, most: int) -> list[Champion]:
        """Return up to ``most`` predecessors of a champion whose records are kept, latest first."""
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
        """Return all nights, oldest first; incomplete lines, as a kill can leave them, are skipped."""
        if not self.history_file.exists():
            return []
        found = []
        for number, line in enumerate(self.history_file.read_bytes().splitlines(), start=1):
            try:
                found.append(Night.model_validate_json(line))
            except ValidationError:
                log.warning("%s: line %d is incomplete and is skipped", self.history_file, number)
        return found

    def note(self, night: Night) -> None:
        """Append a line and sync it to disk."""
        line = night.model_dump_json(exclude_defaults=True).encode() + b"\n"
        with space_named(self.history_file), self.history_file.open("ab") as file:
            cut_off = file.tell() and not self.history_file.read_bytes().endswith(b"\n")
            file.write(b"\n" + line if cut_off else line)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(self.folder)

    def looks(self, champion: Champion, *, but: str) -> int:
        """Return how many runs other than ``but`` have challenged a champion."""
        return len({
            night.run for night in self.history()
            if night.against == champion.number and night.event in ("promoted", "kept") and night.run != but
        })  # fmt: skip


def promotion_file(paths: RunPaths) -> Path:
    """Return the file with the decision on a run."""
    return paths.folder / "promotion.json"


def drift_file(paths: RunPaths) -> Path:
    """Return the file with the drift of a run's new images."""
    return paths.folder / "drift.json"


def review_file(paths: RunPaths) -> Path:
    """Return the table of new images whose labels the champion contradicts."""
    return paths.folder / "review.csv"


def open_registry(folder: Path) -> Registry:
    """Open an existing registry; UserError if the folder is no registry."""
    registry = Registry(folder.absolute())
    if not (registry.champion_file.exists() or registry.history_file.exists()):
        raise UserError(f"{folder}: no registry; name a folder WORKSPACE/registry/TASK after its first night")
    return registry
