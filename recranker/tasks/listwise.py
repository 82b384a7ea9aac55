"""Listwise: which of these items will the user enjoy most? Candidates are lettered; letters are the labels.

A list with more candidates than letters is asked about in overlapping windows.
"""

import math
from collections.abc import Sequence
from string import ascii_uppercase

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from recranker.errors import SettingsError
from recranker.randomness import generator
from recranker.tasks.potential import potential
from recranker.tasks.protocol import Answer, Candidate, Question
from recranker.tasks.settings import MAX_SHOWN, Hint
from recranker.tasks.wording import Templates, default_templates

POSITION_WEIGHT = 0.025


def question(
    shown: Sequence[Candidate],
    *,
    hint: Hint,
    answer_id: str | None = None,
    round: int = 0,
    templates: Templates | None = None,
) -> Question:
    """The question about a list or a window of it, in the order shown; the hint is the order of places, as letters.

    With a training answer the teacher's probabilities come along, where it gives any of those shown a chance; they
    are those of the target's being each one, given that it is one of those shown.

    Raises:
        SettingsError: If there are more candidates than letters.
    """
    if len(shown) > MAX_SHOWN:
        raise SettingsError(f"a listwise question takes at most {MAX_SHOWN} candidates, got {len(shown)}")
    letters = ascii_uppercase[: len(shown)]
    lines = [f"{letter}. {candidate.title}" for letter, candidate in zip(letters, shown, strict=True)]
    signal = ""
    if hint != "none":
        by_place = sorted(zip(letters, shown, strict=True), key=lambda pair: pair[1].place)
        signal = f"\n[order: {' '.join(letter for letter, _ in by_place)}]"
    asked = (templates or default_templates()).questions.list.format(items="\n".join(lines))
    item_ids = tuple(candidate.item_id for candidate in shown)
    answer = letters[item_ids.index(answer_id)] if answer_id is not None else None
    known = [candidate.probability for candidate in shown if candidate.probability is not None]
    taught = answer_id is not None and len(known) == len(shown) and sum(known) > 0.0
    soft = tuple(one / sum(known) for one in known) if taught else None
    return Question("listwise", f"\n\n{asked}{signal}", tuple(letters), item_ids, answer, soft, round)


def shuffled(candidates: Sequence[Candidate], *key: str | int) -> list[Candidate]:
    """``candidates`` in a keyed random order (position shifting: RecRanker, section 4.3)."""
    return [candidates[index] for index in generator("list", *key).permutation(len(candidates))]


def windows(order: Sequence[Candidate], *, window: int, stride: int) -> list[list[Candidate]]:
    """What each question about ``order`` shows: all of it, or ``window`` items where there are more than letters.

    Windows are set out evenly round a circle, the last item being followed by the first: ceil(items / stride) of
    them, at most ``stride`` places apart. How often two items are asked about so differs by one at the most; on a
    line those at either end would be asked about less. Fewer than two items need no question.
    """
    if len(order) < 2:
        return []
    if len(order) <= MAX_SHOWN:
        return [list(order)]
    count = math.ceil(len(order) / stride)
    starts = [number * len(order) // count for number in range(count)]
    return [[order[(start + offset) % len(order)] for offset in range(window)] for start in starts]


def round_of(permutation: int) -> int:
    """The round in which a shuffle is asked: the first two in round 0, as one alone cannot say whether it settles."""
    return max(0, permutation - 1)


def scores(answers: Sequence[Answer], item_ids: Sequence[str]) -> NDArray[np.float64]:
    """``(items,)`` log-probability of each item's being the best of the list, in nats.

    Where every question showed the whole list: its letter's, averaged over the permutations asked. The letters of
    windows are normalised over their windows, so these are joined by their least-squares potential, normalised over
    the list.
    """
    by_item = [dict(zip(one.item_ids, one.log_probabilities.tolist(), strict=True)) for one in answers]
    if all(len(one) == len(item_ids) for one in by_item):
        return np.asarray(np.mean([[one[item_id] for item_id in item_ids] for one in by_item], axis=0))
    found, _ = potential(by_item, item_ids)
    return np.asarray(log_softmax(found), dtype=np.float64)


def settled(answers: Sequence[Answer], item_ids: Sequence[str]) -> bool:
    """Whether the latest permutation left the order as it was.

    Args:
        answers: All listwise answers so far, in the order asked. The latest permutation is the latest round; where
            only round 0 was asked, which must hold two permutations, its second half.
        item_ids: The items.
    """
    latest = max(one.round for one in answers)
    before = [one for one in answers if one.round < latest] if latest else answers[: len(answers) // 2]
    now, then = (np.argsort(-scores(one, item_ids), kind="stable") for one in (answers, before))
    return np.array_equal(now, then)


def utility(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """U_list(i) = -0.025 m'_i, m' the place from 1 in the model's list; ties keep the retriever's order.

    Source: RecRanker, arXiv 2312.16018, section 4.4.
    """
    places = np.empty(len(scores))
    places[np.argsort(-scores, kind="stable")] = np.arange(1, len(scores) + 1)
    return -POSITION_WEIGHT * places
