import logging
from pathlib import Path
from typing import Any

import pytest

from recranker.errors import DataError, SettingsError
from recranker.store import Store
from recranker.tasks.instructions import PromptBuilder, to_prompts
from serve import users as users_module
from serve.errors import RefusedError, UnavailableError
from serve.histories import LookupFailedError, Meta, Record, SqliteUsers, StoreAwayError
from serve.messages import RankRequest
from serve.ranking import ask, questions_of
from serve.settings import ServeSettings
from serve.source import ServedRun
from serve.users import Users, completed, hashed, open_users
from tests.serve.published import EVENTS, TITLES, U_LIST, published, users_file
from tests.serve.test_ranking import JOB, served
from tests.tables import candidates, draws, interactions

LIMITS = ServeSettings(run="toy", popular_candidates=4)


def users_of(folder: Path, limits: ServeSettings = LIMITS) -> Users:
    found = open_users(limits, published(folder))
    assert found is not None
    return found


def sent(**values: Any) -> RankRequest:
    return RankRequest.model_validate(values)


def ids(request: RankRequest) -> list[str | None]:
    return [one.id for one in request.candidates]


def test_a_user_is_asked_about_as_the_pipeline_asked(tmp_path: Path) -> None:
    users = users_of(tmp_path)
    history = interactions(*(event for event in EVENTS if event[0] == "u"))
    within = {**U_LIST, "predicted_ratings": [5.0, 4.5, 2.0]}  # the scale's highest is 5
    built = PromptBuilder(TITLES, JOB.instruct, served().scale, JOB.seed).prompts(history, candidates(within), draws())
    pipelines = to_prompts(built)[0]

    done = users.complete(sent(user_id="u"))
    asked = ask(done.request, users.run, LIMITS)
    assert done.user == "known"
    assert asked.prompts["pointwise"].prefix == pipelines.prefix
    questions = [
        q for task in JOB.tune.tasks for q in questions_of(asked.candidates, users.run, task, U_LIST["list_id"])
    ]
    assert tuple(questions) == pipelines.questions
    assert [one.place for one in asked.candidates] == [3, 2, 1]  # the re-ranker's order, which hints quote


def test_hints_of_the_retriever_quote_its_own_order(tmp_path: Path) -> None:
    run = published(tmp_path, JOB.instruct.model_copy(update={"hints": "backbone"}))
    users = Users(SqliteUsers(str(users_file(run))), run, LIMITS)
    asked = ask(users.complete(sent(user_id="u")).request, run, LIMITS)
    assert [(one.place, one.predicted_rating) for one in asked.candidates] == [(1, 5.0), (2, 4.5), (3, 2.0)]


def test_an_unknown_user_has_no_history_and_the_most_popular_candidates(tmp_path: Path) -> None:
    done = users_of(tmp_path).complete(sent(user_id="nobody"))
    assert (done.user, done.request.history) == ("unknown", ())
    assert ids(done.request) == ["i0", "i2", "i5", "i1"]  # 3, 3, 2 and 1 training likes
    assert [one.backbone_score for one in done.request.candidates] == [3, 3, 2, 1]


def test_a_user_without_a_list_is_offered_popular_items_not_met_yet(tmp_path: Path) -> None:
    done = users_of(tmp_path).complete(sent(user_id="v"))
    assert done.user == "known"
    assert [(one.title, one.liked) for one in done.request.history] == [("Film 0", True), ("Film 2", True)]
    assert ids(done.request) == ["i5", "i1", "i3", "i4"]


def test_candidates_that_are_sent_stay_and_get_stored_titles(tmp_path: Path) -> None:
    users = users_of(tmp_path)
    offered = [{"id": "i3"}, {"id": "x", "title": "Mine"}]
    for values in ({"user_id": "u"}, {"user_id": "nobody"}, {"history": [{"title": "A", "liked": True}]}):
        done = users.complete(sent(candidates=offered, **values))
        assert [(one.id, one.title) for one in done.request.candidates] == [("i3", "Film 3"), ("x", "Mine")]
    assert done.user is None
    assert [one.title for one in done.request.history] == ["A"]
    with pytest.raises(RefusedError, match=r"candidates\.1: no item of this id is known"):
        users.complete(sent(candidates=[{"id": "i3"}, {"id": "i99"}]))


def test_a_request_that_brings_everything_is_not_touched(tmp_path: Path) -> None:
    request = sent(candidates=[{"title": "A"}, {"title": "B"}])
    assert users_of(tmp_path).complete(request).request is request
    assert completed(request, None).request is request


def test_what_is_stored_is_cut_to_the_limits(tmp_path: Path) -> None:
    limits = ServeSettings(run="toy", max_candidates=2, max_history=3)
    request = users_of(tmp_path, limits).complete(sent(user_id="u")).request
    assert ids(request) == ["i9", "i8"]
    assert [one.title for one in request.history] == ["Film 4", "Film 5", "Film 6"]
    assert ids(users_of(tmp_path, limits).complete(sent(user_id="nobody")).request) == ["i0", "i2"]


