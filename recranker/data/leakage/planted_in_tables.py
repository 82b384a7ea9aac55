"""Traps in interactions, fits, lists and signals; each returns a copy of the tables with one of them in it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.candidates import ROLLED_BACK
from recranker.data.leakage.planting import (
    Row,
    event_where,
    list_with_target,
    needs_ratings,
    row_at,
    row_where,
    rows_where,
    table_of,
    with_added,
    with_row,
)
from recranker.data.leakage.tables import GateTables, taken
from recranker.data.lookup import column


def item_twice(tables: GateTables) -> GateTables:
    row, target = _unused_after_test(tables)
    return with_row(tables, "interactions", row, item_id=target["item_id"])


def time_reversed(tables: GateTables) -> GateTables:
    user = event_where(tables, split="test")["user_id"]
    first, second = (row_where(tables.interactions, user_id=user, sequence=number) for number in (0, 1))
    later = row_at(tables.interactions, second)["timestamp"]
    if later is None:
        raise LookupError("time")
    return with_row(tables, "interactions", first, timestamp=later + 1)


def smaller_scale(tables: GateTables) -> GateTables:
    needs_ratings(tables)
    highest = pc.max(tables.interactions["rating"]).as_py()
    return replace(tables, facts={**tables.facts, "rating_max": highest - 1})


def thresholds_of_books(tables: GateTables) -> GateTables:
    needs_ratings(tables)
    scale = {"rating_max": 2 * tables.facts["rating_max"], "like_at_least": 2 * tables.facts["like_at_least"] + 1}
    return replace(tables, facts={**tables.facts, **scale})


def disliked_target(tables: GateTables) -> GateTables:
    return with_row(tables, "interactions", row_where(tables.interactions, split="test"), feedback="dislike")


def second_target(tables: GateTables) -> GateTables:
    target = event_where(tables, split="test")
    row = row_where(tables.interactions, user_id=target["user_id"], split="validation")
    return with_row(tables, "interactions", row, split="test")


def trains_after_target(tables: GateTables) -> GateTables:
    return with_row(tables, "interactions", _unused_after_test(tables)[0], split="train")


def _unused_after_test(tables: GateTables) -> tuple[int, Row]:
    """An unused event that comes after its user's test target, and the target."""
    events = tables.interactions
    for target in events.filter(pc.equal(events["split"], "test")).to_pylist():
        for row in rows_where(events, user_id=target["user_id"], split="unused"):
            if row_at(events, row)["sequence"] > target["sequence"]:
                return row, target
    raise LookupError("an unused event after a test target")


def not_the_last_like(tables: GateTables) -> GateTables:
    if tables.facts.get("split", {}).get("kind") != "leave-one-out":
        raise LookupError("leave-one-out")
    for user in tables.interactions.filter(pc.equal(tables.interactions["split"], "validation"))["user_id"].to_pylist():
        last = rows_where(tables.interactions, user_id=user, split="test")
        if last:
            before = row_where(tables.interactions, user_id=user, split="validation")
            moved = with_row(tables, "interactions", last[0], split="unused")
            return with_row(moved, "interactions", before, split="test")
    raise LookupError("test")


def target_before_its_moment(tables: GateTables) -> GateTables:
    decided = tables.facts.get("split", {})
    if decided.get("kind") != "time":
        raise LookupError("time split")
    second = pc.max(tables.interactions["timestamp"]).as_py() + 1
    return replace(tables, facts={**tables.facts, "split": {**decided, "test_from": second}})


def held_out_in_fit(split: str) -> Callable[[GateTables], GateTables]:
    def plant(tables: GateTables) -> GateTables:
        event = event_where(tables, split=split)
        return with_added(tables, "fit_events", fold="full", user_id=event["user_id"], item_id=event["item_id"])

    return plant


def target_in_fit(tables: GateTables) -> GateTables:
    _, one = list_with_target(tables, "train")
    return with_added(tables, "fit_events", fold=one["fold"], user_id=one["user_id"], item_id=one["target_id"])


def scored_by_full_fit(tables: GateTables) -> GateTables:
    row, _ = list_with_target(tables, "train")
    return with_row(tables, "candidates", row, fold="full")


