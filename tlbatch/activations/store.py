"""The store of activations at a cut: one row per view of an image, found by the hash of the image's content.

A folder holds blocks, each written once: the values in ``<name>.npy``, which is memory-mapped, and then their keys and
a checksum in ``<name>.npz``. Several runs may add blocks at the same time.
"""

import logging
import shutil
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import xxhash

from tlbatch.config.base import SplitName
from tlbatch.config.job import Job
from tlbatch.config.training import StoredAs
from tlbatch.core.errors import UserError
from tlbatch.core.files import DRAFT_LASTS_S, atomic_file, checksum, remove_drafts
from tlbatch.core.typing import Bools, Ints
from tlbatch.runs.workspace import cache_folder

log = logging.getLogger(__name__)
BLOCK_BYTES = 1 << 26
Keys = npt.NDArray[np.bytes_]
"""Keys of rows, (n,): hash of the image's content, followed by the number of the view."""
_TORCH: dict[StoredAs, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def view_keys(contents: npt.NDArray[np.bytes_], views: Sequence[int]) -> Keys:
    """Return the keys of all views of some images, (images * views,), grouped by image."""
    endings = np.array([f"{view:04x}".encode() for view in views])
    return np.char.add(contents[:, None], endings[None, :]).ravel()


def bytes_each(shape: Sequence[int], dtype: StoredAs) -> int:
    """Return the size of an activation in bytes."""
    return int(np.prod(shape)) * _TORCH[dtype].itemsize


@dataclass(frozen=True)
class ActivationStore:
    """A folder of activations of one shape."""

    folder: Path
    dtype: StoredAs

    def missing(self, keys: Keys) -> Bools:
        """Return a mask of the keys that are not stored, (n,)."""
        return self._places(keys) < 0

    def check(self, keys: Keys, *, part: int, parts: int) -> int:
        """Verify the checksums of the blocks that hold any of the keys, in one part of them; remove damaged blocks.

        Returns
        -------
        Number of blocks removed.
        """
        removed = 0
        for block in sorted(self.folder.glob("*.npz")):
            if int(block.stem, 16) % parts != part:
                continue
            of, digest = _read_keys(block)
            if of is not None and not np.isin(of, keys).any():
                continue
            numbers = block.with_suffix(".npy")
            if of is None or not numbers.exists() or checksum(numbers) != digest:
                log.warning("%s: checksum mismatch; its activations will be computed again", numbers)
                block.unlink(missing_ok=True)
                numbers.unlink(missing_ok=True)
                removed += 1
        return removed

    def remove_unfinished(self) -> None:
        """Remove leftovers of killed runs that are too old for any run to be still writing them."""
        remove_drafts(self.folder, older_s=DRAFT_LASTS_S)
        for numbers in self.folder.glob("*.npy"):
            if numbers.with_suffix(".npz").exists() or time.time() - numbers.stat().st_mtime < DRAFT_LASTS_S:
                continue
            numbers.unlink(missing_ok=True)

    def add(self, keys: Keys, activations: torch.Tensor) -> None:
        """Write a block: first the values, then their keys.

        Feature maps (n, c, h, w) are stored channels last, the layout in which the network reads them. Raises UserError
        if the disk is full.
        """
        name = xxhash.xxh3_64_hexdigest(keys.tobytes())
        path = self.folder / f"{name}.npy"
        rows = activations.to(_TORCH[self.dtype])
        rows = (rows.permute(0, 2, 3, 1) if rows.ndim == 4 else rows).contiguous()
        with atomic_file(path) as file:
            np.save(file, rows.view(torch.uint16).numpy() if self.dtype == "bf16" else rows.numpy())
        with atomic_file(path.with_suffix(".npz")) as file:
            np.savez(file, keys=keys, digest=np.array(checksum(path)))

    def find(self, keys: Keys) -> Ints:
        """Return the location of each key, (n,); UserError if one is missing."""
        places = self._places(keys)
        if (places < 0).any():
            raise UserError(
                f"{self.folder}: activations are missing; remove RUN/markers/cache.json and run python -m "
                "tlbatch.cache RUN again"
            )
        return places

    def _places(self, keys: Keys) -> Ints:
        """Return the block and row of each key, -1 where it is missing."""
        known = self._contents.keys
        if len(known) == 0:
            return np.full(len(keys), -1, np.int64)
        at = np.searchsorted(known, keys).clip(max=len(known) - 1)
        return np.where(known[at] == keys, self._contents.rows[at], -1)

    def read(self, rows: Ints) -> torch.Tensor:
        """Return the activations at some locations, (n, ...), in the same order."""
        blocks = self._contents.blocks
        numbers = rows >> 32
        found = np.empty((len(rows), *blocks[0].shape[1:]), blocks[0].dtype)
        for number in np.unique(numbers):
            here = numbers == number
            found[here] = blocks[int(number)][rows[here] & 0xFFFFFFFF]
        tensor = torch.from_numpy(found)
        tensor = tensor.view(torch.bfloat16) if self.dtype == "bf16" else tensor
        return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor

    @cached_property
    def _contents(self) -> "_Contents":
        blocks: list[npt.NDArray[np.generic]] = []
        keys, rows = [np.empty(0, "S36")], [np.empty(0, np.int64)]
        for block in sorted(self.folder.glob("*.npz")):
            of, _ = _read_keys(block)
            found = _mapped(block.with_suffix(".npy"))
            if of is not None and found is not None and len(found) == len(of):
                keys.append(of)
                rows.append((len(blocks) << 32) + np.arange(len(of)))
                blocks.append(found)
        every, first = np.unique(np.concatenate(keys), return_index=True)
        return _Contents(every, np.concatenate(rows)[first], tuple(blocks))


@dataclass(frozen=True)
class _Contents:
    keys: Keys
    """Sorted and distinct."""
    rows: Ints
    """Block in the upper 32 bits, row in the lower 32."""
    blocks: tuple[npt.NDArray[np.generic], ...]


def _mapped(file: Path) -> npt.NDArray[np.generic] | None:
    """Map the values of a block into memory; None if the file is missing or truncated."""
    try:
        found: npt.NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found


def _read_keys(block: Path) -> tuple[Keys | None, str]:
    try:
        with np.load(block, allow_pickle=False) as data:
            return data["keys"], str(data["digest"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None, ""


class BlockWriter:
    """Collects rows that a store lacks and writes them in blocks of about `BLOCK_BYTES`."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._keys: list[Keys] = []
        self._activations: list[torch.Tensor] = []
        self._bytes = 0

    def add_missing(self, keys: Keys, activations: torch.Tensor) -> None:
        """Collect the rows that the store does not have yet."""
        wanted = self._store.missing(keys)
        self._keys.append(keys[wanted])
        self._activations.append(activations[torch.from_numpy(wanted)])
        self._bytes += self._activations[-1].numel() * activations.element_size()
        if self._bytes >= BLOCK_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows as one block."""
        if sum(map(len, self._keys)):
            self._store.add(np.concatenate(self._keys), torch.cat(self._activations))
        self._keys, self._activations, self._bytes = [], [], 0


@dataclass(frozen=True)
class StoreGroup:
    """The activations at a cut: from one store, or the concatenated vectors of several."""

    stores: tuple[ActivationStore, ...]

    def missing(self, keys: Keys) -> Bools:
        """Return a mask of the keys that any of the stores lacks, (n,)."""
        return np.asarray(np.any([store.missing(keys) for store in self.stores], axis=0))

    def find(self, keys: Keys) -> Ints:
        """Return the location of each key in each store, (n, stores); UserError if one is missing."""
        return np.stack([store.find(keys) for store in self.stores], axis=1)

    def read(self, places: Ints) -> torch.Tensor:
        """Return the activations at some locations, (n, ...), in the same order."""
        parts = [store.read(rows) for store, rows in zip(self.stores, places.T, strict=True)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def open_stores(job: Job, names: Mapping[str, str], *, phase: int, split: SplitName) -> StoreGroup | None:
    """Open the stores of a phase and split, as `tlbatch.activations.fill.fill_cache` named them; None if not cached."""
    listed = names.get(f"phase.{phase}.{split}")
    if listed is None:
        return None
    return StoreGroup(tuple(ActivationStore(cache_folder(job, name), job.dtype) for name in listed.split(",")))


def free_bytes(folder: Path) -> int:
    """Return the free bytes on the disk of a folder, which may not exist yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
