"""From answers to scores, whatever the number of candidates and whatever is asked."""

import numpy as np
import pytest

from recranker.errors import DataError
from recranker.randomness import generator
from recranker.ranking.fusion import best_first
from recranker.ranking.utilities import paper_utilities, task_scores
from recranker.tasks.protocol import Answer, Candidate, RatingScale
from recranker.tasks.questions import ranking_questions
from recranker.tasks.settings import InstructSettings, PairSchedule

SCALE = RatingScale(1, 5)
TASKS = ["pointwise", "pairwise", "listwise"]
COUNTS = [1, 2, 3, 10, 26, 27, 50, 200]


def asked(count: int, schedule: PairSchedule, *, levels: int | None = None) -> tuple[list[Answer], list[str]]:
    """Answers to all questions about ``count`` candidates: random ones, or of so few ``levels`` that many tie."""
    candidates = [Candidate(f"i{n}", f"Film {n}", n + 1) for n in range(count)]
    random = generator("answers", count, schedule)
    answers = []
    for question in ranking_questions(candidates, InstructSettings(pair_schedule=schedule), SCALE, count):
        logits = (
            random.normal(size=len(question.labels))
            if levels is None
            else random.integers(levels, size=len(question.labels))
        )
        answers.append(question.answered(logits - np.logaddexp.reduce(logits.astype(np.float64))))
    return answers, [one.item_id for one in candidates]


@pytest.mark.parametrize("levels", [None, 1, 2])
@pytest.mark.parametrize("count", COUNTS)
def test_every_task_scores_every_candidate_and_orders_them_all(count: int, levels: int | None) -> None:
    schedules: list[PairSchedule] = ["disjoint", "budgeted", "all"] if count <= 26 else ["disjoint", "budgeted"]
    for schedule in schedules:
        answers, ids = asked(count, schedule, levels=levels)
        found = task_scores(answers, ids)
        assert list(found) == TASKS
        assert list(paper_utilities(answers, ids, SCALE, found)) == TASKS
        for scores in (*found.values(), *paper_utilities(answers, ids, SCALE, found).values()):
            assert scores.shape == (count,)
            assert np.isfinite(scores).all()
            assert sorted(best_first(scores).tolist()) == list(range(count))


def test_scores_do_not_depend_on_the_order_in_which_items_are_named() -> None:
    answers, ids = asked(50, "budgeted")
    turned = task_scores(answers, ids[::-1])
    for task, scores in task_scores(answers, ids).items():
        np.testing.assert_allclose(scores, turned[task][::-1], atol=1e-9)


def test_a_single_candidate_is_scored_by_every_task_though_asked_about_once() -> None:
    answers = [Answer("pointwise", ("a",), np.log(np.array([0.3, 0.7])))]
    found = task_scores(answers, ["a"])
    assert {task: scores.tolist() for task, scores in found.items()} == {
        "pointwise": pytest.approx([0.7]),
        "pairwise": [0.0],
        "listwise": [0.0],
    }
    utilities = paper_utilities(answers, ["a"], SCALE, task_scores(answers, ["a"]))
    assert {task: scores.tolist() for task, scores in utilities.items()} == {
        "pointwise": pytest.approx([1 + 0.7 * 4 - 0.05]),
        "pairwise": [0.0],
        "listwise": [-0.025],
    }


def test_a_task_that_was_not_asked_is_left_out() -> None:
    answers, ids = asked(3, "disjoint")
    assert list(task_scores([one for one in answers if one.task != "pairwise"], ids)) == ["pointwise", "listwise"]


@pytest.mark.parametrize("count", [10, 50])
@pytest.mark.parametrize("task", TASKS)
def test_an_answer_that_is_not_a_number_cannot_become_an_order(task: str, count: int) -> None:
    answers, ids = asked(count, "budgeted")
    broken = next(one for one in answers if one.task == task)
    broken.log_probabilities[0] = np.nan
    with pytest.raises(DataError, match="NaN"):
        best_first(task_scores(answers, ids)[task])
