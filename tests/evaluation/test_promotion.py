import numpy as np
import pyarrow as pa
import pytest

from recranker.errors import DataError
from recranker.evaluation.promotion import duel
from recranker.schema import RANKINGS
from tests.tables import candidate_list, candidates

ITEMS = ["a", "b", "c", "d"]


def rankings(*ranked: tuple[str, str, str], row: str = "hybrid", split: str = "validation") -> pa.Table:
    """RANKINGS from (user, target, order)."""
    rows = [
        {
            "list_id": f"{split}/{user}/{target}",
            "user_id": user,
            "split": split,
            "row": row,
            "item_ids": list(order),
            "scores": [-float(place) for place in range(len(order))],
        }
        for user, target, order in ranked
    ]
    return pa.Table.from_pylist(rows, schema=RANKINGS.schema)


def lists(*targets: tuple[str, str]) -> pa.Table:
    return candidates(*(candidate_list(user, "validation", target, ITEMS) for user, target in targets))


def test_the_difference_is_worked_out_user_by_user() -> None:
    offered = lists(("u", "a"), ("u", "b"), ("v", "c"), ("w", "d"))
    ours = rankings(("u", "a", "abcd"), ("u", "b", "abcd"), ("v", "c", "cabd"), ("w", "d", "dabc"))
    theirs = rankings(("u", "a", "bacd"), ("u", "b", "bacd"), ("v", "c", "abcd"))  # has not ranked w
    found = duel((ours, "hybrid"), (theirs, "hybrid"), offered, samples=500, seed=0)
    second, third = 1 / np.log2(3), 1 / np.log2(4)
    assert (found.lists, found.users) == (3, 2)
    assert found.challenger == pytest.approx(((1 + second) / 2 + 1) / 2)
    assert found.champion == pytest.approx(((second + 1) / 2 + third) / 2)
    assert (found.low, found.high) == pytest.approx((0.0, 1 - third))  # u alone twice, v alone twice
    assert found.verdict == "equal"
    assert "over 2 users" in str(found)


@pytest.mark.parametrize(("ours", "theirs", "verdict"), [("abcd", "dabc", "better"), ("dabc", "abcd", "worse")])
def test_an_interval_beyond_zero_decides(ours: str, theirs: str, verdict: str) -> None:
    users = [f"u{number}" for number in range(20)]
    offered = lists(*((user, "a") for user in users))
    sides = [(rankings(*((user, "a", order) for user in users), row="served"), "served") for order in (ours, theirs)]
    found = duel(sides[0], sides[1], offered, samples=200, seed=0)
    assert found.verdict == verdict
    assert abs(found.challenger - found.champion) == pytest.approx(1.0 - 1 / np.log2(3))


def test_the_same_orders_are_equal_and_test_lists_do_not_count() -> None:
    offered = lists(("u", "a"), ("v", "b"))
    ours = rankings(("u", "a", "abcd"), ("v", "b", "abcd"))
    both = pa.concat_tables([ours, rankings(("w", "a", "abcd"), split="test")])
    found = duel((both, "hybrid"), (both, "hybrid"), offered, samples=200, seed=0)
    assert (found.lists, found.low, found.high, found.verdict) == (2, 0.0, 0.0, "equal")


def test_runs_without_a_list_in_common_are_not_compared() -> None:
    offered = lists(("u", "a"), ("v", "b"))
    sides = (rankings(("u", "a", "abcd")), "hybrid"), (rankings(("v", "b", "abcd")), "hybrid")
    with pytest.raises(DataError, match="1 and 1 validation lists, none of them the same"):
        duel(*sides, offered, samples=200, seed=0)
