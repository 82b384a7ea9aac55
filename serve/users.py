"""Requests that name a user or items by id, completed with what is stored of them."""

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recranker.errors import DataError
from recranker.store import Store
from serve.errors import RefusedError, UnavailableError
from serve.histories import (
    AGAIN,
    FILE,
    LookupFailedError,
    Meta,
    Record,
    SqliteUsers,
    StoreAwayError,
    StoredList,
    UserStore,
    made_from,
)
from serve.messages import Candidate, DemoUser, HistoryEntry, RankRequest, UserState
from serve.redis_users import RedisUsers, is_redis
from serve.settings import ServeSettings
from serve.source import ServedRun

logger = logging.getLogger("ray.serve")

PAUSE_S = 1.0
"""Seconds for which a store that did not answer is not asked again, so that its time-outs do not pile up."""

_LOG_KEY = os.urandom(16)


@dataclass(frozen=True)
class Completed:
    """A request that brings everything along."""

    request: RankRequest
    user: UserState | None
    """None where it named no user."""


class Users:
    """Completes requests from a store; may be called from any thread.

    Args:
        store: Of the run's users.
        run: That is served.
        limits: Of a request.
        patient: Whether a store that does not answer yet may do so later; users are unavailable until then.

    Raises:
        DataError: If the store holds nothing, or what was made from other tables than the run's.
        StoreAwayError: If it does not answer and nobody is patient.
    """

    def __init__(self, store: UserStore, run: ServedRun, limits: ServeSettings, *, patient: bool = False) -> None:
        self.store = store
        self.run = run
        self.limits = limits
        self.demo_users: tuple[DemoUser, ...] = ()
        self._popular: list[Candidate] = []
        self._is_open = False
        self._asleep_until = 0.0
        try:
            self._open()
        except StoreAwayError as error:
            if not patient:
                raise
            self._sleep(error)

    def _open(self) -> None:
        """Check that these are the run's users, and keep what is always needed."""
        meta = self.store.meta()
        _check(meta, self.run)
        try:
            self._popular = _popular(meta, self.store)
            self.demo_users = tuple(self._demo_user(user_id) for user_id in meta.demo_users[: self.limits.demo_users])
        except LookupFailedError as error:
            raise StoreAwayError(f"users of run '{self.run.name}': {error}") from None
        self._is_open = True

    def complete(self, request: RankRequest) -> Completed:
        """``request`` with the user's history, candidates if it has none, and titles of those given by id.

        A user of whom nothing is known has no history and, as candidates, the most popular items. Where the store
        does not answer, all users are like that.

        Raises:
            RefusedError: If a title is not known, or there are no candidates.
            UnavailableError: If the store does not answer and the request cannot do without.
        """
        if brings_everything(request):
            return Completed(request, None)
        if time.monotonic() < self._asleep_until:
            return self._without_store(request)
        try:
            if not self._is_open:
                self._open()
            return self._with_store(request)
        except (LookupFailedError, DataError) as error:
            self._sleep(error, request.user_id or "")
            return self._without_store(request)

    def _sleep(self, why: Exception, user_id: str = "") -> None:
        self._asleep_until = time.monotonic() + PAUSE_S
        logger.warning("user %s: not looked up, %s", hashed(user_id), why)

    def _with_store(self, request: RankRequest) -> Completed:
        record = None if request.user_id is None else self.store.find(request.user_id)
        stored = record.candidates if record and not request.candidates else None
        met = [item_id for item_id, _ in _entries(record)]
        offered = stored.item_ids if stored else []
        titles = self.store.titles(list(dict.fromkeys([*met, *offered, *_untitled(request.candidates)])))
        if request.user_id is None:
            return Completed(_with(request, request.history, _titled(request.candidates, titles)), None)
        history = [HistoryEntry(title=titles[item], liked=liked) for item, liked in _entries(record) if item in titles]
        candidates = _titled(request.candidates, titles) or self._own(stored, titles) or self._popular_but(met)
        return self._completed(request, history, candidates, "known" if record else "unknown")

    def _without_store(self, request: RankRequest) -> Completed:
        if _untitled(request.candidates):
            raise UnavailableError("titles cannot be looked up just now; try again, or send them")
        if not request.candidates and not self._popular:
            raise UnavailableError("candidates cannot be looked up just now; try again, or send them")
        return self._completed(request, [], list(request.candidates) or self._popular_but([]), "unavailable")

    def _completed(
        self, request: RankRequest, history: list[HistoryEntry], candidates: list[Candidate], user: UserState
    ) -> Completed:
        """Within the limits; what the request brought itself is left to be judged with the rest of it."""
        if not candidates:
            raise RefusedError("no candidates are stored for this user; send some")
        if not request.candidates:
            candidates = candidates[: self.limits.max_candidates]
        latest = history[max(0, len(history) - self.limits.max_history) :]
        return Completed(_with(request, latest, candidates), user)

    def _own(self, stored: StoredList | None, titles: Mapping[str, str]) -> list[Candidate]:
        """The retriever's list, with the signals that prompts quote."""
        if stored is None:
            return []
        nothing = [None] * len(stored.item_ids)
        lowest, highest = self.run.scale.lowest, self.run.scale.highest
        guesses = stored.predicted_ratings
        clipped = nothing if guesses is None else [min(max(guess, lowest), highest) for guess in guesses]
        columns = (stored.item_ids, stored.backbone_scores, stored.hint_scores or nothing, clipped)
        return [
            Candidate(id=item, title=titles[item], backbone_score=score, hint_score=hint, predicted_rating=guess)
            for item, score, hint, guess in zip(*columns, strict=True)
            if item in titles
        ]

    def _popular_but(self, met: Sequence[str]) -> list[Candidate]:
        """The most popular items that the user has not met, as many as the retriever would offer."""
        known = set(met)
        return [one for one in self._popular if one.id not in known][: self.limits.popular_candidates]

    def _demo_user(self, user_id: str) -> DemoUser:
        request = self._with_store(RankRequest(user_id=user_id)).request
        return DemoUser(user_id=user_id, history=request.history, candidates=request.candidates)


