"""Exact retrieval over a whole catalogue: the best items of each query, or the rank of one, in bounded memory."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from recranker.backbones.fit import Fit, Queries
from recranker.backbones.topk import ItemSets, ranks_of, top_k

CELLS = 1 << 24
"""Scores held at a time (64 MB as float32); the result does not depend on it."""

Indices = NDArray[np.int64]


def retrieve(
    fit: Fit, queries: Queries, k: int, *, masked: ItemSets, eligible: NDArray[np.bool_], cells: int = CELLS
) -> tuple[Indices, Indices, NDArray[np.float32]]:
    """Query, item and score of the ``k`` best items of every query, best first; equal scores by item index.

    Args:
        fit: Whose scores.
        queries: For whom.
        k: Items per query; fewer come where fewer are left.
        masked: Items of each query that are out of the race.
        eligible: ``(I,)`` False for items that may be no candidate at all.
        cells: Scores held at a time.
    """
    found: list[tuple[Indices, Indices, NDArray[np.float32]]] = [
        (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    ]
    for start, scores in _blocks(fit, queries, masked, eligible, cells):
        rows, items = top_k(scores, k)
        found.append((rows + start, items, scores[rows, items]))
    rows, items, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return rows, items, values


def target_ranks(
    fit: Fit,
    queries: Queries,
    targets: Indices,
    *,
    masked: ItemSets,
    eligible: NDArray[np.bool_],
    cells: int = CELLS,
) -> Indices:
    """``(Q,)`` rank of each query's target among all items, 1 = best; arguments as in ``retrieve``."""
    ranks = [np.empty(0, np.int64)]
    for start, scores in _blocks(fit, queries, masked, eligible, cells):
        ranks.append(ranks_of(scores, targets[start : start + len(scores)]))
    return np.concatenate(ranks)


def scores_of(fit: Fit, queries: Queries, rows: Indices, items: Indices, *, cells: int = CELLS) -> NDArray[np.float32]:
    """``(pairs,)`` score of one item each for the numbered queries; ``rows`` must not fall."""
    num_items = len(fit.item_factors)
    size = max(cells // max(num_items, 1), 1)
    found = [np.empty(0, np.float32)]
    for start in range(0, len(queries.users), size):
        end = min(start + size, len(queries.users))
        first, last = np.searchsorted(rows, [start, end])
        if first < last:
            scores = fit.scores(queries.part(start, end))
            found.append(scores[rows[first:last] - start, items[first:last]])
    return np.concatenate(found)


def _blocks(
    fit: Fit, queries: Queries, masked: ItemSets, eligible: NDArray[np.bool_], cells: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """First query and scores of each block, -inf where an item is out of the race."""
    size = max(cells // max(len(eligible), 1), 1)
    for start in range(0, len(queries.users), size):
        end = min(start + size, len(queries.users))
        scores = fit.scores(queries.part(start, end))
        scores[:, ~eligible] = -np.inf
        scores[masked.pairs(np.arange(start, end))] = -np.inf
        yield start, scores
