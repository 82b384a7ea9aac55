"""Checks of candidate lists and of what the fits behind them saw."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.gate import Check, refuse
from recranker.data.leakage.tables import TRAIN, GateTables, splits_of, taken
from recranker.data.lookup import Pairs, codes, column

ROLLED_BACK = "rolled_back"
"""Folds whose name starts so stand earlier in time: as if the clock stood where the history of the list ends."""

Bools = NDArray[np.bool_]


def fits_train_only(tables: GateTables) -> None:
    """No fit saw a validation or test event."""
    fitted = tables.fit_events
    assert fitted is not None
    rows = tables.events.find(fitted["user_id"], fitted["item_id"])
    seen = np.append(tables.splits, -1)[rows]  # -1: no such interaction
    trap = "a fit saw an event that is not a training event (held out, unused or unknown)"
    refuse(seen != TRAIN, fitted["user_id"], fitted["item_id"], trap=trap, way_out="fit on rows of split 'train' only")


def folds_stated(tables: GateTables) -> None:
    """Every fold that scored a list says what it was fitted on."""
    assert tables.fit_events is not None
    lists = tables.lists
    for fold in pc.unique(lists["fold"]).to_pylist():
        if not pc.any(pc.equal(tables.fit_events["fold"], fold)).as_py():
            named = column(pc.equal(lists["fold"], fold))
            _refuse(named, tables, f"fold {fold!r} does not say what it was fitted on", "publish its fit_events")


def out_of_fold(tables: GateTables) -> None:
    """Signals shown for a target come from a fit that has not seen it, as they do at test."""
    assert tables.fit_events is not None
    for fold in pc.unique(tables.lists["fold"]).to_pylist():
        mine = column(pc.equal(tables.lists["fold"], fold))
        fitted = tables.fit_events.filter(pc.equal(tables.fit_events["fold"], fold))
        known = Pairs.of(fitted["user_id"], fitted["item_id"])
        seen = known.find(tables.lists["user_id"], tables.lists["target_id"]) >= 0
        trap = f"the target was in the fit of its own fold {fold!r}, so its signals are in-sample"
        _refuse(mine & seen, tables, trap, "score it with a fit it was held back from")


def clock_rolled_back(tables: GateTables) -> None:
    """A rolled-back fit saw nothing of a user from where the earliest of the user's lists ends its history.

    Targets themselves are the business of ``out_of_fold``.
    """
    assert tables.fit_events is not None
    fitted = tables.fit_events.filter(pc.starts_with(tables.fit_events["fold"], ROLLED_BACK))
    rolled = column(pc.starts_with(tables.lists["fold"], ROLLED_BACK)).astype(np.bool_)
    lists = tables.lists.filter(pa.array(rolled))
    of_fold = Pairs.of(lists["fold"], lists["user_id"])
    group = of_fold.find(lists["fold"], lists["user_id"])  # the first list of its fold and user
    ends = np.full(len(group) + 1, np.iinfo(np.int64).max)
    np.minimum.at(ends, group, tables.befores[rolled])
    sequence = np.append(tables.sequences, -1)[tables.events.find(fitted["user_id"], fitted["item_id"])]
    late = sequence >= ends[of_fold.find(fitted["fold"], fitted["user_id"])]
    late &= ~_are_targets(fitted, lists)
    trap = "a rolled-back fit saw what came after the history of a list it scored, so its signals know the future"
    way_out = "fit it on events before the user's first target of the fold"
    refuse(late, fitted["user_id"], fitted["item_id"], trap=trap, way_out=way_out)


def users_known(tables: GateTables) -> None:
    """Lists are for users of the interactions."""
    known = pc.is_in(tables.lists["user_id"].combine_chunks(), value_set=pc.unique(tables.history["user_id"]))
    way_out = "give candidates for users of the interactions only, by the same keys"
    _refuse(~column(known), tables, "a list is for a user the interactions do not know", way_out)


def targets_known(tables: GateTables) -> None:
    """A target is an interaction of its user, by id."""
    known = column(pc.is_in(tables.lists["user_id"].combine_chunks(), value_set=pc.unique(tables.history["user_id"])))
    bad = (_target_rows(tables) < 0) & known
    _refuse(bad, tables, "a target is no interaction of its user", "compare ids, never row numbers")


def targets_of_split(tables: GateTables) -> None:
    """A list's target is a like of the list's split."""
    rows = _target_rows(tables)
    wrong = (tables.splits[rows] != splits_of(tables.lists)) | ~tables.likes[rows]
    trap, way_out = "a list's target is not a like of the list's own split", "take targets from that split"
    _refuse(wrong & (rows >= 0), tables, trap, way_out)


def history_ends(tables: GateTables) -> None:
    """The history of a list ends at or before its target."""
    rows = _target_rows(tables)
    trap = "the history of a list reaches beyond its target, so the target is in it"
    late = (tables.befores > tables.sequences[rows]) & (rows >= 0)
    _refuse(late, tables, trap, "end the history at or before the target's sequence number")


def target_ratings(tables: GateTables) -> None:
    """``target_rating`` is the rating the user gave."""
    rows = _target_rows(tables)
    ratings, true = tables.lists["target_rating"], taken(tables.history["rating"], rows % len(tables.splits))
    differ = column(pc.fill_null(ratings, -1.0)) != column(pc.fill_null(true, -1.0))
    trap = "target_rating is not the rating the user gave"
    _refuse(differ & (rows >= 0), tables, trap, "look it up by user and item id")


def offers_distinct(tables: GateTables) -> None:
    """A list offers an item once."""
    offers = tables.offers
    twice = np.zeros(len(offers.lists), dtype=bool)
    twice[Pairs.of(taken(tables.lists["list_id"], offers.lists), offers.items).repeated] = True
    _refuse_offers(twice, tables, "an item is offered twice in one list", "offer distinct items")


def offers_new(tables: GateTables) -> None:
    """No candidate is a like the list's history already holds."""
    offers = tables.offers
    rows = tables.events.find(taken(tables.lists["user_id"], offers.lists), offers.items)
    liked = np.append(tables.likes, False)[rows]
    past = np.append(tables.sequences, np.iinfo(np.int64).max)[rows] < tables.befores[offers.lists]
    trap = "a candidate is a like of the list's own history, so it cannot be the answer"
    _refuse_offers(liked & past, tables, trap, "mask the likes of the history, by id")


