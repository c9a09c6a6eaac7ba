from pathlib import Path

import numpy as np
import pytest

from tlbatch.config.report import Reporting
from tlbatch.core.errors import UserError
from tlbatch.evaluation.external_leaderboards import Named, place, placed, read_board, submission
from tlbatch.metrics.confusion import Classified

# Scores of the public leaderboard around the places that the VGG-16 project named (2016): ranks as in a file of four.
BOARD = [0.76, 0.745, 0.72, 0.51]


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (0.74558, "between ranks 1 and 2 of 4"),
        (0.73, "between ranks 2 and 3 of 4"),
        (0.8, "above rank 1 of 4"),
        (0.1, "below rank 4 of 4"),
        (0.72, "tied with rank 3 of 4"),
    ],
)
def test_a_score_falls_between_two_ranks(score: float, says: str) -> None:
    assert place(score, BOARD) == says


def test_equal_scores_of_others_are_named_together() -> None:
    assert place(0.5, [0.9, 0.5, 0.5, 0.5, 0.1]) == "tied with ranks 2 to 4 of 5"


def board(folder: Path, name: str = "board.csv") -> Path:
    rows = "\n".join(f'{number},"Team, {number}",2015-07-01 10:00:00,{score}' for number, score in enumerate(BOARD))
    file = folder / name
    file.write_text(f"TeamId,TeamName,SubmissionDate,Score\n{rows}\n", encoding="utf-8-sig")
    return file


def test_a_leaderboard_is_read_as_kaggle_exports_it(tmp_path: Path) -> None:
    assert read_board(board(tmp_path)) == BOARD
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("TeamId,Points\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="no column Score"):
        read_board(wrong)
    wrong.write_text("TeamId,Score\n1,high\n", encoding="utf-8")
    with pytest.raises(UserError, match="column Score: could not convert"):
        read_board(wrong)
    wrong.write_text("TeamId,Score\n1,0.5\n2,nan\n", encoding="utf-8")
    with pytest.raises(UserError, match="contains a non-finite number"):
        read_board(wrong)


def test_scores_are_compared_with_the_decimals_of_the_leaderboard() -> None:
    assert place(0.745581234, [0.9, 0.74558, 0.5]) == "tied with rank 2 of 3"


def named(num: int = 100) -> Named:
    """Images image0, image1, ... half of each class, nine of ten right."""
    truth = np.arange(num) % 2
    chosen = np.where(np.arange(num) % 10 == 0, 1 - truth, truth)
    return Named([f"image{n}" for n in range(num)], Classified(truth, chosen, np.arange(num), 2), ["0", "1"])


def test_a_score_on_own_images_is_placed_with_a_warning(tmp_path: Path) -> None:
    (one,) = placed(named(), "accuracy", Reporting(public_leaderboard=board(tmp_path)))
    assert (one.board, one.n, one.text) == ("public", 100, "0.90000: above rank 1 of 4")
    assert one.warnings == ("scored on this run's 100 test images, not on the leaderboard's: the rank is hypothetical",)


def solution(folder: Path, *, num: int = 100, public: int = 20, all_zero: bool = False) -> Path:
    rows = [f"image{n},{0 if all_zero else n % 2},{'Public' if n < public else 'Private'}" for n in range(num)]
    file = folder / "solution.csv"
    file.write_text("\n".join(["image,level,Usage", *rows]) + "\n", encoding="utf-8")
    return file


def test_with_a_solution_each_part_is_scored_on_its_own_images_alone(tmp_path: Path) -> None:
    reporting = Reporting(
        public_leaderboard=board(tmp_path), private_leaderboard=board(tmp_path, "p.csv"), solution=solution(tmp_path)
    )
    public, private = placed(named(), "accuracy", reporting)
    assert (public.n, private.n, public.warnings, private.warnings) == (20, 80, (), ())


def test_other_images_or_another_class_mix_than_the_leaderboards_are_warned_of(tmp_path: Path) -> None:
    reporting = Reporting(public_leaderboard=board(tmp_path), solution=solution(tmp_path, num=300, public=200))
    (one,) = placed(named(), "accuracy", reporting)
    assert one.warnings == ("scored on 100 of its 200 images: the rank is hypothetical",)
    unlike = Reporting(public_leaderboard=board(tmp_path), solution=solution(tmp_path, public=100, all_zero=True))
    (one,) = placed(named(), "accuracy", unlike)
    assert "the class distribution differs from that of the solution" in one.warnings[-1]
    none = Reporting(public_leaderboard=board(tmp_path), solution=solution(tmp_path, public=0))
    (one,) = placed(named(), "accuracy", none)
    assert (one.n, one.score, one.text) == (0, None, "undefined on these images")


def test_a_submission_has_the_samples_header_and_order(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("id_code,diagnosis\nb,0\n-a,0\n", encoding="utf-8")
    answers = {"-a": "3", "b": "", "c": "1"}
    assert submission(answers, sample, ("image", "level"), filling="0") == ("id_code,diagnosis\nb,0\n-a,3\n", 1)
    assert submission(answers, None, ("image", "level"), filling="0") == ("image,level\n'-a,3\nb,\nc,1\n", 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,diagnosis\na,0\nz,0\n", "1 of its 2 images not in the test split, the first is z"),
        ("id,diagnosis\na,0\na,0\n", "lists no image, or one twice"),
        ("id,diagnosis\n", "lists no image, or one twice"),
        ("id,p1,p2\na,0,0\n", "must have two columns"),
    ],
)
def test_a_sample_submission_that_does_not_fit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=says):
        submission({"a": "1", "b": "2"}, sample, ("image", "level"), filling="0")


def test_a_solution_is_checked_against_the_images_labels_and_parts(tmp_path: Path) -> None:
    solution, leaderboards = tmp_path / "s.csv", board(tmp_path)

    def warned(header: str, label: str, usage: str) -> str:
        rows = [f"image{number}.jpeg,{label or number % 2},{usage}" for number in range(100)]
        solution.write_text("\n".join([header, *rows]), encoding="utf-8")
        (one,) = placed(named(), "accuracy", Reporting(public_leaderboard=leaderboards, solution=solution))
        return " | ".join((one.text, *one.warnings))

    assert warned("image,level,Usage", "", "Public") == "0.90000: above rank 1 of 4"
    found = warned("image,level,Usage", "1", "Public")
    assert "50 images with a different label in the solution" in found
    assert "different populations" in found
    assert "labels of the solution that are not classes of this run: No DR" in warned(
        "image,level,Usage", "No DR", "Public"
    )
    assert "no row of the solution has Usage Public" in warned("image,level,Usage", "", "Private")
    for header in ("image,level,Usage,Usage", "image,level,weight,Usage", "image,Usage"):
        with pytest.raises(UserError, match=r"must have three columns, image, label and Usage|too (few|many) columns"):
            warned(header, "", "Public")


def test_a_sample_may_name_files_by_their_ending_and_less_than_all_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("image,level\nb.x.jpeg,0\na.jpeg,0\n", encoding="utf-8")
    text, _ = submission({"a": "=1", "b.x": "2", "c": "0"}, sample, ("image", "level"), filling="0")
    assert text == "image,level\nb.x.jpeg,2\na.jpeg,=1\n"
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        f"{sample} lists only 2 of 3 test images",
        "some cells look like spreadsheet formulas; they are written verbatim for the competition",
    ]
