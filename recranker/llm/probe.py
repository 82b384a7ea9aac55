"""A few training passes on this machine, measured: what a plan's time and memory are worth.

The passes are of made-up tokens in rows as long as the real ones, as neither time nor memory depends on what is read.
"""

import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from recranker.llm.encoding import Branch, Tree
from recranker.llm.model import LanguageModel, load_model
from recranker.llm.packing import Packed, label_logits, pack
from recranker.llm.plan import PromptTokens, Row, Speed
from recranker.llm.settings import LLMSettings, TuneSettings
from recranker.llm.training import make_trainable
from recranker.llm.training_layers import quicken
from recranker.tasks.settings import TaskName

PASSES = 3
"""The first of which is not timed: it makes buffers and is looked at for memory."""
LONG_S = 3.0
"""Of passes that take longer a single one is timed."""
TASK: TaskName = "pointwise"
"""Of made-up questions; lengths are all that matters."""


@dataclass(frozen=True)
class Measured:
    """One forward and backward pass on this machine."""

    tokens: int
    forward_s: float
    backward_s: float
    cpu_s: float
    """Of both, all threads together."""
    activation_bytes: float
    """Most that was held at any moment beside the weights."""

    @property
    def was_disturbed(self) -> bool:
        """Whether a CPU did other things in so much of the time that the wall clock says little."""
        return self.forward_s + self.backward_s > 1.3 * self.cpu_s

    def speed(self, crowd: float = 1.0) -> Speed:
        """Wall clock of a worker, of whom ``crowd`` share a core."""
        seconds = crowd / self.tokens
        return Speed((self.forward_s + self.backward_s) * seconds, self.forward_s * seconds)

    def cpu_speed(self, workers: int) -> Speed:
        """CPU seconds of all ``workers`` while each computes its share."""
        forward = self.forward_s / (self.forward_s + self.backward_s)
        return Speed(workers * self.cpu_s / self.tokens, workers * self.cpu_s * forward / self.tokens)


def cuda_memory(settings: LLMSettings) -> float | None:
    """Bytes of the CUDA device that ``settings`` would take on this machine; None where that is a CPU."""
    if settings.device == "cpu" or not torch.cuda.is_available():
        return None
    return float(torch.cuda.get_device_properties(0).total_memory)


def measure(model: Path, llm: LLMSettings, tune: TuneSettings, row: Row, *, on_pass: Callable[[], None]) -> Measured:
    """Load the model in ``model`` and compute ``row`` forward and backward, ``PASSES`` times at the most.

    Raises:
        ModelError: If the model cannot be loaded or take the adapter.
    """
    lm = load_model(model, llm, tune.quantization)
    with warnings.catch_warnings():  # of names that peft and transformers will give up
        warnings.simplefilter("ignore", FutureWarning)
        make_trainable(lm, tune, seed=0)
    quicken(lm, zero_stage=tune.zero_stage)
    packed = pack(made_up_trees(row.prompts, lm.model.config.vocab_size), lm.device)
    held = activations_held(lm, packed)
    on_pass()
    timed: list[tuple[float, float, float]] = []
    while not timed or (len(timed) < PASSES - 1 and sum(timed[0][:2]) < LONG_S):
        timed.append(_timed_pass(lm, packed))
        on_pass()
    forward_s, backward_s, cpu_s = (sum(column) / len(timed) for column in zip(*timed, strict=True))
    return Measured(packed.num_tokens, forward_s, backward_s, cpu_s, held)


def made_up_trees(prompts: Sequence[PromptTokens], vocabulary: int) -> list[Tree]:
    """Trees as long as ``prompts``, of the same made-up tokens every time."""
    random = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        found: list[int] = torch.randint(vocabulary, (count,), generator=random).tolist()
        return found

    return [
        Tree(str(number), ids(one.prefix), [Branch(ids(length), [0, 1], 0, TASK) for length in one.questions])
        for number, one in enumerate(prompts)
    ]


def _timed_pass(lm: LanguageModel, packed: Packed) -> tuple[float, float, float]:
    """Seconds forward, seconds backward, CPU seconds of both."""
    started, cpu_started = _now(lm), time.process_time()
    loss = made_up_loss(lm, packed)
    between = _now(lm)
    loss.backward()  # type: ignore[no-untyped-call]
    ended = _now(lm)
    lm.model.zero_grad()
    return between - started, ended - between, time.process_time() - cpu_started


def _now(lm: LanguageModel) -> float:
    """When everything asked for so far has been computed."""
    if lm.device.type == "cuda":
        torch.cuda.synchronize(lm.device)
    return time.perf_counter()


def made_up_loss(lm: LanguageModel, packed: Packed) -> Tensor:
    """A loss that reads the answers of all questions."""
    logits = torch.stack(label_logits(lm.model, packed))
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=lm.device))


def activations_held(lm: LanguageModel, packed: Packed) -> float:
    """Most bytes that a pass forward and backward holds at any moment beside the weights and its input."""
    if lm.device.type == "cuda":
        return _held_on_cuda(lm, packed)
    with _Meter() as meter:
        made_up_loss(lm, packed).backward()  # type: ignore[no-untyped-call]
    lm.model.zero_grad()
    return float(meter.peak)


def _held_on_cuda(lm: LanguageModel, packed: Packed) -> float:
    torch.cuda.reset_peak_memory_stats(lm.device)
    before = torch.cuda.memory_allocated(lm.device)
    made_up_loss(lm, packed).backward()  # type: ignore[no-untyped-call]
    lm.model.zero_grad()
    return float(torch.cuda.max_memory_allocated(lm.device) - before)


class _Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Most bytes of tensors made within its block that were there at any moment; no view counts by itself."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes: dict[int, int] = {}
        self._live = 0
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        given = {one.untyped_storage()._cdata for one in _tensors((args, kwargs))}
        for one in _tensors(made):
            if one.untyped_storage()._cdata not in given:
                self._count(one.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._live += self._sizes[key]
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._live -= self._sizes.pop(key)


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_iter(tree) if isinstance(one, Tensor)]
