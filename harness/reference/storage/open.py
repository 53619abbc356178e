"""Open the samples of a split in one of four modes: on disk, in memory, once per node, or spread over ranks."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from harness.reference.errors import InputError
from harness.reference.storage import collectives
from harness.reference.storage.adios.reader import BPFile
from harness.reference.storage.memory.distributed import DistributedStore
from harness.reference.storage.memory.shared import SharedSamples
from harness.reference.storage.samples import OnDemandSamples, PreloadedSamples, Samples, split_evenly

ReadMode = Literal["on_demand", "preload", "shared", "distributed"]


def open_samples(
    path: Path | str,
    split: str,
    mode: ReadMode,
    *,
    comm: Any = None,
    width: int | None = None,
    keys: Collection[str] | None = None,
    own_share: bool = False,
    backend: str = "auto",
) -> Samples:
    """Open a split of a store; collective over comm, if there is one.

    Args:
        path: The store.
        split: The name of the split.
        mode: "on_demand" reads each sample from disk; "preload" loads all samples, or with own_share those of this
            rank; "shared" holds one copy for the ranks of a node; "distributed" holds one copy for `width` ranks.
        comm: The communicator (mpi4py) of all ranks.
        width: Number of ranks that share a distributed copy; None for all ranks.
        keys: The keys to read; None for all.
        own_share: Whether to preload only this rank's share of the samples.
        backend: The memory of the distributed mode: "rma" (MPI), "ddstore", "ddstore-libfabric", or "auto", which is
            DDStore if it is installed and MPI otherwise.

    Raises:
        InputError: The store, the split or a key does not exist or is damaged. If several ranks fail, only the lowest
            of them raises it.
        LostRank: A lower rank, or only another rank, has failed.
    """
    file = collectives.run_collectively(comm, lambda: _open_and_check(path, split, keys))
    if mode == "on_demand":
        return OnDemandSamples(file, split, keys)
    if mode == "preload":
        first, stop = 0, file.count_samples(split)
        if own_share and comm is not None:
            first, stop = split_evenly(stop, comm.Get_rank(), comm.Get_size())
        with file:
            block = collectives.run_collectively(
                comm, lambda: file.columns(split, first, stop, keys) if first < stop else None
            )
        total = file.count_samples(split)
        return (
            PreloadedSamples([], 0, first, total) if block is None else PreloadedSamples.from_block(block, first, total)
        )
    if mode == "shared":
        with file:
            return SharedSamples.load(file, split, keys, comm)
    if mode == "distributed":
        with file:
            return DistributedStore.load(file, split, keys, comm=comm, width=width, backend=backend)
    raise InputError(f"unknown mode {mode!r}; there are on_demand, preload, shared and distributed")


def _open_and_check(path: Path | str, split: str, keys: Collection[str] | None) -> BPFile:
    """Open a store; raises InputError if it lacks the split or a key."""
    file = BPFile(path)
    for key in keys or ():
        file.shape(split, key)
    file.count_samples(split)
    return file
