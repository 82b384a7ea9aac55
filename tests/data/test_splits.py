"""Order, feedback and the splits, worked by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recranker.data.order import drop_repeats, in_file_order, in_order
from recranker.data.settings import OwnSplit, TimeSplit
from recranker.data.sources.raw import INTERACTIONS
from recranker.data.splits import (
    SPLITS,
    Events,
    Thresholds,
    by_time,
    feedback_of,
    leave_one_out,
    likes_left,
    split_interactions,
    with_retrievable_targets,
)
from recranker.errors import DataError

MOVIES = Thresholds(like_at_least=4.0, dislike_below=3.0)


def _events(*rows: tuple[str, str, float | None, int | None]) -> pa.Table:
    names = INTERACTIONS.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=INTERACTIONS)


def _named(split: np.ndarray) -> list[str]:
    return [SPLITS[number] for number in split]


def _by_pair(table: pa.Table, name: str) -> dict[str, Any]:
    return {f"{row['user_id']}{row['item_id']}": row[name] for row in table.to_pylist()}


def test_the_last_like_is_the_test_and_the_last_but_one_the_validation() -> None:
    events = _events(
        ("u", "a", 5, 1),
        ("u", "b", 1, 2),
        ("u", "c", 4, 3),  # validation: last but one like
        ("u", "d", 3, 4),  # after the validation like
        ("u", "e", 4, 5),  # test
        ("u", "f", 2, 6),  # after the test
        ("v", "c", 5, 1),  # two likes only: all train
        ("v", "e", 5, 2),
    )
    table, counts, decided = split_interactions(events, MOVIES, seed=0)
    expected = {"ua": "train", "ub": "train", "uc": "validation", "ud": "unused", "ue": "test", "uf": "unused"}
    assert _by_pair(table, "split") == expected | {"vc": "train", "ve": "train"}
    assert _by_pair(table, "sequence") == {"ua": 0, "ub": 1, "uc": 2, "ud": 3, "ue": 4, "uf": 5, "vc": 0, "ve": 1}
    assert decided == {"kind": "leave-one-out"}
    assert counts == {
        "likes": 5,
        "neutral": 1,
        "dislikes": 2,
        "users": 2,
        "items_interacted_with": 6,
        "users_with_3_likes": 1,
        "test_users_before_dropping": 1,
        "validation_items_unseen_in_training": 0,
        "test_items_unseen_in_training": 0,
        "training_likes": 3,
        "split_train": 4,
        "split_validation": 1,
        "split_test": 1,
        "split_unused": 2,
    }


def test_targets_nobody_likes_in_training_become_unused_and_are_counted() -> None:
    users, items = np.zeros(3, np.int64), np.array([7, 8, 9])
    events = Events(users, items, np.ones(3, dtype=bool))
    split, counts = with_retrievable_targets(events, leave_one_out(events))
    assert _named(split) == ["train", "unused", "unused"]
    assert (counts["test_users_before_dropping"], counts["split_test"]) == (1, 0)
    assert counts["validation_items_unseen_in_training"] == counts["test_items_unseen_in_training"] == 1


def test_a_disliked_training_item_does_not_make_a_target_retrievable() -> None:
    users, items = np.array([0, 0, 0, 1]), np.array([1, 1, 2, 2])
    likes = np.array([True, True, True, False])
    events = Events(users, items, likes)
    split, _ = with_retrievable_targets(events, leave_one_out(events))
    assert _named(split) == ["train", "validation", "unused", "train"]


def test_repeats_keep_the_latest_and_of_those_the_highest() -> None:
    events = _events(("u", "a", 5, 1), ("u", "a", 2, 9), ("u", "a", 3, 9), ("u", "b", 1, 1), ("v", "a", 1, 1))
    kept = drop_repeats(events).to_pylist()
    assert [(row["user_id"], row["item_id"], row["rating"]) for row in kept] == [
        ("u", "a", 3.0),
        ("u", "b", 1.0),
        ("v", "a", 1.0),
    ]


def test_row_order_does_not_matter() -> None:
    random = np.random.default_rng(0)
    rows = [(f"u{i % 7}", f"i{i // 7}", float(i % 5 + 1), int(random.integers(0, 4))) for i in range(140)]
    rows += [("u0", "i0", 5.0, 3)]  # a repeat
    shuffled = [rows[index] for index in random.permutation(len(rows))]
    first, second = (split_interactions(drop_repeats(_events(*one)), MOVIES, seed=1) for one in (rows, shuffled))
    assert first[0].equals(second[0])
    assert first[1:] == second[1:]


def test_simultaneous_events_stand_in_an_order_keyed_by_the_seed() -> None:
    events = _events(*[("u", f"i{item}", 5.0, 100) for item in range(50)])
    orders = [in_order(events, seed)["item_id"].to_pylist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    natural = sorted(orders[0])
    assert orders[0] != natural
    assert sorted(orders[2]) == natural


def test_without_time_the_order_is_random_and_not_the_same_for_all_users() -> None:
    events = _events(*[(user, f"i{item}", None, None) for user in "uv" for item in range(20)])
    items = in_order(events, 0)["item_id"].to_pylist()
    assert items[:20] != items[20:]
    assert sorted(items[:20]) == sorted(items[20:])


def test_an_item_has_no_place_of_its_own_in_the_random_order() -> None:
    events = _events(*[(f"u{user}", f"i{item}", None, None) for user in range(400) for item in range(5)])
    last = in_order(events, 0)["item_id"].to_pylist()[4::5]
    counts = [last.count(f"i{item}") for item in range(5)]  # 80 expected, standard deviation 8
    assert min(counts) > 48
    assert max(counts) < 112


@pytest.mark.parametrize(
    ("rating", "feedback"),
    [(5.0, "like"), (4.0, "like"), (3.5, "neutral"), (3.0, "neutral"), (2.9, "dislike"), (None, "like")],
)
def test_feedback(rating: float | None, feedback: str) -> None:
    assert feedback_of(pa.chunked_array([[rating]], pa.float64()), MOVIES).tolist() == [feedback]


def test_likes_left_counts_within_a_user() -> None:
    users = np.array([0, 0, 0, 1, 1])
    likes = np.array([True, False, True, False, True])
    assert likes_left(users, likes).tolist() == [1, 1, 0, 1, 0]


@pytest.mark.parametrize("rule", [None, TimeSplit(kind="time")])
def test_no_events_split_into_nothing(rule: TimeSplit | None) -> None:
    table, counts, _ = split_interactions(_events(), MOVIES, seed=0, split=rule)
    assert table.num_rows == counts["users"] == counts["split_test"] == 0


# --- by time


def test_a_time_split_takes_one_like_of_each_user_from_each_span() -> None:
    """Training before 10, validation from 10 on, test from 20 on."""
    users = np.array([0] * 8 + [1] * 2)
    times = np.array([1, 10, 11, 12, 20, 21, 22, 23, 15, 25])
    likes = np.array([True, False, True, True, True, False, True, False, True, True])
    events = Events(users, np.arange(10), likes)
    first = _named(by_time(events, times, (10, 20), last=False))
    assert first == [
        "train",
        "unused",
        "validation",
        "unused",
        "test",
        *["unused"] * 5,
    ]  # user 1 has no past: no target
    last = _named(by_time(events, times, (10, 20), last=True))
    assert last == ["train", "unused", "unused", "validation", "unused", "unused", "test", *["unused"] * 3]


def test_the_moments_of_a_time_split_are_stated_or_quantiles_of_all_times() -> None:
    events = _events(*[("u", f"i{time}", 5, time) for time in range(11)])
    rule = TimeSplit(kind="time", validation_quantile=0.5, test_quantile=0.8)
    table, _, decided = split_interactions(events, MOVIES, seed=0, split=rule)
    assert decided == {"kind": "time", "validation_from": 5, "test_from": 8, "target": "first"}
    assert table["split"].to_pylist()[:5] == ["train"] * 5
    stated = TimeSplit.model_validate(
        {"kind": "time", "validation_from": "1970-01-01T00:00:03", "test_from": "1970-01-01T00:00:06Z"}
    )
    assert split_interactions(events, MOVIES, seed=0, split=stated)[2]["validation_from"] == 3


def test_moments_outside_the_data_are_refused() -> None:
    events = _events(("u", "a", 5, 100), ("u", "b", 5, 200))
    rule = TimeSplit.model_validate({"kind": "time", "validation_from": 150, "test_from": 300})
    with pytest.raises(DataError, match=r"must lie in this order after the first interaction .1970-01-01 00:01"):
        split_interactions(events, MOVIES, seed=0, split=rule)


@pytest.mark.parametrize("order", ["sequence", "none"])
def test_a_time_split_without_clock_times_is_refused(order: str) -> None:
    rule = TimeSplit(kind="time")
    with pytest.raises(DataError, match=f"needs clock times, but the order of this data comes from: {order}; name"):
        split_interactions(_events(("u", "a", 5, None)), MOVIES, seed=0, split=rule, order=order)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"validation_from": 5}, "must be given together"),
        ({"validation_from": 5, "test_from": 5}, "must come before"),
        ({"validation_quantile": 0.9}, "must be below"),
    ],
)
def test_a_time_split_that_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSplit.model_validate({"kind": "time", **values})


# --- a team's own


def _own(*rows: tuple[str, str, float | None, int | None, str | None]) -> pa.Table:
    return _events(*[row[:4] for row in rows]).append_column("split", pa.array([row[4] for row in rows], pa.string()))


def test_an_own_split_is_taken_as_it_is_but_for_targets_nobody_likes_in_training() -> None:
    events = _own(
        ("u", "a", 5, 1, "train"),
        ("u", "b", 5, 2, "validation"),
        ("u", "c", 5, 3, "unused"),
        ("u", "d", 5, 4, "test"),
        ("v", "d", 5, 1, "train"),
    )
    table, counts, decided = split_interactions(events, MOVIES, seed=0, split=OwnSplit(kind="own"))
    expected = {"ua": "train", "ub": "unused", "uc": "unused", "ud": "test", "vd": "train"}
    assert _by_pair(table, "split") == expected
    assert (decided, counts["validation_items_unseen_in_training"]) == ({"kind": "own"}, 1)


def test_without_order_an_own_split_puts_targets_last() -> None:
    rows = [("u", f"i{number}", None, None, "train") for number in range(20)]
    rows += [("u", "x", None, None, "test"), ("u", "y", None, None, "validation")]
    rows += [("v", one, None, None, "train") for one in "xy"]
    table, _, _ = split_interactions(_own(*rows), MOVIES, seed=0, split=OwnSplit(kind="own"), order="none")
    assert [row for row in table["split"].to_pylist() if row != "train"] == ["validation", "test"]
    assert {name: place for name, place in _by_pair(table, "sequence").items() if name in ("ux", "uy")} == {
        "uy": 20,
        "ux": 21,
    }


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("u", "a", 5, 1, "holdout")], "'holdout' of user 'u', item 'a' must be one of train, validation"),
        ([("u", "a", 5, 1, None)], "None of user 'u', item 'a' must be one of"),
        ([("u", "a", 1, 1, "test")], "'test' of user 'u', item 'a' holds out what is not a like"),
        ([("u", "a", 5, 1, "test"), ("u", "b", 5, 2, "test")], "item 'b' is a second target of its user"),
        ([("u", "a", 5, 1, "test"), ("u", "b", 5, 2, "train")], "item 'b' trains after a held-out target"),
        ([("u", "a", 5, 1, "test"), ("u", "b", 5, 2, "validation")], "item 'b' validates after the test target"),
    ],
)
def test_an_own_split_that_breaks_the_rules_is_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split_interactions(_own(*rows), MOVIES, seed=0, split=OwnSplit(kind="own"))


def test_an_own_split_must_be_somewhere() -> None:
    with pytest.raises(DataError, match=r"set data.source.split_column or data.split.path"):
        split_interactions(_events(("u", "a", 5, 1)), MOVIES, seed=0, split=OwnSplit(kind="own"))


# --- order


def test_a_place_in_a_sequence_orders_and_is_not_taken_for_a_time() -> None:
    events = _events(("u", "b", 5, 1), ("u", "a", 5, 0), ("u", "c", 5, 2))
    table, _, _ = split_interactions(events, MOVIES, seed=0, order="sequence")
    assert table["item_id"].to_pylist() == ["a", "b", "c"]
    assert table["timestamp"].null_count == 3


def test_file_order_keeps_simultaneous_events_as_they_stood() -> None:
    events = _events(("u", "b", 5, 1), ("u", "a", 5, 1), ("u", "c", 5, 0)).append_column("row", pa.array([0, 1, 2]))
    assert in_file_order(events)["item_id"].to_pylist() == ["c", "b", "a"]
