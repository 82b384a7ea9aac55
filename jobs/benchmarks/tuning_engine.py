"""One worker's optimizer without DeepSpeed, so that ways to train differ in nothing but the way."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from jobs.benchmarks.own_process import peak_rss_gb
from recranker.llm.model import LanguageModel
from recranker.llm.settings import TuneSettings
from recranker.llm.training import trained_weights


class PlainEngine:
    """A ``llm.training.Engine`` of plain torch: AdamW over the adapter, gradients clipped as DeepSpeed clips them."""

    rank = 0
    workers = 1

    def __init__(self, lm: LanguageModel, settings: TuneSettings) -> None:
        self.forward: Callable[..., Any] = lm.model
        self._trained = list(trained_weights(lm).values())
        self._optimizer = torch.optim.AdamW(self._trained, lr=1.0, weight_decay=settings.weight_decay)
        self._max_norm = settings.max_grad_norm

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of ``loss``."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> float:
        """Clip, update the adapter, forget the gradients; the norm is that before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self._trained, self._max_norm)
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return float(norm)

    def total(self, values: Tensor) -> Tensor:
        """``values``, as there are no other workers."""
        return values

    def memory_gb(self) -> float:
        """Most memory of the machine that this process has held so far."""
        return peak_rss_gb()
