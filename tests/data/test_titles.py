"""Titles on one printable line."""

import pytest

from recranker.data.titles import clean_title


@pytest.mark.parametrize(
    ("given", "clean"),
    [
        ("Cats &amp; Dogs", "Cats & Dogs"),
        ("  two   spaces ", "two spaces"),
        ("a\nline\tbreak", "a line break"),
        ("bell\x07 and zero\u200bwidth", "bell and zerowidth"),
        ("turned \u202eover", "turned over"),
        ("&#8238;hidden &#10;break", "hidden break"),  # entities may stand for what must not get through
        ("ﬁlm Ⅱ", "film II"),
        ("Misérables", "Misérables"),
        ("\x00", ""),
    ],
)
def test_clean_title(given: str, clean: str) -> None:
    assert clean_title(given, 200) == clean


def test_a_long_title_is_cut_and_does_not_end_in_a_space() -> None:
    assert clean_title("The long way home", 9) == "The long"
