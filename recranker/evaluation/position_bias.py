"""How much an answer depends on where an item was shown, read from the model's answers."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.evaluation.metrics import first_slot_rate, kendall_tau, pair_agreement
from recranker.tasks import listwise
from recranker.tasks.pairwise import LABELS as PAIR_LABELS
from recranker.tasks.protocol import Answer

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PositionBias:
    """One model's answers under shuffled candidates; NaN where a question was never asked."""

    first_slot_rate: float
    """Share of listwise questions in which the item shown first is the likeliest answer."""
    first_slot_chance: float
    """What that share would be if the place did not matter: mean of 1 / items shown."""
    kendall_tau: float
    """Mean tau-b between two listwise rankings of one list, shuffled differently; 1 = the shuffle does not matter.
    A ranking is that of one shuffle, of all its windows together where a list is longer than a question."""
    pair_agreement: float
    """Share of pairs for which both orders of the question prefer the same item; 0.5 = chance."""
    pair_first_rate: float
    """Share of pairwise questions that prefer the item shown first; 0.5 = no bias."""

    def metrics(self) -> dict[str, float]:
        """The numbers that exist, by name."""
        return {name: value for name, value in asdict(self).items() if not np.isnan(value)}


@dataclass(frozen=True)
class _Asked:
    """Questions of one task and length: everything is ``(questions, ...)``."""

    lists: Ints
    """Row of the answers table each question belongs to."""
    items: Ints
    """``(questions, items)`` codes of the items in the order shown."""
    log_probabilities: Floats
    """``(questions, labels)``."""


def position_bias(answers: pa.Table, *, split: str = "test") -> dict[str, PositionBias]:
    """Position bias of each model in an ANSWERS table, over the lists of ``split``.

    Round 0 alone counts, which asks every list: later ones ask those lists again whose order a shuffle has changed.
    """
    answers = answers.filter(pc.equal(answers["split"], split))
    models = sorted(set(answers["model"].to_pylist()))
    return {model: _of_model(answers.filter(pc.equal(answers["model"], model))) for model in models}


def _of_model(answers: pa.Table) -> PositionBias:
    lists, pairs = _asked(answers, "listwise"), _asked(answers, "pairwise")
    firsts = _by_question([(first_slot_rate(one.log_probabilities), len(one.lists)) for one in lists])
    chance = _by_question([(1.0 / one.items.shape[1], len(one.lists)) for one in lists])
    taus = _taus(answers)
    margins = [_pair_margins(one) for one in pairs]
    prefers_first = [float((_log_odds(one) > 0).mean()) for one in pairs]
    return PositionBias(
        first_slot_rate=firsts,
        first_slot_chance=chance,
        kendall_tau=_mean(taus[~np.isnan(taus)]),
        pair_agreement=pair_agreement(*margins[0]) if margins else float("nan"),
        pair_first_rate=prefers_first[0] if prefers_first else float("nan"),
    )


def _asked(answers: pa.Table, task: str) -> list[_Asked]:
    """All questions of ``task`` in round 0, one group per number of items shown."""
    column = answers["answers"].combine_chunks()
    questions = column.flatten()
    lists = pc.list_parent_indices(column)
    wanted = pc.and_(pc.equal(questions.field("task"), task), pc.equal(questions.field("round"), 0))
    lists, questions = lists.filter(wanted), questions.filter(wanted)
    items, scores = questions.field("item_ids"), questions.field("log_probabilities")
    lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False)
    groups = []
    for length in np.unique(lengths):
        rows = pa.array(lengths == length)
        codes = items.filter(rows).flatten().dictionary_encode().indices.to_numpy(zero_copy_only=False)
        values = scores.filter(rows).flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        owners = lists.filter(rows).to_numpy(zero_copy_only=False).astype(np.int64)
        groups.append(_Asked(owners, codes.astype(np.int64).reshape(-1, length), values.reshape(len(owners), -1)))
    return groups


def _taus(answers: pa.Table) -> Floats:
    """Tau of every two neighbouring shuffles of one list; NaN where one of them ties all items.

    Of a list asked about in windows, the windows of a shuffle are put together before two shuffles are compared:
    two windows, even of one shuffle, show different items.
    """
    by_length: dict[int, list[tuple[Floats, Floats]]] = {}
    for questions in answers["answers"].to_pylist():
        asked = [
            Answer("listwise", tuple(one["item_ids"]), np.array(one["log_probabilities"]))
            for one in questions
            if one["task"] == "listwise" and one["round"] == 0
        ]
        items = list(dict.fromkeys(item for one in asked for item in one.item_ids))
        scores = [listwise.scores(shuffle, items) for shuffle in _shuffles(asked, len(items))]
        by_length.setdefault(len(items), []).extend(itertools.pairwise(scores))
    stacked = [np.stack([np.stack(pair) for pair in pairs], axis=1) for pairs in by_length.values() if pairs]
    return np.concatenate([np.empty(0), *(kendall_tau(first, second) for first, second in stacked)])


def _shuffles(asked: Sequence[Answer], num_items: int) -> list[Sequence[Answer]]:
    """The listwise answers of round 0 about one list, by shuffle.

    Where questions show windows, round 0 holds one shuffle or two: of w windows of a shuffle, the second starts
    ``num_items // w`` places behind the first (``listwise.windows``).
    """
    if not asked or len(asked[0].item_ids) == num_items:
        return [[one] for one in asked]
    first, second = (one.item_ids for one in asked[:2])
    gap = first.index(second[0]) if second[0] in first else len(first)
    half = len(asked) // 2
    return [asked] if num_items // len(asked) == gap else [asked[:half], asked[half:]]


def _pair_margins(asked: _Asked) -> tuple[Floats, Floats]:
    """Preference for the lower-coded item of each pair asked in both orders: shown first, shown second."""
    low, high = asked.items.min(axis=1), asked.items.max(axis=1)
    low_first = asked.items[:, 0] == low
    preference = np.where(low_first, 1.0, -1.0) * _log_odds(asked)
    _, pair = np.unique(np.stack([asked.lists, low, high]), axis=1, return_inverse=True)
    size = int(pair.max(initial=-1)) + 1
    shown_first, shown_second = (
        (np.bincount(pair[rows], preference[rows], size), np.bincount(pair[rows], minlength=size))
        for rows in (low_first, ~low_first)
    )
    both = (shown_first[1] > 0) & (shown_second[1] > 0)
    return shown_first[0][both] / shown_first[1][both], shown_second[0][both] / shown_second[1][both]


def _log_odds(asked: _Asked) -> Floats:
    """``(questions,)`` log-odds that the item shown first is preferred."""
    yes = PAIR_LABELS.index("Yes")
    return np.asarray(asked.log_probabilities[:, yes] - asked.log_probabilities[:, 1 - yes], dtype=np.float64)


def _by_question(rates: list[tuple[float, int]]) -> float:
    """Mean of rates weighted by their number of questions."""
    return sum(rate * count for rate, count in rates) / sum(count for _, count in rates) if rates else float("nan")


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else float("nan")
