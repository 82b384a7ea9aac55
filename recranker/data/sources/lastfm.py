"""Last.fm listening counts: 1,892 users, 17,632 artists, 92,834 pairs (Cantador, Brusilovsky & Kuflik, HetRec 2011).

There are no ratings: an artist played often enough is liked. There are no times: a history has no order.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recranker.data.fetch import Remote, fetch_archive
from recranker.data.sources import raw
from recranker.data.sources.catalogue import SourceFacts
from recranker.data.sources.delimited import read_delimited
from recranker.data.sources.folders import files_in
from recranker.data.sources.rows import Rows, quarantined, with_ids, with_numbers
from recranker.data.sources.settings import LastFMSource, TextFormat

FACTS = SourceFacts(
    kind="lastfm",
    users=1892,
    items=17_632,
    events=92_834,
    ratings="none (play counts)",
    order="none",
    terms="non-commercial use",
    download="3 MB",
    where="fetched from files.grouplens.org, or path = folder with user_artists.dat and artists.dat",
)
ARCHIVE = Remote(
    "https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip",
    "6738f48195667ff03caaab4d32ca9a3133d8cc026b7c3cdaf6ce1010e913c59c",
)
NAMES = ("user_artists.dat", "artists.dat")
WRITTEN = TextFormat(separator="\t", quote=None)
PLAYS = {"user_id": "userID", "item_id": "artistID", "plays": "weight"}
ARTISTS = {"item_id": "id", "title": "name"}


def read(source: LastFMSource, cache: Path) -> raw.RawData:
    """Artists played at least ``min_plays`` times by a user.

    Raises:
        FetchError: If the files cannot be fetched.
        DataError: If a file is missing or broken.
    """
    plays_file, artists_file = _files(source, cache)
    plays = read_delimited(str(plays_file), WRITTEN, PLAYS, source.on_bad_rows)
    plays = with_numbers(with_ids(plays, "user_id", "item_id"), "plays")
    artists = with_ids(read_delimited(str(artists_file), WRITTEN, ARTISTS, source.on_bad_rows), "item_id")
    liked = plays.table.filter(pc.greater_equal(plays.table["plays"], source.min_plays))
    least = "every play of an artist" if source.min_plays == 1 else f"an artist played {source.min_plays} times or more"
    return raw.RawData(
        name="Last.fm (HetRec 2011)",
        interactions=_interactions(liked),
        items=_items(artists),
        interactions_file=plays.file,
        items_file=artists.file,
        rows_read=plays.read,
        has_ratings=False,
        order="none",
        event_means=f"{least} is a like",
        dropped={"rarely_played_dropped": plays.table.num_rows - liked.num_rows},
        quarantined=quarantined(interactions=plays, items=artists),
        columns=PLAYS,
    )


def _interactions(plays: pa.Table) -> pa.Table:
    nothing = [pa.nulls(plays.num_rows, raw.INTERACTIONS.field(name).type) for name in ("rating", "timestamp")]
    return pa.table([plays["user_id"], plays["item_id"], *nothing], schema=raw.INTERACTIONS)


def _items(artists: Rows) -> pa.Table:
    genres = pa.nulls(artists.table.num_rows, raw.ITEMS.field("genres").type)
    return pa.table([artists.table["item_id"], artists.table["title"], genres], schema=raw.ITEMS)


def _files(source: LastFMSource, cache: Path) -> list[Path]:
    if source.path is not None:
        return files_in(source.path, NAMES)
    way_out = "make it reachable, or set data.source.path to the folder with user_artists.dat and artists.dat"
    return fetch_archive(ARCHIVE, NAMES, cache / FACTS.kind, way_out)
