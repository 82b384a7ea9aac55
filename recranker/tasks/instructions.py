"""From one user's history and candidate lists to prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recranker.randomness import generator
from recranker.schema import PROMPTS
from recranker.tasks.prefix import build_prefix
from recranker.tasks.protocol import Candidate, Prompt, Question, RatingScale
from recranker.tasks.questions import ranking_questions, training_questions
from recranker.tasks.settings import InstructSettings

WITH_REASON = PROMPTS.schema.append(pa.field("reason", pa.string()))
"""Rows of ``PromptBuilder.prompts``: a prompt, or a reason why there is none."""


@dataclass(frozen=True)
class PromptBuilder:
    """What every user's prompts have in common."""

    titles: Mapping[str, str]
    """Title of each item id."""
    settings: InstructSettings
    scale: RatingScale
    seed: int

    def prompts(self, interactions: pa.Table, lists: pa.Table, draws: pa.Table) -> pa.Table:
        """All prompts of one user: a training prompt per draw, one per validation and test list.

        Args:
            interactions: The user's INTERACTIONS rows, in any order.
            lists: The user's CANDIDATES rows.
            draws: The user's DRAWS rows; may be empty.

        Returns:
            Rows of ``WITH_REASON``: one per draw and per validation or test list, never fewer.
        """
        history = interactions.sort_by("sequence").to_pylist()
        by_split: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
        for row in lists.sort_by("list_id").to_pylist():
            by_split[row["split"]].append(row)
        rows = [self._training_row(draw, by_split["train"], history) for draw in draws.sort_by("draw_id").to_pylist()]
        for split in ("validation", "test"):
            rows += [self._ranking_row(one, history) for one in by_split[split]]
        return pa.Table.from_pylist(rows, schema=WITH_REASON)

    def _training_row(
        self, draw: dict[str, Any], lists: Sequence[dict[str, Any]], history: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        """Repeated draws of a user go through its lists in a keyed order before one comes again."""
        prompt_id = f"train/{draw['draw_id']}"
        usable = [one for one in lists if one["hit"]]
        if not usable:
            return _refused(prompt_id, draw["user_id"], "train", "no training list holds its target")
        order = generator(self.seed, "training lists", draw["user_id"]).permutation(len(usable))
        chosen = usable[order[draw["repeat"] % len(usable)]]
        candidates = self._candidates(chosen)
        if candidates is None:
            return _refused(prompt_id, draw["user_id"], "train", "a candidate has no title")
        target, rating = chosen["target_id"], chosen["target_rating"]
        key = (self.seed, draw["user_id"], draw["draw_id"])
        questions = training_questions(candidates, target, rating, self.settings, self.scale, *key)
        if not questions:
            return _refused(prompt_id, draw["user_id"], "train", "one candidate without a rating leaves nothing to ask")
        return _row(prompt_id, chosen, self._prefix(history, chosen["before"]), questions)

    def _ranking_row(self, one: dict[str, Any], history: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if not one["candidate_ids"]:
            return _refused(one["list_id"], one["user_id"], one["split"], "the list has no candidates")
        candidates = self._candidates(one)
        if candidates is None:
            return _refused(one["list_id"], one["user_id"], one["split"], "a candidate has no title")
        questions = ranking_questions(candidates, self.settings, self.scale, self.seed, one["list_id"])
        return _row(one["list_id"], one, self._prefix(history, one["before"]), questions)

    def _candidates(self, one: dict[str, Any]) -> list[Candidate] | None:
        titles = [self.titles.get(item_id) or "" for item_id in one["candidate_ids"]]
        if not all(titles):
            return None
        logits = np.asarray(one["reranker_scores"], dtype=np.float64)
        quoted = logits if self.settings.hints == "reranker" else -np.arange(len(titles))
        places = np.empty(len(titles), dtype=np.int64)
        places[np.argsort(-quoted, kind="stable")] = np.arange(1, len(titles) + 1)
        odds = np.exp(logits - logits.max())
        guesses = one["predicted_ratings"] if one["target_rating"] is not None else [None] * len(titles)
        columns = (one["candidate_ids"], titles, places.tolist(), guesses, (odds / odds.sum()).tolist())
        return [Candidate(*values) for values in zip(*columns, strict=True)]

    def _prefix(self, history: Sequence[dict[str, Any]], before: int) -> str:
        known = [event for event in reversed(history) if event["sequence"] < before and event["item_id"] in self.titles]
        liked = [self.titles[event["item_id"]] for event in known if event["feedback"] == "like"]
        disliked = [self.titles[event["item_id"]] for event in known if event["feedback"] == "dislike"]
        return build_prefix(liked[: self.settings.max_liked], disliked[: self.settings.max_disliked])


def to_prompts(table: pa.Table) -> list[Prompt]:
    """PROMPTS rows as the objects a scorer takes."""
    return [
        Prompt(row["prompt_id"], row["prefix"], tuple(_question(one) for one in row["questions"]))
        for row in table.select(["prompt_id", "prefix", "questions"]).to_pylist()
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
    )


def _row(prompt_id: str, one: dict[str, Any], prefix: str, questions: Sequence[Question]) -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "list_id": one["list_id"],
        "user_id": one["user_id"],
        "split": one["split"],
        "prefix": prefix,
        "questions": [vars(question) for question in questions],
        "reason": None,
    }


def _refused(prompt_id: str, user_id: str, split: str, reason: str) -> dict[str, Any]:
    empty = {"list_id": "", "prefix": "", "questions": []}
    return {"prompt_id": prompt_id, "user_id": user_id, "split": split, **empty, "reason": reason}
