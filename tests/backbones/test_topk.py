"""Exact top-k and ranks against brute force."""

import numpy as np
import pytest

from recranker.backbones.topk import ItemSets, ranks_of, top_k


def brute_force(row: np.ndarray, k: int) -> list[int]:
    possible = [column for column in range(len(row)) if np.isfinite(row[column])]
    return sorted(possible, key=lambda column: (-row[column], column))[:k]


@pytest.mark.parametrize("k", [1, 3, 8, 12])
def test_top_k_agrees_with_brute_force_under_masks_and_ties(k: int) -> None:
    random = np.random.default_rng(k)
    scores = random.integers(0, 4, (50, 8)).astype(np.float32)  # few values: many ties, also at the k-th place
    scores[random.random(scores.shape) < 0.3] = -np.inf
    scores[7] = -np.inf
    rows, columns = top_k(scores, k)
    for row in range(len(scores)):
        assert columns[rows == row].tolist() == brute_force(scores[row], k)


def test_rank_agrees_with_place_in_top_k() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 4, (30, 9)).astype(np.float32)
    targets = random.integers(0, 9, 30)
    expected = [brute_force(row, 9).index(target) + 1 for row, target in zip(scores, targets, strict=True)]
    assert ranks_of(scores, targets).tolist() == expected


def test_masked_target_ranks_behind_all() -> None:
    assert ranks_of(np.array([[-np.inf, -1.0, -2.0]], np.float32), np.array([0])).tolist() == [4]


def test_item_sets_give_each_rows_items() -> None:
    sets = ItemSets.of(np.array([2, 0, 2]), np.array([5, 6, 7]), 4)
    places, items = sets.pairs(np.array([3, 2, 0, 2]))
    assert list(zip(places.tolist(), items.tolist(), strict=True)) == [(1, 5), (1, 7), (2, 6), (3, 5), (3, 7)]
