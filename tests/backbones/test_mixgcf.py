"""MixGCF: the hardest negative by hand and by brute force, its loss and gradient against dense algebra."""

import numpy as np
import torch
from torch import Tensor

from recranker.backbones.lightgcn import Graph
from recranker.backbones.mixgcf import MixGCF, hardest
from tests.backbones.made_up import random_pairs


def model_of(layers: int = 2, l2: float = 0.03) -> MixGCF:
    pairs = np.array(random_pairs(7, 9, 40))
    return MixGCF(Graph(pairs[:, 0], pairs[:, 1], 7, 9), 4, layers, l2, (0,))


def batch_of(model: MixGCF, events: int = 6, negatives: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = np.random.default_rng(1)
    users, liked = random.integers(0, 7, events), random.integers(0, 9, events)
    others = random.integers(0, 9, (events, negatives))
    shares = random.random((events, model.layers + 1)).astype(np.float32)
    return tuple(torch.from_numpy(column) for column in (users, liked, others, shares))  # type: ignore[return-value]


def test_hardest_is_the_other_nearest_to_the_user_by_hand() -> None:
    nodes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [-1.0, 9.0], [2.0, 2.0]])
    users = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    others = torch.tensor([[2, 3, 4], [1, 2, 4]])
    # the first user sees 3, -1, 2; the second 2, 1, 2: of equals the first
    assert hardest(nodes, users, others).tolist() == [2, 1]


def test_shortcut_picks_what_brute_force_over_mixed_embeddings_picks() -> None:
    random = torch.Generator().manual_seed(0)
    nodes, users = torch.randn(50, 8, generator=random), torch.randn(200, 8, generator=random)
    liked = torch.randint(0, 50, (200,), generator=random)
    others = torch.randint(0, 50, (200, 16), generator=random)
    shares = torch.rand(200, 1, 1, generator=random)
    mixed = shares * nodes[liked].unsqueeze(1) + (1 - shares) * nodes[others]
    best = (mixed.double() * users.unsqueeze(1).double()).sum(dim=2).argmax(dim=1)
    expected = others[torch.arange(200), best]
    assert (hardest(nodes, users, others) == expected).all()


def dense_loss(model: MixGCF, initial: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    """The loss event by event and layer by layer, every mixed embedding made."""
    adjacency, layers = model.adjacency_NN.to_dense(), [initial]
    for _ in range(model.layers):
        layers.append(adjacency @ layers[-1])
    total = torch.zeros(())
    for user, liked, others, shares in zip(*batch, strict=True):
        negatives = []
        for nodes, share in zip(layers, shares, strict=True):
            mixed = [share * nodes[7 + liked] + (1 - share) * nodes[7 + other] for other in others]
            negatives.append(max(mixed, key=lambda one, nodes=nodes: float(one.detach() @ nodes[user].detach())))
        count = len(layers)
        user_D, liked_D = (sum(nodes[row] for nodes in layers) / count for row in (user, 7 + liked))
        margin = user_D @ (liked_D - sum(negatives) / count)
        penalty = sum(row.square().sum() for row in (initial[user], initial[7 + liked], negatives[0]))
        total = total - torch.log(torch.sigmoid(margin)) + model.l2 * penalty
    return total


def test_loss_and_gradient_agree_with_dense_algebra() -> None:
    for layers in (1, 2, 3):
        model = model_of(layers)
        batch = batch_of(model)
        loss = model.loss(*batch)
        loss.backward()
        initial = model.initial_ND.detach().clone().requires_grad_()
        expected = dense_loss(model, initial, batch)
        expected.backward()
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(model.initial_ND.grad, initial.grad)


def test_factors_are_pooled_over_the_layers() -> None:
    model = model_of(layers=3)
    dense, initial = model.adjacency_NN.to_dense(), model.initial_ND.detach()
    expected = sum(torch.linalg.matrix_power(dense, power) @ initial for power in range(4)) / 4
    fit = model.fit()
    found = np.concatenate([fit.user_factors, fit.item_factors])
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
