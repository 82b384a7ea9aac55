"""Titles on one printable line."""

import pytest

from recranker.data.titles import clean_title, film_title


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


@pytest.mark.parametrize(
    ("given", "title"),
    [
        ("Matrix, The (1999)", "The Matrix (1999)"),
        ("Toy Story (1995)", "Toy Story (1995)"),
        ("Paris, Texas (1984)", "Paris, Texas (1984)"),
        ("Enfer, L' (1994)", "L'Enfer (1994)"),
        ("Big Blue, The (Grand bleu, Le) (1988)", "The Big Blue (Le Grand bleu) (1988)"),
        ("Land Before Time III (1995) (V)", "Land Before Time III (1995)"),
        ("Crow, The", "The Crow"),
        ("unknown", "unknown"),
    ],
)
def test_a_film_is_named_as_people_name_it(given: str, title: str) -> None:
    assert film_title(given) == title
