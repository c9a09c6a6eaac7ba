"""Snapshots: all that a training goes on from, whole or not there."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from tlbatch.core.errors import UserError
from tlbatch.core.files import atomic_file, checksum, digest_of, sync_folder
from tlbatch.runs.records import Best, Record, load_record
from tlbatch.runs.world import World

log = logging.getLogger(__name__)
StateDict = dict[str, Any]
"""Tensors and plain values by name, nested: what ``torch.load(weights_only=True)`` gives back."""
_RECORD = "snapshot.json"
_SHARED = "shared.pt"
_KEPT = 2
_FIRST_S = 10.0
"""Into a training, to learn how long saving takes while there is time to tell."""
"""Snapshots that stay: the last one, and one to fall back on."""


class TrainingPosition(Record):
    """How far a training has come, between two steps."""

    phase: int
    epoch: int = 0
    """In the phase."""
    step: int = 0
    """In the epoch."""
    position: int = 0
    """Samples of the epoch that all ranks together have taken."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Later places are greater."""
        return self.phase, self.epoch, self.position


class SnapshotRecord(Record):
    """``snapshot.json``, written last into a snapshot of a training: it is complete if this is there."""

    inputs: dict[str, str]
    """Digest of each input of the training by name."""
    place: TrainingPosition
    under_way: bool
    """Whether the phase has begun, and optimiser, schedule and averages are there."""
    world_size: int
    without_gain: int
    """Epochs since validation was better."""
    seconds: float
    """Spent on the epoch so far."""
    best: Best | None
    """The checkpoint that validation has chosen so far."""
    metrics: str
    """metrics.jsonl as it was."""
    checksums: dict[str, str]
    """Of every file, by name."""
    digest: str = ""
    """Of all this."""

    def signed(self) -> "SnapshotRecord":
        """The same with its digest."""
        return self.model_copy(update={"digest": digest_of(self.model_dump(mode="json", exclude={"digest"}))})


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read back."""

    record: SnapshotRecord
    shared: StateDict
    """The same for all ranks."""
    own: StateDict
    """What this rank had; with another number of ranks than now, what rank 0 had."""


class SnapshotManager:
    """Writes snapshots of a training and finds the last one.

    A snapshot is written into ``step-<phase>.<epoch>.<step>.tmp``: what is the same on all ranks by rank 0, what is not
    by each, then the record with the checksums; it gets its name when all is on the disk, and only then older ones go.
    """

    def __init__(
        self,
        folder: Path,
        inputs: Mapping[str, str],
        world: World,
        *,
        every_min: float,
        limits: Mapping[str, float],
    ) -> None:
        """Begin to save.

        Parameters
        ----------
        limits
            Seconds that a snapshot must not take, by what follows when it does.
        """
        self._folder, self._inputs, self._world = folder, dict(inputs), world
        self._every_s = 60 * every_min
        self._last = time.monotonic()
        self._limits = dict(limits)
        self._knows_s = False

    def is_due(self) -> bool:
        """Whether the job asks for one by now; the first comes early, to learn how long it takes."""
        wait_s = self._every_s if self._knows_s else min(self._every_s, _FIRST_S)
        return time.monotonic() - self._last > wait_s

    def save(
        self, record: SnapshotRecord, shared: Callable[[], StateDict], own: StateDict, accelerator: Accelerator
    ) -> None:
        """Write a snapshot, all ranks together.

        Parameters
        ----------
        record
            What it is of; checksums, inputs and world size are filled in here.
        shared
            Gives what rank 0 writes; asked there only.
        own
            What every rank writes for itself.

        Raises
        ------
        UserError
            When the disk is full.
        """
        began = time.monotonic()
        place = record.place
        path = self._folder / f"step-{place.phase}.{place.epoch}.{place.step}"
        draft = path.with_name(f"{path.name}.tmp")
        if self._world.is_main:
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
        accelerator.wait_for_everyone()
        names = {_own_name(self._world.rank): own}
        if self._world.is_main:
            names[_SHARED] = shared()
        written = [(name, _write(draft / name, state)) for name, state in names.items()]
        everyone: list[tuple[str, str]] = gather_object(written)
        if self._world.is_main:
            whole = {"inputs": self._inputs, "world_size": self._world.world_size, "checksums": dict(everyone)}
            record.model_copy(update=whole).signed().save(draft / _RECORD)
            self._keep(draft, path)
        self._last = time.monotonic()
        self._knows_s = True
        took = self._last - began
        log.info("saved at %s in %.1f s", position_text(place), took)
        for follows, limit_s in list(self._limits.items()):
            if took > limit_s:
                log.warning("to save took %.0f s, and there are %.0f s: %s", took, limit_s, follows)
                del self._limits[follows]

    def _keep(self, draft: Path, path: Path) -> None:
        sync_folder(draft)
        if path.exists():  # damaged, or of a life that went on differently
            shutil.rmtree(path)
        draft.rename(path)
        sync_folder(self._folder)
        for _, old in _complete(self._folder)[_KEPT:]:
            shutil.rmtree(old)

    def latest(self) -> Snapshot | None:
        """The last snapshot that is whole, or nothing; all ranks together.

        Raises
        ------
        UserError
            When the training began with another job or set.
        """
        found = [self._choose() if self._world.is_main else None]
        (chosen,) = broadcast_object_list(found)
        if chosen is None:
            return None
        record = load_record(SnapshotRecord, chosen / _RECORD, missing="submit again")
        changed = sorted(name for name, value in record.inputs.items() if self._inputs.get(name) != value)
        if changed:
            raise UserError(
                f"{chosen}: the training has begun with another {' and '.join(changed)}; submit the job again for a "
                "new run folder"
            )
        self._knows_s = True  # it was said in the life that saved it
        same = record.world_size == self._world.world_size
        own = _own_name(self._world.rank if same else 0)
        return Snapshot(record, _read(chosen / _SHARED), _read(chosen / own))

    def _choose(self) -> Path | None:
        """The last that is whole; what is not is removed, so that none of another life stands before it."""
        for draft in self._folder.glob("*.tmp"):
            shutil.rmtree(draft)
        for record, path in _complete(self._folder):
            wrong = [name for name, value in record.checksums.items() if not _is_whole(path / name, value)]
            if not wrong:
                return path
            log.warning("%s: %s is damaged; an older snapshot is taken, or none", path, wrong[0])
            shutil.rmtree(path)
        return None

    def remove(self) -> None:
        """Remove all: the training has finished."""
        if self._world.is_main:
            shutil.rmtree(self._folder, ignore_errors=True)


def position_text(place: TrainingPosition) -> str:
    """A place in words."""
    return f"phase {place.phase} epoch {place.epoch} step {place.step}"


def _complete(folder: Path) -> list[tuple[SnapshotRecord, Path]]:
    """Snapshots with a record that can be read, the last first; others are removed."""
    found = []
    for path in folder.glob("step-*"):
        if path.suffix == ".tmp":
            continue
        try:
            record = load_record(SnapshotRecord, path / _RECORD, missing="it is half written")
            if record != record.signed():
                raise UserError(f"{path / _RECORD}: is damaged; an older snapshot is taken, or none")  # noqa: TRY301
        except UserError as error:
            log.warning("passed over: %s", error)
            shutil.rmtree(path)
            continue
        found.append((record, path))
    return sorted(found, key=lambda one: one[0].place.order, reverse=True)


def _own_name(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _write(path: Path, state: StateDict) -> str:
    with atomic_file(path) as file:
        torch.save(state, file)
    return checksum(path)


def _read(path: Path) -> StateDict:
    state: StateDict = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _is_whole(path: Path, wanted: str) -> bool:
    return path.is_file() and checksum(path) == wanted
