"""LightGCN: embeddings smoothed over the graph of users and what they like.

Shapes: ``U`` users, ``I`` items, ``N = U + I`` nodes, ``B`` events of a batch, ``D`` factors.
Source: He et al. 2020, arXiv 2002.02126.
"""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recranker.backbones.mf import bpr_loss, initial_embeddings, squared_norm, take


class LightGCN(nn.Module):
    """Mean over the layers of the propagated embeddings; BPR on it, L2 on the initial ones."""

    adjacency_NN: Tensor

    def __init__(
        self,
        like_users: NDArray[np.int64],
        like_items: NDArray[np.int64],
        num_users: int,
        num_items: int,
        *,
        dim: int,
        layers: int,
        l2: float,
        key: tuple[str | int, ...],
    ) -> None:
        super().__init__()
        self.initial_ND = initial_embeddings(num_users + num_items, dim, key)
        adjacency_NN = normalised_adjacency(like_users, like_items, num_users, num_items)
        self.register_buffer("adjacency_NN", adjacency_NN, persistent=False)
        self.num_users = num_users
        self.layers = layers
        self.l2 = l2

    def loss(self, users_B: Tensor, items_B: Tensor, third_B: Tensor) -> Tensor:
        """BPR and L2, summed over events; ``third`` holds the negative items."""
        nodes = users_B, items_B + self.num_users, third_B + self.num_users
        smoothed_ND = self._smoothed()
        ranking = bpr_loss(*(take(smoothed_ND, rows) for rows in nodes))
        return ranking + self.l2 * squared_norm(*(take(self.initial_ND, rows) for rows in nodes))

    def factors(self) -> tuple[Tensor, Tensor]:
        smoothed_ND = self._smoothed()
        return smoothed_ND[: self.num_users], smoothed_ND[self.num_users :]

    def _smoothed(self) -> Tensor:
        smoothed_ND: Tensor = _Smooth.apply(self.initial_ND, self.adjacency_NN, self.layers)  # type: ignore[no-untyped-call]
        return smoothed_ND


def normalised_adjacency(
    like_users: NDArray[np.int64], like_items: NDArray[np.int64], num_users: int, num_items: int
) -> Tensor:
    """``(N, N)`` sparse CSR: 1 / sqrt(degree of user * degree of item) at each like, both ways (paper, equation 8).

    A node without likes has an empty row. A pair that occurs twice counts once.
    """
    pairs = np.unique(like_users * num_items + like_items)
    users, items = pairs // num_items, pairs % num_items + num_users
    rows, columns = np.concatenate([users, items]), np.concatenate([items, users])
    num_nodes = num_users + num_items
    degrees = np.bincount(rows, minlength=num_nodes)
    order = np.lexsort((columns, rows))
    rows, columns = rows[order], columns[order]
    weights = (1.0 / np.sqrt(degrees[rows] * degrees[columns])).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(degrees)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        where = torch.from_numpy(starts), torch.from_numpy(columns)
        return torch.sparse_csr_tensor(
            *where, torch.from_numpy(weights), size=(num_nodes, num_nodes), check_invariants=False
        )


def smooth(adjacency_NN: Tensor, initial_ND: Tensor, layers: int) -> Tensor:
    """``(N, D)`` mean of E, AE, AAE, ... up to ``layers`` (paper, equation 11 with weights 1 / (layers + 1))."""
    total_ND = initial_ND
    for _ in range(layers):
        total_ND = initial_ND + adjacency_NN @ total_ND  # Horner: no layer is kept
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
