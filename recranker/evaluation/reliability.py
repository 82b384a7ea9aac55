"""Whether probabilities keep their word, on test lists that hold their target."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.evaluation.lists import OfferedLists, lengths_of, positions_of, refuse, unusable_scores
from recranker.evaluation.rows import row_order
from recranker.ranking.calibration import ReliabilityBin, brier_score, expected_calibration_error, reliability_table


@dataclass(frozen=True)
class Reliability:
    """What one row's probabilities are worth."""

    ece: float
    """Expected calibration error; above 0 even for true probabilities."""
    brier: float
    """Brier score over all items."""
    uninformed: float
    """Brier score of 1 / n for every item of a list of n: what a probability without knowledge gets."""
    num_lists: int
    """Lists judged."""
    bins: tuple[ReliabilityBin, ...]
    """What was said against what came, by rising probability."""


def reliabilities(lists: OfferedLists, rankings: pa.Table) -> dict[str, Reliability]:
    """By row, in reading order; a row that gives no test list with a hit probabilities is left out.

    Args:
        lists: The test users' lists.
        rankings: RANKINGS that ``compare`` has accepted.

    Raises:
        DataError: If there is not one probability in [0, 1] per candidate.
    """
    hits = lists.table.filter(pa.array(lists.hit))
    known = pc.is_in(rankings["list_id"], value_set=hits["list_id"].combine_chunks())
    stated = rankings.filter(pc.and_(known, pc.is_valid(rankings["probabilities"])))
    rows = row_order(pc.unique(stated["row"]).to_pylist())
    return {row: _reliability(hits, stated.filter(pc.equal(stated["row"], row)), row) for row in rows}


def _reliability(hits: pa.Table, stated: pa.Table, row: str) -> Reliability:
    of = hits.take(pc.index_in(stated["list_id"], value_set=hits["list_id"].combine_chunks()))
    lengths, column = lengths_of(of["candidate_ids"]), stated["probabilities"]
    why = f"row '{row}' of table 'rankings' does not give one probability in [0, 1] per candidate"
    refuse(of, unusable_scores(column, lengths), why)
    probabilities = pc.list_flatten(column).to_numpy().astype(np.float64)
    starts = np.cumsum(lengths) - lengths
    outside = (probabilities < 0.0) | (probabilities > 1.0)
    refuse(of, np.logical_or.reduceat(outside, starts), why)
    outcomes = np.zeros(len(probabilities), dtype=np.bool_)
    outcomes[starts + positions_of(of["target_id"], stated["item_ids"])] = True
    return Reliability(
        expected_calibration_error(probabilities, outcomes),
        brier_score(probabilities, outcomes),
        uninformed=brier_score(np.repeat(1.0 / lengths, lengths), outcomes),
        num_lists=len(lengths),
        bins=reliability_table(probabilities, outcomes),
    )
