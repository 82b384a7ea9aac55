"""Checks of the INTERACTIONS table: order, scale, feedback and split."""

import numpy as np
import pyarrow.compute as pc

from recranker.data.leakage.gate import Check, refuse
from recranker.data.leakage.tables import TEST, TRAIN, VALIDATION, GateTables
from recranker.data.lookup import codes, column, places
from recranker.data.splits import likes_left


def item_once(tables: GateTables) -> None:
    """An item stands once in a history; a second time it could be the target."""
    repeated = np.zeros(tables.history.num_rows, dtype=bool)
    repeated[tables.events.repeated] = True
    _refuse(repeated, tables, "an item stands twice in a history, so a target could be in it", "keep one row per pair")


def sequence_numbers(tables: GateTables) -> None:
    """Sequence numbers count each user's events."""
    wrong = column(tables.history["sequence"]) != places(tables.users)
    _refuse(wrong, tables, "sequence numbers of a user are not 0, 1, 2, ...", "number the events from the oldest")


def time_order(tables: GateTables) -> None:
    """No event stands before an earlier one."""
    times, users = column(pc.fill_null(tables.history["timestamp"], -1)), tables.users
    earlier = np.zeros(len(times), dtype=bool)
    earlier[1:] = (times[1:] < times[:-1]) & (users[1:] == users[:-1])
    trap = "a later event has an earlier sequence number, so the future is in the history"
    _refuse(earlier | (times < 0), tables, trap, "order each user's events by timestamp")


def rating_scale(tables: GateTables) -> None:
    """Ratings lie on the scale of the facts: films are not read as books."""
    ratings = column(tables.history["rating"]).astype(np.float32)  # null becomes NaN, which is outside
    lowest, highest = (np.float32(tables.facts[name]) for name in ("rating_min", "rating_max"))
    outside = ~((ratings >= lowest) & (ratings <= highest))
    if tables.facts.get("unrated_is_like", False):
        outside &= column(pc.is_valid(tables.history["rating"]))
    trap = f"a rating is off the scale of the manifest ({lowest:g} to {highest:g})"
    _refuse(outside, tables, trap, "set data.rating_min and data.rating_max to the scale of this data set")


def feedback_follows(tables: GateTables) -> None:
    """Likes and dislikes follow from the ratings and the thresholds of the facts."""
    ratings = column(pc.fill_null(tables.history["rating"], np.inf)).astype(np.float32)  # unrated is a like
    like, dislike = (np.float32(tables.facts[name]) for name in ("like_at_least", "dislike_below"))
    due = np.where(ratings >= like, "like", np.where(ratings < dislike, "dislike", "neutral"))
    wrong = column(tables.history["feedback"]) != due
    _refuse(wrong, tables, "feedback does not follow from the rating", "derive it with data.splits.feedback_of")


def split_names(tables: GateTables) -> None:
    """Every event is in a split."""
    _refuse(tables.splits < 0, tables, "a split has an unknown name", "use train, validation, test or unused")


def targets_liked(tables: GateTables) -> None:
    """Held-out targets are likes."""
    held_out = (tables.splits == VALIDATION) | (tables.splits == TEST)
    _refuse(held_out & ~tables.likes, tables, "a held-out target is not a like", "hold out likes only")


def one_target(tables: GateTables) -> None:
    """A user has at most one validation and one test target."""
    for target in (VALIDATION, TEST):
        rows, second = np.flatnonzero(tables.splits == target), np.zeros(len(tables.splits), dtype=bool)
        second[rows[1:][tables.users[rows[1:]] == tables.users[rows[:-1]]]] = True
        _refuse(second, tables, "a user has two targets of one split", "hold out one like for each")


def training_ends(tables: GateTables) -> None:
    """Nothing a fit may see comes after a target of the same user."""
    for target in (VALIDATION, TEST):
        rows = np.flatnonzero(tables.splits == target)[::-1]
        first = np.full(tables.users.max(initial=0) + 1, len(tables.splits))
        first[tables.users[rows]] = rows  # rows run backwards, so that a user's first target is written last
        late = (tables.splits >= TRAIN) & (tables.splits < target)
        late &= np.arange(len(tables.splits)) > first[tables.users]
        trap, way_out = "training goes on after a held-out target", "make what follows the validation like 'unused'"
        _refuse(late, tables, trap, way_out)


def targets_trained(tables: GateTables) -> None:
    """Each target's item is in some training like, so that it can be retrieved."""
    items = codes(tables.history["item_id"])
    held_out = (tables.splits == VALIDATION) | (tables.splits == TEST)
    known = np.isin(items, items[tables.likes & (tables.splits == TRAIN)])
    _refuse(held_out & ~known, tables, "a target's item is in no training like", "move such targets to 'unused'")


def last_likes(tables: GateTables) -> None:
    """Leave-one-out: the test target is the last like of its user, the validation target the last but one."""
    left = likes_left(tables.users, tables.likes)
    wrong = ((tables.splits == TEST) & (left != 0)) | ((tables.splits == VALIDATION) & (left != 1))
    trap = "a target of leave-one-out is not the last like of its user (test), or the last but one (validation)"
    _refuse(wrong, tables, trap, "split with data.splits.leave_one_out")


def moments_kept(tables: GateTables) -> None:
    """Time split: training lies before the first moment, validation targets before the second, test targets after."""
    decided = tables.facts["split"]
    times, splits = column(pc.fill_null(tables.history["timestamp"], -1)), tables.splits
    first, second = decided["validation_from"], decided["test_from"]
    wrong = (splits == TRAIN) & (times >= first)
    wrong |= (splits == VALIDATION) & ((times < first) | (times >= second))
    wrong |= (splits == TEST) & (times < second)
    trap = f"an event is on the wrong side of the moments of the time split ({first} and {second})"
    _refuse(wrong, tables, trap, "split with data.splits.by_time")


def _has_time(tables: GateTables) -> bool:
    return bool(tables.facts.get("order", "time" if tables.facts.get("has_time") else "none") == "time")


def _has_ratings(tables: GateTables) -> bool:
    return bool(tables.facts["has_ratings"])


def _split_by(kind: str, tables: GateTables) -> bool:
    return bool(tables.facts.get("split", {}).get("kind") == kind)


CHECKS = (
    Check("item-once", item_once, "interactions"),
    Check("sequence-numbers", sequence_numbers, "interactions"),
    Check("time-order", time_order, "interactions", applies=_has_time),
    Check("rating-scale", rating_scale, "interactions", applies=_has_ratings),
    Check("feedback", feedback_follows, "interactions", applies=_has_ratings),
    Check("targets-liked", targets_liked, "interactions"),
    Check("split-names", split_names, "interactions"),
    Check("one-target", one_target, "interactions"),
    Check("training-ends", training_ends, "interactions"),
    Check("targets-trained", targets_trained, "interactions"),
    Check("last-likes", last_likes, "interactions", applies=lambda tables: _split_by("leave-one-out", tables)),
    Check("time-split", moments_kept, "interactions", applies=lambda tables: _split_by("time", tables)),
)


def _refuse(bad: "np.ndarray[tuple[int], np.dtype[np.bool_]]", tables: GateTables, trap: str, way_out: str) -> None:
    refuse(bad, tables.history["user_id"], tables.history["item_id"], trap=trap, way_out=way_out)
