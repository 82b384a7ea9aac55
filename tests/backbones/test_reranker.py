import numpy as np
import pyarrow as pa
import pytest

from recranker.backbones import reranker
from recranker.backbones.candidates import candidate_lists
from recranker.backbones.events import index_interactions
from recranker.backbones.evidence import FADE, transitions
from recranker.backbones.reranker import with_reranker
from recranker.backbones.settings import BackboneSettings
from recranker.randomness import key_of
from tests.backbones.made_up import fold_of, many_interactions
from tests.backbones.test_candidates import SCALE, both_folds


def test_transitions_count_what_follows_by_hand() -> None:
    # User 0 likes 0, 1, 2 in order; user 1 likes 1, 2.
    found = transitions(fold_of([(0, 0), (0, 1), (0, 2), (1, 1), (1, 2)], num_users=2, num_items=3)).toarray()
    np.testing.assert_allclose(found, [[0, 1, FADE], [0, 0, 2], [0, 0, 0]])


def reranked(seed: int = 0, table: pa.Table | None = None) -> tuple[list[dict], dict[str, float]]:
    indexed = index_interactions(many_interactions(num_users=40, num_items=60) if table is None else table)
    settings = BackboneSettings(num_candidates=8, rolled_back_share=0.5)
    full, rolled_back = both_folds(indexed, settings)
    lists = candidate_lists(indexed, full, rolled_back, settings, SCALE)
    found, weights = with_reranker(indexed, {"full": full, "rolled_back": rolled_back}, lists, seed)
    return found.to_pylist(), weights


def test_every_candidate_gets_a_score_and_every_feature_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reranker, "MIN_LISTS", 5)
    rows, weights = reranked()
    assert all(len(row["reranker_scores"]) == len(row["candidate_ids"]) for row in rows)
    assert tuple(weights) == reranker.FEATURES
    assert any(weights.values())


def test_with_too_few_lists_the_retrievers_order_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    rows, weights = reranked()
    assert weights == {name: float(name == "backbone_score") for name in reranker.FEATURES}
    assert "training lists hold their target" in caplog.text
    for row in rows:
        assert row["reranker_scores"] == sorted(row["reranker_scores"], reverse=True)


def test_a_training_list_is_scored_by_weights_that_have_not_seen_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning one user's targets round changes every score but those of the user's own part of the users."""
    monkeypatch.setattr(reranker, "MIN_LISTS", 5)
    plain, _ = reranked()
    usable = next(row for row in plain if row["split"] == "train" and row["hit"])
    part = key_of(0, "reranker", usable["user_id"]) % reranker.PARTS
    real = reranker.fit_choice

    def planted(features: list, targets: list, **options: float) -> np.ndarray:
        mine = reranker_features_of(usable)
        moved = [0 if any(one is two for two in mine) else t for one, t in zip(features, targets, strict=True)]
        return real(features, moved, **options)

    kept: list = []
    original = reranker._features

    def remembered(*arguments: object) -> list:
        kept[:] = original(*arguments)  # type: ignore[arg-type]
        return kept

    def reranker_features_of(row: dict) -> list:
        return [kept[index] for index, one in enumerate(plain) if one["user_id"] == row["user_id"]]

    monkeypatch.setattr(reranker, "_features", remembered)
    monkeypatch.setattr(reranker, "fit_choice", planted)
    changed, _ = reranked()
    for before, after in zip(plain, changed, strict=True):
        own_part = key_of(0, "reranker", before["user_id"]) % reranker.PARTS == part
        if before["split"] == "train" and own_part:
            assert before["reranker_scores"] == after["reranker_scores"]
    others = [index for index, row in enumerate(plain) if row["split"] == "test"]
    assert any(plain[index]["reranker_scores"] != changed[index]["reranker_scores"] for index in others)
