"""Parquet files that hold far more than they weigh, or other than they say."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EVENT = {"user_id": "u", "item_id": "a", "rating": 4.0, "timestamp": 10}
"""What every row says; a constant column takes almost no room."""


def constant_events(count: int) -> pa.Table:
    """``count`` equal rows."""
    columns = {name: pa.DictionaryArray.from_arrays(_zeros(count), pa.array([value])) for name, value in EVENT.items()}
    return pa.table(columns)


def claims_billions(path: Path) -> None:
    """4 billion rows by naming the same row group again and again."""
    pq.write_table(constant_events(10_000_000), path, row_group_size=10_000_000, store_schema=False)
    written = path.read_bytes()
    length = int.from_bytes(written[-8:-4], "little")
    footer, again = pq.read_metadata(path), pq.read_metadata(path)
    for _ in range(399):
        footer.append_row_groups(again)
    sink = pa.BufferOutputStream()
    footer.write_metadata_file(sink)
    path.write_bytes(written[: -8 - length] + sink.getvalue().to_pybytes()[4:])


def expands(path: Path) -> None:
    """20 million honest rows of four columns in a few hundred kB: 600 MB once they are loaded."""
    table = constant_events(10_000_000)
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        for _ in range(2):
            writer.write_table(table, row_group_size=10_000_000)


def long_text(path: Path) -> None:
    """100,000 times the same title of 1 MB, stored once: 100 GB."""
    title = pa.DictionaryArray.from_arrays(_zeros(100_000), pa.array(["x" * (1 << 20)]))
    pq.write_table(pa.table({"item_id": [f"i{n}" for n in range(100_000)], "title": title}), path, store_schema=False)


def lying_pages(path: Path, megabytes: int = 64) -> None:
    """A footer that speaks of 20,000 ratings, and a page that unpacks to many MB."""
    plain = {"use_dictionary": False, "compression": "zstd", "data_page_size": 1 << 30, "store_schema": False}
    rows = megabytes << 17  # of 8 bytes
    pq.write_table(pa.table({"rating": np.zeros(rows)}), path, row_group_size=rows, max_rows_per_page=rows, **plain)
    written, packed = path.read_bytes(), _packed(path)
    noise = np.random.default_rng(0).random(20_000)  # takes the room that the other page will need
    pq.write_table(pa.table({"rating": noise}), path, max_rows_per_page=rows, **plain)
    honest = path.read_bytes()
    assert packed < _packed(path)
    path.write_bytes(honest[:4] + written[4 : 4 + packed] + honest[4 + packed :])


def extension(path: Path) -> None:
    """A column whose type some library has registered code for."""
    kind = pa.field("rating", pa.float64(), metadata={"ARROW:extension:name": "code", "ARROW:extension:metadata": "x"})
    pq.write_table(pa.table({"rating": [4.0]}, schema=pa.schema([kind])), path)


def deep(path: Path, levels: int = 60) -> None:
    """A list in a list in a list ..."""
    kind = pa.int64()
    for _ in range(levels):
        kind = pa.struct([pa.field("a", kind)])
    pq.write_table(pa.table({"rating": pa.nulls(1, kind)}), path)


def _packed(path: Path) -> int:
    return int(pq.read_metadata(path).row_group(0).column(0).total_compressed_size)


def _zeros(count: int) -> pa.Array:
    return pa.array(np.zeros(count, dtype=np.int8))
