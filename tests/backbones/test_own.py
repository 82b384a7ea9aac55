"""A team's own candidates: what is refused at the door, what is kept, and the way through to lists."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recranker.backbones.assembly import fold_fits, lists_of
from recranker.backbones.candidates import FoldFits, Lists, Scale, all_targets
from recranker.backbones.events import Interactions, index_interactions
from recranker.backbones.folds import data_of, make_folds
from recranker.backbones.own import wanted_targets
from recranker.backbones.settings import BackboneSettings, EASESettings, ItemKNNSettings, OwnCandidates
from recranker.backbones.signals import signal_rows
from recranker.errors import DataError
from tests.backbones.made_up import many_interactions

SCALE = Scale(1.0, 5.0, 4.0)
INDEXED = index_interactions(many_interactions())
Row = dict[str, Any]


def settings_with(retriever: Any, **changes: Any) -> BackboneSettings:
    return BackboneSettings(retriever=retriever, signals=(EASESettings(l2=3.0),), **changes)


def folds_of(indexed: Interactions, settings: BackboneSettings) -> tuple[FoldFits, ...]:
    folds = [(fold, data_of(indexed, fold)) for fold in make_folds(indexed, settings)]
    return fold_fits(folds, {}, settings, SCALE, seed=0)


def lists_by(retriever: Any, indexed: Interactions = INDEXED, **changes: Any) -> tuple[Lists, dict[str, int]]:
    settings = settings_with(retriever, **changes)
    return lists_of(indexed, folds_of(indexed, settings), settings, SCALE)


def asked_for(**changes: Any) -> list[Row]:
    """The targets a team is asked to make lists for."""
    settings = settings_with(ItemKNNSettings(), **changes)
    folds = make_folds(INDEXED, settings)
    return wanted_targets(INDEXED, all_targets(INDEXED, folds, settings)).to_pylist()


def own_rows(*, width: int = 3, holding: Callable[[Row], bool] = lambda asked: False) -> list[Row]:
    """A list of ``width`` items per target, which holds the target where ``holding`` says so."""
    rows = []
    for asked in asked_for():
        others = [one for one in INDEXED.item_ids.to_pylist() if one != asked["target_id"]]
        items = ([asked["target_id"]] if holding(asked) else []) + others
        known = {name: asked[name] for name in ("split", "user_id", "target_id")}
        rows += [{**known, "item_id": item, "score": -float(place)} for place, item in enumerate(items[:width])]
    return rows


def written(rows: list[Row] | pa.Table, folder: Path) -> OwnCandidates:
    path = folder / "own.parquet"
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)
    return OwnCandidates(path=str(path))


def changed(**values: Any) -> list[Row]:
    """Good rows of which the second is broken."""
    rows = own_rows()
    rows[1] = {**rows[1], **values}
    return rows


def of_splits(*splits: str) -> list[Row]:
    return [row for row in own_rows() if row["split"] in splits]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (pa.Table.from_pylist(own_rows()).drop(["score"]), r"lacks column 'score' \(found: split, .*\); write"),
        (
            pa.Table.from_pylist(own_rows()).set_column(4, "score", pa.array(["high"] * len(own_rows()))),
            r"column 'score' must be double, got string \(.*'high'.*\); write it so",
        ),
        (pa.Table.from_pylist(own_rows()).slice(0, 0), "needed a row per list and candidate, found none"),
        (changed(score=float("nan")), r"'score' must be a number in every row, 1 rows do not \(row 2: nan\)"),
        (changed(score=None), r"'score' must be a number in every row, 1 rows do not \(row 2: None\)"),
        (changed(score=1e300), r"'score' must be a number in every row, 1 rows do not \(row 2: 1e\+300\)"),
        (changed(user_id="nobody"), r"'user_id' must be a user of the interactions.*\(row 2: 'nobody'\).*same keys"),
        (changed(user_id=None), r"'user_id' must be a user of the interactions.*\(row 2: None\)"),
        (changed(item_id="nothing"), r"'item_id' must be an item of the interactions.*\(row 2: 'nothing'\)"),
        (changed(target_id="nothing"), r"'target_id' must be an item of the interactions.*\(row 2: 'nothing'\)"),
        (changed(split="dev"), r"'split' must be one of train, validation, test.*\(row 2: 'dev'\); name the split"),
        (changed(target_id=None), r"'target_id' must name the target of a training list.*see jobs\.backbone --targets"),
        (changed(item_id=own_rows()[0]["item_id"]), "a list of split 'train' offers an item twice"),
        (of_splits("train", "test"), "lists for the targets of split 'validation', found none.*--targets FILE"),
        (of_splits("validation", "test"), "lists for the targets of split 'train', found none"),
        (of_splits("train", "validation"), "lists for the targets of split 'test', found none"),
    ],
)
def test_what_is_refused_says_so_in_one_line(rows: Any, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=complaint) as caught:
        lists_by(written(rows, tmp_path))
    assert "\n" not in str(caught.value)
    assert "own.parquet" in str(caught.value)


def test_a_file_that_is_not_there_or_no_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.parquet' is not there; set backbone\.retriever\.path"):
        lists_by(OwnCandidates(path=str(tmp_path / "absent.parquet")))
    (tmp_path / "text.parquet").write_text("user_id,item_id\n")
    with pytest.raises(
        DataError, match=r"text\.parquet' cannot be read: .*; check the file or write it again"
    ) as caught:
        lists_by(OwnCandidates(path=str(tmp_path / "text.parquet")))
    assert "\n" not in str(caught.value)


def test_candidates_that_claim_more_than_allowed_are_refused_before_they_are_loaded(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(own_rows()), tmp_path / "own.parquet")
    own = OwnCandidates(path=str(tmp_path / "own.parquet"), parquet={"max_rows": 3})
    with pytest.raises(DataError, match=r"allowed are 3; .* raise backbone\.retriever\.parquet\.max_rows"):
        lists_by(own)


def test_columns_of_other_but_fitting_types_are_taken(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(own_rows())
    scores = pa.array([int(score) for score in table["score"].to_pylist()])
    table = table.set_column(4, "score", scores).set_column(1, "user_id", table["user_id"].dictionary_encode())
    assert lists_by(written(table, tmp_path))[0].table.equals(lists_by(written(own_rows(), tmp_path))[0].table)


def test_the_best_are_kept_and_equal_scores_go_by_item(tmp_path: Path) -> None:
    rows = own_rows(width=9)
    for place, row in enumerate(rows):
        row["score"] = float(place % 4)
    lists, counts = lists_by(written(rows, tmp_path), num_candidates=4)
    assert counts == {"own_rows": len(rows), "own_lists_kept": len(lists.table), "targets_without_own_list": 0}
    for one in lists.table.to_pylist():
        names = ("split", "user_id", "target_id")
        mine = [row for row in rows if all(row[name] == one[name] for name in names)]
        best = sorted(mine, key=lambda row: (-row["score"], row["item_id"]))[:4]
        assert one["candidate_ids"] == [row["item_id"] for row in best]
        assert one["backbone_scores"] == [row["score"] for row in best]


def test_targets_without_a_list_are_left_out_and_counted(tmp_path: Path) -> None:
    dropped = {(one["split"], one["user_id"]) for one in asked_for()[:1] + asked_for()[-2:]}
    rows = [row for row in own_rows() if (row["split"], row["user_id"]) not in dropped]
    lists, counts = lists_by(written(rows, tmp_path))
    kept = [(one["split"], one["user_id"], one["target_id"]) for one in lists.table.to_pylist()]
    names = ("split", "user_id", "target_id")
    expected = [tuple(one[name] for name in names) for one in asked_for()]
    assert kept == [one for one in expected if one[:2] not in dropped]
    assert counts["targets_without_own_list"] == len(expected) - len(kept)
    assert counts["own_lists_kept"] == len(kept)


def test_held_out_lists_need_no_target_of_their_own(tmp_path: Path) -> None:
    rows = own_rows()
    silent = [{**row, "target_id": row["target_id"] if row["split"] == "train" else None} for row in rows]
    assert lists_by(written(silent, tmp_path))[0].table.equals(lists_by(written(rows, tmp_path))[0].table)


def test_a_list_for_a_user_with_nothing_held_out_goes_to_nobody(tmp_path: Path) -> None:
    """The user before has the last item of all as target: a number for 'no target' must not run into it."""
    table = many_interactions().to_pylist()
    last = max(row["item_id"] for row in table)
    users = sorted({row["user_id"] for row in table})
    before, without = users[3], users[4]
    rows = [row for row in table if not (row["user_id"] == without and row["split"] == "test")]
    rows = [row for row in rows if not (row["user_id"] == before and row["item_id"] == last)]
    for row in rows:
        if row["user_id"] == before and row["split"] == "test":
            row["item_id"] = last
    indexed = index_interactions(pa.Table.from_pylist(rows, schema=many_interactions().schema))
    own = [row for row in own_rows() if not (row["user_id"] == before and row["split"] == "test")]
    lists, _ = lists_by(written([{**row, "target_id": row["target_id"]} for row in own], tmp_path), indexed)
    tested = {one["user_id"] for one in lists.table.to_pylist() if one["split"] == "test"}
    assert tested == set(users) - {before, without}


@pytest.mark.parametrize(("in_sample", "warned"), [(True, True), (False, False)])
def test_lists_that_know_the_training_targets_are_pointed_out(
    in_sample: bool, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def holding(asked: Row) -> bool:
        honest = asked["user_id"] in ("u1", "u10", "u11", "u7")
        return honest or (in_sample and asked["split"] == "train")

    with caplog.at_level(logging.WARNING):
        lists_by(written(own_rows(holding=holding), tmp_path))
    said = [record.getMessage() for record in caplog.records if "in-sample" in record.getMessage()]
    assert bool(said) == warned
    assert not said or "hold 100.0 % of the training targets, 33.3 % of the test targets" in said[0]


@pytest.mark.parametrize("rolls", [1, 2])
@pytest.mark.parametrize("validation_in_history", [True, False])
def test_our_own_retrievers_lists_brought_back_are_the_same_candidates(
    validation_in_history: bool, rolls: int, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"validation_in_history": validation_in_history, "rolls": rolls, "num_candidates": 6}
    ours, _ = lists_by(ItemKNNSettings(), **changes)
    offered = {(one["split"], one["user_id"], one["target_id"]): one for one in ours.table.to_pylist()}
    rows = []
    for asked in asked_for(**changes):
        key = {name: asked[name] for name in ("split", "user_id", "target_id")}
        one = offered[tuple(key.values())]
        assert asked["before"] == one["before"]
        scored = zip(one["candidate_ids"], one["backbone_scores"], strict=True)
        rows += [{**key, "item_id": item, "score": score} for item, score in scored]
    order = np.random.default_rng(0).permutation(len(rows))
    brought, counts = lists_by(written([rows[place] for place in order], tmp_path), **changes)
    assert counts == {"own_rows": len(rows), "own_lists_kept": len(offered), "targets_without_own_list": 0}
    assert brought.table.equals(ours.table)
    assert signal_rows(brought.table, brought.signals).equals(signal_rows(ours.table, ours.signals))


def test_embeddings_of_the_likes_stand_in_for_those_of_the_retriever(tmp_path: Path) -> None:
    full, *_ = folds_of(INDEXED, settings_with(written(own_rows(), tmp_path)))
    assert full.retriever.user_factors.shape[0] == INDEXED.num_users
    assert full.retriever.item_factors.shape[0] == INDEXED.num_items
    likes = np.zeros((INDEXED.num_users, INDEXED.num_items))
    likes[full.data.like_users, full.data.like_items] = 1.0
    rebuilt = full.retriever.user_factors @ full.retriever.item_factors.T
    assert np.corrcoef(rebuilt.reshape(-1), likes.reshape(-1))[0, 1] > 0.95
