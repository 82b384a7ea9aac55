"""MixGCF: LightGCN that learns against hard negatives, mixed from many items and from the liked one.

Shapes: ``N`` nodes, ``I`` items, ``B`` events of a batch, ``M`` negatives of an event, ``L`` layers and the input,
``D`` factors. Source: Huang et al. 2021, doi:10.1145/3447548.3467408.
"""

import torch
from torch import Tensor

from recranker.backbones.fit import FactorFit
from recranker.backbones.lightgcn import Graph, propagated_layers
from recranker.backbones.mf import bpr_loss, factor_fit, initial_embeddings, squared_norm, take

WHOLE = 128
"""Up to so many items per negative, one product with all of them is faster than looking up the negatives' rows."""


class MixGCF(torch.nn.Module):
    """Sum over the layers of the propagated embeddings; the negative of each layer is chosen and mixed by itself."""

    adjacency_NN: Tensor

    def __init__(self, graph: Graph, dim: int, layers: int, l2: float, key: tuple[str | int, ...]) -> None:
        super().__init__()
        self.initial_ND = initial_embeddings(graph.num_users + graph.num_items, dim, key)
        self.register_buffer("adjacency_NN", graph.adjacency(), persistent=False)
        self.num_users = graph.num_users
        self.layers = layers
        self.l2 = l2

    def begin_epoch(self, epoch: int) -> None:
        pass

    def loss(self, *columns: Tensor) -> Tensor:
        """BPR and L2, summed over events.

        Columns: users ``(B,)``, liked items ``(B,)``, other items ``(B, M)``, shares ``(B, L)`` of the liked item in
        the negative of each layer.
        """
        users_B, liked_B, others_BM, shares_BL = columns
        layers_LND = propagated_layers(self.initial_ND, self.adjacency_NN, self.layers)
        liked_B = liked_B + self.num_users
        users_LBD, liked_LBD, hard_LBD = [], [], []
        for layer, nodes_ND in enumerate(layers_LND):
            users_BD, liked_BD = take(nodes_ND, users_B), take(nodes_ND, liked_B)
            share_B1 = shares_BL[:, layer : layer + 1]
            chosen_B = self.num_users + hardest(nodes_ND[self.num_users :].detach(), users_BD.detach(), others_BM)
            users_LBD.append(users_BD)
            liked_LBD.append(liked_BD)
            hard_LBD.append(share_B1 * liked_BD + (1.0 - share_B1) * take(nodes_ND, chosen_B))
        pooled = [torch.stack(rows).mean(dim=0) for rows in (users_LBD, liked_LBD, hard_LBD)]
        initial = users_LBD[0], liked_LBD[0], hard_LBD[0]
        return bpr_loss(*pooled) + self.l2 * squared_norm(*initial)

    def fit(self) -> FactorFit:
        with torch.no_grad():
            layers = propagated_layers(self.initial_ND, self.adjacency_NN, self.layers)
            smoothed_ND = torch.stack(layers).mean(dim=0)
        return factor_fit(smoothed_ND[: self.num_users], smoothed_ND[self.num_users :])


def hardest(items_ID: Tensor, users_BD: Tensor, others_BM: Tensor) -> Tensor:
    """``(B,)`` which of the others is nearest to the user once mixed with the liked item (hop mixing, equation 6).

    The liked item's part is the same for all others of an event and their own part is scaled alike, so the choice
    needs inner products of the unmixed embeddings alone.
    """
    if len(items_ID) <= WHOLE * others_BM.shape[1]:
        scores_BM = (users_BD @ items_ID.T).gather(1, others_BM)
    else:
        others_BMD = take(items_ID, others_BM.reshape(-1)).view(*others_BM.shape, -1)
        scores_BM = torch.bmm(others_BMD, users_BD.unsqueeze(2)).squeeze(2)
    return others_BM.gather(1, scores_BM.argmax(dim=1, keepdim=True)).squeeze(1)
