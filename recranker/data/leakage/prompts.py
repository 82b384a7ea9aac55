"""Checks of prompts: whose items they ask about, what answers they know, and in which order they show items."""

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.asked import asked_of, known_prompts
from recranker.data.leakage.gate import Check, refuse
from recranker.data.leakage.tables import TEST, TRAIN, VALIDATION, GateTables, splits_of, taken
from recranker.data.lookup import column, index_in, places
from recranker.errors import LeakageError

MAX_CHANCE = 1e-6
"""An arrangement that chance would bring less often than this is taken to be on purpose."""


def lists_there(tables: GateTables) -> None:
    """Every prompt asks about a list that is there."""
    assert tables.prompts is not None
    prompts = tables.prompts
    missing = index_in(prompts["list_id"], tables.lists["list_id"].combine_chunks()) < 0
    trap, way_out = "a prompt asks about a list that is not there", "build it from the lists"
    refuse(missing, prompts["user_id"], prompts["list_id"], trap=trap, way_out=way_out, named=("user", "list"))


def lists_own(tables: GateTables) -> None:
    """A prompt's list is of its own user and split."""
    prompts, lists = known_prompts(tables)
    wrong = column(pc.not_equal(prompts["user_id"].combine_chunks(), taken(tables.lists["user_id"], lists)))
    wrong = wrong | (splits_of(tables.lists)[lists] != splits_of(prompts))
    trap = "a prompt's list is of another user or split"
    refuse(
        wrong, prompts["user_id"], prompts["list_id"], trap=trap, way_out="join them by list_id", named=("user", "list")
    )


def items_of_list(tables: GateTables) -> None:
    """Questions show candidates of their list only."""
    asked = asked_of(tables)
    trap, way_out = "a prompt asks about an item its list does not offer", "ask about candidates only, by id"
    asked.refuse_items(asked.offered < 0, trap, way_out)


def held_out_hidden(tables: GateTables) -> None:
    """In training every item shown is labelled, if only as a negative; a held-out like must be neither."""
    asked = asked_of(tables)
    rows = tables.events.find(taken(asked.users, asked.question), asked.items)
    split = np.append(tables.splits, -1)[rows]
    held_out = ((split == VALIDATION) | (split == TEST)) & (asked.split[asked.question] == TRAIN)
    trap = "a training prompt shows the user's own validation or test target"
    asked.refuse_items(held_out, trap, "keep held-out likes out of training lists")


def answers_in_training(tables: GateTables) -> None:
    """Answers and a teacher's probabilities are known in training only, and answers always are there."""
    asked = asked_of(tables)
    known, training = column(pc.is_valid(asked.answers)), asked.split == TRAIN
    asked.refuse(known & ~training, "a validation or test prompt knows its answer", "leave the answer empty there")
    trap = "a validation or test prompt knows a teacher's probabilities"
    asked.refuse(asked.taught & ~training, trap, "leave soft_labels empty there")
    asked.refuse(~known & training, "a training question has no answer", "give it one of its labels")


def answers_aligned(tables: GateTables) -> None:
    """An answer is one of the labels and points at the target."""
    asked = asked_of(tables)
    training = asked.split == TRAIN
    known, chosen, target = column(pc.is_valid(asked.answers)), asked.chosen_label(), asked.target_place()
    asked.refuse(known & (chosen < 0), "an answer is none of the question's labels", "take the answer from the labels")
    right = {"listwise": target == chosen, "pairwise": target == 1 - chosen}  # labels No, Yes: Yes = the first item
    for task, aligned in right.items():
        wrong = training & known & (asked.tasks == task) & ~aligned
        asked.refuse(wrong, f"the answer of a {task} question does not point at its target", "label by item id")
    said = {label: column(pc.fill_null(pc.equal(asked.answers, label), False)) for label in ("Yes", "No")}
    wrong = (said["Yes"] & (target < 0)) | (said["No"] & (target >= 0))
    wrong &= training & (asked.tasks == "pointwise")
    asked.refuse(wrong, "a pointwise question mistakes another item for the target", "label by item id")


