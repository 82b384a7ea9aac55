import numpy as np

from recranker.randomness import generator, key_of, keys_of, mix, uniforms


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
