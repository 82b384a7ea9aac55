"""The k-core of a small graph, worked by hand."""

import pyarrow as pa

from recranker.data.k_core import Round, k_core


def _events(*pairs: str) -> pa.Table:
    return pa.table({"user_id": [pair[0] for pair in pairs], "item_id": [pair[1] for pair in pairs]})


def test_dropping_goes_on_until_nothing_is_rare() -> None:
    """Item z goes first; that leaves user w with one item; that leaves item y with one user; then v has one item."""
    square = ("ta", "tb", "ua", "ub")
    chain = ("va", "vy", "wy", "wz")
    core, rounds = k_core(_events(*square, *chain), min_user=2, min_item=2)
    assert sorted(f"{row['user_id']}{row['item_id']}" for row in core.to_pylist()) == sorted(square)
    assert rounds == [Round(7, 4, 3), Round(6, 3, 3), Round(5, 3, 2), Round(4, 2, 2)]


def test_users_and_items_have_their_own_bounds() -> None:
    core, _ = k_core(_events("ua", "ub", "va"), min_user=2, min_item=1)
    assert core["user_id"].to_pylist() == ["u", "u"]


def test_nothing_rare_means_no_round() -> None:
    events = _events("ua")
    core, rounds = k_core(events, min_user=1, min_item=1)
    assert core.equals(events)
    assert rounds == []


def test_everything_may_go() -> None:
    core, rounds = k_core(_events("ua", "vb"), min_user=2, min_item=2)
    assert core.num_rows == 0
    assert rounds == [Round(0, 0, 0)]
