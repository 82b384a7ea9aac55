"""Whether a run may take the place of the one that is served: both on the same validation lists, user by user.

Lists that do not hold their target are misses for both, so only those that do were ranked. Weights and calibrations
of both runs were learned on these lists, too; test lists decide nothing here.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.errors import DataError
from recranker.evaluation.intervals import paired_bootstrap
from recranker.evaluation.lists import positions_of
from recranker.evaluation.metrics import hits_at_positions, ndcg_at_k

K = 3
"""NDCG@K decides, as in the results table."""

Verdict = Literal["better", "equal", "worse"]


@dataclass(frozen=True)
class Duel:
    """NDCG@3 of two runs on the validation lists that both ranked."""

    lists: int
    users: int
    challenger: float
    """Mean over users."""
    champion: float
    """Likewise."""
    low: float
    """2.5 % bound of the challenger's NDCG@3 minus the champion's, paired bootstrap over users."""
    high: float
    """97.5 % bound."""

    @property
    def verdict(self) -> Verdict:
        """'equal' where the interval does not tell them apart."""
        if self.low > 0.0:
            return "better"
        return "worse" if self.high < 0.0 else "equal"

    def __str__(self) -> str:
        return (
            f"validation NDCG@{K} {self.challenger:.4f} against the champion's {self.champion:.4f}, difference "
            f"{self.challenger - self.champion:+.4f} [{self.low:+.4f}, {self.high:+.4f}] over {self.users} users"
        )


def duel(
    challenger: tuple[pa.Table, str], champion: tuple[pa.Table, str], lists: pa.Table, *, samples: int, seed: int
) -> Duel:
    """How two runs compare.

    Args:
        challenger: RANKINGS of the new run, and the row of it that would be served.
        champion: The same of the run that is served.
        lists: CANDIDATES that both were made from.
        samples: Bootstrap resamples of users.
        seed: Of the resamples.

    Raises:
        DataError: If they have no validation list in common.
    """
    targets = lists.filter(pc.equal(lists["split"], "validation")).select(["list_id", "target_id"])
    ours, theirs = (_values(rankings, row, targets) for rankings, row in (challenger, champion))
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        raise DataError(
            f"the runs have ranked {len(ours)} and {len(theirs)} validation lists, none of them the same; rank both "
            "with the same seed, or with a larger ranking.max_validation_lists"
        )
    users = np.unique([user for _, user in common], return_inverse=True)[1]
    means = np.stack([_by_user([one[key] for key in common], users) for one in (ours, theirs)], axis=1)
    differences = means[:, :1] - means[:, 1:]
    ((low, high),) = paired_bootstrap(differences, samples=samples, seed=seed).tolist()
    mean, their_mean = means.mean(axis=0).tolist()
    return Duel(len(common), len(means), mean, their_mean, low, high)


def _values(rankings: pa.Table, row: str, targets: pa.Table) -> dict[tuple[str, str], float]:
    """NDCG@3 of each validation list that ``row`` ranked, by list and user."""
    chosen = pc.and_(pc.equal(rankings["split"], "validation"), pc.equal(rankings["row"], row))
    found = rankings.filter(chosen)
    where = pc.index_in(found["list_id"], value_set=targets["list_id"].combine_chunks())
    found, where = found.filter(pc.is_valid(where)), where.drop_null()
    positions = positions_of(targets["target_id"].take(where), found["item_ids"])
    hits = hits_at_positions(positions, width=K)
    values = ndcg_at_k(hits, np.ones(len(positions), dtype=np.int64), k=K)
    keys = zip(found["list_id"].to_pylist(), found["user_id"].to_pylist(), strict=True)
    return dict(zip(keys, values.tolist(), strict=True))


def _by_user(values: list[float], users: NDArray[np.int64]) -> NDArray[np.float64]:
    """``(users,)`` mean over each user's lists."""
    return np.asarray(np.bincount(users, weights=values) / np.bincount(users), dtype=np.float64)
