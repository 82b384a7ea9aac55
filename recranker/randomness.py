"""Random numbers that depend on what is drawn for, never on where or when it is drawn.

Every stream is keyed by (seed, stage, ids...), so a result is the same for one block or
eight hundred, one node or many, and after any restart.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


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


def keys_of(ids: list[str], *parts: str | int) -> NDArray[np.uint64]:
    """``(ids,)`` one key per id under the same leading ``parts``."""
    return np.array([key_of(*parts, one) for one in ids], dtype=np.uint64)


def mix(keys: NDArray[np.uint64], counter: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The ``counter``-th 64-bit word of each key's stream (vectorised).

    Source: SplitMix64, Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195.
    """
    with np.errstate(over="ignore"):
        state = keys + _GOLDEN * (np.asarray(counter, dtype=np.uint64) + np.uint64(1))
        state = (state ^ (state >> np.uint64(30))) * _MIX_1
        state = (state ^ (state >> np.uint64(27))) * _MIX_2
        mixed: NDArray[np.uint64] = state ^ (state >> np.uint64(31))
    return mixed


def uniforms(keys: NDArray[np.uint64], counter: int | NDArray[np.uint64]) -> NDArray[np.float64]:
    """The ``counter``-th uniform in (0, 1) of each key's stream; never exactly 0 or 1."""
    return ((mix(keys, counter) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
