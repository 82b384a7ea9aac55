"""Prompts made one user and one row at a time: slow, plain, and what ``PromptBuilder`` must agree with exactly."""

from typing import Any

import numpy as np
import pyarrow as pa

from recranker.randomness import generator
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import Candidate, Question
from recranker.tasks.questions import ranking_questions, training_questions
from tests.tables import candidate_list, candidates, draws, interactions

Row = dict[str, Any]
INSTRUCTIONS = (
    "Below is what one person liked and disliked, the most recent first. Judge what this person will enjoy next.\n"
    "'Like X?' and 'Prefer X to Y?' are answered by Yes or No, 'Rate X' by a number, 'Best of' by a letter. "
    "What other recommenders say stands in brackets."
)


def plain_rows(builder: PromptBuilder, interactions: pa.Table, lists: pa.Table, draws: pa.Table) -> list[Row]:
    """Rows of ``WITH_REASON`` for all users, without token counts, by prompt id."""
    users = set(lists["user_id"].to_pylist()) | set(draws["user_id"].to_pylist())
    rows: list[Row] = []
    for user in users:
        events, mine, drawn = (
            [row for row in table.to_pylist() if row["user_id"] == user] for table in (interactions, lists, draws)
        )
        events.sort(key=lambda row: row["sequence"])
        mine.sort(key=lambda row: row["list_id"])
        rows += [training_row(builder, draw, mine, events) for draw in drawn]
        rows += [ranking_row(builder, one, events) for one in mine if one["split"] != "train"]
    return sorted(rows, key=lambda row: row["prompt_id"])


def training_row(builder: PromptBuilder, draw: Row, lists: list[Row], history: list[Row]) -> Row:
    usable = [one for one in lists if one["split"] == "train" and one["hit"]]
    prompt_id, user = f"train/{draw['draw_id']}", draw["user_id"]
    if not usable:
        return refused(prompt_id, user, "train", "no training list holds its target")
    order = generator(builder.seed, "training lists", user).permutation(len(usable))
    chosen = usable[order[draw["repeat"] % len(usable)]]
    candidates = candidates_of(builder, chosen)
    if candidates is None:
        return refused(prompt_id, user, "train", "a candidate has no title")
    key = (builder.seed, user, draw["draw_id"])
    target, rating = chosen["target_id"], chosen["target_rating"]
    questions = training_questions(candidates, target, rating, builder.settings, builder.scale, *key)
    if not questions:
        return refused(prompt_id, user, "train", "one candidate without a rating leaves nothing to ask")
    return row(prompt_id, chosen, prefix(builder, history, chosen["before"]), questions)


def ranking_row(builder: PromptBuilder, one: Row, history: list[Row]) -> Row:
    if not one["candidate_ids"]:
        return refused(one["list_id"], one["user_id"], one["split"], "the list has no candidates")
    candidates = candidates_of(builder, one)
    if candidates is None:
        return refused(one["list_id"], one["user_id"], one["split"], "a candidate has no title")
    questions = ranking_questions(candidates, builder.settings, builder.scale, builder.seed, one["list_id"])
    return row(one["list_id"], one, prefix(builder, history, one["before"]), questions)


def candidates_of(builder: PromptBuilder, one: Row) -> list[Candidate] | None:
    titles = [builder.titles.get(item_id) for item_id in one["candidate_ids"]]
    if not all(titles):
        return None
    logits = np.asarray(one["reranker_scores"], dtype=np.float64)
    quoted = logits if builder.settings.hints == "reranker" else -np.arange(len(titles))
    best_first = sorted(range(len(titles)), key=lambda index: -quoted[index])
    odds = np.exp(logits - logits.max())
    return [
        Candidate(
            item_id,
            titles[index] or "",
            best_first.index(index) + 1,
            one["predicted_ratings"][index] if one["target_rating"] is not None else None,
            float((odds / odds.sum())[index]),
        )
        for index, item_id in enumerate(one["candidate_ids"])
    ]


def prefix(builder: PromptBuilder, history: list[Row], before: int) -> str:
    known = [event for event in history if event["sequence"] < before and event["item_id"] in builder.titles][::-1]
    liked, disliked = (
        [builder.titles[event["item_id"]] for event in known if event["feedback"] == feedback][:most]
        for feedback, most in (("like", builder.settings.max_liked), ("dislike", builder.settings.max_disliked))
    )
    above = ["Disliked:", *disliked] if disliked else []
    return "\n".join([INSTRUCTIONS, *above, *(["Liked:", *liked] if liked else ["Liked: nothing known yet"])])


def row(prompt_id: str, one: Row, text: str, questions: tuple[Question, ...]) -> Row:
    named = {name: one[name] for name in ("list_id", "user_id", "split")}
    asked = [{**vars(question), "tokens": None} for question in questions]
    return {"prompt_id": prompt_id, **named, "prefix": text, "questions": asked, "prefix_tokens": None, "reason": None}


def refused(prompt_id: str, user_id: str, split: str, reason: str) -> Row:
    empty = {"list_id": "", "prefix": "", "questions": [], "prefix_tokens": None}
    return {"prompt_id": prompt_id, "user_id": user_id, "split": split, **empty, "reason": reason}


def made_up_service(num_users: int, key: int) -> tuple[pa.Table, pa.Table, pa.Table]:
    """Events, lists and draws of users of all kinds, in any order."""
    random = generator("service", key)
    events, lists, drawn = [], [], []
    for number in range(num_users):
        user, length = f"u{number}", int(random.integers(0, 30))
        for place in range(length):
            feedback = ("like", "neutral", "dislike")[random.choice(3, p=[0.6, 0.2, 0.2])]
            events.append((user, f"i{random.integers(25)}", place, feedback, "train"))  # i20 to i24 have no title
        for place in range(int(random.integers(0, 5))):
            split = ("train", "train", "validation", "test")[place]
            items = [f"i{item}" for item in random.permutation(21 if random.random() < 0.3 else 20)[: 1 + number % 9]]
            target = items[0] if random.random() < 0.8 else "i24"
            shown = random.permutation(items).tolist() if random.random() < 0.9 else []
            scores = {"reranker_scores": random.integers(0, 3, len(shown)).tolist()}  # with ties
            rating = {"target_rating": None if random.random() < 0.2 else 4.0}
            before = int(random.integers(0, length + 2))
            lists.append(candidate_list(user, split, f"{target}-{place}", shown, before=before, **scores, **rating))
            lists[-1] |= {"target_id": target, "hit": target in shown}
        drawn += [user] * int(random.integers(0, 4))
    drawn = [str(user) for user in random.permutation(drawn)]
    shuffled = [interactions(*events), candidates(*lists), draws(*drawn)]
    return tuple(table.take(random.permutation(table.num_rows)) for table in shuffled)  # type: ignore[return-value]
