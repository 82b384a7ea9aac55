"""Amazon reviews of one category, 5-core (McAuley et al. 2015; Ni, Li & McAuley 2019, doi:10.18653/v1/D19-1018).

Read from the publisher's reviews and metadata, or from a file that holds only each user's products in order.
"""

import ast
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.fetch import Remote, fetch_file
from recranker.data.lookup import column, opened, places
from recranker.data.sources import raw
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.delimited import read_delimited, read_lines
from recranker.data.sources.rows import Rows, quarantined, with_ids
from recranker.data.sources.settings import AmazonSource, TextFormat

FACTS = SourceFacts(
    kind="amazon",
    users=None,
    items=None,
    events=None,
    ratings="1-5, none in files of sequences",
    order="time, sequence in files of sequences",
    terms="no written licence; used in research",
    download="1 MB to gigabytes, by category (2014 Beauty: 22,363 x 12,101 x 198,502)",
    where="category = NAME: fetched from mcauleylab.ucsd.edu (edition = 2018) or snap.stanford.edu (edition = 2014), "
    "or reviews and metadata = files",
)
SITES = {
    2018: (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/categoryFilesSmall/{}_5.json.gz",
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/metaFiles2/meta_{}.json.gz",
    ),
    2014: (
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_{}_5.json.gz",
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/meta_{}.json.gz",
    ),
}

_ASIN = re.compile(r"""['"]asin['"]: ?['"]([^'"]+)['"]""")
_NO_TITLE = ("getTime", "<span")  # scripts of the shop's page, in the place of some titles of 2018

Parsed = TypeVar("Parsed")


def read(source: AmazonSource, cache: Path) -> raw.RawData:
    """Reviews, and the products that are reviewed; a product the metadata does not know has no title.

    A product's genres are its categories and its brand.

    Raises:
        FetchError: If the files cannot be fetched.
        DataError: If a file is missing or broken.
    """
    reviews_file, metadata_file = _files(source, cache)
    lines = read_lines(reviews_file, "utf-8", source.on_bad_rows)
    rated = lines.table.num_rows == 0 or lines.table["line"][0].as_py().lstrip().startswith("{")
    events, rows_read = _reviews(lines) if rated else _sequences(lines)
    products = _products(metadata_file, set(pc.unique(events.table["item_id"]).to_pylist()), source)
    items, notes = _items(products, pc.unique(events.table["item_id"]))
    return raw.RawData(
        name=_name(source, reviews_file),
        interactions=events.table.cast(raw.INTERACTIONS),
        items=items,
        interactions_file=events.file,
        items_file=products.file,
        rows_read=rows_read,
        has_ratings=rated,
        order="time" if rated else "sequence",
        scale=(1.0, 5.0) if rated else None,
        thresholds=(4.0, 3.0) if rated else None,
        event_means="every review is a like: the file does not hold the stars",
        quarantined=quarantined(interactions=events, items=products),
        notes=notes,
    )


def title_of(product: dict[str, Any]) -> str | None:
    """A product's title; None where there is none, or only what the shop's page left in its place."""
    title = product.get("title")
    return title if isinstance(title, str) and not any(mark in title for mark in _NO_TITLE) else None


def genres_of(product: dict[str, Any]) -> list[str]:
    """A product's categories (2018: a list; 2014: lists in a list) and its brand, each once."""
    found = product.get("category", product.get("categories", []))
    flat = (
        [one for entry in found for one in (entry if isinstance(entry, list) else [entry])] if _is_list(found) else []
    )
    texts = [one for one in [*flat, product.get("brand")] if isinstance(one, str) and one.strip() and "<" not in one]
    return list(dict.fromkeys(texts))


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _reviews(lines: Rows) -> tuple[Rows, int]:
    rows, reviews = parsed(lines, _review)
    columns = list(zip(*reviews, strict=True)) if reviews else [()] * 4
    rows = with_ids(
        _with_table(rows, pa.table([list(one) for one in columns], schema=raw.INTERACTIONS)), "user_id", "item_id"
    )
    return rows, rows.read


def _review(line: str) -> tuple[str, str, float, int]:
    review = _json_object(line)
    return (
        _text(review, "reviewerID"),
        _text(review, "asin"),
        _number(review, "overall"),
        math.floor(_number(review, "unixReviewTime")),
    )


def _sequences(lines: Rows) -> tuple[Rows, int]:
    """An event per product of a user, in the order of the line, and how many there are with broken lines."""
    words = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(lines.table["line"]))
    lengths = column(pc.list_value_length(words))
    lines = lines.without(lengths < 2, "needed a user and their items, separated by spaces")
    parents, values = opened(words.filter(pa.array(lengths >= 2)))
    at = places(parents)
    users, items = values.filter(pa.array(at == 0)).take(pa.array(parents[at > 0])), values.filter(pa.array(at > 0))
    nothing = pa.nulls(len(items), pa.float64())
    table = pa.table(
        [users.cast(pa.string()), items.cast(pa.string()), nothing, at[at > 0] - 1], schema=raw.INTERACTIONS
    )
    rows = Rows(lines.file, table, lines.numbers[parents[at > 0]], lines.policy, aside=lines.aside)
    rows = with_ids(rows, "user_id", "item_id")
    return rows, rows.read


