"""Tuning, one worker's share: which prompts a step sees, and the loop over steps.

The loss (``llm.objectives``) looks at the one position where the model answers: no other token counts. Every question
of a step weighs the same, whichever task, prompt or worker it belongs to, so that the gradient does not depend on how
many workers share the step. Order, start and dropout are keyed by seed and step, so that a training that goes on from
a checkpoint does what the unbroken one would have done.

Shapes: B prompts of one step over all workers.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from recranker.errors import DataError, ModelError
from recranker.llm.encoding import encode_all
from recranker.llm.model import LanguageModel, add_adapter, load_adapter, prepare_quantized
from recranker.llm.objectives import check_labels, losses
from recranker.llm.packing import Packed, pack
from recranker.llm.reports import Look, Progress, StepReport
from recranker.llm.settings import TuneSettings
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
    too_long: int
    """Prompts that did not fit into ``max_prompt_tokens``: cut, or left out."""
    start: str | None = None
    """Name of the adapter, planned before it, whose weights it starts from; None: from the seed."""


class Engine(Protocol):
    """The model and its optimizer as the loop sees them: DeepSpeed behind ``distributed/``, plain torch in tests."""

    rank: int
    workers: int
    forward: Callable[..., Any]
    """The model, as ``packing.label_logits`` calls it."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``; gradients of all workers are summed at the next ``step``.

        Args:
            loss: Of one micro-batch.
            last: Whether it is the step's last one.
        """

    def step(self, learning_rate: float) -> float:
        """Update the adapter and forget the gradients; returns the norm of their sum before it was clipped.

        Where that is no finite number the adapter stays as it was.
        """

    def total(self, values: Tensor) -> Tensor:
        """``values`` summed over all workers, the same on each."""

    def memory_gb(self) -> float:
        """Most that this worker has held so far, GB."""


def plan_adapters(prompts: Sequence[Prompt], settings: TuneSettings, max_prompt_tokens: int) -> list[AdapterPlan]:
    """One plan for all tasks, one for each, or both, those of the tasks behind and starting from the joint one.

    Each takes the earliest ``max_prompts`` draws that have questions for it.

    Raises:
        DataError: If an adapter would see no answered question at all, or tokens were not counted.
        ModelError: If a question's labels do not fit the objective.
    """
    joint: tuple[str, tuple[TaskName, ...]] = (JOINT, settings.tasks)
    each: list[tuple[str, tuple[TaskName, ...]]] = [(task, (task,)) for task in settings.tasks]
    groups = {"joint": [joint], "per_task": each, "joint_then_per_task": [joint, *each]}[settings.adapters]
    plans = [_plan(name, answered(prompts, tasks), settings, max_prompt_tokens) for name, tasks in groups]
    if settings.adapters == "joint_then_per_task":
        plans = [replace(plan, start=None if plan.name == JOINT else JOINT) for plan in plans]
    return plans


def _plan(name: str, prompts: list[Prompt], settings: TuneSettings, max_prompt_tokens: int) -> AdapterPlan:
    too_long = {prompt.prompt_id for prompt in prompts if _longest(prompt) > max_prompt_tokens}
    if too_long:
        logger.warning(
            "adapter %s: %d of %d prompts are longer than llm.max_prompt_tokens=%d; %s",
            *(name, len(too_long), len(prompts), max_prompt_tokens),
            "their oldest titles are cut" if settings.long_prompts == "cut" else "they are left out",
        )
    kept = [one for one in prompts if settings.long_prompts == "cut" or one.prompt_id not in too_long]
    if not kept:
        raise DataError(
            f"tuning adapter {name!r} needs training prompts with answers, the table 'prompts' holds "
            f"{len(prompts)} of split 'train' for tasks {list(settings.tasks)}, {len(too_long)} of them too long; "
            "check sampling.num_draws, llm.max_prompt_tokens and the 'quarantine' table of instruct"
        )
    chosen = kept[: settings.max_prompts]
    check_labels([question for prompt in chosen for question in prompt.questions], settings.objective)
    steps = num_steps(len(chosen), settings.batch_prompts, settings.epochs)
    if steps <= settings.warmup_steps:
        logger.warning(
            "adapter %s: its %d steps end within tune.warmup_steps=%d, so tune.learning_rate is never reached",
            *(name, steps, settings.warmup_steps),
        )
    repeated = steps * settings.batch_prompts - len(chosen) * settings.epochs
    return AdapterPlan(name, chosen, steps, repeated, len(too_long))


def _longest(prompt: Prompt) -> int:
    """Tokens of the prefix and the longest question."""
    prefix, questions = _counted(prompt)
    return prefix + max(questions)


def _counted(prompt: Prompt) -> tuple[int, list[int]]:
    """Tokens of the prefix, and of each question.

    Raises:
        DataError: If nobody has counted them.
    """
    counts = [prompt.prefix_tokens, *(question.tokens for question in prompt.questions)]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        raise DataError(f"prompt {prompt.prompt_id!r}: its tokens were not counted; run jobs.instruct again")
    return known[0], known[1:]


def tokens_of(prompt: Prompt, max_prompt_tokens: int) -> int:
    """Tokens of the prompt's row: its prefix once, as far as it fits, and all its questions."""
    prefix, questions = _counted(prompt)
    return min(prefix, max_prompt_tokens - max(questions)) + sum(questions)


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


