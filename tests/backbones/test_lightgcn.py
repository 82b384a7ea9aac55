"""LightGCN: propagation by hand, against dense algebra, and its gradient."""

import numpy as np
import pytest
import torch

from recranker.backbones.lightgcn import LightGCN, normalised_adjacency, smooth

# user 0 likes items 0 and 1; user 1 likes item 1; item 2 is liked by nobody
USERS, ITEMS = np.array([0, 0, 1]), np.array([0, 1, 1])


def test_adjacency_weighs_a_like_by_both_degrees() -> None:
    dense = normalised_adjacency(USERS, ITEMS, 2, 3).to_dense().numpy()
    expected = np.zeros((5, 5), np.float32)
    expected[0, 2] = expected[2, 0] = 1 / np.sqrt(2 * 1)
    expected[0, 3] = expected[3, 0] = 1 / np.sqrt(2 * 2)
    expected[1, 3] = expected[3, 1] = 1 / np.sqrt(1 * 2)
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


def test_repeated_like_counts_once() -> None:
    once = normalised_adjacency(USERS, ITEMS, 2, 3).to_dense()
    twice = normalised_adjacency(np.append(USERS, 0), np.append(ITEMS, 0), 2, 3).to_dense()
    torch.testing.assert_close(once, twice)


def test_two_layers_by_hand() -> None:
    # one number per node: users 1, 2; items 4, 8, 16
    initial = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    root = np.sqrt(2)
    first = [4 / root + 8 / 2, 8 / root, 1 / root, 1 / 2 + 2 / root, 0.0]
    second = [first[2] / root + first[3] / 2, first[3] / root, first[0] / root, first[0] / 2 + first[1] / root, 0.0]
    expected = [(e + a + b) / 3 for e, a, b in zip([1, 2, 4, 8, 16], first, second, strict=True)]
    found = smooth(normalised_adjacency(USERS, ITEMS, 2, 3), initial, 2)
    np.testing.assert_allclose(found[:, 0].numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_agrees_with_dense_mean_of_powers(layers: int) -> None:
    random = np.random.default_rng(0)
    pairs = np.unique(random.integers(0, 9 * 12, 50))
    users, items = pairs // 12, pairs % 12
    dense = np.zeros((21, 21))
    dense[users, items + 9] = dense[items + 9, users] = 1.0
    degrees = np.maximum(dense.sum(axis=1), 1)
    normalised = dense / np.sqrt(degrees[:, None] * degrees[None, :])
    initial = random.normal(size=(21, 5))
    expected = sum(np.linalg.matrix_power(normalised, power) @ initial for power in range(layers + 1)) / (layers + 1)
    found = smooth(normalised_adjacency(users, items, 9, 12), torch.from_numpy(initial.astype(np.float32)), layers)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_gradient_agrees_with_autograd_through_dense_algebra() -> None:
    model = LightGCN(USERS, ITEMS, 2, 3, dim=4, layers=2, l2=0.01, key=(0,))
    batch = torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([2, 0])
    model.loss(*batch).backward()

    initial = model.initial_ND.detach().clone().requires_grad_()
    adjacency = model.adjacency_NN.to_dense()
    mean = (initial + adjacency @ initial + adjacency @ adjacency @ initial) / 3
    users, liked, other = batch[0], batch[1] + 2, batch[2] + 2
    margins = (mean[users] * (mean[liked] - mean[other])).sum(dim=1)
    penalty = sum(initial[rows].square().sum() for rows in (users, liked, other))
    (-torch.log(torch.sigmoid(margins)).sum() + 0.01 * penalty).backward()
    torch.testing.assert_close(model.initial_ND.grad, initial.grad)
