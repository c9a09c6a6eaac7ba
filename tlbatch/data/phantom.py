"""Draw a synthetic data set in the layout of Kaggle's Diabetic Retinopathy Detection (2015).

Nothing in it comes from a person: the pictures are drawn by `tlbatch.data.phantom_fundus`, and the labels are those of
a grader whose errors are of a known size. It is for trying and testing the whole chain without data, not for medicine.
"""

import argparse
import logging
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from filelock import FileLock
from PIL import Image

from tlbatch.data.phantom_fundus import MIN_SIDE, EyeSide, draw, stream
from tlbatch.data.phantom_lesions import BURDENS
from tlbatch.job.files import DRAFT_LASTS_S, atomic_file, atomic_folder, remove_drafts, write_text
from tlbatch.job.images import Phantom

__all__ = ["Photograph", "draw", "make", "make_once", "photographs"]

log = logging.getLogger(__name__)

_NUM_GRADES: Final = len(BURDENS)
_EYE_SIDES: Final[tuple[EyeSide, EyeSide]] = ("left", "right")
_COMMENT: Final = "synthetic image by tlbatch"
_QUALITY: Final = 90
_EYES_NOISE: Final = 0.4
"""How far the two eyes of a patient lie apart, as a share of how far patients lie apart."""

_README: Final = """\
Synthetic fundus photographs
============================

All of this is synthetic. No image shows a person's eye, no label comes from a doctor, and nothing learnt from it says
anything about an eye. It was drawn by `python -m tlbatch.data.phantom` to try and to test software.

{num} images of {side} x {side} pixels, {images_per_grade} of each label; seed {seed}.

trainLabels.csv  image, level: what the grader wrote (0 none, 1 mild, 2 moderate, 3 severe, 4 proliferative)
truth.csv        image, level: the grade that was drawn
train/           PATIENT_left.jpeg and PATIENT_right.jpeg; each says in its JPEG comment that it is synthetic

The two eyes of a patient share pigment, vessels and camera, and have similar grades: split by patient. The grader is
one grade off with probability {grader_noise}, so no classifier can agree with the labels better than truth.csv does.
"""


@dataclass(frozen=True)
class Photograph:
    """One image of the data set: whose eye, the grade to draw, and the grade the grader wrote."""

    patient: int
    eye_side: EyeSide
    truth: int
    label: int

    @property
    def name(self) -> str:
        """Name of the image in both tables, and of its file without the suffix."""
        return f"{self.patient}_{self.eye_side}"


def make(folder: Path, *, images_per_grade: int, side: int, grader_noise: float, seed: int, workers: int = 1) -> None:
    """Write a synthetic data set in the Kaggle DR 2015 layout; the same arguments always give the same bytes.

    That holds as long as the versions of numpy and Pillow are the same too.
    The files are trainLabels.csv and truth.csv (both image,level), train/<patient>_left.jpeg and _right.jpeg, and a
    README.txt that says how they were made. The folder appears under its name only when it is whole.

    Parameters
    ----------
    folder
        Must not exist yet.
    images_per_grade
        Exact number of images of each label, 0 to 4; at least 1.
    side
        Height and width in pixels, at least 64.
    grader_noise
        Probability from 0 to 1 that the drawn grade is a neighbour of the label.
    seed
        Not negative; another seed draws other eyes.
    workers
        Number of processes that draw; it changes nothing but the time taken.

    Raises
    ------
    FileExistsError
        When the folder exists.
    ValueError
        When an argument is out of range.
    """
    todo = photographs(images_per_grade, grader_noise=grader_noise, seed=seed)
    _require(side >= MIN_SIDE, "side", f"at least {MIN_SIDE} pixels", side)
    _require(workers >= 1, "workers", "at least 1", workers)
    if folder.exists():
        raise FileExistsError(f"{folder} exists already; remove it or choose another folder")
    readme = _README.format(
        num=len(todo), side=side, images_per_grade=images_per_grade, seed=seed, grader_noise=grader_noise
    )
    with atomic_folder(folder) as draft:
        (draft / "train").mkdir()
        _draw_all(todo, folder=draft / "train", seed=seed, side=side, workers=workers)
        write_text(draft / "trainLabels.csv", _table((photo.name, photo.label) for photo in todo))
        write_text(draft / "truth.csv", _table((photo.name, photo.truth) for photo in todo))
        write_text(draft / "README.txt", readme)


