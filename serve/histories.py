"""Where histories and candidates of users are kept: one SQLite file beside a run's stages, or Redis.

Both hold the same: per user a record of item ids, per item its title, and what all that was made from.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import NamedTuple, Protocol
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

from recranker.errors import DataError, OutputError
from recranker.settings import Settings
from recranker.store import Store
from recranker.tasks.instructions import titles_by_id
from recranker.tasks.settings import InstructSettings
from recranker.tasks.user_records import Shown, Tally, UserHistory, UserList, histories, lists_to_rank
from serve.settings import MAX_DEMO_USERS

FORMAT = 1
"""Of what is kept; raise it when something in it changes its meaning."""
FILE = "users/users.sqlite"
"""In the folder of stage 'publish'."""
STAGES = ("prepare", "backbone")
"""What it is made from."""
POPULAR = 1000
"""Most popular items kept: more than a user has met of them."""
AGAIN = "run it again: python -m jobs.publish CONFIG"

_TABLES = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (item_id TEXT PRIMARY KEY, title TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE histories (user_id TEXT PRIMARY KEY, entries TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE lists (
    user_id TEXT PRIMARY KEY, before INTEGER NOT NULL, list_id TEXT NOT NULL, candidates TEXT NOT NULL
) WITHOUT ROWID;
"""
_NEWEST = """
INSERT INTO lists VALUES (?, ?, ?, ?) ON CONFLICT (user_id) DO UPDATE
SET before = excluded.before, list_id = excluded.list_id, candidates = excluded.candidates
WHERE excluded.before > before OR (excluded.before = before AND excluded.list_id < list_id)
"""
_ALL = """
SELECT user_id, entries, candidates FROM histories LEFT JOIN lists USING (user_id) UNION ALL
SELECT user_id, '[]', candidates FROM lists WHERE user_id NOT IN (SELECT user_id FROM histories)
"""
_AT_A_TIME = 500
"""Values of one statement; SQLite takes 999 everywhere."""


class LookupFailedError(Exception):
    """The store cannot be asked just now, or holds what it must not; no user id in the message."""


class StoreAwayError(DataError):
    """The store does not answer; it may later."""


class StoredList(NamedTuple):
    """A user's candidates, best first by the retriever; see ``UserList``."""

    item_ids: list[str]
    backbone_scores: list[float]
    hint_scores: list[float] | None
    predicted_ratings: list[float] | None


@dataclass(frozen=True)
class Record:
    """What is kept of one user."""

    entries: list[tuple[str, bool]]
    """Items and whether they were liked, oldest first."""
    candidates: StoredList | None
    """None for a user the retriever made no list for."""

    @classmethod
    def of(cls, entries: str, candidates: str | None) -> "Record":
        """The record of two columns.

        Raises:
            LookupFailedError: If they are broken.
        """
        try:
            found = json.loads(candidates) if candidates is not None else None
            history = [(str(item_id), bool(liked)) for item_id, liked in json.loads(entries)]
            return cls(history, None if found is None else StoredList(*found))
        except (ValueError, TypeError) as error:
            raise LookupFailedError(f"a record is broken, {type(error).__name__}; {AGAIN}") from None


class Meta(Settings):
    """What a store says of itself."""

    format: int
    """``FORMAT`` of the version that wrote it."""
    made_from: dict[str, str]
    """Fingerprints of the stages, and how much of a history prompts show."""
    popular: tuple[tuple[str, int], ...]
    """Items with the most training likes, and how many."""
    demo_users: tuple[str, ...]
    """Ids of users worth showing."""


class UserStore(Protocol):
    """Answers from any thread."""

    def meta(self) -> Meta:
        """What it says of itself.

        Raises:
            DataError: If it is not there, or not of this version.
        """
        ...

    def find(self, user_id: str) -> Record | None:
        """The user's record, None where there is none.

        Raises:
            LookupFailedError: If it cannot be asked.
        """
        ...

    def titles(self, item_ids: Sequence[str]) -> dict[str, str]:
        """Titles of those items that have one.

        Raises:
            LookupFailedError: If it cannot be asked.
        """
        ...

    def close(self) -> None:
        """Let go of file or connections."""
        ...


