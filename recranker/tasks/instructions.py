"""From histories, candidate lists and draws to prompts: many users at a time, on whole columns as far as it goes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.randomness import generator
from recranker.schema import PROMPTS, QUESTION
from recranker.tasks.histories import Past, group_events
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, Prompt, Question, RatingScale
from recranker.tasks.questions import ranking_questions, training_questions
from recranker.tasks.settings import InstructSettings
from recranker.tasks.wording import Templates

WITH_REASON = PROMPTS.schema.append(pa.field("reason", pa.string()))
"""Rows of ``PromptBuilder.prompts``: a prompt, or a reason why there is none."""
NEEDED_OF_LISTS = (
    *("list_id", "user_id", "split", "target_id", "target_rating", "hit", "before"),
    *("candidate_ids", "predicted_ratings", "reranker_scores"),
)
"""Columns of CANDIDATES that prompts are made of."""
UNREADABLE = "\ufffd"
"""Stands where text could not be decoded."""


class _Row(NamedTuple):
    """A prompt to be, or the reason why there is none."""

    prompt_id: str
    user_id: str
    split: str
    list_id: str = ""
    prefix: str = ""
    questions: Sequence[Question] = ()
    reason: str | None = None


class _Ask(NamedTuple):
    """A draw or a list to rank, and the list it comes to."""

    prompt_id: str
    user_id: str
    split: str
    row: int
    """Row of the list; -1 where there is none."""
    draw_id: int | None


@dataclass(frozen=True)
class PromptBuilder:
    """What all users' prompts have in common."""

    titles: Mapping[str, str]
    """Title of each item id."""
    settings: InstructSettings
    scale: RatingScale
    seed: int
    templates: Templates | None = None
    """Texts in place of this version's own."""

    def prompts(self, interactions: pa.Table, lists: pa.Table, draws: pa.Table) -> pa.Table:
        """All prompts of some users; see ``from_histories``.

        Args:
            interactions: The users' INTERACTIONS rows, in any order.
            lists: Their CANDIDATES rows.
            draws: Their DRAWS rows; may be empty.
        """
        return self.from_histories(group_events(interactions), lists, draws)

    def from_histories(self, histories: pa.Table, lists: pa.Table, draws: pa.Table) -> pa.Table:
        """All prompts of some users: a training prompt per draw, one per validation and test list.

        Args:
            histories: HISTORIES rows.
            lists: CANDIDATES rows, at least the columns ``NEEDED_OF_LISTS``.
            draws: DRAWS rows.

        Returns:
            Rows of ``WITH_REASON``: one per draw and per validation or test list, never fewer; draws come first, then
            validation lists, then test lists, each by id.
        """
        asks = list(self._asks(lists, draws))
        chosen = lists.select(NEEDED_OF_LISTS).take(pa.array([ask.row for ask in asks if ask.row >= 0], pa.int64()))
        pasts = zip(chosen.to_pylist(), self._pasts(histories, chosen), strict=True)
        rows = [self._row(ask, *next(pasts)) if ask.row >= 0 else _without_list(ask) for ask in asks]
        return _to_table(rows)

    def _asks(self, lists: pa.Table, draws: pa.Table) -> Iterator[_Ask]:
        """Repeated draws of a user go through its lists in a keyed order before one comes again."""
        order = pc.sort_indices(lists, sort_keys=[("list_id", "ascending")])
        light = lists.select(["user_id", "split", "list_id", "hit"]).take(order)
        usable: dict[str, list[int]] = {}
        ranked: dict[str, list[_Ask]] = {"validation": [], "test": []}
        columns = [order.to_pylist(), *(column.to_pylist() for column in light.columns)]
        for row, user_id, split, list_id, hit in zip(*columns, strict=True):
            if split in ranked:
                ranked[split].append(_Ask(list_id, user_id, split, row, None))
            elif hit:
                usable.setdefault(user_id, []).append(row)
        for draw in draws.sort_by("draw_id").to_pylist():
            mine, row = usable.get(draw["user_id"], []), -1
            if mine:
                shuffled = generator(self.seed, "training lists", draw["user_id"]).permutation(len(mine))
                row = mine[shuffled[draw["repeat"] % len(mine)]]
            yield _Ask(f"train/{draw['draw_id']}", draw["user_id"], "train", row, draw["draw_id"])
        yield from ranked["validation"] + ranked["test"]

    def _row(self, ask: _Ask, one: dict[str, Any], past: tuple[list[str], list[str]]) -> _Row:
        refused = _Row(ask.prompt_id, ask.user_id, ask.split)
        liked, disliked = past
        if not one["candidate_ids"]:
            return refused._replace(reason="the list has no candidates")
        titles = [self.titles.get(item_id) or "" for item_id in one["candidate_ids"]]
        if not all(titles):
            return refused._replace(reason="a candidate has no title")
        if any(UNREADABLE in title for title in titles):
            return refused._replace(reason="a candidate's title is not readable text")
        if len(liked) < self.settings.min_liked:
            return refused._replace(reason="fewer likes before it than instruct.min_liked")
        questions = self._questions(ask, one, titles)
        if not questions:
            return refused._replace(reason="one candidate without a rating leaves nothing to ask")
        prefix = build_prefix(liked, disliked, self.templates)
        return refused._replace(list_id=one["list_id"], prefix=prefix, questions=questions)

    def _questions(self, ask: _Ask, one: dict[str, Any], titles: Sequence[str]) -> tuple[Question, ...]:
        candidates, texts = self._candidates(one, titles), self.templates
        if ask.draw_id is None:
            key: tuple[str | int, ...] = (self.seed, one["list_id"])
            return ranking_questions(candidates, self.settings, self.scale, *key, templates=texts)
        target, key = (one["target_id"], one["target_rating"]), (self.seed, ask.user_id, ask.draw_id)
        return training_questions(candidates, *target, self.settings, self.scale, *key, templates=texts)

    def _candidates(self, one: dict[str, Any], titles: Sequence[str]) -> list[Candidate]:
        logits = np.asarray(one["reranker_scores"], dtype=np.float64)
        quoted = logits if self.settings.hints == "reranker" else -np.arange(len(titles))
        places = np.empty(len(titles), dtype=np.int64)
        places[np.argsort(-quoted, kind="stable")] = np.arange(1, len(titles) + 1)
        odds = np.exp(logits - logits.max())
        guesses = one["predicted_ratings"] if one["target_rating"] is not None else [None] * len(titles)
        columns = (one["candidate_ids"], titles, places.tolist(), guesses, (odds / odds.sum()).tolist())
        return [Candidate(*values) for values in zip(*columns, strict=True)]

    def _pasts(self, histories: pa.Table, lists: pa.Table) -> Iterator[tuple[list[str], list[str]]]:
        """Per list the titles its user liked and disliked before it, the most recent first, as many as are shown."""
        item_ids, titles = self._catalogue
        users = (
            pc.fill_null(pc.index_in(lists["user_id"], value_set=histories["user_id"]), -1).to_numpy().astype(np.int64)
        )
        befores = lists["before"].to_numpy().astype(np.int64)
        shown = {"like": self.settings.max_liked, "dislike": self.settings.max_disliked}
        pasts = {feedback: Past.of(histories, item_ids, feedback) for feedback in shown}
        liked, disliked = (pasts[feedback].latest(users, befores, most) for feedback, most in shown.items())
        for likes, dislikes in zip(liked, disliked, strict=True):
            yield [titles[item] for item in likes], [titles[item] for item in dislikes]

    @cached_property
    def _catalogue(self) -> tuple[pa.Array, list[str]]:
        """Ids and titles of all items, in one order."""
        return pa.array(list(self.titles), pa.string()), list(self.titles.values())


