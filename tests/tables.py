"""Small hand-made tables that several tests read."""

from typing import Any

import pyarrow as pa

from recranker.schema import CANDIDATES, DRAWS, INTERACTIONS, USER_FACTORS


def interactions(*events: tuple[str, str, int, str, str], rating: float | None = 5.0) -> pa.Table:
    """INTERACTIONS from (user, item, sequence, feedback, split)."""
    names = ("user_id", "item_id", "sequence", "feedback", "split")
    rows = [{**dict(zip(names, event, strict=True)), "rating": rating, "timestamp": event[2]} for event in events]
    return pa.Table.from_pylist(rows, schema=INTERACTIONS.schema)


def candidate_list(user: str, split: str, target: str, items: list[str], **changes: Any) -> dict[str, Any]:
    """One CANDIDATES row."""
    return {
        "list_id": f"{split}/{user}/{target}",
        "user_id": user,
        "split": split,
        "target_id": target,
        "target_rating": 5.0,
        "hit": target in items,
        "before": 3,
        "fold": "rolled_back" if split == "train" else "full",
        "candidate_ids": items,
        "backbone_scores": [1.0 - index / 10 for index in range(len(items))],
        "predicted_ratings": [4.5 - index / 10 for index in range(len(items))],
        "popularity": [1.0] * len(items),
        "reranker_scores": [-float(index) for index in range(len(items))],
        **changes,
    }


def candidates(*rows: dict[str, Any]) -> pa.Table:
    """CANDIDATES from rows of ``candidate_list``."""
    return pa.Table.from_pylist(list(rows), schema=CANDIDATES.schema)


def draws(*users: str) -> pa.Table:
    """DRAWS of these users in this order."""
    rows = [
        {"draw_id": number, "user_id": user, "repeat": users[:number].count(user)} for number, user in enumerate(users)
    ]
    return pa.Table.from_pylist(rows, schema=DRAWS.schema)


def factors(**vectors: list[float]) -> pa.Table:
    """USER_FACTORS."""
    rows = [{"user_id": user, "factors": vector} for user, vector in vectors.items()]
    return pa.Table.from_pylist(rows, schema=USER_FACTORS.schema)
