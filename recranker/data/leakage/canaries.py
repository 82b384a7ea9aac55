"""Canaries: each plants one trap into a copy of a clean run's tables and names the check that must catch it.

A gate that lets one through is broken. Traps are those of the method that have sunk published or earlier versions of
it; a canary that finds no place to plant its trap (no ratings, no hints) says so rather than counting as caught.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.candidates import ROLLED_BACK
from recranker.data.leakage.checks import CHECKS, complaint_of
from recranker.data.leakage.gate import Check
from recranker.data.leakage.tables import GateTables, taken
from recranker.data.lookup import column

Row = dict[str, Any]

MAX_PROMPTS = 100
"""Prompts of each split that canaries are planted among; a large run need not be copied whole."""


@dataclass(frozen=True)
class Canary:
    """One planted trap."""

    name: str
    trap: str
    """What went wrong where this happened."""
    caught_by: str
    """Name of the check that must complain."""
    plant: Callable[[GateTables], GateTables]
    """The tables with the trap in them; raises LookupError where they offer no place for it."""
    also: tuple[str, ...] = ()
    """Further checks that see it, rightly."""

    def planted(self, tables: GateTables) -> GateTables | None:
        """A copy of ``tables`` with the trap; None where there is no place for it."""
        check = next(one for one in CHECKS if one.name == self.caught_by)
        try:
            planted = self.plant(tables)
        except LookupError:
            return None
        return planted if check.can_run(planted) else None


@dataclass(frozen=True)
class Caught:
    """What became of one canary."""

    canary: Canary
    planted: bool
    """False: this run has no place for it."""
    message: str | None
    """The complaint; None: it went through, or was not planted."""


def try_canaries(
    tables: GateTables, canaries: Sequence["Canary"] | None = None, checks: Sequence[Check] = CHECKS
) -> Iterator[Caught]:
    """Plant each canary in a copy of ``tables`` and ask the check it names.

    Args:
        tables: A clean run as far as it has come.
        canaries: Which; None: all.
        checks: The gate.
    """
    small = replace(tables, prompts=_some_prompts(tables.prompts)) if tables.prompts is not None else tables
    for canary in CANARIES if canaries is None else canaries:
        planted = canary.planted(small)
        asked = [one for one in checks if one.name == canary.caught_by]
        yield Caught(canary, planted is not None, complaint_of(planted, asked) if planted is not None else None)


# --- finding and changing rows


def _table(tables: GateTables, name: str) -> pa.Table:
    table = getattr(tables, name)
    if table is None or not table.num_rows:
        raise LookupError(name)
    return table


def _rows(table: pa.Table, **wanted: object) -> list[int]:
    """Numbers of the rows whose columns hold what is wanted."""
    same = np.ones(table.num_rows, dtype=bool)
    for name, value in wanted.items():
        same &= column(pc.fill_null(pc.equal(table[name], pa.scalar(value, table.schema.field(name).type)), False))
    return np.flatnonzero(same).tolist()


def _row(table: pa.Table, **wanted: object) -> int:
    rows = _rows(table, **wanted)
    if not rows:
        raise LookupError(str(wanted))
    return rows[0]


def _get(table: pa.Table, row: int) -> Row:
    found: Row = table.slice(row, 1).to_pylist()[0]
    return found


def _with(tables: GateTables, name: str, row: int, **changes: object) -> GateTables:
    """``tables`` with columns of one row changed; the other rows are not copied."""
    table = _table(tables, name)
    changed = pa.Table.from_pylist([_get(table, row) | changes], schema=table.schema)
    return replace(tables, **{name: pa.concat_tables([table.slice(0, row), changed, table.slice(row + 1)])})


def _added(tables: GateTables, name: str, **values: object) -> GateTables:
    table = _table(tables, name)
    return replace(tables, **{name: pa.concat_tables([table, pa.Table.from_pylist([values], schema=table.schema)])})


def _hit_list(tables: GateTables, split: str) -> tuple[int, Row]:
    """A list that holds its target and at least two other items."""
    lists = _table(tables, "candidates")
    for row in _rows(lists, split=split, hit=True):
        found = _get(lists, row)
        if len(found["candidate_ids"]) > 2:
            return row, found
    raise LookupError(split)


def _event(tables: GateTables, **wanted: object) -> Row:
    return _get(tables.interactions, _row(tables.interactions, **wanted))


def _prompt(tables: GateTables, split: str) -> tuple[int, Row, Row]:
    """A prompt and its list, which holds its target."""
    prompts, lists = _table(tables, "prompts"), _table(tables, "candidates")
    hits = set(lists.filter(lists["hit"])["list_id"].to_pylist())
    for row in _rows(prompts, split=split):
        found = _get(prompts, row)
        if found["list_id"] in hits:
            return row, found, _get(lists, _row(lists, list_id=found["list_id"]))
    raise LookupError(split)


def _question(prompt: Row, task: str) -> Row:
    found: Row = next((one for one in prompt["questions"] if one["task"] == task), {})
    if not found:
        raise LookupError(task)
    return found


def _title(tables: GateTables, item_id: str) -> str:
    items = _table(tables, "items")
    return str(_get(items, _row(items, item_id=item_id))["title"])


def _some_prompts(prompts: pa.Table) -> pa.Table:
    of_split = [prompts.filter(pc.equal(prompts["split"], one)) for one in ("train", "validation", "test")]
    return pa.concat_tables([one.slice(0, MAX_PROMPTS) for one in of_split]).combine_chunks()


def _needs_ratings(tables: GateTables) -> None:
    if not tables.facts["has_ratings"]:
        raise LookupError("ratings")


# --- interactions


def _item_twice(tables: GateTables) -> GateTables:
    row, target = _unused_after_test(tables)
    return _with(tables, "interactions", row, item_id=target["item_id"])


def _time_reversed(tables: GateTables) -> GateTables:
    user = _event(tables, split="test")["user_id"]
    first, second = (_row(tables.interactions, user_id=user, sequence=number) for number in (0, 1))
    later = _get(tables.interactions, second)["timestamp"]
    if later is None:
        raise LookupError("time")
    return _with(tables, "interactions", first, timestamp=later + 1)


def _smaller_scale(tables: GateTables) -> GateTables:
    _needs_ratings(tables)
    highest = pc.max(tables.interactions["rating"]).as_py()
    return replace(tables, facts={**tables.facts, "rating_max": highest - 1})


def _thresholds_of_books(tables: GateTables) -> GateTables:
    _needs_ratings(tables)
    scale = {"rating_max": 2 * tables.facts["rating_max"], "like_at_least": 2 * tables.facts["like_at_least"] + 1}
    return replace(tables, facts={**tables.facts, **scale})


def _disliked_target(tables: GateTables) -> GateTables:
    return _with(tables, "interactions", _row(tables.interactions, split="test"), feedback="dislike")


def _second_target(tables: GateTables) -> GateTables:
    target = _event(tables, split="test")
    row = _row(tables.interactions, user_id=target["user_id"], split="validation")
    return _with(tables, "interactions", row, split="test")


def _trains_after_target(tables: GateTables) -> GateTables:
    return _with(tables, "interactions", _unused_after_test(tables)[0], split="train")


def _unused_after_test(tables: GateTables) -> tuple[int, Row]:
    """An unused event that comes after its user's test target, and the target."""
    events = tables.interactions
    for target in events.filter(pc.equal(events["split"], "test")).to_pylist():
        for row in _rows(events, user_id=target["user_id"], split="unused"):
            if _get(events, row)["sequence"] > target["sequence"]:
                return row, target
    raise LookupError("an unused event after a test target")


