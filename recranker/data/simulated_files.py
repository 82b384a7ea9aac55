"""A simulated service on disk: shard by shard, in any number of processes, always the same bytes.

A folder holds ``interactions/`` and ``items/``, files that data.source kind 'files' reads, ``service.json``, which says
what they were made from, and ``simulated.toml``, settings for jobs. A file that is there is whole, so a run that was
stopped goes on where it was.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import fs

from recranker.data.denominators import explain_denominator
from recranker.data.facts import RatingMeaning
from recranker.data.simulated_lists import (
    Popularity,
    candidates_table,
    factors_table,
    interactions_table,
    shard_of,
    split_of,
    training_likes,
)
from recranker.data.simulated_service import (
    SCALE,
    SOURCE,
    THRESHOLDS,
    ServiceSettings,
    events_table,
    histories_of,
    items_table,
)
from recranker.data.sources import raw
from recranker.data.splits import MIN_LIKES, SPLITS, TEST
from recranker.errors import OutputError
from recranker.schema import CANDIDATES, INTERACTIONS, ITEMS, SIGNALS, USER_FACTORS
from recranker.store import Origin, Store, write_atomically, write_table_atomically

logger = logging.getLogger(__name__)

MARKER = "service.json"
CONFIG = "simulated.toml"
GENERATION = 1
"""Raise it when the same settings make other events."""
ITEMS_PER_FILE = 100_000
WHAT_LISTS_ARE = (
    "simulated: candidates drawn by popularity and the user's taste, scored by both and by chance; no backbone was "
    "fitted, so results say nothing about a method"
)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Tally:
    """Counts over some shards."""

    counts: Counter[str]
    popularity: Popularity
    met: NDArray[np.bool_]
    """``(items,)`` whether anybody met the item."""

    @classmethod
    def empty(cls, num_items: int) -> "Tally":
        """Of no shard."""
        nobody = np.zeros(num_items, dtype=np.int32)
        return cls(Counter(), Popularity(nobody, nobody.copy()), nobody > 0)

    def add(self, other: "Tally") -> None:
        """Count another shard in."""
        self.counts.update(other.counts)
        self.popularity.full[:] += other.popularity.full
        self.popularity.rolled_back[:] += other.popularity.rolled_back
        self.met[:] |= other.met


def write_service(
    service: ServiceSettings, out: Path, workers: int, on_file: Callable[[], None] = lambda: None
) -> Tally:
    """Write what is not there yet of ``interactions/`` and ``items/``; returns the counts of all shards.

    Args:
        service: How large it is.
        out: A folder that is new, empty, or holds this very service.
        workers: Processes; each holds one shard.
        on_file: Called for every file that is there.

    Raises:
        OutputError: If the folder holds something else, or cannot be written.
    """
    _claim(out, service)
    tally = Tally.empty(service.items)
    for part in _each(partial(_write_events, service, out / "interactions"), range(service.shards), workers):
        tally.add(part)
        on_file()
    for number in range(item_files(service)):
        _write_items(service, out / "items", None, number)
        on_file()
    return tally


def publish_service(
    service: ServiceSettings,
    store: Store,
    tally: Tally,
    workers: int,
    on_file: Callable[[], None] = lambda: None,
    *,
    code: str,
    commit: str = "unknown",
) -> None:
    """Publish stages 'prepare' and 'backbone' of the service; candidates are simulated, no backbone is fitted.

    FIT_EVENTS are not published: there is no fit.

    Args:
        service: What ``tally`` counts.
        store: Of one run; the tables of other runs are not touched.
        tally: Of ``write_service``.
        workers: Processes; each holds one shard.
        on_file: Called for every shard.
        code: Hash of the sources that make it.
        commit: Version control state of the code, for people.

    Raises:
        OutputError: If the store cannot be written, or is on no local or mounted filesystem.
    """
    if not isinstance(store.filesystem, fs.LocalFileSystem):
        raise OutputError(f"a simulated run needs a local or mounted filesystem, got {store.uri}; name a folder")
    origin = Origin(service.model_dump_json(), code, {})
    known = [store.manifest(stage) for stage in ("prepare", "backbone")]
    if all(one is not None and one.origin == origin for one in known):
        logger.info("%s: unchanged, skipped", store.uri)
        return
    with (
        TemporaryDirectory() as shared,
        store.publish("prepare", origin, commit=commit) as prepare,
        store.publish("backbone", origin, commit=commit) as backbone,
    ):
        _share(tally.popularity, Path(shared))
        folders = {table.name: Path(prepare.folder(table)) for table in (INTERACTIONS, ITEMS)}
        folders |= {table.name: Path(backbone.folder(table)) for table in (CANDIDATES, USER_FACTORS)}
        backbone.write(SIGNALS, SIGNALS.schema.empty_table())
        for number in range(item_files(service)):
            _write_items(service, folders[ITEMS.name], ITEMS.schema, number)
        counts: Counter[str] = Counter()
        for part in _each(partial(_write_tables, service, folders, Path(shared)), range(service.shards), workers):
            counts.update(part)
            on_file()
        prepare.facts.update(prepare_facts(service, tally, counts))
        backbone.facts.update({name: counts[name] for name in _LIST_COUNTS} | {"retriever": WHAT_LISTS_ARE})


def prepare_facts(service: ServiceSettings, tally: Tally, split_counts: Mapping[str, int]) -> dict[str, Any]:
    """What the manifest of stage 'prepare' says; the source is 'simulated'."""
    described = raw.RawData(
        name=SOURCE,
        interactions=raw.INTERACTIONS.empty_table(),
        items=raw.ITEMS.empty_table(),
        interactions_file="",
        items_file="",
        rows_read=0,
    )
    met, events = int(tally.met.sum()), tally.counts["interactions"]
    counts: dict[str, float] = {
        "interactions": events,
        "items": service.items,
        **{name: tally.counts[name] for name in ("likes", "neutral", "dislikes")},
        "users": service.users,
        "items_interacted_with": met,
        **{name: tally.counts[name] for name in ("users_with_3_likes", "test_users_before_dropping")},
        "test_items_unseen_in_training": tally.counts["test_users_before_dropping"] - split_counts["split_test"],
        "training_likes": int(tally.popularity.full.sum(dtype=np.int64)),
        **{f"split_{name}": split_counts[f"split_{name}"] for name in SPLITS},
        "sparsity": 1 - events / (service.users * met),
    }
    return {
        "source": SOURCE,
        **asdict(RatingMeaning(*SCALE, *THRESHOLDS)),
        "has_ratings": True,
        "unrated_is_like": False,
        "has_time": True,
        "order": "time",
        "like_means": described.like_means,
        "order_means": described.order_means,
        "counts": counts,
        "steps": list(counts),
        "denominator": explain_denominator(counts, SOURCE, "leave-one-out"),
        "split": {"kind": "leave-one-out"},
        "k_core": [],
        "service": service.model_dump(),
    }


def config_of(service: ServiceSettings, out: Path, name: str) -> str:
    """Settings for jobs on the service, as TOML; runs go into the same folder."""
    here = {part: json.dumps(str(out / part)) for part in ("interactions", "items", "runs")}  # TOML's strings as well
    return f"""# A simulated service: {service.users:,} users, {service.items:,} items, nothing in it real.
