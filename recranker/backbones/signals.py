"""Scores of candidates as rows of SIGNALS, and back."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.schema import SIGNALS


def signal_rows(lists: pa.Table, signals: Mapping[str, NDArray[np.floating]]) -> pa.Table:
    """SIGNALS rows, one per list and signal.

    Args:
        lists: CANDIDATES, whole or without columns that no signal needs.
        signals: By name, a score of every candidate, one list after another.
    """
    lengths = pc.list_value_length(lists["candidate_ids"]).to_numpy()
    starts = pa.array(np.append(0, np.cumsum(lengths)), pa.int32())
    tables = [SIGNALS.schema.empty_table()]
    for name, scores in signals.items():
        columns = {
            "list_id": lists["list_id"],
            "signal": pa.array([name] * len(lengths), pa.string()),
            "scores": pa.ListArray.from_arrays(starts, pa.array(scores.astype(np.float32))),
        }
        tables.append(pa.table(columns, schema=SIGNALS.schema))
    return pa.concat_tables(tables)


def flat_signals(lists: pa.Table, signals: pa.Table) -> dict[str, NDArray[np.float64]]:
    """What ``signal_rows`` was given, for some or all of its lists."""
    found = {}
    for name in pc.unique(signals["signal"]).to_pylist():
        mine = signals.filter(pc.equal(signals["signal"], name)).combine_chunks()
        rows = pc.index_in(lists["list_id"], value_set=mine["list_id"].combine_chunks())
        found[name] = np.asarray(mine["scores"].take(rows).combine_chunks().flatten(), dtype=np.float64)
    return found
