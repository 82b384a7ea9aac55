"""Biased matrix factorisation under squared error: the guess behind the pointwise hint.

Shapes: ``U`` users, ``I`` items, ``B`` events of a batch, ``D`` factors.
Source: Koren, Bell & Volinsky 2009, doi:10.1109/MC.2009.263, equations 4 and 5.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recranker.backbones.fit import FactorFit
from recranker.backbones.mf import factor_fit, initial_embeddings, squared_norm, take


class RatingPredictor(nn.Module):
    """Global mean + user bias + item bias + inner product.

    Users and items without a rating keep a bias and embedding of zero: their guess is the mean and what the
    other side says.
    """

    seen_users: Tensor
    seen_items: Tensor

    def __init__(
        self,
        rated_users: NDArray[np.int64],
        rated_items: NDArray[np.int64],
        num_users: int,
        num_items: int,
        *,
        mean: float,
        dim: int,
        l2: float,
        key: tuple[str | int, ...],
    ) -> None:
        super().__init__()
        self.users = initial_embeddings(num_users, dim, (*key, "users"))
        self.items = initial_embeddings(num_items, dim, (*key, "items"))
        self.user_bias = nn.Parameter(torch.zeros(num_users, 1))
        self.item_bias = nn.Parameter(torch.zeros(num_items, 1))
        self.register_buffer("seen_users", _seen(rated_users, num_users))
        self.register_buffer("seen_items", _seen(rated_items, num_items))
        self.mean = mean
        self.l2 = l2

    def begin_epoch(self, epoch: int) -> None:
        pass

    def loss(self, *columns: Tensor) -> Tensor:
        """Squared error and L2, summed over events; columns: users, items, ratings."""
        users_B, items_B, ratings_B = columns
        users_BD, user_bias_B1 = take(self.users, users_B), take(self.user_bias, users_B)
        items_BD, item_bias_B1 = take(self.items, items_B), take(self.item_bias, items_B)
        guesses_B = self.mean + (users_BD * items_BD).sum(dim=1) + (user_bias_B1 + item_bias_B1).squeeze(1)
        return (ratings_B - guesses_B).square().sum() + self.l2 * squared_norm(
            users_BD, user_bias_B1, items_BD, item_bias_B1
        )

    def fit(self) -> FactorFit:
        """Factors widened by two, so that biases and mean are part of the inner product."""
        ones_U1, ones_I1 = torch.ones_like(self.user_bias), torch.ones_like(self.item_bias)
        users = torch.cat([self.users * self.seen_users, self.user_bias, ones_U1], dim=1)
        items = torch.cat([self.items * self.seen_items, ones_I1, self.item_bias + self.mean], dim=1)
        return factor_fit(users, items)


def predict_ratings(
    fit: FactorFit, users: NDArray[np.int64], items: NDArray[np.int64], *, lowest: float, highest: float
) -> NDArray[np.float32]:
    """``(pairs,)`` the guess for each pair, clipped to the rating scale."""
    return np.clip(fit.pair_scores(users, items), np.float32(lowest), np.float32(highest))


def constant_ratings(num_users: int, num_items: int, value: float) -> FactorFit:
    """A predictor that always guesses ``value``: all that can be said where feedback is implicit."""
    return FactorFit(np.ones((num_users, 1), np.float32), np.full((num_items, 1), value, np.float32))


def _seen(indices: NDArray[np.int64], count: int) -> Tensor:
    seen = np.zeros((count, 1), dtype=np.float32)
    seen[indices] = 1.0
    return torch.from_numpy(seen)
