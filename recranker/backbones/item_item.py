"""Item-item recommenders in closed form: EASE and neighbourhoods by cosine.

A user's score for an item is the sum, over the user's history, of a weight from each liked item to it; newer
likes may count more. Shapes: ``U`` users, ``I`` items, ``Q`` queries, ``D`` factors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csr_matrix
from scipy.sparse.linalg import svds

from recranker.backbones.fit import Floats, Queries
from recranker.backbones.folds import FoldData
from recranker.backbones.popularity import like_counts
from recranker.backbones.settings import EASESettings, ItemKNNSettings
from recranker.backbones.topk import ItemSets
from recranker.errors import SettingsError
from recranker.randomness import generator

MAX_DENSE_ITEMS = 40_000
"""Items EASE inverts a dense matrix of (6.4 GB as float32 for so many)."""
DIM = 64
"""Width of the embeddings that stand for an item-item matrix where factors are asked for."""


@dataclass(frozen=True)
class ItemFit:
    """Weights between items; a query is scored by its own history, so it is never out of date."""

    weights: NDArray[np.float32] | csr_matrix
    """``(I, I)`` from the liked item (row) to the scored one (column)."""
    decay: float
    """Weight of a like one step further back."""
    user_factors: Floats
    item_factors: Floats
    epochs: int = 0
    validation_ndcg_at_10: float = float("nan")

    def scores(self, queries: Queries) -> Floats:
        """``(Q, I)``."""
        profiles = profiles_of(queries.histories, self.weights.shape[0], self.decay)
        found = profiles @ self.weights
        return np.asarray(found.toarray() if isinstance(found, csr_matrix) else found, dtype=np.float32)


def fit_ease(data: FoldData, settings: EASESettings, key: tuple[str | int, ...]) -> ItemFit:
    """EASE: the item-item matrix with zero diagonal that best reproduces the likes under an L2 penalty.

    Raises:
        SettingsError: If the catalogue is too large for a dense matrix.

    Source: Steck 2019, arXiv 1905.03375, equations 8 and 9.
    """
    liked = np.unique(data.like_items)
    if len(liked) > MAX_DENSE_ITEMS:
        raise SettingsError(
            f"EASE inverts a dense matrix of all liked items: at most {MAX_DENSE_ITEMS}, found {len(liked)}; "
            "use kind='item_knn', or raise data.min_item_interactions"
        )
    likes = like_matrix(data)[:, liked]
    gram = (likes.T @ likes).toarray().astype(np.float32)
    gram[np.diag_indices_from(gram)] += settings.l2
    inverse = _inverse(gram)
    small = inverse / -np.diag(inverse)[None, :]
    small[np.diag_indices_from(small)] = 0.0
    weights = np.zeros((data.num_items, data.num_items), dtype=np.float32)
    weights[np.ix_(liked, liked)] = small
    return _with_factors(data, weights, settings.decay, key)


def fit_item_knn(data: FoldData, settings: ItemKNNSettings, key: tuple[str | int, ...]) -> ItemFit:
    """Cosine between the users of two items, shrunk where they are few, the nearest neighbours kept.

    Source: Deshpande & Karypis 2004, doi:10.1145/963770.963776; shrinkage as in Bell & Koren 2007,
    doi:10.1109/ICDM.2007.90.
    """
    likes = like_matrix(data)
    together = (likes.T @ likes).tocoo()
    counts = like_counts(data).astype(np.float64)
    apart = together.row != together.col
    rows, columns, both = together.row[apart], together.col[apart], together.data[apart].astype(np.float64)
    cosine = both / (np.sqrt(counts[rows] * counts[columns]) + settings.shrinkage)
    order = np.lexsort((rows, -cosine, columns))  # the nearest of each scored item first
    rows, columns, cosine = rows[order], columns[order], cosine[order]
    kept = np.arange(len(columns)) - np.searchsorted(columns, columns) < settings.neighbours
    shape = (data.num_items, data.num_items)
    weights = csr_matrix((cosine[kept].astype(np.float32), (rows[kept], columns[kept])), shape=shape)
    return _with_factors(data, weights, settings.decay, key)


def like_matrix(data: FoldData) -> csr_matrix:
    """``(U, I)`` 1 at each like."""
    ones = np.ones(len(data.like_users), dtype=np.float32)
    matrix = csr_matrix((ones, (data.like_users, data.like_items)), shape=(data.num_users, data.num_items))
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def profiles_of(histories: ItemSets, num_items: int, decay: float) -> csr_matrix:
    """``(Q, I)`` weight of each liked item: 1 for the latest like, ``decay`` for the one before, and so on."""
    lengths = histories.lengths
    back = np.repeat(histories.starts[1:], lengths) - 1 - np.arange(len(histories.items))
    weights = np.power(decay, back).astype(np.float32)
    return csr_matrix((weights, histories.items, histories.starts), shape=(len(lengths), num_items))


def _inverse(gram: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse of a symmetric positive definite matrix, by Cholesky in place."""
    factor, failed = lapack.spotrf(gram, lower=1, overwrite_a=1)
    inverse, failed = lapack.spotri(factor, lower=1, overwrite_c=1)
    assert not failed, "the diagonal makes the matrix positive definite"
    lower = np.tril(inverse)
    return np.asarray(lower + np.tril(inverse, -1).T, dtype=np.float32)


def like_factors(data: FoldData, key: tuple[str | int, ...]) -> tuple[Floats, Floats]:
    """``(U, D)`` and ``(I, D)`` embeddings from the leading singular vectors of the likes."""
    likes = like_matrix(data).astype(np.float64)
    dim = min(DIM, min(likes.shape) - 1)
    start = generator(*key, "svd").normal(size=min(likes.shape))
    left, strengths, right = svds(likes, k=dim, v0=start)
    order = np.argsort(-strengths)
    users, items = left[:, order] * strengths[order], right[order].T
    return users.astype(np.float32), items.astype(np.float32)


def _with_factors(
    data: FoldData, weights: NDArray[np.float32] | csr_matrix, decay: float, key: tuple[str | int, ...]
) -> ItemFit:
    return ItemFit(weights, decay, *like_factors(data, key))
