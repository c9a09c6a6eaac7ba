"""Findings of a long stage that its later lives need not look for again."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from accelerate.utils import broadcast_object_list

from tlbatch.job.files import atomic_file, digest_of
from tlbatch.job.world import World

Finding = tuple[npt.NDArray[Any], float]
"""What was found, and the seconds it took."""


class Memory:
    """A folder with a file a finding, which rank 0 writes and reads; all ranks ask together."""

    def __init__(self, folder: Path, world: World) -> None:
        self._folder, self._world = folder, world

    def recall(self, key: object) -> Finding | None:
        """What an earlier life has found."""
        found: list[Finding | None] = [None]
        file = self._file(key)
        if self._world.is_main and file.exists():
            with np.load(file, allow_pickle=False) as data:
                found = [(data["found"], float(data["seconds"]))]
        broadcast_object_list(found)
        return found[0]

    def keep(self, key: object, found: npt.NDArray[Any], seconds: float) -> Finding:
        """Remember it, with the seconds as rank 0 saw them."""
        if self._world.is_main:
            with atomic_file(self._file(key)) as file:
                np.savez(file, found=found, seconds=np.array(seconds))
        (seen,) = broadcast_object_list([seconds])
        return found, seen

    def _file(self, key: object) -> Path:
        return self._folder / f"{digest_of(key)[:16]}.npz"
