"""MPI: its ranks are those of the launcher, a sum is right, and each rank reads the memory of another."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from harness.protocol.programs.preflight import Measurement
from harness.protocol.text import pluralize, sanitize_line
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome
from harness.reference.storage.collectives import get_mpi_world

NUMBERS = 1024  # 8 kB, the size of a small structure in a distributed store
READS = 200  # that are timed
EXPECTED = "the ranks of the launcher, a right sum, and one-sided reads"
ADVICE = "Build mpi4py for the MPI of the launcher (`install` in the system's file)."


def check(context: CheckContext) -> Outcome:
    """Sum known numbers over all ranks, and read the memory of the rank half of all ranks away by one-sided access."""
    from mpi4py import MPI

    world = get_mpi_world(context.rank_info)
    rank, size = world.Get_rank(), world.Get_size()
    problems = []
    if (total := world.allreduce(rank + 1)) != size * (size + 1) // 2:
        problems.append(f"the sum of the ranks is {total}, not {size * (size + 1) // 2}")
    window = MPI.Win.Allocate(8 * NUMBERS, 8, comm=world)
    memory: NDArray[np.float64] = np.frombuffer(window.tomemory(), dtype=np.float64)  # type: ignore[call-overload]
    memory[:] = make_pattern(rank)
    world.Barrier()
    other = (rank + size // 2) % size if size > 1 else rank
    received = np.empty(NUMBERS)
    window.Lock_all()
    started = time.perf_counter()
    for _ in range(READS):
        received[:] = np.nan
        window.Get(received, other)
        window.Flush(other)
    read_s = (time.perf_counter() - started) / READS
    window.Unlock_all()
    if not np.array_equal(received, make_pattern(other)):
        problems.append(f"a one-sided read of rank {other}'s memory returns other numbers")
    library = sanitize_line(MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\x00"))
    world.Barrier()
    window.Free()
    MPI.Finalize()  # the process ends without the handlers that would call it
    observed = f"{pluralize(size, 'rank')} of {library}; a read of 8 kB takes {1e6 * read_s:.3g} us"
    measurement = Measurement(name="one-sided read of 8 kB", value=1e6 * read_s, unit="us")
    return make_outcome(EXPECTED, observed, problems, ADVICE, [measurement])


def make_pattern(rank: int) -> NDArray[np.float64]:
    """Return numbers that no other rank has, [NUMBERS]."""
    return np.arange(NUMBERS, dtype=np.float64) + NUMBERS * rank
