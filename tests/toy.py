"""The simulated data set as files, for whatever reads files."""

import csv
from pathlib import Path
from typing import Any

from recranker.data.simulate import simulated_events, simulated_items


def toy_interactions(
    folder: Path, *, num_users: int = 60, num_items: int = 80, seed: int = 0, per_user: int = 24
) -> tuple[Path, Path]:
    """Write ``interactions.csv`` and ``items.csv`` into ``folder``; the same arguments give the same bytes.

    Args:
        folder: Created where missing.
        num_users: See ``simulated_events``, as for the others.
        num_items: At least 24.
        seed: Of everything drawn.
        per_user: Mean ratings per user.

    Returns:
        Paths of the interactions (user_id, item_id, rating, timestamp) and the items (item_id, title, genres).
    """
    folder.mkdir(parents=True, exist_ok=True)
    interactions, items = folder / "interactions.csv", folder / "items.csv"
    events = simulated_events(num_users, num_items, per_user, seed)
    _write(interactions, ("user_id", "item_id", "rating", "timestamp"), events)
    _write(items, ("item_id", "title", "genres"), simulated_items(num_items))
    return interactions, items


def toy_settings(folder: Path, **sizes: int) -> dict[str, Any]:
    """The ``[data]`` section for a toy data set freshly written into ``folder``."""
    interactions, items = toy_interactions(folder, **sizes)
    source = {"kind": "files", "interactions": str(interactions), "items": str(items)}
    columns = {"rating_column": "rating", "time_column": "timestamp", "genres_column": "genres"}
    return {"source": {**source, **columns}, **TOY_SCALE}


TOY_SCALE = {"rating_min": 1.0, "rating_max": 5.0, "like_at_least": 4.0, "dislike_below": 3.0}
"""What the toy ratings mean."""


def _write(path: Path, names: tuple[str, ...], rows: list[Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
