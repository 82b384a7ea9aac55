"""From a source's files to the tables of stage 'prepare'."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recranker.data.facts import RatingMeaning
from recranker.data.prepare import meaning_for, prepare, prepare_raw, with_split_of
from recranker.data.settings import DataSettings
from recranker.data.simulate import simulated_raw, simulated_settings
from recranker.errors import DataError
from recranker.parquet import ParquetLimits
from recranker.schema import INTERACTIONS, ITEMS
from tests.toy import toy_settings

BY_TIME = {"kind": "time"}


def _settings(folder: Path, **changes: Any) -> DataSettings:
    return DataSettings.model_validate(toy_settings(folder, num_users=30) | changes)


def test_tables_fit_their_schemas_and_every_row_is_accounted_for(tmp_path: Path) -> None:
    interactions, items, facts = prepare(_settings(tmp_path), 0, tmp_path)
    INTERACTIONS.conform(interactions, where="test")
    ITEMS.conform(items, where="test")
    counts = facts["counts"]
    assert interactions.num_rows == sum(counts[f"split_{name}"] for name in ("train", "validation", "test", "unused"))
    assert interactions.num_rows == counts["likes"] + counts["neutral"] + counts["dislikes"]
    assert counts["users_with_3_likes"] == counts["split_test"] + counts["test_items_unseen_in_training"]
    assert (facts["rating_min"], facts["rating_max"], facts["has_ratings"], facts["has_time"]) == (1.0, 5.0, True, True)
    assert (facts["order"], facts["split"], facts["k_core"]) == ("time", {"kind": "leave-one-out"}, [])
    assert "a user's events stand in the order of their times" in facts["order_means"]
    assert facts["denominator"].startswith("30 test users: 30 have a target, of which 0 like an item no training")


def test_the_same_files_give_the_same_tables(tmp_path: Path) -> None:
    first, second = (prepare(_settings(tmp_path / name), 0, tmp_path) for name in "ab")
    assert first[0].equals(second[0])
    assert first[1].equals(second[1])
    assert first[2] == second[2]


def test_unknown_items_are_dropped_missing_titles_named_by_id_long_ones_cut_and_all_counted(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    lines = (tmp_path / "items.csv").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("i8,")]
    lines = ["i9,,Drama" if line.startswith("i9,") else line for line in lines]
    lines = [f"i7,{'long ' * 50},Drama" if line.startswith("i7,") else line for line in lines]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    rated = sum(",i8," in line for line in (tmp_path / "interactions.csv").read_text().splitlines())
    interactions, items, facts = prepare(settings, 0, tmp_path)
    assert facts["counts"]["interactions_without_known_item_dropped"] == rated > 0
    assert interactions.num_rows == facts["counts"]["interactions_read"] - rated
    assert facts["counts"]["items_without_title"] == 1
    assert {"item_id": "i9", "title": "i9", "genres": ["Drama"]} in items.to_pylist()
    assert facts["counts"]["titles_cut"] == 1
    assert {"item_id": "i7", "title": ("long " * 40).rstrip(), "genres": ["Drama"]} in items.to_pylist()


def test_feedback_without_ratings_and_times_is_all_likes(tmp_path: Path) -> None:
    source = toy_settings(tmp_path)["source"] | {"rating_column": None, "time_column": None}
    interactions, _, facts = prepare(DataSettings.model_validate({"source": source}), 0, tmp_path)
    assert set(interactions["feedback"].to_pylist()) == {"like"}
    assert interactions["rating"].null_count == interactions["timestamp"].null_count == interactions.num_rows
    assert (facts["has_ratings"], facts["has_time"], facts["order"]) == (False, False, "none")
    assert (facts["rating_min"], facts["rating_max"], facts["like_at_least"]) == (0.0, 1.0, 1.0)


def test_a_scale_for_data_without_ratings_is_refused(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    source = settings.source.model_copy(update={"rating_column": None})
    with pytest.raises(DataError, match=r"has no ratings .* but data.rating_min, .* speak of some; leave them out"):
        prepare(settings.model_copy(update={"source": source}), 0, tmp_path)


def test_ratings_without_a_known_scale_are_refused(tmp_path: Path) -> None:
    settings = toy_settings(tmp_path) | {"like_at_least": None, "rating_max": None}
    with pytest.raises(DataError, match=r"does not say; set data.rating_max, data.like_at_least$"):
        prepare(DataSettings.model_validate(settings), 0, tmp_path)


def test_what_settings_leave_open_is_the_sources_own() -> None:
    raw = simulated_raw(4, 24)
    assert meaning_for(raw, simulated_settings()) == RatingMeaning(1.0, 5.0, 4.0, 3.0)
    assert meaning_for(raw, simulated_settings(like_at_least=5.0)) == RatingMeaning(1.0, 5.0, 5.0, 3.0)
    with pytest.raises(DataError, match=r"must hold, found rating_min 1, rating_max 5, like_at_least 2, dislike_below"):
        meaning_for(raw, simulated_settings(like_at_least=2.0))


def test_a_k_core_is_prepared_and_its_rounds_are_told() -> None:
    raw, core = simulated_raw(60, 80), {"min_user_interactions": 20, "min_item_interactions": 10}
    interactions, _, facts = prepare_raw(raw, simulated_settings(**core), 0)
    for name, least in (("user_id", 20), ("item_id", 10)):
        assert min(pc.value_counts(interactions[name]).field("counts").to_pylist()) >= least
    counts, rounds = facts["counts"], facts["k_core"]
    assert rounds[-1]["interactions"] == interactions.num_rows == counts["interactions"] < 1455
    assert counts["interactions_dropped_by_k_core"] == 1455 - counts["interactions"]
    assert counts["sparsity"] == 1 - counts["interactions"] / (rounds[-1]["users"] * rounds[-1]["items"])


def test_a_time_split_is_prepared_and_said() -> None:
    interactions, _, facts = prepare_raw(simulated_raw(30, 60, apart_s=0), simulated_settings(split=BY_TIME), 0)
    first = facts["split"]["validation_from"]
    times = {row["split"]: row["timestamp"] for row in interactions.sort_by("timestamp").to_pylist()}
    assert times["train"] < first <= facts["split"]["test_from"] <= times["test"]
    assert facts["counts"]["split_test"] > 5


def test_an_own_split_comes_from_a_file(tmp_path: Path) -> None:
    ours, _, _ = prepare_raw(simulated_raw(30, 60), simulated_settings(), 0)
    path = tmp_path / "split.parquet"
    pq.write_table(ours.select(["user_id", "item_id", "split"]), path)
    theirs, _, facts = prepare_raw(
        simulated_raw(30, 60), simulated_settings(split={"kind": "own", "path": str(path)}), 0
    )
    assert theirs.equals(ours)
    assert facts["split"] == {"kind": "own"}


def test_an_own_split_that_does_not_know_an_interaction_is_refused(tmp_path: Path) -> None:
    ours, _, _ = prepare_raw(simulated_raw(30, 60), simulated_settings(), 0)
    path = tmp_path / "split.parquet"
    pq.write_table(ours.select(["user_id", "item_id", "split"]).slice(1), path)
    with pytest.raises(DataError, match=r"None of user 'u0', item '.*' must be one of .*name a split for every inter"):
        prepare_raw(simulated_raw(30, 60), simulated_settings(split={"kind": "own", "path": str(path)}), 0)
    with pytest.raises(DataError, match=r"nothing\.parquet' is not there; set data\.split\.path to your file"):
        with_split_of(ours, str(tmp_path / "nothing.parquet"), ParquetLimits())
    pq.write_table(ours.select(["user_id", "split"]), path)
    with pytest.raises(DataError, match=r"split\.parquet' lacks column 'item_id' \(found: user_id, split\)"):
        with_split_of(ours, str(path), ParquetLimits())


def test_an_own_split_that_holds_too_much_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    ours, _, _ = prepare_raw(simulated_raw(30, 60), simulated_settings(), 0)
    path = tmp_path / "split.parquet"
    pq.write_table(ours.select(["user_id", "item_id", "split"]), path)
    most = ours.num_rows - 1
    limits = {"kind": "own", "path": str(path), "parquet": {"max_rows": most}}
    with pytest.raises(DataError, match=rf"allowed are {most:,}; .* raise data\.split\.parquet\.max_rows"):
        prepare_raw(simulated_raw(30, 60), simulated_settings(split=limits), 0)


def test_ratings_on_another_scale_than_settings_say_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'rating' must lie within 1 and 4.* set data.rating_min"):
        prepare(_settings(tmp_path, rating_max=4.0), 0, tmp_path)


def test_too_few_likes_to_test_anyone_are_refused(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    head = (tmp_path / "interactions.csv").read_text().splitlines()[:3]
    (tmp_path / "interactions.csv").write_text("\n".join(head) + "\n")
    with pytest.raises(DataError, match=r"needed users with 3 likes .* take more data, or lower data.like_at_least"):
        prepare(settings, 0, tmp_path)


@pytest.mark.slow
def test_movielens_100k_gives_the_test_users_of_the_paper_but_for_ties(tmp_path: Path) -> None:
    """The paper has 927. Ties in time decide whether a last like is an item nobody else likes: 926 to 929 by seed."""
    settings = DataSettings.model_validate({"source": {"kind": "movielens-100k"}})
    _, _, facts = prepare(settings, 0, tmp_path)
    counts = facts["counts"]
    assert (counts["users"], counts["items"], counts["interactions_read"]) == (943, 1682, 100_000)
    assert (counts["likes"], counts["users_with_3_likes"], counts["split_test"]) == (55_375, 942, 928)
    assert (counts["test_users_before_dropping"], counts["split_test_in_file_order"]) == (942, 927)
    assert "It is 927 when simultaneous interactions stand as in the file" in facts["denominator"]
    assert facts["denominator"].endswith("RecRanker's authors: 927.")


@pytest.mark.slow
def test_movielens_100k_is_refused_on_a_scale_of_books(tmp_path: Path) -> None:
    scale = {"rating_max": 10.0, "like_at_least": 9.0}
    settings = DataSettings.model_validate({"source": {"kind": "movielens-100k"}, **scale})
    with pytest.raises(DataError, match=r"ratings run from 1 to 5, settings say 1 to 10; set data.rating_min"):
        prepare(settings, 0, tmp_path)


def test_stated_thresholds_outside_the_stated_scale_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.like_at_least <= data.rating_max must hold"):
        simulated_settings(rating_max=5.0, like_at_least=9.0)
