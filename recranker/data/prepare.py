"""From a source's files to the two tables every later stage starts from."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recranker.data.denominators import explain_denominator, tested_in_file_order
from recranker.data.facts import IMPLICIT, RatingMeaning
from recranker.data.k_core import k_core
from recranker.data.leakage import check_interactions
from recranker.data.lookup import Pairs
from recranker.data.order import drop_repeats
from recranker.data.settings import DataSettings, OwnSplit
from recranker.data.sources.raw import RawData, checked, cleaned_items, with_known_items
from recranker.data.sources.registry import read_source
from recranker.data.splits import Thresholds, split_interactions
from recranker.errors import DataError
from recranker.parquet import ParquetLimits, not_readable, read_admitted
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
    return prepare_raw(read_source(settings.source, cache), settings, seed)


def prepare_raw(raw: RawData, settings: DataSettings, seed: int) -> tuple[pa.Table, pa.Table, dict[str, Any]]:
    """As ``prepare``, of data already read."""
    meaning = meaning_for(raw, settings)
    checked(raw, meaning.rating_min, meaning.rating_max)
    events, counts, rounds = kept_events(raw, settings)
    items, title_counts = cleaned_items(raw.items, settings.max_title_characters)
    thresholds = Thresholds(meaning.like_at_least, meaning.dislike_below)
    interactions, split_counts, decided = split_interactions(
        events, thresholds, seed, split=settings.split, order=raw.order
    )
    counts |= {"items": items.num_rows, **title_counts, **split_counts}
    counts["sparsity"] = 1 - events.num_rows / max(counts["users"] * counts["items_interacted_with"], 1)
    if raw.order == "time" and settings.split.kind == "leave-one-out":
        counts["split_test_in_file_order"] = tested_in_file_order(events, thresholds)
    _require_test_users(counts, raw, settings)
    facts = _facts(raw, settings, meaning, counts) | {"split": decided, "k_core": rounds}
    check_interactions(interactions, facts)
    return interactions, ITEMS.conform(items, where=raw.items_file), facts


def meaning_for(raw: RawData, settings: DataSettings) -> RatingMeaning:
    """The scale and thresholds: what settings say, and the source's own where they say nothing.

    Raises:
        DataError: If neither knows one of them, they contradict each other, or there are no ratings to speak of.
    """
    stated = {name: getattr(settings, name) for name in RatingMeaning.__dataclass_fields__}
    if not raw.has_ratings:
        return _implicit(raw, stated)
    own = {
        **_named(("rating_min", "rating_max"), raw.scale),
        **_named(("like_at_least", "dislike_below"), raw.thresholds),
    }
    found: dict[str, Any] = {name: own.get(name) if value is None else value for name, value in stated.items()}
    unknown = [f"data.{name}" for name, value in found.items() if value is None]
    if unknown:
        raise DataError(
            f"{raw.name}: needed the scale of its ratings and what a like and a dislike is, which the source does not "
            f"say; set {', '.join(unknown)}"
        )
    if not found["rating_min"] <= found["dislike_below"] <= found["like_at_least"] <= found["rating_max"]:
        raise DataError(
            f"{raw.name}: data.rating_min <= data.dislike_below <= data.like_at_least <= data.rating_max must hold, "
            f"found {', '.join(f'{name} {value:g}' for name, value in found.items())}; set those that differ"
        )
    return RatingMeaning(**found)


def kept_events(raw: RawData, settings: DataSettings) -> tuple[pa.Table, dict[str, float], list[dict[str, int]]]:
    """The interactions that count, with their row in the file; counts per step in order; rounds of the k-core."""
    known, unknown = with_known_items(raw)
    known = known.append_column("row", pa.array(np.arange(known.num_rows)))
    if isinstance(settings.split, OwnSplit) and settings.split.path is not None:
        known = with_split_of(known, settings.split.path, settings.split.parquet)
    once = drop_repeats(known)
    kept, rounds = k_core(once, min_user=settings.min_user_interactions, min_item=settings.min_item_interactions)
    counts: dict[str, float] = {
        **raw.accounts,
        "interactions_without_known_item_dropped": unknown,
        "repeated_interactions_dropped": known.num_rows - once.num_rows,
        "interactions_dropped_by_k_core": once.num_rows - kept.num_rows,
        "interactions": kept.num_rows,
    }
    return kept, counts, [asdict(one) for one in rounds]


def with_split_of(events: pa.Table, path: str, limits: ParquetLimits) -> pa.Table:
    """``events`` with the split a Parquet file gives each; null where it gives none.

    Raises:
        DataError: If the file cannot be read, holds more than allowed, or lacks a column.
    """
    columns = ("user_id", "item_id", "split")
    table = read_admitted(path, columns, limits, "data.split")
    try:
        *ids, split = (table[name].cast(pa.string()) for name in columns)
    except pa.ArrowException as error:
        raise not_readable(path, error) from None
    split = split.combine_chunks()
    rows = Pairs.of(*ids).find(events["user_id"], events["item_id"])
    found = split.take(pa.array(rows, mask=rows < 0))
    names = [name for name in events.schema.names if name != "split"]
    return events.select(names).append_column("split", found)


def _named(names: tuple[str, str], values: Any) -> dict[str, Any]:
    return dict(zip(names, values, strict=True)) if values is not None else {}


def _implicit(raw: RawData, stated: dict[str, float | None]) -> RatingMeaning:
    said = [f"data.{name}" for name, value in stated.items() if value is not None]
    if said:
        raise DataError(
            f"{raw.name} has no ratings (every interaction is a like), but {', '.join(said)} speak of some; leave them "
            "out, or name data.source.rating_column"
        )
    return IMPLICIT


def _require_test_users(counts: dict[str, float], raw: RawData, settings: DataSettings) -> None:
    if counts["split_test"] and counts["split_validation"]:
        return
    kept = f"{counts['likes']} likes of {counts['users']} users, {counts['users_with_3_likes']} of them with 3"
    if settings.split.kind == "leave-one-out":
        raise DataError(
            f"{raw.interactions_file}: needed users with 3 likes whose last two are known from other users' training "
            f"likes, found {kept}; take more data, or lower data.like_at_least"
        )
    raise DataError(
        f"{raw.interactions_file}: needed validation and test targets of users and items known from training likes, "
        f"found {counts['split_validation']} and {counts['split_test']} ({kept}); move the data.split"
    )


def _facts(raw: RawData, settings: DataSettings, meaning: RatingMeaning, counts: dict[str, float]) -> dict[str, Any]:
    return {
        "source": raw.name,
        **asdict(meaning),
        "has_ratings": raw.has_ratings,
        "unrated_is_like": raw.unrated_is_like,
        "has_time": raw.order == "time",
        "order": raw.order,
        "like_means": raw.like_means,
        "order_means": raw.order_means,
        "counts": counts,
        "denominator": explain_denominator(counts, settings.source.kind, settings.split.kind),
    }