class SqliteUsers:
    """The file that ``jobs.publish`` writes; it is never changed, so it is read without any lock on it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = Lock()  # a look takes tens of microseconds, less than a connection per thread is worth
        if not Path(path).is_file():
            raise DataError(f"{path}: no such file; write it: python -m jobs.publish CONFIG")
        where = f"file:{quote(str(Path(path).resolve()))}?mode=ro&immutable=1"
        self._connection = sqlite3.connect(where, uri=True, check_same_thread=False, isolation_level=None)

    def meta(self) -> Meta:
        """See ``UserStore``."""
        try:
            with self._lock:
                rows = dict(self._connection.execute("SELECT name, value FROM meta"))
        except sqlite3.Error as error:
            raise DataError(f"{self.path}: not readable: {error}; {AGAIN}") from None
        return meta_of(rows, self.path)

    def find(self, user_id: str) -> Record | None:
        """See ``UserStore``."""
        entries = self._first("SELECT entries FROM histories WHERE user_id = ?", user_id)
        candidates = self._first("SELECT candidates FROM lists WHERE user_id = ?", user_id)
        return None if entries is None and candidates is None else Record.of(entries or "[]", candidates)

    def titles(self, item_ids: Sequence[str]) -> dict[str, str]:
        """See ``UserStore``."""
        found: dict[str, str] = {}
        for some, marks in _some_at_a_time(item_ids):
            rows = self._rows(f"SELECT item_id, title FROM items WHERE item_id IN ({marks})", some)
            found |= {item_id: title for item_id, title in rows}
        return found

    def everything(self) -> Iterator[tuple[str, str, str | None]]:
        """User id, entries and candidates of every user, as they are kept."""
        yield from self._connection.execute(_ALL)

    def items(self) -> Iterator[tuple[str, str]]:
        """Id and title of every item."""
        yield from self._connection.execute("SELECT item_id, title FROM items")

    def count(self, table: str) -> int:
        """Rows of ``table``."""
        return int(self._rows(f"SELECT count(*) FROM {table}", ())[0][0])

    def close(self) -> None:
        """See ``UserStore``."""
        self._connection.close()

    def _first(self, statement: str, value: str) -> str | None:
        rows = self._rows(statement, (value,))
        return rows[0][0] if rows else None

    def _rows(self, statement: str, values: Sequence[str]) -> list[tuple[str, ...]]:
        try:
            with self._lock:
                return self._connection.execute(statement, tuple(values)).fetchall()
        except (sqlite3.Error, UnicodeError) as error:
            raise LookupFailedError(f"{type(error).__name__} of the file of users") from None


class SqliteWriter:
    """Fills a new file; ``finish`` makes sure that it is on disk.

    Args:
        path: Of a file that is not there yet.

    Raises:
        OutputError: If it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; BEGIN;" + _TABLES)
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def add_items(self, titles: Iterable[tuple[str, str]]) -> None:
        """Items and their titles."""
        self._write("INSERT INTO items VALUES (?, ?)", titles)

    def add_lists(self, lists: Iterable[UserList]) -> None:
        """Candidates; of several lists of a user that with the longest history stays."""
        self._write(_NEWEST, ((one.user_id, one.before, one.list_id, _packed(one)) for one in lists if one.item_ids))

    def add_histories(self, histories: Iterable[UserHistory]) -> None:
        """Histories.

        Raises:
            DataError: If a user comes twice.
        """
        rows = ((one.user_id, _json([[item, int(liked)] for item, liked in one.entries])) for one in histories)
        try:
            self._write("INSERT INTO histories VALUES (?, ?)", rows)
        except sqlite3.IntegrityError:
            raise DataError("interactions of a user lie apart from one another; run jobs.prepare again") from None

    def befores(self, user_ids: Sequence[str]) -> list[int | None]:
        """Where each user's history ends, by the lists added so far."""
        found: dict[str, int] = {}
        for some, marks in _some_at_a_time(user_ids):
            statement = f"SELECT user_id, before FROM lists WHERE user_id IN ({marks})"
            found |= dict(self._connection.execute(statement, some))
        return [found.get(user_id) for user_id in user_ids]

    def finish(self, meta: Meta) -> None:
        """Write what the file says of itself, and everything to the disk."""
        self._write("INSERT INTO meta VALUES (?, ?)", fields_of(meta).items())
        try:
            self._connection.execute("COMMIT")
            self._connection.close()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        except (sqlite3.Error, OSError) as error:
            raise self._failed(error) from None

    def _write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> OutputError:
        return OutputError(f"cannot write {str(self.path)!r}: {error}; make room, or set store.home to another place")


