"""Three ways to train the same adapter on the same questions, each measured in a process of its own.

Clocks count all of a step: text to tokens, forward and backward passes, the optimizer. The model is loaded, has its
adapter and has computed a few tokens before they start.
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForSeq2Seq, PrinterCallback, TrainingArguments
from transformers import Trainer as StockTrainer

from jobs.benchmarks.own_process import peak_rss_gb
from jobs.benchmarks.tuning_engine import PlainEngine
from jobs.benchmarks.tuning_work import Work, work_of
from recranker.llm.encoding import Tree, encode_all
from recranker.llm.model import LanguageModel, load_model
from recranker.llm.objectives import losses
from recranker.llm.packing import Part, pack_parts
from recranker.llm.reports import Progress
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.shapes import shape_of
from recranker.llm.training import Trainer, batches, learning_rate, make_trainable, num_steps
from recranker.llm.training_layers import quicken
from recranker.tasks.protocol import Prompt

GEMM_ROUNDS = 3
"""Times that products are timed in a row; the median counts."""
IGNORED = -100
"""Label of a token that transformers' loss leaves out."""
STOCK_ATTENTION = "sdpa"
STOCK_BATCH = 8
"""Questions of an optimizer step of transformers' Trainer."""
WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Given:
    """What all ways train, and how."""

    model: str
    """Folder."""
    llm: LLMSettings
    tune: TuneSettings
    prompts: Sequence[Prompt]
    """With answers only."""
    seed: int
    """Of the adapter's start and the order of prompts."""

    @property
    def steps(self) -> Iterator[list[Prompt]]:
        """The prompts of each optimizer step."""
        ids = [prompt.prompt_id for prompt in self.prompts]
        for indices in batches(ids, self.tune.batch_prompts, self.tune.epochs, self.seed):
            yield [self.prompts[index] for index in indices]

    def rate(self, step: int) -> float:
        """The learning rate of ``step``, from 1."""
        total = num_steps(len(self.prompts), self.tune.batch_prompts, self.tune.epochs)
        peak, warmup = self.tune.learning_rate, self.tune.warmup_steps
        return learning_rate(step, peak=peak, warmup_steps=warmup, total_steps=total)

    def encoded(self, lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Tree]:
        """``prompts`` as trees."""
        return encode_all(prompts, lm, self.llm.max_prompt_tokens)


@dataclass(frozen=True)
class Step:
    """What was done between two looks at the clock."""

    questions: int
    tokens: int
    """Computed, padding included."""
    loss: float
    """Mean over the questions, nats."""


@dataclass(frozen=True)
class Trained:
    """One way over its steps."""

    steps: list[Step]
    cpu_s: list[float]
    """Per step, all threads together."""
    gemm_rates: list[float]
    """Multiply-adds per CPU second of float32 products as wide as the model's, before and after every step."""
    peak_rss_gb: float
    """Of the process."""
    work: Work | None = None
    """Multiply-adds that no way could do without; None where nobody asked."""


def measure_packed(given: Given) -> Trained:
    """Ours: every prompt once, all its questions behind it."""
    lm = _loaded(given)
    trainer = Trainer(
        PlainEngine(lm, given.tune), lm, given.prompts, given.tune, given.llm.max_prompt_tokens, given.seed
    )
    reports = trainer.steps(Progress())
    found = _measured(given, (Step(one.questions, one.step_tokens, one.loss) for one in reports))
    return replace(found, work=_work(given, lm))


def _work(given: Given, lm: LanguageModel) -> Work:
    shape = shape_of(given.model)
    trees = [tree for prompts in given.steps for tree in given.encoded(lm, prompts)]
    return sum((work_of(tree, shape, given.tune.lora) for tree in trees), Work(0.0, 0.0))


def measure_padded(given: Given, rows: int) -> Trained:
    """A full prompt for every question, ``rows`` to a batch, with transformers' attention; the same loss and steps."""
    lm = _loaded(given, stock=True)
    engine = PlainEngine(lm, given.tune)
    return _measured(given, _padded_steps(given, lm, engine, rows))


def _padded_steps(given: Given, lm: LanguageModel, engine: PlainEngine, rows: int) -> Iterator[Step]:
    for number, prompts in enumerate(given.steps, start=1):
        asked = _by_length(given.encoded(lm, prompts))
        loss, tokens = 0.0, 0
        for start in range(0, len(asked), rows):
            batch = asked[start : start + rows]
            ids, seen = _padded([_ids(part) for part in batch], lm.tokenizer.pad_token_id)
            found = losses(partial(_answers, engine.forward, ids, seen), pack_parts(batch), given.tune.objective)
            engine.backward(found.sum() / len(asked), last=start + rows >= len(asked))
            loss += float(found.detach().sum())
            tokens += ids.numel()
        engine.step(given.rate(number))
        yield Step(len(asked), tokens, loss / len(asked))


def _by_length(trees: Sequence[Tree]) -> list[Part]:
    """Every question with its own copy of the prefix, the longest first, so that a batch has little padding."""
    parts = [
        Part(tree, index, number, number + 1)
        for index, tree in enumerate(trees)
        for number in range(len(tree.branches))
    ]
    return sorted(parts, key=lambda part: -part.num_tokens)


def _ids(part: Part) -> list[int]:
    return part.tree.prefix_ids + part.branches[0].token_ids