def hits_said(tables: GateTables) -> None:
    """``hit`` says whether the target is offered."""
    offers = tables.offers
    found = np.zeros(tables.lists.num_rows, dtype=bool)
    found[offers.lists[column(pc.equal(offers.items, taken(tables.lists["target_id"], offers.lists)))]] = True
    wrong = found != column(tables.lists["hit"])
    _refuse(wrong, tables, "hit does not say whether the target is offered", "compare ids, never row numbers")


CHECKS = (
    Check("fits-train-only", fits_train_only, "fit_events"),
    Check("folds-stated", folds_stated, "candidates", ("fit_events",)),
    Check("out-of-fold", out_of_fold, "candidates", ("fit_events",)),
    Check("clock-rolled-back", clock_rolled_back, "fit_events", ("candidates",)),
    Check("users-known", users_known, "candidates"),
    Check("targets-known", targets_known, "candidates"),
    Check("targets-of-split", targets_of_split, "candidates"),
    Check("history-ends", history_ends, "candidates"),
    Check("target-ratings", target_ratings, "candidates"),
    Check("offers-distinct", offers_distinct, "candidates"),
    Check("offers-new", offers_new, "candidates"),
    Check("hits", hits_said, "candidates"),
)


def _target_rows(tables: GateTables) -> NDArray[np.int64]:
    """``(lists,)`` row of each target in the history, -1 where there is none."""
    return tables.events.find(tables.lists["user_id"], tables.lists["target_id"])


def _are_targets(fitted: pa.Table, lists: pa.Table) -> Bools:
    """``(fit events,)`` whether a list of the same fold and user asks for the item."""
    items = pa.concat_arrays([one.combine_chunks() for one in (lists["target_id"], fitted["item_id"])])
    numbers = codes(pa.chunked_array([items]))
    of_fold = Pairs.of(lists["fold"], lists["user_id"])
    width, asked = int(numbers.max(initial=0)) + 1, lists.num_rows
    targets = of_fold.find(lists["fold"], lists["user_id"]) * width + numbers[:asked]
    group = of_fold.find(fitted["fold"], fitted["user_id"])
    return np.asarray((group >= 0) & np.isin(group * width + numbers[asked:], targets))


def _refuse(bad: Bools, tables: GateTables, trap: str, way_out: str) -> None:
    refuse(bad, tables.lists["user_id"], tables.lists["target_id"], trap=trap, way_out=way_out)


def _refuse_offers(bad: Bools, tables: GateTables, trap: str, way_out: str) -> None:
    users = taken(tables.lists["user_id"], tables.offers.lists)
    refuse(bad, users, tables.offers.items, trap=trap, way_out=way_out)
