"""A task's replica, without Serve."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from recranker.errors import ModelError
from recranker.llm.model import load_adapter, load_model
from recranker.llm.scoring import TreeScorer, make_scorer
from recranker.tasks.protocol import Candidate, Prompt
from serve.cost import bytes_of
from serve.ranking import questions_of
from serve.source import read_run, run_at
from serve.tasks import PROOF_S, TaskReplica
from tests.serve.runs import another_run, finished_run


def test_the_adapter_is_merged_and_answers_as_it_did_beside_the_weights(tmp_path: Path) -> None:
    settings = finished_run(tmp_path)
    run = read_run(settings)
    replica = TaskReplica("pointwise", run, settings)
    loaded = asyncio.run(replica.models.get())
    assert not [name for name, _ in loaded.scorer.lm.model.named_parameters() if "lora" in name]
    lm = load_model(Path(run.llm.model), run.llm)
    untuned = make_scorer(lm, run.llm).score([loaded.probe])[0][0]
    load_adapter(lm, run.adapters / "joint")
    beside = make_scorer(lm, run.llm).score([loaded.probe])[0][0]
    merged = asyncio.run(replica.score(loaded.probe)).values[0]
    np.testing.assert_allclose(merged, beside, atol=1e-4)
    assert np.abs(merged - untuned).max() > 1e-2


def test_a_replica_knows_what_a_prompt_costs_and_says_so(tmp_path: Path) -> None:
    settings = finished_run(tmp_path).model_copy(update={"max_batch_tokens": 64})
    run = read_run(settings)
    for task in run.tasks:
        replica = TaskReplica(task, run, settings)
        loaded = asyncio.run(replica.models.get())
        scored = asyncio.run(replica.score(loaded.probe))
        assert scored.tokens == loaded.scorer.score_with_cost([loaded.probe])[0].tokens
        assert scored.cost is not None
        assert scored.cost.batch_tokens == 64
        assert 0.5 < scored.cost.tokens(bytes_of(loaded.probe)) / scored.tokens < 2.0
        assert scored.cost.seconds(scored.tokens) > 0.0


def test_a_task_whose_list_is_longer_than_the_model_reads_is_left_out_and_the_others_answer(tmp_path: Path) -> None:
    settings = finished_run(tmp_path)
    run = read_run(settings)
    replica = TaskReplica("pointwise", run, settings)
    items = tuple(Candidate(str(place), "很长的片名" * 40, place) for place in range(1, 11))  # each is within the limit
    points, lists = (questions_of(items, run, task) for task in ("pointwise", "listwise"))
    together = Prompt("serve", "Liked:\n- Alien\n", (*lists, *points))
    scored = asyncio.run(replica.score(together))
    assert scored.too_long == {"listwise"}
    alone = asyncio.run(replica.score(Prompt("serve", together.prefix, points)))
    assert alone.too_long == frozenset()
    np.testing.assert_array_equal(np.array(scored.values), np.array(alone.values))
    nothing = asyncio.run(replica.score(Prompt("serve", together.prefix, lists)))
    assert (nothing.values, nothing.too_long) == ([], {"listwise"})


def test_a_challenger_answers_where_the_replica_is_idle(tmp_path: Path) -> None:
    settings = finished_run(tmp_path)
    other = run_at(another_run(tmp_path, "other").uri)

    async def play() -> None:
        replica = TaskReplica("pointwise", read_run(settings), settings)
        await replica.reconfigure(read_run(settings).wanted.model_dump())
        probe = (await replica.models.health()).probe
        assert await replica.score_if_idle(probe, other.key) is None  # begins to load it
        async with asyncio.timeout(30):
            while (await replica.prepare(other.key, "")).state != "ready":
                await asyncio.sleep(0.01)
        async with replica.models.engine:
            assert await replica.score_if_idle(probe, other.key) is None
        theirs = await replica.score_if_idle(probe, other.key)
        assert theirs is not None
        ours = await replica.score(probe)  # the challenger does not become the model that answers
        assert np.abs(theirs[0] - ours.values[0]).max() > 1e-3
        np.testing.assert_array_equal(theirs[0], (await replica.score(probe, other.key)).values[0])

    asyncio.run(play())


def test_a_replica_that_answered_lately_need_not_prove_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = finished_run(tmp_path)
    replica = TaskReplica("pointwise", read_run(settings), settings)

    async def play() -> None:
        loaded = await replica.models.get()
        await replica.score(loaded.probe)
        monkeypatch.setattr(TreeScorer, "score", fails)
        await replica.check_health()
        replica.answered_at -= PROOF_S
        with pytest.raises(ModelError, match="planted"):
            await replica.check_health()

    def fails(*_: object) -> None:
        raise ModelError("planted")

    asyncio.run(play())
