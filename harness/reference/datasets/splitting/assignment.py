"""Which split each group of structures goes to: as its name says, unless equal structures or empty splits forbid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.reference.data.structure_table import Frames
from harness.reference.datasets.splitting.duplicates import (
    Notes,
    Places,
    find_repeats,
    note_shapes,
    sort_notes,
    unite_groups,
)
from harness.reference.datasets.splitting.splits import SEED, SHARES, SPLITS, split_at


@dataclass(frozen=True)
class Assignment:
    """The splits of groups, by place. exceptions: sorted places of groups that do not go where their place says, [k].

    splits: where they go instead, [k].
    """

    exceptions: Places
    splits: NDArray[np.int64]
    shares: tuple[float, ...] = SHARES

    def split_of(self, place: Places) -> NDArray[np.int64]:
        """Return the position in SPLITS of groups at these places, [g]."""
        result = split_at(place, self.shares)
        if len(self.exceptions):
            k = np.minimum(np.searchsorted(self.exceptions, place), len(self.exceptions) - 1)
            excepted = self.exceptions[k] == place
            result[excepted] = self.splits[k[excepted]]
        return result


def assign_splits(
    parts: Sequence[Notes], links: Places, *, fill: bool = True, shares: tuple[float, ...] = SHARES
) -> Assignment:
    """Give linked groups one split, and every split some structures if there are groups enough.

    Args:
        parts: notes of all structures.
        links: pairs of groups that hold equal structures.
        fill: whether groups may be moved into a split that would be empty.
        shares: how much of all goes to each split, about.
    """
    groups, leaders = unite_groups(links)
    united = Assignment(groups, split_at(leaders, shares), shares)
    count = np.zeros(len(SPLITS), dtype=np.int64)
    for notes in parts:
        count += np.bincount(united.split_of(notes["place"]), minlength=len(SPLITS))
    if count.all() or not fill:
        return united
    everyone = np.unique(np.concatenate([np.unique(notes["place"]) for notes in parts]))
    led_by = everyone.copy()
    led_by[np.isin(everyone, groups)] = leaders[np.isin(groups, everyone)]
    order, position = np.unique(led_by, return_inverse=True)
    wanted = np.bincount(split_at(order, shares), minlength=len(SPLITS))
    return Assignment(everyone, np.repeat(np.arange(len(SPLITS)), _fill(wanted))[position], shares)


def split_frames(frames: Frames, *, shares: tuple[float, ...] = SHARES, seed: int = SEED) -> NDArray[np.int64]:
    """Return the position in SPLITS of each of all structures of a dataset, equal ones in one split, [g]."""
    notes = note_shapes(frames, seed=seed)
    links = find_repeats([sort_notes(notes)]).links
    return assign_splits([notes], links, fill=False, shares=shares).split_of(notes["place"])


def _fill(wanted: NDArray[np.int64]) -> NDArray[np.int64]:
    """Change numbers of groups in training, validation and test as little as leaves none of them empty.

    One group is for training, two are for training and validation.
    """
    total = int(wanted.sum())
    validation = min(max(int(wanted[1]), 1), total - 1)
    test = min(max(int(wanted[2]), 1), total - 1 - validation)
    if total >= len(SPLITS) and not test:
        validation, test = validation - 1, 1
    return np.array([total - validation - test, validation, test])
