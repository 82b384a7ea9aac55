"""LightGCN: embeddings smoothed over the graph of users and what they like.

Shapes: ``U`` users, ``I`` items, ``N = U + I`` nodes, ``B`` events of a batch, ``D`` factors.
Source: He et al. 2020, arXiv 2002.02126.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recranker.backbones.fit import FactorFit
from recranker.backbones.folds import FoldData
from recranker.backbones.mf import bpr_loss, factor_fit, initial_embeddings, squared_norm, take


@dataclass(frozen=True)
class Graph:
    """Users and the items they like."""

    users: NDArray[np.int64]
    """``(likes,)``."""
    items: NDArray[np.int64]
    """``(likes,)``."""
    num_users: int
    num_items: int

    @classmethod
    def of(cls, data: FoldData) -> "Graph":
        """Of the likes of one fold."""
        return cls(data.like_users, data.like_items, data.num_users, data.num_items)

    def adjacency(self) -> Tensor:
        """``(N, N)`` sparse CSR: 1 / sqrt(degree of user * degree of item) at each like, both ways (equation 8).

        A node without likes has an empty row. A pair that occurs twice counts once.
        """
        pairs = np.unique(self.users * self.num_items + self.items)
        users, items = pairs // self.num_items, pairs % self.num_items + self.num_users
        rows, columns = np.concatenate([users, items]), np.concatenate([items, users])
        num_nodes = self.num_users + self.num_items
        degrees = np.bincount(rows, minlength=num_nodes)
        order = np.lexsort((columns, rows))
        rows, columns = rows[order], columns[order]
        weights = (1.0 / np.sqrt(degrees[rows] * degrees[columns])).astype(np.float32)
        starts = np.concatenate([[0], np.cumsum(degrees)])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            where = torch.from_numpy(starts).int(), torch.from_numpy(columns).int()  # int32 multiplies faster
            return torch.sparse_csr_tensor(
                *where, torch.from_numpy(weights), size=(num_nodes, num_nodes), check_invariants=False
            )


class LightGCN(nn.Module):
    """Mean over the layers of the propagated embeddings; BPR on it, L2 on the initial ones."""

    adjacency_NN: Tensor

    def __init__(self, graph: Graph, dim: int, layers: int, l2: float, key: tuple[str | int, ...]) -> None:
        super().__init__()
        self.initial_ND = initial_embeddings(graph.num_users + graph.num_items, dim, key)
        self.register_buffer("adjacency_NN", graph.adjacency(), persistent=False)
        self.num_users = graph.num_users
        self.layers = layers
        self.l2 = l2

    def begin_epoch(self, epoch: int) -> None:
        pass

    def loss(self, *columns: Tensor) -> Tensor:
        """BPR and L2, summed over events; columns: users, liked items, other items."""
        users_B, liked_B, other_B = columns
        nodes_3B = torch.cat([users_B, liked_B + self.num_users, other_B + self.num_users])
        ranking = bpr_loss(*take(propagated(self.initial_ND, self.adjacency_NN, self.layers), nodes_3B).chunk(3))
        return ranking + self.l2 * squared_norm(take(self.initial_ND, nodes_3B))

    def fit(self) -> FactorFit:
        with torch.no_grad():
            smoothed_ND = smooth(self.adjacency_NN, self.initial_ND, self.layers)
        return factor_fit(smoothed_ND[: self.num_users], smoothed_ND[self.num_users :])


def propagated_layers(initial_ND: Tensor, adjacency_NN: Tensor, layers: int) -> list[Tensor]:
    """``(N, D)`` each of E, AE, AAE, ... up to ``layers``, for training."""
    found = [initial_ND]
    for _ in range(layers):
        found.append(_Hop.apply(found[-1], adjacency_NN))  # type: ignore[no-untyped-call]
    return found


def propagated(initial_ND: Tensor, adjacency_NN: Tensor, layers: int) -> Tensor:
    """``smooth`` for training."""
    smoothed_ND: Tensor = _Smooth.apply(initial_ND, adjacency_NN, layers)  # type: ignore[no-untyped-call]
    return smoothed_ND


def smooth(adjacency_NN: Tensor, initial_ND: Tensor, layers: int) -> Tensor:
    """``(N, D)`` mean of E, AE, AAE, ... up to ``layers`` (paper, equation 11 with weights 1 / (layers + 1))."""
    total_ND = initial_ND
    for _ in range(layers):
        total_ND = torch.addmm(initial_ND, adjacency_NN, total_ND)  # Horner: no layer is kept
    return total_ND / (layers + 1)


class _Smooth(torch.autograd.Function):
    """``smooth`` with its own gradient: the map is linear and symmetric, so it is its own transpose.

    Left to autograd, the backward pass would transpose the sparse matrix at every step.
    """

    @staticmethod
    def forward(ctx: Any, initial_ND: Tensor, adjacency_NN: Tensor, layers: int) -> Tensor:
        ctx.adjacency_NN, ctx.layers = adjacency_NN, layers
        return smooth(adjacency_NN, initial_ND, layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return smooth(ctx.adjacency_NN, gradients[0], ctx.layers), None, None


class _Hop(torch.autograd.Function):
    """One propagation with its own gradient, for the same reason."""

    @staticmethod
    def forward(ctx: Any, nodes_ND: Tensor, adjacency_NN: Tensor) -> Tensor:
        ctx.adjacency_NN = adjacency_NN
        return adjacency_NN @ nodes_ND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.adjacency_NN @ gradients[0], None
