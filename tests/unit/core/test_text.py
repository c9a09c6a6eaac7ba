import pytest

from tlbatch.core.text import counted


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1_234_567, "1,234,567 images")]
)
def test_a_count_has_its_noun_in_the_plural_unless_it_is_one(number: int, text: str) -> None:
    assert counted(number, "image") == text
