"""Pairwise: would the user prefer the first item over the second? Every pair is asked in both orders."""

from collections.abc import Sequence
from itertools import combinations, islice

import numpy as np
from numpy.typing import NDArray

from recranker.errors import SettingsError
from recranker.randomness import generator
from recranker.tasks.potential import potential
from recranker.tasks.protocol import Answer, Candidate, Question
from recranker.tasks.settings import Hint, PairSchedule
from recranker.tasks.wording import Templates, default_templates

LABELS = ("No", "Yes")
WIN, DRAW = 0.5, 0.25
MAX_FOR_ALL = 26
"""Candidates of a list of which all pairs may be asked: 325 pairs, 650 questions."""


def question(
    first: Candidate,
    second: Candidate,
    *,
    hint: Hint,
    answer: str | None = None,
    templates: Templates | None = None,
) -> Question:
    """The question about one ordered pair; the hint says which of the two is placed higher.

    With a training answer the teacher's probabilities come along, where it gives either a chance.
    """
    signal = "" if hint == "none" else f" [{'first' if first.place < second.place else 'second'}]"
    asked = (templates or default_templates()).questions.pair.format(first=first.title, second=second.title)
    soft = None
    if answer is not None and first.probability is not None and second.probability is not None:
        either = first.probability + second.probability
        soft = (second.probability / either, first.probability / either) if either > 0.0 else None
    return Question("pairwise", f"\n\n{asked}{signal}", LABELS, (first.item_id, second.item_id), answer, soft)


def pairs(
    candidates: Sequence[Candidate], schedule: PairSchedule, *key: str | int, per_candidate: int
) -> list[tuple[Candidate, Candidate]]:
    """The pairs that ``schedule`` asks about, each once; fewer than two candidates make none.

    Args:
        candidates: In any order.
        schedule: 'disjoint', 'all' or 'budgeted'.
        key: Keys the disjoint pairs.
        per_candidate: Pairs per candidate, at the most, of a budgeted schedule.

    Raises:
        SettingsError: If all pairs of more than ``MAX_FOR_ALL`` candidates are wanted.
    """
    if schedule == "disjoint":
        return [(candidates[first], candidates[second]) for first, second in disjoint(len(candidates), *key)]
    if schedule == "budgeted":
        by_place = sorted(candidates, key=lambda one: one.place)
        chosen = neighbours(len(candidates), per_candidate * len(candidates))
        return [(by_place[first], by_place[second]) for first, second in chosen]
    if len(candidates) > MAX_FOR_ALL:
        raise SettingsError(
            f"instruct.pair_schedule 'all' takes at most {MAX_FOR_ALL} candidates, as n of them make n (n - 1) / 2 "
            f"pairs, got {len(candidates)}; set instruct.pair_schedule='budgeted'"
        )
    return list(combinations(candidates, 2))


def num_pairs(num_items: int, schedule: PairSchedule, *, per_candidate: int) -> int:
    """How many ``pairs`` are of so many candidates."""
    every = num_items * (num_items - 1) // 2
    if schedule == "all":
        return every
    return min((num_items + 1) // 2 if schedule == "disjoint" else per_candidate * num_items, every)


def disjoint(num_items: int, *key: str | int) -> list[tuple[int, int]]:
    """Disjoint pairs of positions from a keyed permutation P: (P[i], P[i + n/2]).

    With an odd number of items the one left over meets P[0] again, so that every item is in a pair.

    Source: RecRanker, arXiv 2312.16018, section 4.4.
    """
    if num_items < 2:
        return []
    shuffled = generator("pairs", *key).permutation(num_items).tolist()
    half = num_items // 2
    halves = [(shuffled[index], shuffled[index + half]) for index in range(half)]
    return [*halves, (shuffled[-1], shuffled[0])] if num_items % 2 else halves


def neighbours(num_items: int, most: int) -> list[tuple[int, int]]:
    """At most ``most`` pairs of positions: those 1 apart, then 2 apart, and so on; of a distance the top ones first.

    An order that is nearly right has its mistakes between neighbours, and a chain of neighbours compares everyone
    with everyone.
    """
    nearest_first = ((top, top + distance) for distance in range(1, num_items) for top in range(num_items - distance))
    return list(islice(nearest_first, most))


def scores(answers: Sequence[Answer], item_ids: Sequence[str]) -> NDArray[np.float64]:
    """``(items,)`` mean log-odds of winning against the others, both orders; 0 = never asked or even.

    The others are those that pairs connect an item with, if only through third ones. Log-odds are differences of the
    least-squares potential, so that beating a strong opponent counts for more. Where all pairs were asked, or disjoint
    ones of an even number of items, their mean is that of the log-odds answered.
    """
    measured = [dict(zip(one.item_ids, one.log_probabilities[::-1].tolist(), strict=True)) for one in answers]
    found, connected = potential(measured, item_ids)
    return found * connected / np.maximum(connected - 1, 1)


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
