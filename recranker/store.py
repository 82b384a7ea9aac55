"""Where stages keep their tables, and how a stage's output becomes visible all at once.

A stage writes into ``.<stage>.partial`` beside its final folder. Publishing moves the folder and
writes ``_manifest.json`` last: a folder without a manifest is not there. The manifest says what the
output was made from, so an unchanged stage is skipped, and holds a hash of every table that
depends on its rows only, not on files, blocks or row order. A table is hashed batch by batch, so it may be larger
than memory.

A run has one folder per stage. An experiment, whose runs share stages, has one per stage and origin:
``<stage>/<key>``, so that what was made from the same settings, code and inputs is there once.
"""

import fcntl
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from recranker.errors import DataError, OutputError
from recranker.parquet import Door, ParquetLimits, not_readable, parquet_files
from recranker.row_hash import BATCH_ROWS, RowHash
from recranker.schema import SCHEMA_VERSION, TableSchema

MANIFEST = "_manifest.json"
LOCK = ".lock"
OWN_LIMITS = ParquetLimits(
    max_rows=10**12, max_row_groups=10**9, max_column_mb=10**9, max_table_mb=10**9, max_expansion=1000
)
"""Of tables that stages published: the manifest says how many rows there must be, so that only files that hold other
than they say, or far more than any stage writes, are refused."""