def write_users(
    path: Path, store: Store, items: pa.Table, instruct: InstructSettings, on_rows: Callable[[int], None]
) -> dict[str, int]:
    """Write the users of a run into a new file; returns how many there are of what.

    Args:
        path: Of the file.
        store: With the run's stages 'prepare' and 'backbone'.
        items: ITEMS, at least ``item_id`` and ``title``.
        instruct: How much of a history prompts show, and what they quote.
        on_rows: Told as rows of CANDIDATES and INTERACTIONS are done how many more there are.

    Raises:
        DataError: If a table is missing or broken.
        OutputError: If the file cannot be written.
    """
    titles = {item_id: title for item_id, title in titles_by_id(items).items() if title}
    shown = Shown(
        pa.array(titles, pa.string()), instruct.max_liked, instruct.max_disliked, instruct.hints == "reranker"
    )
    tally, writer = Tally(np.zeros(len(titles), dtype=np.int64), MAX_DEMO_USERS), SqliteWriter(path)
    writer.add_items(titles.items())
    for rows, lists in lists_to_rank(store, shown):
        writer.add_lists(lists)
        on_rows(rows)
    for rows, found in histories(store, shown, tally, writer.befores):
        writer.add_histories(found)
        on_rows(rows)
    popular, demo_users = tally.popular(shown.item_ids, POPULAR), tuple(user_id for _, _, user_id in tally.best)
    made = made_from(store, instruct)
    writer.finish(Meta(format=FORMAT, made_from=made, popular=tuple(popular), demo_users=demo_users))
    return _counts(path)


def made_from(store: Store, instruct: InstructSettings) -> dict[str, str]:
    """What histories and candidates of a run are made from: tables, and how much of them prompts show."""
    shown = f"{instruct.max_liked} liked, {instruct.max_disliked} disliked, hints: {instruct.hints}"
    return {**{stage: store.require(stage).fingerprint for stage in STAGES}, "shown": shown}


def fields_of(meta: Meta) -> dict[str, str]:
    """``meta`` as names and JSON, as both stores keep it."""
    return {name: _json(value) for name, value in meta.model_dump(mode="json").items()}


def meta_of(fields: dict[str, str], where: str) -> Meta:
    """What ``fields_of`` was given.

    Raises:
        DataError: If it is not that, or another version's.
    """
    try:
        meta = Meta.model_validate({name: json.loads(value) for name, value in fields.items()})
    except (ValueError, ValidationError):
        raise DataError(f"{where}: holds no histories of users, or not those of this version; {AGAIN}") from None
    if meta.format != FORMAT:
        raise DataError(f"{where}: needed format {FORMAT}, got {meta.format}; {AGAIN}")
    return meta


def _counts(path: Path) -> dict[str, int]:
    with closing(SqliteUsers(str(path))) as users:
        return {name: users.count(name) for name in ("histories", "lists", "items")}


def _some_at_a_time(values: Sequence[str]) -> Iterator[tuple[Sequence[str], str]]:
    """As many values as a statement takes, and a mark for each."""
    for start in range(0, len(values), _AT_A_TIME):
        some = values[start : start + _AT_A_TIME]
        yield some, ",".join("?" * len(some))


def _packed(one: UserList) -> str:
    """As ``StoredList``; nine digits are all that a 32-bit number has."""
    columns = (one.backbone_scores, one.hint_scores, one.predicted_ratings)
    rounded = [None if column is None else [float(f"{value:.9g}") for value in column] for column in columns]
    return _json([one.item_ids, *rounded])


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
