"""The samples of each rank at each step: reproducible mixtures of datasets of very different sizes.

In the mode "mixed", all ranks share one sequence, which depends on the specification and its seed alone. In the mode
"assigned", each group of ranks has a sequence of its own. A step takes the next batch_size draws for each rank of the
sequence, in the order of the ranks. The draw at any position of a sequence can be computed without the earlier draws.
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
WINDOW = 1024  # number of consecutive draws in which every dataset has its share, to within one sample


@dataclass(frozen=True)
class SampleIndices:
    """A sequence of n samples.

    Attributes:
        dataset: [n] index of the dataset of each sample.
        index: [n] index of each sample within its dataset.
    """

    dataset: Integers
    index: Integers

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, selection: slice | Integers) -> SampleIndices:
        """Return the selected samples, in the order of the selection."""
        return SampleIndices(self.dataset[selection], self.index[selection])


@dataclass(frozen=True)
class MixtureStream:
    """An endless sequence of draws from a mixture of datasets, which can be computed from any position.

    Each dataset is drawn in passes over all its samples, each pass with a new shuffle; passes continue from one epoch
    to the next. In windows of about WINDOW draws, every dataset has its share to within one sample, in shuffled order.

    Attributes:
        datasets: [d] indices of the datasets.
        counts: [d] number of samples of each dataset.
        draws: [d] number of draws from each dataset per epoch.
        seed: Seed of all shuffles.
    """

    datasets: Integers
    counts: Integers
    draws: Integers
    seed: int

    @cached_property
    def length(self) -> int:
        """The number of draws in an epoch."""
        return int(self.draws.sum())

    @cached_property
    def windows(self) -> int:
        """The number of windows in an epoch."""
        return max(1, self.length // WINDOW)

    @cached_property
    def _offsets(self) -> Integers:
        """The hashed offset of each dataset, [d]; without it, all small datasets would be drawn in the same windows."""
        return (hash_key(self.seed, self.datasets) % np.uint64(self.windows)).astype(np.int64)

    def _count_draws_before(self, window: int) -> Integers:
        """Return the number of draws from each dataset before a window, [d]."""
        return (self.draws * window + self._offsets) // self.windows

    def _find_window(self, position: int) -> int:
        window = position * self.windows // self.length
        while int(self._count_draws_before(window).sum()) > position:
            window -= 1
        while int(self._count_draws_before(window + 1).sum()) <= position:
            window += 1
        return window

    def _shuffle_window(self, window: int) -> tuple[Integers, Integers]:
        """Return the position in `datasets` of each draw of a window, and its ordinal among that dataset's draws."""
        before = self._count_draws_before(window)
        counts = self._count_draws_before(window + 1) - before
        unshuffled = np.repeat(np.arange(len(counts)), counts)
        sort_keys = splitmix64(
            hash_key(self.seed, int(self.datasets[0]), window) + np.arange(len(unshuffled)).astype(np.uint64)
        )
        dataset_position = unshuffled[np.argsort(sort_keys, kind="stable")]
        ordinal = np.empty(len(unshuffled), dtype=np.int64)
        ordinal[np.argsort(dataset_position, kind="stable")] = (
            np.arange(len(unshuffled)) + (before - np.cumsum(counts) + counts)[unshuffled]
        )
        return dataset_position, ordinal

    def draw(self, position: int, count: int) -> SampleIndices:
        """Return `count` draws, starting at a position of the sequence."""
        window = self._find_window(position)
        skipped = position - int(self._count_draws_before(window).sum())
        parts = [self._shuffle_window(window)]
        while sum(len(dataset_position) for dataset_position, _ in parts) < skipped + count:
            window += 1
            parts.append(self._shuffle_window(window))
        dataset_position, ordinal = (
            np.concatenate(columns)[skipped : skipped + count] for columns in zip(*parts, strict=True)
        )
        ids, sizes = self.datasets[dataset_position], self.counts[dataset_position]
        return SampleIndices(ids, permute_indices(ordinal % sizes, sizes, hash_key(self.seed, ids, ordinal // sizes)))


@dataclass(frozen=True)
class SamplingSpec:
    """The specification of a sequence of samples.

    Attributes:
        counts: Number of samples of each dataset.
        mode: "mixed": every rank draws from all datasets by weight. "assigned": each rank serves one dataset or a few.
        temperature: The weight of a dataset is count ** (1 / temperature).
        seed: Seed of all shuffles.
        length: Number of draws per epoch. If None: in the mode "mixed", the number of all samples; in the mode
            "assigned", the number of draws after which the group with the most samples per rank has drawn as many as it
            has, while the other groups repeat their samples.
    """

    counts: tuple[int, ...]
    mode: SamplingMode = "mixed"
    temperature: float = 1.0
    seed: int = 0
    length: int | None = None


class MixtureSampler:
    """The batches of every rank, step by step, with a position that can be saved and resumed.

    The first draws of the next epoch fill up the last step of an epoch, so that all ranks take whole steps.

    Attributes:
        epoch: Index of the current epoch.
        position: Number of draws of the current epoch that have been used.
    """

    def __init__(self, spec: SamplingSpec, ranks: int, batch_size: int) -> None:
        if batch_size < 1 or (spec.length is not None and spec.length < 1):
            raise InputError(f"sampling: batch_size {batch_size}, length {spec.length}: expected at least 1 of each")
        self.spec, self.ranks, self.batch_size = spec, ranks, batch_size
        self.epoch = self.position = 0
        assignment = assign_ranks(spec.counts, ranks, spec.temperature)
        if spec.mode == "mixed":
            assignment = Assignment((RankGroup(tuple(range(len(spec.counts))), 0, ranks),))
        self.assignment = assignment
        self.length = spec.length or self._compute_default_length()
        self._streams = {g: self._build_stream(g) for g in assignment.groups}

    def _compute_default_length(self) -> int:
        """Return the default length of an epoch (see `SamplingSpec.length`)."""
        if self.spec.mode == "mixed":
            return sum(self.spec.counts)
        groups = ((sum(self.spec.counts[d] for d in g.datasets), g.size) for g in self.assignment.groups)
        steps = max(math.ceil(samples / (size * self.batch_size)) for samples, size in groups)
        return steps * self.ranks * self.batch_size

    def _build_stream(self, group: RankGroup) -> MixtureStream:
        counts = [self.spec.counts[d] for d in group.datasets]
        total = self.length
        if self.spec.mode == "assigned":
            total = math.ceil(self.length / (self.ranks * self.batch_size)) * group.size * self.batch_size
        share = compute_weights(counts, self.spec.temperature)
        draws = round_shares(share, total)
        if draws.min() == 0 and total >= len(counts):
            draws = round_shares(share, total, at_least=1)
        return MixtureStream(np.array(group.datasets), np.array(counts), draws, self.spec.seed)

    @property
    def steps(self) -> int:
        """The number of remaining steps in the epoch."""
        return math.ceil((self.length - self.position) / (self.ranks * self.batch_size))

    @property
    def draws(self) -> Integers:
        """The number of samples that an epoch draws from each dataset, [d]."""
        draws = {int(d): int(n) for s in self._streams.values() for d, n in zip(s.datasets, s.draws, strict=True)}
        return np.array([draws[d] for d in range(len(draws))])

    def select_batch(
        self, step: int, rank: int, costs: Callable[[SampleIndices], NDArray[np.float64]] | None = None
    ) -> SampleIndices:
        """Return the samples of one rank at one step.

        Args:
            step: The step, counted from the sampler's position.
            rank: The rank.
            costs: Returns the cost of each sample, [n]. If it is given, the samples of the step are distributed among
                the ranks of a group so that their costs, and not their numbers of samples, are similar.
        """
        group = self.assignment.find_group(rank)
        stream, member = self._streams[group], rank - group.first
        passed = self.position * group.size // self.ranks
        first = self.epoch * stream.length + passed + step * group.size * self.batch_size
        if costs is None:
            return stream.draw(first + member * self.batch_size, self.batch_size)
        joint = stream.draw(first, group.size * self.batch_size)
        return joint[balance_costs(costs(joint), group.size)[member]]

    def advance(self, steps: int = 1) -> None:
        """Advance the position by some steps; at the end of the epoch, the next one begins."""
        for _ in range(steps):
            self.position += self.ranks * self.batch_size
            if self.position >= self.length:
                self.epoch, self.position = self.epoch + 1, 0

    def state(self) -> dict[str, Any]:
        """Return the position in the sequence as plain data."""
        progress = {"epoch": self.epoch, "taken": self.position}
        return progress | {"recipe": self._compute_digest(), "ranks": self.ranks, "batch_size": self.batch_size}

    def resume(self, state: dict[str, Any]) -> None:
        """Continue where a sampler of the same specification stopped.

        In the mode "mixed", the number of ranks and the batch size may have changed.

        Raises InputError for the state of another sequence.
        """
        if state["recipe"] != self._compute_digest():
            raise InputError(
                "sampling: the state is that of other datasets, or of another mode, temperature, seed or length"
            )
        if self.spec.mode == "assigned" and (state["ranks"], state["batch_size"]) != (self.ranks, self.batch_size):
            raise InputError(
                f"sampling: each rank has its dataset, so it continues only with {state['ranks']} ranks and batches of"
                f" {state['batch_size']}, not with {self.ranks} and {self.batch_size}"
            )
        self.epoch, self.position = int(state["epoch"]), int(state["taken"])

    def _compute_digest(self) -> str:
        # SamplingSpec was called Recipe when the first states were saved; their digests must stay valid.
        text = f"Recipe{repr(self.spec).removeprefix(type(self.spec).__name__)}"
        return blake2b(text.encode(), digest_size=8).hexdigest()
