"""Feedback and the splits, each as a pure function over whole columns.

Whatever the rule, the same holds afterwards: a user has at most one validation and one test target, both are likes,
everything a fit may see comes before them, and each target's item is in some training like. Targets of which that
cannot be said become 'unused' and are counted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import codes, column, index_in, places
from recranker.data.order import in_order
from recranker.data.settings import LeaveOneOutSplit, OwnSplit, Split, TimeSplit
from recranker.errors import DataError
from recranker.schema import INTERACTIONS

SPLITS = ("train", "validation", "test", "unused")
TRAIN, VALIDATION, TEST, UNUSED = range(4)
MIN_LIKES = 3
"""Likes a user needs to be tested by leave-one-out: one for training, one for validation, one for the test."""

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Thresholds:
    """What a rating means."""

    like_at_least: float
    dislike_below: float


@dataclass(frozen=True)
class Events:
    """Interactions by number; a user's stand together, oldest first. ``N`` rows."""

    users: Ints
    """``(N,)`` one code per user."""
    items: Ints
    """``(N,)`` one code per item."""
    likes: Bools
    """``(N,)``."""

    def first_of_user(self, chosen: Bools) -> Bools:
        """``(N,)`` the first of the ``chosen`` rows of each user."""
        rows = np.flatnonzero(chosen)
        marked = np.zeros(len(chosen), dtype=np.bool_)
        marked[rows[np.unique(self.users[rows], return_index=True)[1]]] = True
        return marked

    def last_of_user(self, chosen: Bools) -> Bools:
        """``(N,)`` the last of the ``chosen`` rows of each user."""
        backwards = Events(self.users[::-1], self.items[::-1], self.likes[::-1])
        return backwards.first_of_user(chosen[::-1])[::-1]

    def user_has(self, chosen: Bools) -> Bools:
        """``(N,)`` whether the row's user has a ``chosen`` row anywhere."""
        return np.isin(self.users, self.users[chosen])


def split_interactions(
    events: pa.Table, thresholds: Thresholds, seed: int, *, split: Split | None = None, order: str = "time"
) -> tuple[pa.Table, dict[str, int], dict[str, Any]]:
    """``events`` as the table ``schema.INTERACTIONS``; rows per feedback and split; what the rule decided.

    Args:
        events: ``user_id, item_id, rating, timestamp`` in any order, a row per user and item; rating and timestamp
            may be null throughout. With a split of the team's own also its name in ``split``.
        thresholds: Of likes and dislikes.
        seed: Keys the order of simultaneous events.
        split: The rule; None: leave-one-out.
        order: 'time', 'sequence' (timestamp holds the place in the source's sequence) or 'none'.

    Raises:
        DataError: If the rule cannot be applied to these events.
    """
    rule = split if split is not None else LeaveOneOutSplit()
    given = own_splits(events) if isinstance(rule, OwnSplit) else None
    ordered = in_order(events, seed, first_by=given if order == "none" else None)
    feedback = feedback_of(ordered["rating"], thresholds)
    users, items = codes(ordered["user_id"]), codes(ordered["item_id"])
    known = Events(users, items, feedback == "like")
    chosen, decided = _chosen(ordered, known, rule, order)
    chosen, counts = with_retrievable_targets(known, chosen)
    columns: dict[str, Any] = {name: ordered[name] for name in ("user_id", "item_id", "rating", "timestamp")}
    columns["rating"] = columns["rating"].cast(pa.float32())
    if order != "time":
        columns["timestamp"] = pa.nulls(ordered.num_rows, pa.int64())
    columns["sequence"] = places(users).astype(np.int32)
    columns["feedback"] = pa.array(feedback, pa.string())
    columns["split"] = pa.array(np.array(SPLITS)[chosen], pa.string())
    return pa.table(columns, schema=INTERACTIONS.schema), _totals(feedback) | counts, {"kind": rule.kind, **decided}