def _not_the_last_like(tables: GateTables) -> GateTables:
    if tables.facts.get("split", {}).get("kind") != "leave-one-out":
        raise LookupError("leave-one-out")
    for user in tables.interactions.filter(pc.equal(tables.interactions["split"], "validation"))["user_id"].to_pylist():
        last = _rows(tables.interactions, user_id=user, split="test")
        if last:
            before = _row(tables.interactions, user_id=user, split="validation")
            moved = _with(tables, "interactions", last[0], split="unused")
            return _with(moved, "interactions", before, split="test")
    raise LookupError("test")


def _target_before_its_moment(tables: GateTables) -> GateTables:
    decided = tables.facts.get("split", {})
    if decided.get("kind") != "time":
        raise LookupError("time split")
    second = pc.max(tables.interactions["timestamp"]).as_py() + 1
    return replace(tables, facts={**tables.facts, "split": {**decided, "test_from": second}})


# --- fits


def _held_out_in_fit(split: str) -> Callable[[GateTables], GateTables]:
    def plant(tables: GateTables) -> GateTables:
        event = _event(tables, split=split)
        return _added(tables, "fit_events", fold="full", user_id=event["user_id"], item_id=event["item_id"])

    return plant


def _target_in_fit(tables: GateTables) -> GateTables:
    _, one = _hit_list(tables, "train")
    return _added(tables, "fit_events", fold=one["fold"], user_id=one["user_id"], item_id=one["target_id"])


