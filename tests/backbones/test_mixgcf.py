"""MixGCF: the hardest negative by hand and by brute force, its loss and gradient against dense algebra."""

import numpy as np
import pytest
import torch
from torch import Tensor

from recranker.backbones import mixgcf
from recranker.backbones.lightgcn import Graph
from recranker.backbones.mixgcf import MixGCF, hardest
from tests.backbones.made_up import random_pairs

USERS = 7
both_ways = pytest.mark.parametrize("whole", [0, 10**6], ids=["looked-up", "whole-catalogue"])


def model_of(layers: int = 2, l2: float = 0.03) -> MixGCF:
    pairs = np.array(random_pairs(USERS, 9, 40))
    return MixGCF(Graph(pairs[:, 0], pairs[:, 1], USERS, 9), 4, layers, l2, (0,))


def batch_of(model: MixGCF, events: int = 6, negatives: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    random = np.random.default_rng(1)
    users, liked = random.integers(0, USERS, events), random.integers(0, 9, events)
    others = random.integers(0, 9, (events, negatives))
    shares = random.random((events, negatives, model.layers + 1)).astype(np.float32)
    return tuple(torch.from_numpy(column) for column in (users, liked, others, shares))  # type: ignore[return-value]


@both_ways
def test_hardest_is_the_mixed_negative_nearest_to_the_user_by_hand(whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixgcf, "WHOLE", whole)
    items = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [-1.0, 9.0], [2.0, 2.0]])
    users, liked = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[4.0, 7.0], [8.0, 0.0]])
    others = torch.tensor([[2, 3, 4], [1, 2, 4]])
    unmixed = torch.zeros(2, 3)
    # the first user sees 3, -1, 2; the second 2, 1, 2: of equals the first
    assert hardest(items, users, liked, others, unmixed).tolist() == [[0], [0]]
    shares = torch.tensor([[0.0, 0.5, 0.9], [0.9, 0.0, 0.5]])
    # the liked items are worth 4 and 0: 3, 4 / 2 - 1 / 2, 0.9 * 4 + 0.1 * 2 = 3.8; and 0.1 * 2, 1, 2 / 2 = 1
    assert hardest(items, users, liked, others, shares).tolist() == [[2], [1]]


@both_ways
def test_shortcut_picks_what_brute_force_over_mixed_embeddings_picks(
    whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixgcf, "WHOLE", whole)
    random = torch.Generator().manual_seed(0)
    items, users = torch.randn(50, 8, generator=random), torch.randn(200, 8, generator=random)
    places = torch.randint(0, 50, (200, 1), generator=random)
    liked = items[places.squeeze(1)]
    others = (places + torch.randint(1, 50, (200, 16), generator=random)) % 50  # mixed with itself, any share is equal
    shares = torch.rand(200, 16, generator=random)
    mixed = shares.unsqueeze(2) * liked.unsqueeze(1) + (1 - shares).unsqueeze(2) * items[others]
    expected = (mixed.double() * users.unsqueeze(1).double()).sum(dim=2).argmax(dim=1)
    assert (hardest(items, users, liked, others, shares).squeeze(1) == expected).all()


def dense_loss(model: MixGCF, initial: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
    """The loss event by event and layer by layer, every mixed embedding made."""
    adjacency, layers = model.adjacency_NN.to_dense(), [initial]
    for _ in range(model.layers):
        layers.append(adjacency @ layers[-1])
    total = torch.zeros(())
    for user, liked, others, shares in zip(*batch, strict=True):
        user_D, liked_D = (sum(nodes[row] for nodes in layers) / len(layers) for row in (user, USERS + liked))
        hard, chosen = [], []
        for layer, nodes in enumerate(layers):
            mixed = [
                share * nodes[USERS + liked] + (1 - share) * nodes[USERS + other]
                for other, share in zip(others, shares[:, layer], strict=True)
            ]
            place = max(range(len(mixed)), key=lambda one, mixed=mixed: (mixed[one].detach() @ user_D.detach()).item())
            hard.append(mixed[place])
            chosen.append(others[place])
        margin = user_D @ (liked_D - sum(hard) / len(layers))
        penalty = sum(initial[row].square().sum() for row in (user, USERS + liked, USERS + chosen[0]))
        total = total - torch.log(torch.sigmoid(margin)) + model.l2 * penalty
    return total


@both_ways
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_loss_and_gradient_agree_with_dense_algebra(layers: int, whole: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixgcf, "WHOLE", whole)
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
