"""The re-ranker of the audit: on shuffled labels it falls to chance, unless a feature reads them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from recranker.backbones.assembly import fold_fits, lists_of
from recranker.backbones.candidates import Scale
from recranker.backbones.events import index_interactions
from recranker.backbones.folds import data_of, make_folds
from recranker.backbones.settings import BackboneSettings, EASESettings, ItemKNNSettings
from recranker.backbones.signals import signal_rows
from recranker.errors import LeakageError
from recranker.evaluation.shuffled_labels import check_shuffled_labels
from recranker.ranking import refit
from recranker.ranking.conventional import target_places
from recranker.schema import ITEMS
from tests.backbones.made_up import many_interactions

FACTS = {"order": "time", "has_ratings": True, "dislike_below": 3.0, "source": "made up"}
SETTINGS = BackboneSettings(retriever=EASESettings(), signals=(ItemKNNSettings(),), num_candidates=26)


@pytest.fixture(scope="module")
def run() -> tuple[pa.Table, Callable[[pa.Table, pa.Table], Any]]:
    """Candidate lists of a made-up run, and the audit's ranker for them."""
    table = many_interactions(num_users=90, num_items=100)
    interactions = index_interactions(table)
    folds = [(fold, data_of(interactions, fold)) for fold in make_folds(interactions, SETTINGS)]
    scale = Scale(1.0, 5.0, 4.0)
    lists, _ = lists_of(interactions, fold_fits(folds, {}, SETTINGS, scale, 0), SETTINGS, scale)
    items = pa.table(
        {
            "item_id": interactions.item_ids,
            "title": [f"Film {index % 7}" for index in range(interactions.num_items)],
            "genres": [["Drama"]] * interactions.num_items,
        },
        schema=ITEMS.schema,
    )
    return lists.table, refit.refitted(table, items, signal_rows(lists.table, lists.signals), FACTS, SETTINGS, 0)


def test_shuffled_labels_fall_to_chance(run: tuple[pa.Table, Any]) -> None:
    lists, ranker = run
    assert check_shuffled_labels(lists, ranker, seed=0).lists >= 20


def test_a_feature_that_reads_the_target_is_found(run: tuple[pa.Table, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lists, ranker = run
    honest = refit.evidence_of

    def leaking(interactions: Any, folds: Any, asked: pa.Table, *others: Any) -> Any:
        found = honest(interactions, folds, asked, *others)
        knows = np.zeros(len(found.raw))
        knows[found.starts + target_places(asked)] = 1.0
        return replace(found, raw=np.concatenate([found.raw[:, :-1], knows[:, None]], axis=1))

    monkeypatch.setattr(refit, "evidence_of", leaking)
    with pytest.raises(LeakageError, match="with labels shuffled the ranker reaches"):
        check_shuffled_labels(lists, ranker, seed=0)