def _scored_by_full_fit(tables: GateTables) -> GateTables:
    row, _ = _hit_list(tables, "train")
    return _with(tables, "candidates", row, fold="full")


def _future_in_fit(tables: GateTables) -> GateTables:
    lists, events = _table(tables, "candidates"), tables.interactions
    for row in _rows(lists, split="train"):
        one = _get(lists, row)
        asked = set(lists.filter(pc.equal(lists["user_id"], one["user_id"]))["target_id"].to_pylist())
        mine = events.filter(pc.equal(events["user_id"], one["user_id"])).to_pylist()
        later = [event for event in mine if event["split"] == "train" and event["sequence"] > one["before"]]
        later = [event for event in later if event["item_id"] not in asked]
        if later and one["fold"].startswith(ROLLED_BACK):
            item = next((event["item_id"] for event in later if event["feedback"] != "like"), later[0]["item_id"])
            return _added(tables, "fit_events", fold=one["fold"], user_id=one["user_id"], item_id=item)
    raise LookupError("a training event after a training target")


def _fold_unknown(tables: GateTables) -> GateTables:
    row, _ = _hit_list(tables, "train")
    return _with(tables, "candidates", row, fold="of its own")


# --- lists


def _history_too_long(split: str) -> Callable[[GateTables], GateTables]:
    def plant(tables: GateTables) -> GateTables:
        row, one = _hit_list(tables, split)
        target = _event(tables, user_id=one["user_id"], item_id=one["target_id"])
        return _with(tables, "candidates", row, before=target["sequence"] + 1)

    return plant


def _row_number_as_id(tables: GateTables) -> GateTables:
    lists = _table(tables, "candidates")
    row = _row(lists, split="test")
    return _with(tables, "candidates", row, target_id=f"row {row}", hit=False)


def _test_target_trained(tables: GateTables) -> GateTables:
    row, one = _hit_list(tables, "test")
    rolled = _get(_table(tables, "candidates"), _row(_table(tables, "candidates"), split="train"))["fold"]
    if rolled == one["fold"]:
        raise LookupError("a fold of its own for training lists")
    return _with(tables, "candidates", row, split="train")


def _rating_of_another(tables: GateTables) -> GateTables:
    _needs_ratings(tables)
    row, one = _hit_list(tables, "test")
    other = tables.facts["rating_min"] + tables.facts["rating_max"] - one["target_rating"]
    return _with(tables, "candidates", row, target_rating=other - 0.25)


def _offered_twice(tables: GateTables) -> GateTables:
    row, one = _hit_list(tables, "test")
    ids = list(one["candidate_ids"])
    place = next(place for place, item in enumerate(ids) if item != one["target_id"])
    ids[place] = one["target_id"]
    changed = _popularity(tables, one["fold"], one["popularity"], place, one["target_id"], one)
    return _with(tables, "candidates", row, candidate_ids=ids, popularity=changed)


def _popularity(tables: GateTables, fold: str, values: list[float], place: int, item: str, one: Row) -> list[float]:
    """``values`` with the true popularity of ``item`` at ``place``: a canary plants one trap, not two."""
    if item in one["candidate_ids"]:
        true = values[one["candidate_ids"].index(item)]
    else:
        fits = _table(tables, "fit_events")
        users = fits.filter(pc.and_(pc.equal(fits["fold"], fold), pc.equal(fits["item_id"], item)))["user_id"]
        liked = pc.and_(
            pc.equal(tables.interactions["item_id"], item), pc.equal(tables.interactions["feedback"], "like")
        )
        fans = tables.interactions.filter(liked)["user_id"]
        true = float(pc.sum(pc.is_in(fans, value_set=users.combine_chunks())).as_py() or 0)
    return [true if number == place else value for number, value in enumerate(values)]


