"""Tuning, one worker's share: which prompts a step sees, its loss, and the loop over steps.

The loss is the cross-entropy of the right label among a question's labels, and the divergence from a
teacher's probabilities of them, at the one position where the model answers: no other token counts.
Every question of a step weighs the same, whichever task, prompt or worker it belongs to, so that the
gradient does not depend on how many workers share the step.

Shapes: Q questions of one row, B prompts of one step over all workers.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from recranker.errors import DataError, ModelError
from recranker.llm.encoding import encode_all
from recranker.llm.model import LanguageModel, add_adapter
from recranker.llm.packing import Packed, label_logits, pack
from recranker.llm.reports import StepReport
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.tuned import JOINT
from recranker.randomness import key_of, keys_of, uniforms
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterPlan:
    """One adapter to train."""

    name: str
    """'joint', or the only task it learns."""
    prompts: list[Prompt]
    """Prompts with answered questions only."""
    steps: int
    """Optimizer steps."""
    repeated: int
    """Prompts seen once more than ``epochs`` says, to fill the last step."""


class Engine(Protocol):
    """The model and its optimizer as the loop sees them: DeepSpeed behind ``distributed/``, plain torch in tests."""

    rank: int
    workers: int
    forward: Callable[..., Any]
    """The model, as ``packing.label_logits`` calls it."""

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of ``loss``; gradients of all workers are summed at the next ``step``."""

    def step(self, learning_rate: float) -> None:
        """Update the adapter and forget the gradients."""

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over all workers, the same on each."""


def plan_adapters(prompts: Sequence[Prompt], settings: TuneSettings) -> list[AdapterPlan]:
    """One plan for all tasks, or one for each; the earliest ``max_prompts`` draws of each.

    Raises:
        DataError: If an adapter would see no answered question at all.
    """
    groups: list[tuple[str, tuple[TaskName, ...]]] = [(JOINT, settings.tasks)]
    if settings.adapters == "per_task":
        groups = [(task, (task,)) for task in settings.tasks]
    return [_plan(name, answered(prompts, tasks), settings) for name, tasks in groups]


def _plan(name: str, prompts: list[Prompt], settings: TuneSettings) -> AdapterPlan:
    if not prompts:
        raise DataError(
            f"tuning adapter {name!r} needs training prompts with answers, the table 'prompts' holds none of split "
            f"'train' for tasks {list(settings.tasks)}; check sampling.num_draws and the 'quarantine' table of instruct"
        )
    chosen = prompts[: settings.max_prompts]
    steps = num_steps(len(chosen), settings.batch_prompts, settings.epochs)
    if steps <= settings.warmup_steps:
        logger.warning(
            "adapter %s: its %d steps end within tune.warmup_steps=%d, so tune.learning_rate is never reached",
            *(name, steps, settings.warmup_steps),
        )
    return AdapterPlan(name, chosen, steps, steps * settings.batch_prompts - len(chosen) * settings.epochs)


def answered(prompts: Sequence[Prompt], tasks: Sequence[TaskName]) -> list[Prompt]:
    """Prompts cut down to the answered questions of ``tasks``, in order of draw; those left empty are dropped."""
    kept = [
        replace(
            prompt, questions=tuple(one for one in prompt.questions if one.task in tasks and one.answer is not None)
        )
        for prompt in prompts
    ]
    return sorted((prompt for prompt in kept if prompt.questions), key=_draw)


def _draw(prompt: Prompt) -> tuple[int, str]:
    """'train/10' comes after 'train/9'."""
    number = prompt.prompt_id.rpartition("/")[2]
    return (int(number) if number.isdecimal() else 0, prompt.prompt_id)


def num_steps(num_prompts: int, batch_prompts: int, epochs: int) -> int:
    """Optimizer steps; the last one is filled up, so that every step and every worker has equal work."""
    return math.ceil(num_prompts * epochs / batch_prompts)


def batches(prompt_ids: Sequence[str], batch_prompts: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Per step, the indices of its prompts over all workers.

    Every epoch is a fresh order, and epochs follow one another without a gap: what the last step lacks
    comes from the order of an epoch more. The order is keyed by the ids, hence the same on every worker.
    """
    stream = _stream(list(prompt_ids), seed)
    for _ in range(num_steps(len(prompt_ids), batch_prompts, epochs)):
        yield list(islice(stream, batch_prompts))


def _stream(prompt_ids: list[str], seed: int) -> Iterator[int]:
    epoch = 0
    while True:
        drawn = uniforms(keys_of(prompt_ids, seed, "training order", epoch), 0)
        yield from np.argsort(drawn, kind="stable").tolist()
        epoch += 1


