"""Random numbers that depend on what is drawn for, never on where or when it is drawn.

Every stream is keyed by (seed, stage, ids...), so a result is the same for one block or
eight hundred, one node or many, and after any restart.
"""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)

_WORD = 8
"""Bytes mixed into a key at a time."""
_KEPT = np.array([(1 << 8 * count) - 1 for count in range(_WORD + 1)], dtype=np.uint64)
"""By bytes left of an id: the part of its next word that is its own; what follows belongs to the next id."""
_IDS_AT_A_TIME = 1 << 14
"""Ids keyed at a time, so that all arrays of a step stay in the cache; keys do not depend on it."""


def key_of(*parts: str | int) -> int:
    """64-bit key of a tuple of names and numbers; ``("a", "b")`` and ``("ab",)`` differ."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = str(part).encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little")


def generator(*parts: str | int) -> np.random.Generator:
    """A numpy generator for one key, for instance ``generator(seed, "pairs", user_id, draw)``."""
    return np.random.Generator(np.random.Philox(key=key_of(*parts)))


def keys_of(ids: list[str] | pa.Array | pa.ChunkedArray, *parts: str | int) -> Keys:
    """``(ids,)`` one key per id under the same leading ``parts``; it depends on the id's UTF-8 bytes alone.

    The leading parts are hashed once. An id's length in bytes goes into the state first, then its bytes, a word of
    8 at a time, each followed by the finaliser of SplitMix64, which changes every bit of the state with probability
    1/2 for every bit of the word. Equal strings have equal keys whatever the chunks, slices or encoding of the
    array. Ids of one length that differ within one word never share a key; any others do with probability 2^-64 a
    pair: one pair in 4,000 sets of a hundred million ids, and what is drawn for the two is then alike, nothing more.
    It is no cryptographic hash: whoever chooses ids and knows the seed can make them collide.

    Args:
        ids: Strings, or an Arrow array of them, read in place: no Python string is made.
        parts: What the keys are for, for instance seed and stage.

    Raises:
        ValueError: If an id is null.
    """
    array = pa.array(ids, pa.large_string()) if isinstance(ids, list) else ids
    if array.null_count:
        raise ValueError(f"ids must not be null to be keyed, got {array.null_count} nulls among {len(array)}")
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    start = key_of(*parts)
    return np.concatenate([np.empty(0, dtype=np.uint64), *(_keys_of_strings(chunk, start) for chunk in chunks)])


def _keys_of_strings(ids: pa.Array, start: int) -> Keys:
    if ids.type not in (pa.string(), pa.large_string()):
        ids = ids.cast(pa.large_string())
    keys = np.full(len(ids), start, dtype=np.uint64)
    _, places, data = ids.buffers()
    if not len(ids):
        return keys
    width = np.int64 if ids.type == pa.large_string() else np.int32
    offsets = np.frombuffer(places, dtype=width)[ids.offset : ids.offset + len(ids) + 1].astype(np.int64)
    text = np.frombuffer(data or b"", dtype=np.uint8)
    for first in range(0, len(ids), _IDS_AT_A_TIME):
        span = offsets[first : first + _IDS_AT_A_TIME + 1]
        padded = np.zeros(span[-1] - span[0] + _WORD, dtype=np.uint8)  # a word may be read at the very end
        padded[:-_WORD] = text[span[0] : span[-1]]
        _mix_in(keys[first : first + _IDS_AT_A_TIME], padded, span - span[0])
    return keys


def _mix_in(keys: Keys, text: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
    """Mix string ``i``, ``text[offsets[i]:offsets[i + 1]]``, into ``keys[i]``, in place."""
    words = np.ndarray(len(text) - _WORD + 1, dtype="<u8", buffer=text, strides=(1,))  # one from every byte on
    places, left = offsets[:-1], np.diff(offsets)
    keys[:] = mix(keys, left)
    keys[:] = mix(keys ^ (words[places] & _KEPT[np.minimum(left, _WORD)]), 0)
    longer = np.flatnonzero(left > _WORD)
    done = _WORD
    while len(longer):
        word = words[places[longer] + done] & _KEPT[np.minimum(left[longer] - done, _WORD)]
        keys[longer] = mix(keys[longer] ^ word, 0)
        done += _WORD
        longer = longer[left[longer] > done]


def mix(keys: Keys, counter: int | NDArray[np.integer[Any]]) -> Keys:
    """The ``counter``-th 64-bit word of each key's stream (vectorised).

    Source: SplitMix64, Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195.
    """
    with np.errstate(over="ignore"):
        state = keys + _GOLDEN * (np.asarray(counter, dtype=np.uint64) + np.uint64(1))
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        mixed: Keys = state ^ (state >> np.uint64(31))
    return mixed


def uniforms(keys: Keys, counter: int | NDArray[np.integer[Any]]) -> NDArray[np.float64]:
    """The ``counter``-th uniform in (0, 1) of each key's stream; never exactly 0 or 1."""
    return ((mix(keys, counter) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
