"""MovieLens-latest-small: about 600 users, ratings from 0.5 to 5 in halves (Harper & Konstan 2015).

The publisher renews it now and then; the counts known here are those of September 2018.
"""

import logging
from pathlib import Path

import pyarrow.compute as pc

from recranker.data.fetch import Remote, fetch_archive
from recranker.data.sources import raw
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.folders import files_in
from recranker.data.sources.movielens import TERMS, THRESHOLDS, read_films, read_ratings
from recranker.data.sources.rows import quarantined
from recranker.data.sources.settings import MovieLensLatestSmallSource, TextFormat

logger = logging.getLogger(__name__)

FACTS = SourceFacts(
    kind="movielens-latest-small",
    users=610,
    items=9742,
    events=100_836,
    ratings="0.5-5 in halves",
    order="time",
    terms=TERMS,
    download="1 MB",
    where="fetched from files.grouplens.org, or path = folder with ratings.csv and movies.csv",
)
ARCHIVE = Remote(
    "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
    "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
)
NAMES = ("ratings.csv", "movies.csv")
COLUMNS = {"user_id": "userId", "item_id": "movieId"} | {
    name: name for name in ("rating", "timestamp", "title", "genres")
}


def read(source: MovieLensLatestSmallSource, cache: Path) -> raw.RawData:
    """The whole data set.

    Raises:
        FetchError: If the files cannot be fetched.
        DataError: If a file is missing or broken.
    """
    ratings_file, films_file = _files(source, cache)
    ratings = read_ratings(ratings_file, TextFormat(), COLUMNS, source.on_bad_rows)
    films = read_films(films_file, TextFormat(), COLUMNS, source.on_bad_rows)
    found = (pc.count_distinct(ratings.table["user_id"]).as_py(), films.table.num_rows, ratings.table.num_rows)
    if found != (FACTS.users, FACTS.items, FACTS.events):
        logger.warning("%s holds %s users, films and ratings, not those of September 2018", ratings.file, found)
    return raw.RawData(
        name="MovieLens-latest-small",
        interactions=ratings.table.cast(raw.INTERACTIONS),
        items=films.table.cast(raw.ITEMS),
        interactions_file=ratings.file,
        items_file=films.file,
        rows_read=ratings.read,
        scale=(0.5, 5.0),
        thresholds=THRESHOLDS,
        quarantined=quarantined(interactions=ratings, items=films),
        columns=COLUMNS,
    )


def _files(source: MovieLensLatestSmallSource, cache: Path) -> list[Path]:
    if source.path is not None:
        return files_in(source.path, NAMES)
    members = [f"ml-latest-small/{name}" for name in NAMES]
    way_out = "make it reachable, or set data.source.path to the folder with ratings.csv and movies.csv"
    return fetch_archive(ARCHIVE, members, cache / FACTS.kind, way_out)
