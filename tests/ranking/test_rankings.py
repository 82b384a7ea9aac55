from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from recranker.errors import DataError
from recranker.ranking.rankings import choose_lists, rank_all, weights_from_validation
from recranker.schema import ANSWERS
from recranker.tasks.protocol import Candidate, RatingScale
from recranker.tasks.questions import ALL_TASKS, ranking_questions
from recranker.tasks.settings import InstructSettings, TaskName
from tests.tables import candidate_list, candidates

ITEMS = ["a", "b", "c", "d"]
SCALE = RatingScale(1, 5)
WEIGHTS = {"hybrid": {"listwise": 1.0}, "hybrid_conventional": {"listwise": 0.9, "conventional": 0.1}}


def answered(one: dict, model: str, favourite: str, tasks: Sequence[TaskName] = ALL_TASKS) -> dict:
    """ANSWERS row of a model that is sure of ``favourite`` whatever it is asked."""
    shown = [Candidate(item, item, place + 1) for place, item in enumerate(one["candidate_ids"])]
    answers = []
    for question in ranking_questions(shown, InstructSettings(), SCALE, 0, one["list_id"], tasks=tasks):
        count = len(question.labels)
        logits = np.zeros(count)
        if question.task == "listwise":
            logits[question.item_ids.index(favourite)] = 3.0
        elif favourite in question.item_ids:
            logits[1 if question.item_ids[0] == favourite else 0] = 3.0
        found = (logits - np.logaddexp.reduce(logits)).tolist()
        asked = {"task": question.task, "item_ids": list(question.item_ids), "round": question.round}
        answers.append({**asked, "log_probabilities": found})
    shared = {name: one[name] for name in ("list_id", "user_id", "split")}
    return {**shared, "model": model, "answers": answers, "prompt_tokens": 1, "cut_lines": 0}


def answers(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ANSWERS.schema)


def test_every_ranker_puts_the_models_favourite_first_and_permutes_the_candidates() -> None:
    test = candidate_list("u", "test", "d", ITEMS)
    ranked = rank_all(answers(answered(test, "tuned", "d")), candidates(test), SCALE, WEIGHTS)
    rows = ["pointwise", "pairwise", "listwise", "hybrid_paper", "hybrid", "hybrid_conventional"]
    assert ranked["row"].to_pylist() == rows
    for row in ranked.to_pylist():
        assert sorted(row["item_ids"]) == ITEMS
        assert row["item_ids"][0] == "d", row["row"]
        assert row["scores"] == sorted(row["scores"], reverse=True)


@pytest.mark.parametrize("model", ["untuned", "untuned_no_hint"])
def test_an_untuned_model_has_rows_of_its_own(model: str) -> None:
    test = candidate_list("u", "test", "d", ITEMS, reranker_scores=[0.0, 0.0, 9.0, 0.0])
    ranked = rank_all(answers(answered(test, model, "b")), candidates(test), SCALE, WEIGHTS)
    assert ranked["row"].to_pylist() == [f"{model}_{row}" for row in ("pointwise", "pairwise", "listwise", "hybrid")]
    assert [row[0] for row in ranked["item_ids"].to_pylist()] == ["b"] * 4


def test_only_the_conventional_hybrid_looks_at_the_conventional_score() -> None:
    test = candidate_list("u", "test", "d", ITEMS, reranker_scores=[0.0, 9.0, 0.0, 0.0])
    weights = {"hybrid": {"listwise": 1.0}, "hybrid_conventional": {"listwise": 0.1, "conventional": 0.9}}
    ranked = rank_all(answers(answered(test, "tuned", "d")), candidates(test), SCALE, weights).to_pylist()
    first = {row["row"]: row["item_ids"][0] for row in ranked}
    assert first["hybrid"] == "d"
    assert first["hybrid_conventional"] == "b"


def test_weights_come_from_validation_lists_alone() -> None:
    lists = [candidate_list(f"u{n}", "validation", "c", ITEMS) for n in range(30)]
    test = candidate_list("t", "test", "a", ITEMS)
    right = [answered(one, "tuned", "c") for one in lists]
    weights, count = weights_from_validation(answers(*right, answered(test, "tuned", "d")), candidates(*lists, test))
    assert count == 30
    assert "conventional" not in weights["hybrid"]
    for found in weights.values():
        assert found["listwise"] > 0.2
        assert found["backbone"] == 0.0  # it ranks c third


