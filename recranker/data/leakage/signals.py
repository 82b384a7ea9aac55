"""Checks of the numbers beside the candidates: scores, predicted ratings, popularity, further signals."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.gate import Check, refuse
from recranker.data.leakage.tables import GateTables, splits_of, taken
from recranker.data.lookup import Pairs, column, index_in, opened

SCORE_COLUMNS = ("backbone_scores", "predicted_ratings", "popularity", "reranker_scores")
"""Columns of ``schema.CANDIDATES`` with a number per candidate."""
ENOUGH_LISTS = 20
"""Lists of one split that hold their target, below which a signal cannot be called too good."""
TOO_GOOD = 0.95
"""Share of lists whose target a signal puts alone on top; honest signals stay far below."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


def candidate_columns(tables: GateTables) -> None:
    """Every column of the lists has one finite number per candidate."""
    count = column(pc.list_value_length(tables.lists["candidate_ids"]))
    for name in SCORE_COLUMNS:
        bad = _misaligned(tables.lists[name], count)
        _refuse(bad, tables, f"{name} is not one finite number per candidate", "score exactly the list's candidates")


def signals_aligned(tables: GateTables) -> None:
    """Every list has every signal, once, with one finite number per candidate."""
    signals = tables.signals
    assert signals is not None
    rows = index_in(signals["list_id"], tables.lists["list_id"].combine_chunks())
    _refuse_signals(rows < 0, signals, "a signal scores a list that is not there", "score the published lists only")
    count = column(pc.list_value_length(tables.lists["candidate_ids"]))[rows]
    bad = _misaligned(signals["scores"], count)
    _refuse_signals(bad, signals, "a signal is not one finite number per candidate", "score the list's candidates")
    again = np.zeros(signals.num_rows, dtype=bool)
    again[Pairs.of(signals["list_id"], signals["signal"]).repeated] = True
    _refuse_signals(again, signals, "a list has a signal twice", "score each list once")
    for name in pc.unique(signals["signal"]).to_pylist():
        without = np.ones(tables.lists.num_rows, dtype=bool)
        without[rows[column(pc.equal(signals["signal"], name))]] = False
        _refuse(without, tables, f"a list lacks signal {name!r} that others have", "score every list, or none")


def best_first(tables: GateTables) -> None:
    """Candidates stand in the order of the retriever's scores."""
    offers = tables.offers
    scores = _flat(tables.lists["backbone_scores"])
    if len(scores) != len(offers.lists):
        return  # the business of candidate_columns
    rising = np.append(False, (scores[1:] > scores[:-1]) & (offers.lists[1:] == offers.lists[:-1]))[: len(scores)]
    trap = "candidates do not stand in the order of backbone_scores, so these belong to other items"
    _refuse_offers(rising, tables, trap, "look scores up by id, never by another model's row number")


def popularity_by_id(tables: GateTables) -> None:
    """``popularity`` counts the likes of that very item in the list's fold."""
    fitted, offers = tables.fit_events, tables.offers
    assert fitted is not None
    said = _flat(tables.lists["popularity"])
    if len(said) != len(offers.lists):
        return  # the business of candidate_columns
    liked = np.append(tables.likes, False)[tables.events.find(fitted["user_id"], fitted["item_id"])]
    fits = fitted.filter(pa.array(liked))
    fold_ids, item_ids = pc.unique(fitted["fold"]), pc.unique(fitted["item_id"])
    width = len(item_ids) + 1  # the last: items no fit saw
    size = (len(fold_ids) + 1) * width
    counts = np.bincount(index_in(fits["fold"], fold_ids) * width + index_in(fits["item_id"], item_ids), minlength=size)
    fold = index_in(tables.lists["fold"], fold_ids)[offers.lists]
    item = index_in(pa.chunked_array([offers.items]), item_ids)
    wrong = (said != counts[fold * width + np.where(item < 0, width - 1, item)]) & (fold >= 0)
    trap = "popularity is not how many likes the item has in the list's own fold"
    _refuse_offers(wrong, tables, trap, "look signals up by id, never through another model's index")


def predicted_on_scale(tables: GateTables) -> None:
    """Predicted ratings lie on the scale of the facts."""
    lists, ratings = opened(tables.lists["predicted_ratings"])
    values, facts = column(ratings).astype(np.float32), tables.facts
    outside = ~((values >= np.float32(facts["rating_min"])) & (values <= np.float32(facts["rating_max"])))
    bad = np.zeros(tables.lists.num_rows, dtype=bool)
    bad[lists[outside & ~np.isnan(values)]] = True
    trap = f"a predicted rating is off the scale of the manifest ({facts['rating_min']:g} to {facts['rating_max']:g})"
    _refuse(bad, tables, trap, "clip predictions to the scale the manifest of 'prepare' states")


