"""MovieLens-1M: 6,040 users, 1,000,209 ratings from 1 to 5 (Harper & Konstan 2015, doi:10.1145/2827872).

Read whole or in part: what is missing is said in the name of the data set.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.fetch import Remote, fetch_archive
from recranker.data.lookup import column
from recranker.data.sources import raw
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.folders import beside, files_in
from recranker.data.sources.movielens import TERMS, THRESHOLDS, read_films, read_ratings
from recranker.data.sources.rows import quarantined
from recranker.data.sources.settings import MovieLens1MSource, TextFormat
from recranker.errors import DataError

FACTS = SourceFacts(
    kind="movielens-1m",
    users=6040,
    items=3883,
    events=1_000_209,
    ratings="1-5",
    order="time",
    terms=TERMS,
    download="6 MB",
    where="fetched from files.grouplens.org, or path = folder with ratings.dat and movies.dat",
)
ARCHIVE = Remote(
    "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
)
NAMES = ("ratings.dat", "movies.dat")
RATINGS = TextFormat(separator="::", encoding="latin-1", columns=raw.INTERACTIONS.names)
FILMS = TextFormat(separator="::", encoding="latin-1", columns=raw.ITEMS.names)


def read(source: MovieLens1MSource, cache: Path) -> raw.RawData:
    """The ratings that are there, and all films.

    Raises:
        FetchError: If the files cannot be fetched.
        DataError: If a file is missing, broken, or of another data set.
    """
    ratings_file, films_file = _files(source, cache)
    named = {name: name for name in (*raw.INTERACTIONS.names, *raw.ITEMS.names)}
    ratings = read_ratings(ratings_file, RATINGS, named, source.on_bad_rows)
    films = read_films(films_file, FILMS, named, source.on_bad_rows)
    return raw.RawData(
        name=name_of(ratings.table, ratings.file),
        interactions=ratings.table.cast(raw.INTERACTIONS),
        items=films.table.cast(raw.ITEMS),
        interactions_file=ratings.file,
        items_file=films.file,
        rows_read=ratings.read,
        scale=(1.0, 5.0),
        thresholds=THRESHOLDS,
        quarantined=quarantined(interactions=ratings, items=films),
    )


def name_of(ratings: pa.Table, file: str) -> str:
    """What these ratings are: the whole set, a run of its users, or some of them.

    Raises:
        DataError: If they cannot be of this set.
    """
    users = np.sort(column(_numbers(pc.unique(ratings["user_id"]), file)))
    if len(users) and (users[0] < 1 or users[-1] > FACTS.users or ratings.num_rows > FACTS.events):
        raise DataError(
            f"{file}: MovieLens-1M has users 1 to {FACTS.users} and {FACTS.events} ratings, found users {users[0]} to "
            f'{users[-1]} and {ratings.num_rows} ratings; it is another set, read it with kind = "files"'
        )
    if ratings.num_rows == FACTS.events:
        return "MovieLens-1M"
    if len(users) == FACTS.users:
        return f"MovieLens-1M ({ratings.num_rows:,} of {FACTS.events:,} ratings)"
    if len(users) and len(users) == users[-1] - users[0] + 1:
        return f"MovieLens-1M (users {users[0]}-{users[-1]})"
    return f"MovieLens-1M ({len(users):,} of {FACTS.users:,} users)"


def _numbers(ids: pa.Array, file: str) -> pa.Array:
    try:
        return ids.cast(pa.int64())
    except pa.ArrowInvalid as error:
        raise DataError(f"{file}: users of MovieLens-1M are numbers, {error}; take the publisher's own file") from None


def _files(source: MovieLens1MSource, cache: Path) -> list[Path]:
    if source.path is None:
        members = [f"ml-1m/{name}" for name in NAMES]
        way_out = "make it reachable, or set data.source.path to the folder with ratings.dat and movies.dat"
        return fetch_archive(ARCHIVE, members, cache / FACTS.kind, way_out)
    path = Path(source.path).expanduser()
    return [path, beside(path, NAMES[1], NAMES)] if path.is_file() else files_in(source.path, NAMES)
