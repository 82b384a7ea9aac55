"""Everything that is computed about one run's rankings, in one call."""

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from recranker.evaluation.beyond_accuracy import beyond_accuracy, catalogue_of
from recranker.evaluation.comparison import Comparison, compare
from recranker.evaluation.reliability import Reliability, reliabilities
from recranker.evaluation.results import bar_bounds, build_results, build_user_results, with_bar
from recranker.evaluation.slices import make_slices, slice_table


@dataclass(frozen=True)
class Evaluation:
    """What was found out about every row."""

    comparison: Comparison
    results: pa.Table
    """RESULTS."""
    bar: dict[str, list[float]]
    """Interval of each row's NDCG@3 minus the conventional re-ranker's."""
    slices: pa.Table
    """Of ``slice_table``."""
    beyond: pa.Table
    """Of ``beyond_accuracy``."""
    features_are: str
    """What its diversity is measured on."""
    reliability: Mapping[str, Reliability]
    """Of the rows that give probabilities."""

    @property
    def with_bar(self) -> pa.Table:
        """RESULTS with the interval against the conventional re-ranker."""
        return with_bar(self.results, self.bar)

    @property
    def user_results(self) -> pa.Table:
        """USER_RESULTS."""
        return build_user_results(self.comparison)

    @property
    def reliability_metrics(self) -> dict[str, float]:
        """``eval/ROW/ece`` and ``eval/ROW/brier`` of the rows that give probabilities."""
        errors = {f"eval/{row}/ece": one.ece for row, one in self.reliability.items()}
        return errors | {f"eval/{row}/brier": one.brier for row, one in self.reliability.items()}


def evaluate(
    *,
    interactions: pa.Table,
    items: pa.Table,
    candidates: pa.Table,
    signals: pa.Table,
    rankings: pa.Table,
    samples: int,
    seed: int,
) -> Evaluation:
    """Compare all rankers there are tables for.

    Args:
        interactions: INTERACTIONS.
        items: ITEMS.
        candidates: CANDIDATES.
        signals: SIGNALS; may be empty.
        rankings: RANKINGS; empty where no model ranked.
        samples: Bootstrap resamples of users.
        seed: The run's seed.

    Raises:
        DataError: If the tables contradict each other.
    """
    comparison = compare(interactions, candidates, signals, rankings)
    catalogue = catalogue_of(interactions, items)
    return Evaluation(
        comparison,
        results=build_results(comparison, samples=samples, seed=seed),
        bar=bar_bounds(comparison, samples=samples, seed=seed),
        slices=slice_table(comparison, make_slices(comparison, interactions), samples=samples, seed=seed),
        beyond=beyond_accuracy(comparison, catalogue, seed=seed),
        features_are=catalogue.features_are,
        reliability=reliabilities(comparison.lists, rankings),
    )