def predicted_not_given(tables: GateTables) -> None:
    """Predicted ratings are not read from a matrix that holds the targets' own.

    Looked at where the target's rating lies inside the scale (at its ends an honest guess may be clipped to it) and
    no other candidate of the list has the same guess.
    """
    offers, guesses = tables.offers, _flat(tables.lists["predicted_ratings"])
    if len(guesses) != len(offers.lists):
        return  # the business of candidate_columns
    ratings = column(pc.fill_null(tables.lists["target_rating"], np.nan)).astype(np.float64)
    inside = (ratings > tables.facts["rating_min"]) & (ratings < tables.facts["rating_max"])
    is_target = column(pc.equal(offers.items, taken(tables.lists["target_id"], offers.lists))).astype(bool)
    equal = guesses == ratings[offers.lists]
    count = np.bincount(offers.lists[equal], minlength=len(ratings))
    told = inside & (count == 1)
    told[np.setdiff1d(np.arange(len(ratings)), offers.lists[is_target & equal])] = False
    looked_at = inside & column(tables.lists["hit"]).astype(bool)
    if told.sum() >= ENOUGH_LISTS / 2 and told.sum() > looked_at.sum() / 2:
        trap = "predicted ratings are the ratings the targets were given"
        _refuse(told, tables, trap, "predict them with a fit that has not seen the targets")


def not_too_good(tables: GateTables) -> None:
    """No signal puts the target alone on top of nearly every list: such a signal has seen the targets."""
    offers, splits = tables.offers, splits_of(tables.lists)
    is_target = column(pc.equal(offers.items, taken(tables.lists["target_id"], offers.lists))).astype(bool)
    hit = np.zeros(len(splits), dtype=bool)
    hit[offers.lists[is_target]] = True
    for name, scores in _all_signals(tables):
        alone = _alone_on_top(offers.lists, scores, is_target, len(splits))
        for split in np.unique(splits):
            mine = hit & (splits == split)
            if mine.sum() >= ENOUGH_LISTS and alone[mine].mean() > TOO_GOOD:
                trap = f"signal {name!r} puts the target alone on top of {alone[mine].mean():.0%} of a split's lists"
                _refuse(mine & alone, tables, trap, "score with a fit that has not seen the targets")


CHECKS = (
    Check("candidate-columns", candidate_columns, "candidates"),
    Check("signals-aligned", signals_aligned, "signals", ("candidates",)),
    Check("best-first", best_first, "candidates"),
    Check("popularity-by-id", popularity_by_id, "candidates", ("fit_events",)),
    Check("predicted-on-scale", predicted_on_scale, "candidates"),
    Check(
        "predicted-not-given",
        predicted_not_given,
        "candidates",
        applies=lambda tables: bool(tables.facts.get("has_ratings", True)),
    ),
    Check("not-too-good", not_too_good, "candidates"),
)


def scores_of(tables: GateTables, name: str) -> Floats | None:
    """``(offers,)`` of the SIGNALS called ``name``; None where the signal is missing or not aligned with the lists."""
    if tables.signals is None:
        return None
    mine = tables.signals.filter(pc.equal(tables.signals["signal"], name))
    rows = index_in(tables.lists["list_id"], mine["list_id"].combine_chunks())
    if (rows < 0).any():
        return None
    flat = column(pc.list_flatten(taken(mine["scores"], rows))).astype(np.float64)
    return flat if len(flat) == len(tables.offers.lists) else None


def _all_signals(tables: GateTables) -> Iterator[tuple[str, Floats]]:
    """Signals with a number for every offer; others are complained of elsewhere."""
    named = [(name, _flat(tables.lists[name])) for name in ("backbone_scores", "predicted_ratings", "reranker_scores")]
    further = pc.unique(tables.signals["signal"]).to_pylist() if tables.signals is not None else []
    for name, scores in named + [(name, scores_of(tables, name)) for name in further]:
        if scores is not None and len(scores) == len(tables.offers.lists):
            yield name, scores


def _alone_on_top(lists: NDArray[np.int64], scores: Floats, is_target: Bools, num_lists: int) -> Bools:
    """``(lists,)`` whether the target scores higher than all others."""
    scores = np.nan_to_num(scores, nan=-np.inf)
    others, target = np.full(num_lists, -np.inf), np.full(num_lists, -np.inf)
    np.maximum.at(others, lists[~is_target], scores[~is_target])
    np.maximum.at(target, lists[is_target], scores[is_target])
    return np.asarray((target > others) & np.isfinite(others))


def _misaligned(values: pa.ChunkedArray, count: NDArray[np.int64]) -> Bools:
    """``(rows,)`` whether a row is not ``count`` finite numbers."""
    bad = np.asarray(column(pc.list_value_length(values)) != count)
    rows, flat = opened(values)
    finite = np.isfinite(column(pc.fill_null(flat, np.nan)))
    bad[rows[~finite]] = True
    return bad


def _flat(values: pa.ChunkedArray) -> Floats:
    return column(opened(values)[1]).astype(np.float64)


def _refuse(bad: Bools, tables: GateTables, trap: str, way_out: str) -> None:
    refuse(bad, tables.lists["user_id"], tables.lists["target_id"], trap=trap, way_out=way_out)


def _refuse_offers(bad: Bools, tables: GateTables, trap: str, way_out: str) -> None:
    users = taken(tables.lists["user_id"], tables.offers.lists)
    refuse(bad, users, tables.offers.items, trap=trap, way_out=way_out)


def _refuse_signals(bad: Bools, signals: pa.Table, trap: str, way_out: str) -> None:
    refuse(bad, signals["list_id"], signals["signal"], trap=trap, way_out=way_out, named=("list", "signal"))
