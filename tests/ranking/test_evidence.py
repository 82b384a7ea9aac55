from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from recranker.backbones.events import index_interactions
from recranker.backbones.folds import FoldData
from recranker.errors import DataError
from recranker.ranking.evidence import FADE, Evidence, evidence_of, flat_lists, genre_weights, like_times, transitions
from recranker.schema import INTERACTIONS
from tests.ranking.made_up import IMPLICIT, RATED, Shop, events_of, shop

NOTHING = np.empty(0, np.int64)


def fold_of(users: list[int], items: list[int], num_items: int) -> FoldData:
    some = np.array(users, np.int64), np.array(items, np.int64)
    return FoldData(
        "full", max(users) + 1, num_items, *some, NOTHING, NOTHING, np.empty(0, np.float32), NOTHING, NOTHING
    )


def look(one: Shop, facts: dict = RATED, **changes: object) -> Evidence:
    parts = vars(one) | changes
    return evidence_of(*(parts[name] for name in ("interactions", "folds", "lists", "signals", "items")), facts)


def column(evidence: Evidence, name: str) -> np.ndarray:
    return evidence.raw[:, evidence.names.index(name)]


def candidate(one: Shop, list_id: str, item_id: str) -> int:
    """Where a candidate of a list stands among all candidates."""
    number = one.lists["list_id"].to_pylist().index(list_id)
    offered = one.lists["candidate_ids"].to_pylist()
    return sum(map(len, offered[:number])) + offered[number].index(item_id)


def test_transitions_count_what_follows_by_hand() -> None:
    # User 0 likes 0, 1, 2 in order; user 1 likes 1, 2.
    found = transitions(fold_of([0, 0, 0, 1, 1], [0, 1, 2, 1, 2], 3)).toarray()
    np.testing.assert_allclose(found, [[0, 1, FADE], [0, 0, 2], [0, 0, 0]])


def test_every_feature_of_one_candidate_by_hand() -> None:
    one = shop()
    evidence = look(one)
    row = one.lists.to_pylist()[9]
    assert row["split"] == "train"
    at = candidate(one, row["list_id"], row["target_id"])
    flat = flat_lists(one.interactions, one.lists)
    item, user, before = flat.items[at], flat.users[9], row["before"]
    of_user = one.interactions
    mine = (of_user.users == user) & of_user.likes & (of_user.sequences < before)
    latest = of_user.items[mine][::-1][:10]
    data, vectors = one.folds["rolled_back"].data, one.folds["rolled_back"].item_vectors["retriever"].astype(float)
    cosine = [
        vectors[item] @ vectors[like] / np.linalg.norm(vectors[item]) / np.linalg.norm(vectors[like]) for like in latest
    ]
    counted = transitions(data).toarray()
    now = of_user.times[mine].max()
    times = like_times(data, of_user)
    liked = np.sort(times[(data.like_items == item) & (times <= now)])
    place = row["candidate_ids"].index(row["target_id"])
    scores = one.signals["other"][flat.starts[9] : flat.starts[10]]
    expected = {
        "backbone_score": row["backbone_scores"][place],
        "backbone_place": -np.log(1 + place),
        "backbone_odds": np.exp(row["backbone_scores"][place] - max(row["backbone_scores"])),
        "other_score": scores[place],
        "other_place": -np.log(1 + (scores > scores[place]).sum()),
        "predicted_rating": row["predicted_ratings"][place],
        "retriever_similarity_to_last": cosine[0],
        "retriever_similarity_to_last_5": np.mean(cosine[:5]),
        "retriever_nearest_of_last_5": max(cosine[:5]),
        "retriever_similarity_to_last_10": np.mean(cosine),
        "retriever_nearest_of_last_10": max(cosine),
        "follows_last": np.log1p(counted[latest[0], item]),
        "follows_last_10": np.log1p(sum(FADE**n * counted[like, item] for n, like in enumerate(latest))),
        "near_last_10": np.log1p(
            sum(FADE**n * (counted[like, item] + counted[item, like]) for n, like in enumerate(latest))
        ),
        "popularity": np.log1p((data.like_items == item).sum()),
        "item_is_cold": float((data.like_items == item).sum() < 10),
        "user_activity": np.log1p(mine.sum()),
        "recent_popularity": np.log1p((liked > now - 0.1 * (times.max() - times.min())).sum()),
        "days_since_last_like": np.log1p((now - liked[-1]) / 86_400) if len(liked) else np.nan,
        "days_since_first_like": np.log1p((now - liked[0]) / 86_400) if len(liked) else np.nan,
    }
    for name, value in expected.items():
        assert column(evidence, name)[at] == pytest.approx(value, rel=1e-5, nan_ok=True), name


