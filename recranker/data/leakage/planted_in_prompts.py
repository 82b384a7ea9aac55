"""Traps in prompts: what they show, ask, quote and answer."""

from collections.abc import Callable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.leakage.planted_in_tables import asked_about, with_true_popularity
from recranker.data.leakage.planting import (
    Row,
    prompt_with_target,
    question_of,
    row_at,
    row_where,
    rows_where,
    table_of,
    title_of,
    with_row,
)
from recranker.data.leakage.tables import GateTables


def asked(split: str, change: Callable[[GateTables, Row, Row], None]) -> Callable[[GateTables], GateTables]:
    """A plant that changes one prompt of a split, given the prompt and its list."""

    def plant(tables: GateTables) -> GateTables:
        row, prompt, one = prompt_with_target(tables, split)
        change(tables, prompt, one)
        return with_row(tables, "prompts", row, **prompt)

    return plant


def knows_answer(tables: GateTables, prompt: Row, one: Row) -> None:
    question = question_of(prompt, "listwise")
    question["answer"] = question["labels"][question["item_ids"].index(one["target_id"])]


def knows_teacher(tables: GateTables, prompt: Row, one: Row) -> None:
    question = question_of(prompt, "listwise")
    question["soft_labels"] = [float(item == one["target_id"]) for item in question["item_ids"]]


def points_elsewhere(tables: GateTables, prompt: Row, one: Row) -> None:
    question = question_of(prompt, "listwise")
    question["answer"] = next(label for label in question["labels"] if label != question["answer"])


def list_of_another(tables: GateTables) -> GateTables:
    prompts = table_of(tables, "prompts")
    rows = rows_where(prompts, split="test")
    if len(rows) < 2:
        raise LookupError("two test prompts")
    return with_row(tables, "prompts", rows[0], list_id=row_at(prompts, rows[1])["list_id"])


def item_from_outside(tables: GateTables, prompt: Row, one: Row) -> None:
    question = question_of(prompt, "pointwise")
    outside = set(table_of(tables, "items")["item_id"].to_pylist()) - set(one["candidate_ids"])
    question["item_ids"] = [min(outside)]


def test_target_as_negative(tables: GateTables) -> GateTables:
    """The user's own test target stands among the wrong answers of a training list."""
    lists, prompts = table_of(tables, "candidates"), table_of(tables, "prompts")
    for row in rows_where(prompts, split="train"):
        prompt = row_at(prompts, row)
        held_out = rows_where(tables.interactions, user_id=prompt["user_id"], split="test")
        number = row_where(lists, list_id=prompt["list_id"])
        one = row_at(lists, number)
        if not held_out:
            continue
        item = row_at(tables.interactions, held_out[0])["item_id"]
        question = question_of(prompt, "listwise")
        old = next(other for other in question["item_ids"] if other != one["target_id"])
        ids = [item if other == old else other for other in one["candidate_ids"]]
        place = one["candidate_ids"].index(old)
        changed = with_true_popularity(tables, one["fold"], one["popularity"], place, item, one)
        planted = with_row(tables, "candidates", number, candidate_ids=ids, popularity=changed)
        return asked_about(planted, one["list_id"], old, item)
    raise LookupError("a test target of a user with a training prompt")


def reordered(order: Callable[[list[str], Row], list[str]], splits: tuple[str, ...]) -> Callable[..., GateTables]:
    """A plant that lays all lists of some splits out anew, answers and quoted orders with them."""

    def plant(tables: GateTables) -> GateTables:
        prompts, lists = table_of(tables, "prompts"), table_of(tables, "candidates")
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


def pair_one_way(tables: GateTables, prompt: Row, one: Row) -> None:
    prompt["questions"].remove(question_of(prompt, "pairwise"))


def hint_knows(task: str) -> Callable[[GateTables, Row, Row], None]:
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


