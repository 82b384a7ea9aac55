"""Matrix factorisation under the BPR loss.

Shapes: ``U`` users, ``I`` items, ``B`` events of a batch, ``D`` factors.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from recranker.backbones.fit import FactorFit
from recranker.randomness import generator

INITIAL_SPREAD = 0.1
"""Standard deviation of the first embeddings, as in LightGCN's published settings."""


class MF(nn.Module):
    """One embedding per user and item; score = inner product."""

    def __init__(self, num_users: int, num_items: int, *, dim: int, l2: float, key: tuple[str | int, ...]) -> None:
        super().__init__()
        self.users = initial_embeddings(num_users, dim, (*key, "users"))
        self.items = initial_embeddings(num_items, dim, (*key, "items"))
        self.l2 = l2

    def begin_epoch(self, epoch: int) -> None:
        pass

    def loss(self, *columns: Tensor) -> Tensor:
        """BPR and L2, summed over events; columns: users, liked items, other items."""
        users_B, liked_B, other_B = columns
        rows = take(self.users, users_B), take(self.items, liked_B), take(self.items, other_B)
        return bpr_loss(*rows) + self.l2 * squared_norm(*rows)

    def fit(self) -> FactorFit:
        return factor_fit(self.users, self.items)


def bpr_loss(users_BD: Tensor, liked_BD: Tensor, other_BD: Tensor) -> Tensor:
    """-ln sigmoid(score of the liked item - score of the other), summed over events.

    Source: Rendle et al. 2009, arXiv 1205.2618, section 4.1.
    """
    margins_B = (users_BD * (liked_BD - other_BD)).sum(dim=1)
    return -functional.logsigmoid(margins_B).sum()


def squared_norm(*rows: Tensor) -> Tensor:
    """Sum of squares of all entries of ``rows``."""
    return torch.stack([row.square().sum() for row in rows]).sum()


def take(table: Tensor, rows_B: Tensor) -> Tensor:
    """``(B, D)`` rows of ``table``; its gradient is far cheaper on CPUs than that of ``table[rows]``."""
    return table.index_select(0, rows_B)


def initial_embeddings(num_rows: int, dim: int, key: tuple[str | int, ...]) -> nn.Parameter:
    """``(num_rows, dim)`` keyed normal numbers, the same on every worker."""
    values = generator(*key, "initial").normal(0.0, INITIAL_SPREAD, (num_rows, dim))
    return nn.Parameter(torch.from_numpy(values.astype(np.float32)))


def factor_fit(users_UD: Tensor, items_ID: Tensor) -> FactorFit:
    """The recommender whose score is the inner product of these embeddings."""
    users, items = (table.detach().cpu().numpy().copy() for table in (users_UD, items_ID))
    return FactorFit(users, items)
