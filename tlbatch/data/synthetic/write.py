"""Write a synthetic data set, atomically."""

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image

from tlbatch.config.data import Synthetic
from tlbatch.core.files import DRAFT_LASTS_S, atomic_file, atomic_folder, remove_drafts, write_text
from tlbatch.data.synthetic.garments.products import plan_garments
from tlbatch.data.synthetic.patients import plan_fundus
from tlbatch.data.synthetic.plan import Plan

log = logging.getLogger(__name__)
_COMMENT: Final = "synthetic image by tlbatch"
_QUALITY: Final = 90


def make(folder: Path, settings: Synthetic, *, workers: int = 1) -> None:
    """Write a synthetic data set; the same settings always give the same bytes.

    This holds for fixed versions of numpy and Pillow. The folder appears under its final name only when it is complete.

    Parameters
    ----------
    folder
        Must not exist yet.
    workers
        Number of worker processes; does not affect the result.

    Raises
    ------
    FileExistsError
        When the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or choose another folder")
    plan = plan_garments(settings) if settings.kind == "garments" else plan_fundus(settings)
    log.info("drawing %d synthetic images (%s) in %s", len(plan.pictures), settings.kind, folder)
    with atomic_folder(folder) as draft:
        (draft / plan.inside).mkdir()
        _draw_all(plan, draft / plan.inside, workers=workers)
        for name, text in plan.files.items():
            write_text(draft / name, text)


def make_once(folder: Path, settings: Synthetic, *, workers: int) -> None:
    """Write the data set of a job, unless it exists."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists():
            return
        remove_drafts(folder.parent, older_s=DRAFT_LASTS_S)
        make(folder, settings, workers=workers)


def _draw_all(plan: Plan, folder: Path, *, workers: int) -> None:
    paths = [folder / f"{name}.jpeg" for name in plan.pictures]
    if workers == 1:
        for path, draw in zip(paths, plan.pictures.values(), strict=True):
            _write(path, draw)
        return
    # Spawned: a fork would copy locks that threads of the caller hold.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(_write, paths, plan.pictures.values(), chunksize=8):
            pass


def _write(path: Path, draw: Callable[[], npt.NDArray[np.uint8]]) -> None:
    with atomic_file(path) as file:
        Image.fromarray(draw()).save(file, "JPEG", quality=_QUALITY, comment=_COMMENT)
    os.utime(path, (0, 0))  # a redrawn image has the same stamp
