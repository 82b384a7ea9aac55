import asyncio
from pathlib import Path

import pytest

from serve.explain import influences, without_each
from serve.messages import RankRequest, RankResponse
from serve.ranking import ask, respond, shown_entries
from serve.router import Router
from serve.settings import ServeSettings
from tests.serve.opinions import Opinions, opinionated
from tests.serve.published import published
from tests.serve.test_ranking import LIMITS, all_answers, request, served

HISTORY = [
    *({"title": f"Liked {number}", "rating": 5} for number in range(5)),
    {"title": "Neutral", "rating": 3},
    {"title": "Disliked", "rating": 1},
]


def router(**handles: Opinions) -> Router:
    return Router(ServeSettings(run="toy", max_explained=2), served(), handles or opinionated())  # type: ignore[arg-type]


def rank(sent: RankRequest, **handles: Opinions) -> RankResponse:
    return asyncio.run(router(**handles).rank(sent))


def test_the_latest_entries_shown_are_left_out_one_at_a_time() -> None:
    sent = request(history=HISTORY)
    asked = ask(sent, served(), LIMITS)
    parts = without_each(asked, sent, served(), LIMITS)
    assert shown_entries(sent.history, served()) == [2, 3, 4, 6]  # three likes and one dislike at the most
    assert list(parts) == [6, 4, 3, 2]
    for place, part in parts.items():
        for task, prompt in part.prompts.items():
            whole = asked.prompts[task]
            assert prompt.questions == whole.questions
            left_out = set(whole.prefix.splitlines()) - set(prompt.prefix.splitlines())
            assert HISTORY[place]["title"] in left_out
            assert "Liked 1" not in prompt.prefix  # no older one comes in


def test_no_more_entries_than_allowed_are_left_out() -> None:
    sent = request(history=HISTORY)
    limits = LIMITS.model_copy(update={"max_explained": 2})
    assert list(without_each(ask(sent, served(), limits), sent, served(), limits)) == [6, 4]


def test_lifts_are_the_score_minus_that_of_a_request_without_the_entry() -> None:
    whole = rank(request(history=HISTORY[:2], tasks=["pointwise"], explain=True))
    without = rank(request(history=HISTORY[:1], tasks=["pointwise"]))  # pointwise questions are not shuffled
    assert whole.influences is not None
    latest, earlier = whole.influences
    assert (latest.history, earlier.history) == (1, 0)
    scores = {one.id: one.score for one in without.ranking}
    assert latest.lifts == pytest.approx({one.id: one.score - scores[one.id] for one in whole.ranking})
    assert any(abs(lift) > 0.01 for lift in latest.lifts.values())


def test_without_the_wish_or_a_history_nothing_is_explained() -> None:
    handles = opinionated()
    assert rank(request(history=HISTORY), **handles).influences is None
    assert all(len(handle.asked) == 1 for handle in handles.values())
    assert rank(request(explain=True)).influences == ()


def test_entries_whose_questions_another_set_of_tasks_answered_are_left_out() -> None:
    sent = request(history=HISTORY[:2])
    asked = ask(sent, served(), LIMITS)
    whole = respond(asked, all_answers(asked), sent, served())
    parts = without_each(asked, sent, served(), LIMITS)
    answers = {place: all_answers(part) for place, part in parts.items()}
    del answers[0]["pairwise"]
    assert [one.history for one in influences(whole, parts, answers, sent, served())] == [1]
    assert influences(whole, parts, {}, sent, served()) == ()


def test_places_count_in_the_published_history(tmp_path: Path) -> None:
    ranks = Router(ServeSettings(run="toy"), published(tmp_path), opinionated())
    response = asyncio.run(ranks.rank(RankRequest(user_id="u", explain=True)))
    assert response.user == "known"
    assert response.influences is not None
    assert [one.history for one in response.influences] == [3, 2, 1, 0]
    assert {one.id for one in response.ranking} == {"i7", "i8", "i9"}
    assert {one.id: (one.backbone_rank, one.hint) for one in response.ranking} == {
        "i9": (1, 3),
        "i8": (2, 2),
        "i7": (3, 1),
    }


def test_an_unknown_user_is_answered_and_marked(tmp_path: Path) -> None:
    ranks = Router(ServeSettings(run="toy"), published(tmp_path), opinionated())
    response = asyncio.run(ranks.rank(RankRequest(user_id="nobody", explain=True)))
    assert (response.user, response.order, response.influences) == ("unknown", "fused", ())
    assert {one.id for one in response.ranking} == {f"i{number}" for number in range(7)}  # all that is liked


def test_signals_weighed_as_said_give_the_scores() -> None:
    response = rank(request(history=HISTORY))
    for one in response.ranking:
        assert one.score == pytest.approx(sum(response.model.weights[name] * one.signals[name] for name in one.signals))
