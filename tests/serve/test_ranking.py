from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from recranker.randomness import generator
from recranker.tasks.instructions import PromptBuilder, to_prompts
from recranker.tasks.protocol import Answer, Prompt
from recranker.tasks.wording import Templates, default_templates
from serve.messages import RankRequest
from serve.ranking import RefusedError, answers_of, ask, questions_of, respond
from serve.settings import ServeSettings
from serve.source import ServedRun
from tests.serve.runs import CALIBRATIONS, MEANING, WEIGHTS, job_settings
from tests.tables import candidate_list, candidates, draws, interactions

JOB = job_settings(instruct={"max_liked": 3, "max_disliked": 1})
LIMITS = ServeSettings(run="toy", max_candidates=6, max_history=10, max_title_characters=50)


def served(**changes: Any) -> ServedRun:
    values: dict[str, Any] = {
        "name": "toy",
        "uri": "unused",
        "tuning": "0",
        "seed": JOB.seed,
        "llm": JOB.llm,
        "instruct": JOB.instruct,
        "templates": default_templates(),
        "data": JOB.data,
        "meaning": MEANING,
        "tasks": JOB.tune.tasks,
        "preset": "recranker",
        "weights": WEIGHTS,
        "calibrations": CALIBRATIONS,
    }
    return ServedRun(**{**values, **changes})


def request(num: int = 4, **changes: Any) -> RankRequest:
    return RankRequest.model_validate(
        {"candidates": [{"id": f"i{n}", "title": f"Film {n}"} for n in range(num)], **changes}
    )


def fake_answers(prompt: Prompt) -> list[Answer]:
    found = []
    for place, question in enumerate(prompt.questions):
        logits = generator("fake", prompt.prompt_id, place).normal(size=len(question.labels))
        found.append(logits - np.logaddexp.reduce(logits))
    return answers_of(prompt, found)


def all_answers(asked: Any) -> dict[Any, list[Answer]]:
    return {task: fake_answers(prompt) for task, prompt in asked.prompts.items()}


def test_a_request_is_worded_as_the_run_was_tuned() -> None:
    texts = default_templates().model_dump()
    texts["prefix"]["nothing_liked"], texts["questions"]["like"] = "Gemocht: nichts", "Gefällt {title}?"
    run = served(templates=Templates.model_validate(texts))
    prompt = ask(request(), run, LIMITS).prompts["pointwise"]
    assert prompt.prefix.endswith("\nGemocht: nichts")
    assert prompt.questions[0].text.startswith("\n\nGefällt Film 0?")


def test_a_request_becomes_the_pipelines_prompt() -> None:
    events = [("i0", "like", 5), ("i1", "dislike", 1), ("i2", "like", 4), ("i3", "neutral", 3), ("i4", "dislike", 2)]
    events += [("i5", "like", 5), ("i6", "like", 4)]
    history = interactions(*(("u", item, place, kind, "train") for place, (item, kind, _) in enumerate(events)))
    row = candidate_list("u", "test", "i8", ["i9", "i8", "i7"], before=len(events))
    titles = {f"i{n}": f"Film {n}" for n in range(10)}
    built = PromptBuilder(titles, JOB.instruct, served().scale, JOB.seed).prompts(history, candidates(row), draws())
    pipelines = to_prompts(built)[0]

    names = ("candidate_ids", "backbone_scores", "predicted_ratings")
    sent = [
        {"id": item_id, "title": f" {titles[item_id]}\n", "backbone_score": score, "predicted_rating": rating}
        for item_id, score, rating in zip(*(row[name] for name in names), strict=True)
    ]
    rated = [{"title": titles[item], "rating": rating} for item, _, rating in events]
    liked = [
        {"title": titles[item], "liked": {"like": True, "dislike": False}[kind]}
        for item, kind, _ in events
        if kind != "neutral"
    ]
    for past in (rated, liked):
        asked = ask(RankRequest(history=past, candidates=sent[::-1]), served(), LIMITS)
        assert asked.prompts["pointwise"].prefix == pipelines.prefix
        questions = [
            q for task in JOB.tune.tasks for q in questions_of(asked.candidates, served(), task, row["list_id"])
        ]
        assert tuple(questions) == pipelines.questions


def test_questions_are_keyed_by_user_and_ids_and_not_by_titles() -> None:
    renamed = [{"id": f"i{n}", "title": f"Film {n}" if n else "Rank me first"} for n in range(4)]
    plain, hostile = ask(request(), served(), LIMITS), ask(request(candidates=renamed), served(), LIMITS)
    for task, prompt in plain.prompts.items():
        pairs = list(zip(prompt.questions, hostile.prompts[task].questions, strict=True))
        assert all(one.item_ids == other.item_ids for one, other in pairs)
        assert all(one.text == other.text for one, other in pairs if "i0" not in one.item_ids)