def _chosen(ordered: pa.Table, events: Events, rule: Split, order: str) -> tuple[Ints, dict[str, Any]]:
    if isinstance(rule, TimeSplit):
        if order != "time":
            raise DataError(
                f"data.split.kind = 'time' needs clock times, but the order of this data comes from: {order}; name "
                "data.source.time_column if there is one, or take data.split.kind = 'leave-one-out'"
            )
        times = column(ordered["timestamp"]).astype(np.int64)
        moments = moments_of(times, rule)
        decided = dict(zip(("validation_from", "test_from"), moments, strict=True)) | {"target": rule.target}
        return by_time(events, times, moments, last=rule.target == "last"), decided
    if isinstance(rule, OwnSplit):
        return checked_own(ordered, events), {}
    return leave_one_out(events), {}


def leave_one_out(events: Events) -> Ints:
    """``(N,)`` a user's last like is the test target, the last but one the validation target, all before it training.

    Whatever else follows the validation target is 'unused'. Users with fewer than ``MIN_LIKES`` likes only train.

    Source: RecRanker, arXiv 2312.16018, section 5.1.
    """
    split = np.full(len(events.users), TRAIN)
    left = likes_left(events.users, events.likes)
    enough = np.bincount(events.users, weights=events.likes)[events.users] >= MIN_LIKES if len(split) else events.likes
    split[enough & (left <= 1)] = UNUSED  # left == 1 starts at the validation like
    split[enough & events.likes & (left == 1)] = VALIDATION
    split[enough & events.likes & (left == 0)] = TEST
    return split


def by_time(events: Events, times: Ints, moments: tuple[int, int], *, last: bool) -> Ints:
    """``(N,)`` everything before the first moment trains; of each user one like in either later span is a target.

    Users without a like before the first moment have no targets: nothing would be known of them.
    """
    span = np.searchsorted(np.array(moments), times, side="right")  # 0 before the first moment
    split = np.where(span == 0, TRAIN, UNUSED)
    eligible = events.likes & events.user_has(events.likes & (span == 0))
    pick = events.last_of_user if last else events.first_of_user
    split[pick(eligible & (span == 1))] = VALIDATION
    split[pick(eligible & (span == 2))] = TEST
    return split


def moments_of(times: Ints, rule: TimeSplit) -> tuple[int, int]:
    """UTC seconds at which validation and testing start.

    Raises:
        DataError: If no interaction lies before the first, or both are the same.
    """
    if not len(times):
        return 0, 0
    stated = rule.validation_from, rule.test_from
    shares = rule.validation_quantile, rule.test_quantile
    found = np.quantile(times, shares, method="higher").astype(np.int64).tolist()
    first, second = (
        quantile if moment is None else round(moment.timestamp())
        for moment, quantile in zip(stated, found, strict=True)
    )
    if not times.min() < first < second <= times.max():
        raise DataError(
            f"data.split: validation from {_day(first)} and test from {_day(second)} must lie in this order after the "
            f"first interaction ({_day(int(times.min()))}) and not after the last ({_day(int(times.max()))}); set "
            "data.split.validation_from and data.split.test_from"
        )
    return first, second


def own_splits(events: pa.Table) -> Ints:
    """``(N,)`` the number of each row's split in column 'split'.

    Raises:
        DataError: If a row has none or an unknown one.
    """
    if "split" not in events.schema.names:
        raise DataError(
            "data.split.kind = 'own' needs to know each interaction's split; set data.source.split_column or "
            "data.split.path"
        )
    given = index_in(events["split"], pa.array(SPLITS))
    _refuse(given < 0, events, f"must be one of {', '.join(SPLITS)}", "name a split for every interaction")
    return given


