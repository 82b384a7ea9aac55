"""From a source's files to the two tables every later stage starts from."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from recranker.data.leakage import check_interactions
from recranker.data.settings import DataSettings
from recranker.data.sources import files, movielens_100k
from recranker.data.sources.raw import RawData, checked, cleaned_items, with_known_items
from recranker.data.sources.settings import FilesSource, Source
from recranker.data.splits import Thresholds, split_interactions
from recranker.errors import DataError
from recranker.schema import ITEMS


def prepare(settings: DataSettings, seed: int, cache: Path) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """Interactions with order, feedback and split; items with clean titles; the facts for the manifest.

    Args:
        settings: Which source, and what its ratings mean.
        seed: Keys the order of simultaneous events.
        cache: Folder that keeps downloads.

    Raises:
        DataError: If the source's files cannot be used.
        FetchError: If they cannot be fetched.
        LeakageError: If the split breaks its own rules.
    """
    raw = checked(read_source(settings.source, cache), settings.rating_min, settings.rating_max)
    known, unknown = with_known_items(raw)
    items, untitled = cleaned_items(raw.items, settings.max_title_characters)
    thresholds = Thresholds(settings.like_at_least, settings.dislike_below)
    interactions, counts = split_interactions(known, thresholds, seed)
    counts = {
        "interactions_read": raw.interactions.num_rows,
        "interactions_without_known_item_dropped": unknown,
        "items": items.num_rows,
        "items_without_title": untitled,
        **counts,
    }
    _require_test_users(counts, raw)
    facts = _facts(raw, settings, counts)
    check_interactions(interactions, facts)
    return interactions, ITEMS.conform(items, where=raw.items_file), facts


def read_source(source: Source, cache: Path) -> RawData:
    """What the source holds, unchecked."""
    return files.read(source) if isinstance(source, FilesSource) else movielens_100k.read(source, cache)


def _require_test_users(counts: dict[str, int], raw: RawData) -> None:
    if counts["split_test"] == 0 or counts["split_validation"] == 0:
        raise DataError(
            f"{raw.interactions_file}: needed users with 3 likes whose last two are known from other users' training "
            f"likes, found {counts['likes']} likes of {counts['users']} users, {counts['users_with_3_likes']} of them "
            "with 3; take more data, or lower data.like_at_least"
        )


def _facts(raw: RawData, settings: DataSettings, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "source": raw.name,
        "rating_min": settings.rating_min,
        "rating_max": settings.rating_max,
        "like_at_least": settings.like_at_least,
        "dislike_below": settings.dislike_below,
        "has_ratings": raw.has_ratings,
        "has_time": raw.has_time,
        "counts": counts,
    }
