"""What a ranking is worth, user by user: hit rate, NDCG, and how far two rankings agree."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def discounts_at(k: int) -> Floats:
    """``(k,)`` weight of each rank, 1.0 at the top.

    Raises:
        ValueError: If ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return np.asarray(1.0 / np.log2(np.arange(2, k + 2)), dtype=np.float64)


def hits_at_positions(positions: Ints, *, width: int) -> Bools:
    """``(users, width)`` True where the user's one relevant item stands; no True in a row whose position is negative.

    Args:
        positions: ``(users,)`` place of the item in the user's list, 0 = top, below 0 = not in it.
        width: Length of the longest list.
    """
    return np.asarray(positions[:, None] == np.arange(width), dtype=np.bool_)


def hr_at_k(hits: Bools, *, k: int) -> Floats:
    """``(users,)`` 1.0 where a relevant item is in the top ``k``, else 0.0.

    Args:
        hits: ``(users, candidates)``; True where the item at that position (0 = top) is relevant.
        k: Cutoff rank, at least 1.

    Raises:
        ValueError: If ``k`` is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)


def ndcg_at_k(hits: Bools, num_relevant: Ints, *, k: int) -> Floats:
    """NDCG@k of each user's list under binary relevance.

    The ideal list holds the whole ground truth, so an item the retriever missed costs
    the ranker too: 1.0 means nothing better existed, not nothing better was offered.

    Args:
        hits: ``(users, candidates)``; True where the item at that position (0 = top) is relevant.
        num_relevant: ``(users,)`` size of the ground truth, retrieved or not.
        k: Cutoff rank, at least 1.

    Returns:
        ``(users,)`` in [0, 1]; NaN for a user without ground truth.

    Raises:
        ValueError: If ``k`` is below 1.

    Source: Järvelin & Kekäläinen 2002, doi:10.1145/582415.582418, with log2 discount.
    """
    discounts = discounts_at(k)
    gained = hits[:, :k] @ discounts[: hits.shape[1]]  # a list shorter than k is used whole
    ideal = np.concatenate([[np.nan], np.cumsum(discounts)])  # indexed by number of relevant items
    return np.asarray(gained / ideal[np.minimum(num_relevant, k)], dtype=np.float64)


def reciprocal_rank(positions: Ints) -> Floats:
    """``(users,)`` 1 / rank of the user's one relevant item, 0.0 where its position is negative; their mean is MRR."""
    return np.where(positions >= 0, 1.0 / (np.maximum(positions, 0) + 1.0), 0.0)


def expected_hr_at_k(lengths: Ints, *, k: int) -> Floats:
    """``(users,)`` mean of HR@k over all orders of a list of length ``n`` with one relevant item: ``min(k, n) / n``."""
    return np.asarray(np.minimum(k, lengths) / lengths, dtype=np.float64)


def expected_ndcg_at_k(lengths: Ints, *, k: int) -> Floats:
    """``(users,)`` mean of NDCG@k over all orders of a list of that length that holds the one relevant item.

    The item stands at each rank with probability ``1 / n``, so this is the sum of the first
    ``min(k, n)`` discounts divided by ``n``: exact, where a shuffle would be one noisy draw.
    """
    reached = np.concatenate([[0.0], np.cumsum(discounts_at(k))])
    return np.asarray(reached[np.minimum(lengths, k)] / lengths, dtype=np.float64)


def expected_reciprocal_rank(lengths: Ints) -> Floats:
    """``(users,)`` mean of the reciprocal rank over all orders of a list of length ``n``: ``H(n) / n``."""
    harmonic = np.cumsum(1.0 / np.arange(1, int(lengths.max(initial=1)) + 1))
    return np.asarray(harmonic[lengths - 1] / lengths, dtype=np.float64)


def kendall_tau(first: Floats, second: Floats) -> Floats:
    """``(lists,)`` Kendall's tau-b between two scorings of the same items, 1 = same order, -1 = reversed.

    Args:
        first: ``(lists, items)`` scores, higher is better.
        second: ``(lists, items)`` other scores of the same items in the same columns.

    Returns:
        NaN where one scoring ties all items, or there are fewer than two.

    Source: Kendall 1945, doi:10.2307/2332303.
    """
    left, right = np.triu_indices(first.shape[1], k=1)
    first_order = np.sign(first[:, left] - first[:, right])
    second_order = np.sign(second[:, left] - second[:, right])
    untied = np.sqrt((first_order != 0).sum(axis=1) * (second_order != 0).sum(axis=1).astype(np.float64))
    agreement = (first_order * second_order).sum(axis=1)
    return np.asarray(np.divide(agreement, untied, out=np.full(len(first), np.nan), where=untied > 0), dtype=np.float64)


def rank_biased_overlap(first: Sequence[Hashable], second: Sequence[Hashable], *, p: float = 0.9) -> float:
    """Extrapolated RBO of two orders of the same items, best first: 1.0 = the same, and the top counts most.

    The share of items that the first ``d`` places have in common, averaged over all depths ``d`` with weights that
    fall by ``p`` each, as if beyond the end the orders went on to agree as they do there. The first ten places hold
    about 86 % of the weight at ``p = 0.9``.

    Raises:
        ValueError: If ``p`` is not between 0 and 1, or an order is empty, repeats an item or has others than the other.

    Source: Webber, Moffat & Zobel 2010, doi:10.1145/1852102.1852106, RBO_EXT for lists of one length.
    """
    if not 0.0 < p < 1.0:
        raise ValueError(f"p must lie between 0 and 1, got {p}")
    if not first or len(set(first)) != len(first) or len(first) != len(second) or set(first) != set(second):
        raise ValueError(f"needed two orders of the same distinct items, got {len(first)} and {len(second)} of them")
    place = {item: depth for depth, item in enumerate(second, start=1)}
    reached = np.array([max(depth, place[item]) for depth, item in enumerate(first, start=1)])
    depths = np.arange(1, len(first) + 1)
    agreement = (reached <= depths[:, None]).sum(axis=1) / depths
    weights = p**depths
    return float(agreement[-1] * weights[-1] + (1.0 - p) / p * (agreement * weights).sum())


def first_slot_rate(log_probabilities: Floats) -> float:
    """Share of questions whose first label is the likeliest; a tie at the top counts as its share.

    Without position bias and with keyed shuffles it is about ``1 / labels``.

    Args:
        log_probabilities: ``(questions, labels)`` in the order the labels were shown.

    Returns:
        NaN where there are no questions.
    """
    if not len(log_probabilities):
        return float("nan")
    best = log_probabilities == log_probabilities.max(axis=1, keepdims=True)
    return float((best[:, 0] / best.sum(axis=1)).mean())


def pair_agreement(margins: Floats, swapped_margins: Floats) -> float:
    """Share of pairs for which both orders of the question prefer the same item.

    Args:
        margins: ``(pairs,)`` preference for item A over B when A is shown first, above 0 = A.
        swapped_margins: ``(pairs,)`` preference for the same A over B when B is shown first.

    Returns:
        NaN where there are no pairs. A margin of exactly 0 prefers nothing and so does not agree.
    """
    if not len(margins):
        return float("nan")
    return float((np.sign(margins) * np.sign(swapped_margins) > 0).mean())