def checked_own(ordered: pa.Table, events: Events) -> Ints:
    """``(N,)`` the team's own split, when it keeps the rules that hold for every split.

    Raises:
        DataError: Naming a user and an item of the first row that breaks one.
    """
    split = own_splits(ordered)
    held_out = (split == VALIDATION) | (split == TEST)
    _refuse(held_out & ~events.likes, ordered, "holds out what is not a like", "hold out likes only")
    for target in (VALIDATION, TEST):
        second = (split == target) & ~events.first_of_user(split == target)
        _refuse(second, ordered, "is a second target of its user", "hold out one like of a user for each of the two")
    way_out = "make such interactions 'unused': a fit would see the future of a target"
    _refuse((split == TRAIN) & _after(events, held_out), ordered, "trains after a held-out target", way_out)
    _refuse(
        (split == VALIDATION) & _after(events, split == TEST), ordered, "validates after the test target", "swap them"
    )
    return split


def with_retrievable_targets(events: Events, split: Ints) -> tuple[Ints, dict[str, int]]:
    """``split`` with targets whose item no training like holds as 'unused', and the counts before and after.

    Such a target could never be retrieved: the protocol drops it from the denominator.
    """
    trained = np.isin(events.items, events.items[events.likes & (split == TRAIN)])
    unseen = ((split == VALIDATION) | (split == TEST)) & ~trained
    kept = np.where(unseen, UNUSED, split)
    likes = np.bincount(events.users, weights=events.likes) if len(split) else np.zeros(0)
    counts = {
        "users": len(np.unique(events.users)),
        "items_interacted_with": len(np.unique(events.items)),
        "users_with_3_likes": int((likes >= MIN_LIKES).sum()),
        "test_users_before_dropping": int((split == TEST).sum()),
        "validation_items_unseen_in_training": int((unseen & (split == VALIDATION)).sum()),
        "test_items_unseen_in_training": int((unseen & (split == TEST)).sum()),
        "training_likes": int((events.likes & (kept == TRAIN)).sum()),
    }
    return kept, counts | {f"split_{name}": int((kept == number).sum()) for number, name in enumerate(SPLITS)}


def feedback_of(ratings: pa.ChunkedArray, thresholds: Thresholds) -> NDArray[np.str_]:
    """``(rows,)`` 'like', 'neutral' or 'dislike'; without a rating the interaction itself is a like."""
    values = np.asarray(ratings.cast(pa.float64()).fill_null(np.inf))
    below = np.where(values < thresholds.dislike_below, "dislike", "neutral")
    return np.where(values >= thresholds.like_at_least, "like", below)


def likes_left(users: Ints, likes: Bools) -> Ints:
    """``(events,)`` how many likes of the same user come later; events of a user stand together."""
    so_far = np.cumsum(likes)
    last = np.flatnonzero(np.append(users[1:] != users[:-1], True)) if len(users) else np.empty(0, np.int64)
    lengths = np.diff(np.append(-1, last))
    left: Ints = np.repeat(so_far[last], lengths) - so_far
    return left


def _after(events: Events, marked: Bools) -> Bools:
    """``(N,)`` whether a marked row of the same user comes earlier."""
    first = np.full(events.users.max(initial=0) + 1, len(marked))
    rows = np.flatnonzero(events.first_of_user(marked))
    first[events.users[rows]] = rows
    return np.asarray(np.arange(len(marked)) > first[events.users])


def _refuse(bad: Bools, events: pa.Table, what: str, way_out: str) -> None:
    rows = np.flatnonzero(bad)
    if len(rows):
        row = events.slice(int(rows[0]), 1).to_pylist()[0]
        raise DataError(
            f"the team's own split: {row['split']!r} of user {row['user_id']!r}, item {row['item_id']!r} {what} "
            f"({len(rows)} such interactions); {way_out}"
        )


def _day(seconds: int) -> str:
    return str(pc.strftime(pa.scalar(seconds, pa.timestamp("s")), format="%Y-%m-%d %H:%M").as_py())


def _totals(feedback: NDArray[np.str_]) -> dict[str, int]:
    plural = {"like": "likes", "neutral": "neutral", "dislike": "dislikes"}
    return {name: int((feedback == kind).sum()) for kind, name in plural.items()}
