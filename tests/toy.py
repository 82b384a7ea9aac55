"""A small made-up data set with enough structure for every stage: tastes, ratings, times, odd titles."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

GENRES = ("Comedy", "Drama", "Horror", "Western")
NOUNS = ("River", "Night", "House", "Stranger", "Summer", "Letter", "Train", "Garden", "Winter", "Road")
ADJECTIVES = ("Quiet", "Last", "Golden", "Broken", "Second", "Hidden", "Long", "Blue", "Empty", "Bright")
START = 1_000_000_000
"""UTC seconds of the first event."""


def toy_interactions(
    folder: Path, *, num_users: int = 60, num_items: int = 80, seed: int = 0, per_user: int = 24
) -> tuple[Path, Path]:
    """Write ``interactions.csv`` and ``items.csv`` into ``folder``; the same arguments give the same bytes.

    Item ``i`` belongs to genre ``i % 4`` and user ``u`` loves genre ``u % 4``: two thirds of what users rate is of
    their genre and mostly liked, the rest mostly is not; low item numbers are more popular.

    Args:
        folder: Created where missing.
        num_users: Users ``u0, u1, ...``.
        num_items: Items ``i0, i1, ...``; at least 24.
        seed: Of everything drawn.
        per_user: Mean ratings per user; each user has within 6 of it.

    Returns:
        Paths of the interactions (user_id, item_id, rating, timestamp) and the items (item_id, title, genres).
    """
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for user in range(num_users) for row in _events(user, num_items, per_user, random)]
    interactions, items = folder / "interactions.csv", folder / "items.csv"
    _write(interactions, ("user_id", "item_id", "rating", "timestamp"), rows)
    _write(items, ("item_id", "title", "genres"), [_item(index) for index in range(num_items)])
    return interactions, items


def toy_settings(folder: Path, **sizes: int) -> dict[str, Any]:
    """The ``[data]`` section for a toy data set freshly written into ``folder``."""
    interactions, items = toy_interactions(folder, **sizes)
    source = {"kind": "files", "interactions": str(interactions), "items": str(items)}
    columns = {"rating_column": "rating", "time_column": "timestamp", "genres_column": "genres"}
    return {"source": {**source, **columns}}


def _events(user: int, num_items: int, per_user: int, random: np.random.Generator) -> list[tuple[str, str, int, int]]:
    items = np.arange(num_items)
    loved = items % len(GENRES) == user % len(GENRES)
    weights = np.where(loved, 6.0, 1.0) / np.sqrt(1.0 + items // len(GENRES))
    count = min(int(random.integers(per_user - 6, per_user + 7)), num_items)
    chosen = random.choice(items, size=count, replace=False, p=weights / weights.sum())
    times = START + user * 1000 + np.cumsum(random.integers(0, 100, size=count))
    happy = random.random(count) < np.where(loved[chosen], 0.85, 0.25)
    ratings = np.where(happy, random.integers(4, 6, size=count), random.integers(1, 4, size=count))
    return [(f"u{user}", f"i{i}", int(r), int(t)) for i, r, t in zip(chosen, ratings, times, strict=True)]


def _item(index: int) -> tuple[str, str, str]:
    genre = GENRES[index % len(GENRES)]
    place = index // len(GENRES)
    number = "" if place < 100 else f" {place // 100 + 1}"
    title = f"{ADJECTIVES[place // 10 % 10]} {NOUNS[place % 10]}, a {genre}{number}"
    odd = {3: "Cats &amp; Dogs", 5: "Café “Noir”  at Night", 7: "Cats & Dogs"}  # an entity, spaces, a repeated title
    return f"i{index}", odd.get(index, title), genre


def _write(path: Path, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
