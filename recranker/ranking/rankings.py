"""From answers to the orders of every ranker: each task alone, both hybrids, tuned and untuned."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recranker.backbones.choice import standardised
from recranker.errors import DataError
from recranker.randomness import key_of
from recranker.ranking.fusion import PAPER_WEIGHTS, best_first, fuse, learn_weights
from recranker.ranking.utilities import paper_utilities, task_scores
from recranker.schema import RANKINGS
from recranker.tasks.protocol import Answer, RatingScale


def choose_lists(lists: pa.Table, *, only_hits: bool, max_validation: int, seed: int) -> set[str]:
    """Ids of the lists to rank: test lists, and a keyed choice of validation lists that hold their target."""
    test, validation = [], []
    for row in lists.select(["list_id", "split", "hit"]).to_pylist():
        if row["split"] == "test" and (row["hit"] or not only_hits):
            test.append(row["list_id"])
        elif row["split"] == "validation" and row["hit"]:
            validation.append(row["list_id"])
    validation.sort(key=lambda list_id: (key_of(seed, "validation lists", list_id), list_id))
    return {*test, *validation[:max_validation]}


def weights_from_validation(answers: pa.Table, lists: pa.Table) -> tuple[dict[str, float], int]:
    """Fusion weights learned on the tuned model's validation answers, and how many lists they rest on.

    Raises:
        DataError: If no validation list was answered.
    """
    by_id = {row["list_id"]: row for row in lists.filter(pa.compute.field("split") == "validation").to_pylist()}
    features, targets = [], []
    for row in answers.to_pylist():
        if row["model"] == "tuned" and row["split"] == "validation":
            one = by_id[row["list_id"]]
            features.append(signals(_answers(row), one))
            targets.append(one["candidate_ids"].index(one["target_id"]))
    return learn_weights(features, targets), len(features)


def signals(answers: list[Answer], one: Mapping[str, Any]) -> dict[str, NDArray[np.float64]]:
    """``(items,)`` z-scores of every task asked and of the retriever, for one CANDIDATES row."""
    scores = {**task_scores(answers, one["candidate_ids"]), "backbone": np.asarray(one["backbone_scores"], np.float64)}
    return {name: standardised(values) for name, values in scores.items()}


def rank_all(answers: pa.Table, lists: pa.Table, scale: RatingScale, weights: Mapping[str, float]) -> pa.Table:
    """The RANKINGS table: a row per answered list and ranker.

    Rankers of the tuned model: pointwise, pairwise, listwise, hybrid_paper (the paper's utilities and
    constants) and hybrid (z-scores under ``weights``). Of the untuned one: the tasks and their equal-weight hybrid.
    """
    by_id = {row["list_id"]: row for row in lists.to_pylist()}
    rows = []
    for row in answers.to_pylist():
        one = by_id[row["list_id"]]
        for name, scores in _rankers(row, one, scale, weights).items():
            rows.append(_ranking(row, one, name, scores))
    return pa.Table.from_pylist(rows, schema=RANKINGS.schema)


def _rankers(
    row: Mapping[str, Any], one: Mapping[str, Any], scale: RatingScale, weights: Mapping[str, float]
) -> dict[str, NDArray[np.float64]]:
    answers = _answers(row)
    scores = task_scores(answers, one["candidate_ids"])
    standard = signals(answers, one)
    if row["model"] == "untuned":
        named = {f"untuned_{task}": values for task, values in scores.items()}
        return {**named, "untuned_hybrid": fuse(_tasks(standard), PAPER_WEIGHTS)}
    utilities = paper_utilities(answers, one["candidate_ids"], scale)
    return {**scores, "hybrid_paper": fuse(utilities, PAPER_WEIGHTS), "hybrid": fuse(standard, weights)}


def _tasks(standard: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    return {name: values for name, values in standard.items() if name != "backbone"}


def _ranking(row: Mapping[str, Any], one: Mapping[str, Any], name: str, scores: NDArray[np.float64]) -> dict[str, Any]:
    if not np.isfinite(scores).all():
        raise DataError(f"list {row['list_id']!r}: ranker '{name}' gave scores that are not finite")
    order = best_first(scores)
    return {
        "list_id": row["list_id"],
        "user_id": row["user_id"],
        "split": row["split"],
        "row": name,
        "item_ids": [one["candidate_ids"][index] for index in order],
        "scores": scores[order].tolist(),
    }


def _answers(row: Mapping[str, Any]) -> list[Answer]:
    return [
        Answer(one["task"], tuple(one["item_ids"]), np.asarray(one["log_probabilities"], np.float64))
        for one in row["answers"]
    ]
