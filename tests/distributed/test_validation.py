from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray

from recranker.distributed.validation import ValidationList, looker, ndcg, validation_lists
from recranker.llm.model import load_model
from recranker.llm.reports import Progress
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import Trainer, make_trainable
from recranker.schema import CANDIDATES, PROMPTS
from recranker.tasks.protocol import Prompt, Question
from tests.llm.plain_engine import PlainEngine
from tests.llm.prompts import toy_prompts
from tests.models import tiny_model

LLM = LLMSettings(model="tiny", device="cpu")
ITEMS = ("a", "b", "c", "d", "e")


def one_list(number: int, target: str) -> ValidationList:
    text = f"\nA. Fargo\nB. Ran\nC. Jaws\nD. Rope\nE. Heat\nBest for user {number}:"
    question = Question("listwise", text, tuple("ABCDE"), ITEMS)
    return ValidationList(Prompt(f"v{number}", f"Liked:\nAlien {number}\n", (question,)), ITEMS, target)


def answers(*probabilities: float) -> list[NDArray[np.float64]]:
    return [np.log(np.array(probabilities))]


@pytest.mark.parametrize(
    ("target", "expected"), [("b", 1.0), ("d", 1 / np.log2(3)), ("a", 0.5), ("c", 0.0), ("e", 0.0)]
)
def test_ndcg_of_the_target_as_worked_by_hand(target: str, expected: float) -> None:
    assert ndcg(one_list(0, target), answers(0.2, 0.4, 0.05, 0.3, 0.04)) == pytest.approx(expected)


def test_all_workers_know_the_mean_over_all_lists(tmp_path: Path) -> None:
    lm = load_model(tiny_model(tmp_path), LLM)
    lists = [one_list(number, ITEMS[number]) for number in range(5)]
    scorer = make_scorer(lm, LLM)
    expected = np.mean([ndcg(one, scorer.score([one.prompt])[0]) for one in lists])
    shares = []

    class Shared(PlainEngine):
        def total(self, values: torch.Tensor) -> torch.Tensor:
            shares.append(values)
            return values

    for parameter in list(lm.model.parameters())[1:]:
        parameter.requires_grad_(False)
    for rank in (0, 1):
        looker(lm, lists, LLM, Shared(lm, TuneSettings(), rank, 2), TuneSettings(workers=2))()
    gains, counts = sum(shares).tolist()
    assert [int(share[1]) for share in shares] == [3, 2]
    assert gains / counts == pytest.approx(expected)


def test_looks_leave_every_step_in_training_mode(tmp_path: Path) -> None:
    tune = TuneSettings(batch_prompts=2, epochs=2, validation={"every_steps": 2}, lora={"dropout": 0.5})
    lm = load_model(tiny_model(tmp_path), LLM)
    make_trainable(lm, tune, 0)
    engine = PlainEngine(lm, tune)
    modes: list[bool] = []

    def forward(**inputs: Any) -> Any:
        modes.append(lm.model.training)
        return lm.model(**inputs)

    engine.forward = forward
    look = looker(lm, [one_list(0, "a")], LLM, engine, tune)
    trainer = Trainer(engine, lm, toy_prompts(4), tune, LLM.max_prompt_tokens, 0)
    done = trainer.fit(Progress(), tell=lambda report: None, keep=lambda progress: None, look=look)
    assert [one.step for one in done.looks] == [2, 4]
    assert modes == [True] * 4


def test_lists_are_those_of_validation_that_hold_their_target() -> None:
    base = {
        "user_id": "u",
        "candidate_ids": list(ITEMS),
        "backbone_scores": [0.0] * 5,
        "target_id": "c",
    }
    rows = [
        {**base, "list_id": "v1", "split": "validation", "hit": True},
        {**base, "list_id": "v2", "split": "validation", "hit": False},
        {**base, "list_id": "t1", "split": "test", "hit": True},
    ]
    lists = pa.Table.from_pylist(rows, schema=CANDIDATES.schema)
    first = one_list(0, "c").prompt.questions[0]
    later = replace(first, round=1)
    other = Question("pointwise", "\nIs Heat good?", ("No", "Yes"), ("e",))
    prompts = pa.Table.from_pylist(
        [
            {
                "prompt_id": row["list_id"],
                "list_id": row["list_id"],
                "user_id": "u",
                "split": row["split"],
                "prefix": "Liked:\n",
                "questions": [vars(question) for question in (first, later, other)],
            }
            for row in rows
        ],
        schema=PROMPTS.schema,
    )
    found = validation_lists(prompts, lists, tasks=("listwise",), max_lists=9, seed=0)
    assert [one.prompt.prompt_id for one in found] == ["v1"]
    assert [(one.task, one.round) for one in found[0].prompt.questions] == [("listwise", 0)]
    assert (found[0].candidate_ids, found[0].target_id) == (ITEMS, "c")
    assert validation_lists(prompts, lists, tasks=("listwise",), max_lists=0, seed=0) == []
