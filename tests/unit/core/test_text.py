import pytest

from tlbatch.core.text import counted, folded, is_missing, trimmed


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1_234_567, "1,234,567 images")]
)
def test_a_count_has_its_noun_in_the_plural_unless_it_is_one(number: int, text: str) -> None:
    assert counted(number, "image") == text


@pytest.mark.parametrize(
    "spellings",
    [
        ("2", "2.0", "02", " 2 ", "\uff12", "2.00", "+2", "\u0662"),
        ("Mild", "mild", "MILD ", "mi\u200bld", "\uff2dild"),
        ("Straße 1", "STRASSE\u00a01", "straße  1"),
        ("-0.5", "-0.50", "-00.5"),
        ("0", "-0", "0.0"),
        ("\u00c4rztin", "A\u0308rztin"),
    ],
)
def test_spellings_of_one_value_have_one_form(spellings: tuple[str, ...]) -> None:
    assert len({folded(one) for one in spellings}) == 1


def test_different_values_stay_apart() -> None:
    values = ["2", "2.5", "20", "-2", "1e3", "1000", "a1", "a01", "2/2", "1,0", "10", "x", "x y", "xy"]
    assert len({folded(one) for one in values}) == len(values)


@pytest.mark.parametrize("text", ["", "nan", "NaN", "NA", "N/A", "None", "null", "-"])
def test_a_cell_can_say_that_it_is_empty(text: str) -> None:
    assert is_missing(text)
    assert not is_missing(f"{text}x")


def test_invisible_characters_around_a_text_are_left_out() -> None:
    assert trimmed("\ufeff\u200b a\u200bb \u00a0\u200d") == "a\u200bb"
    assert trimmed("\u200b") == ""
