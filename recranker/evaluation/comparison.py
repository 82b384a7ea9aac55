"""Every ranker's order of the same lists, and what each order is worth, user by user.

A user whose target was not retrieved is a miss for every ranker, so only lists that hold their
target have values and the others enter through the denominator.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.errors import DataError
from recranker.evaluation.intervals import paired_bootstrap
from recranker.evaluation.lists import (
    PADDING,
    Bools,
    Floats,
    Ints,
    OfferedLists,
    offered_lists,
    order_by_scores,
    order_of_ids,
    refuse,
    refuse_duplicates,
    same_items,
    unusable_scores,
)
from recranker.evaluation.metrics import (
    expected_hr_at_k,
    expected_ndcg_at_k,
    expected_reciprocal_rank,
    hits_at_positions,
    hr_at_k,
    ndcg_at_k,
    reciprocal_rank,
)
from recranker.evaluation.rows import BAR, BASELINES, INTERVAL_OF, LEARNERS, row_order


@dataclass(frozen=True)
class Comparison:
    """All rows over the same test users."""

    lists: OfferedLists
    orders: Mapping[str, Ints]
    """``(lists, width)`` candidates' places, best first, by row; a line of padding where the row did not rank the list.
    'random' has none: it is an expectation."""
    values: Mapping[str, Floats]
    """``(hits, metrics)`` METRICS of the lists that hold their target, by row, in reading order."""

    @property
    def positions(self) -> dict[str, Ints]:
        """``(hits,)`` rank - 1 of each target, by row; without 'random'."""
        return {row: _position(order, self.lists) for row, order in self.orders.items()}

    @property
    def num_hits(self) -> int:
        """Users with their target among the candidates."""
        return int(self.lists.hit.sum())

    def gains(self, baseline: str, rows: Bools | slice = slice(None)) -> Floats:
        """``(hits, rankers)`` NDCG@3 minus the baseline's, for the chosen hits."""
        stacked = np.stack([one[rows, INTERVAL_OF] for one in self.values.values()], axis=1)
        return np.asarray(stacked - self.values[baseline][rows, INTERVAL_OF, None], dtype=np.float64)

    def bounds(self, baseline: str, *, samples: int, seed: int) -> Floats:
        """``(rankers, 2)`` 95 % interval of each row's NDCG@3 minus the baseline's, over all test users."""
        unchanged = self.lists.num_users - self.num_hits
        return paired_bootstrap(self.gains(baseline), samples=samples, seed=seed, num_unchanged=unchanged)


def compare(interactions: pa.Table, candidates: pa.Table, signals: pa.Table, rankings: pa.Table) -> Comparison:
    """Every row there is data for.

    Args:
        interactions: INTERACTIONS; every test event is one user of the denominator.
        candidates: CANDIDATES; the lists of split 'test' are used.
        signals: SIGNALS; the conventional re-rankers among them become rows. May be empty.
        rankings: RANKINGS; may be empty, and may leave out lists that do not hold their target.

    Raises:
        DataError: If lists and test events disagree, a ranking is no permutation of its list's
            candidates, or a ranker leaves out a list with a hit.
    """
    lists = offered_lists(interactions, candidates)
    orders = _orders_of_baselines(lists) | _orders_of_learners(lists, signals) | _orders_of_rankers(lists, rankings)
    values = {row: _values_at(_position(order, lists)) for row, order in orders.items()}
    values["random"] = _expected_values(lists.lengths[lists.hit])
    return Comparison(
        lists,
        {row: orders[row] for row in row_order(orders)},
        {row: values[row] for row in row_order(values)},
    )


def mean_reciprocal_ranks(comparison: Comparison) -> dict[str, float]:
    """MRR over all test users, by row; a target beyond the candidates counts 0."""
    ranks = {row: reciprocal_rank(at) for row, at in comparison.positions.items()}
    ranks["random"] = expected_reciprocal_rank(comparison.lists.lengths[comparison.lists.hit])
    return {row: float(ranks[row].sum()) / comparison.lists.num_users for row in comparison.values}


def hit_rate_curves(comparison: Comparison, *, max_k: int) -> dict[str, Floats]:
    """``(max_k,)`` HR@1 ... HR@max_k over all test users, by row."""
    lengths, users = comparison.lists.lengths[comparison.lists.hit], comparison.lists.num_users
    ks = np.arange(1, max_k + 1)
    curves = {row: (at[:, None] < ks).sum(axis=0) / users for row, at in comparison.positions.items()}
    curves["random"] = np.array([expected_hr_at_k(lengths, k=int(k)).sum() for k in ks]) / users
    return {row: curves[row] for row in comparison.values}