def titles_by_id(items: pa.Table) -> dict[str, str]:
    """Title of each item of ITEMS; what is no UTF-8 in a title is marked, and its lists are put aside."""
    item_ids = items["item_id"].to_pylist()
    texts = items["title"].cast(pa.binary()).to_pylist()
    return {item_id: text.decode(errors="replace") for item_id, text in zip(item_ids, texts, strict=True)}


def to_prompts(table: pa.Table) -> list[Prompt]:
    """PROMPTS rows as the objects a scorer takes."""
    return [
        Prompt(row["prompt_id"], row["prefix"], tuple(map(_question, row["questions"])), row["prefix_tokens"])
        for row in table.select(["prompt_id", "prefix", "questions", "prefix_tokens"]).to_pylist()
    ]


def _question(values: dict[str, Any]) -> Question:
    return Question(
        values["task"],
        values["text"],
        tuple(values["labels"]),
        tuple(values["item_ids"]),
        values["answer"],
        tuple(values["soft_labels"]) if values["soft_labels"] is not None else None,
        values["round"],
        values["tokens"],
    )


def _without_list(ask: _Ask) -> _Row:
    return _Row(ask.prompt_id, ask.user_id, ask.split, reason="no training list holds its target")


def _to_table(rows: Sequence[_Row]) -> pa.Table:
    """A column at a time: nested rows handed to Arrow one by one take ten times as long."""
    columns = {
        name: pa.array([getattr(row, name) for row in rows], pa.string())
        for name in ("prompt_id", "list_id", "user_id", "split", "prefix", "reason")
    }
    questions = [question for row in rows for question in row.questions]
    offsets = np.cumsum([0, *(len(row.questions) for row in rows)])
    fields = [
        pa.array([getattr(question, field.name) for question in questions], field.type)
        if field.name != "tokens"
        else pa.nulls(len(questions), field.type)
        for field in QUESTION
    ]
    structs = pa.StructArray.from_arrays(fields, fields=list(QUESTION))
    columns["questions"] = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), structs)
    columns["prefix_tokens"] = pa.nulls(len(rows), pa.int32())
    return pa.table([columns[name] for name in WITH_REASON.names], schema=WITH_REASON)
