"""Checks of the hints questions quote: each must be what the published signal says, so that none knows the target.

A hint stands in brackets at the end of a question: ``[others: mostly Yes, place 3]``, ``[place 3]`` or
``[predicted rating 3.6]`` of one item, ``[first]`` or ``[second]`` of a pair, ``[order: C A B]`` of a list.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.asked import Asked, asked_of
from recranker.data.leakage.gate import Check
from recranker.data.leakage.signals import scores_of
from recranker.data.leakage.tables import GateTables, taken
from recranker.data.lookup import column, opened, places
from recranker.errors import LeakageError

PLACE = r" \[(?:others: (?P<opinion>[A-Za-z ]+), )?place (?P<said>\d+)\]$"
OPINIONS = ("Yes", "mostly Yes", "unsure", "mostly No", "No")
"""Of the first fifth of a list, the second, and so on."""
RATING = r" \[predicted rating (?P<said>-?\d+\.\d)\]$"
WINNER = r" \[(?P<said>first|second)\]$"
ORDER = r"\n\[order: (?P<said>[A-Z ]+)\]$"
ROUNDING = 0.05 + 1e-6
"""A rating is quoted with one decimal."""

_WAY_OUT = "quote the published signal of the list, looked up by list and item id"

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def hints_quoted(tables: GateTables) -> None:
    """Places, ratings, winners and orders quoted are those of the signal the prompts are said to quote."""
    asked = asked_of(tables)
    if tables.hints == "none":
        _nothing_quoted(asked)
        return
    ranks = _ranks(tables)
    place = np.append(ranks, 0)[asked.offer]
    _single_items(asked, place, tables)
    _winners(asked, place)
    _orders(asked, place)


CHECKS = (Check("hints-quoted", hints_quoted, "prompts", ("candidates", "hints")),)


def _ranks(tables: GateTables) -> Ints:
    """``(offers,)`` place from 1 of each candidate by the signal quoted; ties keep the retriever's order."""
    offers, hints = tables.offers, tables.hints
    if hints == "backbone":
        return offers.places + 1
    if hints == "reranker":
        scores: Floats | None = column(opened(tables.lists["reranker_scores"])[1]).astype(np.float64)
    else:
        scores = scores_of(tables, str(hints))
    if scores is None or len(scores) != len(offers.lists):
        raise LeakageError(f"prompts quote signal {hints!r}, which is not there for every candidate; publish it")
    order = np.lexsort((offers.places, -scores, offers.lists))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = places(offers.lists) + 1  # sorted by list as well, so that runs are the same
    return ranks


def _nothing_quoted(asked: Asked) -> None:
    for pattern in (PLACE, RATING, WINNER, ORDER):
        found = column(pc.match_substring_regex(asked.texts, pattern))
        asked.refuse(found, "a question quotes a hint although prompts are said to have none", "state instruct.hints")


def _single_items(asked: Asked, place: Ints, tables: GateTables) -> None:
    """Pointwise: the place, in words too where it is, or the predicted rating, of the one item."""
    rows = np.flatnonzero(asked.tasks == "pointwise")
    item = np.searchsorted(asked.question, rows)  # a question's first item
    texts = taken(asked.texts, rows)
    said, rated = _number(texts, PLACE), _number(texts, RATING)
    asked.refuse(_marked(asked, rows, np.isnan(said) & np.isnan(rated)), "a question quotes no hint", _WAY_OUT)
    wrong = ~np.isnan(said) & (said != place[item])
    wrong |= _other_words(texts, place[item], tables.offers.lists, asked.offer[item])
    predicted = column(opened(tables.lists["predicted_ratings"])[1]).astype(np.float64)
    guess = np.append(predicted, np.nan)[asked.offer[item]]
    wrong |= ~np.isnan(rated) & ~(np.abs(rated - guess) <= ROUNDING)
    trap = "the hint of a pointwise question is not what the signal says of its item"
    asked.refuse(_marked(asked, rows, wrong), trap, _WAY_OUT)


def _other_words(texts: pa.Array, place: Ints, lists: Ints, offer: Ints) -> NDArray[np.bool_]:
    """``(texts,)`` whether a text says in words what is not the place of its item among those offered in its list."""
    words = _said(texts, PLACE, "opinion")
    found = column(pc.fill_null(pc.index_in(words, pa.array(OPINIONS)), -1))
    there = column(pc.fill_null(pc.not_equal(words, ""), False)).astype(bool)
    return np.asarray(there & (found != (place - 1) * len(OPINIONS) // np.bincount(lists)[lists[offer]]))


def _winners(asked: Asked, place: Ints) -> None:
    """Pairwise: which of the two the signal places higher."""
    rows = np.flatnonzero((asked.tasks == "pairwise") & (asked.count == 2))
    item = np.searchsorted(asked.question, rows)
    said = _said(taken(asked.texts, rows), WINNER)
    due = np.where(place[item] < place[np.minimum(item + 1, len(place) - 1)], "first", "second")
    wrong = ~column(pc.fill_null(pc.equal(said, pa.array(due, pa.string())), False)).astype(bool)
    asked.refuse(
        _marked(asked, rows, wrong), "the hint of a pairwise question is not what the signal says of its two", _WAY_OUT
    )


def _orders(asked: Asked, place: Ints) -> None:
    """Listwise: the letters in the signal's order."""
    lengths = column(pc.list_value_length(asked.labels))
    rows = np.flatnonzero((asked.tasks == "listwise") & (lengths == asked.count))
    shown = np.isin(asked.question, rows)
    letters = column(opened(taken(asked.labels, rows))[1])
    order = np.lexsort((place[shown], asked.question[shown]))
    offsets = np.append(0, np.cumsum(asked.count[rows]))
    due = pc.binary_join(
        pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(letters[order], pa.string())), " "
    )
    said = _said(taken(asked.texts, rows), ORDER)
    wrong = ~column(pc.fill_null(pc.equal(said, due), False)).astype(bool)
    trap = "the order quoted in a listwise question is not the signal's"
    asked.refuse(_marked(asked, rows, wrong), trap, _WAY_OUT)


def _said(texts: pa.Array, pattern: str, group: str = "said") -> pa.Array:
    """``(texts,)`` what a group of ``pattern`` holds; null where nothing matches, empty where the group alone lacks."""
    return pc.struct_field(pc.extract_regex(texts, pattern), group)


def _number(texts: pa.Array, pattern: str) -> Floats:
    """``(texts,)`` the number quoted, NaN where there is none."""
    return column(pc.fill_null(pc.cast(_said(texts, pattern), pa.float64()), np.nan))


def _marked(asked: Asked, rows: Ints, bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    marked = np.zeros(len(asked.tasks), dtype=np.bool_)
    marked[rows[bad]] = True
    return marked
