"""Checks of prompts: whose items they show, what answers they know, and in which order."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.gate import TEST, TRAIN, VALIDATION, refuse, splits_of
from recranker.data.lookup import Pairs, column, index_in, opened, places
from recranker.errors import LeakageError

MAX_CHANCE = 1e-6
"""An arrangement that chance would bring less often than this is taken to be on purpose."""


def check_prompts(
    interactions: pa.Table,
    candidates: pa.Table,
    prompts: pa.Table,
    *,
    template_hashes: Mapping[str, str] | None = None,
) -> None:
    """Prompts ask about their own list, know no answer they must not know, and show items in a shifted order.

    Args:
        interactions: Rows of ``schema.INTERACTIONS``.
        candidates: Rows of ``schema.CANDIDATES``.
        prompts: Rows of ``schema.PROMPTS``.
        template_hashes: Split -> digest of the template its prompts were made with.

    Raises:
        LeakageError: Naming the trap, a user and an item, and the way out.
    """
    check_templates(template_hashes or {})
    asked = Asked.of(candidates.combine_chunks(), prompts.combine_chunks())
    _check_items_of_list(asked)
    _check_held_out(asked, interactions)
    _check_answers(asked)
    _check_shifting(asked)
    _check_both_orders(asked)


def check_templates(hashes: Mapping[str, str]) -> None:
    """Training and inference use one template.

    Raises:
        LeakageError: If two splits were made with different ones.
    """
    if len(set(hashes.values())) > 1:
        raise LeakageError(
            f"prompts of different splits come from different templates: {dict(sorted(hashes.items()))}; "
            "make all prompts with the template the model is served with"
        )


@dataclass(frozen=True)
class Asked:
    """All questions of all prompts, and all items of all questions, side by side."""

    split: NDArray[np.int64]
    """``(questions,)`` of the prompt."""
    prompt: NDArray[np.int64]
    """``(questions,)`` row of the prompt."""
    users: pa.Array
    """``(questions,)``."""
    targets: pa.Array
    """``(questions,)`` target of the list asked about."""
    tasks: NDArray[np.str_]
    """``(questions,)``."""
    answers: pa.Array
    """``(questions,)`` null where none is known."""
    labels: pa.Array
    """``(questions,)`` lists of label texts."""
    question: NDArray[np.int64]
    """``(items,)`` which question shows the item."""
    items: pa.Array
    """``(items,)``."""
    offered: NDArray[np.int64]
    """``(items,)`` place of the item in the candidate list, from 0; -1: it is not in the list."""

    @classmethod
    def of(cls, candidates: pa.Table, prompts: pa.Table) -> "Asked":
        """Join prompts with their lists.

        Raises:
            LeakageError: If a prompt's list is missing or belongs to another user or split.
        """
        lists = _lists_of(candidates, prompts)
        prompt, questions = opened(prompts["questions"])
        question, items = opened(pc.struct_field(questions, "item_ids"))
        rows, offers = opened(candidates["candidate_ids"])
        offered = Pairs.of(_take(candidates["list_id"], rows), offers)
        found = offered.find(_take(prompts["list_id"], prompt[question]), items)
        return cls(
            split=splits_of(prompts)[prompt],
            prompt=prompt,
            users=_take(prompts["user_id"], prompt),
            targets=_take(candidates["target_id"], lists[prompt]),
            tasks=column(pc.struct_field(questions, "task")).astype(np.str_),
            answers=pc.struct_field(questions, "answer"),
            labels=pc.struct_field(questions, "labels"),
            question=question,
            items=items,
            offered=np.append(places(rows), -1)[found],
        )

    def refuse(self, bad: NDArray[np.bool_], trap: str, way_out: str) -> None:
        """Complain about questions marked ``bad``, naming user and target."""
        refuse(bad, self.users, self.targets, trap=trap, way_out=way_out)

    def refuse_items(self, bad: NDArray[np.bool_], trap: str, way_out: str) -> None:
        """Complain about items marked ``bad``."""
        refuse(bad, _take(self.users, self.question), self.items, trap=trap, way_out=way_out)


def _lists_of(candidates: pa.Table, prompts: pa.Table) -> NDArray[np.int64]:
    """``(prompts,)`` row of each prompt's list."""
    lists = index_in(prompts["list_id"], candidates["list_id"].combine_chunks())
    users, ids = prompts["user_id"], prompts["list_id"]
    refuse(
        lists < 0, users, ids, trap="a prompt asks about a list that is not there", way_out="build it from the lists"
    )
    theirs = _take(candidates["user_id"], lists)
    wrong = column(pc.not_equal(users.combine_chunks(), theirs)) | (splits_of(candidates)[lists] != splits_of(prompts))
    refuse(wrong, users, ids, trap="a prompt's list is of another user or split", way_out="join them by list_id")
    return lists


def _check_items_of_list(asked: Asked) -> None:
    trap, way_out = "a prompt asks about an item its list does not offer", "ask about candidates only, by id"
    asked.refuse_items(asked.offered < 0, trap, way_out)


