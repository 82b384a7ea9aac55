import numpy as np
import pyarrow as pa
import pytest

from recranker.row_hash import BATCH_ROWS, RowHash
from recranker.schema import PROMPTS, TABLES_OF

WORDS = pa.table({"a": ["ab", "a", None, "", "long text of more than one word"], "n": [1, -1, None, 0, 2**62]})


def digest(*tables: pa.Table) -> str:
    rows = RowHash(tables[0].schema)
    for table in tables:
        rows.add(table)
    return rows.hexdigest()


def column(*values: object, kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"a": pa.array(values, kind)})


def test_digests_stay_what_they_were() -> None:
    """Manifests hold them: another digest for the same rows would make every stage run again."""
    assert digest(WORDS) == "4b0670e516b0ce47170f0fef3171b1a1"


def test_order_files_batches_and_encoding_are_not_seen() -> None:
    many = pa.table({"a": [f"id{n}" for n in range(BATCH_ROWS + 9)], "n": np.arange(BATCH_ROWS + 9)})
    order = np.random.default_rng(0).permutation(many.num_rows)
    encoded = pa.table({"a": many["a"].combine_chunks().dictionary_encode(), "n": many["n"]}).cast(many.schema)
    expected = digest(many)
    assert digest(many.take(order)) == expected
    assert digest(many.slice(7), many.slice(0, 7)) == expected
    assert digest(many.select(["n", "a"]).select(["a", "n"])) == expected
    assert digest(encoded) == expected
    rows = RowHash(many.schema)
    for batch in many.to_batches(max_chunksize=1000):
        rows.add(batch)
    assert (rows.hexdigest(), rows.rows) == (expected, many.num_rows)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (column(1, 2), column(1)),
        (column(1, 1), column(1)),
        (column(1, 1, 2, 2), column(1, 1, 1, 2)),
        (column(0), column(None, kind=pa.int64())),
        (column(""), column(None, kind=pa.string())),
        (column([]), column(None, kind=pa.list_(pa.null()))),
        (column(1, kind=pa.int32()), column(1, kind=pa.int64())),
        (column(1.0), column(np.nextafter(1.0, 2.0))),
        (column(True), column(False)),
        (column("ab", "c"), column("a", "bc")),
        (column("a\0"), column("a")),
        (column("12345678", "x"), column("12345678x", "")),
        (column([1, 2], [3]), column([1], [2, 3])),
        (column([1, 2]), column([2, 1])),
        (column([1, 1]), column([1])),
        (column([None], kind=pa.list_(pa.int8())), column([0], kind=pa.list_(pa.int8()))),
        (column([["a"], ["b"]]), column([["a", "b"], []])),
        (column({"x": 1, "y": 2}), column({"x": 2, "y": 1})),
        (column({"x": None}, kind=pa.struct([("x", pa.int8())])), column(None, kind=pa.struct([("x", pa.int8())]))),
        (pa.table({"a": [1], "b": [2]}), pa.table({"a": [2], "b": [1]})),
        (pa.table({"a": [1, 2], "b": [1, 2]}), pa.table({"a": [1, 2], "b": [2, 1]})),
        (pa.table({"a": [1]}), pa.table({"b": [1]})),
    ],
)
def test_any_other_row_is_seen(one: pa.Table, other: pa.Table) -> None:
    assert digest(one) != digest(other)
    assert digest(one) == digest(one.take(list(range(one.num_rows))[::-1]))


def test_what_stands_under_a_null_is_not_seen() -> None:
    hidden = pa.array([7, 8]).buffers()[1]
    masked = pa.Array.from_buffers(pa.int64(), 2, [pa.py_buffer(b"\x02"), hidden])
    assert digest(pa.table({"a": masked})) == digest(column(None, 8))


def test_every_table_of_the_schema_has_a_digest() -> None:
    for tables in TABLES_OF.values():
        for table in tables:
            assert len(digest(table.schema.empty_table())) == 32


def test_a_changed_question_is_seen_however_deep() -> None:
    question = {"task": "pairwise", "text": "A or B?", "labels": ["No", "Yes"], "item_ids": ["a", "b"], "round": 0}
    row = {"prompt_id": "p", "list_id": "l", "user_id": "u", "split": "train", "prefix": "...", "questions": [question]}
    rows = [row, row | {"questions": [question | {"labels": ["Yes", "No"]}]}]
    first, second = (digest(pa.Table.from_pylist([one], schema=PROMPTS.schema)) for one in rows)
    assert first != second


def test_a_type_without_a_hash_is_our_mistake() -> None:
    with pytest.raises(TypeError, match="no row hash is known for type binary"):
        digest(column(b"a"))
