"""A small made-up data set with enough structure for every stage: tastes, ratings, times, odd and nested titles."""

from typing import Any

import numpy as np
import pyarrow as pa

from recranker.data.settings import DataSettings
from recranker.data.sources import raw

GENRES = ("Comedy", "Drama", "Horror", "Western")
NOUNS = ("River", "Night", "House", "Stranger", "Summer", "Letter", "Train", "Garden", "Winter", "Road")
ADJECTIVES = ("Quiet", "Last", "Golden", "Broken", "Second", "Hidden", "Long", "Blue", "Empty", "Bright")
START = 1_000_000_000
"""UTC seconds of the first event."""
ODD_TITLES = {
    0: "Quiet River",  # the beginning of the titles of items 1 and 2
    3: "Cats &amp; Dogs",
    5: "Café “Noir”  at Night",
    7: "Cats & Dogs",
}
"""Titles by item number: one nested in others, an entity, double spaces, one that repeats another once cleaned."""

Event = tuple[str, str, int, int]
"""User, item, rating, UTC seconds."""


def simulated_events(num_users: int, num_items: int, per_user: int, seed: int, *, apart_s: int = 1000) -> list[Event]:
    """Ratings of users with tastes; the same arguments give the same events.

    Item ``i`` belongs to genre ``i % 4`` and user ``u`` loves genre ``u % 4``: two thirds of what users rate is of
    their genre and mostly liked, the rest mostly is not; low item numbers are more popular.

    Args:
        num_users: Users ``u0, u1, ...``.
        num_items: Items ``i0, i1, ...``; at least 24.
        per_user: Mean ratings per user; each user has within 6 of it.
        seed: Of everything drawn.
        apart_s: Seconds between the first events of two users.
    """
    random = np.random.default_rng(seed)
    starts = [START + user * apart_s for user in range(num_users)]
    return [event for user, start in enumerate(starts) for event in _events(user, start, num_items, per_user, random)]


def simulated_items(num_items: int) -> list[tuple[str, str, str]]:
    """Id, title and genre of items ``i0, i1, ...``."""
    return [_item(index) for index in range(num_items)]


def simulated_raw(
    num_users: int, num_items: int, *, per_user: int = 24, seed: int = 0, apart_s: int = 1000
) -> raw.RawData:
    """The same as a source would hand it over, without files."""
    events = simulated_events(num_users, num_items, per_user, seed, apart_s=apart_s)
    items = [(item_id, title, [genre]) for item_id, title, genre in simulated_items(num_items)]
    return raw.RawData(
        name="simulated",
        interactions=_table(events, raw.INTERACTIONS),
        items=_table(items, raw.ITEMS),
        interactions_file="simulated interactions",
        items_file="simulated items",
        rows_read=len(events),
        scale=(1.0, 5.0),
        thresholds=(4.0, 3.0),
    )


def simulated_settings(**changes: Any) -> DataSettings:
    """Settings that fit ``simulated_raw``; the files they name are never read."""
    source = {"kind": "files", "interactions": "simulated", "items": "simulated"}
    return DataSettings.model_validate({"source": source, **changes})


def _table(rows: list[Any], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def _events(user: int, start: int, num_items: int, per_user: int, random: np.random.Generator) -> list[Event]:
    items = np.arange(num_items)
    loved = items % len(GENRES) == user % len(GENRES)
    weights: Any = np.where(loved, 6.0, 1.0) / np.sqrt(1.0 + items // len(GENRES))
    count = min(int(random.integers(per_user - 6, per_user + 7)), num_items)
    chosen = random.choice(items, size=count, replace=False, p=weights / weights.sum())
    times = start + np.cumsum(random.integers(0, 100, size=count))
    happy = random.random(count) < np.where(loved[chosen], 0.85, 0.25)
    ratings = np.where(happy, random.integers(4, 6, size=count), random.integers(1, 4, size=count))
    return [(f"u{user}", f"i{i}", int(r), int(t)) for i, r, t in zip(chosen, ratings, times, strict=True)]


def _item(index: int) -> tuple[str, str, str]:
    genre = GENRES[index % len(GENRES)]
    place = index // len(GENRES)
    number = "" if place < 100 else f" {place // 100 + 1}"
    title = f"{ADJECTIVES[place // 10 % 10]} {NOUNS[place % 10]}, a {genre}{number}"
    return f"i{index}", ODD_TITLES.get(index, title), genre
