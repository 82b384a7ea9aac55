"""The results table: every ranker beside the baselines, over all test users.

A user whose target was not retrieved is a miss for every ranker, so only lists that hold their
target are looked at and the others enter through the denominator.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from recranker.errors import DataError
from recranker.evaluation.intervals import paired_bootstrap
from recranker.evaluation.lists import HitLists, hit_lists, positions_of, refuse, same_items
from recranker.evaluation.metrics import (
    expected_hr_at_k,
    expected_ndcg_at_k,
    hits_at_positions,
    hr_at_k,
    ndcg_at_k,
)
from recranker.schema import RESULTS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

ROW_ORDER = (
    "backbone",
    "random",
    "oracle",
    "popularity",
    "conventional",
    "untuned_pointwise",
    "untuned_pairwise",
    "untuned_listwise",
    "untuned_hybrid",
    "pointwise",
    "pairwise",
    "listwise",
    "hybrid_paper",
    "hybrid",
)
"""Baselines first, then the rankers in this order; others follow alphabetically."""

BASELINES = ROW_ORDER[:5]
METRICS = ("hr_at_3", "ndcg_at_3", "hr_at_5", "ndcg_at_5")
INTERVAL_OF = METRICS.index("ndcg_at_3")


def build_results(
    interactions: pa.Table, candidates: pa.Table, rankings: pa.Table, *, samples: int, seed: int
) -> pa.Table:
    """The RESULTS table, rows in reading order.

    Args:
        interactions: INTERACTIONS; every test event is one user of the denominator.
        candidates: CANDIDATES; the lists of split 'test' are used.
        rankings: RANKINGS; of split 'test' the lists with a hit are used.
        samples: Bootstrap resamples of users.
        seed: The run's seed.

    Raises:
        DataError: If lists and test events disagree, a ranking is no permutation of its list's
            candidates, or a ranker leaves out a list with a hit.
    """
    lists = hit_lists(interactions, candidates)
    values = _values_of_baselines(lists) | _values_of_rankers(lists, rankings)
    names = row_order(values)
    stacked = np.stack([values[name] for name in names])  # (rows, lists, metrics)
    means = stacked.sum(axis=1) / lists.num_users
    gains = (stacked[:, :, INTERVAL_OF] - stacked[names.index("backbone"), :, INTERVAL_OF]).T
    unchanged = lists.num_users - len(gains)
    bounds = paired_bootstrap(gains, samples=samples, seed=seed, num_unchanged=unchanged)
    columns: dict[str, Any] = {"row": names}
    columns |= {metric: means[:, index] for index, metric in enumerate(METRICS)}
    columns |= {"difference_low": bounds[:, 0], "difference_high": bounds[:, 1]}
    columns |= {"users": [lists.num_users] * len(names), "users_with_hit": [len(gains)] * len(names)}
    return pa.table(columns, schema=RESULTS.schema)


def row_order(names: Iterable[str]) -> list[str]:
    """``names`` as the table lists them: ROW_ORDER, then all others alphabetically."""
    names = set(names)
    known = [name for name in ROW_ORDER if name in names]
    return known + sorted(name for name in names if name not in ROW_ORDER)


def ordered(results: pa.Table) -> pa.Table:
    """RESULTS in reading order, wherever the table was kept meanwhile."""
    rows = results["row"].to_pylist()
    return results.take([rows.index(name) for name in row_order(rows)])


def among_hits(results: pa.Table) -> pa.Table:
    """RESULTS over the users with a hit only, where alone re-ranking can be seen.

    All others are misses for every ranker, so each mean and bound is divided by the share of users
    with a hit. Without any such user the values are 0.
    """
    users = results["users"].to_numpy()
    hits = results["users_with_hit"].to_numpy()
    factor = np.divide(users, hits, out=np.zeros(len(hits)), where=hits > 0)
    columns = {name: results[name] for name in results.column_names}
    for name in (*METRICS, "difference_low", "difference_high"):
        columns[name] = pa.array(results[name].to_numpy() * factor)
    return pa.table(columns | {"users": results["users_with_hit"]}, schema=RESULTS.schema)


def results_json(results: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """RESULTS as plain values for machines: ``{"rows": [{"row": ..., "hr_at_3": ..., ...}]}``."""
    return {"rows": ordered(results).select(RESULTS.schema.names).to_pylist()}


def metrics_of(results: pa.Table, *, served: str) -> dict[str, float]:
    """Numbers for the record of the run: ``eval/ROW/METRIC`` for each row, ``eval/METRIC`` for the row served."""
    rows = ordered(results).to_pylist()
    metrics = {f"eval/{row['row']}/{name}": float(row[name]) for row in rows for name in METRICS}
    metrics |= {f"eval/{name}": float(row[name]) for row in rows if row["row"] == served for name in METRICS}
    return metrics | {"eval/users": float(rows[0]["users"]), "eval/users_with_hit": float(rows[0]["users_with_hit"])}


def _values_of_baselines(lists: HitLists) -> dict[str, Floats]:
    """``(lists, metrics)`` of what needs no LLM: as retrieved, at random, at best, by popularity, by the re-ranker."""
    target = positions_of(lists.table["target_id"], lists.table["candidate_ids"])
    return {
        "backbone": _values_at(target),
        "random": _expected_values(lists.lengths),
        "oracle": _values_at(np.zeros_like(target)),
        "popularity": _values_at(_places_by(lists, "popularity", target)),
        "conventional": _values_at(_places_by(lists, "reranker_scores", target)),
    }


def _values_of_rankers(lists: HitLists, rankings: pa.Table) -> dict[str, Floats]:
    """``(lists, metrics)`` of every ranker in RANKINGS."""
    rankings = rankings.filter(pc.equal(rankings["split"], "test"))
    names = row_order(set(rankings["row"].to_pylist()))
    taken = [name for name in names if name in BASELINES]
    if taken:
        raise DataError(f"table 'rankings' uses the names of baseline rows {taken}; rename these rankers")
    return {name: _values_of_ranker(lists, rankings.filter(pc.equal(rankings["row"], name)), name) for name in names}


def _values_of_ranker(lists: HitLists, rankings: pa.Table, name: str) -> Floats:
    counted = pc.value_counts(rankings["list_id"])
    for entry in counted.filter(pc.greater(counted.field("counts"), 1)).slice(0, 1).to_pylist():
        raise DataError(f"row '{name}' of table 'rankings' ranks list {entry['values']!r} {entry['counts']} times")
    where = pc.index_in(lists.table["list_id"], value_set=rankings["list_id"].combine_chunks())
    refuse(
        lists.table, pc.is_null(where), f"row '{name}' of table 'rankings' leaves out this list, which holds its target"
    )
    ranked = rankings.take(where)["item_ids"]
    same = same_items(ranked, lists.table["candidate_ids"])
    refuse(
        lists.table, pa.array(~same), f"row '{name}' of table 'rankings' is not a permutation of the list's candidates"
    )
    return _values_at(positions_of(lists.table["target_id"], ranked))


def _values_at(positions: Ints) -> Floats:
    """``(lists, metrics)`` with each list's target at the given place."""
    hits = hits_at_positions(positions, width=max(int(positions.max(initial=0)) + 1, 5))
    one = np.ones(len(positions), dtype=np.int64)
    return np.stack(
        [hr_at_k(hits, k=3), ndcg_at_k(hits, one, k=3), hr_at_k(hits, k=5), ndcg_at_k(hits, one, k=5)], axis=1
    )


