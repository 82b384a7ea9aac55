"""SGL: LightGCN that also learns to recognise each node in two thinned-out views of the graph.

Shapes: ``U`` users, ``I`` items, ``N = U + I`` nodes, ``B`` events of a batch, ``D`` factors.
Source: Wu et al. 2021, arXiv 2010.10783.
"""

import torch
from torch import Tensor
from torch.nn import functional

from recranker.backbones.lightgcn import Graph, LightGCN, propagated
from recranker.backbones.mf import take
from recranker.backbones.settings import SGLSettings
from recranker.randomness import generator


class SGL(LightGCN):
    """The losses of LightGCN, and InfoNCE between views that leave out a share of the edges."""

    def __init__(self, graph: Graph, settings: SGLSettings, key: tuple[str | int, ...]) -> None:
        super().__init__(graph, settings.dim, settings.layers, settings.l2, key)
        self.graph, self.settings, self.key = graph, settings, key
        self.views: tuple[Tensor, ...] = ()

    def begin_epoch(self, epoch: int) -> None:
        """Two fresh views."""
        device = self.initial_ND.device
        self.views = tuple(self._thinned(epoch, view).adjacency().to(device) for view in (0, 1))

    def loss(self, *columns: Tensor) -> Tensor:
        """BPR, L2 and the weighted contrast, summed over events; columns: users, liked items, other items."""
        users_B, liked_B, _ = columns
        first_ND, second_ND = (propagated(self.initial_ND, view, self.layers) for view in self.views)
        sizes = [self.num_users, len(self.initial_ND) - self.num_users]
        contrast = torch.stack(
            [
                info_nce(one_XD, other_XD, rows_B, self.settings.temperature)
                for one_XD, other_XD, rows_B in zip(
                    torch.split(first_ND, sizes), torch.split(second_ND, sizes), (users_B, liked_B), strict=True
                )
            ]
        )
        return super().loss(*columns) + self.settings.contrast * contrast.sum()

    def _thinned(self, epoch: int, view: int) -> Graph:
        stream = generator(*self.key, "view", epoch, view)
        kept = stream.random(len(self.graph.users)) >= self.settings.edge_drop
        return Graph(self.graph.users[kept], self.graph.items[kept], self.graph.num_users, self.graph.num_items)


def info_nce(first_XD: Tensor, second_XD: Tensor, rows_B: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of finding a node of the first view among all of the second, summed over ``rows``.

    Args:
        first_XD: Nodes of one kind in the first view.
        second_XD: The same nodes in the second.
        rows_B: Which nodes to look for; one that comes several times counts as often.
        temperature: Divides the cosines.

    Source: equation 10; a node's negatives are all other nodes of its kind.
    """
    nodes_A, counts_A = torch.unique(rows_B, return_counts=True)
    anchors_AD = functional.normalize(take(first_XD, nodes_A), dim=1)
    logits_AX = anchors_AD @ functional.normalize(second_XD, dim=1).T / temperature
    losses_A: Tensor = functional.cross_entropy(logits_AX, nodes_A, reduction="none")
    return torch.dot(losses_A, counts_A.to(losses_A.dtype))