def lists_shuffled(tables: GateTables) -> None:
    """Lists do not stand in the retriever's order, in training and at inference alike."""
    asked = asked_of(tables)
    kept = np.ones(len(asked.tasks), dtype=bool)
    kept[asked.question[asked.offered != places(asked.question)]] = False
    count = asked.count
    ways = np.array([float(np.sum(np.log(np.arange(2, size + 1)))) for size in range(count.max(initial=0) + 1)])
    training = asked.split == TRAIN
    for where in (training, ~training):
        lists = (asked.tasks == "listwise") & where
        if _on_purpose(kept[lists], ways[count[lists]]):
            asked.refuse(lists, "all lists stand in the retriever's order", "shuffle each list with its own key")


def target_moves(tables: GateTables) -> None:
    """The right answer stands in a random place."""
    asked = asked_of(tables)
    for task in ("pairwise", "listwise"):
        chosen = (asked.split == TRAIN) & (asked.tasks == task)
        place = asked.target_place()[chosen]
        if len(place) and _on_purpose(place == place[0], np.log(np.maximum(asked.count[chosen], 1))):
            trap = f"the target of every {task} training question stands in the same place"
            asked.refuse(chosen, trap, "shuffle each question with its own key")


def pairs_both_ways(tables: GateTables) -> None:
    """At inference each pair is asked in both orders, so that a model that favours a place favours nobody."""
    asked = asked_of(tables)
    pairs = (asked.tasks == "pairwise") & (asked.split != TRAIN)
    trap = "a pairwise question shows more or less than two items"
    asked.refuse(pairs & (asked.count != 2), trap, "show two")
    if not pairs.any():
        return
    first, second = asked.offered[pairs[asked.question]].reshape(-1, 2).T
    width, prompt = int(asked.offered.max()) + 2, asked.prompt[pairs]
    forward = (prompt * width + first) * width + second
    backward = (prompt * width + second) * width + first
    bad = np.zeros(len(asked.tasks), dtype=bool)
    bad[pairs] = ~np.isin(backward, forward)
    asked.refuse(bad, "a pair is asked in one order only", "ask every validation and test pair in both orders")


def templates_same(tables: GateTables) -> None:
    """Training and inference use one template, where somebody states which."""
    hashes = tables.template_hashes
    if len(set(hashes.values())) > 1:
        raise LeakageError(
            f"prompts of different splits come from different templates: {dict(sorted(hashes.items()))}; "
            "make all prompts with the template the model is served with"
        )


_WITH_LISTS = ("candidates",)

CHECKS = (
    Check("lists-there", lists_there, "prompts", _WITH_LISTS),
    Check("lists-own", lists_own, "prompts", _WITH_LISTS),
    Check("items-of-list", items_of_list, "prompts", _WITH_LISTS),
    Check("held-out-hidden", held_out_hidden, "prompts", _WITH_LISTS),
    Check("answers-in-training", answers_in_training, "prompts", _WITH_LISTS),
    Check("answers-aligned", answers_aligned, "prompts", _WITH_LISTS),
    Check("lists-shuffled", lists_shuffled, "prompts", _WITH_LISTS),
    Check("target-moves", target_moves, "prompts", _WITH_LISTS),
    Check("pairs-both-ways", pairs_both_ways, "prompts", _WITH_LISTS),
    Check("templates-same", templates_same, "prompts", applies=lambda tables: bool(tables.template_hashes)),
)


def _on_purpose(same: NDArray[np.bool_], log_ways: NDArray[np.float64]) -> bool:
    """Whether all are the same although chance would almost never make them so."""
    return bool(len(same) and same.all() and float(log_ways.sum()) > -np.log(MAX_CHANCE))
