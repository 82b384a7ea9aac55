"""From the model's answers about one list to one score per candidate and task."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from recranker.tasks import listwise, pairwise, pointwise
from recranker.tasks.protocol import Answer, RatingScale

TASKS = ("pointwise", "pairwise", "listwise")

Scores = Mapping[str, NDArray[np.float64]]


def task_scores(answers: Sequence[Answer], item_ids: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """``(items,)`` scores of every task that was asked; higher is better, scales differ between tasks.

    pointwise: P(like) or the rescaled expected rating; pairwise: mean log-odds of winning;
    listwise: log-probability of being the best. A single candidate is asked about pointwise only; its other scores
    are 0 without asking: it meets nobody, and it is the best for certain.
    """
    by_task = _by_task(answers)
    functions = {"pointwise": pointwise.scores, "pairwise": pairwise.scores, "listwise": listwise.scores}
    scores = {task: functions[task](by_task[task], item_ids) for task in TASKS if task in by_task}
    if len(item_ids) == 1:
        scores = {**scores, "pairwise": np.zeros(1), "listwise": np.zeros(1)}
    return scores


def paper_utilities(
    answers: Sequence[Answer], item_ids: Sequence[str], scale: RatingScale, scores: Scores
) -> dict[str, NDArray[np.float64]]:
    """The paper's U_point, U_pair and U_list of every task that was asked.

    Args:
        answers: To all questions about the list.
        item_ids: In retrieval order.
        scale: The data's ratings.
        scores: Of ``task_scores``, which may hold further ones.

    Source: RecRanker, arXiv 2312.16018, section 4.4.
    """
    by_task = _by_task(answers)
    utilities: dict[str, NDArray[np.float64]] = {}
    if "pointwise" in scores:
        utilities["pointwise"] = pointwise.utility(scores["pointwise"], scale)
    if "pairwise" in scores:
        utilities["pairwise"] = pairwise.utility(by_task.get("pairwise", []), item_ids)
    if "listwise" in scores:
        utilities["listwise"] = listwise.utility(scores["listwise"])
    return utilities


def _by_task(answers: Sequence[Answer]) -> dict[str, list[Answer]]:
    grouped: dict[str, list[Answer]] = {}
    for answer in answers:
        grouped.setdefault(answer.task, []).append(answer)
    return grouped