def _liked_before(tables: GateTables) -> GateTables:
    for row in _rows(_table(tables, "candidates"), split="test", hit=True):
        one = _get(_table(tables, "candidates"), row)
        liked = _rows(tables.interactions, user_id=one["user_id"], split="train", feedback="like")
        if liked:
            item = _get(tables.interactions, liked[0])["item_id"]
            ids = list(one["candidate_ids"])
            place = next((place for place, other in enumerate(ids) if other != one["target_id"]), 0)
            ids[place] = item
            changed = _popularity(tables, one["fold"], one["popularity"], place, item, one)
            planted = _with(tables, "candidates", row, candidate_ids=ids, popularity=changed)
            return _asked_about(planted, one["list_id"], one["candidate_ids"][place], item)
    raise LookupError("a like in training")


def _asked_about(tables: GateTables, list_id: str, old: str, new: str) -> GateTables:
    """Prompts of a list ask about ``new`` wherever they asked about ``old``."""
    if tables.prompts is None:
        return tables
    for row in _rows(tables.prompts, list_id=list_id):
        questions = _get(tables.prompts, row)["questions"]
        for one in questions:
            one["item_ids"] = [new if item == old else item for item in one["item_ids"]]
        tables = _with(tables, "prompts", row, questions=questions)
    return tables


def _hit_by_position(tables: GateTables) -> GateTables:
    row, _ = _hit_list(tables, "test")
    return _with(tables, "candidates", row, hit=False)


# --- signals


def _given_ratings(tables: GateTables) -> GateTables:
    """Every list's guesses come from a matrix that holds the true ratings."""
    _needs_ratings(tables)
    lists = _table(tables, "candidates")
    ratings = column(pc.fill_null(lists["target_rating"], np.nan))[tables.offers.lists]
    given = _are_targets(tables) & ~np.isnan(ratings)
    guesses = lists["predicted_ratings"].combine_chunks()
    values = np.where(given, ratings, column(pc.list_flatten(guesses))).astype(np.float32)
    return replace(tables, candidates=_relisted(lists, "predicted_ratings", values))


def _oracle(tables: GateTables) -> GateTables:
    """A signal that has seen all targets."""
    lists, signals = _table(tables, "candidates"), _table(tables, "signals")
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


def _other_index_popularity(tables: GateTables) -> GateTables:
    row, one = _hit_list(tables, "test")
    values = one["popularity"][1:] + one["popularity"][:1]
    if values == one["popularity"]:
        values[0] += 1
    return _with(tables, "candidates", row, popularity=values)


def _other_index_scores(tables: GateTables) -> GateTables:
    row, one = _hit_list(tables, "test")
    values = one["backbone_scores"]
    if values[0] == values[-1]:
        raise LookupError("different scores")
    return _with(tables, "candidates", row, backbone_scores=values[::-1])


def _signal_short(tables: GateTables) -> GateTables:
    return _with(tables, "signals", 0, scores=_get(_table(tables, "signals"), 0)["scores"][:-1])


def _signal_missing(tables: GateTables) -> GateTables:
    _, one = _hit_list(tables, "test")
    signals = _table(tables, "signals")
    row = _row(signals, list_id=one["list_id"])
    if len(_rows(signals, signal=_get(signals, row)["signal"])) < 2:
        raise LookupError("a signal of several lists")
    return replace(tables, signals=pa.concat_tables([signals.slice(0, row), signals.slice(row + 1)]))


def _score_not_finite(tables: GateTables) -> GateTables:
    row, one = _hit_list(tables, "test")
    return _with(tables, "candidates", row, predicted_ratings=[float("nan"), *one["predicted_ratings"][1:]])


