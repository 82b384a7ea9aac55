"""Labels shuffled: a ranker refitted on targets drawn at random must rank no better than chance.

If it does, something it learns from reads the target: a feature made from the target column, a row left where its
target stands, an evaluation that knows the answer. It costs one more fit, and no model of a leak is needed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.lookup import column
from recranker.errors import DataError, LeakageError
from recranker.evaluation.metrics import discounts_at
from recranker.randomness import keys_of, uniforms

Floats = NDArray[np.float64]

FitAndScore = Callable[[pa.Table, pa.Table], Sequence[NDArray[np.floating]]]
"""Fits on training lists, then gives a score per candidate of each evaluation list; both are rows of
``schema.CANDIDATES``, and whatever it looks at must be worked out from them anew."""

DEVIATIONS = 3.9
"""Half-width of the interval in standard deviations: chance leaves it once in ten thousand runs."""
MIN_LISTS = 20
"""Evaluation lists below which chance is too wide to tell anything."""


@dataclass(frozen=True)
class ShuffledLabels:
    """What a ranker made of shuffled labels."""

    ndcg: float
    """Mean NDCG@k over the evaluation lists."""
    lowest: float
    highest: float
    """Where chance lies."""
    lists: int

    @property
    def by_chance(self) -> bool:
        """Whether it ranks as chance does."""
        return self.lowest <= self.ndcg <= self.highest


def check_shuffled_labels(
    candidates: pa.Table, fit_and_score: FitAndScore, *, seed: int, k: int = 5, evaluate: str = "test"
) -> ShuffledLabels:
    """Shuffle the labels of all lists, refit, and require that the ranker falls to chance.

    Args:
        candidates: Rows of ``schema.CANDIDATES``; lists without their target are left out.
        fit_and_score: The ranker, from features to scores.
        seed: Keys which candidate becomes a list's target.
        k: Cutoff of NDCG@k.
        evaluate: Split whose lists are ranked; the ranker is fitted on those of split 'train'.

    Raises:
        DataError: If there are fewer than ``MIN_LISTS`` lists to rank, or scores do not fit them.
        LeakageError: If the ranker knows the shuffled targets.
    """
    shuffled = shuffle_targets(candidates, seed)
    training, ranked = (shuffled.filter(pc.equal(shuffled["split"], one)) for one in ("train", evaluate))
    if ranked.num_rows < MIN_LISTS:
        raise DataError(
            f"shuffled labels need {MIN_LISTS} lists of split {evaluate!r} that hold their target, found "
            f"{ranked.num_rows}; take more data or more candidates"
        )
    found = measured(ranked, fit_and_score(training, ranked), k=k)
    if not found.by_chance:
        raise LeakageError(
            f"with labels shuffled the ranker reaches NDCG@{k} {found.ndcg:.4f} on {found.lists} lists, chance lies "
            f"between {found.lowest:.4f} and {found.highest:.4f}: something it learns from reads the target; drop its "
            "features one by one"
        )
    return found


def shuffle_targets(candidates: pa.Table, seed: int) -> pa.Table:
    """The lists that hold their target, with a candidate drawn uniformly in its place, keyed by (seed, list)."""
    lists = candidates.filter(candidates["hit"]).combine_chunks()
    lengths = column(pc.list_value_length(lists["candidate_ids"]))
    drawn = uniforms(keys_of(lists["list_id"], seed, "shuffled labels"), 0)
    starts = np.append(0, np.cumsum(lengths))[:-1]
    chosen = starts + (drawn * lengths).astype(np.int64)
    targets = pc.list_flatten(lists["candidate_ids"]).combine_chunks().take(pa.array(chosen))
    return lists.set_column(lists.schema.get_field_index("target_id"), lists.schema.field("target_id"), targets)


def measured(ranked: pa.Table, scores: Sequence[NDArray[np.floating]], *, k: int) -> ShuffledLabels:
    """Mean NDCG@k of ``scores``, and the interval of a ranker that knows nothing of the targets.

    Such a ranker places the target of a list of n at each rank with probability 1 / n, so that mean and variance of
    its gain are known exactly. Ties are broken in favour of nobody: the target gets the mean of its ranks' gains.

    Raises:
        DataError: If there is not one score for each candidate.
    """
    lengths = column(pc.list_value_length(ranked["candidate_ids"]))
    if [len(one) for one in scores] != lengths.tolist():
        raise DataError("shuffled labels need one score per candidate of each list; return them list by list")
    means, variances, reached = np.zeros(len(lengths)), np.zeros(len(lengths)), np.zeros(len(lengths))
    discounts = np.append(discounts_at(k), np.zeros(max(int(lengths.max(initial=0)) - k, 0)))
    rows = zip(ranked["candidate_ids"].to_pylist(), ranked["target_id"].to_pylist(), scores, strict=True)
    for number, (items, target, mine) in enumerate(rows):
        possible = discounts[: len(items)]
        means[number], variances[number] = possible.mean(), possible.var()
        place = items.index(target)
        higher, same = int((mine > mine[place]).sum()), int((mine == mine[place]).sum())
        reached[number] = possible[higher : higher + same].mean()
    deviation = DEVIATIONS * float(np.sqrt(variances.sum())) / len(lengths)
    expected = float(means.mean())
    return ShuffledLabels(float(reached.mean()), expected - deviation, expected + deviation, len(lengths))
