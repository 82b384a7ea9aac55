"""Order, feedback and leave-one-out, worked by hand."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recranker.data.sources.raw import INTERACTIONS
from recranker.data.splits import (
    Thresholds,
    drop_repeats,
    feedback_of,
    in_order,
    leave_one_out,
    likes_left,
    split_interactions,
)

MOVIES = Thresholds(like_at_least=4.0, dislike_below=3.0)


def _events(*rows: tuple[str, str, float | None, int | None]) -> pa.Table:
    names = INTERACTIONS.names
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema=INTERACTIONS)


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
    table, counts = split_interactions(events, MOVIES, seed=0)
    expected = {"ua": "train", "ub": "train", "uc": "validation", "ud": "unused", "ue": "test", "uf": "unused"}
    assert _by_pair(table, "split") == expected | {"vc": "train", "ve": "train"}
    assert _by_pair(table, "sequence") == {"ua": 0, "ub": 1, "uc": 2, "ud": 3, "ue": 4, "uf": 5, "vc": 0, "ve": 1}
    assert counts == {
        "repeated_interactions_dropped": 0,
        "likes": 5,
        "neutral": 1,
        "dislikes": 2,
        "users": 2,
        "users_with_3_likes": 1,
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
    split, counts = leave_one_out(users, items, np.ones(3, dtype=bool))
    assert split.tolist() == ["train", "unused", "unused"]
    assert counts["validation_items_unseen_in_training"] == counts["test_items_unseen_in_training"] == 1


def test_a_disliked_training_item_does_not_make_a_target_retrievable() -> None:
    users, items = np.array([0, 0, 0, 1]), np.array([1, 1, 2, 2])
    likes = np.array([True, True, True, False])
    assert leave_one_out(users, items, likes)[0].tolist() == ["train", "validation", "unused", "train"]


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
    first = split_interactions(_events(*rows), MOVIES, seed=1)
    second = split_interactions(_events(*[rows[i] for i in random.permutation(len(rows))]), MOVIES, seed=1)
    assert first[0].equals(second[0])
    assert first[1] == second[1]


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


def test_no_events_split_into_nothing() -> None:
    table, counts = split_interactions(_events(), MOVIES, seed=0)
    assert table.num_rows == counts["users"] == counts["split_test"] == 0
