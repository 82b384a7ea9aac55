"""A task's replica, without Serve."""

import asyncio
from pathlib import Path

import numpy as np

from recranker.llm.model import load_adapter, load_model
from recranker.llm.scoring import make_scorer
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
    merged = asyncio.run(replica.score(replica.probe))[0]
    np.testing.assert_allclose(merged, beside, atol=1e-4)
    assert np.abs(merged - untuned).max() > 1e-2
