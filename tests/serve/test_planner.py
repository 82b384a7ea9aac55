"""Plans worked out by hand: a byte is a token, a token takes 1 ms, and every batch 100 ms beside."""

import time
from typing import Any

import pytest

from recranker.tasks.protocol import Prompt, Question
from recranker.tasks.settings import InstructSettings, TaskName
from serve.cost import Cost
from serve.messages import Plan
from serve.planner import MARGIN, Load, num_pairs, plan, shortened
from serve.ranking import ask
from serve.settings import ServeSettings
from tests.serve.test_ranking import request, served

COST = Cost(0.1, 0.001, 1.0)
PLACES = {name: place for place, name in enumerate("abcdefgh", start=1)}


def prompt(task: TaskName, num_bytes: int) -> Prompt:
    return Prompt(task, "x" * num_bytes, (Question(task, "", ("No", "Yes"), ("a",)),))


def pairs(*named: str, prefix: int = 100) -> Prompt:
    """Pairs such as 'ab' in both orders, 50 bytes each question."""
    both = [items for name in named for items in (name, name[::-1])]
    return Prompt(
        "pairs", "x" * prefix, tuple(Question("pairwise", "y" * 50, ("No", "Yes"), tuple(one)) for one in both)
    )


def names(asked: Prompt | None) -> list[str]:
    return ["".join(one.item_ids) for one in asked.questions] if asked else []


def planned(left_s: float, prompts: dict[TaskName, Prompt], **waits: float) -> Any:
    """The plan with so much time beside the margin."""
    loads = {task: Load(COST, waits.get(task, 0.0)) for task in prompts}
    return plan(prompts, PLACES, loads, MARGIN * left_s)


def test_tasks_that_are_done_in_time_are_asked_whole() -> None:
    prompts: dict[TaskName, Prompt] = {"pointwise": prompt("pointwise", 400), "listwise": prompt("listwise", 900)}
    found = planned(1.01, prompts)
    assert (found.prompts, found.left_out, found.message()) == (prompts, {}, None)
    found = planned(0.99, prompts)  # 1.0 s for 900 tokens
    assert (list(found.prompts), found.left_out) == (["pointwise"], {"listwise": "deadline"})
    assert found.message() == Plan(left_out={"listwise": "deadline"})


def test_waiting_counts_and_says_why_a_task_is_left_out() -> None:
    prompts: dict[TaskName, Prompt] = {"pointwise": prompt("pointwise", 400), "listwise": prompt("listwise", 900)}
    found = planned(1.1, prompts, pointwise=0.7, listwise=0.05)
    assert (list(found.prompts), found.left_out) == (["listwise"], {"pointwise": "queue"})
    assert found.full == ()


@pytest.mark.parametrize(
    ("left_s", "left_out", "full"),
    [
        (1.1, {"pointwise": "queue", "listwise": "queue"}, ("pointwise", "listwise")),
        (0.6, {"pointwise": "queue", "listwise": "deadline"}, ("pointwise",)),
        (0.4, {"pointwise": "deadline", "listwise": "deadline"}, ()),  # 0.5 s even when idle
    ],
)
def test_the_service_is_full_where_the_queue_is_why_nothing_fits(
    left_s: float, left_out: dict[str, str], full: tuple[str, ...]
) -> None:
    prompts: dict[TaskName, Prompt] = {"pointwise": prompt("pointwise", 400), "listwise": prompt("listwise", 900)}
    found = planned(left_s, prompts, pointwise=0.7, listwise=0.2)
    assert (found.left_out, found.full) == (left_out, full)


def test_replicas_that_all_tasks_share_read_the_prefix_once_and_answer_the_first_tasks_first() -> None:
    def asked(task: TaskName) -> Prompt:
        return Prompt(task, "x" * 400, (Question(task, "y" * 200, ("No", "Yes"), ("a", "b")),))

    prompts: dict[TaskName, Prompt] = {task: asked(task) for task in ("pointwise", "pairwise", "listwise")}

    def within(left_s: float) -> dict[TaskName, str]:
        loads: dict[TaskName, Load] = {task: Load(COST, 0.0) for task in prompts}
        return dict(plan(prompts, PLACES, loads, MARGIN * left_s, together=True).left_out)

    assert within(0.1 + 0.4 + 0.6 + 0.001) == {}
    assert within(0.1 + 0.4 + 0.6 - 0.001) == {"listwise": "deadline"}
    assert within(0.1 + 0.4 + 0.2 - 0.001) == dict.fromkeys(prompts, "deadline")