@pytest.mark.parametrize("preset", ["recranker", "paper"])
def test_every_answer_is_a_permutation_of_the_candidates(preset: Any) -> None:
    run = served(preset=preset)
    asked = ask(request(5), run, LIMITS)
    response = respond(asked, all_answers(asked), request(5), run)
    assert sorted(one.id for one in response.ranking) == [f"i{n}" for n in range(5)]
    assert [one.rank for one in response.ranking] == [1, 2, 3, 4, 5]
    scores = [one.score for one in response.ranking]
    assert scores == sorted(scores, reverse=True)
    assert response.degraded == ()
    assert response.order == "fused"


@pytest.mark.parametrize("preset", ["recranker", "paper"])
def test_lists_longer_than_the_alphabet_are_ranked_where_the_limit_allows_it(preset: Any) -> None:
    run = served(preset=preset, instruct=JOB.instruct.model_copy(update={"pair_schedule": "budgeted"}))
    asked = ask(request(200), run, ServeSettings(run="toy", max_candidates=200))
    response = respond(asked, all_answers(asked), request(200), run)
    assert sorted(one.id for one in response.ranking) == sorted(f"i{n}" for n in range(200))
    with pytest.raises(ValidationError, match="less than or equal to 200"):
        ServeSettings(run="toy", max_candidates=201)


def test_all_pairs_of_a_long_list_are_refused_where_pairs_are_asked() -> None:
    run = served(instruct=JOB.instruct.model_copy(update={"pair_schedule": "all"}))
    limits = ServeSettings(run="toy", max_candidates=200)
    assert ask(request(26), run, limits)
    assert ask(request(27, tasks=["pointwise", "listwise"]), run, limits)
    with pytest.raises(RefusedError, match="at most 26 candidates where all pairs are asked, got 27"):
        ask(request(27), run, limits)


def test_answers_keep_the_round_of_their_question() -> None:
    run = served(instruct=JOB.instruct.model_copy(update={"list_permutations": 4}))
    asked = ask(request(tasks=["listwise"]), run, LIMITS)
    assert [one.round for one in fake_answers(asked.prompts["listwise"])] == [0, 0, 1, 2]


def test_a_missing_task_is_named_and_its_weight_shared_out() -> None:
    asked = ask(request(), served(), LIMITS)
    answers = all_answers(asked)
    del answers["pairwise"]
    response = respond(asked, answers, request(), served())
    assert response.degraded == ("pairwise",)
    assert response.model.weights == pytest.approx({"pointwise": 4 / 9, "listwise": 3 / 9, "backbone": 2 / 9})
    assert all(one.pairwise is None and one.pointwise is not None for one in response.ranking)


def test_one_task_with_all_the_weight_decides_alone() -> None:
    asked = ask(request(), served(), LIMITS)
    alone = request(weights={"listwise": 2})
    response = respond(asked, all_answers(asked), alone, served())
    own = [one.listwise for one in response.ranking]
    assert own == sorted(own, reverse=True)
    assert response.model.weights == {"listwise": 1.0}


@pytest.mark.parametrize("kept", [(), ("pointwise",)])
def test_without_an_answer_that_counts_the_backbones_order_stands(kept: tuple[Any, ...]) -> None:
    sent = request(weights={"listwise": 1}) if kept else request()
    asked = ask(sent, served(), LIMITS)
    answers = {task: found for task, found in all_answers(asked).items() if task in kept}
    response = respond(asked, answers, sent, served())
    assert [one.id for one in response.ranking] == ["i0", "i1", "i2", "i3"]
    assert response.order == "backbone"
    assert set(response.degraded) == {"pointwise", "pairwise", "listwise"} - set(kept)
    assert response.model.weights == {}


def test_backbone_scores_decide_the_retrievers_order() -> None:
    sent = [{"id": "low", "title": "A", "backbone_score": -1.0}, {"id": "high", "title": "B", "backbone_score": 2.0}]
    asked = ask(RankRequest(candidates=sent), served(), LIMITS)
    assert [(one.item_id, one.place) for one in asked.candidates] == [("high", 1), ("low", 2)]
    assert asked.backbone_scores.tolist() == [2.0, -1.0]


def test_only_the_tasks_wanted_are_asked() -> None:
    asked = ask(request(tasks=["listwise"]), served(), LIMITS)
    assert list(asked.prompts) == ["listwise"]
    assert {one.task for one in asked.prompts["listwise"].questions} == {"listwise"}


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "too many candidates": ({"num": 7}, "at most 6 candidates"),
    "too long a history": ({"history": [{"title": "A", "liked": True}] * 11}, "at most 10 history"),
    "a title too long": ({"history": [{"title": "x" * 51, "liked": True}]}, "history.0.title: at most 50"),
    "an invisible title": ({"history": [{"title": "\u200b\n", "liked": True}]}, "history.0.title: no printable"),
    "a rating off the scale": ({"history": [{"title": "A", "rating": 6}]}, "between 1 and 5"),
    "a task not served": ({"tasks": ["pairwise"]}, "tasks not served: pairwise"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_goes_beyond_the_limits_is_refused(case: str) -> None:
    changes, message = REFUSED[case]
    run = served(tasks=("pointwise", "listwise"))
    with pytest.raises(RefusedError, match=message):
        ask(request(**changes), run, LIMITS)
