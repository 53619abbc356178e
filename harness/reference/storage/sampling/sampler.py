"""Which rank reads which samples at which step: mixtures of datasets of very different sizes, reproducibly.

What all ranks take together is one sequence, a function of seed and recipe alone; step k deals the next
ranks x batch_size of its places out in blocks of batch_size, in the order of the ranks. Any place is computed directly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness.reference.errors import InputError
from harness.reference.storage.sampling.permutations import Integers, hash_key, permute_indices, splitmix64
from harness.reference.storage.sampling.rank_assignment import (
    Assignment,
    RankGroup,
    assign_ranks,
    balance_costs,
    compute_weights,
    round_shares,
)

SamplingMode = Literal["mixed", "assigned"]
WINDOW = 1024  # positions over which every dataset gets its share, up to one sample


@dataclass(frozen=True)
class SampleIndices:
    """Samples in order: the dataset of each, [n], and its number within it, [n]."""

    dataset: Integers
    index: Integers

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, picked: slice | Integers) -> SampleIndices:
        """Return some of the samples, in the order asked for."""
        return SampleIndices(self.dataset[picked], self.index[picked])


@dataclass(frozen=True)
class MixtureStream:
    """An endless mixture of datasets, computed from any place on.

    datasets: [d] ids. counts: [d] samples. draws: [d] of each an epoch; an epoch is draws.sum() places. Each dataset
    is taken in passes of fresh shuffles that go on from one epoch to the next: nothing comes again before all of the
    pass has. Windows of about WINDOW places hold every dataset's share to within one sample, in a shuffled order.
    """

    datasets: Integers
    counts: Integers
    draws: Integers
    seed: int

    @cached_property
    def length(self) -> int:
        """Places in an epoch."""
        return int(self.draws.sum())

    @cached_property
    def windows(self) -> int:
        """Windows in an epoch."""
        return max(1, self.length // WINDOW)

    @cached_property
    def _phase(self) -> Integers:
        return (hash_key(self.seed, self.datasets) % np.uint64(self.windows)).astype(np.int64)

    def _before(self, window: int) -> Integers:
        """Return the draws of each dataset before a window, [d]; phases keep small datasets from coming all at once."""
        return (self.draws * window + self._phase) // self.windows

    def _window_of(self, place: int) -> int:
        window = place * self.windows // self.length
        while int(self._before(window).sum()) > place:
            window -= 1
        while int(self._before(window + 1).sum()) <= place:
            window += 1
        return window

    def _opened(self, window: int) -> tuple[Integers, Integers]:
        """Return the position in `datasets` of each draw of a window, and its ordinal within that dataset."""
        before = self._before(window)
        counts = self._before(window + 1) - before
        plain = np.repeat(np.arange(len(counts)), counts)
        disorder = splitmix64(
            hash_key(self.seed, int(self.datasets[0]), window) + np.arange(len(plain)).astype(np.uint64)
        )
        which = plain[np.argsort(disorder, kind="stable")]
        turn = np.empty(len(plain), dtype=np.int64)
        turn[np.argsort(which, kind="stable")] = np.arange(len(plain)) + (before - np.cumsum(counts) + counts)[plain]
        return which, turn

    def at(self, place: int, count: int) -> SampleIndices:
        """Return the `count` draws from a position of the sequence on."""
        window = self._window_of(place)
        skipped = place - int(self._before(window).sum())
        parts = [self._opened(window)]
        while sum(len(which) for which, _ in parts) < skipped + count:
            window += 1
            parts.append(self._opened(window))
        which, turn = (np.concatenate(columns)[skipped : skipped + count] for columns in zip(*parts, strict=True))
        ids, sizes = self.datasets[which], self.counts[which]
        return SampleIndices(ids, permute_indices(turn % sizes, sizes, hash_key(self.seed, ids, turn // sizes)))


@dataclass(frozen=True)
class SamplingSpec:
    """What fixes the sequence of samples.

    mixed: every rank draws from all datasets by weight; length samples make an epoch, of whatever number of ranks, by
    default as many as there are. assigned: each rank serves one dataset, or its few; an epoch is by default as many
    steps as the slowest needs to see all of its own once, and the other ranks repeat theirs meanwhile.
    """

    counts: tuple[int, ...]
    mode: SamplingMode = "mixed"
    temperature: float = 1.0
    seed: int = 0
    length: int | None = None


class DistributedSampler:
    """Batches for every rank, step by step, and a place in them to stop at and go on from.

    The last step of an epoch is filled up from the first places of the next, so that all ranks make whole steps.
    """

    def __init__(self, recipe: SamplingSpec, ranks: int, batch_size: int) -> None:
        if batch_size < 1 or (recipe.length is not None and recipe.length < 1):
            raise InputError(f"sampling: batch_size {batch_size}, length {recipe.length}: expected at least 1 of each")
        self.recipe, self.ranks, self.batch_size = recipe, ranks, batch_size
        self.epoch = self.taken = 0
        assignment = assign_ranks(recipe.counts, ranks, recipe.temperature)
        if recipe.mode == "mixed":
            assignment = Assignment((RankGroup(tuple(range(len(recipe.counts))), 0, ranks),))
        self.assignment = assignment
        self.length = recipe.length or self._whole()
        self._streams = {g: self._stream(g) for g in assignment.groups}

    def _whole(self) -> int:
        """Return the samples of an epoch that leaves nothing out."""
        if self.recipe.mode == "mixed":
            return sum(self.recipe.counts)
        groups = ((sum(self.recipe.counts[d] for d in g.datasets), g.size) for g in self.assignment.groups)
        steps = max(math.ceil(samples / (size * self.batch_size)) for samples, size in groups)
        return steps * self.ranks * self.batch_size

    def _stream(self, group: RankGroup) -> MixtureStream:
        counts = [self.recipe.counts[d] for d in group.datasets]
        total = self.length
        if self.recipe.mode == "assigned":
            total = math.ceil(self.length / (self.ranks * self.batch_size)) * group.size * self.batch_size
        share = compute_weights(counts, self.recipe.temperature)
        draws = round_shares(share, total)
        if draws.min() == 0 and total >= len(counts):
            draws = round_shares(share, total, at_least=1)
        return MixtureStream(np.array(group.datasets), np.array(counts), draws, self.recipe.seed)

    @property
    def steps(self) -> int:
        """Steps left in the epoch."""
        return math.ceil((self.length - self.taken) / (self.ranks * self.batch_size))

    @property
    def draws(self) -> Integers:
        """Samples that an epoch draws of each dataset, [d]; over the counts, how often it is seen."""
        drawn = {int(d): int(n) for s in self._streams.values() for d, n in zip(s.datasets, s.draws, strict=True)}
        return np.array([drawn[d] for d in range(len(drawn))])

    def batch(
        self, step: int, rank: int, costs: Callable[[SampleIndices], NDArray[np.float64]] | None = None
    ) -> SampleIndices:
        """Return the samples of one rank at a step counted from where the sampler stands.

        With costs, what the ranks of the same datasets take in this step is dealt so that their costs are level: the
        same samples, more or fewer of them for a rank.
        """
        group = self.assignment.find_group(rank)
        stream, position = self._streams[group], rank - group.first
        passed = self.taken * group.size // self.ranks
        first = self.epoch * stream.length + passed + step * group.size * self.batch_size
        if costs is None:
            return stream.at(first + position * self.batch_size, self.batch_size)
        joint = stream.at(first, group.size * self.batch_size)
        return joint[balance_costs(costs(joint), group.size)[position]]

    def advance(self, steps: int = 1) -> None:
        """Advance by some steps, into the next epoch where this one ends."""
        for _ in range(steps):
            self.taken += self.ranks * self.batch_size
            if self.taken >= self.length:
                self.epoch, self.taken = self.epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Return the sampler's position in the sequence, as plain data."""
        progress = {"epoch": self.epoch, "taken": self.taken}
        return progress | {"recipe": self._digest(), "ranks": self.ranks, "batch_size": self.batch_size}

    def resume(self, state: dict[str, Any]) -> None:
        """Continue where a sampler of the same specification stopped; if mixed, ranks and batches may differ.

        Raises InputError for the state of another sequence.
        """
        if state["recipe"] != self._digest():
            raise InputError("sampling: the state is that of other datasets, or of another mode, seed or length")
        if self.recipe.mode == "assigned" and (state["ranks"], state["batch_size"]) != (self.ranks, self.batch_size):
            raise InputError(
                f"sampling: each rank has its dataset, so it continues only with {state['ranks']} ranks and batches of"
                f" {state['batch_size']}, not with {self.ranks} and {self.batch_size}"
            )
        self.epoch, self.taken = int(state["epoch"]), int(state["taken"])

    def _digest(self) -> str:
        text = f"Recipe{repr(self.recipe).removeprefix(type(self.recipe).__name__)}"  # as in states that exist
        return blake2b(text.encode(), digest_size=8).hexdigest()
