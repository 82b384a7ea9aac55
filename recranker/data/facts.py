"""What the data is, as stage 'prepare' recorded it, and how later stages make sure that it is what they need.

A stage that reads meaning into order or ratings calls ``require_order`` or ``require_ratings`` with the facts of stage
'prepare' before it starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from recranker.errors import DataError

Order = Literal["time", "sequence", "none"]


@dataclass(frozen=True)
class RatingMeaning:
    """The rating scale of the data, and what a rating on it says."""

    rating_min: float
    rating_max: float
    like_at_least: float
    dislike_below: float


IMPLICIT = RatingMeaning(0.0, 1.0, 1.0, 0.0)
"""Of data without ratings: an interaction is a 1, and a 1 is a like."""


def meaning_of(facts: Mapping[str, Any]) -> RatingMeaning:
    """The scale stage 'prepare' recorded."""
    return RatingMeaning(**{name: float(facts[name]) for name in RatingMeaning.__dataclass_fields__})


def order_of(facts: Mapping[str, Any]) -> Order:
    """What the order of a user's interactions comes from: clock times, the source's own sequence, or nothing.

    Raises:
        DataError: If stage 'prepare' did not say.
    """
    order = facts.get("order")
    if order not in ("time", "sequence", "none"):
        raise DataError(f"stage 'prepare' must state 'order' (time, sequence or none), found {order!r}; run it again")
    return order  # type: ignore[no-any-return]


def require_order(facts: Mapping[str, Any], reader: str) -> None:
    """Refuse ``reader`` where a user's history has no order.

    Args:
        facts: Of stage 'prepare'.
        reader: What is about to read meaning into the order, for instance ``"backbone 'sasrec'"``.

    Raises:
        DataError: If the order is a random one.
    """
    if order_of(facts) == "none":
        raise DataError(
            f"{reader} needs histories in order, but {facts['source']} has none (histories stand in a keyed random "
            "order); leave it out, or name data.source.time_column if there is one"
        )


def require_ratings(facts: Mapping[str, Any], reader: str) -> None:
    """Refuse ``reader`` where feedback is implicit.

    Raises:
        DataError: If there are no ratings.
    """
    if not facts["has_ratings"]:
        raise DataError(
            f"{reader} needs ratings, but {facts['source']} has none (every interaction is a like); leave it out, or "
            "name data.source.rating_column if there is one"
        )