@dataclass(frozen=True)
class Origin:
    """What an output was made from; equal origins mean equal outputs."""

    settings: str
    """Hash of the settings that shape the output."""
    code: str
    """Hash of the sources that make it."""
    inputs: dict[str, str]
    """Fingerprint of each stage read."""
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """A name for it: equal origins, equal keys."""
        return hashlib.sha256(json.dumps(self.__dict__, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """The record of one finished stage."""

    stage: str
    origin: Origin
    tables: dict[str, dict[str, Any]]
    """Rows and logical hash of every table."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of every file that is no table (an adapter, a plot)."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and statements that later stages and people need; nothing that differs from run to run."""
    commit: str = "unknown"
    """Version control state of the code, for people."""

    @property
    def fingerprint(self) -> str:
        """Changes when a row of any table, a file or a fact changes; not with how they came about."""
        parts = [self.stage, self.tables, self.files, self.facts]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The outputs of one run's stages under one folder or object-store prefix.

    Args:
        uri: That folder or prefix.
        shared: Whether several runs share it: each stage's output lies in a folder named by its origin, and
            this object sees the outputs it was told of by ``locate``.
    """

    def __init__(self, uri: str, *, shared: bool = False) -> None:
        self.uri = uri if "://" in uri else str(Path(uri).expanduser().resolve())
        self.filesystem, self.root = fs.FileSystem.from_uri(self.uri)
        self._keys: dict[str, str] | None = {} if shared else None

    def locate(self, stage: str, origin: Origin) -> None:
        """From now on ``stage`` means its output of this origin, made or not, where the store is shared."""
        if self._keys is not None:
            self._keys[stage] = origin.key

    def folder(self, stage: str, table: str = "") -> str:
        """Path of a published stage or one of its tables, on this store's filesystem."""
        key = "" if self._keys is None else self._keys.get(stage, "unknown")
        return "/".join(part for part in (self.root, stage, key, table) if part)

    def manifest(self, stage: str) -> Manifest | None:
        """The stage's manifest, or None where the stage has not been published."""
        path = f"{self.folder(stage)}/{MANIFEST}"
        if self.filesystem.get_file_info(path).type != fs.FileType.File:
            return None
        with self.filesystem.open_input_file(path) as file:
            values = json.loads(file.read())
        return Manifest(**{**values, "origin": Origin(**values["origin"])})

    def require(self, stage: str) -> Manifest:
        """The stage's manifest.

        Raises:
            DataError: If the stage has not been run.
        """
        manifest = self.manifest(stage)
        if manifest is None:
            raise DataError(
                f"{self.uri}: stage '{stage}' has no finished output; run it first: python -m jobs.{stage} CONFIG"
            )
        return manifest

    def read(self, stage: str, table: TableSchema, columns: list[str] | None = None) -> pa.Table:
        """One table of a published stage, sorted by its key, its schema checked.

        Raises:
            DataError: If the stage is missing, a file is broken, or the schema differs.
        """
        self.files(stage, table)
        found = sort_by_key(read_folder(self.filesystem, self.folder(stage, table.name), table), table)
        return found.select(columns) if columns else found

    def files(self, stage: str, table: TableSchema) -> list[str]:
        """The Parquet files of a published stage's table, on this store's filesystem; nothing of them is loaded yet.

        Raises:
            DataError: If the stage is missing, a file is broken or holds other than it says, a schema differs, or
                there are other than the promised rows.
        """
        recorded = self.require(stage).tables.get(table.name)
        if recorded is None:
            raise DataError(f"{self.uri}/{stage}: no table '{table.name}' was published")
        folder = self.folder(stage, table.name)
        local = isinstance(self.filesystem, fs.LocalFileSystem)  # elsewhere a look at pages takes a request for each
        again = "delete the stage's folder and run it again"
        door = Door(self.filesystem, OWN_LIMITS, again, look_at_pages=local)
        files = parquet_files(self.filesystem, folder)
        rows = sum(section.rows for section in door.admit(files))
        for path in files:
            table.check(self._schema_of(path), where=path)
        if rows != recorded["rows"]:
            raise DataError(f"{folder}: manifest promises {recorded['rows']} rows, found {rows}; {again}")
        return files

    def _schema_of(self, path: str) -> pa.Schema:
        try:
            with self.filesystem.open_input_file(path) as file:
                return pq.read_schema(file)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise not_readable(path, error) from None

    @contextmanager
    def publish(self, stage: str, origin: Origin, *, commit: str = "unknown") -> Iterator["StageWriter"]:
        """A writer whose tables become the stage's output when the block ends without an error.

        Raises:
            OutputError: If the store cannot be written.
        """
        self.locate(stage, origin)
        parent, _, name = self.folder(stage).rpartition("/")
        partial = f"{parent}/.{name}.partial"
        try:
            if self.filesystem.get_file_info(partial).type != fs.FileType.NotFound:
                self.filesystem.delete_dir(partial)
            self.filesystem.create_dir(partial, recursive=True)
            self._probe(partial)
        except OSError as error:
            raise OutputError(
                f"cannot write results under {self.uri!r}: {error}; set store.home to a writable place"
            ) from None
        writer = StageWriter(self.filesystem, partial)
        yield writer
        manifest = Manifest(stage, origin, writer.describe(), writer.describe_files(), writer.facts, commit)
        self._reveal(partial, self.folder(stage), manifest)

    def _probe(self, folder: str) -> None:
        with self.filesystem.open_output_stream(f"{folder}/.probe") as file:
            file.write(b"writable")
        self.filesystem.delete_file(f"{folder}/.probe")

    def _reveal(self, partial: str, final: str, manifest: Manifest) -> None:
        if self.filesystem.get_file_info(f"{final}/{MANIFEST}").type == fs.FileType.File:
            self.filesystem.delete_file(f"{final}/{MANIFEST}")  # first, so that a kill leaves "not there"
        if self.filesystem.get_file_info(final).type != fs.FileType.NotFound:
            self.filesystem.delete_dir(final)
        if isinstance(self.filesystem, fs.LocalFileSystem):
            self.filesystem.move(partial, final)
        else:  # object stores cannot move a folder
            fs.copy_files(partial, final, source_filesystem=self.filesystem, destination_filesystem=self.filesystem)
            self.filesystem.delete_dir(partial)
        write_atomically(self.filesystem, f"{final}/{MANIFEST}", _to_json(manifest))


class StageWriter:
    """Collects a stage's tables, files and facts in its unpublished folder."""

    def __init__(self, filesystem: fs.FileSystem, folder: str) -> None:
        self.filesystem = filesystem
        self.root = folder
        self.facts: dict[str, Any] = {}
        self._schemas: dict[str, TableSchema] = {}
        self._folders: list[Path] = []

    def write(self, schema: TableSchema, table: pa.Table) -> None:
        """Write one whole table.

        Raises:
            DataError: If the table does not fit its schema.
        """
        table = schema.conform(table, where=self.folder(schema))
        path = f"{self.folder(schema)}/part-00000.parquet"
        pq.write_table(sort_by_key(table, schema), path, filesystem=self.filesystem)

    def folder(self, schema: TableSchema) -> str:
        """A fresh folder for one table's Parquet files, for writers that bring their own (Ray Data)."""
        self._schemas[schema.name] = schema
        folder = f"{self.root}/{schema.name}"
        self.filesystem.create_dir(folder, recursive=True)
        return folder

    def files(self, name: str) -> Path:
        """A local folder for files that are no tables (an adapter, a plot), published with the rest.

        Raises:
            OutputError: If the store is not on a local or mounted filesystem.
        """
        if not isinstance(self.filesystem, fs.LocalFileSystem):
            raise OutputError(
                f"folder '{name}' needs a local or mounted filesystem, got {self.root}; set store.home to one"
            )
        path = Path(self.root) / name
        path.mkdir(parents=True, exist_ok=True)
        self._folders.append(path)
        return path

    def describe(self) -> dict[str, dict[str, Any]]:
        """Rows and logical hash of every table written, in memory bounded by one row group.

        Raises:
            DataError: If a file is broken or does not fit its table's schema.
        """
        return {name: self._describe(schema) for name, schema in sorted(self._schemas.items())}

    def _describe(self, schema: TableSchema) -> dict[str, Any]:
        rows = RowHash(schema.schema)
        for path in parquet_files(self.filesystem, f"{self.root}/{schema.name}"):
            try:
                with self.filesystem.open_input_file(path) as file, pq.ParquetFile(file) as found:
                    schema.check(found.schema_arrow, where=path)
                    for batch in found.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
                        rows.add(schema.conform(pa.Table.from_batches([batch]), where=path))
            except (pa.ArrowException, OSError) as error:
                raise not_readable(path, error) from None
        return {"rows": rows.rows, "hash": rows.hexdigest()}

    def describe_files(self) -> dict[str, str]:
        """SHA-256 of every file in the folders given out by ``files``."""
        found = sorted({file for folder in self._folders for file in folder.rglob("*") if file.is_file()})
        return {str(file.relative_to(self.root)): _sha256(file) for file in found}


def read_folder(filesystem: fs.FileSystem, folder: str, schema: TableSchema) -> pa.Table:
    """All Parquet files of a folder as one table, its schema checked before anything is loaded.

    Raises:
        DataError: If a file is broken or the schema differs.
    """
    try:
        found = ds.dataset(folder, format="parquet", filesystem=filesystem)
        if not found.files:
            return schema.schema.empty_table()
        schema.check(found.schema, where=folder)
        table = schema.conform(found.to_table(), where=folder)
        table.validate(full=True)  # Arrow takes a file's word for it that text is UTF-8
        return table
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{folder}: not readable as Parquet: {error}") from None


def sort_by_key(table: pa.Table, schema: TableSchema) -> pa.Table:
    """``table`` in the order of its key, in one chunk."""
    return table.sort_by([(name, "ascending") for name in schema.key]).combine_chunks()


def logical_hash(table: pa.Table, schema: TableSchema) -> str:
    """A digest of the rows alone: the same for any file layout, block count and row order."""
    rows = RowHash(schema.schema)
    rows.add(schema.conform(table, where=schema.name))
    return rows.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``, made where it is missing, for this process alone; the hold ends with the process at the latest.

    Raises:
        OutputError: If another process holds it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write {str(folder)!r}: {error.strerror}; set store.home to a writable place"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise OutputError(f"{folder} is in use by {file.read() or 'another process'}; wait for it to end") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def write_atomically(filesystem: fs.FileSystem, path: str, text: str) -> None:
    """Write a small file so that readers see all of it or none."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        with filesystem.open_output_stream(path) as stream:  # one PUT is atomic
            stream.write(text.encode())
        return
    with _whole(Path(path)) as file:
        file.write(text.encode())


def write_table_atomically(path: Path, table: pa.Table) -> None:
    """Write one local Parquet file, with checksums, so that readers see all of it or none, even after a kill.

    Raises:
        OutputError: If it cannot be written, for instance because this node does not see the folder.
    """
    try:
        with _whole(path) as file:
            pq.write_table(table, file, write_page_checksum=True)
    except OSError as error:
        raise OutputError(
            f"cannot write {str(path)!r}: {error.strerror}; set store.home to a writable folder that all nodes share"
        ) from None


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file that stands at ``path`` once all of it is on disk."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")  # two writers of one file never meet
    with partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def outside_fingerprint(uri: str) -> str:
    """Changes when a file at ``uri`` (a file or a folder) is replaced: paths, sizes and times, not contents.

    'missing' where there is nothing; whoever reads it says so.
    """
    local = "://" not in uri
    filesystem, path = (fs.LocalFileSystem(), str(Path(uri).expanduser())) if local else fs.FileSystem.from_uri(uri)
    found = filesystem.get_file_info(path)
    if found.type == fs.FileType.NotFound:
        return "missing"
    files = (
        filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        if found.type == fs.FileType.Directory
        else [found]
    )
    seen = sorted((one.path, one.size, one.mtime_ns) for one in files if one.type == fs.FileType.File)
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_json(manifest: Manifest) -> str:
    values = {**manifest.__dict__, "origin": manifest.origin.__dict__}
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