def test_tasks_that_nobody_answers_are_left_out_whatever_the_time() -> None:
    prompts: dict[TaskName, Prompt] = {"pointwise": prompt("pointwise", 400), "listwise": prompt("listwise", 900)}
    found = plan(prompts, PLACES, {}, 100.0, absent={"listwise"})
    assert (list(found.prompts), found.left_out, found.full) == (["pointwise"], {"listwise": "no_replica"}, ())
    assert plan(prompts, PLACES, {}, 100.0, absent=set(prompts)).full == ()


def test_a_task_without_a_known_cost_is_asked_whatever_the_time() -> None:
    prompts: dict[TaskName, Prompt] = {"pointwise": prompt("pointwise", 400), "listwise": prompt("listwise", 900)}
    found = plan(prompts, PLACES, {"listwise": Load(COST, 0.0)}, 0.001)
    assert (list(found.prompts), found.left_out) == (["pointwise"], {"listwise": "deadline"})


def test_neighbours_in_the_quoted_order_are_asked_first() -> None:
    wanted = pairs("dc", "ac", "bd", "ba", "ad", "cb")
    assert names(shortened(wanted, PLACES, 100 + 600)) == names(pairs("ba", "cb", "dc", "ac", "bd", "ad"))
    assert names(shortened(wanted, PLACES, 100 + 450)) == names(pairs("ba", "cb", "dc", "ac"))
    assert names(shortened(wanted, PLACES, 100 + 399)) == names(pairs("ba", "cb", "dc"))
    turned = {"d": 1, "b": 2, "c": 3, "a": 4}
    assert names(shortened(wanted, turned, 100 + 300)) == names(pairs("bd", "cb", "ac"))


def test_too_few_pairs_are_none() -> None:
    wanted = pairs("dc", "ac", "bd", "ba", "ad", "cb")
    assert shortened(wanted, PLACES, 100 + 299) is None  # a chain through four items has three pairs
    disjoint = pairs("ae", "bf", "cg", "dh")
    assert names(shortened(disjoint, PLACES, 100 + 200)) == names(pairs("ae", "bf"))
    assert shortened(disjoint, PLACES, 100 + 199) is None  # half of them
    assert shortened(pairs("ab"), PLACES, 100 + 99) is None


def test_fewer_pairs_are_asked_where_there_is_no_time_for_all_and_the_plan_says_so() -> None:
    prompts: dict[TaskName, Prompt] = {"pairwise": pairs("dc", "ac", "bd", "ba", "ad", "cb")}
    found = planned(0.1 + 0.51, prompts)  # 510 bytes: the prefix and four pairs
    assert names(found.prompts["pairwise"]) == names(pairs("ba", "cb", "dc", "ac"))
    assert found.message() == Plan(pairs_asked=4, pairs_wanted=6)
    assert planned(0.1 + 0.7 + 0.001, prompts).message() is None
    assert planned(0.1 + 0.39, prompts).left_out == {"pairwise": "deadline"}
    waiting = planned(0.1 + 0.71, prompts, pairwise=0.2)
    assert (waiting.pairs, waiting.left_out) == ((4, 6), {})
    assert planned(0.1 + 0.7, prompts, pairwise=0.4).left_out == {"pairwise": "queue"}
    loads = {"pairwise": Load(COST, 0.0)}
    assert plan(prompts, PLACES, loads, 0.6, shorten=False).left_out == {"pairwise": "deadline"}  # type: ignore[arg-type]


@pytest.mark.parametrize("schedule", ["budgeted", "all"])
def test_a_plan_for_a_full_list_takes_less_than_a_millisecond(schedule: str) -> None:
    instruct = InstructSettings.model_validate({"pair_schedule": schedule})
    asked = ask(request(26), served(instruct=instruct), ServeSettings(run="toy"))
    places = {one.item_id: one.place for one in asked.candidates}
    cost = Cost(0.0, 1e-5, 1.0)
    whole = sum(len(one.text) for one in asked.prompts["pairwise"].questions)
    left_s = MARGIN * 1e-5 * 0.7 * whole
    taken = []
    for _ in range(50):
        started = time.thread_time()
        found = plan(asked.prompts, places, {task: Load(cost, 0.0) for task in asked.prompts}, left_s)
        taken.append(time.thread_time() - started)
    assert found.pairs is not None
    assert found.pairs[1] == num_pairs(asked.prompts["pairwise"])
    assert min(taken) < 0.001
