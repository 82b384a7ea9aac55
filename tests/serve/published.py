"""A small run whose users can be published, worked out by hand.

``u`` has likes, dislikes and a list that the re-ranker would turn round; ``v`` has a history and no list; ``w`` has two
lists; ``i99`` has no title.
"""

from pathlib import Path

import pyarrow as pa

from recranker.schema import CANDIDATES, INTERACTIONS, ITEMS
from recranker.store import Store
from recranker.tasks.settings import InstructSettings
from serve.histories import FILE, write_users
from serve.source import ServedRun
from tests.serve.runs import ORIGIN
from tests.serve.test_ranking import JOB, served
from tests.tables import candidate_list, candidates, interactions

U_EVENTS = ["like", "dislike", "like", "neutral", "dislike", "like", "like"]
EVENTS = [
    *(("u", f"i{place}", place, kind, "train") for place, kind in enumerate(U_EVENTS)),
    ("u", "i8", 7, "like", "test"),
    ("v", "i0", 0, "like", "train"),
    ("v", "i99", 1, "like", "train"),
    ("v", "i2", 2, "like", "train"),
    ("v", "i3", 3, "like", "test"),
    *(("w", f"i{place}", place, "like", "train") for place in range(6)),
]
U_LIST = candidate_list(
    "u", "test", "i8", ["i9", "i8", "i7"], before=7, reranker_scores=[-1.0, 0.5, 2.0], predicted_ratings=[6.0, 4.5, 2.0]
)
LISTS = [
    candidate_list("u", "validation", "i6", ["i1", "i2"], before=6),
    U_LIST,
    candidate_list("w", "test", "i2", ["i7", "i8"], before=2),
    candidate_list("w", "test", "i5", ["i99", "i8", "i9"], before=5),
]
TITLES = {f"i{number}": f"Film {number}" for number in range(10)}
U_HISTORY = [("i2", True), ("i4", False), ("i5", True), ("i6", True)]
"""As shown with three likes and one dislike at the most."""


def finished_tables(folder: Path, name: str = "run") -> Store:
    """What ``jobs.publish`` reads, of a run of this name."""
    store = Store(str(folder / name))
    titles = {**TITLES, "i99": ""}
    with store.publish("prepare", ORIGIN) as writer:
        writer.write(INTERACTIONS, interactions(*EVENTS))
        rows = [{"item_id": item_id, "title": title, "genres": []} for item_id, title in titles.items()]
        writer.write(ITEMS, pa.Table.from_pylist(rows, schema=ITEMS.schema))
    with store.publish("backbone", ORIGIN) as writer:
        writer.write(CANDIDATES, candidates(*LISTS))
    return store


def published(folder: Path, instruct: InstructSettings = JOB.instruct) -> ServedRun:
    """A run whose users are published in its own file."""
    store = finished_tables(folder)
    with store.publish("publish", ORIGIN) as writer:
        path = writer.files(Path(FILE).parent.name) / Path(FILE).name
        write_users(path, store, store.read("prepare", ITEMS), instruct, lambda rows: None)
    return served(uri=store.uri, instruct=instruct)


def users_file(run: ServedRun) -> Path:
    """Where they are."""
    return Path(Store(run.uri).folder("publish")) / FILE
