"""Waiting worked out by hand: a byte is a token of 1 ms, a batch takes 100 ms beside."""

from dataclasses import replace
from typing import Any

import pytest

from recranker.tasks.settings import TaskName
from serve.cost import Cost
from serve.queues import RECHECK, RECHECK_S, Queue, Queues
from serve.ranking import ask
from serve.replica_sets import replica_sets
from serve.scored import Scored
from tests.serve.test_ranking import LIMITS, request, served

COST = Cost(0.1, 0.001, 1.0)


def wait(queue: Queue, now: float, **changes: Any) -> float:
    load = queue.load(now, **{"replicas": 1, **changes})
    assert load is not None
    return load.wait_s


def queue(*sizes: int, cost: Cost = COST) -> Queue:
    found = Queue()
    found.cost = cost
    for size in sizes:
        found.enter(size, 50.0)
    return found


def test_a_question_waits_for_those_before_it_less_what_is_done() -> None:
    assert wait(queue(), 50.0) == 0.0
    two = queue(400, 900)
    assert wait(two, 50.0) == pytest.approx(0.5 + 1.0)
    assert wait(two, 50.3) == pytest.approx(1.2)
    assert wait(two, 59.0) == pytest.approx(0.75)  # one of two, on average, and no more however long it takes
    two.leave(0, 50.6)
    assert wait(two, 50.7) == pytest.approx(0.9)
    two.leave(1, 51.0)
    assert wait(two, 51.0) == 0.0


def test_replicas_share_the_questions_and_an_idle_one_answers_at_once() -> None:
    assert wait(queue(400), 50.0, replicas=2) == 0.0
    assert wait(queue(400, 400), 50.0, replicas=2) == pytest.approx(0.25)
    assert wait(queue(400, 400, 400), 50.0, replicas=2) == pytest.approx(0.5)


def test_other_routers_are_thought_to_wait_for_as_much() -> None:
    assert wait(queue(400), 50.0, routers=3) == pytest.approx(1.5)


def test_questions_scored_together_have_one_fixed_cost() -> None:
    together = queue(100, 100, 100, 100, cost=replace(COST, batch_tokens=400.0))
    assert wait(together, 50.0) == pytest.approx(0.5)


def test_a_task_is_asked_again_after_it_was_too_slow_for_long() -> None:
    unknown = Queue()
    assert unknown.load(50.0, replicas=1) is None
    known = queue(400)
    known.leave(0, 50.0)
    for _ in range(RECHECK):
        assert known.load(50.1 + RECHECK_S, replicas=1) is not None
        known.too_slow()
    assert known.load(50.0 + RECHECK_S, replicas=1) is not None
    assert known.load(50.1 + RECHECK_S, replicas=1) is None
    known.enter(400, 60.1)
    assert known.load(99.0, replicas=1) is not None


def test_queues_know_what_was_asked_and_heard() -> None:
    now = [50.0]
    tasks: tuple[TaskName, ...] = ("pointwise", "listwise")
    sets = replica_sets(LIMITS, tasks)
    queues = Queues(sets, lambda _: 1, clock=lambda: now[0])
    asked = ask(request(tasks=["pointwise", "listwise"]), served(), LIMITS)
    assert list(queues.plan(asked, 0.0).prompts) == ["pointwise", "listwise"]  # nothing is known
    assert queues.drain_s(asked.prompts) == 0.0
    for one in sets:
        queues.heard(one, Scored([], 1, 1.0))
        assert queues.plan(asked, 0.0).left_out == {}
    for one in sets:
        queues.heard(one, Scored([], 1, 1.0, cost=Cost(1.0, 0.0, 1.0)))
    assert queues.plan(asked, 52.0).left_out == {}
    assert set(queues.plan(asked, 51.0).left_out.values()) == {"deadline"}
    ended = [queues.enter(one, asked.prompts[one.first]) for one in sets]
    found = queues.plan(asked, 52.0)
    assert found.full == tasks
    assert queues.drain_s(found.full) == 1.0
    now[0] = 50.5
    ended[0](None)
    assert list(queues.plan(asked, 52.0).prompts) == ["pointwise"]
    for _ in range(RECHECK):
        queues.plan(asked, 50.6)
    now[0] = 70.0
    assert list(queues.plan(asked, 70.0).prompts) == ["pointwise", "listwise"]


def test_tasks_that_share_their_replicas_share_a_queue() -> None:
    tasks: tuple[TaskName, ...] = ("pointwise", "listwise")
    (both,) = replica_sets(LIMITS.model_copy(update={"replica_sets": "shared"}), tasks)
    queues = Queues((both,), lambda _: 1, clock=lambda: 50.0)
    asked = ask(request(tasks=list(tasks)), served(), LIMITS)
    queues.heard(both, Scored([], 1, 1.0, cost=Cost(1.0, 0.0, 1.0)))
    assert list(queues.plan(asked, 52.0).prompts) == list(tasks)
    queues.enter(both, asked.prompts["pointwise"])
    assert queues.plan(asked, 52.0).full == tasks
    assert queues.drain_s(tasks) == 1.0
    late = queues.plan(asked, 50.5)
    assert set(late.left_out.values()) == {"deadline"}
    for _ in range(RECHECK - 2):
        queues.plan(asked, 50.5)
    assert queues._load("listwise") is not None  # a request counts once, however many tasks it leaves out
