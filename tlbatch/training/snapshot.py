"""Snapshots: everything that a training resumes from, either complete or absent."""

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
"""Tensors and plain values by name, nested, as ``torch.load(weights_only=True)`` returns them."""
_RECORD = "snapshot.json"
_SHARED = "shared.pt"
_KEPT = 2
"""Snapshots that are kept: the last one, and one to fall back on."""
_FIRST_S = 10.0
"""Seconds from the start of a training to its first snapshot, which measures early how long saving takes."""


class TrainingPosition(Record):
    """Position of a training between two steps."""

    phase: int
    epoch: int = 0
    """Number within the phase."""
    step: int = 0
    """Number within the epoch."""
    position: int = 0
    """Samples of the epoch that all ranks together have processed."""

    @property
    def order(self) -> tuple[int, int, int]:
        """Sort key: later positions compare greater."""
        return self.phase, self.epoch, self.position

    def __str__(self) -> str:
        return f"phase {self.phase} epoch {self.epoch} step {self.step}"


class SnapshotRecord(Record):
    """``snapshot.json``, the last file written into a snapshot: the snapshot is complete if it is there."""

    inputs: dict[str, str]
    """Digest of each input of the training by name."""
    place: TrainingPosition
    under_way: bool
    """Whether the phase has started, so that optimiser, schedule and averages are saved too."""
    world_size: int
    without_gain: int
    """Epochs since validation last improved."""
    seconds: float
    """Time spent on the epoch so far."""
    best: Best | None
    """The best checkpoint by validation so far."""
    metrics: str
    """Content of metrics.jsonl when saving."""
    checksums: dict[str, str]
    """Checksum of every file, by name."""
    digest: str = ""
    """Digest of all other fields."""

    def signed(self) -> "SnapshotRecord":
        """Return the same record with its digest filled in."""
        return self.model_copy(update={"digest": digest_of(self.model_dump(mode="json", exclude={"digest"}))})


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read from disk."""

    record: SnapshotRecord
    shared: StateDict
    """State that is the same on all ranks."""
    own: StateDict
    """State of this rank; of rank 0 if the number of ranks has changed."""


class SnapshotManager:
    """Writes snapshots of a training and finds the last one.

    A snapshot is written into ``step-<phase>.<epoch>.<step>.tmp``: the shared state by rank 0, its own state by each
    rank, then the record with the checksums. It is renamed once everything is on disk, and only then are older ones
    removed.
    """

    def __init__(
        self, folder: Path, inputs: Mapping[str, str], world: World, *, every_min: float, limits: Mapping[str, float]
    ) -> None:
        """Prepare to save.

        Parameters
        ----------
        limits
            Maximum seconds for a snapshot, by the warning to log when it takes longer.
        """
        self._folder, self._inputs, self._world = folder, dict(inputs), world
        self._every_s = 60 * every_min
        self._last = time.monotonic()
        self._limits = dict(limits)
        self._knows_s = False

    def is_due(self) -> bool:
        """Return whether the next snapshot is due; the first comes early, to measure how long saving takes."""
        wait_s = self._every_s if self._knows_s else min(self._every_s, _FIRST_S)
        return time.monotonic() - self._last > wait_s

    def save(
        self, record: SnapshotRecord, shared: Callable[[], StateDict], own: StateDict, accelerator: Accelerator
    ) -> None:
        """Write a snapshot, all ranks together.

        Parameters
        ----------
        record
            Record of the snapshot; checksums, inputs and world size are filled in here.
        shared
            Returns the state that rank 0 writes; called there only.
        own
            State that each rank writes for itself.

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
        self._last, self._knows_s = time.monotonic(), True
        took = self._last - began
        log.info("saved at %s in %.1f s", place, took)
        for follows, limit_s in list(self._limits.items()):
            if took > limit_s:
                log.warning("saving took %.0f s, but only %.0f s are available: %s", took, limit_s, follows)
                del self._limits[follows]

    def _keep(self, draft: Path, path: Path) -> None:
        sync_folder(draft)
        if path.exists():  # damaged, or from an earlier attempt that took another path
            shutil.rmtree(path)
        draft.rename(path)
        sync_folder(self._folder)
        for _, old in _complete(self._folder)[_KEPT:]:
            shutil.rmtree(old)

    def latest(self) -> Snapshot | None:
        """Return the last complete snapshot, or None; all ranks must call together.

        Raises UserError if the training started with another job or data set.
        """
        found = [self._choose() if self._world.is_main else None]
        (chosen,) = broadcast_object_list(found)
        if chosen is None:
            return None
        record = load_record(SnapshotRecord, chosen / _RECORD, missing="submit again")
        changed = sorted(name for name, value in record.inputs.items() if self._inputs.get(name) != value)
        if changed:
            raise UserError(
                f"{chosen}: the training started with another {' and '.join(changed)}; submit the job again for a "
                "new run folder"
            )
        self._knows_s = True  # logged by the attempt that saved it
        same = record.world_size == self._world.world_size
        own = _own_name(self._world.rank if same else 0)
        return Snapshot(record, _read(chosen / _SHARED), _read(chosen / own))

    def _choose(self) -> Path | None:
        """Return the last complete snapshot; remove incomplete ones, lest one of another attempt sorts before it."""
        for draft in self._folder.glob("*.tmp"):
            shutil.rmtree(draft)
        for record, path in _complete(self._folder):
            files = ((path / name, digest) for name, digest in record.checksums.items())
            wrong = [file.name for file, digest in files if not file.is_file() or checksum(file) != digest]
            if not wrong:
                return path
            log.warning("%s: %s is damaged; using an older snapshot, if there is one", path, wrong[0])
            shutil.rmtree(path)
        return None

    def remove(self) -> None:
        """Remove all snapshots: the training has finished."""
        if self._world.is_main:
            shutil.rmtree(self._folder, ignore_errors=True)


def _complete(folder: Path) -> list[tuple[SnapshotRecord, Path]]:
    """Return the snapshots with a readable record, latest first; remove the others."""
    found = []
    for path in folder.glob("step-*"):
        if path.suffix == ".tmp":
            continue
        try:
            record = load_record(SnapshotRecord, path / _RECORD, missing="the snapshot is incomplete")
            if record != record.signed():
                raise UserError(f"{path / _RECORD}: damaged; using an older snapshot, if there is one")  # noqa: TRY301
        except UserError as error:
            log.warning("skipped a snapshot: %s", error)
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