def micro_batches(positions: int, micro_batch: int, rank: int, workers: int) -> list[list[int]]:
    """Positions within a step's batch that worker ``rank`` computes, one list per forward pass."""
    share = positions // workers
    own = range(rank * share, (rank + 1) * share)
    return [list(own[start : start + micro_batch]) for start in range(0, share, micro_batch)]


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of ``step`` (1 = first): linear to ``peak`` at step ``warmup_steps`` + 1, then a cosine.

    The cosine would reach 0 one step after the last, so that no step is without effect.
    """
    if step <= warmup_steps:
        return peak * step / (warmup_steps + 1)
    progress = (step - warmup_steps - 1) / (total_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_trainable(lm: LanguageModel, settings: TuneSettings, seed: int) -> None:
    """Put a fresh adapter round ``lm.model``, the same on every worker, ready to be trained."""
    add_adapter(lm, settings.lora, seed=key_of(seed, "adapter") >> 1)
    if settings.gradient_checkpointing:
        # reentrant checkpointing reduces a parameter twice under ZeRO
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        lm.model.enable_input_require_grads()  # frozen embeddings would cut the graph of the first layer
    lm.model.train()


def answer_losses(logits: Sequence[Tensor], packed: Packed, distillation: float) -> Tensor:
    """``(Q,)`` loss of each question, nats; every answer must be known.

    Cross-entropy of the right label among the question's labels, plus ``distillation`` times the divergence
    KL(teacher || model) over the labels where a teacher's probabilities are known.

    Source: Hinton, Vinyals & Dean 2015, arXiv 1503.02531, at temperature 1.
    """
    wanted = torch.tensor(packed.answers, device=logits[0].device)
    losses = []
    for index, (one, soft) in enumerate(zip(logits, packed.soft_labels, strict=True)):
        loss = cross_entropy(one[None], wanted[index : index + 1])
        if soft is not None and distillation > 0:
            loss = loss + distillation * kl_div(log_softmax(one, dim=-1), soft, reduction="sum")
        losses.append(loss)
    return torch.stack(losses)


def train(
    engine: Engine, lm: LanguageModel, prompts: Sequence[Prompt], settings: TuneSettings, llm: LLMSettings, seed: int
) -> Iterator[StepReport]:
    """Train the adapter; every worker calls this with the same prompts and gets the same reports.

    Raises:
        ModelError: If a loss is no finite number, before it reaches the adapter; names step and prompts.
    """
    total_steps = num_steps(len(prompts), settings.batch_prompts, settings.epochs)
    ids = [prompt.prompt_id for prompt in prompts]
    tokens = 0
    for step, chosen in enumerate(batches(ids, settings.batch_prompts, settings.epochs, seed), start=1):
        batch = [prompts[index] for index in chosen]
        sums, computed = _gradients(engine, lm, batch, settings, llm)
        _check_finite(sums, batch, step)
        rate = learning_rate(
            step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, total_steps=total_steps
        )
        engine.step(rate)
        tokens += computed
        yield _report(step, sums, batch, rate, tokens, settings.tasks)


def _gradients(
    engine: Engine, lm: LanguageModel, batch: Sequence[Prompt], settings: TuneSettings, llm: LLMSettings
) -> tuple[Tensor, int]:
    """Gradients of the step's mean loss; ``(B, tasks)`` loss sums and the tokens computed, over all workers."""
    num_questions = sum(len(prompt.questions) for prompt in batch)
    sums = torch.zeros(len(batch), len(settings.tasks), dtype=torch.float64)
    tokens = 0
    for positions in micro_batches(len(batch), settings.micro_batch_prompts, engine.rank, engine.workers):
        packed = pack(encode_all([batch[index] for index in positions], lm, llm.max_prompt_tokens), lm.device)
        losses = answer_losses(label_logits(engine.forward, packed), packed, settings.distillation)
        engine.backward(losses.sum() / num_questions)
        _add(sums, losses.detach(), packed, positions, settings.tasks)
        tokens += packed.num_tokens
    totals = engine.total(torch.cat([sums.flatten(), torch.tensor([tokens], dtype=torch.float64)]))
    return totals[:-1].reshape(sums.shape), int(totals[-1])


def _add(sums: Tensor, losses: Tensor, packed: Packed, positions: list[int], tasks: Sequence[TaskName]) -> None:
    for loss, tree, task in zip(losses.tolist(), packed.trees, packed.tasks, strict=True):
        sums[positions[tree], tasks.index(task)] += loss


def _check_finite(sums: Tensor, batch: Sequence[Prompt], step: int) -> None:
    broken = ~torch.isfinite(sums).all(dim=1)
    if broken.any():
        ids = sorted({prompt.prompt_id for prompt, bad in zip(batch, broken.tolist(), strict=True) if bad})
        raise ModelError(
            f"tuning stopped at step {step}: the loss is no finite number for prompts {ids}; "
            "lower tune.learning_rate or look at these prompts"
        )


def _report(
    step: int, sums: Tensor, batch: Sequence[Prompt], rate: float, tokens: int, tasks: Sequence[TaskName]
) -> StepReport:
    counts = [sum(question.task == task for prompt in batch for question in prompt.questions) for task in tasks]
    by_task = sums.sum(dim=0).tolist()
    task_losses = {task: loss / count for task, loss, count in zip(tasks, by_task, counts, strict=True) if count}
    return StepReport(step, sum(by_task) / sum(counts), rate, tokens, task_losses)
