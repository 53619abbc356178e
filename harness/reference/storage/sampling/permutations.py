"""Shuffles that are computed, not kept: keyed bijections on [0, n), answered place by place in constant memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Words = NDArray[np.uint64]
Integers = NDArray[np.int64]

ROUNDS = 6
# Over few things six rounds show: of five, some orders came a third too often.
FEW, MORE_ROUNDS = 1024, 24
_STEP, _FIRST, _SECOND = (np.uint64(w) for w in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mixed(words: Words) -> Words:
    """64 bits of which each depends on all of the input's, and no two inputs alike; an array of any shape.

    Source: splitmix64; Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014.
    """
    z = words + _STEP
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


def keyed(*parts: ArrayLike) -> Words:
    """One key for each combination of parts (whole numbers, broadcast together), [k]; the same on every machine."""
    key = np.zeros(1, dtype=np.uint64)
    for part in parts:
        key = mixed(key ^ np.atleast_1d(np.asarray(part, dtype=np.int64)).view(np.uint64))
    return key


def permuted(place: Integers, count: Integers, key: Words) -> Integers:
    """Where a shuffle of `count` things, chosen by the key, has put each place, [k] of [k] places, counts and keys.

    An alternating Feistel network with addition modulo the sides of the smallest near-square that holds count; what
    falls outside of [0, count) goes round again, seldom more than once. Source: Black and Rogaway, Ciphers with
    arbitrary finite domains, CT-RSA 2002 (generalized Feistel, cycle walking).
    """
    n = count.astype(np.uint64)
    width = np.ceil(np.sqrt(count)).astype(np.uint64)
    height = (n + width - np.uint64(1)) // width
    found = place.astype(np.uint64)
    left = np.arange(len(found))
    while len(left):
        found[left] = _rounds(found[left], height[left], width[left], key[left], range(ROUNDS))
        few = left[n[left] < FEW]
        found[few] = _rounds(found[few], height[few], width[few], key[few], range(ROUNDS, MORE_ROUNDS))
        left = left[found[left] >= n[left]]
    return found.astype(np.int64)


def _rounds(x: Words, height: Words, width: Words, key: Words, numbers: range) -> Words:
    high, low = np.divmod(x, width)
    for k in numbers:
        tagged = key ^ np.uint64(k << 56)
        # Half the range, so that the sum cannot wrap around, which would make two of one.
        if k % 2:
            low = (low + (mixed(tagged ^ high) >> np.uint64(1))) % width
        else:
            high = (high + (mixed(tagged ^ low) >> np.uint64(1))) % height
    return high * width + low