def make_once(folder: Path, phantom: Phantom, *, workers: int) -> None:
    """Write the data set that a job asks for, unless it is there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists():
            return
        remove_drafts(folder.parent, older_s=DRAFT_LASTS_S)
        log.info("drawing %d synthetic fundus photographs in %s", _NUM_GRADES * phantom.images_per_grade, folder)
        make(
            folder,
            images_per_grade=phantom.images_per_grade,
            side=phantom.side,
            grader_noise=phantom.grader_noise,
            seed=phantom.seed,
            workers=workers,
        )


def photographs(images_per_grade: int, *, grader_noise: float, seed: int) -> list[Photograph]:
    """Two eyes of each patient, by patient number; an odd total leaves the last patient with a left eye.

    The eyes are ranked by a severity that a patient's two eyes mostly share, and cut into five equal parts, which makes
    the labels exact in number and alike within a patient.

    Raises
    ------
    ValueError
        When an argument is out of range.
    """
    _require(images_per_grade >= 1, "images_per_grade", "at least 1", images_per_grade)
    _require(0 <= grader_noise <= 1, "grader_noise", "from 0 to 1", grader_noise)
    _require(seed >= 0, "seed", "at least 0", seed)
    num = _NUM_GRADES * images_per_grade
    # Patients count from 1, which leaves stream 0 to the labels.
    rng = stream(seed, 0)
    severity = np.repeat(rng.standard_normal((num + 1) // 2), 2)[:num] + _EYES_NOISE * rng.standard_normal(num)
    labels = np.argsort(np.argsort(severity)) // images_per_grade
    truths = labels + _grader_errors(rng, labels, grader_noise)
    return [
        Photograph(1 + index // 2, _EYE_SIDES[index % 2], truth, label)
        for index, (truth, label) in enumerate(zip(truths.tolist(), labels.tolist(), strict=True))
    ]


def _grader_errors(
    rng: np.random.Generator, labels: npt.NDArray[np.int64], grader_noise: float
) -> npt.NDArray[np.int64]:
    steps = rng.choice([-1, 1], labels.size)
    steps[labels == 0] = 1
    steps[labels == _NUM_GRADES - 1] = -1
    return np.where(rng.random(labels.size) < grader_noise, steps, 0)


def _draw_all(todo: Sequence[Photograph], *, folder: Path, seed: int, side: int, workers: int) -> None:
    write = partial(_write, folder=folder, seed=seed, side=side)
    if workers == 1:
        for photograph in todo:
            write(photograph)
        return
    # Spawned, because the caller may have threads, which a fork would leave behind with their locks held.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for _ in pool.map(write, todo, chunksize=8):
            pass


def _write(photograph: Photograph, *, folder: Path, seed: int, side: int) -> None:
    pixels = draw(seed, photograph.patient, photograph.eye_side, grade=photograph.truth, side=side)
    path = folder / f"{photograph.name}.jpeg"
    with atomic_file(path) as file:
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, comment=_COMMENT)
    os.utime(path, (0, 0))  # drawn again, it is still the same source


def _table(rows: Iterable[tuple[str, int]]) -> str:
    return "image,level\n" + "".join(f"{name},{level}\n" for name, level in rows)


def _require(holds: bool, name: str, wanted: str, value: float) -> None:  # noqa: FBT001
    if not holds:
        raise ValueError(f"{name} must be {wanted} (got {value})")


def main() -> None:
    """``python -m tlbatch.data.phantom FOLDER``."""
    parser = argparse.ArgumentParser(prog="python -m tlbatch.data.phantom", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write; must not exist yet")
    parser.add_argument("--images-per-grade", type=int, default=200, help="images of each label (default: 200)")
    parser.add_argument("--side", type=int, default=384, help="height and width in pixels (default: 384)")
    parser.add_argument("--grader-noise", type=float, default=0.1, help="share of labels one off (default: 0.1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other eyes (default: 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw (default: 1)")
    given = parser.parse_args()
    try:
        make(
            given.folder,
            images_per_grade=given.images_per_grade,
            side=given.side,
            grader_noise=given.grader_noise,
            seed=given.seed,
            workers=given.workers,
        )
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
