"""Shuffles that are computed, not stored: keyed bijections on [0, n), evaluated place by place in constant memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

ROUNDS = 6
# Six rounds are too few for small counts: some orders of five items came a third too often.
SMALL_COUNT, SMALL_COUNT_ROUNDS = 1024, 24
_STEP, _FIRST, _SECOND = (np.uint64(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def splitmix64(words: Words) -> Words:
    """Mix the 64 bits of each word, so that each depends on all of them and no two words become equal; any shape.

    Source: splitmix64; Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    z = words + _STEP
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


def hash_key(*parts: ArrayLike) -> Words:
    """Return one key for each combination of parts (integers, broadcast together), [k]; the same on every machine."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = splitmix64(key ^ np.atleast_1d(np.asarray(part, dtype=np.int64)).view(np.uint64))
    return key


def permute_indices(place: Integers, count: Integers, key: Words) -> Integers:
    """Return the image of each place under the shuffle of `count` items that its key selects; all are [k].

    An alternating Feistel network with addition modulo the sides of the smallest near-square that holds count; results
    outside of [0, count) go round again, seldom more than once. Source: Black and Rogaway, Ciphers with
    arbitrary finite domains, CT-RSA 2002 (generalized Feistel, cycle walking).
    """
    n = count.astype(np.uint64)
    width = np.ceil(np.sqrt(count)).astype(np.uint64)
    height = (n + width - np.uint64(1)) // width
    result = place.astype(np.uint64)
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
        # Half the range, so that the sum cannot wrap around, which would break the bijection.
        if k % 2:
            low = (low + (splitmix64(round_key ^ high) >> np.uint64(1))) % width
        else:
            high = (high + (splitmix64(round_key ^ low) >> np.uint64(1))) % height
    return high * width + low
