"""A challenger beside the model that answers."""

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from recranker.tasks.protocol import Prompt
from serve.messages import Plan
from serve.router import Router
from serve.scored import Scored
from serve.settings import ServeSettings, ShadowSettings
from serve.shadow import is_chosen, tau_of
from serve.wanted import ModelKey
from tests.serve.test_models import run_named
from tests.serve.test_ranking import request

SENT = {"tasks": ["pointwise"], "weights": {"pointwise": 1.0}}
"""So that the task's opinion alone decides."""


class Opinion:
    """A handle of the pointwise task: ``likes`` says, per place of an item, the log-odds of Yes."""

    def __init__(self, likes: Callable[[int], float], challenger: Callable[[int], float] | Exception | None) -> None:
        self.likes = likes
        self.challenger = challenger
        self.asked: list[ModelKey] = []
        self.score, self.score_if_idle = Call(self._score), Call(self._score_if_idle)

    async def _score(self, prompt: Prompt, model: ModelKey) -> Scored:
        return Scored(self._say(prompt, self.likes), 100, 0.0)

    async def _score_if_idle(self, prompt: Prompt, model: ModelKey) -> list[NDArray[np.float64]] | None:
        self.asked.append(model)
        if isinstance(self.challenger, Exception):
            raise self.challenger
        return None if self.challenger is None else self._say(prompt, self.challenger)

    def _say(self, prompt: Prompt, likes: Callable[[int], float]) -> list[NDArray[np.float64]]:
        found = []
        for question in prompt.questions:
            logits = likes(int(question.item_ids[0][1:])) * np.linspace(-0.5, 0.5, len(question.labels))
            found.append(logits - np.log(np.exp(logits).sum()))
        return found


class Call:
    """A method of a handle."""

    def __init__(self, called: Any) -> None:
        self.called = called

    def remote(self, *arguments: Any) -> "asyncio.Task[Any]":
        return asyncio.create_task(self.called(*arguments))


def counted(folder: Path, challenger: Callable[[int], float] | Exception | None, **changes: Any) -> dict[str, Any]:
    """What metrics say after one request for four items, which the model that answers ranks i3, i2, i1, i0."""
    run, other = run_named(folder, "a"), run_named(folder, "b")
    shadow = ShadowSettings(**{"run": other.uri, "share": 1.0, **changes})
    settings = ServeSettings(run="a", home=str(folder), shadow=shadow)
    task = Opinion(float, challenger)

    async def play() -> Router:
        router = Router(settings, run, {one: task for one in run.tasks})  # type: ignore[misc]
        response = await router.rank(request(**SENT))
        assert [one.id for one in response.ranking] == ["i3", "i2", "i1", "i0"]
        if router.shadow._asking:
            await router.shadow._asking
        return router

    registry = asyncio.run(play()).metrics.registry
    outcomes = {
        sample.labels["outcome"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "recranker_shadow_requests_total"
    }
    one = registry.get_sample_value
    return {
        "outcomes": outcomes,
        "tau at most 0.6": one("recranker_shadow_kendall_tau_bucket", {"le": "0.6"}),
        "tau at most 0.7": one("recranker_shadow_kendall_tau_bucket", {"le": "0.7"}),
        "rbo": one("recranker_shadow_rank_biased_overlap_sum"),
        "asked": task.asked,
        "challenger": other.key,
    }


def test_agreement_of_both_orders_is_counted(tmp_path: Path) -> None:
    found = counted(tmp_path, lambda item: {3: 2.5, 2: 3.0, 1: 1.0, 0: 0.0}[item])  # i2, i3, i1, i0: one pair of six
    assert found["outcomes"] == {"compared": 1.0}
    assert found["asked"] == [found["challenger"]]
    assert (found["tau at most 0.6"], found["tau at most 0.7"]) == (0.0, 1.0)  # (5 - 1) / 6
    # depths agree 0, 1, 1, 1
    assert found["rbo"] == pytest.approx(0.9**4 + (0.1 / 0.9) * (0.9**2 + 0.9**3 + 0.9**4))


def test_an_answer_for_which_fewer_pairs_were_asked_is_not_compared(tmp_path: Path) -> None:
    run, other = run_named(tmp_path, "a"), run_named(tmp_path, "b")
    settings = ServeSettings(run="a", home=str(tmp_path), shadow=ShadowSettings(run=other.uri, share=1.0))
    task = Opinion(float, float)

    async def play() -> Router:
        router = Router(settings, run, {one: task for one in run.tasks})  # type: ignore[misc]
        response = await router.rank(request(**SENT))
        await asyncio.gather(*([router.shadow._asking] if router.shadow._asking else []))
        task.asked.clear()
        router.shadow.after(request(**SENT), response.model_copy(update={"plan": Plan(pairs_asked=3)}), run)
        return router

    registry = asyncio.run(play()).metrics.registry
    assert registry.get_sample_value("recranker_shadow_requests_total", {"outcome": "degraded"}) == 1.0
    assert task.asked == []


@pytest.mark.parametrize(
    ("challenger", "outcome"), [(None, "busy"), (TimeoutError(), "failed"), (ZeroDivisionError(), "failed")]
)
def test_a_challenger_that_does_not_answer_is_counted_and_harms_nobody(
    tmp_path: Path, challenger: Any, outcome: str
) -> None:
    found = counted(tmp_path, challenger)
    assert found["outcomes"] == {outcome: 1.0}
    assert found["rbo"] == 0.0


def test_a_challenger_that_is_not_there_is_not_asked(tmp_path: Path) -> None:
    found = counted(tmp_path, float, run=str(tmp_path / "nothing"))
    assert (found["outcomes"], found["asked"]) == ({"failed": 1.0}, [])


def test_the_run_that_answers_is_not_its_own_challenger(tmp_path: Path) -> None:
    found = counted(tmp_path, float, run=str(tmp_path / "runs" / "a"))
    assert (found["outcomes"], found["asked"]) == ({}, [])


def test_the_share_is_keyed_by_what_is_asked() -> None:
    sent = [request(history=[{"title": f"Film {number}", "liked": True}]) for number in range(400)]
    chosen = [is_chosen(one, 0.25) for one in sent]
    assert 70 < sum(chosen) < 130
    assert chosen == [is_chosen(one, 0.25) for one in sent]
    assert all(is_chosen(one, 1.0) for one in sent)


def test_tau_worked_out_by_hand() -> None:
    assert tau_of(["a", "b", "c"], ["a", "b", "c"]) == 1.0
    assert tau_of(["a", "b", "c"], ["c", "b", "a"]) == -1.0
    assert tau_of(["a", "b", "c"], ["b", "a", "c"]) == pytest.approx(1 / 3)
    assert math.isnan(tau_of(["a"], ["a"]))
