"""The splits for training, validation and test: a group's name alone determines its split."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SPLITS = ("trainset", "valset", "testset")
SHARES = (0.9, 0.05, 0.05)
SEED = 17  # with which every shipped set, of as few as 15 groups, has some in every split


def hash_texts(texts: NDArray[np.str_], salt: str = "") -> NDArray[np.uint64]:
    """Return a 64-bit number for each text, the same on every machine, [k]."""
    key = salt.encode()
    joined = b"".join(
        blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8, key=key).digest() for text in texts.tolist()
    )
    return np.frombuffer(joined, dtype="<u8")


def place_groups(groups: NDArray[np.str_], *, seed: int = SEED) -> NDArray[np.uint64]:
    """Return the place of each group in 0 .. 2**64, [k], which depends on its name and the seed alone."""
    names, position = np.unique(groups, return_inverse=True)
    return hash_texts(names, f"split {seed}")[position]


def assign_by_place(places: NDArray[np.uint64], shares: Sequence[float] = SHARES) -> NDArray[np.int64]:
    """Return the position in SPLITS of groups at these places, [k]."""
    return np.searchsorted(np.cumsum(shares)[:-1], places.astype(np.float64) / 2.0**64, side="right")


def assign_by_name(
    groups: NDArray[np.str_], *, shares: Sequence[float] = SHARES, seed: int = SEED
) -> NDArray[np.int64]:
    """Return the position in SPLITS of each group, [k], which depends on its name and the seed alone."""
    return assign_by_place(place_groups(groups, seed=seed), shares)
