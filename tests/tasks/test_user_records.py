from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recranker.schema import CANDIDATES, INTERACTIONS
from recranker.store import Origin, Store
from recranker.tasks import user_records
from recranker.tasks.user_records import Shown, Tally, UserHistory, UserList, histories, lists_to_rank
from tests.tables import candidate_list, candidates, interactions

ITEMS = [f"i{number}" for number in range(10)]
SHOWN = Shown(pa.array(ITEMS), max_liked=2, max_disliked=1, quotes_reranker=True)
EVENTS = [
    ("a", "i0", 0, "like", "train"),
    ("a", "i1", 1, "dislike", "train"),
    ("a", "i2", 2, "like", "train"),
    ("a", "i3", 3, "neutral", "train"),
    ("a", "none", 4, "like", "train"),
    ("a", "i4", 5, "dislike", "train"),
    ("a", "i5", 6, "like", "validation"),
    ("a", "i6", 7, "like", "test"),
    ("b", "i0", 0, "like", "train"),
    ("b", "i1", 1, "like", "test"),
    ("c", "i3", 0, "neutral", "train"),
]


def store_of(folder: Path, events: pa.Table) -> Store:
    store = Store(str(folder))
    with store.publish("prepare", Origin("s", "c", {})) as writer:
        writer.write(INTERACTIONS, events)
    return store


def tally() -> Tally:
    return Tally(np.zeros(len(ITEMS), dtype=np.int64), demo_users=2)


def found(folder: Path, befores: dict[str, int], counts: Tally | None = None) -> list[UserHistory]:
    store = store_of(folder, interactions(*EVENTS))
    made = histories(store, SHOWN, counts or tally(), lambda ids: [befores.get(one) for one in ids])
    return [one for _, some in made for one in some]


def test_the_latest_likes_and_dislikes_before_the_list_are_kept_oldest_first(tmp_path: Path) -> None:
    of_a = found(tmp_path, {"a": 7})[0]
    assert of_a == UserHistory("a", [("i2", True), ("i4", False), ("i5", True)])  # i0 and i1 are too old
    assert found(tmp_path, {"a": 3})[0].entries == [("i0", True), ("i1", False), ("i2", True)]


def test_without_a_list_all_but_test_events_are_history(tmp_path: Path) -> None:
    assert found(tmp_path, {})[1:] == [UserHistory("b", [("i0", True)]), UserHistory("c", [])]


def test_likes_in_training_are_counted_and_rank_by_number_then_catalogue(tmp_path: Path) -> None:
    counts = tally()
    found(tmp_path, {}, counts)
    assert counts.likes.tolist() == [2, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    assert counts.popular(SHOWN.item_ids, 5) == [("i0", 2), ("i2", 1)]


def test_demo_users_have_a_list_and_the_longest_histories(tmp_path: Path) -> None:
    counts = tally()
    found(tmp_path, {"a": 7, "c": 1}, counts)
    assert [user_id for _, _, user_id in counts.best] == ["a"]  # b has no list, c no history
    more = tally()
    more.offer(pa.array(["long", "longer", "short"]), np.array([10, 300, 9]))
    assert {user_id for _, _, user_id in more.best} == {"long", "longer"}
    more.offer(pa.array(["z"]), np.array([0]))
    assert {user_id for _, _, user_id in more.best} == {"long", "longer"}


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 100])
def test_histories_do_not_depend_on_how_many_events_are_read_at_a_time(
    rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(tmp_path, {"a": 7})
    monkeypatch.setattr(user_records, "EVENTS_AT_A_TIME", rows)
    counts = tally()
    assert found(tmp_path, {"a": 7}, counts) == whole
    assert counts.likes.tolist() == [2, 0, 1, 0, 0, 0, 0, 0, 0, 0]


def test_all_rows_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_records, "EVENTS_AT_A_TIME", 3)
    store = store_of(tmp_path, interactions(*EVENTS))
    made: Iterator[tuple[int, list[UserHistory]]] = histories(store, SHOWN, tally(), lambda ids: [None] * len(ids))
    assert sum(rows for rows, _ in made) == len(EVENTS)


def test_lists_are_those_of_the_test_without_candidates_that_have_no_title(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    rows = [
        candidate_list("a", "test", "i6", ["i6", "none", "i7"], before=7, reranker_scores=[3.0, 2.0, 1.0]),
        candidate_list("a", "train", "i2", ["i2", "i7"]),
    ]
    with store.publish("backbone", Origin("s", "c", {})) as writer:
        writer.write(CANDIDATES, candidates(*rows))
    read = list(lists_to_rank(store, SHOWN))
    assert [rows for rows, _ in read] == [2]
    guesses = pytest.approx([4.5, 4.3])
    expected = UserList("test/a/i6", "a", 7, ["i6", "i7"], pytest.approx([1.0, 0.8]), [3.0, 1.0], guesses)
    assert read[0][1] == [expected]


def test_what_prompts_do_not_quote_is_left_out(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with store.publish("backbone", Origin("s", "c", {})) as writer:
        writer.write(CANDIDATES, candidates(candidate_list("a", "test", "i6", ["i6", "i7"], target_rating=None)))
    shown = Shown(SHOWN.item_ids, 2, 1, quotes_reranker=False)
    (_, (one,)) = next(lists_to_rank(store, shown))
    assert (one.hint_scores, one.predicted_ratings) == (None, None)