def _guess_off_scale(tables: GateTables) -> GateTables:
    row, one = _hit_list(tables, "test")
    off = tables.facts["rating_max"] + 1
    return _with(tables, "candidates", row, predicted_ratings=[off, *one["predicted_ratings"][1:]])


# --- prompts


def _asked(split: str, change: Callable[[GateTables, Row, Row], None]) -> Callable[[GateTables], GateTables]:
    """A plant that changes one prompt of a split, given the prompt and its list."""

    def plant(tables: GateTables) -> GateTables:
        row, prompt, one = _prompt(tables, split)
        change(tables, prompt, one)
        return _with(tables, "prompts", row, **prompt)

    return plant


def _knows_answer(tables: GateTables, prompt: Row, one: Row) -> None:
    question = _question(prompt, "listwise")
    question["answer"] = question["labels"][question["item_ids"].index(one["target_id"])]


def _knows_teacher(tables: GateTables, prompt: Row, one: Row) -> None:
    question = _question(prompt, "listwise")
    question["soft_labels"] = [float(item == one["target_id"]) for item in question["item_ids"]]


def _points_elsewhere(tables: GateTables, prompt: Row, one: Row) -> None:
    question = _question(prompt, "listwise")
    question["answer"] = next(label for label in question["labels"] if label != question["answer"])


def _list_of_another(tables: GateTables) -> GateTables:
    prompts = _table(tables, "prompts")
    rows = _rows(prompts, split="test")
    if len(rows) < 2:
        raise LookupError("two test prompts")
    return _with(tables, "prompts", rows[0], list_id=_get(prompts, rows[1])["list_id"])


def _item_from_outside(tables: GateTables, prompt: Row, one: Row) -> None:
    question = _question(prompt, "pointwise")
    outside = set(_table(tables, "items")["item_id"].to_pylist()) - set(one["candidate_ids"])
    question["item_ids"] = [min(outside)]


def _test_target_as_negative(tables: GateTables) -> GateTables:
    """The user's own test target stands among the wrong answers of a training list."""
    lists, prompts = _table(tables, "candidates"), _table(tables, "prompts")
    for row in _rows(prompts, split="train"):
        prompt = _get(prompts, row)
        held_out = _rows(tables.interactions, user_id=prompt["user_id"], split="test")
        number = _row(lists, list_id=prompt["list_id"])
        one = _get(lists, number)
        if not held_out:
            continue
        item = _get(tables.interactions, held_out[0])["item_id"]
        question = _question(prompt, "listwise")
        old = next(other for other in question["item_ids"] if other != one["target_id"])
        ids = [item if other == old else other for other in one["candidate_ids"]]
        place = one["candidate_ids"].index(old)
        changed = _popularity(tables, one["fold"], one["popularity"], place, item, one)
        planted = _with(tables, "candidates", number, candidate_ids=ids, popularity=changed)
        return _asked_about(planted, one["list_id"], old, item)
    raise LookupError("a test target of a user with a training prompt")


def _reordered(order: Callable[[list[str], Row], list[str]], splits: tuple[str, ...]) -> Callable[..., GateTables]:
    """A plant that lays all lists of some splits out anew, answers and quoted orders with them."""

    def plant(tables: GateTables) -> GateTables:
        prompts, lists = _table(tables, "prompts"), _table(tables, "candidates")
        known = {one["list_id"]: one for one in _listed(lists, prompts)}
        rows = prompts.to_pylist()
        for row in rows:
            for question in row["questions"]:
                if row["split"] in splits and question["task"] == "listwise":
                    _lay_out(question, order(question["item_ids"], known[row["list_id"]]))
        return replace(tables, prompts=pa.Table.from_pylist(rows, schema=prompts.schema))

    return plant


def _listed(lists: pa.Table, prompts: pa.Table) -> list[Row]:
    wanted = lists.filter(pc.is_in(lists["list_id"], value_set=prompts["list_id"].combine_chunks()))
    found: list[Row] = wanted.to_pylist()
    return found


