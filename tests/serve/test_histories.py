import json
import sqlite3
from pathlib import Path

import pytest

from recranker.errors import DataError, OutputError
from recranker.schema import ITEMS
from recranker.tasks.user_records import UserHistory, UserList
from serve.histories import LookupFailedError, Record, SqliteUsers, SqliteWriter, StoredList, write_users
from tests.serve.published import TITLES, U_HISTORY, finished_tables, published, users_file
from tests.serve.test_ranking import JOB


@pytest.fixture
def users(tmp_path: Path) -> SqliteUsers:
    return SqliteUsers(str(users_file(published(tmp_path))))


def test_a_record_holds_what_prompts_show(users: SqliteUsers) -> None:
    record = users.find("u")
    assert record is not None
    assert record.entries == U_HISTORY
    scores = pytest.approx([1.0, 0.9, 0.8])
    assert record.candidates == StoredList(["i9", "i8", "i7"], scores, [-1.0, 0.5, 2.0], [6.0, 4.5, 2.0])


def test_a_user_without_a_list_has_a_history_and_of_two_lists_the_later_stays(users: SqliteUsers) -> None:
    assert users.find("v") == Record([("i0", True), ("i2", True)], None)
    record = users.find("w")
    assert record is not None
    assert record.entries == [("i2", True), ("i3", True), ("i4", True)]
    assert record.candidates is not None
    assert record.candidates.item_ids == ["i8", "i9"]  # i99 has no title


def test_nothing_is_known_of_others(users: SqliteUsers) -> None:
    assert users.find("nobody") is None
    assert users.titles(["i1", "i99", "none"]) == {"i1": "Film 1"}
    many = [f"i{number}" for number in range(2000)]
    assert users.titles(many) == TITLES


def test_the_file_says_what_it_was_made_from_and_who_is_worth_showing(users: SqliteUsers) -> None:
    meta = users.meta()
    assert set(meta.made_from) == {"prepare", "backbone", "shown"}
    assert meta.popular[:2] == (("i0", 3), ("i2", 3))
    assert set(meta.demo_users) == {"u", "w"}


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    files = [users_file(published(tmp_path / name)).read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_users_whose_events_lie_apart_are_refused(tmp_path: Path) -> None:
    writer = SqliteWriter(tmp_path / "users.sqlite")
    with pytest.raises(DataError, match=r"run jobs\.prepare again"):
        writer.add_histories([UserHistory("u", []), UserHistory("u", [])])


def test_equal_lists_of_a_user_are_chosen_by_id_in_any_order(tmp_path: Path) -> None:
    lists = [UserList(f"test/u/{item}", "u", 3, [item], [1.0], None, None) for item in ("i1", "i2")]
    for name, order in (("forth", lists), ("back", lists[::-1])):
        writer = SqliteWriter(tmp_path / name)
        writer.add_lists(order)
        assert writer.befores(["u", "v"]) == [3, None]
        assert writer._connection.execute("SELECT list_id FROM lists").fetchall() == [("test/u/i1",)]


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    store = finished_tables(tmp_path)
    with pytest.raises(OutputError, match="cannot write"):
        write_users(tmp_path / "none" / "x", store, store.read("prepare", ITEMS), JOB.instruct, lambda rows: None)


def test_files_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such file; write it: python -m jobs\.publish"):
        SqliteUsers(str(tmp_path / "none"))
    (tmp_path / "text").write_text("no database, but long enough to be looked at as if it were one")
    with pytest.raises(DataError, match="not readable"):
        SqliteUsers(str(tmp_path / "text")).meta()
    path = users_file(published(tmp_path))
    with sqlite3.connect(path) as changed:
        changed.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
    with pytest.raises(DataError, match="needed format 1, got 2"):
        SqliteUsers(str(path)).meta()


def test_a_broken_record_is_a_failed_lookup_that_quotes_nothing(tmp_path: Path) -> None:
    path = users_file(published(tmp_path))
    with sqlite3.connect(path) as changed:
        changed.execute("UPDATE histories SET entries = 'k4nary' WHERE user_id = 'u'")
    with pytest.raises(LookupFailedError) as failed:
        SqliteUsers(str(path)).find("u")
    assert "k4nary" not in str(failed.value)


def test_a_service_reads_on_while_the_file_is_replaced(tmp_path: Path) -> None:
    run = published(tmp_path)
    users = SqliteUsers(str(users_file(run)))
    published(tmp_path)
    assert users.find("u") is not None


@pytest.mark.parametrize("user_id", ["'; DROP TABLE lists; --", "\x00", "ü" * 200, "%"])
def test_ids_are_values_and_never_part_of_a_statement(user_id: str, users: SqliteUsers) -> None:
    assert users.find(user_id) is None
    assert users.titles([user_id]) == {}
    assert users.count("lists") == 2


def test_records_survive_the_file(users: SqliteUsers) -> None:
    rows = {user_id: Record.of(entries, found) for user_id, entries, found in users.everything()}
    assert set(rows) == {"u", "v", "w"}
    assert rows["u"] == users.find("u")
    assert dict(users.items()) == TITLES
    assert json.loads(next(entries for user_id, entries, _ in users.everything() if user_id == "v")) == [
        ["i0", 1],
        ["i2", 1],
    ]
