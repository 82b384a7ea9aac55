"""MovieLens-latest-small: the publisher's CSV files."""

import logging
from pathlib import Path

import pytest

from recranker.data.sources import movielens_latest_small
from recranker.data.sources.raw import checked
from recranker.data.sources.settings import MovieLensLatestSmallSource

RATINGS = "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,0.5,964981247\n"
FILMS = 'movieId,title,genres\n1,"American President, The (1995)",Comedy|Drama\n3,Odd,(no genres listed)\n'


def test_the_publishers_files_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ratings.csv").write_text(RATINGS)
    (tmp_path / "movies.csv").write_text(FILMS)
    source = MovieLensLatestSmallSource(kind="movielens-latest-small", path=str(tmp_path))
    with caplog.at_level(logging.WARNING):
        raw = checked(movielens_latest_small.read(source, tmp_path), 0.5, 5.0)
    assert raw.interactions.to_pylist()[1] == {"user_id": "1", "item_id": "3", "rating": 0.5, "timestamp": 964981247}
    assert raw.items.to_pylist() == [
        {"item_id": "1", "title": "The American President (1995)", "genres": ["Comedy", "Drama"]},
        {"item_id": "3", "title": "Odd", "genres": [""]},
    ]
    assert raw.scale == (0.5, 5.0)
    assert "not those of September 2018" in caplog.text
