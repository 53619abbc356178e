"""Collective error handling, so that no rank waits for a rank that has failed."""

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
GRACE_S = 3.0  # the time in which a peer that failed first may report its error
FORWARD_S = 1.0  # the time in which the launcher can read the last lines; an abort discards unread ones


def run_collectively(comm: Any, work: Callable[[], T]) -> T:
    """Return the result of this rank's work once all ranks have finished theirs. Collective over comm (mpi4py).

    If ranks fail, the lowest of them raises its own error, and all other ranks raise LostRank, which names that rank
    and has their own error, if there is one, as its cause.
    """
    if comm is None:
        return work()
    results: list[T] = []
    error: Exception | None = None
    try:
        results.append(work())
    except Exception as exception:
        error = exception
    size, rank = comm.Get_size(), comm.Get_rank()
    failed = comm.allreduce(size if error is None else rank, op=_get_minimum())
    if failed == size:
        return results[0]
    text = comm.bcast(None if error is None else describe_error(error), root=failed)
    if error is not None and failed == rank:
        raise error
    raise LostRank(f"rank {failed}: {text}") from error


def _get_minimum() -> Any:
    from mpi4py import MPI

    return MPI.MIN


def get_mpi_world(rank_info: RankInfo) -> Any:
    """Return MPI's communicator of all ranks; raises InputError if its ranks are not those of the launcher."""
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
    """If this rank fails in the block, print the error in one line and end all ranks, which might wait in MPI forever.

    A rank that fails only because a peer has failed waits GRACE_S, so that the peer reports its error first.
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
        # Drop this frame from the traceback; otherwise it would be reported as the location of the error.
        sys.stderr.write(f"rank {comm.Get_rank()}: {describe_error(error.with_traceback(trace and trace.tb_next))}\n")
        sys.stderr.flush()
        time.sleep(FORWARD_S)
        comm.Abort(1)
        os._exit(1)  # Abort may return
