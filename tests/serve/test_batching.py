import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest

from recranker.tasks.protocol import Prompt
from serve.batching import Batcher
from serve.cost import Cost
from serve.scored import Scored
from tests.serve.fakes import Answered


class Engine:
    """Takes batches one at a time when it is let; a byte is a token; fails at a batch with 'poison' in it."""

    def __init__(self) -> None:
        self.batches: list[str] = []
        self.free = threading.Semaphore(0)
        self.at_once = 0

    def __call__(self, prompts: Sequence[Prompt]) -> list[Answered]:
        self.at_once += 1
        assert self.at_once == 1
        self.batches.append(" ".join(one.prompt_id for one in prompts))
        assert self.free.acquire(timeout=10)
        self.at_once -= 1
        if any("poison" in one.prompt_id for one in prompts):
            raise ValueError("planted")
        return [Answered([np.array([float(len(one.prefix))])], len(one.prefix)) for one in prompts]

    def let(self, batches: int) -> None:
        self.free.release(batches)

    async def reached(self, batches: int) -> None:
        """Wait until the engine has begun so many."""
        while len(self.batches) < batches:
            await asyncio.sleep(0.001)


async def settled() -> None:
    """Let everything run that waits for nothing but its turn."""
    for _ in range(5):
        await asyncio.sleep(0)


def prompt(name: str, tokens: int = 10) -> Prompt:
    return Prompt(name, "x" * tokens, ())


def run(test: Callable[[Engine, Batcher], Coroutine[Any, Any, None]], batch_tokens: float = 30.0) -> None:
    async def main() -> None:
        engine = Engine()
        async with asyncio.timeout(20):
            await test(engine, Batcher(engine, Cost(0.1, 0.01, 1.0, batch_tokens)))

    asyncio.run(main())


async def begun(batcher: Batcher, *prompts: Prompt) -> "list[asyncio.Task[Scored]]":
    """Calls that wait in the batcher, the first of them with the engine."""
    calls = [asyncio.create_task(batcher.score(one)) for one in prompts]
    await settled()
    return calls


def test_prompts_that_wait_are_scored_together_as_they_fit_the_oldest_first() -> None:
    async def test(engine: Engine, batcher: Batcher) -> None:
        calls = await begun(batcher, prompt("first"))
        calls += await begun(batcher, prompt("a"), prompt("b", 15), prompt("c", 6), prompt("d"), prompt("long", 99))
        engine.let(4)
        values = [(await one).values[0][0] for one in calls]
        assert values == [10, 10, 15, 6, 10, 99]
        # 10 + 15 + 6 would be 31 tokens; a prompt larger than a batch goes alone
        assert engine.batches == ["first", "a b", "c d", "long"]

    run(test)


def test_without_room_for_two_every_prompt_goes_alone() -> None:
    async def test(engine: Engine, batcher: Batcher) -> None:
        calls = await begun(batcher, prompt("a"), prompt("b"))
        engine.let(2)
        await asyncio.gather(*calls)
        assert engine.batches == ["a", "b"]

    run(test, batch_tokens=0.0)


def test_what_nobody_waits_for_is_not_computed() -> None:
    async def test(engine: Engine, batcher: Batcher) -> None:
        first, *others = await begun(batcher, prompt("first"))
        others = await begun(batcher, prompt("gone"), prompt("kept"), prompt("gone too"))
        others[0].cancel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await others[2]  # as the router's timer ends
        engine.let(9)
        assert (await first).tokens == (await others[1]).tokens == 10
        await settled()
        assert engine.batches == ["first", "kept"]

        (last,) = await begun(batcher, prompt("last"))  # a queue of nobody did not stop it
        assert (await last).tokens == 10

    run(test)


def test_a_poisoned_prompt_fails_alone() -> None:
    async def test(engine: Engine, batcher: Batcher) -> None:
        calls = await begun(batcher, prompt("first"))
        calls += await begun(batcher, prompt("a"), prompt("poison"), prompt("b"))
        engine.let(5)
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert engine.batches == ["first", "a poison b", "a", "poison", "b"]
        assert [getattr(one, "tokens", repr(one)) for one in found] == [10, 10, "ValueError('planted')", 10]

    run(test)


def test_a_batch_is_left_out_of_the_second_round_by_those_who_have_gone() -> None:
    async def test(engine: Engine, batcher: Batcher) -> None:
        calls = await begun(batcher, prompt("first"))
        calls += await begun(batcher, prompt("poison"), prompt("gone"), prompt("b"))
        engine.let(1)
        await engine.reached(2)
        calls[2].cancel()
        engine.let(4)
        await asyncio.gather(*calls, return_exceptions=True)
        assert engine.batches == ["first", "poison gone b", "poison", "b"]

    run(test)


def test_time_is_shared_out_by_tokens_and_the_rest_was_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("serve.batching.perf_counter", lambda: now[0])

    async def test(engine: Engine, batcher: Batcher) -> None:
        calls = await begun(batcher, prompt("first"))
        now[0] = 1.0
        calls += await begun(batcher, prompt("a", 20), prompt("b", 5))
        now[0] = 3.0
        engine.let(1)
        await engine.reached(2)
        now[0] = 4.0
        engine.let(1)
        found = [await one for one in calls]
        assert [one.seconds for one in found] == pytest.approx([3.0, 0.8, 0.2])  # 25 tokens in a second
        assert [one.waited for one in found] == pytest.approx([0.0, 2.2, 2.8])
        # 0.2 s and 0.42 s were expected: both count as twice as long, which moves the cost by a fifth
        assert [found[0].cost, found[2].cost] == [Cost(0.12, 0.012, 1.0, 30.0), batcher.cost]
        assert (batcher.cost.fixed_s, batcher.cost.per_token_s) == pytest.approx((0.144, 0.0144))

    run(test)


def test_batchers_of_one_engine_take_turns() -> None:
    async def test(engine: Engine, _: Batcher) -> None:
        lock = asyncio.Lock()
        one, other = (Batcher(engine, Cost(0.1, 0.01, 1.0, 30.0), lock) for _ in range(2))
        calls = [*await begun(one, prompt("a")), *await begun(other, prompt("b")), *await begun(one, prompt("c"))]
        engine.let(3)
        await asyncio.gather(*calls)
        assert engine.batches == ["a", "b", "c"]

    run(test)