def micro_batches(tokens: Sequence[int], token_budget: int, rank: int, workers: int) -> list[list[int]]:
    """Positions within a step's batch that worker ``rank`` computes, one list per forward pass.

    Every worker gets as many prompts, and as many passes, since gradients are exchanged after each; who is dealt
    what depends on lengths, so that all have about as many tokens.

    Args:
        tokens: ``(batch,)`` of each prompt of the step, as many as a multiple of ``workers``.
        token_budget: Tokens of a pass, at the most; a longer prompt goes alone.
        rank: From 0.
        workers: How many share the step.
    """
    longest_first = sorted(range(len(tokens)), key=lambda position: (-tokens[position], position))
    shares: list[list[int]] = [[] for _ in range(workers)]
    for turn, start in enumerate(range(0, len(tokens), workers)):
        dealt = longest_first[start : start + workers]
        for worker, position in enumerate(dealt if turn % 2 == 0 else reversed(dealt)):
            shares[worker].append(position)
    passes = [_within(share, tokens, token_budget) for share in shares]
    return _in_as_many(passes[rank], max(map(len, passes)))


def _within(positions: Sequence[int], tokens: Sequence[int], token_budget: int) -> list[list[int]]:
    """``positions`` in their order, cut before a pass would go over the budget."""
    passes: list[list[int]] = []
    room = 0
    for position in positions:
        if not passes or tokens[position] > room:
            passes.append([])
            room = token_budget
        passes[-1].append(position)
        room -= tokens[position]
    return passes


def _in_as_many(passes: list[list[int]], wanted: int) -> list[list[int]]:
    """The same positions in ``wanted`` passes: those with the most prompts are halved."""
    while len(passes) < wanted:
        index = max(range(len(passes)), key=lambda index: len(passes[index]))
        whole = passes[index]
        passes[index : index + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    return passes


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int) -> float:
    """The rate of ``step`` (1 = first): linear to ``peak`` at step ``warmup_steps`` + 1, then a cosine.

    The cosine would reach 0 one step after the last, so that no step is without effect.
    """
    if step <= warmup_steps:
        return peak * step / (warmup_steps + 1)
    progress = (step - warmup_steps - 1) / (total_steps - warmup_steps)
    return peak * 0.5 * (1.0 + math.cos(math.pi * progress))


