"""Collective error handling: no rank waits for one that has failed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from harness.reference.distributed.launch import LostRank, RankInfo, describe_error
from harness.reference.errors import InputError

T = TypeVar("T")
GRACE_S = 3.0
FORWARD_S = 1.0  # launchers drop lines that they have not read by the time of an abort


def run_collectively(comm: Any, work: Callable[[], T]) -> T:
    """Return the result of this rank's work once all ranks have finished theirs. Collective.

    Where ranks fail, the first of them raises its own error, and all others raise LostRank, which names it.
    """
    if comm is None:
        return work()
    results: list[T] = []
    error: Exception | None = None
    try:
        results.append(work())
    except Exception as exception:
        error = exception
    errors = comm.allgather(None if error is None else describe_error(error))
    failed = next((rank for rank, text in enumerate(errors) if text is not None), None)
    if failed is None:
        return results[0]
    if error is not None and failed == comm.Get_rank():
        raise error
    raise LostRank(f"rank {failed}: {errors[failed]}")


def get_mpi_world(rank_info: RankInfo) -> Any:
    """Return the communicator of all ranks; raises InputError where MPI does not see the ranks of the launcher."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    if (comm.rank, comm.size) != (rank_info.rank, rank_info.size):
        raise InputError(
            f"the launcher says rank {rank_info.rank} of {rank_info.size}, MPI says {comm.rank} of {comm.size}: mpi4py"
            " is built for another MPI than the launcher's (with Slurm, see `srun --mpi=list`)"
        )
    return comm


@contextmanager
def abort_on_error(comm: Any) -> Iterator[None]:
    """Print the error in one line and end all ranks if this one fails in the block: others may wait in MPI forever.

    A rank that fails only because a peer has failed lets the peer report the error.
    """
    try:
        yield
    except Exception as error:
        if comm is None or comm.Get_size() == 1:
            raise
        if isinstance(error, LostRank):
            time.sleep(GRACE_S)
        trace = error.__traceback__
        sys.stdout.flush()
        # Leave out this frame, which would be reported as the location.
        sys.stderr.write(f"rank {comm.Get_rank()}: {describe_error(error.with_traceback(trace and trace.tb_next))}\n")
        sys.stderr.flush()
        time.sleep(FORWARD_S)
        comm.Abort(1)
        os._exit(1)  # Abort may return
