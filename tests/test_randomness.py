import hashlib

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from recranker.randomness import generator, key_of, keys_of, mix, uniforms

MIXED = ["", "a", "a\0", "\0", "\0\0", "8 bytes.", "8 bytes.\0", "nine byte", "Zoë", "用户-42", "🦊", "x" * 4000]


def by_hand(text: str, *parts: str | int) -> int:
    """A key as the docstring says it is made, a byte string at a time, in Python's own whole numbers."""

    def finalised(state: int) -> int:
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    golden, encoded = 0x9E3779B97F4A7C15, text.encode()
    state = finalised((key_of(*parts) + golden * (len(encoded) + 1)) % 2**64)
    for start in range(0, max(len(encoded), 1), 8):
        word = int.from_bytes(encoded[start : start + 8], "little")
        state = finalised(((state ^ word) + golden) % 2**64)
    return state


def test_splitmix_agrees_with_its_published_sequence() -> None:
    # First three outputs of SplitMix64 from seed 1234567, as printed by the reference C program.
    words = [int(mix(np.array([1234567], dtype=np.uint64), counter)[0]) for counter in range(3)]
    assert words == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_keys_tell_names_apart_that_join_to_the_same_text() -> None:
    assert key_of("ab", "c") != key_of("a", "bc")
    assert key_of(1, "x") == key_of("1", "x")


def test_a_stream_belongs_to_its_key_alone() -> None:
    alone = uniforms(keys_of(["b"], 7, "step"), 3)
    together = uniforms(keys_of(["a", "b", "c"], 7, "step"), 3)
    assert alone[0] == together[1]
    assert generator(7, "x", "b").random() == generator(7, "x", "b").random()


def test_uniforms_fill_the_unit_interval_and_never_reach_its_ends() -> None:
    values = uniforms(keys_of([str(n) for n in range(4000)], "u"), 0)
    assert 0.0 < values.min() < 0.01
    assert 0.99 < values.max() < 1.0
    assert abs(values.mean() - 0.5) < 4 / np.sqrt(12 * 4000)


def test_keys_are_those_worked_out_a_word_at_a_time() -> None:
    assert keys_of(MIXED, 3, "stage").tolist() == [by_hand(text, 3, "stage") for text in MIXED]


@pytest.mark.parametrize(
    "array",
    [
        pa.array(MIXED),
        pa.array(MIXED, pa.large_string()),
        pa.array(MIXED).dictionary_encode(),
        pa.array(["before", *MIXED, "after"]).slice(1, len(MIXED)),
        pa.array(["before", *MIXED, "after"], pa.large_string()).slice(1, len(MIXED)),
        pa.chunked_array([MIXED[:5], [], MIXED[5:6], MIXED[6:]]),
        pa.chunked_array([MIXED[:5], MIXED[5:]]).slice(0),
        pa.chunked_array([["before", *MIXED[:4]], MIXED[4:]]).slice(1),
    ],
    ids=["string", "large", "dictionary", "sliced", "sliced large", "chunks", "two chunks", "sliced chunks"],
)
def test_equal_strings_have_equal_keys_however_the_array_is_made(array: pa.Array | pa.ChunkedArray) -> None:
    assert keys_of(array, 0, "x").tolist() == keys_of(MIXED, 0, "x").tolist()


def test_keys_do_not_depend_on_where_the_arrays_are_cut_to_fit_the_cache() -> None:
    ids = [f"user {'x' * (n % 37)}{n}" for n in range(40_000)]
    assert keys_of(ids, 1)[::997].tolist() == [keys_of([one], 1)[0] for one in ids[::997]]


def test_no_ids_have_no_keys_and_null_has_none() -> None:
    assert keys_of([], 0).tolist() == keys_of(pa.chunked_array([], pa.string()), 0).tolist() == []
    assert keys_of(pa.array(["a"]).slice(1), 0).tolist() == []
    with pytest.raises(ValueError, match="1 nulls among 2"):
        keys_of(pa.array(["a", None]), 0)


def test_strings_that_are_padded_alike_have_different_keys() -> None:
    assert len(set(keys_of(MIXED, 0).tolist())) == len(MIXED)
    zeros = ["\0" * length for length in range(100)]
    assert len(set(keys_of(zeros, 0).tolist())) == 100


def test_other_leading_parts_give_other_keys() -> None:
    assert not set(keys_of(MIXED, 0, "x").tolist()) & set(keys_of(MIXED, 0, "y").tolist())


def test_a_million_ids_do_not_collide() -> None:
    # By chance alone a pair would collide with probability 3e-8.
    short = pa.array(np.arange(500_000).astype(str))
    long = pa.array([hashlib.blake2b(str(n).encode(), digest_size=10).hexdigest() for n in range(500_000)])
    assert len(np.unique(keys_of(pa.chunked_array([short, long]), 0))) == 1_000_000


def test_every_bit_of_neighbouring_ids_is_a_fair_coin() -> None:
    keys = keys_of([f"user{n:08d}" for n in range(100_000)], 0, "bits")
    ones = np.array([(keys >> np.uint64(bit) & np.uint64(1)).sum() for bit in range(64)])
    observed = np.stack([ones, 100_000 - ones], axis=1)
    assert (stats.chisquare(observed, 50_000, axis=1).pvalue > 0.001 / 64).all()


@pytest.mark.parametrize("shift", [0, 24, 48, 56])
def test_bytes_of_keys_are_uniform(shift: int) -> None:
    keys = keys_of([str(n) for n in range(200_000)], 0, "bytes")
    counts = np.bincount((keys >> np.uint64(shift) & np.uint64(255)).astype(np.int64), minlength=256)
    assert stats.chisquare(counts).pvalue > 0.0001


def test_changing_one_bit_of_an_id_changes_half_of_its_key() -> None:
    ids = [f"{n:016d}" for n in range(2000)]
    for place in (0, 7, 8, 15):  # first and last byte of both words
        changed = [one[:place] + chr(ord(one[place]) ^ 1) + one[place + 1 :] for one in ids]
        bits = np.bitwise_count(keys_of(ids, 0) ^ keys_of(changed, 0))
        assert abs(bits.mean() - 32) < 4 * np.sqrt(64 / 4 / 2000)


def test_streams_of_neighbouring_ids_and_of_neighbouring_words_are_uncorrelated() -> None:
    keys = keys_of([f"u{n}" for n in range(50_000)], 0, "streams")
    first, second = uniforms(keys, 0), uniforms(keys, 1)
    for one, other in ((first[:-1], first[1:]), (first, second), (first[:-1], second[1:])):
        assert abs(np.corrcoef(one, other)[0, 1]) < 4 / np.sqrt(50_000)
        cells = np.histogram2d(one, other, bins=16, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(cells.ravel()).pvalue > 0.0001
