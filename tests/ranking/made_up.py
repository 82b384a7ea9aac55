"""A made-up shop in which item n is mostly liked after item n - 1, with candidate lists and two folds."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recranker.backbones.events import Interactions, index_interactions
from recranker.backbones.folds import Fold, data_of
from recranker.ranking.evidence import FoldView
from recranker.schema import CANDIDATES, INTERACTIONS, ITEMS

UNRANKED = pa.schema([field for field in CANDIDATES.schema if field.name != "reranker_scores"])
NUM_ITEMS = 40
EVENTS = 14
RATED: dict[str, Any] = {"order": "time", "has_ratings": True, "dislike_below": 3.0, "source": "made up"}
IMPLICIT: dict[str, Any] = {"order": "none", "has_ratings": False, "source": "made up"}


@dataclass(frozen=True)
class Shop:
    """All that a conventional re-ranker is given."""

    interactions: Interactions
    folds: dict[str, FoldView]
    lists: pa.Table
    signals: dict[str, np.ndarray]
    items: pa.Table


def events_of(num_users: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """INTERACTIONS rows: each user walks up the items; the last like is for the test, the one before for validation."""
    random = np.random.default_rng(seed)
    rows = []
    for user in range(num_users):
        walk = (random.integers(NUM_ITEMS) + np.cumsum(random.choice([1, 1, 1, 2], EVENTS))) % NUM_ITEMS
        for place, item in enumerate(walk.tolist()):
            disliked = place % 5 == 2
            rows.append(
                {
                    "user_id": f"u{user:02}",
                    "item_id": f"i{item:02}",
                    "rating": 1.0 if disliked else 5.0,
                    "timestamp": 86_400 * (user + place),
                    "sequence": place,
                    "feedback": "dislike" if disliked else "like",
                    "split": {EVENTS - 1: "test", EVENTS - 2: "dropped"}.get(place, "train"),
                }
            )
            if place == EVENTS - 2:  # 12 % 5 == 2: make it a like
                rows[-1] |= {"rating": 5.0, "feedback": "like", "split": "validation"}
    return rows


def items_of() -> pa.Table:
    """ITEMS: neighbours share a genre and a word of the title."""
    rows = [
        {"item_id": f"i{n:02}", "title": f"Saga{n // 4} part{n}", "genres": [f"g{n // 8}", "all"]}
        for n in range(NUM_ITEMS)
    ]
    return pa.Table.from_pylist(rows, schema=ITEMS.schema)


def shop(num_users: int = 60, seed: int = 0) -> Shop:
    """Lists of 5 to 8 candidates with their target at a random place; training lists for the last 2 training likes."""
    rows = events_of(num_users, seed)
    interactions = index_interactions(pa.Table.from_pylist(rows, schema=INTERACTIONS.schema))
    random = np.random.default_rng(seed + 1)
    lists = [_list(row, random) for row in rows if row["sequence"] >= EVENTS - 4 and row["feedback"] == "like"]
    count = sum(len(one["candidate_ids"]) for one in lists)
    signals = {"other": random.normal(size=count)}
    table = pa.Table.from_pylist(lists, schema=UNRANKED)
    return Shop(interactions, folds_of(interactions, random), table, signals, items_of())


def folds_of(interactions: Interactions, random: np.random.Generator) -> dict[str, FoldView]:
    """The full fold, and one without the last 2 training events of each user; random item vectors."""
    train = interactions.rows("train")
    early = train[interactions.sequences[train] < EVENTS - 4]
    views = {}
    for name, rows in (("full", train), ("rolled_back", early)):
        data = data_of(interactions, Fold(name, rows, np.empty(0, np.int64)))
        views[name] = FoldView(data, {"retriever": random.normal(size=(interactions.num_items, 4)).astype(np.float32)})
    return views


def _list(row: dict[str, Any], random: np.random.Generator) -> dict[str, Any]:
    target = int(row["item_id"][1:])
    length = int(random.integers(5, 9))
    others = (target + random.permutation(np.arange(3, NUM_ITEMS - 2))[: length - 1]) % NUM_ITEMS
    offered = random.permutation([target, *others.tolist()]).tolist()
    split = row["split"]
    return {
        "list_id": f"{split}/{row['user_id']}/{row['item_id']}",
        "user_id": row["user_id"],
        "split": split,
        "target_id": row["item_id"],
        "target_rating": 5.0,
        "hit": True,
        "before": row["sequence"],
        "fold": "rolled_back" if split == "train" else "full",
        "candidate_ids": [f"i{n:02}" for n in offered],
        "backbone_scores": np.sort(random.normal(size=length))[::-1].tolist(),
        "predicted_ratings": random.uniform(1, 5, length).tolist(),
        "popularity": [1.0] * length,
    }
