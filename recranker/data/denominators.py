"""How many users are tested, how many were before the protocol dropped some, and how that compares with the paper."""

from collections.abc import Mapping

import pyarrow as pa

from recranker.data.lookup import codes
from recranker.data.order import in_file_order
from recranker.data.splits import Events, Thresholds, feedback_of, leave_one_out, with_retrievable_targets

PAPER_TEST_USERS = {"movielens-100k": 927, "movielens-1m": 6032, "bookcrossing": 1747}
"""Test users of RecRanker's authors by kind of source (arXiv 2312.16018), whole data sets with the paper's filters."""


def tested_in_file_order(events: pa.Table, thresholds: Thresholds) -> int:
    """Test users of leave-one-out if simultaneous interactions stood as in the file (column 'row')."""
    ordered = in_file_order(events)
    likes = feedback_of(ordered["rating"], thresholds) == "like"
    known = Events(codes(ordered["user_id"]), codes(ordered["item_id"]), likes)
    return with_retrievable_targets(known, leave_one_out(known))[1]["split_test"]


def explain_denominator(counts: Mapping[str, float], source: str, split: str) -> str:
    """One sentence for each thing that decides how many users are tested.

    Args:
        counts: Of stage 'prepare'.
        source: Kind of the source.
        split: Kind of the split.
    """
    before, unseen, tested = (
        int(counts[name]) for name in ("test_users_before_dropping", "test_items_unseen_in_training", "split_test")
    )
    said = [f"{tested} test users: {before} have a target, of which {unseen} like an item no training like holds."]
    ties = counts.get("split_test_in_file_order")
    if ties is not None and ties != tested:
        said.append(
            f"It is {int(ties)} when simultaneous interactions stand as in the file: ties decide which like is a "
            "user's last, and here they stand in a keyed random order, which no item's place in the file can leak into."
        )
    if split == "leave-one-out" and source in PAPER_TEST_USERS:
        said.append(f"RecRanker's authors: {PAPER_TEST_USERS[source]}.")
    return " ".join(said)