def make_trainable(lm: LanguageModel, settings: TuneSettings, seed: int, start: Path | None = None) -> None:
    """Make ``lm`` ready to be trained, the same on every worker: every weight, or an adapter that is put round it.

    Args:
        lm: The base model; where every weight is trained, what it starts from.
        settings: What is trained.
        seed: Of a fresh adapter.
        start: Folder of an adapter to start from; None: a fresh one.
    """
    prepare_quantized(lm)
    if settings.method == "full":
        lm.model.requires_grad_(True)
    elif start is None:
        add_adapter(lm, settings.lora, seed=key_of(seed, "adapter") >> 1)
    else:
        load_adapter(lm, start, trainable=True)
    if settings.gradient_checkpointing:
        # reentrant checkpointing reduces a parameter twice under ZeRO, and needs a gradient at the first layer's input
        lm.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lm.model.train()


def trained_weights(lm: LanguageModel) -> dict[str, Parameter]:
    """What is trained, by name."""
    return {name: weight for name, weight in lm.model.named_parameters() if weight.requires_grad}


@dataclass(frozen=True)
class Trainer:
    """One worker's training: everything that its steps have in common."""

    engine: Engine
    lm: LanguageModel
    prompts: Sequence[Prompt]
    """The same on every worker."""
    settings: TuneSettings
    max_prompt_tokens: int
    """Prefix and one question at the most."""
    seed: int

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return num_steps(len(self.prompts), self.settings.batch_prompts, self.settings.epochs)

    def fit(
        self,
        start: Progress,
        *,
        tell: Callable[[StepReport | Look], None],
        keep: Callable[[Progress], None],
        look: Callable[[], float] | None = None,
    ) -> Progress:
        """Train from where ``start`` ends to the last step, or until validation gets no better.

        Args:
            start: Steps done; the engine holds the state after them.
            tell: Told of every step, and of every look at validation.
            keep: Called by all workers where a checkpoint is due.
            look: NDCG@3 of the validation lists now, the same on every worker; None where nobody looks.

        Returns:
            All steps, those of ``start`` included.

        Raises:
            ModelError: If a loss or the gradient is no finite number, before it reaches the adapter; names step and
                prompts.
        """
        progress, validation = start, self.settings.validation
        patience = validation.patience if validation else None
        if not progress.is_patient(patience):
            return progress
        for report in self.steps(start):
            progress = progress.model_copy(update={"reports": (*progress.reports, report)})
            tell(report)
            seen = None
            if look and validation and self._is_due(report.step, validation.every_steps):
                seen = Look(report.step, look())
                tell(seen)
                progress = progress.model_copy(update={"looks": (*progress.looks, seen)})
            if seen or self._is_due(report.step, self.settings.checkpoint_steps):
                keep(progress)
            if not progress.is_patient(patience):
                break
        return progress

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.num_steps

    def steps(self, start: Progress) -> Iterator[StepReport]:
        """Do one step after another; every worker gets the same reports but for what it measures of itself."""
        tokens = start.reports[-1].tokens if start.reports else 0
        for step, batch in self._batches(start.step):
            began = time.perf_counter()
            self.lm.model.train()  # whoever looked meanwhile may have left it otherwise
            torch.manual_seed(key_of(self.seed, "dropout", step, self.engine.rank) >> 1)
            sums, computed = self._gradients(batch)
            _check_finite(sums, batch, step)
            rate = learning_rate(
                step,
                peak=self.settings.learning_rate,
                warmup_steps=self.settings.warmup_steps,
                total_steps=self.num_steps,
            )
            norm = self.engine.step(rate)
            if not math.isfinite(norm):
                raise _broken(step, "gradient", batch)
            tokens += computed
            yield StepReport(
                step=step,
                learning_rate=rate,
                tokens=tokens,
                step_tokens=computed,
                prompt_ids=tuple(prompt.prompt_id for prompt in batch),
                gradient_norm=norm,
                seconds=time.perf_counter() - began,
                memory_gb=self.engine.memory_gb(),
                **_mean_losses(sums, batch, self.settings.tasks),
            )

    def _batches(self, done: int) -> Iterator[tuple[int, list[Prompt]]]:
        """Number and prompts of every step behind ``done``."""
        ids = [prompt.prompt_id for prompt in self.prompts]
        chosen = batches(ids, self.settings.batch_prompts, self.settings.epochs, self.seed)
        for step, indices in enumerate(chosen, start=1):
            if step > done:
                yield step, [self.prompts[index] for index in indices]

    def _gradients(self, batch: Sequence[Prompt]) -> tuple[Tensor, int]:
        """Gradients of the step's mean loss; ``(B, tasks)`` loss sums and the tokens computed, over all workers."""
        num_questions = sum(len(prompt.questions) for prompt in batch)
        sums = torch.zeros(len(batch), len(self.settings.tasks), dtype=torch.float64)
        tokens = 0
        passes = self._passes(batch)
        for number, positions in enumerate(passes, start=1):
            packed = self.packed([batch[index] for index in positions])
            found = losses(self.engine.forward, packed, self.settings.objective)
            self.engine.backward(found.sum() / num_questions, last=number == len(passes))
            _add(sums, found.detach(), packed, positions, self.settings.tasks)
            tokens += packed.num_tokens
        totals = self.engine.total(torch.cat([sums.flatten(), torch.tensor([tokens], dtype=torch.float64)]))
        return totals[:-1].reshape(sums.shape), int(totals[-1])

    def _passes(self, batch: Sequence[Prompt]) -> list[list[int]]:
        lengths = [tokens_of(prompt, self.max_prompt_tokens) for prompt in batch]
        return micro_batches(lengths, self.settings.micro_batch_tokens, self.engine.rank, self.engine.workers)

    def packed(self, prompts: Sequence[Prompt]) -> Packed:
        """``prompts`` as one row."""
        return pack(encode_all(prompts, self.lm, self.max_prompt_tokens), self.lm.device)

    def nothing(self) -> Tensor:
        """A loss of 0 that depends on every trained weight, for an optimizer that makes its state as it steps."""
        first = min(self.prompts, key=lambda prompt: (tokens_of(prompt, self.max_prompt_tokens), prompt.prompt_id))
        return losses(self.engine.forward, self.packed([first]), self.settings.objective).sum() * 0.0


