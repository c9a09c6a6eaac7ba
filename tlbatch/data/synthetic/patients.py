"""Which synthetic fundus photographs there are, in the layout of Kaggle's Diabetic Retinopathy Detection (2015).

Nothing in it comes from a person: the pictures are drawn by `tlbatch.data.synthetic.fundus`, and the labels are those
of a grader whose errors are of a known size.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from tlbatch.data.synthetic.fundus import EyeSide, draw
from tlbatch.data.synthetic.lesions import BURDENS
from tlbatch.data.synthetic.paint import stream
from tlbatch.data.synthetic.plan import MIN_SIDE, Plan, require, table

_NUM_GRADES: Final = len(BURDENS)
_EYE_SIDES: Final[tuple[EyeSide, EyeSide]] = ("left", "right")
_EYES_NOISE: Final = 0.4
"""How far the two eyes of a patient lie apart, as a share of how far patients lie apart."""
_README: Final = """\
Synthetic fundus photographs
============================

All of this is synthetic. No image shows a person's eye, no label comes from a doctor, and nothing learnt from it says
anything about an eye. It was drawn by `python -m tlbatch.data.synthetic` to try and to test software.

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

    def draw(self, seed: int, side: int) -> npt.NDArray[np.uint8]:
        """RGB of shape (side, side, 3)."""
        return draw(seed, self.patient, self.eye_side, grade=self.truth, side=side)


def plan_fundus(*, images_per_grade: int, side: int, grader_noise: float, seed: int) -> Plan:
    """The files trainLabels.csv and truth.csv (both image,level), train/<patient>_left.jpeg and _right.jpeg.

    Parameters
    ----------
    images_per_grade
        Exact number of images of each label, 0 to 4; at least 1.
    side
        Height and width in pixels, at least 64.
    grader_noise
        Probability from 0 to 1 that the drawn grade is a neighbour of the label.
    seed
        Not negative; another seed draws other eyes.

    Raises
    ------
    ValueError
        When an argument is out of range.
    """
    require(side >= MIN_SIDE, "side", f"at least {MIN_SIDE} pixels", side)
    pictures = photographs(images_per_grade, grader_noise=grader_noise, seed=seed)
    readme = _README.format(
        num=len(pictures), side=side, images_per_grade=images_per_grade, seed=seed, grader_noise=grader_noise
    )
    header = ("image", "level")
    files = {
        "trainLabels.csv": table(header, ((photo.name, photo.label) for photo in pictures)),
        "truth.csv": table(header, ((photo.name, photo.truth) for photo in pictures)),
        "README.txt": readme,
    }
    return Plan(pictures, "train", files, seed, side)


def photographs(images_per_grade: int, *, grader_noise: float, seed: int) -> list[Photograph]:
    """Two eyes of each patient, by patient number; an odd total leaves the last patient with a left eye.

    The eyes are ranked by a severity that a patient's two eyes mostly share, and cut into five equal parts, which makes
    the labels exact in number and alike within a patient.

    Raises
    ------
    ValueError
        When an argument is out of range.
    """
    require(images_per_grade >= 1, "images_per_grade", "at least 1", images_per_grade)
    require(0 <= grader_noise <= 1, "grader_noise", "from 0 to 1", grader_noise)
    require(seed >= 0, "seed", "at least 0", seed)
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
