"""The conventional re-ranker: a logistic regression on the lists' evidence, and the bar an LLM is held against.

Its scores are also the hint and the teacher of the LLM. In a training list they come from weights
fitted without that user's lists; validation and test lists are scored with weights of all training lists.
"""

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recranker.backbones.candidates import FoldFits
from recranker.backbones.choice import fit_choice
from recranker.backbones.events import Interactions
from recranker.backbones.evidence import FEATURES, Evidence, indices_of
from recranker.randomness import key_of
from recranker.schema import CANDIDATES

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]

PARTS = 5
"""Users are split into so many parts; each is scored with weights of the others."""
MIN_LISTS = 50
"""With fewer training lists that hold their target nothing is fitted and the retriever's scores are kept."""
L2 = 0.01


def with_reranker(
    interactions: Interactions, folds: Mapping[str, FoldFits], lists: pa.Table, seed: int
) -> tuple[pa.Table, dict[str, float]]:
    """CANDIDATES with the re-ranker's scores, and its weights per feature.

    Args:
        interactions: By index.
        folds: Per name of a fold, its data and fits.
        lists: CANDIDATES but for the re-ranker's scores.
        seed: Keys the parts.
    """
    features = _features(interactions, folds, lists)
    rows = lists.select(["user_id", "split", "hit", "target_id", "candidate_ids"]).to_pylist()
    usable = [index for index, row in enumerate(rows) if row["split"] == "train" and row["hit"]]
    targets = {index: rows[index]["candidate_ids"].index(rows[index]["target_id"]) for index in usable}
    part = {index: key_of(seed, "reranker", row["user_id"]) % PARTS for index, row in enumerate(rows)}

    def fitted(indices: list[int]) -> Floats:
        if len(indices) < MIN_LISTS:
            return np.array([float(name == "backbone_score") for name in FEATURES])
        return fit_choice([features[index] for index in indices], [targets[index] for index in indices], l2=L2)

    if len(usable) < MIN_LISTS:
        logger.warning("%d training lists hold their target, the re-ranker needs %d: none used", len(usable), MIN_LISTS)
    whole = fitted(usable)
    without = [fitted([index for index in usable if part[index] != number]) for number in range(PARTS)]
    scores = [
        (features[index] @ (without[part[index]] if row["split"] == "train" else whole)).astype(np.float32)
        for index, row in enumerate(rows)
    ]
    table = lists.append_column("reranker_scores", pa.array([one.tolist() for one in scores], pa.list_(pa.float32())))
    weights = {name: round(float(weight), 6) for name, weight in zip(FEATURES, whole, strict=True)}
    return CANDIDATES.conform(table, where="candidates"), weights


def _features(interactions: Interactions, folds: Mapping[str, FoldFits], lists: pa.Table) -> list[Floats]:
    """Per list, ``(candidates, FEATURES)``, from the evidence of the list's own fold."""
    known = {name: Evidence.of(interactions, one.data, one.retriever) for name, one in folds.items()}
    users, items = indices_of(interactions, lists)
    found: list[Floats] = []
    end = 0
    for row, user in zip(lists.to_pylist(), users.tolist(), strict=True):
        start, end = end, end + len(row["candidate_ids"])
        found.append(known[row["fold"]].features_of(row, user, items[start:end]))
    return found
