"""Prompts over a cluster: users meet by hash, and each worker makes, counts, checks and writes those of its users.

Nothing as long as a table comes to the driver: it hears how many rows became prompts, and sees a sample of them.
"""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import ray
from pyarrow import fs
from ray.data import Dataset

from recranker.data.leakage.checks import OF_PROMPTS, run_checks
from recranker.data.leakage.tables import GateTables
from recranker.distributed.datasets import bucket_of, by_users, from_bytes, from_files, from_store, from_table, to_bytes
from recranker.distributed.histories import EVENT_COLUMNS, EVENTS, MAX_SENT_USERS, needed_events, num_buckets
from recranker.errors import DataError, OutputError
from recranker.llm.token_counts import TokenCounter
from recranker.randomness import keys_of
from recranker.schema import CANDIDATES, DRAWS, INTERACTIONS, PROMPTS, QUARANTINE, TableSchema
from recranker.store import Store
from recranker.tasks.instructions import NEEDED_OF_LISTS, WITH_REASON, PromptBuilder, titles_by_id
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings
from recranker.tasks.wording import Templates

logger = logging.getLogger(__name__)

SCHEMAS = {
    "events": EVENTS,
    "lists": pa.schema([CANDIDATES.schema.field(name) for name in NEEDED_OF_LISTS]),
    "draws": DRAWS.schema,
}
"""What meets in a worker."""
OVER_ALL = ("lists-shuffled", "target-moves", "wording-same", "templates-same")
"""Checks of the leakage gate that compare prompts with one another; those of a few users would look suspicious."""
SAMPLED_PROMPTS = 20_000
"""Prompts, roughly, of whole users that these checks see; all there are where there are no more."""
PROMPTS_PER_BUCKET = 8_000
"""Prompts made before they are written, roughly: about 50 MB with lists of ten."""


@dataclass(frozen=True)
class Maker:
    """Makes the prompts of some users; sent to each worker once."""

    items: pa.Table
    """ITEMS, at least ``item_id`` and ``title``."""
    settings: InstructSettings
    scale: RatingScale
    seed: int
    templates: Templates
    counter: TokenCounter

    def make(self, tables: dict[str, pa.Table]) -> pa.Table:
        """Rows of ``WITH_REASON`` with their tokens counted, checked by the leakage gate as far as one user goes.

        Args:
            tables: ``events``, ``lists`` and ``draws`` of the users, in any order.

        Raises:
            LeakageError: If a prompt knows what it must not.
            DataError: If a list has a candidate twice, or a user two events with the same sequence number.
        """
        rows = self.builder.prompts(tables["events"], tables["lists"], tables["draws"])
        rows = self.counter.count(rows)
        each = [check for check in OF_PROMPTS if check.name not in OVER_ALL]
        run_checks(self._gate(tables["events"], tables["lists"], prompts_in(rows)), each)
        return rows

    def check_over_all(self, lists: pa.Table, prompts: pa.Table) -> None:
        """The gate's checks that compare prompts with one another.

        Raises:
            LeakageError: If they were not shuffled, or training and inference are worded differently.
        """
        over_all = [check for check in OF_PROMPTS if check.name in OVER_ALL]
        run_checks(self._gate(EVENTS.empty_table(), lists, prompts), over_all)

    @cached_property
    def builder(self) -> PromptBuilder:
        """Unpacked on first use, once per worker."""
        return PromptBuilder(titles_by_id(self.items), self.settings, self.scale, self.seed, self.templates)

    def _gate(self, events: pa.Table, lists: pa.Table, prompts: pa.Table) -> GateTables:
        hints = self.settings.hints
        return GateTables(events, {}, items=self.items, candidates=lists, prompts=prompts, hints=hints)


