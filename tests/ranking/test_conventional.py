import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pyarrow as pa
import pytest

from recranker.errors import DataError, SettingsError
from recranker.randomness import keys_of
from recranker.ranking import conventional
from recranker.ranking.choice import starts_of
from recranker.ranking.conventional import PARTS, conventional_scores, fit_and_score, target_places
from recranker.ranking.evidence import evidence_of
from recranker.ranking.settings import ConventionalSettings
from recranker.settings import check_settings
from tests.ranking.made_up import IMPLICIT, RATED, Shop, shop

BOTH = ConventionalSettings(models=("logistic", "trees"))
QUICK = ConventionalSettings(models=("logistic",))


def scored(one: Shop, settings: ConventionalSettings = QUICK, facts: dict = RATED) -> tuple[dict, pa.Table, dict]:
    """Scores per signal and list, CANDIDATES, and facts."""
    rows, lists, stated = conventional_scores(
        one.interactions, one.folds, one.lists, one.signals, one.items, facts, settings, 0
    )
    found: dict = {}
    for row in rows.to_pylist():
        found.setdefault(row["signal"], {})[row["list_id"]] = row["scores"]
    return found, lists, stated


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conventional, "ROUNDS", (5, 15))


@cache
def plain() -> tuple[dict, pa.Table, dict]:
    return scored(shop(), BOTH)


def share_on_top(scores: dict, one: Shop, split: str) -> float:
    rows = [row for row in one.lists.to_pylist() if row["split"] == split]
    first = [row["candidate_ids"][int(np.argmax(scores[row["list_id"]]))] == row["target_id"] for row in rows]
    return float(np.mean(first))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_both_models_find_what_follows_what(split: str) -> None:
    scores, _, stated = plain()
    assert stated["training_lists"] == 120
    for name in ("logistic", "trees", "logistic_text", "trees_text"):
        assert share_on_top(scores[name], shop(), split) > 0.6, name  # chance is about 0.16


def test_every_list_has_a_score_per_candidate_and_candidates_carry_the_hints() -> None:
    scores, lists, stated = plain()
    assert stated["hint"] == "logistic_text"
    assert set(scores) == {"logistic", "trees", "logistic_text", "trees_text"}
    for row in lists.to_pylist():
        assert row["reranker_scores"] == scores["logistic_text"][row["list_id"]]
        assert len(row["reranker_scores"]) == len(row["candidate_ids"])
    _, other, _ = scored(shop(), ConventionalSettings(models=("logistic",), hint="logistic"))
    assert other["reranker_scores"] != lists["reranker_scores"]


def test_the_same_twice() -> None:
    assert scored(shop(), BOTH)[0] == plain()[0]


def test_no_target_of_validation_or_test_reaches_a_score() -> None:
    one = shop()
    rows = one.lists.to_pylist()
    for row in rows:
        if row["split"] != "train":
            row["target_id"] = row["candidate_ids"][0]
    assert scored(replace(one, lists=pa.Table.from_pylist(rows, schema=one.lists.schema)), BOTH)[0] == plain()[0]


def test_a_training_list_is_scored_by_models_that_have_not_seen_its_user() -> None:
    """Turning one part's targets round changes scores everywhere but in the training lists of that part's users."""
    one = shop()
    rows = one.lists.to_pylist()
    part = {row["user_id"]: int(keys_of([row["user_id"]], 0, "reranker")[0]) % PARTS for row in rows}
    for row in rows:
        if part[row["user_id"]] == 2 and row["split"] == "train":
            row["target_id"] = next(item for item in row["candidate_ids"] if item != row["target_id"])
    changed = scored(replace(one, lists=pa.Table.from_pylist(rows, schema=one.lists.schema)), BOTH)[0]
    for name, before in plain()[0].items():
        for row in rows:
            same = before[row["list_id"]] == changed[name][row["list_id"]]
            assert same == (row["split"] == "train" and part[row["user_id"]] == 2), (name, row["list_id"])


def test_text_reaches_only_what_is_named_after_it() -> None:
    one = shop()
    retitled = one.items.set_column(1, "title", pa.array([f"word{n % 3}" for n in range(one.items.num_rows)]))
    found = scored(replace(one, items=retitled))[0]
    assert found["logistic"] == plain()[0]["logistic"]
    assert found["logistic_text"] != plain()[0]["logistic_text"]


