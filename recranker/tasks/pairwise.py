"""Pairwise: would the user prefer the first item over the second? Every pair is asked in both orders."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recranker.randomness import generator
from recranker.tasks.protocol import Answer, Candidate, Question
from recranker.tasks.settings import Hint

LABELS = ("No", "Yes")
WIN, DRAW = 0.5, 0.25


def question(first: Candidate, second: Candidate, *, hint: Hint, answer: str | None = None) -> Question:
    """The question about one ordered pair; the hint says which of the two is placed higher.

    With a training answer the teacher's probabilities come along, where there is a teacher.
    """
    signal = "" if hint == "none" else f" [{'first' if first.place < second.place else 'second'}]"
    text = f"\n\nPrefer {first.title} to {second.title}?{signal}"
    soft = None
    if answer is not None and first.probability is not None and second.probability is not None:
        wins = first.probability / (first.probability + second.probability)
        soft = (1.0 - wins, wins)
    return Question("pairwise", text, LABELS, (first.item_id, second.item_id), answer, soft)


def schedule(num_items: int, *key: str | int) -> list[tuple[int, int]]:
    """Disjoint pairs of positions from a keyed permutation P: (P[i], P[i + n/2]).

    With an odd number of items the one left over meets P[0] again, so that every item is in a pair.

    Source: RecRanker, arXiv 2312.16018, section 4.4.
    """
    shuffled = generator("pairs", *key).permutation(num_items).tolist()
    half = num_items // 2
    pairs = [(shuffled[index], shuffled[index + half]) for index in range(half)]
    return [*pairs, (shuffled[-1], shuffled[0])] if num_items % 2 else pairs


def scores(answers: Sequence[Answer], item_ids: Sequence[str]) -> NDArray[np.float64]:
    """``(items,)`` mean log-odds of winning over the pairs of each item, both orders; 0 = never asked or even."""
    total, count = np.zeros(len(item_ids)), np.zeros(len(item_ids))
    place = {item_id: index for index, item_id in enumerate(item_ids)}
    for answer in answers:
        log_odds = answer.log_probabilities[1] - answer.log_probabilities[0]
        for item_id, sign in zip(answer.item_ids, (1.0, -1.0), strict=True):
            total[place[item_id]] += sign * log_odds
            count[place[item_id]] += 1
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def utility(answers: Sequence[Answer], item_ids: Sequence[str]) -> NDArray[np.float64]:
    """U_pair(i): 0.5 for the winner of a pair, 0.25 each when its two orders disagree, 0 for the loser.

    An item in several pairs gets their mean.

    Source: RecRanker, arXiv 2312.16018, section 4.4.
    """
    votes: dict[frozenset[str], list[str]] = {}
    for answer in answers:
        prefers_first = answer.log_probabilities[1] > answer.log_probabilities[0]
        votes.setdefault(frozenset(answer.item_ids), []).append(answer.item_ids[0 if prefers_first else 1])
    gained: dict[str, list[float]] = {item_id: [] for item_id in item_ids}
    for pair, winners in votes.items():
        agreed = len(set(winners)) == 1
        for item_id in pair:
            gained[item_id].append(DRAW if not agreed else WIN if item_id == winners[0] else 0.0)
    return np.array([np.mean(gained[item_id]) if gained[item_id] else 0.0 for item_id in item_ids])
