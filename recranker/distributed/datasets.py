"""Ray Data round the plain functions: tables as datasets, and work on users whose rows meet."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from pyarrow import fs
from ray.data import Dataset

from recranker.randomness import keys_of
from recranker.schema import TableSchema
from recranker.store import Store

_READ_BYTES = 16 * 1024 * 1024
"""Bytes that one task reads, decompressed but still encoded; they may take several times as much in memory."""

BucketWork = Callable[[dict[str, pa.Table]], pa.Table]
"""From the tables of a bucket of users, by name, to result rows."""


def from_table(table: pa.Table, blocks: int) -> Dataset:
    """``table`` as a dataset of about ``blocks`` blocks."""
    size = max(1, -(-table.num_rows // blocks))
    return ray.data.from_arrow([table.slice(start, size) for start in range(0, max(1, table.num_rows), size)])


def from_store(store: Store, stage: str, table: TableSchema, columns: list[str] | None = None) -> Dataset:
    """A table of a published stage as a dataset that is read where it is used, never on the driver.

    Footers were read when the stage's files were checked, so the driver says who reads what; ``read_parquet`` would
    start an actor or two per core to find that out, each of which takes longer than reading a million rows.

    Raises:
        DataError: If the stage is missing, or a file's schema differs.
    """
    return from_files(store, store.files(stage, table), table, columns)


def from_files(store: Store, files: Sequence[str], table: TableSchema, columns: list[str] | None = None) -> Dataset:
    """As ``from_store``, of files that ``Store.files`` has given already."""
    columns = columns or table.schema.names
    pieces = list(_pieces(store.filesystem, files))
    if not pieces:
        return ray.data.from_arrow(table.schema.empty_table().select(columns))
    arguments = (store.filesystem, columns)
    return ray.data.from_arrow(pieces).map_batches(_read, fn_args=arguments, batch_size=None, batch_format="pyarrow")


def _pieces(filesystem: fs.FileSystem, files: Sequence[str]) -> Iterator[pa.Table]:
    """Row groups that one task reads, about ``_READ_BYTES`` together."""
    taken: list[dict[str, str | int]] = []
    room = _READ_BYTES
    for path in files:
        with filesystem.open_input_file(path) as file:
            found = pq.read_metadata(file)
        for number in range(found.num_row_groups):
            size = found.row_group(number).total_byte_size
            if taken and size > room:
                yield pa.Table.from_pylist(taken)
                taken, room = [], _READ_BYTES
            taken, room = [*taken, {"path": path, "row_group": number}], room - size
    if taken:
        yield pa.Table.from_pylist(taken)


def _read(piece: pa.Table, filesystem: fs.FileSystem, columns: Sequence[str]) -> Iterator[pa.Table]:
    for one in piece.to_pylist():
        with filesystem.open_input_file(one["path"]) as file, pq.ParquetFile(file) as found:
            yield found.read_row_group(one["row_group"], columns=columns, use_threads=False).select(columns)


def by_users(
    tables: Mapping[str, Dataset],
    schemas: Mapping[str, pa.Schema],
    work: BucketWork,
    buckets: int,
) -> Dataset:
    """``work`` applied to buckets of users; all rows that several tables have of a user meet in one call.

    Users go into buckets by a hash of their id. What a block has for a bucket travels as one packed value, so that
    the shuffle handles few rows whatever the tables hold; it spills to disk where memory is short.

    Args:
        tables: Datasets with a column ``user_id``, by name.
        schemas: What each holds, for buckets without a row of it.
        work: From a bucket's tables, their rows in any order, to result rows; buckets without any row are left out. It
            is called again where a worker died, with the same rows.
        buckets: How many; the result does not depend on it. Rows of one must fit a worker's memory.
    """
    packed = [
        dataset.map_batches(_pack, fn_args=(name, buckets), batch_size=None, batch_format="pyarrow")
        for name, dataset in tables.items()
    ]
    united = packed[0].union(*packed[1:]) if len(packed) > 1 else packed[0]
    together = united.repartition(buckets, keys=["bucket"])
    together.context.shuffle_input_batch_bytes = _SHUFFLED_BYTES
    together.context.shuffle_compression = "none"  # values are compressed already
    arguments = (dict(schemas), work)
    return together.map_batches(_work_on_block, fn_args=arguments, batch_size=None, batch_format="pyarrow")


def bucket_of(user_ids: pa.ChunkedArray, buckets: int) -> NDArray[np.int64]:
    """``(users,)`` number of the bucket of each, from 0."""
    return (keys_of(user_ids, "bucket of users") % np.uint64(buckets)).astype(np.int64)


_PACKED = pa.schema([("bucket", pa.int64()), ("table", pa.string()), ("rows", pa.large_binary())])
_SHUFFLED_BYTES = 64 * 1024 * 1024
"""Packed bytes that one task of the shuffle holds at a time."""
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


def _pack(rows: pa.Table, name: str, buckets: int) -> pa.Table:
    """One row per bucket: its rows of a block."""
    numbers = bucket_of(rows["user_id"], buckets)
    order = np.argsort(numbers, kind="stable")
    rows, numbers = rows.take(pa.array(order)).combine_chunks(), numbers[order]
    present = np.unique(numbers)
    begins, ends = np.searchsorted(numbers, present), np.searchsorted(numbers, present, side="right")
    values = [to_bytes(rows.slice(begin, end - begin)) for begin, end in zip(begins, ends, strict=True)]
    columns = [present, pa.repeat(name, len(values)), pa.array(values, pa.large_binary())]
    return pa.table(columns, schema=_PACKED)


def _work_on_block(packed: pa.Table, schemas: Mapping[str, pa.Schema], work: BucketWork) -> Iterator[pa.Table]:
    """A bucket after the other, so that no more than one is unpacked at a time."""
    for bucket in pc.unique(packed["bucket"]).to_pylist():
        mine = packed.filter(pc.equal(packed["bucket"], bucket))
        found = {name: [schema.empty_table()] for name, schema in schemas.items()}
        for name, value in zip(mine["table"].to_pylist(), mine["rows"], strict=True):
            rows = from_bytes(value.as_buffer())
            found[name].append(rows.select(schemas[name].names).cast(schemas[name]))
        yield work({name: pa.concat_tables(parts) for name, parts in found.items()})


def to_bytes(table: pa.Table) -> bytes:
    """``table`` as a compressed Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=_COMPRESSED) as stream:
        stream.write_table(table)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def from_bytes(packed: bytes | pa.Buffer) -> pa.Table:
    """What ``to_bytes`` was given."""
    with pa.ipc.open_stream(packed) as stream:
        return stream.read_all()
