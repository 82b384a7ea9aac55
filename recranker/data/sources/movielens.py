"""What the MovieLens sets have in common."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.sources import raw
from recranker.data.sources.delimited import read_delimited
from recranker.data.sources.rows import Rows, with_ids, with_numbers, with_times
from recranker.data.sources.settings import BadRows, TextFormat
from recranker.data.titles import film_title

THRESHOLDS = (4.0, 3.0)
"""RecRanker, arXiv 2312.16018: 4 and more is a like, less than 3 a dislike."""
TERMS = "research only; no redistribution, no commercial use without permission"


def read_ratings(path: Path, written: TextFormat, columns: dict[str, str], policy: BadRows) -> Rows:
    """The ratings of any MovieLens set, of schema ``raw.INTERACTIONS``."""
    rows = read_delimited(str(path), written, {name: columns[name] for name in raw.INTERACTIONS.names}, policy)
    return with_times(with_numbers(with_ids(rows, "user_id", "item_id"), "rating"), "timestamp", "s")


def read_films(path: Path, written: TextFormat, columns: dict[str, str], policy: BadRows) -> Rows:
    """The films of a set that writes genres with ``|`` between them, of schema ``raw.ITEMS``."""
    rows = with_ids(
        read_delimited(str(path), written, {name: columns[name] for name in raw.ITEMS.names}, policy), "item_id"
    )
    genres = pc.split_pattern(pc.replace_substring(rows.table["genres"], "(no genres listed)", ""), "|")
    return titled(rows.with_column("genres", genres))


def titled(rows: Rows) -> Rows:
    """Films under the names people use."""
    titles = [film_title(title) for title in rows.table["title"].to_pylist()]
    return rows.with_column("title", pa.array(titles, pa.string()))
