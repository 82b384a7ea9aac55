"""What can be asked before a deadline: every task whole, fewer pairs, or not at all; pure, decides in microseconds."""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from recranker.tasks.protocol import Prompt, Question
from recranker.tasks.settings import TaskName
from serve.cost import Cost, bytes_of
from serve.messages import LeftOut, Plan

MARGIN = 1.1
"""Estimates are taken times this: a task that is asked and comes too late has kept the others waiting for nothing."""


@dataclass(frozen=True)
class Load:
    """One task as a new question finds it."""

    cost: Cost
    wait_s: float
    """Seconds until a replica is free for it."""


@dataclass(frozen=True)
class Planned:
    """What to ask."""

    prompts: dict[TaskName, Prompt]
    left_out: dict[TaskName, LeftOut] = field(default_factory=dict)
    """Tasks that are not asked, and why."""
    pairs: tuple[int, int] | None = None
    """Pairs asked and pairs wanted, where they differ."""

    @property
    def full(self) -> tuple[TaskName, ...]:
        """Where nothing can be asked: the tasks that could be without those who wait."""
        return () if self.prompts else tuple(task for task, why in self.left_out.items() if why == "queue")

    def without(self, too_long: Set[TaskName]) -> "Planned":
        """With those tasks left out that were asked and whose questions the model cannot read."""
        return replace(self, left_out=self.left_out | dict.fromkeys(too_long, "too_long"))

    def message(self) -> Plan | None:
        """What a response says of it; None where all was asked."""
        if not self.left_out and self.pairs is None:
            return None
        asked, wanted = self.pairs or (None, None)
        return Plan(left_out=self.left_out, pairs_asked=asked, pairs_wanted=wanted)


def plan(
    prompts: Mapping[TaskName, Prompt],
    places: Mapping[str, int],
    loads: Mapping[TaskName, Load],
    left_s: float,
    *,
    absent: Set[TaskName] = frozenset(),
    shorten: bool = True,
    together: bool = False,
) -> Planned:
    """What of ``prompts`` is asked, so that the answers are there in time.

    Args:
        prompts: What the request asks of each task.
        places: Per item: its place in the order that prompts quote, 1 is best.
        loads: Of the tasks whose cost is known; others are asked whole.
        left_s: Seconds until the answers must be there.
        absent: Tasks that nobody answers now.
        shorten: Whether fewer pairs will do.
        together: Whether one replica answers all tasks, after it has read their prefix once; then those named first
            come first.
    """
    asked: dict[TaskName, Prompt] = {}
    left_out: dict[TaskName, LeftOut] = {}
    before = 0
    for task, prompt in prompts.items():
        if task in absent:
            left_out[task] = "no_replica"
            continue
        load = loads.get(task)
        found: Prompt | None = prompt
        if load is not None:
            found = _within(prompt, places, load.cost, left_s - MARGIN * load.wait_s, before, shorten)
        if found is not None:
            asked[task] = found
            if together:
                before += bytes_of(found) - len(found.prefix.encode())
        elif load is not None:
            idle = _within(prompt, places, load.cost, left_s, before, shorten)
            left_out[task] = "deadline" if idle is None else "queue"
    return Planned(asked, left_out, _pairs(prompts, asked))


def shortened(prompt: Prompt, places: Mapping[str, int], num_bytes: float) -> Prompt | None:
    """``prompt`` with as many of its pairs as its texts may have bytes, in both orders, neighbours first.

    None where too few would be left: fewer than a chain through all its items has, and fewer than half of them. Items
    in no pair count as even, so that a few pairs alone would say too much about the few.
    """
    nearest = _nearest_first(prompt, places)
    items = set().union(*(pair[0].item_ids for pair in nearest))
    least = min(len(items) - 1, math.ceil(len(nearest) / 2))
    kept: list[Question] = []
    left = num_bytes - len(prompt.prefix.encode())
    number = 0
    for pair in nearest:
        for one in pair:
            left -= len(one.text.encode())
        if left < 0:
            break
        kept += pair
        number += 1
    return replace(prompt, questions=tuple(kept)) if number >= max(least, 1) else None


def num_pairs(prompt: Prompt) -> int:
    """Pairs that ``prompt`` asks about, in either order."""
    asked = {one.item_ids for one in prompt.questions}
    return len(asked) - sum(a < b and (b, a) in asked for a, b in asked)


def _within(
    prompt: Prompt, places: Mapping[str, int], cost: Cost, left_s: float, before: int, shorten: bool
) -> Prompt | None:
    """``prompt``, or what of it takes no longer than that with ``before`` bytes of other questions."""
    room = cost.bytes_within(left_s / MARGIN) - before
    if bytes_of(prompt) <= room:
        return prompt
    if shorten and room > 0 and prompt.questions[0].task == "pairwise":
        return shortened(prompt, places, room)
    return None


def _nearest_first(prompt: Prompt, places: Mapping[str, int]) -> list[list[Question]]:
    """The questions of each pair; pairs of neighbours first, the top ones of those first."""
    pairs: dict[tuple[int, int], list[Question]] = {}  # by what orders them, as no two pairs have the same two places
    for one in prompt.questions:
        a, b = one.item_ids
        first, second = places[a], places[b]
        nearness = (second - first, first) if first < second else (first - second, second)
        pairs.setdefault(nearness, []).append(one)
    return [pairs[nearness] for nearness in sorted(pairs)]


def _pairs(wanted: Mapping[TaskName, Prompt], asked: Mapping[TaskName, Prompt]) -> tuple[int, int] | None:
    if "pairwise" not in asked or asked["pairwise"] is wanted["pairwise"]:
        return None
    return num_pairs(asked["pairwise"]), num_pairs(wanted["pairwise"])