def words_know(tables: GateTables, prompt: Row, one: Row) -> None:
    """The words of the target's place are the best ones, beside the right number."""
    for question in prompt["questions"]:
        head, _, quoted = str(question["text"]).rpartition("[others: ")
        if head and question["item_ids"] == [one["target_id"]] and not quoted.startswith("Yes"):
            question["text"] = f"{head}[others: Yes,{quoted.partition(',')[2]}"
            return
    raise LookupError("words that do not favour the target already")


def target_in_history(tables: GateTables, prompt: Row, one: Row) -> None:
    lines = prompt["prefix"].split("\n")
    prompt["prefix"] = "\n".join([*lines, title_of(tables, one["target_id"])])


def nested_title(tables: GateTables) -> GateTables:
    """A title of the history gives way to one that contains it, or is contained in it, of an item never met."""
    titles = table_of(tables, "items")["title"].to_pylist()
    prompts = table_of(tables, "prompts")
    for row in rows_where(prompts, split="test"):
        prompt = row_at(prompts, row)
        lines = prompt["prefix"].split("\n")
        mine = _titles_met(tables, prompt["user_id"])
        for place, line in enumerate(lines):
            nested = [one for one in titles if line in mine and one != line and (one in line or line in one)]
            unmet = [one for one in nested if one not in mine]
            if unmet:
                lines[place] = unmet[0]
                return with_row(tables, "prompts", row, prefix="\n".join(lines))
    raise LookupError("nested titles")


def _titles_met(tables: GateTables, user: str) -> set[str]:
    met = tables.interactions.filter(pc.equal(tables.interactions["user_id"], user))["item_id"].combine_chunks()
    items = table_of(tables, "items")
    return set(items.filter(pc.is_in(items["item_id"], value_set=met))["title"].to_pylist())


def profile_names_target(tables: GateTables) -> GateTables:
    prompts = table_of(tables, "prompts")
    lists = table_of(tables, "candidates")
    for row in rows_where(prompts, split="test"):
        prompt = row_at(prompts, row)
        target = title_of(tables, row_at(lists, row_where(lists, list_id=prompt["list_id"]))["target_id"])
        if len(target) >= 12 and not any(target in line for line in prompt["prefix"].split("\n")):
            lines = prompt["prefix"].split("\n")
            profile = f"Profile: someone who will enjoy {target} and the like"
            return with_row(tables, "prompts", row, prefix="\n".join([lines[0], profile, *lines[1:]]))
    raise LookupError("a target with a title of its own")


def worded_otherwise(tables: GateTables) -> GateTables:
    prompts = table_of(tables, "prompts")
    if {"train", "test"} - set(prompts["split"].to_pylist()):
        raise LookupError("both sides")
    rows = prompts.to_pylist()
    for row in rows:
        if row["split"] == "train":
            row["prefix"] = f"You recommend items.\n{row['prefix']}"
    return replace(tables, prompts=pa.Table.from_pylist(rows, schema=prompts.schema))


def hint_in_training_only(tables: GateTables) -> GateTables:
    prompts = table_of(tables, "prompts")
    if tables.hints in (None, "none") or {"train", "test"} - set(prompts["split"].to_pylist()):
        raise LookupError("hints on both sides")
    rows = prompts.to_pylist()
    for question in (one for row in rows if row["split"] != "train" for one in row["questions"]):
        if question["task"] == "pointwise":
            question["text"] = question["text"].rpartition(" [")[0]
    return replace(tables, prompts=pa.Table.from_pylist(rows, schema=prompts.schema))


def two_templates(tables: GateTables) -> GateTables:
    table_of(tables, "prompts")
    return replace(tables, template_hashes={"train": "a", "test": "b"})


def retrieved(shown: list[str], one: Row) -> list[str]:
    return list(one["candidate_ids"])


def target_first(shown: list[str], one: Row) -> list[str]:
    return sorted(shown, key=lambda item: item != one["target_id"])
