"""SGL: the contrastive loss by hand and against plain algebra, and the thinned views."""

import numpy as np
import pytest
import torch
from torch import Tensor

from recranker.backbones.lightgcn import Graph, LightGCN
from recranker.backbones.settings import SGLSettings
from recranker.backbones.sgl import SGL, info_nce
from tests.backbones.made_up import random_pairs

KEY = (0, "sgl")


def graph_of(num_users: int = 40, num_items: int = 50, likes: int = 800) -> Graph:
    pairs = np.array(random_pairs(num_users, num_items, likes))
    return Graph(pairs[:, 0], pairs[:, 1], num_users, num_items)


def edges(view: Tensor) -> set[tuple[int, int]]:
    rows, columns = view.to_dense().nonzero(as_tuple=True)
    return {(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if row < column}


def test_contrast_of_two_nodes_by_hand() -> None:
    first = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    second = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    # cosines of node 0: 1 and 1/sqrt(2); of node 1: 0 and 1/sqrt(2); temperature 0.5 doubles them
    root = np.sqrt(2)
    of_first = -np.log(np.exp(2) / (np.exp(2) + np.exp(root)))
    of_second = -np.log(np.exp(root) / (1 + np.exp(root)))
    assert info_nce(first, second, torch.tensor([0]), 0.5).item() == pytest.approx(of_first, rel=1e-5)
    both = info_nce(first, second, torch.tensor([0, 1, 1]), 0.5).item()
    assert both == pytest.approx(of_first + 2 * of_second, rel=1e-5)


def test_loss_is_that_of_lightgcn_and_the_contrast_of_both_kinds_of_nodes() -> None:
    graph, settings = graph_of(6, 8, 30), SGLSettings(dim=4, edge_drop=0.3, contrast=0.7, temperature=0.4)
    model = SGL(graph, settings, KEY)
    model.begin_epoch(1)
    batch = torch.tensor([0, 3, 3]), torch.tensor([1, 7, 2]), torch.tensor([4, 0, 5])
    plain = LightGCN(graph, 4, settings.layers, settings.l2, KEY).loss(*batch)

    initial = model.initial_ND.detach()
    views = []
    for view in model.views:
        dense = view.to_dense()
        smoothed = (initial + dense @ initial + dense @ dense @ initial) / 3
        views.append(smoothed / smoothed.norm(dim=1, keepdim=True))
    expected = 0.0
    for rows, kind in ((batch[0], slice(0, 6)), (batch[1], slice(6, 14))):
        odds = torch.exp(views[0][kind] @ views[1][kind].T / 0.4)
        expected += sum(-torch.log(odds[row, row] / odds[row].sum()) for row in rows.tolist())
    torch.testing.assert_close(model.loss(*batch).detach(), (plain + 0.7 * expected).detach())


def test_views_leave_out_the_stated_share_and_differ_by_view_and_epoch() -> None:
    graph = graph_of()
    model = SGL(graph, SGLSettings(edge_drop=0.25), KEY)
    found = []
    for epoch in (1, 2):
        model.begin_epoch(epoch)
        found += [edges(view) for view in model.views]
    everything = set(zip(graph.users.tolist(), (graph.items + 40).tolist(), strict=True))
    for one in found:
        assert one < everything
        assert len(one) == pytest.approx(0.75 * len(everything), rel=0.08)
    for one, other in [(0, 1), (2, 3), (0, 2), (1, 3)]:
        assert len(found[one] & found[other]) == pytest.approx(0.75**2 * len(everything), rel=0.1)  # independent


def test_a_view_is_weighed_by_its_own_degrees() -> None:
    model = SGL(graph_of(), SGLSettings(edge_drop=0.5), KEY)
    model.begin_epoch(1)
    dense = model.views[0].to_dense()
    degrees = (dense > 0).sum(dim=1).double().clamp(min=1)
    expected = (dense > 0) / torch.sqrt(degrees[:, None] * degrees[None, :])
    torch.testing.assert_close(dense, expected.float())


def test_every_worker_draws_the_same_views() -> None:
    graph = graph_of()
    one, other = (SGL(graph, SGLSettings(edge_drop=0.3), KEY) for _ in range(2))
    one.begin_epoch(1)  # a worker that joins later has not drawn this one
    for model in (one, other):
        model.begin_epoch(2)
    for view, twin in zip(one.views, other.views, strict=True):
        assert edges(view) == edges(twin)


def test_without_thinning_each_node_is_compared_with_itself() -> None:
    model = SGL(graph_of(), SGLSettings(edge_drop=0.0), KEY)
    model.begin_epoch(1)
    for view in model.views:
        torch.testing.assert_close(view.to_dense(), model.adjacency_NN.to_dense())
