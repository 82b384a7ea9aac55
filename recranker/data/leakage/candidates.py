"""Checks of candidate lists and of what the fits behind them saw."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.gate import TRAIN, VALIDATION, refuse, splits_of
from recranker.data.lookup import Pairs, column, opened


def check_candidates(
    interactions: pa.Table, candidates: pa.Table, fit_events: pa.Table, facts: Mapping[str, Any]
) -> None:
    """No fit saw what its lists ask for, and no list gives its target away.

    Args:
        interactions: Rows of ``schema.INTERACTIONS``.
        candidates: Rows of ``schema.CANDIDATES``.
        fit_events: Rows of ``schema.FIT_EVENTS``.
        facts: ``rating_min, rating_max`` of stage 'prepare'.

    Raises:
        LeakageError: Naming the trap, a user and an item, and the way out.
    """
    interactions, candidates = interactions.combine_chunks(), candidates.combine_chunks()
    events = Pairs.of(interactions["user_id"], interactions["item_id"])
    _check_fits(interactions, events, fit_events)
    _check_out_of_fold(candidates, fit_events)
    _check_targets(interactions, events, candidates)
    _check_offers(interactions, events, candidates)
    _check_hits(candidates)
    _check_predicted_ratings(candidates, facts)


def _check_fits(interactions: pa.Table, events: Pairs, fit_events: pa.Table) -> None:
    rows = events.find(fit_events["user_id"], fit_events["item_id"])
    seen = np.append(splits_of(interactions), -1)[rows]  # -1: no such interaction
    refuse(
        seen != TRAIN,
        fit_events["user_id"],
        fit_events["item_id"],
        trap="a fit saw an event that is not a training event (held out, unused or unknown)",
        way_out="fit on rows of split 'train' only",
    )


def _check_out_of_fold(candidates: pa.Table, fit_events: pa.Table) -> None:
    """Signals shown for a target must come from a fit that has not seen it: out of fold, as they are at test."""
    for fold in pc.unique(candidates["fold"]).to_pylist():
        lists = candidates.filter(pc.equal(candidates["fold"], fold))
        fitted = fit_events.filter(pc.equal(fit_events["fold"], fold))
        seen = Pairs.of(fitted["user_id"], fitted["item_id"]).find(lists["user_id"], lists["target_id"]) >= 0
        unknown = np.full(len(seen), fitted.num_rows == 0)
        _refuse(unknown, lists, f"fold {fold!r} does not say what it was fitted on", "publish its fit_events")
        trap = f"the target was in the fit of its own fold {fold!r}, so its signals are in-sample"
        _refuse(seen, lists, trap, "score it with a fit it was held back from")


def _check_targets(interactions: pa.Table, events: Pairs, candidates: pa.Table) -> None:
    known = pc.is_in(candidates["user_id"].combine_chunks(), value_set=pc.unique(interactions["user_id"]))
    way_out = "give candidates for users of the interactions only, by the same keys"
    _refuse(~column(known), candidates, "a list is for a user the interactions do not know", way_out)
    rows = events.find(candidates["user_id"], candidates["target_id"])
    _refuse(rows < 0, candidates, "a target is no interaction of its user", "compare ids, never row numbers")
    likes = column(pc.equal(interactions["feedback"], "like"))[rows]
    wrong = (splits_of(interactions)[rows] != splits_of(candidates)) | ~likes
    _refuse(wrong, candidates, "a list's target is not a like of the list's own split", "take targets from that split")
    early = column(candidates["before"]) > column(interactions["sequence"])[rows]
    trap = "the history of a list reaches beyond its target, so the target is in it"
    _refuse(early, candidates, trap, "end the history at or before the target's sequence number")
    ratings, true = candidates["target_rating"], interactions["rating"].take(pa.array(rows))
    differ = column(pc.fill_null(ratings, -1.0)) != column(pc.fill_null(true, -1.0))
    _refuse(differ, candidates, "target_rating is not the rating the user gave", "look it up by user and item id")


def _check_offers(interactions: pa.Table, events: Pairs, candidates: pa.Table) -> None:
    """Candidates are distinct, and none is a like the list's history already shows."""
    lists, items = opened(candidates["candidate_ids"])
    users = candidates["user_id"].take(pa.array(lists))
    twice = np.zeros(len(lists), dtype=bool)
    twice[Pairs.of(candidates["list_id"].take(pa.array(lists)), items).repeated] = True
    refuse(twice, users, items, trap="an item is offered twice in one list", way_out="offer distinct items")
    rows = events.find(users, items)
    liked = np.append(column(pc.equal(interactions["feedback"], "like")), False)[rows]
    split = np.append(splits_of(interactions), -1)[rows]
    sequence = np.append(column(interactions["sequence"]), np.iinfo(np.int32).max)[rows]
    past = sequence < column(candidates["before"])[lists]
    trap = "a candidate is a like of the list's own history, so it cannot be the answer"
    in_history = liked & past & ((split == TRAIN) | (split == VALIDATION))
    refuse(in_history, users, items, trap=trap, way_out="mask the likes of the history, by id")


def _check_hits(candidates: pa.Table) -> None:
    lists, items = opened(candidates["candidate_ids"])
    found = np.zeros(candidates.num_rows, dtype=bool)
    found[lists[column(pc.equal(items, candidates["target_id"].combine_chunks().take(pa.array(lists))))]] = True
    wrong = found != column(candidates["hit"])
    _refuse(wrong, candidates, "hit does not say whether the target is offered", "compare ids, never row numbers")


def _check_predicted_ratings(candidates: pa.Table, facts: Mapping[str, Any]) -> None:
    lists, ratings = opened(candidates["predicted_ratings"])
    values = column(ratings).astype(np.float32)
    outside = ~((values >= np.float32(facts["rating_min"])) & (values <= np.float32(facts["rating_max"])))
    bad = np.zeros(candidates.num_rows, dtype=bool)
    bad[lists[outside]] = True
    trap = f"a predicted rating is off the scale of the manifest ({facts['rating_min']:g} to {facts['rating_max']:g})"
    _refuse(bad, candidates, trap, "clip predictions to the scale the manifest of 'prepare' states")


def _refuse(bad: NDArray[np.bool_], candidates: pa.Table, trap: str, way_out: str) -> None:
    refuse(bad, candidates["user_id"], candidates["target_id"], trap=trap, way_out=way_out)