def _lay_out(question: Row, items: list[str]) -> None:
    """Show ``items`` in this order; letters in the answer and the quoted order go with their items."""
    old, new = question["item_ids"], dict(zip(items, question["labels"], strict=True))
    moved = {label: new[item] for label, item in zip(question["labels"], old, strict=True)}
    head, bracket, quoted = question["text"].rpartition("\n[order: ")
    if bracket:
        letters = " ".join(moved[label] for label in quoted.removesuffix("]").split())
        question["text"] = f"{head}{bracket}{letters}]"
    question["answer"] = moved.get(question["answer"])
    question["item_ids"] = items


def _pair_one_way(tables: GateTables, prompt: Row, one: Row) -> None:
    prompt["questions"].remove(_question(prompt, "pairwise"))


def _hint_knows(task: str) -> Callable[[GateTables, Row, Row], None]:
    """The hint names the target as the best, whatever the signal says."""

    def change(tables: GateTables, prompt: Row, one: Row) -> None:
        if tables.hints in (None, "none"):
            raise LookupError("hints")
        for question in prompt["questions"]:
            if question["task"] == task and one["target_id"] in question["item_ids"]:
                better = _better_hint(question, question["item_ids"].index(one["target_id"]))
                if better != question["text"]:
                    question["text"] = better
                    return
        raise LookupError("a hint that does not favour the target already")

    return change


def _better_hint(question: Row, place: int) -> str:
    head, _, quoted = str(question["text"]).rpartition("[")
    if question["task"] == "pairwise":
        return f"{head}[{('first', 'second')[place]}]"
    if question["task"] == "listwise":
        best, letters = question["labels"][place], quoted.removeprefix("order: ").removesuffix("]").split()
        return f"{head}[order: {' '.join([best, *(one for one in letters if one != best)])}]"
    if quoted.startswith("predicted"):
        return f"{head}[predicted rating 9.9]"
    return f"{head}[{'others: Yes, ' if quoted.startswith('others') else ''}place 1]"


def _words_know(tables: GateTables, prompt: Row, one: Row) -> None:
    """The words of the target's place are the best ones, beside the right number."""
    for question in prompt["questions"]:
        head, _, quoted = str(question["text"]).rpartition("[others: ")
        if head and question["item_ids"] == [one["target_id"]] and not quoted.startswith("Yes"):
            question["text"] = f"{head}[others: Yes,{quoted.partition(',')[2]}"
            return
    raise LookupError("words that do not favour the target already")


def _target_in_history(tables: GateTables, prompt: Row, one: Row) -> None:
    lines = prompt["prefix"].split("\n")
    prompt["prefix"] = "\n".join([*lines, _title(tables, one["target_id"])])


def _nested_title(tables: GateTables) -> GateTables:
    """A title of the history gives way to one that contains it, or is contained in it, of an item never met."""
    titles = _table(tables, "items")["title"].to_pylist()
    prompts = _table(tables, "prompts")
    for row in _rows(prompts, split="test"):
        prompt = _get(prompts, row)
        lines = prompt["prefix"].split("\n")
        mine = _titles_met(tables, prompt["user_id"])
        for place, line in enumerate(lines):
            nested = [one for one in titles if line in mine and one != line and (one in line or line in one)]
            unmet = [one for one in nested if one not in mine]
            if unmet:
                lines[place] = unmet[0]
                return _with(tables, "prompts", row, prefix="\n".join(lines))
    raise LookupError("nested titles")


def _titles_met(tables: GateTables, user: str) -> set[str]:
    met = tables.interactions.filter(pc.equal(tables.interactions["user_id"], user))["item_id"].combine_chunks()
    items = _table(tables, "items")
    return set(items.filter(pc.is_in(items["item_id"], value_set=met))["title"].to_pylist())


def _profile_names_target(tables: GateTables) -> GateTables:
    prompts = _table(tables, "prompts")
    lists = _table(tables, "candidates")
    for row in _rows(prompts, split="test"):
        prompt = _get(prompts, row)
        target = _title(tables, _get(lists, _row(lists, list_id=prompt["list_id"]))["target_id"])
        if len(target) >= 12 and not any(target in line for line in prompt["prefix"].split("\n")):
            lines = prompt["prefix"].split("\n")
            profile = f"Profile: someone who will enjoy {target} and the like"
            return _with(tables, "prompts", row, prefix="\n".join([lines[0], profile, *lines[1:]]))
    raise LookupError("a target with a title of its own")