def test_a_catalogue_without_text_cannot_give_a_hint_from_text() -> None:
    one = shop()
    titles, genres = pa.array([""] * one.items.num_rows), pa.array([[]] * one.items.num_rows, pa.list_(pa.string()))
    bare = replace(one, items=one.items.set_column(1, "title", titles).set_column(2, "genres", genres))
    with pytest.raises(DataError, match=r"set conventional\.hint=logistic$"):
        scored(bare)
    found, _, stated = scored(bare, ConventionalSettings(models=("logistic",), hint="logistic"))
    assert set(found) == {"logistic"}
    assert stated["absent"] == ["text"]


def test_data_without_order_and_ratings_say_what_is_absent() -> None:
    _, _, stated = scored(shop(), QUICK, IMPLICIT)
    assert stated["absent"] == ["ratings", "time", "transitions"]
    assert plain()[2]["absent"] == []


def test_with_too_few_lists_the_retrievers_scores_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    found, lists, stated = scored(shop(num_users=20))
    assert found == {}
    assert stated["hint"] == "backbone"
    assert (
        "40 training lists in 5 of 5 parts of the users hold their target; re-rankers need 50 lists in 3" in caplog.text
    )
    assert lists["reranker_scores"].to_pylist() == lists["backbone_scores"].to_pylist()


def test_lists_of_too_few_users_fit_nothing(caplog: pytest.LogCaptureFixture) -> None:
    one = shop()
    rows = one.lists.to_pylist()
    for row in rows:
        row["hit"] = row["hit"] and int(keys_of([row["user_id"]], 0, "reranker")[0]) % PARTS < 2
    settings = ConventionalSettings(models=("logistic",), min_lists=10)
    found, _, _ = scored(replace(one, lists=pa.Table.from_pylist(rows, schema=one.lists.schema)), settings)
    assert found == {}
    assert "in 2 of 5 parts of the users" in caplog.text


def shuffled_and_real(family: str) -> tuple[float, float]:
    """Share of targets on top with shuffled labels, and with the real ones."""
    one = shop()
    evidence = evidence_of(one.interactions, one.folds, one.lists, one.signals, one.items, RATED)
    real = target_places(one.lists)
    lengths = np.diff(np.append(evidence.starts, len(evidence.raw)))
    random = np.random.default_rng(0).integers(0, lengths)
    groups = np.arange(len(real)) // 4 % 5  # four lists of one user stand together
    shares = []
    for targets in (random, real):
        scores = fit_and_score(evidence.raw, evidence.starts, targets, groups, family=family)  # type: ignore[arg-type]
        tops = [np.argmax(scores[start : start + n]) for start, n in zip(evidence.starts, lengths, strict=True)]
        shares.append(float(np.mean(np.array(tops) == targets)))
    return shares[0], shares[1]


@pytest.mark.parametrize("family", ["logistic", "trees"])
def test_shuffled_labels_fall_to_chance(family: str) -> None:
    chance, real = shuffled_and_real(family)
    assert chance < 0.25  # 1 / 5 to 1 / 8, 240 lists: 0.16 + 3 x 0.024
    assert real > 0.6


def test_a_list_without_candidates_gets_no_scores_and_disturbs_no_other() -> None:
    one = shop()
    empty = {name: [] for name in ("candidate_ids", "backbone_scores", "predicted_ratings", "popularity")}
    row = one.lists.to_pylist()[3] | empty | {"hit": False, "list_id": "test/u00/none"}
    added = pa.concat_tables([one.lists, pa.Table.from_pylist([row], schema=one.lists.schema)])
    found = scored(replace(one, lists=added))[0]
    assert found["logistic"].pop("test/u00/none") == []
    assert found["logistic"] == plain()[0]["logistic"]


def test_target_places_by_hand() -> None:
    rows = {"candidate_ids": [["a", "b"], ["a", "b", "c"], ["d"]], "target_id": ["b", "x", "d"]}
    assert target_places(pa.table(rows)).tolist() == [1, -1, 0]
    assert starts_of(np.array([2, 3, 1])).tolist() == [0, 2, 5]


def test_lambdamart_finds_what_follows_what() -> None:
    pytest.importorskip("lightgbm", reason="needs recranker[lambdamart]")
    chance, real = shuffled_and_real("lambdamart")
    assert chance < 0.25
    assert real > 0.6


def test_without_lightgbm_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(SettingsError, match=r"install recranker\[lambdamart\]"):
        scored(shop(), ConventionalSettings(models=("logistic", "lambdamart")))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hint": "trees", "models": ["logistic"]}, "needs 'trees' in conventional.models"),
        ({"hint": "logistic_text", "groups": ["backbone"]}, "needs 'text' in conventional.groups"),
        ({"groups": ["time"], "hint": "logistic"}, "which all data have"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        check_settings(ConventionalSettings, changes, where="here")
