"""What a job says about its classes."""

from pathlib import Path

import pytest

from tlbatch.config.job import Job
from tlbatch.config.load import load_job
from tlbatch.core.errors import UserError

WORDS = ["Mild", "Moderate", "No_DR"]


def job_of(tiny_job: Path, *overrides: str) -> Job:
    return load_job([tiny_job], ["data.images=x", *overrides])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("metric=quadratic_kappa", "metric=quadratic_kappa"),
        ("objective=corn", "objective=corn"),
        ("objective=cumulative", "objective=cumulative"),
        ("objective=regression", "objective=regression"),
        ("decision=expected-grade", "decision=expected-grade"),
        ("data.ordered=true", "data.ordered=true"),
    ],
)
def test_an_order_of_words_is_asked_for_and_never_taken_from_the_alphabet(
    tiny_job: Path, override: str, says: str
) -> None:
    job = job_of(tiny_job, override)
    assert job.ordered_by == says
    with pytest.raises(UserError) as refused:
        job.check_order(WORDS)
    text = str(refused.value)
    assert text.startswith(f"{says}: needs the order of the classes")
    listed = text.partition("set ")[2].partition(" in their order")[0]
    job_of(tiny_job, override, listed).check_order(WORDS)
    job.check_order(["0", "1.5", "10.0"])


def test_numbers_are_no_grades_by_themselves(tiny_job: Path) -> None:
    assert job_of(tiny_job).ordered_by == ""
    job_of(tiny_job).check_order(WORDS)