def test_a_model_that_adds_nothing_to_the_conventional_score_leaves_its_order() -> None:
    random = np.random.default_rng(0)
    lists = []
    for number in range(200):
        target = str(random.choice(ITEMS))
        scores = [4.0 * (item == target) + random.normal() for item in ITEMS]
        lists.append(candidate_list(f"u{number}", "validation", target, ITEMS, reranker_scores=scores))
    noisy = [answered(one, "tuned", str(random.choice(ITEMS))) for one in lists]
    weights, _ = weights_from_validation(answers(*noisy), candidates(*lists))
    assert weights["hybrid_conventional"]["conventional"] > 0.9


def test_lists_that_cannot_change_the_result_are_not_ranked() -> None:
    rows = [
        candidate_list("u", "train", "a", ITEMS),
        candidate_list("u", "test", "a", ITEMS),
        candidate_list("v", "test", "x", ITEMS),
        *(candidate_list(f"w{n}", "validation", "a", ITEMS) for n in range(5)),
        candidate_list("z", "validation", "x", ITEMS),
    ]
    chosen = choose_lists(candidates(*rows), only_hits=True, max_validation=3, seed=0)
    assert "test/u/a" in chosen
    assert "test/v/x" not in chosen
    assert sum(one.startswith("validation") for one in chosen) == 3
    everything = choose_lists(candidates(*rows), only_hits=False, max_validation=99, seed=0)
    assert len(everything) == 2 + 5


def test_lists_of_one_candidate_or_without_a_task_or_their_target_do_not_stop_the_learning() -> None:
    lists = [candidate_list(f"u{n}", "validation", "c", ITEMS) for n in range(30)]
    alone = candidate_list("v", "validation", "c", ["c"])
    partly = candidate_list("w", "validation", "c", ITEMS)
    missed = candidate_list("x", "validation", "z", ITEMS)
    known = [answered(one, "tuned", "c") for one in lists]
    odd = [
        answered(partly, "tuned", "c", ["pointwise"]),  # first, so that it is not what names the signals
        answered(alone, "tuned", "c"),
        answered(missed, "tuned", "a"),
    ]
    weights, count = weights_from_validation(answers(*odd, *known), candidates(*lists, alone, partly, missed))
    assert count == 32
    assert set(weights["hybrid"]) == {"pointwise", "pairwise", "listwise", "backbone"}
    assert weights["hybrid"]["listwise"] > 0.2
    ranked = rank_all(answers(*odd), candidates(alone, partly, missed), SCALE, weights)
    rows = ranked.filter(pa.compute.equal(ranked["list_id"], partly["list_id"]))["row"].to_pylist()
    assert rows == ["pointwise", "hybrid_paper", "hybrid", "hybrid_conventional"]


@pytest.mark.parametrize("task", ALL_TASKS)
def test_a_score_that_is_no_number_is_refused_with_list_user_and_task(task: TaskName) -> None:
    one = candidate_list("u", "validation", "d", ITEMS)
    row = answered(one, "tuned", "d")
    broken = next(found for found in row["answers"] if found["task"] == task)
    broken["log_probabilities"][0] = float("nan")
    says = f"list 'validation/u/d' of user 'u', model 'tuned': scores of '{task}' must be finite"
    with pytest.raises(DataError, match=says):
        rank_all(answers(row), candidates(one), SCALE, WEIGHTS)
    with pytest.raises(DataError, match=says):
        weights_from_validation(answers(row), candidates(one))


def test_a_retrievers_score_that_is_no_number_is_refused_too() -> None:
    one = candidate_list("u", "test", "d", ITEMS, backbone_scores=[1.0, float("nan"), 0.5, 0.2])
    with pytest.raises(DataError, match=r"list 'test/u/d' of user 'u', .* scores of 'backbone' must be finite"):
        rank_all(answers(answered(one, "tuned", "d")), candidates(one), SCALE, WEIGHTS)
