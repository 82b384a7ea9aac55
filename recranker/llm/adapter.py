"""An adapter's folder: weights, what they were trained with, and golden answers to check them by.

A folder holds peft's own two files, ``recranker_adapter.json`` and ``golden.json``. The golden answers
are those of the trained model while it was still in memory; whoever loads the adapter, now or in
serving, must get the same ones, or must not use it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors import SafetensorError

from recranker.errors import ModelError, not_written
from recranker.llm.chat import ChatFrame
from recranker.llm.model import ADAPTER_CONFIG, LanguageModel, load_adapter, load_model, prepare_quantized
from recranker.llm.scoring import make_scorer
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.settings import Settings
from recranker.tasks.protocol import Prompt
from recranker.tasks.settings import TaskName

RECORD = "recranker_adapter.json"
GOLDEN = "golden.json"
SAME_MACHINE = {torch.float32: 1e-3, torch.bfloat16: 3e-2}
"""Greatest difference of two log-probabilities where the same kernels run, nats, per number format."""
ELSEWHERE = {torch.float32: 1e-2, torch.bfloat16: 0.3}
"""The same where kernels, backend or format may differ; bfloat16 rounds all that the output head reads."""

AnyRecord = TypeVar("AnyRecord", bound=Settings)


class AdapterRecord(Settings):
    """What an adapter was trained with."""

    model: str
    """Base model, as the settings name it."""
    frame: str
    """Digest of the chat frame the prompts stood in."""
    labels: dict[TaskName, tuple[tuple[str, ...], ...]]
    """Label sets seen, per task."""
    dtype: str
    """Number format of the trained model."""
    max_prompt_tokens: int
    """Prefix and one question at the most."""
    seed: int
    """Seed of the run."""
    tune: TuneSettings
    """How it was trained."""


class GoldenAnswer(Settings):
    """A prompt, and what the trained model made of it."""

    prompt: Prompt
    """Text, labels and items."""
    log_probabilities: tuple[tuple[float, ...], ...]
    """Per question: nats, normalised over its labels."""


class Golden(Settings):
    """Answers that a loaded adapter must reproduce."""

    dtype: Literal["float32", "bfloat16"]
    """Number format they were computed in."""
    answers: tuple[GoldenAnswer, ...] = Field(min_length=1)
    """Prompts of the training, each with its answers."""


def frame_digest(frame: ChatFrame) -> str:
    """Changes with the chat template or the tokens it becomes."""
    return hashlib.sha256(json.dumps([frame.head_ids, frame.tail_ids]).encode()).hexdigest()[:16]


def record_of(
    lm: LanguageModel, prompts: Sequence[Prompt], llm: LLMSettings, tune: TuneSettings, seed: int
) -> AdapterRecord:
    """The record of an adapter trained on ``prompts``."""
    seen = {(question.task, question.labels) for prompt in prompts for question in prompt.questions}
    labels = {task: tuple(sorted(one for name, one in seen if name == task)) for task in sorted({t for t, _ in seen})}
    return AdapterRecord(
        model=llm.model,
        frame=frame_digest(lm.frame),
        labels=labels,
        dtype=str(lm.dtype).removeprefix("torch."),
        max_prompt_tokens=llm.max_prompt_tokens,
        seed=seed,
        tune=tune,
    )


def golden_prompts(prompts: Sequence[Prompt], count: int = 3) -> list[Prompt]:
    """The first prompts of training: real text is what an adapter must be right on."""
    return list(prompts[:count])


def golden_of(lm: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[NDArray[np.float64]]]) -> Golden:
    """The golden file of a trained model's ``answers`` to ``prompts``."""
    pairs = zip(prompts, answers, strict=True)
    return Golden(
        dtype="bfloat16" if lm.dtype == torch.bfloat16 else "float32",
        answers=tuple(
            GoldenAnswer(prompt=prompt, log_probabilities=tuple(tuple(one.tolist()) for one in found))
            for prompt, found in pairs
        ),
    )


def save_adapter(lm: LanguageModel, folder: Path, record: AdapterRecord, golden: Golden) -> None:
    """Write the adapter of ``lm`` and its papers; sharded weights must have been gathered before.

    Raises:
        ModelError: If the adapter is empty or untrained, the trap of a sharded save.
        OutputError: If it cannot be written.
    """
    try:
        _write_adapter(lm, folder, record, golden)
    except (OSError, SafetensorError) as error:
        raise not_written(f"cannot write the adapter into {str(folder)!r}", error) from None


