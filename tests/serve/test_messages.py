from typing import Any

import pytest
from pydantic import ValidationError

from recranker.data.sources.raw import MAX_ID_CHARACTERS
from serve.messages import RankRequest, candidate_ids

TWO = [{"title": "A"}, {"title": "B"}]
BAD: dict[str, Any] = {
    "no candidates": {},
    "candidates that are none": {"candidates": []},
    "unknown key": {"candidates": TWO, "user": "u"},
    "unknown key in a candidate": {"candidates": [{"title": "A", "genre": "x"}, *TWO]},
    "title no text": {"candidates": [{"title": 5}, *TWO]},
    "half a surrogate": {"candidates": [{"title": "\ud800"}, *TWO]},
    "neither title nor id": {"candidates": [{"backbone_score": 1.0}, *TWO]},
    "user and history": {"candidates": TWO, "user_id": "u", "history": [{"title": "A", "liked": True}]},
    "empty user": {"candidates": TWO, "user_id": ""},
    "user whose candidates are none": {"candidates": [], "user_id": "u"},
    "hint of one only": {"candidates": [{"title": "A", "hint_score": 1.0}, {"title": "B"}]},
    "empty id": {"candidates": [{"title": "A", "id": ""}, *TWO]},
    "same ids": {"candidates": [{"title": "A", "id": "x"}, {"title": "B", "id": "x"}]},
    "id equal to a place": {"candidates": [{"title": "A", "id": "1"}, {"title": "B"}]},
    "score of one only": {"candidates": [{"title": "A", "backbone_score": 1.0}, {"title": "B"}]},
    "rating of one only": {"candidates": [{"title": "A", "predicted_rating": 1.0}, {"title": "B"}]},
    "score not finite": {"candidates": [{"title": t, "backbone_score": float("nan")} for t in "AB"]},
    "score that overflows": {"candidates": [{"title": t, "backbone_score": 1e300} for t in "AB"]},
    "history says nothing": {"candidates": TWO, "history": [{"title": "A"}]},
    "history says two things": {"candidates": TWO, "history": [{"title": "A", "rating": 4, "liked": True}]},
    "unknown task": {"candidates": TWO, "tasks": ["setwise"]},
    "no task": {"candidates": TWO, "tasks": []},
    "task twice": {"candidates": TWO, "tasks": ["pairwise", "pairwise"]},
    "negative weight": {"candidates": TWO, "weights": {"pointwise": -1}},
    "no weight above 0": {"candidates": TWO, "weights": {"pointwise": 0}},
    "unknown weight": {"candidates": TWO, "weights": {"setwise": 1}},
    "no time": {"candidates": TWO, "deadline_ms": 0},
}


def test_every_id_that_the_pipeline_takes_can_be_served() -> None:
    longest = "x" * MAX_ID_CHARACTERS
    request = RankRequest.model_validate({"user_id": longest, "candidates": [{"id": longest, "title": "A"}]})
    assert (request.user_id, request.candidates[0].id) == (longest, longest)
    for bad in ({"user_id": f"{longest}x"}, {"candidates": [{"id": f"{longest}x", "title": "A"}]}):
        with pytest.raises(ValidationError):
            RankRequest.model_validate(bad)


@pytest.mark.parametrize("case", BAD)
def test_bad_requests_are_refused(case: str) -> None:
    with pytest.raises(ValidationError):
        RankRequest.model_validate(BAD[case])


def test_a_request_is_titles_and_their_ids_are_their_places() -> None:
    assert len(RankRequest.model_validate({"candidates": TWO[:1]}).candidates) == 1
    request = RankRequest.model_validate({"candidates": TWO})
    assert candidate_ids(request.candidates) == ["0", "1"]
    assert request.history == ()
    assert request.weights is None