def _products(path: str, reviewed: set[str], source: AmazonSource) -> Rows:
    """Reviewed products of the metadata, each once, of schema ``raw.ITEMS``."""
    if ".csv" in Path(path).suffixes:
        rows = read_delimited(path, TextFormat(), {"item_id": "asin", "title": "name"}, source.on_bad_rows)
        genres = pa.nulls(rows.table.num_rows, raw.ITEMS.field("genres").type)
        rows = _with_table(rows, rows.table.append_column("genres", genres))
    else:
        lines = read_lines(path, "utf-8", source.on_bad_rows)
        rows, products = parsed(_of_reviewed(lines, reviewed), _product)
        columns = list(zip(*products, strict=True)) if products else [()] * 3
        rows = _with_table(rows, pa.table([list(one) for one in columns], schema=raw.ITEMS))
    return _first_of_each(with_ids(rows, "item_id"), reviewed)


def _of_reviewed(lines: Rows, reviewed: set[str]) -> Rows:
    """Without lines that are plainly about other products: most are, and Python dicts are slow to read."""
    asins = [_ASIN.search(line) for line in lines.table["line"].to_pylist()]
    keep = np.array([found is None or found[1] in reviewed for found in asins], dtype=bool)
    return Rows(lines.file, lines.table.filter(pa.array(keep)), lines.numbers[keep], lines.policy, aside=lines.aside)


def _first_of_each(rows: Rows, reviewed: set[str]) -> Rows:
    known = column(pc.is_in(rows.table["item_id"], value_set=pa.array(sorted(reviewed), pa.string())))
    _, first = np.unique(column(pc.fill_null(rows.table["item_id"], "")).astype(object), return_index=True)
    keep = np.zeros(len(known), dtype=bool)
    keep[first] = True
    keep &= known
    return Rows(rows.file, rows.table.filter(pa.array(keep)), rows.numbers[keep], rows.policy, aside=rows.aside)


def _product(line: str) -> tuple[str, str | None, list[str]]:
    product = _json_object(line) if '"asin"' in line else _dict_literal(line)
    return _text(product, "asin"), title_of(product), genres_of(product)


def _items(products: Rows, reviewed: pa.Array) -> tuple[pa.Table, dict[str, int]]:
    """The products, and those reviewed without being among them, untitled."""
    unknown = reviewed.filter(pc.invert(pc.is_in(reviewed, value_set=products.table["item_id"].combine_chunks())))
    nothing = [pa.nulls(len(unknown), raw.ITEMS.field(name).type) for name in ("title", "genres")]
    added = pa.table([unknown, *nothing], schema=raw.ITEMS)
    return pa.concat_tables([products.table.cast(raw.ITEMS), added]), {"items_without_metadata": len(unknown)}


def parsed(lines: Rows, parse: Callable[[str], Parsed]) -> tuple[Rows, list[Parsed]]:
    """What ``parse`` makes of each line; lines it raises ``ValueError`` at are set aside with its message."""
    found = [_attempt(parse, line) for line in lines.table["line"].to_pylist()]
    reasons = np.array([str(one) if isinstance(one, ValueError) else "" for one in found], dtype=object)
    for reason in dict.fromkeys(one for one in reasons if one):
        bad = reasons == reason
        lines, reasons = lines.without(bad, reason, lines.table["line"]), reasons[~bad]
    return lines, [one for one in found if not isinstance(one, ValueError)]


def _attempt(parse: Callable[[str], Parsed], line: str) -> Parsed | ValueError:
    try:
        return parse(line)
    except ValueError as error:
        return error


def _json_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    return _object(value, "a JSON object")


def _dict_literal(line: str) -> dict[str, Any]:
    """A line of 2014's metadata, which is a Python dict; nothing of it is run."""
    try:
        value = ast.literal_eval(line.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    return _object(value, "a JSON object or a Python dict")


def _object(value: object, needed: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"the line must be {needed}")
    return value


def _text(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise ValueError(f"field {name!r} must hold text")
    return value


def _number(values: dict[str, Any], name: str) -> float:
    value = values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e15:
        raise ValueError(f"field {name!r} must hold a number")
    return value


def _with_table(rows: Rows, table: pa.Table) -> Rows:
    return Rows(rows.file, table, rows.numbers, rows.policy, rows.unit, rows.aside, rows.names)


def _name(source: AmazonSource, reviews_file: str) -> str:
    if source.category is None:
        return f"Amazon reviews ({Path(reviews_file).name})"
    return f"Amazon {source.category.replace('_', ' ')} ({source.edition}, 5-core)"


def _files(source: AmazonSource, cache: Path) -> tuple[str, str]:
    if source.reviews is not None and source.metadata is not None:
        return source.reviews, source.metadata
    way_out = "make it reachable, check data.source.category, or set data.source.reviews and data.source.metadata"
    folder = cache / FACTS.kind / str(source.edition)
    reviews, metadata = (Remote(site.format(source.category)) for site in SITES[source.edition])
    return str(fetch_file(reviews, folder, way_out)), str(fetch_file(metadata, folder, way_out))
