"""Histories and candidates of users in Redis, for teams: filled at once, asked by every router.

A run has three hashes, ``recranker:{RUN}:users``, ``:items`` and ``:meta``; the braces keep them on one node of a Redis
cluster. They are filled beside those in use and take their place in one transaction.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from recranker.errors import DataError, OutputError, SettingsError, first_line
from serve.histories import AGAIN, LookupFailedError, Meta, Record, SqliteUsers, StoreAwayError, fields_of, meta_of

if TYPE_CHECKING:
    from redis import Redis

SCHEMES = ("redis", "rediss", "unix")
KINDS = ("users", "items", "meta")
_AT_A_TIME = 1000
"""Values sent in one go."""
_FILL_TIMEOUT_S = 30.0
"""Seconds that Redis may take for a thousand values."""


def is_redis(url: str) -> bool:
    """Whether ``url`` names a Redis server."""
    return "://" in url and url.split("://", 1)[0] in SCHEMES


class RedisUsers:
    """What ``fill`` has put into Redis.

    Args:
        url: ``redis://HOST:PORT/DATABASE``, ``rediss://`` or ``unix://``, with user and password where they are needed.
        run: Name of the run.
        timeout_s: Seconds until an answer must be there.

    Raises:
        SettingsError: If the client library is missing, or the URL is none.
    """

    def __init__(self, url: str, run: str, timeout_s: float) -> None:
        self.where = shown(url)
        self._keys = {kind: key(run, kind) for kind in KINDS}
        self._redis = connect(url, timeout_s)

    def meta(self) -> Meta:
        """See ``UserStore``."""
        try:
            fields = cast("dict[str, str]", self._redis.hgetall(self._keys["meta"]))  # decode_responses
        except _errors() as error:
            raise StoreAwayError(
                f"{self.where} does not answer: {_line(error)}; start it, or change setting users"
            ) from None
        if not fields:
            raise DataError(f"{self.where} holds nothing of this run; fill it: python -m jobs.publish CONFIG --to URL")
        return meta_of(fields, self.where)

    def find(self, user_id: str) -> Record | None:
        """See ``UserStore``."""
        packed = self._ask(lambda: self._redis.hget(self._keys["users"], user_id))
        try:
            return None if packed is None else Record.of(*json.loads(packed))
        except (ValueError, TypeError) as error:
            raise LookupFailedError(f"a record is broken, {type(error).__name__}; {AGAIN}") from None

    def titles(self, item_ids: Sequence[str]) -> dict[str, str]:
        """See ``UserStore``."""
        if not item_ids:
            return {}
        found = self._ask(lambda: self._redis.hmget(self._keys["items"], list(item_ids)))
        return {item_id: title for item_id, title in zip(item_ids, found, strict=True) if title is not None}

    def close(self) -> None:
        """See ``UserStore``."""
        self._redis.close()

    def _ask(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except _errors() as error:
            raise LookupFailedError(f"{_kind(error)} of {self.where}") from None


def fill(url: str, run: str, users: SqliteUsers, on_rows: Callable[[int], None] = lambda rows: None) -> None:
    """Put everything that ``users`` hold into Redis, in place of what was there of the run.

    Args:
        url: See ``RedisUsers``.
        run: Name of the run.
        users: A published file.
        on_rows: Told as users and items are sent how many more there are.

    Raises:
        OutputError: If Redis does not take it; what was there stays as it was.
        SettingsError: See ``RedisUsers``.
    """
    redis = connect(url, _FILL_TIMEOUT_S)
    records = ((user_id, json.dumps(rest, ensure_ascii=False)) for user_id, *rest in users.everything())
    meta = fields_of(users.meta()).items()
    try:
        for kind, rows in (("users", records), ("items", users.items()), ("meta", iter(meta))):
            _fill(redis, f"{key(run, kind)}:partial", rows, on_rows)
        _reveal(redis, run)
    except _errors() as error:
        raise OutputError(f"{shown(url)} does not take the users: {_line(error)}; see its log and memory") from None
    finally:
        redis.close()


def _fill(redis: "Redis", name: str, rows: Iterator[tuple[str, str]], on_rows: Callable[[int], None]) -> None:
    redis.unlink(name)  # of a fill that was stopped
    while some := dict(islice(rows, _AT_A_TIME)):
        redis.hset(name, mapping=cast("dict[Any, Any]", some))  # mypy: str is not one of its unions of keys
        on_rows(len(some))


def _reveal(redis: "Redis", run: str) -> None:
    names = [key(run, kind) for kind in KINDS]
    there = [bool(redis.exists(name)) for name in names]
    with redis.pipeline(transaction=True) as together:
        for name, old in zip(names, there, strict=True):
            if old:
                together.rename(name, f"{name}:old")
            together.rename(f"{name}:partial", name)
        together.execute()
    redis.unlink(*(f"{name}:old" for name in names))  # frees memory without holding anybody up


def key(run: str, kind: str) -> str:
    """The name of a hash."""
    return f"recranker:{{{run}}}:{kind}"


def connect(url: str, timeout_s: float) -> "Redis":
    """A client; it connects when it is first used.

    Raises:
        SettingsError: If the client library is missing, or the URL is none.
    """
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry
    except ModuleNotFoundError:
        raise SettingsError("users in Redis need its client: pip install 'recranker[redis]'") from None
    once_more = Retry(NoBackoff(), 1)  # a connection that was idle may have been closed meanwhile
    limits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s, "retry": once_more}
    try:
        return Redis.from_url(url, decode_responses=True, **limits)
    except ValueError as error:
        raise SettingsError(f"{shown(url)} is no Redis URL: {error}") from None


def shown(url: str) -> str:
    """``url`` without user and password."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
    except ValueError:
        return "Redis"


def _errors() -> tuple[type[Exception], ...]:
    from redis.exceptions import RedisError

    return (RedisError, OSError, UnicodeError)


def _kind(error: Exception) -> str:
    """For the log of a service: a server's message might quote what it was asked."""
    return type(error).__name__


def _line(error: Exception) -> str:
    """For the person at the command line."""
    return first_line(error, 200).rstrip(".")
