"""Training, validation and test: which split a group of frames belongs to, decided by its name alone."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

SPLITS = ("trainset", "valset", "testset")
SHARES = (0.9, 0.05, 0.05)
SEED = 17  # with which every shipped set, of as few as 15 groups, has some in every split


def digests(texts: NDArray[np.str_], salt: str = "") -> NDArray[np.uint64]:
    """A number for each text, the same on every machine; [k]."""
    key = salt.encode()
    joined = b"".join(
        blake2b(text.encode("utf-8", "backslashreplace"), digest_size=8, key=key).digest() for text in texts.tolist()
    )
    return np.frombuffer(joined, dtype="<u8")


def places(groups: NDArray[np.str_], *, seed: int = SEED) -> NDArray[np.uint64]:
    """Return where each group falls in 0 .. 2**64, [k]: decided by its name and the seed alone."""
    names, position = np.unique(groups, return_inverse=True)
    return digests(names, f"split {seed}")[position]


def split_at(place: NDArray[np.uint64], shares: Sequence[float] = SHARES) -> NDArray[np.int64]:
    """Return the position in SPLITS of groups at these places, [k]."""
    return np.searchsorted(np.cumsum(shares)[:-1], place.astype(np.float64) / 2.0**64, side="right")


def split_of(groups: NDArray[np.str_], *, shares: Sequence[float] = SHARES, seed: int = SEED) -> NDArray[np.int64]:
    """The position in SPLITS of each group, [k]: so that no group is parted, whatever is read when and by whom."""
    return split_at(places(groups, seed=seed), shares)
