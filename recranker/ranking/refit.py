"""The conventional re-ranker as a function of candidate lists alone, for the audit that shuffles their labels."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.backbones.events import index_interactions
from recranker.backbones.folds import data_of, make_folds
from recranker.backbones.item_item import like_factors
from recranker.backbones.settings import BackboneSettings
from recranker.backbones.signals import flat_signals
from recranker.randomness import keys_of
from recranker.ranking.conventional import PARTS, fit_and_score, target_places
from recranker.ranking.evidence import FoldView, evidence_of
from recranker.ranking.settings import Reranker

Floats = NDArray[np.float64]


def refitted(
    interactions: pa.Table,
    items: pa.Table,
    signals: pa.Table,
    facts: Mapping[str, Any],
    settings: BackboneSettings,
    seed: int,
) -> Callable[[pa.Table, pa.Table], list[Floats]]:
    """Fits the logistic re-ranker on training lists and scores other lists; all features are worked out anew.

    Args:
        interactions: INTERACTIONS.
        items: ITEMS.
        signals: SIGNALS; what other backbones say, without the published re-rankers.
        facts: Of stage 'prepare'.
        settings: How the folds of the lists were cut.
        seed: The run's.
    """
    indexed = index_interactions(interactions)
    folds = [data_of(indexed, fold) for fold in make_folds(indexed, settings)]
    views = {data.name: FoldView(data, {"likes": like_factors(data, (seed, "audit", data.name))[1]}) for data in folds}
    others = signals.filter(pc.invert(pc.is_in(signals["signal"], value_set=pa.array(get_args(Reranker)))))

    def fit_then_score(training: pa.Table, ranked: pa.Table) -> list[Floats]:
        lists = pa.concat_tables([training, ranked]).combine_chunks()
        evidence = evidence_of(indexed, views, lists, flat_signals(lists, others), items, facts)
        parts = keys_of(training["user_id"], seed, "audit") % np.uint64(PARTS)
        groups = np.concatenate([1 + parts.astype(np.int64), np.zeros(ranked.num_rows, np.int64)])
        scores = fit_and_score(evidence.raw, evidence.starts, target_places(lists), groups, seed=seed)
        return np.split(scores, evidence.starts[1:])[training.num_rows :]

    return fit_then_score
