"""A finished run of a tiny model whose users are published, made in seconds; and requests with known fates."""

from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from jobs.load.plan import Sent
from recranker.schema import CANDIDATES, INTERACTIONS, ITEMS
from recranker.store import Store
from serve.histories import FILE, write_users
from serve.settings import ServeSettings
from tests.serve.runs import MEANING, ORIGIN, finished_run, job_settings
from tests.tables import candidate_list, candidates, interactions

USERS = 4


def published_run(folder: Path, *, candidates_each: int = 10) -> ServeSettings:
    """Settings that serve it; its users have three likes, and a list each."""
    settings = finished_run(folder)
    store = Store(str(folder / "runs" / settings.run))
    users = [f"u{number}" for number in range(USERS)]
    offered = [f"i{number}" for number in range(candidates_each)]
    events = [(user, f"h{place}", place, "like", "train") for user in users for place in range(3)]
    with store.publish("prepare", ORIGIN) as writer:
        writer.facts.update(asdict(MEANING))
        writer.write(INTERACTIONS, interactions(*events))
        titles = [{"item_id": one, "title": f"Film {one}", "genres": []} for one in [*offered, "h0", "h1", "h2"]]
        writer.write(ITEMS, pa.Table.from_pylist(titles, schema=ITEMS.schema))
    with store.publish("backbone", ORIGIN) as writer:
        writer.write(CANDIDATES, candidates(*(candidate_list(user, "test", "i0", offered) for user in users)))
    with store.publish("publish", ORIGIN) as writer:
        path = writer.files(Path(FILE).parent.name) / Path(FILE).name
        write_users(path, store, store.read("prepare", ITEMS), job_settings().instruct, lambda rows: None)
    return settings


def sent(
    number: int,
    latency_s: float = 1.0,
    status: int | None = 200,
    *,
    at: float | None = None,
    late_s: float = 0.0,
    degraded: bool = False,
    retry_after: bool = False,
    engine_ms: float | None = None,
) -> Sent:
    """A request due at second ``at``, sent ``late_s`` later, answered ``latency_s`` after it was due."""
    due = float(number) if at is None else at
    return Sent(number, due, due + late_s, due + latency_s, status, degraded, retry_after, engine_ms)
