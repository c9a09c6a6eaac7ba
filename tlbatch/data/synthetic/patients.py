"""Plan a set of synthetic fundus photographs, in the layout of Kaggle's Diabetic Retinopathy Detection (2015).

No data comes from a person: images are drawn by `tlbatch.data.synthetic.fundus`, and labels are the drawn grades with
simulated grading errors of a known rate.
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from tlbatch.config.data import Synthetic
from tlbatch.core.files import to_csv
from tlbatch.core.typing import Ints
from tlbatch.data.synthetic.fundus import EyeSide, draw
from tlbatch.data.synthetic.lesions import BURDENS
from tlbatch.data.synthetic.paint import stream
from tlbatch.data.synthetic.plan import Plan

_NUM_GRADES: Final = len(BURDENS)
_EYE_SIDES: Final[tuple[EyeSide, EyeSide]] = ("left", "right")
_EYES_NOISE: Final = 0.4
"""Variation of severity between the two eyes of a patient, relative to that between patients."""
_README: Final = """\
Synthetic fundus photographs
============================

All of this is synthetic. No image shows a person's eye, no label comes from a doctor, and results on it say nothing
about real eyes. It was drawn by `python -m tlbatch.data.synthetic` to try out and to test software.

{num} images of {side} x {side} pixels, {images_per_grade} per label; seed {seed}.

trainLabels.csv  image, level: the label of the grader (0 none, 1 mild, 2 moderate, 3 severe, 4 proliferative)
truth.csv        image, level: the true grade, which was drawn
train/           PATIENT_left.jpeg and PATIENT_right.jpeg; the JPEG comment of each states that it is synthetic

The two eyes of a patient share pigment, vessels and camera, and have similar grades: split by patient. The grader is
off by one grade with probability {grader_noise}, so no classifier can agree with the labels better than truth.csv does.
"""


@dataclass(frozen=True)
class Photograph:
    """One image of the data set: the eye, the true grade to draw, and the grade on the label."""

    patient: int
    eye_side: EyeSide
    truth: int
    label: int

    @property
    def name(self) -> str:
        """Name of the image in both tables, and stem of its file name."""
        return f"{self.patient}_{self.eye_side}"


def plan_fundus(settings: Synthetic) -> Plan:
    """Plan trainLabels.csv and truth.csv (both image,level), train/<patient>_left.jpeg and _right.jpeg."""
    seed, side = settings.seed, settings.side
    photos = photographs(settings.images_per_grade, grader_noise=settings.grader_noise, seed=seed)
    header = ("image", "level")
    files = {
        "trainLabels.csv": to_csv(header, ((photo.name, photo.label) for photo in photos)),
        "truth.csv": to_csv(header, ((photo.name, photo.truth) for photo in photos)),
        "README.txt": _README.format(num=len(photos), **settings.model_dump()),
    }
    pictures = {one.name: partial(draw, seed, one.patient, one.eye_side, grade=one.truth, side=side) for one in photos}
    return Plan(pictures, "train", files)


def photographs(images_per_grade: int, *, grader_noise: float, seed: int) -> list[Photograph]:
    """List two eyes per patient, by patient number; with an odd total, the last patient has only a left eye.

    The eyes are ranked by a severity that the two eyes of a patient mostly share, and cut into five equal parts, so
    that each label has exactly as many images as wanted and labels are similar within a patient.
    """
    num = _NUM_GRADES * images_per_grade
    # Patients are numbered from 1; stream 0 is for the labels.
    rng = stream(seed, 0)
    severity = np.repeat(rng.standard_normal((num + 1) // 2), 2)[:num] + _EYES_NOISE * rng.standard_normal(num)
    labels = np.argsort(np.argsort(severity)) // images_per_grade
    truths = labels + _grader_errors(rng, labels, grader_noise)
    return [
        Photograph(1 + index // 2, _EYE_SIDES[index % 2], truth, label)
        for index, (truth, label) in enumerate(zip(truths.tolist(), labels.tolist(), strict=True))
    ]


def _grader_errors(rng: np.random.Generator, labels: Ints, grader_noise: float) -> Ints:
    steps = rng.choice([-1, 1], labels.size)
    steps[labels == 0] = 1
    steps[labels == _NUM_GRADES - 1] = -1
    return np.where(rng.random(labels.size) < grader_noise, steps, 0)