def _expected_values(lengths: Ints) -> Floats:
    """``(lists, metrics)`` in expectation over all orders, so that the row carries no noise of its own."""
    return np.stack([one(lengths, k=k) for k in (3, 5) for one in (expected_hr_at_k, expected_ndcg_at_k)], axis=1)


def _places_by(lists: HitLists, signal: str, target: Ints) -> Ints:
    """Each target's place when candidates go by a column of CANDIDATES, ties by the retriever's order."""
    column = lists.table[signal].combine_chunks()
    owner = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    values = column.flatten().to_numpy(zero_copy_only=False)
    starts = np.concatenate([[0], np.cumsum(lists.lengths)])[:-1]
    place = np.arange(len(owner)) - starts[owner]
    of_target = values[starts + target][owner]
    before = (values > of_target) | ((values == of_target) & (place < target[owner]))
    return np.bincount(owner, before, minlength=len(target)).astype(np.int64)


def format_table(results: pa.Table, *, title: str) -> Table:
    """RESULTS for a person: metrics, and the difference to the retriever's order with its interval.

    Args:
        results: RESULTS, or what ``among_hits`` makes of it.
        title: What was ranked.
    """
    rows = ordered(results).to_pylist()
    base = rows[0]["ndcg_at_3"]
    caption = f"{rows[0]['users']} users, {rows[0]['users_with_hit']} with their target among the candidates"
    table = Table(title=escape(title), caption=caption, title_justify="left", caption_justify="left")
    table.add_column("ranker")
    for heading in ("HR@3", "NDCG@3", "HR@5", "NDCG@5", "NDCG@3 against backbone, 95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        style = "dim" if row["row"] in BASELINES else ""
        numbers = [f"{row[metric]:.4f}" for metric in METRICS]
        table.add_row(
            row["row"], *numbers, difference_text(row, base), style=style, end_section=row["row"] == BASELINES[-1]
        )
    return table


def difference_text(row: dict[str, Any], base: float) -> str:
    """``+12.3 % [-4.0, 28.1]`` of the backbone's NDCG@3 ``base``; absolute where that is 0; a dash for the backbone."""
    if row["row"] == "backbone":
        return "-"
    bounds = row["ndcg_at_3"] - base, row["difference_low"], row["difference_high"]
    if not base:
        return "{:+.4f} [{:.4f}, {:.4f}]".format(*bounds)
    return "{:+.1f} % [{:.1f}, {:.1f}]".format(*(100.0 * bound / base for bound in bounds))