def test_content_by_hand() -> None:
    weights = genre_weights([["a", "b"], ["a"], []]).toarray()
    np.testing.assert_allclose(weights, [[np.log(4 / 3), np.log(2)], [np.log(4 / 3), 0], [0, 0]])
    one = shop()
    evidence = look(one)
    near = column(evidence, "title_similarity_to_last")
    flat = flat_lists(one.interactions, one.lists)
    sagas = flat.items // 4
    last = one.lists["before"].to_numpy()[flat.of] - 1
    events = one.interactions
    of_user = {(u, s): i for u, s, i in zip(events.users, events.sequences, events.items, strict=True)}
    last_saga = np.array([of_user[u, s] // 4 for u, s in zip(flat.users[flat.of], last, strict=True)])
    np.testing.assert_array_equal(near > 0, sagas == last_saga)  # titles share 'saga' with their number, or nothing


def test_a_list_sees_its_own_fold_alone() -> None:
    """A planted in-fold feature, an item vector or a count of the other fold, does not reach it; its own does."""
    one = shop()
    training = np.asarray(one.lists["fold"].to_pylist()) == "rolled_back"
    plain = look(one)
    data = one.folds["full"].data
    planted = replace(data, like_users=data.like_users[::2], like_items=data.like_items[::2])
    vectors = {"retriever": -np.abs(one.folds["full"].item_vectors["retriever"])}
    changed = look(one, folds=one.folds | {"full": replace(one.folds["full"], data=planted, item_vectors=vectors)})
    np.testing.assert_array_equal(plain.of_lists(training).raw, changed.of_lists(training).raw)
    moved = plain.of_lists(~training).raw != changed.of_lists(~training).raw
    for name in ("popularity", "retriever_similarity_to_last_5", "follows_last_10", "recent_popularity"):
        assert moved[:, plain.names.index(name)].any(), name


def test_nothing_from_the_target_on_reaches_a_list() -> None:
    """With other validation and test events no list before them changes; a test list knows the validation like."""
    one = shop()
    rows = events_of()
    for row in rows:
        if row["split"] in ("validation", "test"):
            row["item_id"] = f"i{(int(row['item_id'][1:]) + 17) % 40:02}"
    other = replace(one, interactions=index_interactions(pa.Table.from_pylist(rows, schema=INTERACTIONS.schema)))
    kept = np.asarray(one.lists["split"].to_pylist()) != "test"
    np.testing.assert_array_equal(look(one).of_lists(kept).raw, look(other).of_lists(kept).raw)
    assert (look(one).raw != look(other).raw)[~np.isnan(look(one).raw)].any()


def test_what_the_data_cannot_give_has_no_column() -> None:
    evidence = look(shop(), IMPLICIT)
    assert {"ratings", "time", "transitions"}.isdisjoint(evidence.groups)
    assert "genres_of_dislikes" not in evidence.names
    sequence = look(shop(), IMPLICIT | {"order": "sequence"})
    assert "transitions" in sequence.groups
    assert "time" not in sequence.groups
    bare = look(shop(), items=shop().items.set_column(1, "title", pa.array([""] * 40)), signals={})
    assert not any(name.startswith("title") or name.startswith("other") for name in bare.names)


def test_a_user_without_history_is_unknown_and_neutral() -> None:
    one = shop()
    lists = one.lists.set_column(6, "before", pa.array([0] * one.lists.num_rows, pa.int32()))
    evidence = look(one, lists=lists)
    assert np.isnan(column(evidence, "retriever_similarity_to_last_5")).all()
    assert (evidence.standardised()[:, evidence.names.index("retriever_similarity_to_last_5")] == 0.0).all()
    assert (column(evidence, "user_is_cold") == 1.0).all()


def test_each_list_is_seen_as_if_it_were_alone() -> None:
    one = shop()
    whole, starts = look(one), [*flat_lists(one.interactions, one.lists).starts.tolist(), None]
    for number in range(0, one.lists.num_rows, 31):
        mine = slice(starts[number], starts[number + 1])
        alone = look(one, lists=one.lists.slice(number, 1), signals={"other": one.signals["other"][mine]})
        np.testing.assert_allclose(whole.raw[mine], alone.raw, rtol=1e-5)
        np.testing.assert_allclose(whole.standardised()[mine], alone.standardised(), rtol=1e-4, atol=1e-6)


def test_a_signal_that_does_not_fit_and_a_missing_fold_are_said() -> None:
    one = shop()
    with pytest.raises(
        DataError, match=r"signal 'other' must hold a score for each of the \d+ candidates, got shape \(3,\)"
    ):
        look(one, signals={"other": np.zeros(3)})
    with pytest.raises(DataError, match=r"come from folds \['rolled_back'\], evidence is given of \['full'\]"):
        look(one, folds={"full": one.folds["full"]})
    with pytest.raises(DataError, match="name user 'nobody'"):
        look(one, lists=one.lists.set_column(1, "user_id", pa.array(["nobody"] * one.lists.num_rows)))
