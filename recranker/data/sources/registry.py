"""All sources by the name data.source.kind gives them."""

from pathlib import Path
from typing import Any, Protocol

from recranker.data.sources import (
    amazon,
    bookcrossing,
    files,
    lastfm,
    movielens_1m,
    movielens_100k,
    movielens_latest_small,
)
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.raw import RawData
from recranker.data.sources.settings import Source


class SourceModule(Protocol):
    """What the file of every source holds."""

    FACTS: SourceFacts

    def read(self, source: Any, cache: Path, /) -> RawData:
        """The whole data set, unchecked; ``cache`` keeps what is fetched.

        Raises:
            FetchError: If files cannot be fetched.
            DataError: If they cannot be used.
        """


SOURCES: tuple[SourceModule, ...] = (
    movielens_100k,
    movielens_1m,
    movielens_latest_small,
    bookcrossing,
    amazon,
    lastfm,
    files,
)
CATALOGUE: tuple[SourceFacts, ...] = tuple(source.FACTS for source in SOURCES)
"""What is known about each before anything is read."""

_BY_KIND = {source.FACTS.kind: source for source in SOURCES}


def read_source(source: Source, cache: Path) -> RawData:
    """What the source holds, unchecked.

    Raises:
        FetchError: If files cannot be fetched.
        DataError: If they cannot be used.
    """
    return _BY_KIND[source.kind].read(source, cache)
