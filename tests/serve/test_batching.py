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
    await asyncio.sleep(0.05)
    return calls


def test_prompts_that_wait_are_scored_together_as_they_fit_the_oldest_first() -> None:
    async def test(engine: Engine, batcher: Batcher) -> None:
        calls = await begun(batcher, prompt("first"))
        calls += await begun(batcher, prompt("a"), prompt("b", 15), prompt("c", 6), prompt("d"), prompt("long", 99))
        assert engine.batches == ["first"]
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
        await asyncio.sleep(0.05)
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
        await asyncio.sleep(0.05)  # the batch of three is computed now
        calls[2].cancel()
        engine.let(4)
        await asyncio.gather(*calls, return_exceptions=True)
        assert engine.batches == ["first", "poison gone b", "poison", "b"]

    run(test)


def test_time_is_shared_out_by_tokens_and_the_rest_was_waiting() -> None:
    async def test(engine: Engine, batcher: Batcher) -> None:
        calls = await begun(batcher, prompt("first"))
        calls += await begun(batcher, prompt("a", 20), prompt("b", 5))
        engine.let(1)
        await asyncio.sleep(0.1)  # the two of them are computed now
        engine.let(1)
        _, large, small = [await one for one in calls]
        assert large.seconds == pytest.approx(4 * small.seconds)
        assert large.seconds + small.seconds >= 0.09
        assert large.waited + large.seconds == pytest.approx(small.waited + small.seconds, abs=0.01)
        assert small.waited > large.seconds + 0.05  # for the first, and for the other
        assert small.cost == batcher.cost != Cost(0.1, 0.01, 1.0, 30.0)

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