def _worded_otherwise(tables: GateTables) -> GateTables:
    prompts = _table(tables, "prompts")
    if {"train", "test"} - set(prompts["split"].to_pylist()):
        raise LookupError("both sides")
    rows = prompts.to_pylist()
    for row in rows:
        if row["split"] == "train":
            row["prefix"] = f"You recommend items.\n{row['prefix']}"
    return replace(tables, prompts=pa.Table.from_pylist(rows, schema=prompts.schema))


def _hint_in_training_only(tables: GateTables) -> GateTables:
    prompts = _table(tables, "prompts")
    if tables.hints in (None, "none") or {"train", "test"} - set(prompts["split"].to_pylist()):
        raise LookupError("hints on both sides")
    rows = prompts.to_pylist()
    for question in (one for row in rows if row["split"] != "train" for one in row["questions"]):
        if question["task"] == "pointwise":
            question["text"] = question["text"].rpartition(" [")[0]
    return replace(tables, prompts=pa.Table.from_pylist(rows, schema=prompts.schema))


def _two_templates(tables: GateTables) -> GateTables:
    _table(tables, "prompts")
    return replace(tables, template_hashes={"train": "a", "test": "b"})


def _retrieved(shown: list[str], one: Row) -> list[str]:
    return list(one["candidate_ids"])


def _target_first(shown: list[str], one: Row) -> list[str]:
    return sorted(shown, key=lambda item: item != one["target_id"])


_MATRIX = "hints read from a matrix that holds the true test ratings"
_IN_SAMPLE = "in-sample hints in training, honest ones at test: the model learns to copy the hint"
_POSITIONS = "ids compared with positions, so that the target stays in the liked history"
_INDEX_MAP = "signals looked up through another model's index map"
_HELD_OUT = "a validation or test event in a fit, a prompt or a pool of negatives"
_SCALE = "the rating scales of books and films swapped"
_SUBSTRINGS = "titles matched as substrings, so that nested titles collide"
_ALIGNED = "labels that do not say exactly the answer"
_ORDER = "candidates in retrieval order at test while training shuffled them"
_TEMPLATE = "another template in training than at test"
_FUTURE = "the future in the history"
_TARGETS = "targets that are not the ones the protocol holds out"

