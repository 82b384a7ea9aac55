"""How good the adapter in training is: NDCG@3 of validation lists, shared among the workers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from recranker.llm.model import LanguageModel
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import Engine
from recranker.ranking.choice import standardised
from recranker.ranking.fusion import PAPER_WEIGHTS, best_first, fuse
from recranker.ranking.rankings import choose_lists
from recranker.ranking.utilities import task_scores
from recranker.tasks.instructions import to_prompts
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName

CUTOFF = 3


@dataclass(frozen=True)
class ValidationList:
    """A list whose target is known and among its candidates."""

    prompt: Prompt
    """Questions of the first round only."""
    candidate_ids: tuple[str, ...]
    """In the retriever's order."""
    target_id: str


def validation_lists(
    prompts: pa.Table, lists: pa.Table, *, tasks: Sequence[TaskName], max_lists: int, seed: int
) -> list[ValidationList]:
    """The lists that training looks at: a keyed choice of those that hold their target.

    Args:
        prompts: PROMPTS rows.
        lists: CANDIDATES rows.
        tasks: Whose questions are asked.
        max_lists: At the most.
        seed: Keys the choice.
    """
    validation = lists.filter(pc.equal(lists["split"], "validation"))
    chosen = choose_lists(validation, only_hits=True, max_validation=max_lists, seed=seed)
    by_id = {row["list_id"]: row for row in validation.to_pylist() if row["list_id"] in chosen}
    asked = to_prompts(prompts.filter(pc.is_in(prompts["prompt_id"], value_set=pa.array(sorted(chosen), pa.string()))))
    return [
        ValidationList(
            _first_round(prompt, tasks),
            tuple(by_id[prompt.prompt_id]["candidate_ids"]),
            by_id[prompt.prompt_id]["target_id"],
        )
        for prompt in asked
    ]


def _first_round(prompt: Prompt, tasks: Sequence[TaskName]) -> Prompt:
    return replace(prompt, questions=tuple(one for one in prompt.questions if one.task in tasks and one.round == 0))


def looker(
    lm: LanguageModel, lists: Sequence[ValidationList], llm: LLMSettings, engine: Engine, tune: TuneSettings
) -> Callable[[], float]:
    """A function that ranks ``lists`` with the model as it then is; all workers must call it together.

    Returns:
        Mean NDCG@3 of the tasks' equal-weight hybrid, the same on every worker.
    """
    # under ZeRO-3 a forward pass takes all workers, so they must make the same ones
    own = lists if tune.zero_stage == 3 else lists[engine.rank :: engine.workers]
    scorer = make_scorer(lm, llm)

    def look() -> float:
        answers = scorer.score([one.prompt for one in own])
        gains = sum(ndcg(one, found) for one, found in zip(own, answers, strict=True))
        summed = engine.total(torch.tensor([gains, float(len(own))], dtype=torch.float64))
        return float(summed[0] / summed[1])

    return look


def ndcg(one: ValidationList, log_probabilities: Sequence[NDArray[np.float64]]) -> float:
    """NDCG@3 of one list, whose only relevant item is its target: one over log2(rank + 1), or 0 below rank 3."""
    answers = [
        question.answered(found) for question, found in zip(one.prompt.questions, log_probabilities, strict=True)
    ]
    scores = {task: standardised(values) for task, values in task_scores(answers, one.candidate_ids).items()}
    order = best_first(fuse(scores, PAPER_WEIGHTS))
    rank = 1 + order.tolist().index(one.candidate_ids.index(one.target_id))
    return float(1.0 / np.log2(rank + 1)) if rank <= CUTOFF else 0.0
