"""Checks of what prompts say besides their questions: the history, a profile, the wording.

Lines are compared with titles as wholes, never as substrings: nested titles ("Alien", "Aliens") stay apart.
"""

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.data.leakage.asked import Asked, asked_of, known_prompts
from recranker.data.leakage.gate import Check, refuse
from recranker.data.leakage.tables import TRAIN, GateTables, splits_of, taken
from recranker.data.lookup import Pairs, codes, index_in, opened
from recranker.errors import LeakageError

MIN_TITLE_CHARACTERS = 8
"""A shorter title found in free text may be an ordinary word."""
SAMPLED_QUESTIONS = 1000
"""Questions of each task and side whose wording is compared."""


def history_past(tables: GateTables) -> None:
    """Every title in a prefix is of an item its user met before the list's history ends."""
    lines = lines_of(tables)
    titles = _titles_of(tables, tables.history["item_id"])
    known = Pairs.of(tables.history["user_id"], titles)  # the earliest row of a user and a title
    rows = known.find(_chunked(taken(lines.users, lines.prompt)), _chunked(lines.text))
    sequence = np.append(tables.sequences, np.iinfo(np.int64).max)[rows]
    future = lines.is_title & (sequence >= tables.befores[lines.lists[lines.prompt]])
    trap = "a prefix shows an item that is not in its user's history before the list's target"
    way_out = "take the history by user and sequence number, and titles by item id"
    refuse(future, _chunked(taken(lines.users, lines.prompt)), _chunked(lines.text), trap=trap, way_out=way_out)


def profile_blind(tables: GateTables) -> None:
    """No free text of a prefix, such as a user's profile, names the target."""
    lines = lines_of(tables)
    rare = np.flatnonzero(~lines.is_title & (lines.share < 0.5))
    shown: dict[int, set[str]] = {}
    wanted = set(lines.prompt[rare].tolist())
    for row in np.flatnonzero(lines.is_title & np.isin(lines.prompt, list(wanted))).tolist():
        shown.setdefault(int(lines.prompt[row]), set()).add(lines.text[row].as_py())
    targets = _titles_of(tables, tables.lists["target_id"])
    bad = np.zeros(len(lines.prompt), dtype=bool)
    for row in rare.tolist():
        prompt = int(lines.prompt[row])
        target = targets[int(lines.lists[prompt])].as_py() or ""
        bad[row] = _names(lines.text[row].as_py(), target, shown.get(prompt, set()))
    trap, way_out = "free text of a prefix names the target", "make profiles from the history before the target"
    users = _chunked(taken(lines.users, lines.prompt))
    refuse(bad, users, _chunked(taken(targets, lines.lists[lines.prompt])), trap=trap, way_out=way_out)


def wording_same(tables: GateTables) -> None:
    """Prompts of training and inference are worded alike, in the prefix and in the questions."""
    lines = lines_of(tables)
    sides = lines.splits == TRAIN
    if len({*sides.tolist()}) == 2:
        _same_lines(lines, sides)
        _same_questions(asked_of(tables), tables)


CHECKS = (
    Check("history-past", history_past, "prompts", ("candidates", "items")),
    Check("profile-blind", profile_blind, "prompts", ("candidates", "items")),
    Check("wording-same", wording_same, "prompts", ("candidates", "items")),
)


@dataclass(frozen=True)
class Lines:
    """The lines of all prefixes, one prompt after another, and their prompts."""

    users: pa.ChunkedArray
    """``(prompts,)``."""
    lists: NDArray[np.int64]
    """``(prompts,)`` row of the list."""
    splits: NDArray[np.int64]
    """``(prompts,)``."""
    prompt: NDArray[np.int64]
    """``(lines,)`` the prompt of the line."""
    text: pa.Array
    """``(lines,)``."""
    number: NDArray[np.int64]
    """``(lines,)`` the same for the same text."""
    is_title: NDArray[np.bool_]
    """``(lines,)`` whether some item is called so."""
    share: NDArray[np.float64]
    """``(lines,)`` share of all prompts that hold this line."""