CANARIES: tuple[Canary, ...] = (
    Canary("given-ratings-as-guesses", _MATRIX, "predicted-not-given", _given_ratings),
    Canary("signal-knows-targets", _MATRIX, "not-too-good", _oracle),
    Canary("guess-off-scale", _SCALE, "predicted-on-scale", _guess_off_scale),
    Canary("hint-of-item-knows-target", _MATRIX, "hints-quoted", _asked("test", _hint_knows("pointwise"))),
    Canary("words-of-hint-know-target", _MATRIX, "hints-quoted", _asked("test", _words_know)),
    Canary("hint-of-pair-knows-target", _MATRIX, "hints-quoted", _asked("train", _hint_knows("pairwise"))),
    Canary("hint-of-list-knows-target", _MATRIX, "hints-quoted", _asked("test", _hint_knows("listwise"))),
    Canary("target-in-its-own-fit", _IN_SAMPLE, "out-of-fold", _target_in_fit, ("popularity-by-id",)),
    Canary("training-list-by-full-fit", _IN_SAMPLE, "out-of-fold", _scored_by_full_fit, ("popularity-by-id",)),
    Canary("future-in-rolled-back-fit", _IN_SAMPLE, "clock-rolled-back", _future_in_fit, ("popularity-by-id",)),
    Canary("fold-says-nothing", _IN_SAMPLE, "folds-stated", _fold_unknown),
    Canary("target-in-liked-history", _POSITIONS, "history-past", _asked("test", _target_in_history)),
    Canary("history-beyond-test-target", _POSITIONS, "history-ends", _history_too_long("test"), ("offers-new",)),
    Canary("history-beyond-training-target", _POSITIONS, "history-ends", _history_too_long("train"), ("offers-new",)),
    Canary("row-number-as-id", _POSITIONS, "targets-known", _row_number_as_id),
    Canary("hit-by-position", _POSITIONS, "hits", _hit_by_position),
    Canary("popularity-of-another", _INDEX_MAP, "popularity-by-id", _other_index_popularity),
    Canary("scores-of-another", _INDEX_MAP, "best-first", _other_index_scores),
    Canary("signal-too-short", _INDEX_MAP, "signals-aligned", _signal_short),
    Canary("signal-missing", _INDEX_MAP, "signals-aligned", _signal_missing),
    Canary("score-not-finite", _INDEX_MAP, "candidate-columns", _score_not_finite),
    Canary(
        "validation-event-in-fit",
        _HELD_OUT,
        "fits-train-only",
        _held_out_in_fit("validation"),
        ("out-of-fold", "popularity-by-id"),
    ),
    Canary(
        "test-event-in-fit", _HELD_OUT, "fits-train-only", _held_out_in_fit("test"), ("out-of-fold", "popularity-by-id")
    ),
    Canary("test-target-as-training-target", _HELD_OUT, "targets-of-split", _test_target_trained, ("lists-own",)),
    Canary("test-target-as-negative", _HELD_OUT, "held-out-hidden", _test_target_as_negative),
    Canary("training-after-target", _HELD_OUT, "training-ends", _trains_after_target, ("time-split",)),
    Canary("rating-of-another", _HELD_OUT, "target-ratings", _rating_of_another),
    Canary(
        "item-from-outside-its-list", _HELD_OUT, "items-of-list", _asked("test", _item_from_outside), ("hints-quoted",)
    ),
    Canary(
        "list-of-another-user",
        _HELD_OUT,
        "lists-own",
        _list_of_another,
        ("items-of-list", "hints-quoted", "history-past"),
    ),
    Canary("target-in-profile", _HELD_OUT, "profile-blind", _profile_names_target),
    Canary("scale-too-small", _SCALE, "rating-scale", _smaller_scale, ("predicted-on-scale",)),
    Canary("thresholds-of-books", _SCALE, "feedback", _thresholds_of_books),
    Canary("nested-title-in-history", _SUBSTRINGS, "history-past", _nested_title),
    Canary("answer-points-elsewhere", _ALIGNED, "answers-aligned", _asked("train", _points_elsewhere)),
    Canary("answer-at-inference", _ALIGNED, "answers-in-training", _asked("test", _knows_answer)),
    Canary("teacher-at-inference", _ALIGNED, "answers-in-training", _asked("test", _knows_teacher)),
    Canary("retrieval-order-at-test", _ORDER, "lists-shuffled", _reordered(_retrieved, ("validation", "test"))),
    Canary("retrieval-order-in-training", _ORDER, "lists-shuffled", _reordered(_retrieved, ("train",))),
    Canary("target-always-first", _ORDER, "target-moves", _reordered(_target_first, ("train",))),
    Canary("pair-in-one-order", _ORDER, "pairs-both-ways", _asked("test", _pair_one_way)),
    Canary("other-wording-in-training", _TEMPLATE, "wording-same", _worded_otherwise),
    Canary("hint-in-training-only", _TEMPLATE, "wording-same", _hint_in_training_only, ("hints-quoted",)),
    Canary("two-templates", _TEMPLATE, "templates-same", _two_templates),
    Canary("time-reversed", _FUTURE, "time-order", _time_reversed),
    Canary("item-twice-in-history", _FUTURE, "item-once", _item_twice),
    Canary("candidate-out-of-history", _FUTURE, "offers-new", _liked_before, ("hints-quoted",)),
    Canary("candidate-offered-twice", _FUTURE, "offers-distinct", _offered_twice, ("items-of-list", "hints-quoted")),
    Canary("test-before-its-moment", _FUTURE, "time-split", _target_before_its_moment),
    Canary(
        "disliked-target", _TARGETS, "targets-liked", _disliked_target, ("feedback", "last-likes", "targets-of-split")
    ),
    Canary(
        "two-test-targets", _TARGETS, "one-target", _second_target, ("last-likes", "time-split", "targets-of-split")
    ),
    Canary("not-the-last-like", _TARGETS, "last-likes", _not_the_last_like, ("targets-of-split",)),
)
"""Every trap of the method, planted at least once."""