def _add(sums: Tensor, losses: Tensor, packed: Packed, positions: list[int], tasks: Sequence[TaskName]) -> None:
    for loss, tree, task in zip(losses.tolist(), packed.trees, packed.tasks, strict=True):
        sums[positions[tree], tasks.index(task)] += loss


def _check_finite(sums: Tensor, batch: Sequence[Prompt], step: int) -> None:
    broken = ~torch.isfinite(sums).all(dim=1)
    if broken.any():
        raise _broken(step, "loss", [prompt for prompt, bad in zip(batch, broken.tolist(), strict=True) if bad])


def _broken(step: int, what: str, prompts: Sequence[Prompt]) -> ModelError:
    ids = sorted({prompt.prompt_id for prompt in prompts})
    return ModelError(
        f"tuning stopped at step {step}: the {what} is no finite number for prompts {ids}; the checkpoint before is "
        "kept, the same command goes on from it; lower tune.learning_rate or look at these prompts"
    )


def _mean_losses(sums: Tensor, batch: Sequence[Prompt], tasks: Sequence[TaskName]) -> dict[str, Any]:
    """The losses of a ``StepReport``, and how many questions they are means of."""
    counts = [sum(question.task == task for prompt in batch for question in prompt.questions) for task in tasks]
    by_task = sums.sum(dim=0).tolist()
    return {
        "loss": sum(by_task) / sum(counts),
        "task_losses": {task: loss / count for task, loss, count in zip(tasks, by_task, counts, strict=True) if count},
        "questions": sum(counts),
    }
