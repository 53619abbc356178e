"""Samples of a split in one of four modes: on disk, in memory, once per node, or spread over ranks."""

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
    """Return a split of a store in one of the modes; collective over comm (mpi4py), where there is one.

    preload: all samples, or with own_share only those of this rank. shared: one copy for the ranks of a node.
    distributed: one copy for every `width` ranks (default: all), by MPI (rma), by DDStore (ddstore, ddstore-libfabric),
    or by DDStore if it is installed and else by MPI (auto). keys: the keys to read, None for all. Raises InputError on
    one rank and LostRank on all others.
    """
    file = collectives.run_collectively(comm, lambda: _open_file(path, split, keys))
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


def _open_file(path: Path | str, split: str, keys: Collection[str] | None) -> BPFile:
    file = BPFile(path)
    for key in keys or ():
        file.shape(split, key)
    file.count_samples(split)
    return file
