"""A small made-up run up to its prompts, in memory: what the leakage gate is tried on where there is no real one."""

from typing import Any

import numpy as np
import pyarrow as pa

from recranker.data.facts import meaning_of
from recranker.data.leakage.canaries import Caught, try_canaries
from recranker.data.leakage.tables import GateTables
from recranker.data.prepare import prepare_raw
from recranker.data.simulate import simulated_raw, simulated_settings
from recranker.schema import CANDIDATES, DRAWS, FIT_EVENTS, PROMPTS, SIGNALS
from recranker.tasks.instructions import PromptBuilder
from recranker.tasks.protocol import RatingScale
from recranker.tasks.settings import Hint, InstructSettings

Row = dict[str, Any]
NUM_CANDIDATES = 6
SIGNAL_NAMES = ("item_knn", "mf")


def made_up_run(
    num_users: int = 24, num_items: int = 60, *, seed: int = 0, hints: Hint = "reranker", **data: Any
) -> GateTables:
    """A clean run: a training, a validation and a test list per user who has such targets; all lists hold theirs.

    Scores are random, so that they know nothing; popularity and what the fits saw are true.

    Args:
        num_users: Users, all of whom rate in the same span of time.
        num_items: Items, at least 24.
        seed: Of everything drawn.
        hints: What the questions quote.
        data: Settings of the data, for instance ``split={"kind": "time"}``.
    """
    raw = simulated_raw(num_users, num_items, seed=seed, apart_s=0)
    interactions, items, facts = prepare_raw(raw, simulated_settings(**data), seed)
    targets = _targets(interactions)
    fit_events = _fit_events(interactions, targets)
    candidates = _candidates(interactions, items["item_id"].to_pylist(), targets, fit_events, seed)
    return GateTables(
        interactions,
        facts,
        items=items,
        candidates=candidates,
        fit_events=fit_events,
        signals=_signals(candidates, seed),
        prompts=_prompts(interactions, items, candidates, facts, seed, hints),
        hints=hints,
    )


def try_canaries_on_made_up_runs() -> list[Caught]:
    """What becomes of each canary in a made-up run that has a place for it: one split by leave-one-out, one by time."""
    first = list(try_canaries(made_up_run()))
    left = [one.canary for one in first if not one.planted]
    second = list(try_canaries(made_up_run(split={"kind": "time"}), left))
    return [one for one in first if one.planted] + second


def _targets(interactions: pa.Table) -> list[dict[str, Row]]:
    """Per user, the last like of each split that has one."""
    found: dict[str, dict[str, Row]] = {}
    for row in interactions.sort_by([("user_id", "ascending"), ("sequence", "ascending")]).to_pylist():
        mine = found.setdefault(row["user_id"], {})
        if row["feedback"] == "like" and row["split"] != "unused":
            mine[row["split"]] = row
    return list(found.values())


def _fit_events(interactions: pa.Table, targets: list[dict[str, Row]]) -> pa.Table:
    """All training events, and those before each user's training target."""
    ends = {one["train"]["user_id"]: one["train"]["sequence"] for one in targets if "train" in one}
    training = [row for row in interactions.to_pylist() if row["split"] == "train"]
    rows = [
        {"fold": fold, "user_id": row["user_id"], "item_id": row["item_id"]}
        for fold in ("full", "rolled_back")
        for row in training
        if fold == "full" or row["sequence"] < ends.get(row["user_id"], np.inf)
    ]
    return pa.Table.from_pylist(rows, schema=FIT_EVENTS.schema)


def _candidates(
    interactions: pa.Table, item_ids: list[str], targets: list[dict[str, Row]], fit_events: pa.Table, seed: int
) -> pa.Table:
    random = np.random.default_rng(seed)
    rated: dict[str, set[str]] = {}
    liked: set[tuple[str, str]] = set()
    for row in interactions.to_pylist():
        rated.setdefault(row["user_id"], set()).add(row["item_id"])
        if row["feedback"] == "like":
            liked.add((row["user_id"], row["item_id"]))
    popularity: dict[tuple[str, str], int] = {}
    for row in fit_events.to_pylist():
        if (row["user_id"], row["item_id"]) in liked:
            popularity[row["fold"], row["item_id"]] = popularity.get((row["fold"], row["item_id"]), 0) + 1
    rows = []
    for mine in targets:
        for split in sorted(mine):
            target = mine[split]
            others = [one for one in item_ids if one not in rated[target["user_id"]]]
            offered = [target["item_id"], *random.choice(others, NUM_CANDIDATES - 1, replace=False).tolist()]
            rows.append(_list(target, [offered[index] for index in random.permutation(NUM_CANDIDATES)], random))
            fold = rows[-1]["fold"]
            rows[-1]["popularity"] = [float(popularity.get((fold, one), 0)) for one in rows[-1]["candidate_ids"]]
    return pa.Table.from_pylist(rows, schema=CANDIDATES.schema)


def _list(target: Row, offered: list[str], random: np.random.Generator) -> Row:
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
        "backbone_scores": np.sort(random.normal(size=count))[::-1].tolist(),
        "predicted_ratings": random.uniform(3.0, 4.9, size=count).tolist(),
        "reranker_scores": random.normal(size=count).tolist(),
    }


def _signals(candidates: pa.Table, seed: int) -> pa.Table:
    random = np.random.default_rng(seed + 1)
    rows = [
        {"list_id": list_id, "signal": name, "scores": random.normal(size=NUM_CANDIDATES).tolist()}
        for list_id in candidates["list_id"].to_pylist()
        for name in SIGNAL_NAMES
    ]
    return pa.Table.from_pylist(rows, schema=SIGNALS.schema)


def _prompts(
    interactions: pa.Table, items: pa.Table, candidates: pa.Table, facts: dict[str, Any], seed: int, hints: Hint
) -> pa.Table:
    meaning = meaning_of(facts)
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    scale = RatingScale(meaning.rating_min, meaning.rating_max)
    builder = PromptBuilder(titles, InstructSettings(hints=hints), scale, seed)
    parts = []
    for place, user in enumerate(sorted(set(candidates["user_id"].to_pylist()))):
        mine = pa.compute.field("user_id") == user
        drawn = pa.Table.from_pylist([{"draw_id": place, "user_id": user, "repeat": 0}], schema=DRAWS.schema)
        parts.append(builder.prompts(interactions.filter(mine), candidates.filter(mine), drawn))
    rows = pa.concat_tables(parts)
    return PROMPTS.conform(rows.filter(pa.compute.is_null(rows["reason"])).drop_columns("reason"), where="prompts")
