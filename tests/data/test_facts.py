"""What later stages may read into the data."""

from typing import Any

import pytest

from recranker.data.facts import RatingMeaning, meaning_of, order_of, require_order, require_ratings
from recranker.errors import DataError

FACTS: dict[str, Any] = {
    "source": "books",
    "order": "none",
    "has_ratings": False,
    "rating_min": 0,
    "rating_max": 1,
    "like_at_least": 1,
    "dislike_below": 0,
}


def test_a_reader_of_order_is_refused_where_order_is_random() -> None:
    with pytest.raises(DataError, match="backbone 'sasrec' needs histories in order, but books has none"):
        require_order(FACTS, "backbone 'sasrec'")
    for order in ("time", "sequence"):
        require_order(FACTS | {"order": order}, "backbone 'sasrec'")


def test_a_reader_of_ratings_is_refused_where_feedback_is_implicit() -> None:
    with pytest.raises(DataError, match="the rating predictor needs ratings, but books has none"):
        require_ratings(FACTS, "the rating predictor")
    require_ratings(FACTS | {"has_ratings": True}, "the rating predictor")


def test_the_meaning_of_ratings_is_what_was_recorded() -> None:
    assert meaning_of(FACTS) == RatingMeaning(0.0, 1.0, 1.0, 0.0)


def test_an_order_nobody_stated_is_refused() -> None:
    with pytest.raises(DataError, match="stage 'prepare' must state 'order'"):
        order_of({"source": "books"})