@dataclass(frozen=True)
class Source:
    """What prompts are made of."""

    interactions: Dataset
    """INTERACTIONS, at least ``EVENT_COLUMNS``."""
    lists: Dataset
    """CANDIDATES, at least ``NEEDED_OF_LISTS``."""
    draws: Dataset
    """DRAWS."""
    drawn: pa.Array | None
    """Ids of the users drawn; None where they are too many to name."""
    ranked: pa.Array | None
    """Ids of the users with lists to rank, likewise."""
    events: int
    """Rows of INTERACTIONS."""
    rows: int
    """Draws and lists to rank: each becomes a prompt or a reason why there is none."""

    def tables(self) -> dict[str, Dataset]:
        """What travels, by name: only rows that somebody asks for."""
        both = None if self.drawn is None or self.ranked is None else pa.concat_arrays([self.drawn, self.ranked])
        sent = None if self.drawn is None else ray.put(self.drawn)
        return {
            "events": needed_events(self.interactions, None if both is None else pc.unique(both)),
            "lists": self.lists.map_batches(_needed_lists, fn_args=([sent],), batch_size=None, batch_format="pyarrow"),
            "draws": self.draws,
        }

    def buckets(self, *, at_least: int) -> int:
        """Buckets of users that fit a worker's memory."""
        return num_buckets(self.events, at_least=max(at_least, -(-self.rows // PROMPTS_PER_BUCKET)))


@dataclass
class Made:
    """How many rows became prompts, and why others did not."""

    prompts: int = 0
    tokens: int = 0
    """Of all prompts, the chat frame included, before any is cut."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows put aside, by reason."""

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        counts = {"prompts": self.prompts, "quarantined": self.reasons.total()}
        reasons = dict(sorted(self.reasons.items()))
        return {"rows_in": sum(counts.values()), **counts, "quarantined_because": reasons, "prompt_tokens": self.tokens}

    def check(self, rows_in: int, *, there: int) -> None:
        """Every row that came in is a row that can be read.

        Args:
            rows_in: Draws and lists to rank.
            there: Rows in the folders, as this process sees them.

        Raises:
            DataError: If rows were lost or doubled on the way.
            OutputError: If workers wrote where this process does not look.
        """
        counts = f"{self.prompts} prompts and {self.reasons.total()} quarantined"
        came_out = self.prompts + self.reasons.total()
        if came_out != rows_in:
            raise DataError(f"{rows_in} draws and lists to rank became {counts}; run the stages before again")
        if there != came_out:
            shared = "set store.home to a folder that all nodes share"
            raise OutputError(f"workers wrote {counts}, {there} rows are there; {shared}")
        logger.info("instruct: %d rows in = %d prompts + %d quarantined", rows_in, self.prompts, self.reasons.total())
        for reason, count in sorted(self.reasons.items()):
            logger.info("instruct: %d quarantined: %s", count, reason)


@dataclass(frozen=True)
class Parts:
    """Where workers write; a bucket's part has one name, so that one written again, after a death, replaces itself."""

    filesystem: fs.FileSystem
    prompts: str
    """Folder of PROMPTS, which all nodes must see."""
    quarantine: str
    """Folder of QUARANTINE, likewise."""

    def write(self, bucket: int, rows: pa.Table) -> None:
        """Rows of ``WITH_REASON`` as a part of each table.

        Raises:
            OutputError: If they cannot be written.
        """
        for folder, table in ((self.prompts, prompts_in(rows)), (self.quarantine, quarantined_in(rows))):
            path = f"{folder}/part-{bucket:05d}.parquet"
            try:
                if table.num_rows:
                    pq.write_table(table, path, filesystem=self.filesystem, compression="zstd")
            except OSError as error:
                raise OutputError(f"cannot write {path!r}: {error}; set store.home to a writable place") from None

    def rows(self) -> int:
        """Rows of both tables as this process sees them."""
        count = 0
        for folder in (self.prompts, self.quarantine):
            for found in self.filesystem.get_file_info(fs.FileSelector(folder)):
                with self.filesystem.open_input_file(found.path) as file:
                    count += pq.read_metadata(file).num_rows
        return count


def published_source(store: Store) -> Source:
    """What the stages before have published; tables are read where they are used."""
    draws, lists = store.files("sample", DRAWS), store.files("backbone", CANDIDATES)
    num_draws, drawn = _users_in(store, draws, DRAWS, None)
    num_ranked, ranked = _users_in(store, lists, CANDIDATES, ds.field("split") != "train")
    return Source(
        from_store(store, "prepare", INTERACTIONS, EVENT_COLUMNS),
        from_files(store, lists, CANDIDATES, list(NEEDED_OF_LISTS)),
        from_files(store, draws, DRAWS),
        drawn,
        ranked,
        events=store.require("prepare").tables[INTERACTIONS.name]["rows"],
        rows=num_draws + num_ranked,
    )


def source_of(interactions: pa.Table, lists: pa.Table, draws: pa.Table, blocks: int) -> Source:
    """The same of tables in memory, cut into so many blocks."""
    ranked = lists.filter(pc.not_equal(lists["split"], "train"))
    return Source(
        from_table(interactions, blocks),
        from_table(lists, blocks),
        from_table(draws, blocks),
        pc.unique(draws["user_id"]),
        pc.unique(ranked["user_id"]),
        events=interactions.num_rows,
        rows=draws.num_rows + ranked.num_rows,
    )


def write_prompts(
    source: Source, maker: Maker, parts: Parts, *, at_least: int, on_rows: Callable[[int], None] = lambda rows: None
) -> Made:
    """Make all prompts and write them; the same rows for any number of buckets, blocks and nodes.

    Args:
        source: What they are made of.
        maker: Makes them.
        parts: Where they go.
        at_least: Buckets of users, if no more are needed.
        on_rows: Told as rows are finished how many more there are.

    Raises:
        LeakageError: If a prompt knows what it must not.
        DataError: If the tables do not fit together.
        OutputError: If rows cannot be written, or nodes do not share the folder.
    """
    shared, sample_of = ray.put(maker), max(1, source.rows // SAMPLED_PROMPTS)

    buckets = source.buckets(at_least=at_least)

    def work(tables: dict[str, pa.Table]) -> pa.Table:
        rows = _fetched(shared).make(tables)
        if rows.num_rows:
            parts.write(int(bucket_of(rows["user_id"].slice(0, 1), buckets)[0]), rows)
        return _report(rows, tables["lists"], sample_of)

    made, lists, prompts = Made(), [SCHEMAS["lists"].empty_table()], [PROMPTS.schema.empty_table()]
    for report in by_users(source.tables(), SCHEMAS, work, buckets).iter_rows():
        reasons = Counter(dict(zip(report["reasons"], report["counts"], strict=True)))
        made.prompts, made.tokens = made.prompts + report["prompts"], made.tokens + report["tokens"]
        made.reasons += reasons
        lists.append(from_bytes(report["sampled_lists"]))
        prompts.append(from_bytes(report["sampled_prompts"]))
        on_rows(report["prompts"] + reasons.total())
    maker.check_over_all(pa.concat_tables(lists), pa.concat_tables(prompts))
    made.check(source.rows, there=parts.rows())
    return made


def build_prompts(source: Source, maker: Maker, *, at_least: int) -> tuple[pa.Table, pa.Table]:
    """The PROMPTS and QUARANTINE tables themselves, for a few lists.

    Args:
        source: What they are made of.
        maker: Makes them.
        at_least: Buckets of users, if no more are needed; the rows do not depend on it.

    Raises:
        LeakageError: If a prompt knows what it must not.
        DataError: If the tables do not fit together.
    """
    shared = ray.put(maker)

    def work(tables: dict[str, pa.Table]) -> pa.Table:
        return _fetched(shared).make(tables)

    parts = ray.get(by_users(source.tables(), SCHEMAS, work, source.buckets(at_least=at_least)).to_arrow_refs())
    rows = pa.concat_tables([WITH_REASON.empty_table(), *(part.cast(WITH_REASON) for part in parts if part.num_rows)])
    return prompts_in(rows), quarantined_in(rows)


def prompts_in(rows: pa.Table) -> pa.Table:
    """PROMPTS of rows of ``WITH_REASON``."""
    return PROMPTS.conform(rows.filter(pc.is_null(rows["reason"])).drop_columns("reason"), where="made prompts")


def quarantined_in(rows: pa.Table) -> pa.Table:
    """QUARANTINE of rows of ``WITH_REASON``."""
    aside = rows.filter(pc.is_valid(rows["reason"]))
    return pa.table([aside["prompt_id"], aside["reason"]], schema=QUARANTINE.schema)


def _report(rows: pa.Table, lists: pa.Table, sample_of: int) -> pa.Table:
    """What the driver is told of a bucket, and the prompts and lists of one user in ``sample_of``."""
    prompts = prompts_in(rows)
    reasons = pc.value_counts(rows["reason"].drop_null())
    in_questions = prompts["questions"].combine_chunks().flatten().field("tokens")
    tokens = [pc.sum(one).as_py() or 0 for one in (prompts["prefix_tokens"], in_questions)]
    sampled = [one.filter(_is_sampled(one["user_id"], sample_of)) for one in (lists, prompts)]
    return pa.table(
        {
            "prompts": [prompts.num_rows],
            "tokens": [sum(tokens)],
            "reasons": pa.array([reasons.field("values").to_pylist()], pa.list_(pa.string())),
            "counts": pa.array([reasons.field("counts").to_pylist()], pa.list_(pa.int64())),
            "sampled_lists": pa.array([to_bytes(sampled[0])], pa.large_binary()),
            "sampled_prompts": pa.array([to_bytes(sampled[1])], pa.large_binary()),
        }
    )


def _is_sampled(user_ids: pa.ChunkedArray, sample_of: int) -> pa.Array:
    return pa.array(keys_of(user_ids, "sample for the leakage gate") % np.uint64(sample_of) == 0)


def _needed_lists(lists: pa.Table, sent: list["ray.ObjectRef[pa.Array] | None"]) -> pa.Table:
    """Lists to rank, and the training lists of users drawn."""
    lists = lists.select(NEEDED_OF_LISTS)
    if sent[0] is None:
        return lists
    drawn = pc.is_in(lists["user_id"], value_set=ray.get(sent[0]))
    return lists.filter(pc.or_(drawn, pc.not_equal(lists["split"], "train")))


def _users_in(
    store: Store, files: list[str], table: TableSchema, kept: ds.Expression | None
) -> tuple[int, pa.Array | None]:
    """How many rows of a published table are kept, and their users, each once; None: more than can be sent."""
    rows, users = 0, pa.array([], pa.string())
    found = ds.dataset(files, table.schema, format="parquet", filesystem=store.filesystem)
    for batch in found.to_batches(columns=["user_id"], filter=kept):
        rows += batch.num_rows
        if users is not None:
            users = pc.unique(pa.concat_arrays([users, batch["user_id"]]))
            users = users if len(users) <= MAX_SENT_USERS else None
    return rows, users


@lru_cache(maxsize=1)
def _fetched(reference: "ray.ObjectRef[Maker]") -> Maker:
    """The maker, unpacked once per worker rather than once per bucket."""
    maker: Maker = ray.get(reference)
    return maker