name = {json.dumps(name)}
seed = {service.seed}

[store]
runs = {here["runs"]}

[data]
rating_min = {SCALE[0]:g}
rating_max = {SCALE[1]:g}
like_at_least = {THRESHOLDS[0]:g}
dislike_below = {THRESHOLDS[1]:g}

[data.source]
kind = "files"
interactions = {here["interactions"]}
items = {here["items"]}
rating_column = "rating"
time_column = "timestamp"
genres_column = "genres"

[sampling]
kind = "adaptive"

[llm]
model = "smollm2-135m-instruct"
"""


def item_files(service: ServiceSettings) -> int:
    """Files the catalogue takes."""
    return -(-service.items // ITEMS_PER_FILE)


def _claim(out: Path, service: ServiceSettings) -> None:
    """Make ``out`` the folder of this service.

    Raises:
        OutputError: If it is something else already.
    """
    made_from = {"generation": GENERATION, **service.model_dump(exclude={"train_share", "ranked_share"})}
    marker = out / MARKER
    try:
        if not marker.exists() and out.exists() and any(out.iterdir()):
            raise OutputError(f"{str(out)!r} holds other files; name a new folder with --out")
        if marker.exists() and json.loads(marker.read_text(encoding="utf-8")) != made_from:
            raise OutputError(f"{str(out)!r} holds another service (see {MARKER}); name a new folder with --out")
        for folder in ("interactions", "items"):
            (out / folder).mkdir(parents=True, exist_ok=True)
        write_atomically(fs.LocalFileSystem(), str(marker), json.dumps(made_from, indent=2) + "\n")
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write {str(out)!r}: {error}; name another folder with --out") from None


def _each(work: Callable[[int], Result], numbers: Iterable[int], workers: int) -> Iterator[Result]:
    """What ``work`` makes of each number, in the order in which it is done; few wait at a time.

    Raises:
        OutputError: If a process is killed.
    """
    if workers == 1:
        yield from map(work, numbers)
        return
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            running: set[Future[Result]] = set()
            for number in numbers:
                running.add(pool.submit(work, number))
                if len(running) > workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (one.result() for one in done)
            yield from (one.result() for one in wait(running).done)
    except BrokenProcessPool:
        raise OutputError(
            "a process that made files was killed, most likely for its memory; run again with fewer --workers; files "
            "that are there are kept"
        ) from None


def _write_events(service: ServiceSettings, folder: Path, shard: int) -> Tally:
    histories = histories_of(service, service.users_of(shard))
    path = _part(folder, shard)
    if not path.exists():
        write_table_atomically(path, events_table(histories))
    split = split_of(service, histories)
    likes = np.bincount(histories.users[split.likes], minlength=len(histories.people.numbers))
    dislikes = int((histories.ratings < THRESHOLDS[1]).sum())
    counts = {
        "interactions": len(histories.users),
        "likes": int(likes.sum()),
        "neutral": len(histories.users) - int(likes.sum()) - dislikes,
        "dislikes": dislikes,
        "users_with_3_likes": int((likes >= MIN_LIKES).sum()),
        "test_users_before_dropping": int((split.splits == TEST).sum()),
    }
    met = np.bincount(histories.items, minlength=service.items) > 0
    return Tally(Counter(counts), training_likes(histories, split, service.items), met)


def _write_items(service: ServiceSettings, folder: Path, schema: pa.Schema | None, number: int) -> None:
    path = _part(folder, number)
    if not path.exists():
        first = number * ITEMS_PER_FILE
        items = items_table(service, range(first, min(first + ITEMS_PER_FILE, service.items)))
        write_table_atomically(path, items if schema is None else items.cast(schema))


def _write_tables(service: ServiceSettings, folders: Mapping[str, Path], shared: Path, number: int) -> Counter[str]:
    """INTERACTIONS, CANDIDATES and USER_FACTORS of one shard; counts of splits, lists and hits."""
    shard = shard_of(service, service.users_of(number), _shared(shared))
    lists = candidates_table(shard)
    tables = {
        INTERACTIONS.name: interactions_table(shard.histories, shard.split),
        USER_FACTORS.name: factors_table(shard.histories),
        CANDIDATES.name: lists,
    }
    for name, table in tables.items():
        write_table_atomically(_part(folders[name], number), table)
    per_split = np.bincount(shard.split.splits, minlength=len(SPLITS)).tolist()
    counts = Counter({f"split_{name}": count for name, count in zip(SPLITS, per_split, strict=True)})
    for name in ("train", "validation", "test"):
        hits = lists.filter(pc.equal(lists["split"], name))["hit"]
        counts.update({f"{name}_lists": len(hits), f"{name}_hits": pc.sum(hits).as_py() or 0})
    return counts


_LIST_COUNTS = [f"{split}_{what}" for split in ("train", "validation", "test") for what in ("lists", "hits")]


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def _share(popularity: Popularity, folder: Path) -> None:
    """Put it where every process maps it into memory, once for all of them."""
    for name, values in vars(popularity).items():
        np.save(folder / f"{name}.npy", values)


@lru_cache(maxsize=1)
def _shared(folder: Path) -> Popularity:
    return Popularity(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("full", "rolled_back")))
