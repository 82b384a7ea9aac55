"""From a source's files to the tables of stage 'prepare'."""

from pathlib import Path
from typing import Any

import pytest

from recranker.data.prepare import prepare
from recranker.data.settings import DataSettings
from recranker.errors import DataError
from recranker.schema import INTERACTIONS, ITEMS
from tests.toy import toy_settings


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


def test_the_same_files_give_the_same_tables(tmp_path: Path) -> None:
    first, second = (prepare(_settings(tmp_path / name), 0, tmp_path) for name in "ab")
    assert first[0].equals(second[0])
    assert first[1].equals(second[1])
    assert first[2] == second[2]


def test_unknown_items_are_dropped_and_counted_and_missing_titles_named_by_id(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    lines = (tmp_path / "items.csv").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("i8,")]
    lines = ["i9,,Drama" if line.startswith("i9,") else line for line in lines]
    (tmp_path / "items.csv").write_text("\n".join(lines) + "\n")
    rated = sum(",i8," in line for line in (tmp_path / "interactions.csv").read_text().splitlines())
    interactions, items, facts = prepare(settings, 0, tmp_path)
    assert facts["counts"]["interactions_without_known_item_dropped"] == rated > 0
    assert interactions.num_rows == facts["counts"]["interactions_read"] - rated
    assert facts["counts"]["items_without_title"] == 1
    assert {"item_id": "i9", "title": "i9", "genres": ["Drama"]} in items.to_pylist()


def test_feedback_without_ratings_and_times_is_all_likes(tmp_path: Path) -> None:
    source = toy_settings(tmp_path)["source"] | {"rating_column": None, "time_column": None}
    interactions, _, facts = prepare(DataSettings.model_validate({"source": source}), 0, tmp_path)
    assert set(interactions["feedback"].to_pylist()) == {"like"}
    assert interactions["rating"].null_count == interactions["timestamp"].null_count == interactions.num_rows
    assert (facts["has_ratings"], facts["has_time"]) == (False, False)


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


@pytest.mark.slow
def test_movielens_100k_is_refused_on_a_scale_of_books(tmp_path: Path) -> None:
    scale = {"rating_max": 10.0, "like_at_least": 9.0}
    settings = DataSettings.model_validate({"source": {"kind": "movielens-100k"}, **scale})
    with pytest.raises(DataError, match=r"ratings run from 1 to 5, settings say 1 to 10; set data.rating_min"):
        prepare(settings, 0, tmp_path)