def _write_adapter(lm: LanguageModel, folder: Path, record: AdapterRecord, golden: Golden) -> None:
    if record.tune.method == "full":
        lm.model.save_pretrained(str(folder))
        lm.tokenizer.save_pretrained(str(folder))
    else:
        check_trained(lm)
        lm.model.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        _forget_base_path(folder / ADAPTER_CONFIG)
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
    (folder / GOLDEN).write_text(golden.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _forget_base_path(path: Path) -> None:
    """peft writes this machine's path of the base model, and on loading asks the hub for what it finds there."""
    values = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": None}
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_trained(lm: LanguageModel) -> None:
    """Make sure that every matrix B of the adapter has left zero, where it starts.

    Raises:
        ModelError: If one is empty, zero, or holds a number that is none.
    """
    found = {name: weight for name, weight in lm.model.named_parameters() if "lora_B" in name}
    bad = [name for name, weight in found.items() if not (weight.numel() and weight.any() and weight.isfinite().all())]
    if bad or not found:
        raise ModelError(
            f"the adapter was not trained: {len(bad)} of {len(found)} LoRA B matrices are empty, zero or not finite "
            f"{bad[:2]}; tune.learning_rate may be 0 for all its steps, or the save saw only a shard"
        )


def read_record(folder: Path) -> AdapterRecord:
    """What the adapter in ``folder`` was trained with.

    Raises:
        ModelError: If the file is missing or not as we write it.
    """
    return _read(AdapterRecord, folder / RECORD)


def check_adapter(lm: LanguageModel, folder: Path, settings: LLMSettings, *, same_machine: bool = False) -> float:
    """Make sure that ``lm``, with the adapter of ``folder`` loaded, gives the golden answers.

    Args:
        lm: Base model and adapter.
        folder: Of the adapter.
        settings: How ``lm`` is run.
        same_machine: Whether hardware and settings are those of training, which allows a far smaller difference.

    Returns:
        The greatest difference of log-probabilities found, nats.

    Raises:
        ModelError: If the chat frame is not that of training, or an answer differs.
    """
    record, golden = read_record(folder), _read(Golden, folder / GOLDEN)
    if record.frame != frame_digest(lm.frame):
        raise ModelError(
            f"{folder}: trained within another chat template than this model's; load it on {record.model!r}"
        )
    asked = settings.model_copy(update={"max_prompt_tokens": record.max_prompt_tokens})
    found = make_scorer(lm, asked).score([answer.prompt for answer in golden.answers])
    difference = max(_difference(one, answer) for one, answer in zip(found, golden.answers, strict=True))
    # ZeRO-3 computes the whole output head, a loaded model the labels' rows: in bfloat16 that rounds otherwise
    same_kernels = same_machine and (record.tune.zero_stage < 3 or lm.dtype == torch.float32)
    tolerances = SAME_MACHINE if same_kernels else ELSEWHERE
    tolerance = max(tolerances[lm.dtype], tolerances[getattr(torch, golden.dtype)])
    if not difference <= tolerance:
        raise ModelError(
            f"{folder}: the loaded adapter does not answer as the trained model did: log-probabilities differ by "
            f"{difference:.2g} nats, allowed {tolerance:g}; the files are damaged or of another base model: tune again"
        )
    return difference


def _difference(found: Sequence[NDArray[np.float64]], golden: GoldenAnswer) -> float:
    """Greatest difference of one prompt's log-probabilities; infinite where the file lacks some."""
    if [len(one) for one in found] != [len(one) for one in golden.log_probabilities]:
        return float("inf")
    pairs = zip(found, golden.log_probabilities, strict=True)
    return max(float(np.abs(one - np.array(wanted)).max()) for one, wanted in pairs)


def load_tuned(model: Path, folder: Path, settings: LLMSettings) -> LanguageModel:
    """The base model in ``model`` as the adapter in ``folder`` was trained on it, with that adapter.

    Where every weight was trained, ``folder`` holds a model of its own, and the base is not needed.

    Raises:
        ModelError: If either cannot be loaded, or the base cannot be kept in as few bits here.
    """
    tune = read_record(folder).tune
    if tune.method == "full":
        return load_model(folder, settings)
    lm = load_model(model, settings, tune.quantization)
    prepare_quantized(lm)
    load_adapter(lm, folder)
    return lm


def reload_and_check(model: Path, folder: Path, settings: LLMSettings) -> float:
    """Load base and adapter from disk and compare with the golden answers; see ``check_adapter``."""
    lm = load_tuned(model, folder, settings)
    return check_adapter(lm, folder, settings, same_machine=True)


def _read(kind: type[AnyRecord], path: Path) -> AnyRecord:
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not readable, so the adapter cannot be trusted: {error}; tune again") from None
    except ValidationError as error:
        raise ModelError(
            f"{path}: {error.error_count()} entries are not as this version writes them; tune again"
        ) from None