def _check_held_out(asked: Asked, interactions: pa.Table) -> None:
    """In training every item shown is labelled, if only as a negative; a held-out like must be neither."""
    events = Pairs.of(interactions["user_id"], interactions["item_id"])
    rows = events.find(_take(asked.users, asked.question), asked.items)
    split = np.append(splits_of(interactions), -1)[rows]
    held_out = ((split == VALIDATION) | (split == TEST)) & (asked.split[asked.question] == TRAIN)
    trap = "a training prompt shows the user's own validation or test target"
    asked.refuse_items(held_out, trap, "keep held-out likes out of training lists")


def _check_answers(asked: Asked) -> None:
    """Answers are known in training only, are one of the labels, and point at the target."""
    known, training = column(pc.is_valid(asked.answers)), asked.split == TRAIN
    asked.refuse(known & ~training, "a validation or test prompt knows its answer", "leave the answer empty there")
    asked.refuse(~known & training, "a training question has no answer", "give it one of its labels")
    chosen = _chosen_label(asked)
    asked.refuse(known & (chosen < 0), "an answer is none of the question's labels", "take the answer from the labels")
    target = _target_place(asked)
    right = {"listwise": target == chosen, "pairwise": target == 1 - chosen}  # labels No, Yes: Yes = the first item
    for task, aligned in right.items():
        wrong = training & (asked.tasks == task) & ~aligned
        asked.refuse(wrong, f"the answer of a {task} question does not point at its target", "label by item id")
    said = {label: column(pc.fill_null(pc.equal(asked.answers, label), False)) for label in ("Yes", "No")}
    wrong = (said["Yes"] & (target < 0)) | (said["No"] & (target >= 0))
    wrong &= training & (asked.tasks == "pointwise")
    asked.refuse(wrong, "a pointwise question mistakes another item for the target", "label by item id")


def _check_shifting(asked: Asked) -> None:
    """Items stand in a random order, and the right answer in a random place, in training and at inference alike."""
    count = np.bincount(asked.question, minlength=len(asked.tasks))
    kept = np.ones(len(asked.tasks), dtype=bool)
    kept[asked.question[asked.offered != places(asked.question)]] = False
    ways = np.array([float(np.sum(np.log(np.arange(2, size + 1)))) for size in range(count.max(initial=0) + 1)])
    training = asked.split == TRAIN
    for where in (training, ~training):
        lists = (asked.tasks == "listwise") & where
        if _on_purpose(kept[lists], ways[count[lists]]):
            asked.refuse(lists, "all lists stand in the retriever's order", "shuffle each list with its own key")
    for task in ("pairwise", "listwise"):
        chosen = training & (asked.tasks == task)
        place = _target_place(asked)[chosen]
        if len(place) and _on_purpose(place == place[0], np.log(np.maximum(count[chosen], 1))):
            trap = f"the target of every {task} training question stands in the same place"
            asked.refuse(chosen, trap, "shuffle each question with its own key")


def _check_both_orders(asked: Asked) -> None:
    """At inference each pair is asked in both orders, so that a model that favours a place favours nobody."""
    pairs = (asked.tasks == "pairwise") & (asked.split != TRAIN)
    count = np.bincount(asked.question, minlength=len(asked.tasks))
    asked.refuse(pairs & (count != 2), "a pairwise question shows more or less than two items", "show two")
    if not pairs.any():
        return
    first, second = asked.offered[pairs[asked.question]].reshape(-1, 2).T
    width, prompt = int(asked.offered.max()) + 1, asked.prompt[pairs]
    forward = (prompt * width + first) * width + second
    backward = (prompt * width + second) * width + first
    bad = np.zeros(len(asked.tasks), dtype=bool)
    bad[pairs] = ~np.isin(backward, forward)
    asked.refuse(bad, "a pair is asked in one order only", "ask every validation and test pair in both orders")


def _on_purpose(same: NDArray[np.bool_], log_ways: NDArray[np.float64]) -> bool:
    """Whether all are the same although chance would almost never make them so."""
    return bool(len(same) and same.all() and float(log_ways.sum()) > -np.log(MAX_CHANCE))


def _chosen_label(asked: Asked) -> NDArray[np.int64]:
    """``(questions,)`` place of the answer among the labels, -1 where it is none of them."""
    question, labels = opened(asked.labels)
    same = column(pc.fill_null(pc.equal(labels, _take(asked.answers, question)), False))
    return _place_of(question, same, len(asked.tasks))


def _target_place(asked: Asked) -> NDArray[np.int64]:
    """``(questions,)`` place of the target among the items shown, -1 where it is not shown."""
    return _place_of(
        asked.question, column(pc.equal(asked.items, _take(asked.targets, asked.question))), len(asked.tasks)
    )


def _place_of(groups: NDArray[np.int64], marked: NDArray[np.bool_], num_groups: int) -> NDArray[np.int64]:
    found = np.full(num_groups, -1, dtype=np.int64)
    found[groups[marked]] = places(groups)[marked]
    return found


def _take(values: pa.ChunkedArray, rows: NDArray[np.int64]) -> pa.Array:
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    return whole.take(pa.array(rows))
