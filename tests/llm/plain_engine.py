"""The reference for training: plain torch, one process, no clipping."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recranker.llm.model import LanguageModel
from recranker.llm.settings import TuneSettings


class PlainEngine:
    """A ``llm.training.Engine`` that may play one of several workers; keeps the gradients of the last step."""

    def __init__(self, lm: LanguageModel, settings: TuneSettings, rank: int = 0, workers: int = 1) -> None:
        self.forward: Callable[..., Any] = lm.model
        self.rank, self.workers = rank, workers
        self.trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1.0, weight_decay=settings.weight_decay)
        self.gradients: list[Tensor] = []

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> float:
        self.gradients = [weight.grad.clone() for weight in self.trained if weight.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(self.gradients))
        if not math.isfinite(norm):
            return norm
        self.optimizer.param_groups[0]["lr"] = learning_rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def total(self, values: Tensor) -> Tensor:
        return values

    def memory_gb(self) -> float:
        return 0.0
