"""LightGCN: propagation by hand, against dense algebra and torch_geometric, and its gradient."""

import numpy as np
import pytest
import torch

from recranker.backbones.lightgcn import Graph, LightGCN, propagated_layers, smooth
from tests.backbones.made_up import random_pairs

# user 0 likes items 0 and 1; user 1 likes item 1; item 2 is liked by nobody
SMALL = Graph(np.array([0, 0, 1]), np.array([0, 1, 1]), 2, 3)


def random_graph(num_users: int = 9, num_items: int = 12, likes: int = 50) -> Graph:
    pairs = np.array(random_pairs(num_users, num_items, likes))
    return Graph(pairs[:, 0], pairs[:, 1], num_users, num_items)


def test_adjacency_weighs_a_like_by_both_degrees() -> None:
    dense = SMALL.adjacency().to_dense().numpy()
    expected = np.zeros((5, 5), np.float32)
    expected[0, 2] = expected[2, 0] = 1 / np.sqrt(2 * 1)
    expected[0, 3] = expected[3, 0] = 1 / np.sqrt(2 * 2)
    expected[1, 3] = expected[3, 1] = 1 / np.sqrt(1 * 2)
    np.testing.assert_allclose(dense, expected, rtol=1e-6)


def test_repeated_like_counts_once() -> None:
    twice = Graph(np.append(SMALL.users, 0), np.append(SMALL.items, 0), 2, 3)
    torch.testing.assert_close(SMALL.adjacency().to_dense(), twice.adjacency().to_dense())


def test_two_layers_by_hand() -> None:
    # one number per node: users 1, 2; items 4, 8, 16
    initial = torch.tensor([[1.0], [2.0], [4.0], [8.0], [16.0]])
    root = np.sqrt(2)
    first = [4 / root + 8 / 2, 8 / root, 1 / root, 1 / 2 + 2 / root, 0.0]
    second = [first[2] / root + first[3] / 2, first[3] / root, first[0] / root, first[0] / 2 + first[1] / root, 0.0]
    expected = [(e + a + b) / 3 for e, a, b in zip([1, 2, 4, 8, 16], first, second, strict=True)]
    np.testing.assert_allclose(smooth(SMALL.adjacency(), initial, 2)[:, 0].numpy(), expected, rtol=1e-6)
    for layer, values in zip(propagated_layers(initial, SMALL.adjacency(), 2)[1:], (first, second), strict=True):
        np.testing.assert_allclose(layer[:, 0].numpy(), values, rtol=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_agrees_with_dense_mean_of_powers(layers: int) -> None:
    graph = random_graph()
    dense = np.zeros((21, 21))
    dense[graph.users, graph.items + 9] = dense[graph.items + 9, graph.users] = 1.0
    degrees = np.maximum(dense.sum(axis=1), 1)
    normalised = dense / np.sqrt(degrees[:, None] * degrees[None, :])
    initial = np.random.default_rng(0).normal(size=(21, 5))
    expected = sum(np.linalg.matrix_power(normalised, power) @ initial for power in range(layers + 1)) / (layers + 1)
    found = smooth(graph.adjacency(), torch.from_numpy(initial.astype(np.float32)), layers)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_gradient_agrees_with_autograd_through_dense_algebra() -> None:
    model = LightGCN(SMALL, 4, 2, 0.01, (0,))
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


@pytest.mark.parametrize("layers", [2, 3])
def test_agrees_with_torch_geometric(layers: int) -> None:
    nn = pytest.importorskip("torch_geometric.nn")
    graph, l2 = random_graph(num_users=30, num_items=40, likes=300), 0.02
    ours = LightGCN(graph, 8, layers, l2, (0,))
    users, items = torch.from_numpy(graph.users), torch.from_numpy(graph.items)
    theirs = nn.LightGCN(70, 8, layers)  # alpha is 1 / (layers + 1)
    with torch.no_grad():
        theirs.embedding.weight.copy_(ours.initial_ND)
    edges = torch.stack([torch.cat([users, items + 30]), torch.cat([items + 30, users])])
    embeddings = theirs.get_embedding(edges)
    fit = ours.fit()
    both = np.concatenate([fit.user_factors, fit.item_factors])
    np.testing.assert_allclose(both, embeddings.detach().numpy(), atol=1e-6)

    other = torch.from_numpy(np.random.default_rng(1).integers(0, 40, len(users)))
    nodes = torch.cat([users, items + 30, other + 30])
    ranks = [(embeddings[users] * embeddings[rows + 30]).sum(dim=1) for rows in (items, other)]
    expected = theirs.recommendation_loss(*ranks, node_id=nodes, lambda_reg=l2)
    loss = ours.loss(users, items, other) / len(users)  # theirs is a mean over events
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.initial_ND.grad, theirs.embedding.weight.grad)