def open_users(settings: ServeSettings, run: ServedRun, *, patient: bool = False) -> Users | None:
    """The users of ``run``: those that ``settings.users`` name, else its own file; None where nothing is published.

    Args:
        settings: Of the service.
        run: That is served.
        patient: See ``Users``.

    Raises:
        DataError: If the store does not fit the run, or does not answer (``StoreAwayError``) and nobody is patient.
        SettingsError: If Redis is asked for without its client.
    """
    if settings.users is None:
        path = f"{Store(run.uri).folder('publish')}/{FILE}"
        return Users(SqliteUsers(path), run, settings) if Path(path).is_file() else None
    if is_redis(settings.users):
        store = RedisUsers(settings.users, run.name, settings.users_timeout_s)
        return Users(store, run, settings, patient=patient)
    return Users(SqliteUsers(str(Path(settings.users).expanduser())), run, settings)


def check_users(settings: ServeSettings, run: ServedRun) -> None:
    """Say before anything is deployed what ``open_users`` would say.

    Raises:
        DataError: See ``open_users``, likewise.
        SettingsError: Likewise.
    """
    users = open_users(settings, run)
    if users is None:
        logger.info("no users are published; for requests with a user_id: python -m jobs.publish CONFIG")
    else:
        users.store.close()


def brings_everything(request: RankRequest) -> bool:
    """Whether nothing need be looked up."""
    return request.user_id is None and not _untitled(request.candidates)


def completed(request: RankRequest, users: Users | None) -> Completed:
    """``users.complete(request)``, also where no users are served.

    Raises:
        RefusedError: Beside what ``Users.complete`` raises, if the request needs users.
    """
    if users is not None:
        return users.complete(request)
    if request.user_id is not None:
        raise RefusedError(
            "user_id: no users are published here; send a history and candidates, or run jobs.publish and deploy again",
            code="not_served",
        )
    if _untitled(request.candidates):
        raise RefusedError(
            "candidates: a title is missing, and none are published here; send titles", code="not_served"
        )
    return Completed(request, None)


def hashed(user_id: str) -> str:
    """A name for a user in the log: the same within this process, and no way back to the id."""
    return hashlib.blake2b(user_id.encode(), key=_LOG_KEY, digest_size=6).hexdigest()


def _check(meta: Meta, run: ServedRun) -> None:
    for name, now in made_from(Store(run.uri), run.instruct).items():
        if meta.made_from.get(name) != now:
            what = "other settings of prompts" if name == "shown" else f"another output of stage '{name}'"
            raise DataError(f"the published users were made from {what} than run '{run.name}' has; publish {AGAIN}")


def _popular(meta: Meta, store: UserStore) -> list[Candidate]:
    titles = store.titles([item_id for item_id, _ in meta.popular])
    return [
        Candidate(id=item_id, title=titles[item_id], backbone_score=likes)
        for item_id, likes in meta.popular
        if item_id in titles
    ]


def _untitled(candidates: Iterable[Candidate]) -> list[str]:
    """Ids of those whose titles must be looked up."""
    return [one.id for one in candidates if one.title is None and one.id is not None]


def _titled(candidates: Sequence[Candidate], titles: Mapping[str, str]) -> list[Candidate]:
    """All with a title.

    Raises:
        RefusedError: If there is none for one of them.
    """
    found = [
        one if one.title is not None else one.model_copy(update={"title": titles.get(one.id or "")})
        for one in candidates
    ]
    for place, one in enumerate(found):
        if one.title is None:
            raise RefusedError(f"candidates.{place}: no item of this id is known; send its title")
    return found


def _entries(record: Record | None) -> list[tuple[str, bool]]:
    return record.entries if record else []


def _with(request: RankRequest, history: Iterable[HistoryEntry], candidates: Iterable[Candidate]) -> RankRequest:
    return request.model_copy(update={"history": tuple(history), "candidates": tuple(candidates)})