def future_in_fit(tables: GateTables) -> GateTables:
    lists, events = table_of(tables, "candidates"), tables.interactions
    for row in rows_where(lists, split="train"):
        one = row_at(lists, row)
        asked = set(lists.filter(pc.equal(lists["user_id"], one["user_id"]))["target_id"].to_pylist())
        mine = events.filter(pc.equal(events["user_id"], one["user_id"])).to_pylist()
        later = [event for event in mine if event["split"] == "train" and event["sequence"] > one["before"]]
        later = [event for event in later if event["item_id"] not in asked]
        if later and one["fold"].startswith(ROLLED_BACK):
            item = next((event["item_id"] for event in later if event["feedback"] != "like"), later[0]["item_id"])
            return with_added(tables, "fit_events", fold=one["fold"], user_id=one["user_id"], item_id=item)
    raise LookupError("a training event after a training target")


def fold_unknown(tables: GateTables) -> GateTables:
    row, _ = list_with_target(tables, "train")
    return with_row(tables, "candidates", row, fold="of its own")


def history_too_long(split: str) -> Callable[[GateTables], GateTables]:
    def plant(tables: GateTables) -> GateTables:
        row, one = list_with_target(tables, split)
        target = event_where(tables, user_id=one["user_id"], item_id=one["target_id"])
        return with_row(tables, "candidates", row, before=target["sequence"] + 1)

    return plant


def row_number_as_id(tables: GateTables) -> GateTables:
    lists = table_of(tables, "candidates")
    row = row_where(lists, split="test")
    return with_row(tables, "candidates", row, target_id=f"row {row}", hit=False)


def test_target_trained(tables: GateTables) -> GateTables:
    row, one = list_with_target(tables, "test")
    rolled = row_at(table_of(tables, "candidates"), row_where(table_of(tables, "candidates"), split="train"))["fold"]
    if rolled == one["fold"]:
        raise LookupError("a fold of its own for training lists")
    return with_row(tables, "candidates", row, split="train")


def rating_of_another(tables: GateTables) -> GateTables:
    needs_ratings(tables)
    row, one = list_with_target(tables, "test")
    other = tables.facts["rating_min"] + tables.facts["rating_max"] - one["target_rating"]
    return with_row(tables, "candidates", row, target_rating=other - 0.25)


def offered_twice(tables: GateTables) -> GateTables:
    row, one = list_with_target(tables, "test")
    ids = list(one["candidate_ids"])
    place = next(place for place, item in enumerate(ids) if item != one["target_id"])
    ids[place] = one["target_id"]
    changed = with_true_popularity(tables, one["fold"], one["popularity"], place, one["target_id"], one)
    return with_row(tables, "candidates", row, candidate_ids=ids, popularity=changed)


def with_true_popularity(
    tables: GateTables, fold: str, values: list[float], place: int, item: str, one: Row
) -> list[float]:
    """``values`` with the true popularity of ``item`` at ``place``: a canary plants one trap, not two."""
    if item in one["candidate_ids"]:
        true = values[one["candidate_ids"].index(item)]
    else:
        fits = table_of(tables, "fit_events")
        users = fits.filter(pc.and_(pc.equal(fits["fold"], fold), pc.equal(fits["item_id"], item)))["user_id"]
        liked = pc.and_(
            pc.equal(tables.interactions["item_id"], item), pc.equal(tables.interactions["feedback"], "like")
        )
        fans = tables.interactions.filter(liked)["user_id"]
        true = float(pc.sum(pc.is_in(fans, value_set=users.combine_chunks())).as_py() or 0)
    return [true if number == place else value for number, value in enumerate(values)]


def liked_before(tables: GateTables) -> GateTables:
    for row in rows_where(table_of(tables, "candidates"), split="test", hit=True):
        one = row_at(table_of(tables, "candidates"), row)
        liked = rows_where(tables.interactions, user_id=one["user_id"], split="train", feedback="like")
        if liked:
            item = row_at(tables.interactions, liked[0])["item_id"]
            ids = list(one["candidate_ids"])
            place = next((place for place, other in enumerate(ids) if other != one["target_id"]), 0)
            ids[place] = item
            changed = with_true_popularity(tables, one["fold"], one["popularity"], place, item, one)
            planted = with_row(tables, "candidates", row, candidate_ids=ids, popularity=changed)
            return asked_about(planted, one["list_id"], one["candidate_ids"][place], item)
    raise LookupError("a like in training")