def _padded(texts: Sequence[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """``(rows, longest)`` ids, padded on the left so that rows end where they answer, and 1 for what is no padding."""
    longest = max(map(len, texts))
    ids = torch.tensor([[pad] * (longest - len(text)) + text for text in texts])
    seen = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return ids, seen


def _answers(forward: Callable[..., Any], ids: Tensor, seen: Tensor, **_: Any) -> SimpleNamespace:
    """The last logits of every row, as ``losses`` reads them from a packed row: ``(1, rows, V)``.

    Args:
        forward: The model.
        ids: From ``_padded``.
        seen: From ``_padded``.
        _: The packed row, which is not used.
    """
    places = (seen.cumsum(1) - 1).clamp(min=0)
    output = forward(input_ids=ids, attention_mask=seen, position_ids=places, use_cache=False, logits_to_keep=1)
    return SimpleNamespace(logits=output.logits[:, -1][None])


def measure_trainer(given: Given, rows: int, steps: int) -> Trained:
    """transformers' own Trainer on the questions of the first ``steps`` steps, ``rows`` of them at once.

    Its loss is the cross-entropy of the answer's token over the vocabulary. Texts are tokens before the clock starts.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed, which transformers imports, would tell of its choice
    lm = _loaded(given, stock=True)
    prompts = [prompt for asked in islice(given.steps, steps) for prompt in asked]
    examples = [_example(part) for part in _by_length(given.encoded(lm, prompts))]
    collator = CountingCollator(lm.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        trainer = StockTrainer(
            lm.model,
            args=_stock_arguments(given, rows, folder),
            train_dataset=examples,  # type: ignore[arg-type]  # any sequence will do
            data_collator=collator,
        )
        trainer.remove_callback(PrinterCallback)
        return _measured(given, _stock_steps(trainer, len(examples), collator))


def _example(part: Part) -> dict[str, list[int]]:
    """The question and its answer; every other token has no label."""
    branch, ids = part.branches[0], _ids(part)
    assert branch.answer is not None, "training questions are answered"
    answer = branch.label_ids[branch.answer]
    return {
        "input_ids": [*ids, answer],
        "attention_mask": [1] * (len(ids) + 1),
        "labels": [IGNORED] * len(ids) + [answer],
    }


class CountingCollator:
    """transformers' collator, which pads a batch to its longest row, and how many tokens it has given out."""

    def __init__(self, tokenizer: Any) -> None:
        self._collate = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
        self.tokens = 0

    def __call__(self, examples: list[dict[str, list[int]]]) -> Any:
        batch = self._collate(examples)
        self.tokens += batch["input_ids"].numel()
        return batch


def _stock_arguments(given: Given, rows: int, folder: str) -> TrainingArguments:
    tune = given.tune
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=max(1, STOCK_BATCH // rows),
        num_train_epochs=1,
        learning_rate=tune.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=tune.warmup_steps,
        weight_decay=tune.weight_decay,
        max_grad_norm=tune.max_grad_norm,
        seed=given.seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def _stock_steps(trainer: StockTrainer, questions: int, collator: CountingCollator) -> Iterator[Step]:
    """All of ``train()`` as a single step: what it does inside is its own affair."""
    loss = trainer.train().training_loss
    yield Step(questions, collator.tokens, loss)


def _loaded(given: Given, *, stock: bool = False) -> LanguageModel:
    """The model with a fresh adapter, after a few tokens have gone through it.

    Args:
        given: Model and adapter.
        stock: Whether attention and layers are transformers' own.
    """
    lm = load_model(Path(given.model), given.llm)
    if stock:
        lm.model.set_attn_implementation(STOCK_ATTENTION)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers for what will have another name
        make_trainable(lm, given.tune, given.seed)
    if not stock:
        quicken(lm)
    lm.model(input_ids=torch.arange(WARM_UP_TOKENS)[None], use_cache=False).logits.sum().backward()
    lm.model.zero_grad()
    return lm


def _measured(given: Given, steps: Iterator[Step]) -> Trained:
    """Do the steps, and time the machine's own products before and after each."""
    shape = shape_of(given.model)
    widths, done, cpu_s = list(shape.linears.values()), [], []
    rates = [gemm_rate(widths, given.tune.micro_batch_tokens)]
    started = time.process_time()
    for step in steps:
        cpu_s.append(time.process_time() - started)
        done.append(step)
        rates.append(gemm_rate(widths, given.tune.micro_batch_tokens))
        started = time.process_time()
    return Trained(done, cpu_s, rates, peak_rss_gb())


def gemm_rate(widths: Sequence[tuple[int, int]], rows: int) -> float:
    """Multiply-adds per CPU second of float32 products, as this process runs them.

    Args:
        widths: Inputs and outputs of the matrices that ``rows`` rows are multiplied by, one after the other.
        rows: At once.
    """
    products = [(torch.rand(rows, wide), torch.rand(wide, out), torch.empty(rows, out)) for wide, out in widths]
    seconds = []
    for _ in range(1 + GEMM_ROUNDS):
        started = time.process_time()
        for left, right, out in products:
            torch.mm(left, right, out=out)
        seconds.append(time.process_time() - started)
    return rows * sum(wide * out for wide, out in widths) / median(seconds[1:])
