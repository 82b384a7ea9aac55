"""The BPR loss and matrix factorisation."""

import numpy as np
import pytest
import torch

from recranker.backbones.mf import MF, bpr_loss


def test_bpr_loss_by_hand() -> None:
    users = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    liked = torch.tensor([[3.0, 5.0], [1.0, 1.0]])
    other = torch.tensor([[1.0, 9.0], [1.0, 2.0]])
    # margins: 1 * (3 - 1) = 2 and 2 * (1 - 2) = -2
    expected = -np.log(1 / (1 + np.exp(-2))) - np.log(1 / (1 + np.exp(2)))
    assert bpr_loss(users, liked, other).item() == pytest.approx(expected)


def test_loss_adds_the_squared_norm_of_the_batch_only() -> None:
    model = MF(3, 4, dim=2, l2=0.5, key=(0,))
    batch = torch.tensor([1]), torch.tensor([2]), torch.tensor([3])
    rows = model.users[1], model.items[2], model.items[3]
    expected = bpr_loss(*(row[None] for row in rows)) + 0.5 * sum((row**2).sum() for row in rows)
    torch.testing.assert_close(model.loss(*batch), expected)


def test_first_embeddings_depend_on_the_key_only() -> None:
    one, same, other = (MF(5, 5, dim=3, l2=0.0, key=(seed, "x")) for seed in (1, 1, 2))
    torch.testing.assert_close(one.users, same.users, rtol=0, atol=0)
    assert not torch.allclose(one.users, other.users)
    assert not torch.allclose(one.users, one.items)