def lines_of(tables: GateTables) -> Lines:
    """The lines of all prefixes."""
    assert tables.items is not None
    prompts, lists = known_prompts(tables)
    prompt, text = opened(pc.split_pattern(prompts["prefix"], "\n"))
    number = codes(_chunked(text))
    pairs = np.unique(number * (len(lists) + 1) + prompt)
    share = np.bincount(pairs // (len(lists) + 1), minlength=number.max(initial=0) + 1) / max(len(lists), 1)
    is_title = index_in(_chunked(text), pc.unique(tables.items["title"])) >= 0
    return Lines(prompts["user_id"], lists, splits_of(prompts), prompt, text, number, is_title, share[number])


def _same_lines(lines: Lines, training: NDArray[np.bool_]) -> None:
    """A line that all prompts of one side hold is not missing from all prompts of the other."""
    held = np.zeros((2, int(lines.number.max(initial=0)) + 1))
    for side, mine in enumerate((training, ~training)):
        rows = mine[lines.prompt] & ~lines.is_title
        pairs = np.unique(lines.number[rows] * len(training) + lines.prompt[rows])
        held[side] = np.bincount(pairs // len(training), minlength=held.shape[1]) / mine.sum()
    wrong = ((held[0] == 1) & (held[1] == 0)) | ((held[1] == 1) & (held[0] == 0))
    if wrong.any():
        line = lines.text[int(np.flatnonzero(lines.number == np.flatnonzero(wrong)[0])[0])].as_py()
        _refuse_wording(f"the line {line[:60]!r}", "every prompt of one side and none of the other")


def _same_questions(asked: Asked, tables: GateTables) -> None:
    """The usual wording of each task's questions is the same on both sides."""
    assert tables.items is not None
    titles = dict(zip(tables.items["item_id"].to_pylist(), tables.items["title"].to_pylist(), strict=True))
    starts = np.searchsorted(asked.question, np.arange(len(asked.tasks) + 1))
    for task in np.unique(asked.tasks):
        usual = []
        for side in (asked.split == TRAIN, asked.split != TRAIN):
            rows = np.flatnonzero(side & (asked.tasks == task))[:SAMPLED_QUESTIONS].tolist()
            shown = [asked.items[starts[row] : starts[row + 1]].to_pylist() for row in rows]
            worded = [
                _skeleton(asked.texts[row].as_py(), [titles.get(item, item) for item in items])
                for row, items in zip(rows, shown, strict=True)
            ]
            usual += [word for word, _ in Counter(worded).most_common(1)]
        if len(set(usual)) > 1:
            _refuse_wording(f"a {task} question", f"{usual[0]!r} in training, {usual[1]!r} at inference")


def _refuse_wording(what: str, where: str) -> None:
    raise LeakageError(
        f"prompts of training and inference are worded differently: {what} stands in {where}; make all prompts with "
        "the template the model is served with"
    )


def _skeleton(text: str, titles: list[str]) -> str:
    """The first words of a question, its titles and its hint left out."""
    for title in sorted(titles, key=len, reverse=True):
        text = text.replace(title, "{}", 1)
    head = re.sub(r"\[[^\n]*\]$", "[...]", text)
    lines = [line for line in head.split("\n") if not re.fullmatch(r"[A-Z]\. \{\}", line)]
    return "\n".join(lines)


def _names(text: str, target: str, shown: set[str]) -> bool:
    """Whether ``text`` holds the target's title as whole words, outside the titles of the history."""
    if len(target) < MIN_TITLE_CHARACTERS:
        return False
    for title in sorted(shown, key=len, reverse=True):
        text = text.replace(title, "")
    return re.search(rf"(?<!\w){re.escape(target)}(?!\w)", text) is not None


def _titles_of(tables: GateTables, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The title of each item id; the id itself where it has none."""
    assert tables.items is not None
    rows = index_in(ids, tables.items["item_id"].combine_chunks())
    titles = tables.items["title"].combine_chunks().take(pa.array(rows, mask=rows < 0))
    return _chunked(pc.coalesce(titles, ids.combine_chunks()))


def _chunked(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
