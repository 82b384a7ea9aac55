"""The model as tuned: one adapter for all tasks, or one for each."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from recranker.errors import ModelError
from recranker.llm.model import LanguageModel, load_adapter
from recranker.llm.scoring import Scored, TreeScorer
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName

JOINT = "joint"


def adapter_for(folder: Path, task: TaskName) -> Path:
    """The adapter that answers ``task``: the joint one, or the task's own.

    Raises:
        ModelError: If the folder holds neither.
    """
    for name in (JOINT, task):
        if (folder / name).is_dir():
            return folder / name
    raise ModelError(f"{folder}: no adapter for task '{task}'; needed a folder '{JOINT}' or '{task}', run jobs.tune")


def score_tuned(
    lm: LanguageModel, scorer: TreeScorer, folder: Path, prompts: Sequence[Prompt], tasks: Sequence[TaskName]
) -> list[Scored]:
    """``scorer``'s answers with the adapters of ``folder``, questions of several adapters put back in order.

    Args:
        lm: The model ``scorer`` runs; the adapter in it is changed where that is needed.
        scorer: How prompts are scored.
        folder: Holds 'joint' or a folder per task.
        prompts: Whose questions are answered.
        tasks: Every task that occurs in the prompts.
    """
    if (folder / JOINT).is_dir():
        return scorer.score_with_cost(prompts)
    parts: list[list[Scored]] = []
    for task in tasks:
        load_adapter(lm, adapter_for(folder, task))
        parts.append(scorer.score_with_cost([_only(prompt, task) for prompt in prompts]))
    return [_merged(prompt, tasks, found) for prompt, *found in zip(prompts, *parts, strict=True)]


def _only(prompt: Prompt, task: TaskName) -> Prompt:
    return replace(prompt, questions=tuple(one for one in prompt.questions if one.task == task))


def _merged(prompt: Prompt, tasks: Sequence[TaskName], found: Sequence[Scored]) -> Scored:
    waiting = {task: iter(scored.log_probabilities) for task, scored in zip(tasks, found, strict=True)}
    answers = [next(waiting[question.task]) for question in prompt.questions]
    tokens = sum(scored.tokens for scored in found)
    return Scored(answers, tokens, max(scored.cut_lines for scored in found))
