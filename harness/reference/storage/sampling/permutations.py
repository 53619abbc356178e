"""Shuffles that are computed instead of stored: keyed bijections on [0, n), evaluated for single indices."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

ROUNDS = 6
# Small counts need more rounds: with six rounds, some orders of five items occur a third more often than they should.
SMALL_COUNT, SMALL_COUNT_ROUNDS = 1024, 24
_STEP, _FIRST, _SECOND = (np.uint64(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def splitmix64(words: Words) -> Words:
    """Mix the 64 bits of each word in an array of any shape; different words remain different.

    Source: splitmix64; Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    z = words + _STEP
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


def hash_key(*parts: ArrayLike) -> Words:
    """Return a 64-bit hash of each combination of integers, [k], which is the same on every machine.

    Args:
        parts: Integers or arrays of integers, which are broadcast together.
    """
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = splitmix64(key ^ np.atleast_1d(np.asarray(part, dtype=np.int64)).view(np.uint64))
    return key


def permute_indices(index: Integers, count: Integers, key: Words) -> Integers:
    """Return the image of each index under the shuffle of `count` items that its key selects; all are [k].

    The shuffle is an alternating Feistel network on a rectangle of at least `count` cells, with addition modulo its
    sides; a result outside of [0, count) is permuted again, seldom more than once. Source: Black and Rogaway, Ciphers
    with arbitrary finite domains, CT-RSA 2002 (generalized Feistel, cycle walking).
    """
    n = count.astype(np.uint64)
    width = np.ceil(np.sqrt(count)).astype(np.uint64)
    height = (n + width - np.uint64(1)) // width
    result = index.astype(np.uint64)
    remaining = np.arange(len(result))
    while len(remaining):
        result[remaining] = _apply_rounds(
            result[remaining], height[remaining], width[remaining], key[remaining], range(ROUNDS)
        )
        few = remaining[n[remaining] < SMALL_COUNT]
        result[few] = _apply_rounds(result[few], height[few], width[few], key[few], range(ROUNDS, SMALL_COUNT_ROUNDS))
        remaining = remaining[result[remaining] >= n[remaining]]
    return result.astype(np.int64)


def _apply_rounds(x: Words, height: Words, width: Words, key: Words, numbers: range) -> Words:
    high, low = np.divmod(x, width)
    for k in numbers:
        round_key = key ^ np.uint64(k << 56)
        # Drop one bit of the hash: if the sum wrapped around at 2**64, the map would not be a bijection.
        if k % 2:
            low = (low + (splitmix64(round_key ^ high) >> np.uint64(1))) % width
        else:
            high = (high + (splitmix64(round_key ^ low) >> np.uint64(1))) % height
    return high * width + low
