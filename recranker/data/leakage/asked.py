"""Questions joined with their lists: who is asked about which candidates, side by side."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.gate import refuse
from recranker.data.leakage.tables import GateTables, splits_of, taken
from recranker.data.lookup import Pairs, column, index_in, opened, places

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """All questions of all prompts whose list is there, and all items of all questions."""

    split: Ints
    """``(questions,)`` of the prompt."""
    prompt: Ints
    """``(questions,)`` row of the prompt."""
    users: pa.Array
    """``(questions,)``."""
    targets: pa.Array
    """``(questions,)`` target of the list asked about."""
    tasks: NDArray[np.str_]
    """``(questions,)``."""
    texts: pa.Array
    """``(questions,)``."""
    answers: pa.Array
    """``(questions,)`` null where none is known."""
    taught: Bools
    """``(questions,)`` whether a teacher's probabilities are given."""
    labels: pa.Array
    """``(questions,)`` lists of label texts."""
    question: Ints
    """``(items,)`` which question shows the item."""
    items: pa.Array
    """``(items,)``."""
    offer: Ints
    """``(items,)`` which of all offers of all lists the item is; -1: it is not in its list."""
    offered: Ints
    """``(items,)`` place of the item in the candidate list, from 0; -1: it is not in the list."""

    @classmethod
    def of(cls, tables: GateTables) -> "Asked":
        """Join prompts with their lists."""
        prompts, lists = known_prompts(tables)
        offers = tables.offers
        prompt, questions = opened(prompts["questions"])
        question, items = opened(pc.struct_field(questions, "item_ids"))
        known = Pairs.of(pa.chunked_array([taken(tables.lists["list_id"], offers.lists)]), _chunked(offers.items))
        found = known.find(pa.chunked_array([taken(prompts["list_id"], prompt[question])]), _chunked(items))
        return cls(
            split=splits_of(prompts)[prompt],
            prompt=prompt,
            users=taken(prompts["user_id"], prompt),
            targets=taken(tables.lists["target_id"], lists[prompt]),
            tasks=column(pc.struct_field(questions, "task")).astype(np.str_),
            texts=pc.struct_field(questions, "text"),
            answers=pc.struct_field(questions, "answer"),
            taught=column(pc.is_valid(pc.struct_field(questions, "soft_labels"))).astype(np.bool_),
            labels=pc.struct_field(questions, "labels"),
            question=question,
            items=items,
            offer=found,
            offered=np.append(offers.places, -1)[found],
        )

    @property
    def count(self) -> Ints:
        """``(questions,)`` items shown."""
        return np.bincount(self.question, minlength=len(self.tasks))

    def target_place(self) -> Ints:
        """``(questions,)`` place of the target among the items shown, -1 where it is not shown."""
        same = column(pc.equal(self.items, taken(self.targets, self.question))).astype(np.bool_)
        return self._place_of(self.question, same)

    def chosen_label(self) -> Ints:
        """``(questions,)`` place of the answer among the labels, -1 where it is none of them."""
        question, labels = opened(self.labels)
        same = column(pc.fill_null(pc.equal(labels, taken(self.answers, question)), False)).astype(np.bool_)
        return self._place_of(question, same)

    def refuse(self, bad: Bools, trap: str, way_out: str) -> None:
        """Complain about questions marked ``bad``, naming user and target."""
        refuse(bad, self.users, self.targets, trap=trap, way_out=way_out)

    def refuse_items(self, bad: Bools, trap: str, way_out: str) -> None:
        """Complain about items marked ``bad``."""
        refuse(bad, taken(self.users, self.question), self.items, trap=trap, way_out=way_out)

    def _place_of(self, groups: Ints, marked: Bools) -> Ints:
        found = np.full(len(self.tasks), -1, dtype=np.int64)
        found[groups[marked]] = places(groups)[marked]
        return found


def known_prompts(tables: GateTables) -> tuple[pa.Table, Ints]:
    """The prompts whose list is there, and ``(prompts,)`` the row of each one's list."""
    assert tables.prompts is not None
    prompts = tables.prompts.combine_chunks()
    lists = index_in(prompts["list_id"], tables.lists["list_id"].combine_chunks())
    return prompts.filter(pa.array(lists >= 0)).combine_chunks(), lists[lists >= 0]


def asked_of(tables: GateTables) -> Asked:
    """The tables' questions, joined once."""
    found = vars(tables).get("_asked")
    if found is None:
        found = vars(tables)["_asked"] = Asked.of(tables)  # as functools.cached_property does
    assert isinstance(found, Asked)
    return found


def _chunked(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