def _orders_of_baselines(lists: OfferedLists) -> dict[str, Ints]:
    """What needs no LLM: as retrieved, at best, by popularity, by the re-ranker that is the hint."""
    at_best = np.where(lists.places == PADDING, lists.places.shape[1], lists.places)
    at_best = np.argsort(np.where(lists.places == lists.target[:, None], -1, at_best), axis=1, kind="stable")
    return {
        "backbone": lists.places,
        "oracle": np.where(lists.places == PADDING, PADDING, at_best),
        "popularity": _by_scores(lists, lists.table["popularity"], "column 'popularity'"),
        BAR: _by_scores(lists, lists.table["reranker_scores"], "column 'reranker_scores'"),
    }


def _orders_of_learners(lists: OfferedLists, signals: pa.Table) -> dict[str, Ints]:
    return {
        name: _order_of_learner(lists, found, name)
        for name in LEARNERS
        if (found := signals.filter(pc.equal(signals["signal"], name))).num_rows
    }


def _order_of_learner(lists: OfferedLists, signals: pa.Table, name: str) -> Ints:
    where = pc.index_in(lists.table["list_id"], value_set=signals["list_id"].combine_chunks())
    refuse(lists.table, pc.is_null(where), f"signal '{name}' of table 'signals' leaves out this list")
    return _by_scores(lists, signals["scores"].take(where), f"signal '{name}' of table 'signals'")


def _by_scores(lists: OfferedLists, scores: pa.ChunkedArray, what: str) -> Ints:
    refuse(lists.table, unusable_scores(scores, lists.lengths), f"{what} is not one finite score per candidate")
    return order_by_scores(scores)


def _orders_of_rankers(lists: OfferedLists, rankings: pa.Table) -> dict[str, Ints]:
    rankings = rankings.filter(pc.equal(rankings["split"], "test"))
    names = row_order(set(rankings["row"].to_pylist()))
    taken = [name for name in names if name in BASELINES]
    if taken:
        raise DataError(f"table 'rankings' uses the names of baseline rows {taken}; rename these rankers")
    return {name: _order_of_ranker(lists, rankings.filter(pc.equal(rankings["row"], name)), name) for name in names}


def _order_of_ranker(lists: OfferedLists, rankings: pa.Table, name: str) -> Ints:
    row = f"row '{name}' of table 'rankings'"
    refuse_duplicates(rankings["list_id"], f"{row} ranks list {{}} {{}} times")
    where = pc.index_in(lists.table["list_id"], value_set=rankings["list_id"].combine_chunks())
    ranked = pc.is_valid(where).to_numpy()
    refuse(lists.table, ~ranked & lists.hit, f"{row} leaves out this list, which holds its target")
    known = lists.table.filter(pa.array(ranked))
    ids = rankings.take(where.drop_null())["item_ids"]
    refuse(known, ~same_items(ids, known["candidate_ids"]), f"{row} is not a permutation of the list's candidates")
    order = np.full_like(lists.places, PADDING)
    found = order_of_ids(ids, known["candidate_ids"])
    order[ranked, : found.shape[1]] = found
    return order


def _position(order: Ints, lists: OfferedLists) -> Ints:
    """``(hits,)`` where in its order each retrieved target stands."""
    return np.asarray((order == lists.target[:, None])[lists.hit].argmax(axis=1), dtype=np.int64)


def _values_at(positions: Ints) -> Floats:
    """``(hits, metrics)`` with each list's target at the given place."""
    hits = hits_at_positions(positions, width=max(int(positions.max(initial=0)) + 1, 5))
    one = np.ones(len(positions), dtype=np.int64)
    return np.stack(
        [hr_at_k(hits, k=3), ndcg_at_k(hits, one, k=3), hr_at_k(hits, k=5), ndcg_at_k(hits, one, k=5)], axis=1
    )


def _expected_values(lengths: Ints) -> Floats:
    """``(hits, metrics)`` in expectation over all orders, so that the row carries no noise of its own."""
    return np.stack([one(lengths, k=k) for k in (3, 5) for one in (expected_hr_at_k, expected_ndcg_at_k)], axis=1)
