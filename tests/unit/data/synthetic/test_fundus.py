import csv
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tlbatch.config.data import Synthetic
from tlbatch.data.synthetic import patients
from tlbatch.data.synthetic.__main__ import main
from tlbatch.data.synthetic.fundus import draw
from tlbatch.data.synthetic.patients import photographs
from tlbatch.data.synthetic.write import make, make_once


def _make(folder: Path, *, workers: int = 1, **changes: Any) -> Path:
    make(folder, Synthetic(**({"images_per_grade": 3, "side": 64, "seed": 5} | changes)), workers=workers)
    return folder


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _levels(table: Path) -> dict[str, int]:
    with table.open(newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == ["image", "level"]
        return {row["image"]: int(row["level"]) for row in reader}


def _lesion_share(patient: int, grade: int) -> float:
    healthy, ill = (draw(0, patient, "left", grade=each, side=192).astype(int) for each in (0, grade))
    return float((np.abs(ill - healthy).max(axis=2) > 25).mean())


def _brightest_column(eye_side: Any) -> int:
    # The mean of several eyes, because a reflex may outshine the disc in one of them.
    mean = np.mean([draw(0, patient, eye_side, grade=0, side=128) for patient in range(1, 13)], axis=(0, 3))
    blurred = Image.fromarray(mean.astype(np.uint8)).filter(ImageFilter.GaussianBlur(4))
    return int(np.asarray(blurred).argmax()) % 128


def test_the_number_of_workers_does_not_change_a_byte(tmp_path: Path) -> None:
    assert _files(_make(tmp_path / "one")) == _files(_make(tmp_path / "two", workers=2))


def test_another_seed_draws_other_eyes() -> None:
    first, second = (draw(seed, 1, "left", grade=0, side=64) for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_an_eye_does_not_depend_on_what_was_drawn_before_it() -> None:
    alone = draw(0, 9, "right", grade=3, side=64)
    draw(0, 8, "left", grade=4, side=64)
    assert np.array_equal(alone, draw(0, 9, "right", grade=3, side=64))


def test_the_folder_has_the_layout_of_kaggle(tmp_path: Path) -> None:
    folder = _make(tmp_path / "made")
    labels, truths = _levels(folder / "trainLabels.csv"), _levels(folder / "truth.csv")
    assert list(labels) == list(truths) == [f"{1 + i // 2}_{('left', 'right')[i % 2]}" for i in range(15)]
    assert {path.name for path in folder.iterdir()} == {"trainLabels.csv", "truth.csv", "train", "README.txt"}
    assert {path.name for path in (folder / "train").iterdir()} == {f"{name}.jpeg" for name in labels}
    assert "All of this is synthetic" in (folder / "README.txt").read_text()


def test_each_file_is_an_image_of_the_asked_size_that_says_it_is_synthetic(tmp_path: Path) -> None:
    for path in (_make(tmp_path / "made", images_per_grade=2, side=80) / "train").iterdir():
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (80, 80))
            assert image.info["comment"] == b"synthetic image by tlbatch"


@pytest.mark.parametrize("images_per_grade", [1, 7, 200])
def test_every_label_occurs_exactly_as_often_as_asked(images_per_grade: int) -> None:
    labels = [each.label for each in photographs(images_per_grade, grader_noise=0.3, seed=1)]
    assert np.bincount(labels).tolist() == [images_per_grade] * 5


@pytest.mark.parametrize("grader_noise", [0.0, 0.1, 0.4, 1.0])
def test_the_grader_errs_by_one_grade_and_as_often_as_asked(grader_noise: float) -> None:
    made = photographs(1000, grader_noise=grader_noise, seed=2)
    errors = np.array([abs(each.truth - each.label) for each in made])
    assert errors.max() <= 1
    assert errors.mean() == pytest.approx(grader_noise, abs=0.025)
    assert {each.truth for each in made} == set(range(5))


def test_the_two_eyes_of_a_patient_have_similar_grades() -> None:
    labels = np.array([each.label for each in photographs(200, grader_noise=0.1, seed=3)]).reshape(-1, 2)
    assert 0.7 < np.corrcoef(labels.T)[0, 1] < 0.95


def test_the_disc_lies_on_the_nasal_side() -> None:
    assert _brightest_column("left") < 48
    assert _brightest_column("right") > 80


def test_the_image_is_black_outside_the_round_field() -> None:
    image = draw(0, 1, "left", grade=2, side=96)
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert not image[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert image[48, 48].any()


def test_a_higher_grade_draws_more_lesions() -> None:
    shares = [np.mean([_lesion_share(patient, grade) for patient in range(1, 9)]) for grade in range(5)]
    assert shares[0] == 0
    assert 0 < shares[1] < shares[2] < shares[3]
    assert shares[4] > shares[2]


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(FileExistsError, match="made exists already; remove it or choose another"):
        _make(tmp_path / "made")
    assert not list((tmp_path / "made").iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images-per-grade", 1),
        ("side", 63),
        ("grader-noise", -0.1),
        ("grader-noise", float("nan")),
        ("seed", -1),
        ("workers", 0),
    ],
)
def test_an_error_names_the_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: float
) -> None:
    monkeypatch.setattr("sys.argv", ["synthetic", str(tmp_path / "made"), f"--{name}={value}"])
    with pytest.raises(SystemExit):
        main()
    assert re.search(rf"error: (max_)?{name.replace('-', '_')}", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_when_drawing_fails_midway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_at_patient_3(seed: int, patient: int, *eye_side: Any, **options: Any) -> Any:
        if patient == 3:
            raise MemoryError
        return draw(seed, patient, *eye_side, **options)

    monkeypatch.setattr(patients, "draw", fail_at_patient_3)
    with pytest.raises(MemoryError):
        _make(tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_what_a_kill_has_left_of_a_drawing_goes_when_it_is_old(tmp_path: Path) -> None:
    left = tmp_path / ".0123456789ab.abcdefgh"
    (left / "train").mkdir(parents=True)
    os.utime(left, (0, 0))
    make_once(tmp_path / "drawn", Synthetic(images_per_grade=2, side=64), workers=1)
    assert not left.exists()


def test_the_command_writes_the_folder_and_refuses_it_the_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "made"), "--images-per-grade", "2", "--side", "64", "--seed", "5", "--grader-noise", "0"]
    monkeypatch.setattr("sys.argv", ["phantom", *words])
    main()
    assert _levels(tmp_path / "made" / "trainLabels.csv") == _levels(tmp_path / "made" / "truth.csv")
    with pytest.raises(SystemExit):
        main()
    assert "exists already" in capsys.readouterr().err
