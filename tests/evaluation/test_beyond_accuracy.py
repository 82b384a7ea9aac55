import numpy as np
import pyarrow as pa
import pytest
from scipy.sparse import csr_array

from recranker.errors import DataError
from recranker.evaluation.beyond_accuracy import (
    beyond_accuracy,
    catalogue_coverage,
    catalogue_of,
    intra_list_diversity,
    novelty,
    popularity_lift,
)
from recranker.evaluation.comparison import compare
from recranker.evaluation.lists import PADDING
from recranker.schema import ITEMS, RANKINGS, SIGNALS
from tests.tables import candidate_list, candidates, interactions

TOP = np.array([[0, 1], [1, PADDING]])


def items(genres: dict[str, list[str]]) -> pa.Table:
    rows = [{"item_id": item, "title": f"The {item}", "genres": words} for item, words in genres.items()]
    return pa.Table.from_pylist(rows, schema=ITEMS.schema)


def test_coverage_counts_different_items_of_the_catalogue() -> None:
    assert catalogue_coverage(TOP, 8) == 2 / 8


def test_novelty_is_the_mean_self_information_in_bits() -> None:
    likes = np.array([8, 2])  # of 16 users: 1 bit and 3 bits
    assert novelty(TOP, likes, 16) == pytest.approx((1 + 3 + 3) / 3)
    assert novelty(np.array([[0]]), np.array([0]), 16) == 4  # never liked: as if by one user


def test_diversity_is_the_mean_jaccard_distance_within_lists() -> None:
    features = csr_array(np.array([[1, 1, 0], [0, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]], dtype=float))
    assert intra_list_diversity(np.array([[0, 1, 2]]), features) == pytest.approx((2 / 3 + 0 + 2 / 3) / 3)
    assert intra_list_diversity(np.array([[0, 2, PADDING]]), features) == 0
    assert intra_list_diversity(np.array([[0, 3], [3, 4]]), features) == 1  # the second list says nothing
    assert np.isnan(intra_list_diversity(np.array([[3, 4]]), features))


def test_popularity_lift_compares_lists_with_profiles() -> None:
    assert popularity_lift(TOP, np.array([6, 2]), 2.0) == pytest.approx(((6 + 2) / 2 + 2) / 2 / 2.0 - 1)


def test_popularity_comes_from_training_likes_alone() -> None:
    events = interactions(
        ("u", "a", 0, "like", "train"),
        ("u", "b", 1, "like", "train"),
        ("v", "a", 0, "like", "train"),
        ("v", "b", 1, "dislike", "train"),
        ("v", "b", 2, "like", "test"),
    )
    made = catalogue_of(events, items({"a": ["x"], "b": ["y"]}))
    assert made.likes.tolist() == [2, 1]
    assert (made.num_users, made.features_are) == (2, "genres")
    assert made.profile_popularity == pytest.approx((1.5 + 2) / 2)


def test_without_genres_words_of_the_title_are_compared() -> None:
    made = catalogue_of(interactions(("u", "a", 0, "like", "train")), items({"a": [], "b": []}))
    assert made.features_are == "title words"
    assert intra_list_diversity(np.array([[0, 1]]), made.features) == pytest.approx(2 / 3)  # "the" of the, a, b


def test_every_row_is_looked_at_over_the_lists_that_all_rows_ranked() -> None:
    events = interactions(("u", "a", 0, "like", "train"), ("u", "b", 1, "like", "test"), ("v", "x", 1, "like", "test"))
    lists = candidates(
        candidate_list("u", "test", "b", ["a", "b", "c", "d"]), candidate_list("v", "test", "x", ["d", "e"])
    )
    ranking = {"list_id": "test/u/b", "user_id": "u", "split": "test", "row": "hybrid", "scores": [4.0, 3.0, 2.0, 1.0]}
    ranked = pa.Table.from_pylist([ranking | {"item_ids": ["d", "c", "b", "a"]}], schema=RANKINGS.schema)
    catalogue = catalogue_of(events, items({item: [item] for item in "abcdex"}))
    none = SIGNALS.schema.empty_table()
    with_model = beyond_accuracy(compare(events, lists, none, ranked), catalogue, seed=0).to_pylist()
    without = beyond_accuracy(compare(events, lists, none, ranked.slice(0, 0)), catalogue, seed=0).to_pylist()
    assert {line["lists"] for line in with_model} == {1}
    assert {line["lists"] for line in without} == {2}
    by_row = {(line["row"], line["k"]): line for line in with_model}
    assert by_row["hybrid", 3]["coverage"] == by_row["backbone", 3]["coverage"] == 3 / 6
    assert by_row["hybrid", 3]["popularity_lift"] == -1  # d, c, b: nobody likes them
    assert by_row["backbone", 3]["popularity_lift"] == pytest.approx(1 / 3 - 1)


def test_a_candidate_outside_the_catalogue_is_refused() -> None:
    events = interactions(("u", "a", 0, "like", "train"), ("u", "b", 1, "like", "test"))
    made = compare(
        events,
        candidates(candidate_list("u", "test", "b", ["a", "b"])),
        SIGNALS.schema.empty_table(),
        RANKINGS.schema.empty_table(),
    )
    with pytest.raises(DataError, match="1 candidates of test lists are not in table 'items'"):
        beyond_accuracy(made, catalogue_of(events, items({"a": ["x"]})), seed=0)