def test_without_users_ids_are_refused_with_the_way_out() -> None:
    with pytest.raises(RefusedError, match=r"run jobs\.publish"):
        completed(sent(user_id="u"), None)
    with pytest.raises(RefusedError, match="send titles"):
        completed(sent(candidates=[{"id": "i1"}]), None)


class Down(SqliteUsers):
    """A store that answers once it is opened, and then no more."""

    def __init__(self, run: ServedRun) -> None:
        super().__init__(str(users_file(run)))
        self.down = False
        self.asked = 0

    def meta(self) -> Meta:
        if self.down:
            raise StoreAwayError("does not answer")
        return super().meta()

    def find(self, user_id: str) -> Record | None:
        self.asked += 1
        if self.down:
            raise LookupFailedError("TimeoutError")
        return super().find(user_id)

    def titles(self, item_ids: Any) -> dict[str, str]:
        if self.down:
            raise LookupFailedError("TimeoutError")
        return super().titles(item_ids)


def test_a_store_that_is_down_makes_users_unavailable_and_is_left_alone_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = published(tmp_path)
    store = Down(run)
    users = Users(store, run, LIMITS)
    clock = [100.0]
    monkeypatch.setattr(users_module.time, "monotonic", lambda: clock[0])
    store.down, store.asked = True, 0
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            done = users.complete(sent(user_id="k4nary"))
            assert (done.user, done.request.history) == ("unavailable", ())
            assert ids(done.request) == ["i0", "i2", "i5", "i1"]
    assert store.asked == 1
    assert "k4nary" not in caplog.text
    assert hashed("k4nary") in caplog.text
    with pytest.raises(UnavailableError):
        users.complete(sent(candidates=[{"id": "i3"}]))
    store.down = False
    clock[0] += users_module.PAUSE_S
    assert users.complete(sent(user_id="u")).user == "known"


def test_where_a_store_is_down_at_the_start_a_patient_service_ranks_and_looks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = published(tmp_path)
    store = Down(run)
    store.down = True
    with pytest.raises(StoreAwayError):
        Users(store, run, LIMITS)
    clock = [100.0]
    monkeypatch.setattr(users_module.time, "monotonic", lambda: clock[0])
    users = Users(store, run, LIMITS, patient=True)
    given = users.complete(sent(user_id="u", candidates=[{"id": "i1", "title": "Film 1"}]))
    assert (given.user, ids(given.request), users.demo_users) == ("unavailable", ["i1"], ())
    with pytest.raises(UnavailableError, match="candidates cannot be looked up"):
        users.complete(sent(user_id="u"))
    store.down = False
    clock[0] += users_module.PAUSE_S
    assert users.complete(sent(user_id="u")).user == "known"
    assert users.demo_users


def test_users_made_from_other_tables_or_other_prompts_are_refused(tmp_path: Path) -> None:
    run = published(tmp_path)
    other = served(uri=run.uri, instruct=run.instruct.model_copy(update={"max_liked": 5}))
    with pytest.raises(DataError, match=r"other settings of prompts than run 'toy' has.*jobs\.publish"):
        open_users(LIMITS, other)
    manifest = Path(Store(run.uri).folder("backbone")) / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"facts": {}', '"facts": {"fitted": "again"}'))
    with pytest.raises(DataError, match="another output of stage 'backbone'"):
        open_users(LIMITS, run)


def test_users_are_found_beside_the_run_in_a_file_or_not_at_all(tmp_path: Path) -> None:
    run = published(tmp_path)
    assert open_users(LIMITS, served(uri=str(tmp_path / "elsewhere"))) is None
    assert open_users(LIMITS.model_copy(update={"users": str(users_file(run))}), run) is not None
    with pytest.raises(DataError, match="no such file"):
        open_users(LIMITS.model_copy(update={"users": str(tmp_path / "none")}), run)


def test_demo_users_are_as_rank_would_take_them(tmp_path: Path) -> None:
    users = users_of(tmp_path)
    assert {one.user_id for one in users.demo_users} == {"u", "w"}
    for one in users.demo_users:
        request = users.complete(sent(user_id=one.user_id)).request
        assert (one.history, one.candidates) == (request.history, request.candidates)
    assert users_of(tmp_path, ServeSettings(run="toy", demo_users=0)).demo_users == ()


def test_the_log_tells_users_apart() -> None:
    assert hashed("u") == hashed("u") != hashed("v")


def test_redis_without_its_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(SettingsError, match=r"pip install 'recranker\[redis\]'"):
        open_users(LIMITS.model_copy(update={"users": "redis://localhost:1"}), published(tmp_path))
