"""Last.fm: plays are likes, and nothing has a time."""

from pathlib import Path
from typing import Any

from recranker.data.sources import lastfm
from recranker.data.sources.raw import RawData, checked
from recranker.data.sources.settings import LastFMSource
from tests.data.sources.shared import SHARED, needs, sizes

PLAYS = "userID\tartistID\tweight\n2\t51\t13883\n2\t52\t1\n3\t51\t7\n"
ARTISTS = 'id\tname\turl\tpictureURL\n51\t"Weird" & Björk\thttp://x\thttp://y\n52\tAir\t\t\n'


def _read(folder: Path, **settings: Any) -> RawData:
    source = LastFMSource(kind="lastfm", path=str(folder), **settings)
    return checked(lastfm.read(source, folder), 0, 1)


def _write(folder: Path) -> Path:
    (folder / "user_artists.dat").write_text(PLAYS)
    (folder / "artists.dat").write_text(ARTISTS, encoding="utf-8")
    return folder


def test_every_artist_played_is_liked(tmp_path: Path) -> None:
    raw = _read(_write(tmp_path))
    assert raw.interactions.to_pylist()[0] == {"user_id": "2", "item_id": "51", "rating": None, "timestamp": None}
    assert raw.items["title"].to_pylist() == ['"Weird" & Björk', "Air"]
    assert (raw.has_ratings, raw.order, raw.like_means) == (False, "none", "every play of an artist is a like")


def test_rarely_played_artists_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    raw = _read(_write(tmp_path), min_plays=8)
    assert raw.interactions.num_rows == 1
    assert raw.dropped == {"rarely_played_dropped": 2}
    assert raw.like_means == "an artist played 8 times or more is a like"


@needs("lastfm-hetrec2011")
def test_the_shared_files_hold_what_their_owner_says() -> None:
    raw = _read(SHARED / "lastfm-hetrec2011")
    assert sizes(raw) == (1892, 17_632, 92_834)
    assert all(raw.items["title"].to_pylist())
