"""Pointwise: would the user like this item, or how would they rate it?"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from recranker.tasks.protocol import Answer, Candidate, Question, RatingScale
from recranker.tasks.settings import Hint
from recranker.tasks.wording import Templates, default_templates

LIKE_LABELS = ("No", "Yes")
OPINIONS = ("Yes", "mostly Yes", "unsure", "mostly No", "No")
"""What a place in the quoted order is called, a fifth of the list each. A small model reads such words as evidence
before it is tuned, while of the bare number it makes nothing, and little in a few hundred prompts."""
POSITION_PENALTY = 0.05


def question(
    candidate: Candidate,
    num_candidates: int,
    *,
    kind: Literal["like", "rating"],
    scale: RatingScale,
    hint: Hint,
    answer: str | None = None,
    soft_labels: tuple[float, ...] | None = None,
    templates: Templates | None = None,
) -> Question:
    """The question about one of so many candidates.

    The hint is its place, in words and as a number, or the predicted rating where hints are the paper's.
    """
    signal, texts = "", (templates or default_templates()).questions
    if hint == "backbone" and candidate.predicted_rating is not None:
        signal = f" [predicted rating {candidate.predicted_rating:.1f}]"
    elif hint != "none":
        others = f"others: {opinion(candidate.place, num_candidates)}, " if kind == "like" else ""
        signal = f" [{others}place {candidate.place}]"
    if kind == "like":
        text = f"\n\n{texts.like.format(title=candidate.title)}{signal}"
        return Question("pointwise", text, LIKE_LABELS, (candidate.item_id,), answer, soft_labels)
    asked = texts.rating.format(title=candidate.title, lowest=scale.labels[0], highest=scale.labels[-1])
    text = f"\n\n{asked}{signal}"
    return Question("pointwise", text, scale.labels, (candidate.item_id,), answer)


def opinion(place: int, num_candidates: int) -> str:
    """The one of ``OPINIONS`` for a place, from 1, in an order of so many."""
    return OPINIONS[(place - 1) * len(OPINIONS) // num_candidates]


def soft_like(candidate: Candidate, num_candidates: int, negatives: int) -> tuple[float, float] | None:
    """The teacher's probabilities of No and Yes for an item drawn as training draws it; None where it has none.

    Training asks about the target and ``negatives`` of the other items: an item with probability p of being the
    target is asked about as the target in p, as another in (1 - p) * negatives / (candidates - 1) of the cases.
    """
    if candidate.probability is None or num_candidates < 2:
        return None
    target = candidate.probability
    other = (1.0 - target) * negatives / (num_candidates - 1)
    return (other / (target + other), target / (target + other)) if target + other > 0.0 else None


def rating_label(rating: float, scale: RatingScale) -> str:
    """The label nearest to a rating; halves go up."""
    return str(int(np.clip(np.floor(rating + 0.5), round(scale.lowest), round(scale.highest))))


def scores(answers: Sequence[Answer], item_ids: Sequence[str]) -> NDArray[np.float64]:
    """``(items,)`` expected place on the label scale, in [0, 1]: P(like), or the expected rating rescaled.

    Labels run from worst to best, so one formula serves both kinds of question.
    """
    known = {answer.item_ids[0]: answer for answer in answers}
    expected = np.empty(len(item_ids))
    for index, item_id in enumerate(item_ids):
        probabilities = np.exp(known[item_id].log_probabilities)
        expected[index] = probabilities @ np.linspace(0.0, 1.0, len(probabilities))
    return expected


def utility(expected: NDArray[np.float64], scale: RatingScale) -> NDArray[np.float64]:
    """U_point(i) = s_i - 0.05 m_i: the rating minus a penalty on the retrieval position from 1.

    Args:
        expected: ``(items,)`` in [0, 1] from ``scores``, in the retriever's order.
        scale: What [0, 1] stands for in ratings.

    Source: RecRanker, arXiv 2312.16018, section 4.4 (constants of its published settings).
    """
    positions = np.arange(1, len(expected) + 1)
    return scale.lowest + expected * (scale.highest - scale.lowest) - POSITION_PENALTY * positions
