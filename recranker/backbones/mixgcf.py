"""MixGCF: LightGCN that learns against hard negatives, mixed from many items and from the liked one.

Shapes: ``N`` nodes, ``I`` items, ``B`` events of a batch, ``M`` negatives of an event, ``L`` layers and the input,
``D`` factors. Source: Huang et al. 2021, doi:10.1145/3447548.3467408.
"""

import torch
from torch import Tensor

from recranker.backbones.lightgcn import LightGCN, propagated_layers
from recranker.backbones.mf import bpr_loss, squared_norm, take

WHOLE = 128
"""Up to so many items per negative, one product with all of them is faster than looking up the negatives' rows."""


class MixGCF(LightGCN):
    """The mean over layers of the propagated embeddings; the negative of each layer is chosen and mixed by itself."""

    def loss(self, *columns: Tensor) -> Tensor:
        """BPR and L2, summed over events.

        Columns: users ``(B,)``, liked items ``(B,)``, other items ``(B, M)``, shares ``(B, M, L)`` of the liked item
        in each mixed negative of each layer.
        """
        users_B, liked_B, others_BM, shares_BML = columns
        layers_LND = propagated_layers(self.initial_ND, self.adjacency_NN, self.layers)
        users_BD = torch.stack([take(nodes_ND, users_B) for nodes_ND in layers_LND]).mean(dim=0)
        liked_LBD, hard_LBD = [], []
        for layer, nodes_ND in enumerate(layers_LND):
            items_ID = nodes_ND[self.num_users :]
            liked_BD, shares_BM = take(items_ID, liked_B), shares_BML[:, :, layer]
            place_B1 = hardest(items_ID.detach(), users_BD.detach(), liked_BD.detach(), others_BM, shares_BM)
            share_B1, chosen_B = shares_BM.gather(1, place_B1), others_BM.gather(1, place_B1).squeeze(1)
            chosen_BD = take(items_ID, chosen_B)
            liked_LBD.append(liked_BD)
            hard_LBD.append(share_B1 * liked_BD + (1.0 - share_B1) * chosen_BD)
            if layer == 0:
                penalty = squared_norm(take(nodes_ND, users_B), liked_BD, chosen_BD)
        pooled = [torch.stack(rows).mean(dim=0) for rows in (liked_LBD, hard_LBD)]
        return bpr_loss(users_BD, *pooled) + self.l2 * penalty


def hardest(items_ID: Tensor, users_BD: Tensor, liked_BD: Tensor, others_BM: Tensor, shares_BM: Tensor) -> Tensor:
    """``(B, 1)`` place of the mixed negative that is nearest to the user (hop mixing, equation 6).

    Mixing is linear, so the inner products of the mixed embeddings follow from those of their parts, and no mixed
    embedding but the chosen one is ever made.
    """
    if len(items_ID) <= WHOLE * others_BM.shape[1]:
        scores_BM = (users_BD @ items_ID.T).gather(1, others_BM)
    else:
        others_BMD = take(items_ID, others_BM.reshape(-1)).view(*others_BM.shape, -1)
        scores_BM = torch.bmm(others_BMD, users_BD.unsqueeze(2)).squeeze(2)
    liked_B1 = (users_BD * liked_BD).sum(dim=1, keepdim=True)
    return torch.lerp(scores_BM, liked_B1, shares_BM).argmax(dim=1, keepdim=True)
