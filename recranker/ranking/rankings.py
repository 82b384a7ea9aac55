"""From answers to the orders of every ranker: each task alone and the hybrids, tuned and untuned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recranker.errors import DataError
from recranker.randomness import key_of
from recranker.ranking.choice import standardised
from recranker.ranking.fusion import PAPER_WEIGHTS, best_first, fuse, learn_weights
from recranker.ranking.utilities import TASKS, paper_utilities, task_scores
from recranker.schema import RANKINGS
from recranker.tasks.protocol import Answer, RatingScale

CHEAP: Mapping[str, tuple[str, ...]] = {
    "hybrid": ("backbone",),
    "hybrid_conventional": ("backbone", "conventional"),
}
"""Per fused row, the signals that are there without the language model; one of them alone is what it must beat."""


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


def weights_from_validation(answers: pa.Table, lists: pa.Table) -> tuple[dict[str, dict[str, float]], int]:
    """Weights of every fused row, learned on the tuned model's validation answers, and how many lists they rest on.

    Raises:
        DataError: If no validation list that holds its target was answered, or a score is not finite.
    """
    lists = lists.filter(pc.and_(pc.equal(lists["split"], "validation"), lists["hit"]))
    by_id = {row["list_id"]: row for row in lists.to_pylist()}
    rows = [row for row in answers.to_pylist() if row["model"] == "tuned" and row["list_id"] in by_id]
    of = [by_id[row["list_id"]] for row in rows]
    targets = [one["candidate_ids"].index(one["target_id"]) for one in of]
    features = [_standardised(_raw_scores(_answers(row), row, one)) for row, one in zip(rows, of, strict=True)]
    return {
        name: learn_weights([_for(name, one) for one in features], targets, alone=CHEAP[name]) for name in CHEAP
    }, len(rows)


def rank_all(
    answers: pa.Table, lists: pa.Table, scale: RatingScale, weights: Mapping[str, Mapping[str, float]]
) -> pa.Table:
    """The RANKINGS table: a row per answered list and ranker.

    Rankers of the tuned model: pointwise, pairwise, listwise, hybrid_paper (the paper's utilities and constants), and
    hybrid and hybrid_conventional (z-scores under their ``weights``; the second also sees the conventional
    re-ranker's). Of any other model, named before the row: the tasks and their equal-weight hybrid.

    Raises:
        DataError: If a score is not finite, or a list has none to fuse.
    """
    by_id = {row["list_id"]: row for row in lists.to_pylist()}
    rows = []
    for row in answers.to_pylist():
        one = by_id[row["list_id"]]
        for name, scores in _rankers(row, one, scale, weights).items():
            rows.append(_ranking(row, one, name, scores))
    return pa.Table.from_pylist(rows, schema=RANKINGS.schema)


def _rankers(
    row: Mapping[str, Any], one: Mapping[str, Any], scale: RatingScale, weights: Mapping[str, Mapping[str, float]]
) -> dict[str, NDArray[np.float64]]:
    answers = _answers(row)
    raw = _raw_scores(answers, row, one)
    standard = _standardised(raw)
    scores = {task: raw[task] for task in TASKS if task in raw}
    if (model := row["model"]) != "tuned":
        named = {f"{model}_{task}": values for task, values in scores.items()}
        return {**named, f"{model}_hybrid": fuse({task: standard[task] for task in scores}, PAPER_WEIGHTS)}
    utilities = paper_utilities(answers, one["candidate_ids"], scale, raw)
    fused = {name: fuse(_for(name, standard), found) for name, found in weights.items()}
    return {**scores, "hybrid_paper": fuse(utilities, PAPER_WEIGHTS), **fused}


def _raw_scores(
    answers: Sequence[Answer], row: Mapping[str, Any], one: Mapping[str, Any]
) -> dict[str, NDArray[np.float64]]:
    """``(items,)`` scores of every task asked, of retriever and conventional re-ranker: all that rows are made from.

    Raises:
        DataError: If one is not finite; z-scores would hide it.
    """
    scores = task_scores(answers, one["candidate_ids"])
    scores["backbone"] = np.asarray(one["backbone_scores"], np.float64)
    scores["conventional"] = np.asarray(one["reranker_scores"], np.float64)
    for name, values in scores.items():
        if not np.isfinite(values).all():
            raise DataError(
                f"list {row['list_id']!r} of user {row['user_id']!r}, model '{row['model']}': scores of '{name}' must "
                f"be finite, got {values.tolist()}"
            )
    return scores


def _standardised(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Z-scores within the list, so that one weight fits all lists."""
    return {name: standardised(values) for name, values in scores.items()}


def _for(fused: str, standard: Mapping[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """What a fused row may look at: the tasks and its own cheap signals."""
    others = {name for names in CHEAP.values() for name in names} - set(CHEAP[fused])
    return {name: values for name, values in standard.items() if name not in others}


def _ranking(row: Mapping[str, Any], one: Mapping[str, Any], name: str, scores: NDArray[np.float64]) -> dict[str, Any]:
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
        Answer(one["task"], tuple(one["item_ids"]), np.asarray(one["log_probabilities"], np.float64), one["round"])
        for one in row["answers"]
    ]