def asked_about(tables: GateTables, list_id: str, old: str, new: str) -> GateTables:
    """Prompts of a list ask about ``new`` wherever they asked about ``old``."""
    if tables.prompts is None:
        return tables
    for row in rows_where(tables.prompts, list_id=list_id):
        questions = row_at(tables.prompts, row)["questions"]
        for one in questions:
            one["item_ids"] = [new if item == old else item for item in one["item_ids"]]
        tables = with_row(tables, "prompts", row, questions=questions)
    return tables


def hit_by_position(tables: GateTables) -> GateTables:
    row, _ = list_with_target(tables, "test")
    return with_row(tables, "candidates", row, hit=False)


def given_ratings(tables: GateTables) -> GateTables:
    """Every list's guesses come from a matrix that holds the true ratings."""
    needs_ratings(tables)
    lists = table_of(tables, "candidates")
    ratings = column(pc.fill_null(lists["target_rating"], np.nan))[tables.offers.lists]
    given = _are_targets(tables) & ~np.isnan(ratings)
    guesses = lists["predicted_ratings"].combine_chunks()
    values = np.where(given, ratings, column(pc.list_flatten(guesses))).astype(np.float32)
    return replace(tables, candidates=_relisted(lists, "predicted_ratings", values))


def oracle(tables: GateTables) -> GateTables:
    """A signal that has seen all targets."""
    lists, signals = table_of(tables, "candidates"), table_of(tables, "signals")
    known = _relisted(lists, "backbone_scores", _are_targets(tables).astype(np.float32))
    name = pa.array(["planted"] * lists.num_rows, pa.string())
    planted = {"list_id": lists["list_id"], "signal": name, "scores": known["backbone_scores"]}
    return replace(tables, signals=pa.concat_tables([signals, pa.table(planted, schema=signals.schema)]))


def _are_targets(tables: GateTables) -> NDArray[np.bool_]:
    """``(offers,)`` whether the candidate is its list's target."""
    wanted = taken(tables.lists["target_id"], tables.offers.lists)
    return column(pc.equal(tables.offers.items, wanted)).astype(np.bool_)


def _relisted(lists: pa.Table, name: str, values: NDArray[np.float32]) -> pa.Table:
    """``lists`` with other numbers, one per candidate, in a list column."""
    lengths = column(pc.list_value_length(lists["candidate_ids"]))
    offsets = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    numbers = pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32()))
    return lists.set_column(lists.schema.get_field_index(name), lists.schema.field(name), numbers)


def other_index_popularity(tables: GateTables) -> GateTables:
    row, one = list_with_target(tables, "test")
    values = one["popularity"][1:] + one["popularity"][:1]
    if values == one["popularity"]:
        values[0] += 1
    return with_row(tables, "candidates", row, popularity=values)


def other_index_scores(tables: GateTables) -> GateTables:
    row, one = list_with_target(tables, "test")
    values = one["backbone_scores"]
    if values[0] == values[-1]:
        raise LookupError("different scores")
    return with_row(tables, "candidates", row, backbone_scores=values[::-1])


def signal_short(tables: GateTables) -> GateTables:
    return with_row(tables, "signals", 0, scores=row_at(table_of(tables, "signals"), 0)["scores"][:-1])


def signal_missing(tables: GateTables) -> GateTables:
    _, one = list_with_target(tables, "test")
    signals = table_of(tables, "signals")
    row = row_where(signals, list_id=one["list_id"])
    if len(rows_where(signals, signal=row_at(signals, row)["signal"])) < 2:
        raise LookupError("a signal of several lists")
    return replace(tables, signals=pa.concat_tables([signals.slice(0, row), signals.slice(row + 1)]))


def score_not_finite(tables: GateTables) -> GateTables:
    row, one = list_with_target(tables, "test")
    return with_row(tables, "candidates", row, predicted_ratings=[float("nan"), *one["predicted_ratings"][1:]])


def guess_off_scale(tables: GateTables) -> GateTables:
    row, one = list_with_target(tables, "test")
    off = tables.facts["rating_max"] + 1
    return with_row(tables, "candidates", row, predicted_ratings=[off, *one["predicted_ratings"][1:]])
