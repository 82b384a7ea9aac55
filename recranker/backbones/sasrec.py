"""SASRec: self-attention over the order of a user's likes predicts the next one.

Shapes: ``Q`` queries, ``I`` items, ``B`` sequences, ``T`` places, ``P`` places with an item, ``M`` negatives,
``D`` factors. Source: Kang & McAuley 2018, arXiv 1808.09781; trained with a softmax over many items in place of one
negative, as Klenitskiy & Vasilev 2023, arXiv 2309.07602, find better.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from recranker.backbones.examples import PADDING
from recranker.backbones.fit import Floats, Queries
from recranker.backbones.mf import INITIAL_SPREAD
from recranker.backbones.topk import ItemSets
from recranker.randomness import generator, key_of

QUERIES_PER_PASS = 1024
"""Histories encoded at a time."""


@dataclass(frozen=True)
class Architecture:
    """The numbers that make the network."""

    num_items: int
    dim: int
    layers: int
    heads: int
    max_length: int


class Encoder(nn.Module):
    """Histories in, one embedding per place out, in the space of the items."""

    def __init__(self, shape: Architecture, dropout: float) -> None:
        super().__init__()
        self.shape = shape
        self.items = nn.Parameter(torch.empty(shape.num_items, shape.dim))
        self.places = nn.Parameter(torch.empty(shape.max_length, shape.dim))
        self.dropout = nn.Dropout(dropout)
        block = nn.TransformerEncoderLayer(
            shape.dim, shape.heads, shape.dim, dropout, activation="relu", batch_first=True, norm_first=True
        )
        last = nn.LayerNorm(shape.dim)
        self.blocks = nn.TransformerEncoder(block, shape.layers, norm=last, enable_nested_tensor=False)

    def forward(self, items_BT: Tensor) -> Tensor:
        """``(B, T, D)``; padding stands behind a history, where the causal mask keeps it out of sight."""
        width = items_BT.shape[1]
        known_BT1 = (items_BT != PADDING).unsqueeze(2)
        rows = self.items.index_select(0, items_BT.clamp(min=0).reshape(-1)).view(*items_BT.shape, -1)
        inputs_BTD = self.dropout(rows * known_BT1 * self.shape.dim**0.5 + self.places[:width])
        mask = torch.ones(width, width, dtype=torch.bool, device=items_BT.device).triu(1)
        encoded: Tensor = self.blocks(inputs_BTD, mask=mask, is_causal=True)
        return encoded

    def last(self, histories: ItemSets) -> Floats:
        """``(Q, D)`` the embedding behind the latest like of each history; zero for an empty one."""
        found = np.zeros((len(histories.lengths), self.shape.dim), dtype=np.float32)
        device = self.items.device
        filled = np.flatnonzero(histories.lengths)
        for start in range(0, len(filled), QUERIES_PER_PASS):
            rows = filled[start : start + QUERIES_PER_PASS]
            items, lengths = latest(histories, rows, self.shape.max_length)
            with torch.no_grad():
                encoded_BTD = self(torch.from_numpy(items).to(device))
            found[rows] = encoded_BTD[torch.arange(len(rows)), torch.from_numpy(lengths - 1)].cpu().numpy()
        return found


class SASRec(nn.Module):
    """The encoder with its loss."""

    def __init__(
        self, histories: ItemSets, shape: Architecture, *, dropout: float, l2: float, key: tuple[str | int, ...]
    ) -> None:
        super().__init__()
        self.encoder = Encoder(shape, dropout)
        self.histories, self.l2, self.key = histories, l2, key
        for name, parameter in self.encoder.named_parameters():
            if name.endswith("bias"):  # torch would draw them from its own, unkeyed stream
                nn.init.zeros_(parameter)
            elif parameter.dim() > 1:  # norms keep their ones
                values = generator(*key, "initial", name).normal(0.0, _spread(name, shape), parameter.shape)
                parameter.data = torch.from_numpy(values.astype(np.float32))

    def begin_epoch(self, epoch: int) -> None:
        """Key the dropout."""
        self.train()
        torch.manual_seed(key_of(*self.key, "dropout", epoch) >> 1)

    def loss(self, *columns: Tensor) -> Tensor:
        """Cross-entropy at every place, summed and divided by ``max_length``: the same weight for each like.

        Columns: inputs and targets ``(B, T)``; and ``(B, M)`` negatives, without which all items compete.
        """
        inputs_BT, targets_BT, *negatives = columns
        known_BT = targets_BT != PADDING
        width = max(int(known_BT.any(dim=0).sum()), 1)  # nothing is computed behind the longest sequence
        inputs_BT, targets_BT, known_BT = inputs_BT[:, :width], targets_BT[:, :width], known_BT[:, :width]
        encoded_PD, targets_P = self._encoded(inputs_BT)[known_BT], targets_BT[known_BT]
        if negatives:
            losses_P = self._sampled(encoded_PD, targets_P, negatives[0].repeat_interleave(known_BT.sum(dim=1), dim=0))
        else:
            losses_P = functional.cross_entropy(encoded_PD @ self.encoder.items.T, targets_P, reduction="none")
        likes = losses_P.sum() / self.encoder.shape.max_length
        return likes + self.l2 * len(inputs_BT) * self.encoder.items.square().sum()

    def fit(self) -> "SequenceFit":
        self.eval()
        state = {name: value.detach().cpu().numpy().copy() for name, value in self.encoder.state_dict().items()}
        users = self.encoder.last(self.histories)
        return SequenceFit(self.encoder.shape, state, users, state["items"])

    def _encoded(self, inputs_BT: Tensor) -> Tensor:
        """Attention takes no empty batch: a worker without sequences encodes a row of padding and drops it."""
        size, width = inputs_BT.shape
        encoded_BTD: Tensor = self.encoder(inputs_BT if size else inputs_BT.new_full((1, width), PADDING))
        return encoded_BTD[:size]

    def _sampled(self, encoded_PD: Tensor, targets_P: Tensor, negatives_PM: Tensor) -> Tensor:
        choices = torch.cat([targets_P.unsqueeze(1), negatives_PM], dim=1)
        rows = self.encoder.items.index_select(0, choices.reshape(-1)).view(*choices.shape, -1)
        logits = torch.bmm(rows, encoded_PD.unsqueeze(2)).squeeze(2)
        again = negatives_PM == targets_P.unsqueeze(1)
        logits = logits.masked_fill(functional.pad(again, (1, 0)), float("-inf"))
        return functional.cross_entropy(logits, torch.zeros_like(targets_P), reduction="none")


@dataclass(frozen=True)
class SequenceFit:
    """The trained network; a query is scored by its own history, so it is never out of date."""

    shape: Architecture
    parameters: Mapping[str, NDArray[np.float32]]
    user_factors: Floats
    """``(U, D)`` by the training likes."""
    item_factors: Floats
    """``(I, D)``."""
    epochs: int = 0
    validation_ndcg_at_10: float = float("nan")

    def scores(self, queries: Queries) -> Floats:
        """``(Q, I)``."""
        users = self._encoder.last(queries.histories).astype(np.float64)
        return np.asarray(users @ self.item_factors.astype(np.float64).T, dtype=np.float32)

    @cached_property
    def _encoder(self) -> Encoder:
        encoder = Encoder(self.shape, 0.0)
        encoder.load_state_dict({name: torch.from_numpy(value) for name, value in self.parameters.items()})
        return encoder.eval()

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it by name, for ``from_arrays``."""
        plain = {name: np.asarray(getattr(self, name)) for name in ("user_factors", "epochs", "validation_ndcg_at_10")}
        plain["shape"] = np.array(list(vars(self.shape).values()))
        return plain | {f"parameters.{name}": value for name, value in self.parameters.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "SequenceFit":
        """What ``arrays`` gave."""
        parameters = {
            name.removeprefix("parameters."): value.astype(np.float32)
            for name, value in arrays.items()
            if name.startswith("parameters.")
        }
        return cls(
            Architecture(*(int(value) for value in arrays["shape"])),
            parameters,
            arrays["user_factors"].astype(np.float32),
            parameters["items"],
            int(arrays["epochs"]),
            float(arrays["validation_ndcg_at_10"]),
        )


def latest(
    histories: ItemSets, rows: NDArray[np.int64], max_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``(rows, T)`` the latest likes of each history from the left, ``PADDING`` behind, and how many they are."""
    ends = histories.starts[rows + 1]
    lengths = np.minimum(ends - histories.starts[rows], max_length)
    places = (ends - lengths)[:, None] + np.arange(int(lengths.max(initial=1)))
    inside = places < ends[:, None]
    items = np.where(inside, histories.items[np.minimum(places, len(histories.items) - 1)], PADDING)
    return items.astype(np.int64), lengths


def _spread(name: str, shape: Architecture) -> float:
    """Standard deviation of the first values: small for embeddings, 1 / sqrt(inputs) for weights."""
    return INITIAL_SPREAD if name in ("items", "places") else float(shape.dim**-0.5)
