"""How likely the user likes an item next, read from the scores that ordered it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recranker.ranking.calibration import apply
from serve.source import FUSED_ROW, ServedRun


def probabilities(
    fused: NDArray[np.float64], own: Mapping[str, NDArray[np.float64]], used: Mapping[str, float], run: ServedRun
) -> NDArray[np.float64]:
    """``(items,)`` in [0, 1]: how likely each is the one liked next, given that one of them is.

    Calibrated for the scores of the run: those fused with its own weights, and those of one task alone. Where a task is
    missing or a client sets weights, the fused scores are on nearly the same scale, as weights are re-normalised, and
    are read in the same way. Nothing is lost of the order: a higher score never has a lower probability.

    Args:
        fused: ``(items,)`` the scores that decide the order.
        own: Per task that answered, ``(items,)`` its own scores.
        used: Weight of each signal that decided.
        run: For its calibrations.
    """
    rows = run.calibrations.rows
    alone = _decides_alone(len(fused), own, used, run)
    if alone is not None and alone in rows:
        return apply(rows[alone], own[alone])
    return apply(rows[FUSED_ROW[run.preset]], fused)


def _decides_alone(
    num_items: int, own: Mapping[str, NDArray[np.float64]], used: Mapping[str, float], run: ServedRun
) -> str | None:
    """The task whose own scores say more than the fused ones."""
    if num_items == 1:  # z-scores of one item are all 0, and pointwise is the only task that is asked about it
        return "pointwise" if "pointwise" in own else None
    only = next(iter(used)) if len(used) == 1 else None
    return (
        only if only in own and run.preset == "recranker" else None
    )  # the paper's utilities have an order of their own
