"""A small clean run up to prompts, into which tests of the leakage gate plant leaks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recranker.data.prepare import prepare
from recranker.data.settings import DataSettings
from recranker.schema import CANDIDATES, DRAWS, FIT_EVENTS, PROMPTS
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import InstructSettings
from tests.toy import toy_settings

Row = dict[str, Any]
NUM_CANDIDATES = 6


@dataclass(frozen=True)
class Tables:
    """What the gate looks at."""

    interactions: pa.Table
    candidates: pa.Table
    fit_events: pa.Table
    prompts: pa.Table
    facts: Row

    def with_rows(self, name: str, change: Callable[[list[Row]], None]) -> "Tables":
        """The same with ``change`` applied to the rows of one table."""
        table: pa.Table = getattr(self, name)
        rows = table.to_pylist()
        change(rows)
        return replace(self, **{name: pa.Table.from_pylist(rows, schema=table.schema)})


def clean_tables(folder: Path) -> Tables:
    """24 users with a training, a validation and a test list each, where they have such a target; all lists hold it."""
    settings = DataSettings.model_validate(toy_settings(folder, num_users=24, num_items=60))
    interactions, items, facts = prepare(settings, 0, folder)
    candidates = _candidates(interactions, items["item_id"].to_pylist())
    rows = candidates.to_pylist()
    held_back = {(row["user_id"], row["target_id"]) for row in rows if row["split"] == "train"}
    fit_events = [
        {"fold": fold, "user_id": row["user_id"], "item_id": row["item_id"]}
        for fold in ("full", "rolled_back")
        for row in interactions.to_pylist()
        if row["split"] == "train" and (fold == "full" or (row["user_id"], row["item_id"]) not in held_back)
    ]
    fits = pa.Table.from_pylist(fit_events, schema=FIT_EVENTS.schema)
    return Tables(interactions, candidates, fits, _prompts(interactions, items, candidates), facts)


def _candidates(interactions: pa.Table, item_ids: list[str]) -> pa.Table:
    random = np.random.default_rng(0)
    history: dict[str, list[Row]] = {}
    for row in interactions.sort_by("sequence").to_pylist():
        history.setdefault(row["user_id"], []).append(row)
    rows = []
    for events in history.values():
        targets = {row["split"]: row for row in events if row["feedback"] == "like"}  # the last like of each split
        others = [one for one in item_ids if one not in {row["item_id"] for row in events}]
        for split in sorted(targets.keys() - {"unused"}):
            offered = [targets[split]["item_id"], *random.choice(others, NUM_CANDIDATES - 1, replace=False).tolist()]
            rows.append(_list(targets[split], [offered[index] for index in random.permutation(NUM_CANDIDATES)]))
    return pa.Table.from_pylist(rows, schema=CANDIDATES.schema)


def _list(target: Row, offered: list[str]) -> Row:
    count = len(offered)
    return {
        "list_id": f"{target['split']}/{target['user_id']}/{target['item_id']}",
        "user_id": target["user_id"],
        "split": target["split"],
        "target_id": target["item_id"],
        "target_rating": target["rating"],
        "hit": target["item_id"] in offered,
        "before": target["sequence"],
        "fold": "rolled_back" if target["split"] == "train" else "full",
        "candidate_ids": offered,
        "backbone_scores": [float(count - index) for index in range(count)],
        "predicted_ratings": [3.5] * count,
        "popularity": [1.0] * count,
        "reranker_scores": [0.0] * count,
    }


def _prompts(interactions: pa.Table, items: pa.Table, candidates: pa.Table) -> pa.Table:
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    builder = PromptBuilder(titles, InstructSettings(), RatingScale(1.0, 5.0), 0)
    users = sorted(set(candidates["user_id"].to_pylist()))
    draws = [{"draw_id": place, "user_id": user, "repeat": 0} for place, user in enumerate(users)]
    parts = []
    for user in users:
        mine = pa.compute.field("user_id") == user
        drawn = pa.Table.from_pylist(draws, schema=DRAWS.schema).filter(mine)
        parts.append(builder.prompts(interactions.filter(mine), candidates.filter(mine), drawn))
    return PROMPTS.conform(pa.concat_tables(parts).drop_columns("reason"), where="prompts")
