"""Histories of many users, read in any order from any number of files."""

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from recranker.distributed.datasets import by_users
from recranker.schema import INTERACTIONS
from recranker.tasks.histories import group_events

EVENT_COLUMNS = ["user_id", "item_id", "feedback", "sequence", "split"]
"""Of INTERACTIONS: what prompts and the leakage gate look at."""
EVENTS = pa.schema([INTERACTIONS.schema.field(name) for name in EVENT_COLUMNS])
MAX_SENT_USERS = 2_000_000
"""Users whose ids are sent to every node, so that the events of others are dropped where they are read; of more,
events of all users travel, and those nobody asks for are dropped where they meet."""
EVENTS_PER_BUCKET = 1_000_000
"""Events that meet in one worker, roughly."""


def needed_events(interactions: Dataset, users: pa.Array | None = None) -> Dataset:
    """EVENTS that prompts are made of and checked with: likes, dislikes and held-out events of the users asked for.

    Args:
        interactions: INTERACTIONS, at least ``EVENT_COLUMNS``.
        users: Whose events; None, or more than ``MAX_SENT_USERS``: everybody's.
    """
    sent = ray.put(users) if users is not None and len(users) <= MAX_SENT_USERS else None
    return interactions.map_batches(_needed, fn_args=([sent],), batch_size=None, batch_format="pyarrow")


def assemble(interactions: Dataset, buckets: int, users: pa.Array | None = None) -> Dataset:
    """HISTORIES: a row per user with its likes, dislikes and held-out events; the same rows for any buckets.

    Args:
        interactions: INTERACTIONS in any order, at least ``EVENT_COLUMNS``.
        buckets: That users meet in; see ``num_buckets``.
        users: Whose histories, see ``needed_events``.

    Raises:
        DataError: If a user has two events with the same sequence number.
    """
    events = needed_events(interactions, users)
    return by_users({"events": events}, {"events": EVENTS}, _grouped, buckets)


def num_buckets(events: int, *, at_least: int) -> int:
    """Buckets in which so many events do not crowd a worker; results do not depend on it."""
    return max(at_least, -(-events // EVENTS_PER_BUCKET))


def _grouped(tables: dict[str, pa.Table]) -> pa.Table:
    return group_events(tables["events"])


def _needed(interactions: pa.Table, sent: list["ray.ObjectRef[pa.Array] | None"]) -> pa.Table:
    events = interactions.select(EVENT_COLUMNS)
    judged = pc.is_in(events["feedback"], value_set=pa.array(["like", "dislike"]))
    held_out = pc.is_in(events["split"], value_set=pa.array(["validation", "test"]))
    needed = pc.or_(judged, held_out)
    if sent[0] is not None:
        needed = pc.and_(needed, pc.is_in(events["user_id"], value_set=ray.get(sent[0])))
    return events.filter(needed)
