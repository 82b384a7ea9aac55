"""Pairs of ids."""

import numpy as np
import pyarrow as pa

from recranker.data.lookup import Pairs, codes, opened, places


def _text(*values: str) -> pa.ChunkedArray:
    return pa.chunked_array([list(values)], pa.string())


def test_pairs_are_found_by_both_ids() -> None:
    pairs = Pairs.of(_text("u", "v", "u"), _text("b", "a", "a"))
    assert pairs.find(_text("u", "v", "v", "w", "u"), _text("a", "a", "b", "a", "c")).tolist() == [2, 1, -1, -1, -1]
    assert pairs.repeated.tolist() == []


def test_repeated_pairs_are_named_and_the_first_is_found() -> None:
    pairs = Pairs.of(_text("u", "u", "u"), _text("a", "b", "a"))
    assert pairs.repeated.tolist() == [2]
    assert pairs.find(_text("u"), _text("a")).tolist() == [0]


def test_nothing_is_found_in_nothing() -> None:
    assert Pairs.of(_text(), _text()).find(_text("u"), _text("a")).tolist() == [-1]


def test_lists_open_across_chunks_with_rows_counted_through() -> None:
    kind = pa.list_(pa.string())
    lists = pa.chunked_array([pa.array([["a"], []], kind), pa.array([["b", "c"]], kind)])
    rows, items = opened(lists)
    assert rows.tolist() == [0, 2, 2]
    assert items.to_pylist() == ["a", "b", "c"]


def test_places_start_anew_in_each_run() -> None:
    assert places(np.array([4, 4, 1, 4])).tolist() == [0, 1, 0, 0]
    assert places(np.array([], dtype=np.int64)).tolist() == []


def test_codes_are_equal_for_equal_ids_only() -> None:
    assert codes(_text("b", "a", "b")).tolist() == [0, 1, 0]
