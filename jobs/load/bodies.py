"""Requests as real users of a finished run would send them: their history, and what the retriever offers them."""

from contextlib import closing
from pathlib import Path

from jobs.load.plan import Body
from jobs.load.settings import RequestSettings
from recranker.errors import DataError
from recranker.randomness import key_of
from recranker.store import Store
from serve.histories import FILE, SqliteUsers
from serve.messages import RankRequest
from serve.source import read_run
from serve.users import Users

KEPT = {"history", "candidates"}


def bodies(settings: RequestSettings) -> list[Body]:
    """One per user, in an order keyed by the seed.

    Raises:
        DataError: If the run is not finished, its users are not published, or too few have a list long enough.
    """
    try:
        run = read_run(settings.service)
    except DataError as error:
        raise DataError(f"{error}; all of it: python -m jobs.pipeline jobs/configs/quickstart.toml") from None
    path = Path(Store(run.uri).folder("publish")) / FILE
    with closing(SqliteUsers(str(path))) as store:
        users = Users(store, run, settings.service)
        user_ids = sorted(user_id for user_id, _, candidates in store.everything() if candidates)
        user_ids.sort(key=lambda user_id: key_of(settings.seed, "load", user_id))
        found: list[Body] = []
        for user_id in user_ids:
            body = _body(users.complete(RankRequest(user_id=user_id)).request)
            body["candidates"] = body["candidates"][: settings.candidates]
            if len(body["candidates"]) == settings.candidates:
                found.append(body)
            if len(found) == settings.users:
                return found
    raise DataError(
        f"{path}: users={settings.users}, but only {len(found)} of its users have candidates={settings.candidates} or "
        "more; ask for fewer of either"
    )


def _body(request: RankRequest) -> Body:
    return request.model_dump(mode="json", include=KEPT, exclude_none=True)
