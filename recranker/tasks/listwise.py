"""Listwise: which of these items will the user enjoy most? Candidates are lettered; letters are the labels."""

from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray

from recranker.errors import SettingsError
from recranker.randomness import generator
from recranker.tasks.protocol import Answer, Candidate, Question
from recranker.tasks.settings import Hint

MAX_CANDIDATES = len(ascii_uppercase)
POSITION_WEIGHT = 0.025


def question(shown: Sequence[Candidate], *, hint: Hint, answer_id: str | None = None) -> Question:
    """The question about a whole list, in the order shown; the hint is the order of places, as letters.

    With a training answer the teacher's probabilities come along, where there is a teacher.

    Raises:
        SettingsError: If there are more candidates than letters.
    """
    if len(shown) > MAX_CANDIDATES:
        raise SettingsError(f"a listwise question takes at most {MAX_CANDIDATES} candidates, got {len(shown)}")
    letters = ascii_uppercase[: len(shown)]
    lines = [f"{letter}. {candidate.title}" for letter, candidate in zip(letters, shown, strict=True)]
    signal = ""
    if hint != "none":
        by_place = sorted(zip(letters, shown, strict=True), key=lambda pair: pair[1].place)
        signal = f"\n[order: {' '.join(letter for letter, _ in by_place)}]"
    text = "\n\nBest of\n" + "\n".join(lines) + signal
    item_ids = tuple(candidate.item_id for candidate in shown)
    answer = letters[item_ids.index(answer_id)] if answer_id is not None else None
    known = [candidate.probability for candidate in shown if candidate.probability is not None]
    soft = tuple(known) if answer_id is not None and len(known) == len(shown) else None
    return Question("listwise", text, tuple(letters), item_ids, answer, soft)


def shuffled(candidates: Sequence[Candidate], *key: str | int) -> list[Candidate]:
    """``candidates`` in a keyed random order (position shifting: RecRanker, section 4.3)."""
    return [candidates[index] for index in generator("list", *key).permutation(len(candidates))]


def scores(answers: Sequence[Answer], item_ids: Sequence[str]) -> NDArray[np.float64]:
    """``(items,)`` log-probability of each item's letter, averaged over the permutations asked."""
    total = np.zeros(len(item_ids))
    for answer in answers:
        by_item = dict(zip(answer.item_ids, answer.log_probabilities, strict=True))
        total += [by_item[item_id] for item_id in item_ids]
    return total / len(answers)


def utility(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """U_list(i) = -0.025 m'_i, m' the place from 1 in the model's list; ties keep the retriever's order.

    Source: RecRanker, arXiv 2312.16018, section 4.4.
    """
    places = np.empty(len(scores))
    places[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return -POSITION_WEIGHT * places
