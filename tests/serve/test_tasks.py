"""A task's replica, without Serve."""

import asyncio
from pathlib import Path

import numpy as np

from recranker.llm.model import load_adapter, load_model
from recranker.llm.scoring import make_scorer
from serve.cost import bytes_of
from serve.source import read_run
from serve.tasks import TaskReplica
from tests.serve.runs import finished_run


def test_the_adapter_is_merged_and_answers_as_it_did_beside_the_weights(tmp_path: Path) -> None:
    run = read_run(finished_run(tmp_path))
    replica = TaskReplica("pointwise", run, str(tmp_path / "cache"))
    assert not [name for name, _ in replica.scorer.lm.model.named_parameters() if "lora" in name]
    lm = load_model(Path(run.llm.model), run.llm)
    untuned = make_scorer(lm, run.llm).score([replica.probe])[0][0]
    load_adapter(lm, run.adapters / "joint")
    beside = make_scorer(lm, run.llm).score([replica.probe])[0][0]
    merged = asyncio.run(replica.score(replica.probe)).values[0]
    np.testing.assert_allclose(merged, beside, atol=1e-4)
    assert np.abs(merged - untuned).max() > 1e-2


def test_a_replica_knows_what_a_prompt_costs_and_says_so(tmp_path: Path) -> None:
    run = read_run(finished_run(tmp_path))
    for task in run.tasks:
        replica = TaskReplica(task, run, str(tmp_path / "cache"), 64)
        scored = asyncio.run(replica.score(replica.probe))
        assert scored.tokens == replica.scorer.score_with_cost([replica.probe])[0].tokens
        assert scored.cost is not None
        assert scored.cost.batch_tokens == 64
        assert 0.5 < scored.cost.tokens(bytes_of(replica.probe)) / scored.tokens < 2.0
        assert scored.cost.seconds(scored.tokens) > 0.0
