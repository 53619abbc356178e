"""Read a store as one rank of test_many_ranks.py: `ranks_read.py ACTION STORE [OPTION]`."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # ADIOS2 would import it, which takes a second

from mpi4py import MPI  # noqa: E402

from harness.reference.storage.adios.reader import BPFile  # noqa: E402
from harness.reference.storage.collectives import abort_on_error  # noqa: E402
from harness.reference.storage.memory.distributed import DistributedStore  # noqa: E402
from harness.reference.storage.open import open_samples  # noqa: E402
from harness.reference.storage.prefetch import Prefetch  # noqa: E402
from harness.reference.storage.samples import ConcatenatedSamples  # noqa: E402
from tests.reference.storage.examples import is_same_record  # noqa: E402

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.Get_rank(), COMM.Get_size()


def read_all(path: Path, backend: str) -> None:
    """Check that every mode and width returns the content of the file."""
    with BPFile(path) as file:
        count = file.count_samples("trainset")
        expected = [file.read_sample("trainset", k) for k in range(count)]
    order = [(7 * k + 3 * RANK) % count for k in range(count)] + [5, 5, 0, count - 1]
    options = [("preload", {}), ("shared", {}), ("on_demand", {})]
    options += [("distributed", {"width": w, "backend": backend}) for w in (None, *range(1, RANKS + 1))]
    for mode, arguments in options:
        with open_samples(path, "trainset", mode, comm=COMM, **arguments) as samples:
            assert len(samples) == count
            assert all(map(is_same_record, samples.get(order), [expected[k] for k in order])), (mode, arguments)
            assert samples.get([]) == []
            with Prefetch(samples.get, [order[k : k + 8] for k in range(0, 24, 8)], samples=samples) as prefetch:
                result = [record for batch in prefetch for record in batch]
            assert all(map(is_same_record, result, [expected[k] for k in order[:24]]))
            COMM.Barrier()
    with open_samples(path, "trainset", "preload", comm=COMM, own_share=True) as samples:
        shares = COMM.allgather(list(samples.indices))
        assert [k for part in shares for k in part] == list(range(count))
    parts = [open_samples(path, label, "distributed", comm=COMM, backend=backend) for label in ("valset", "trainset")]
    with ConcatenatedSamples(parts) as concatenated:
        first = len(parts[0])
        assert all(
            map(
                is_same_record,
                concatenated.get([first + 4, 0, first]),
                [expected[4], parts[0].get([0])[0], expected[0]],
            )
        )
        COMM.Barrier()


def read_few(path: Path, backend: str) -> None:
    """Read a split that has fewer samples than there are ranks."""
    with open_samples(path, "valset", "distributed", comm=COMM, backend=backend) as samples:
        assert isinstance(samples, DistributedStore)
        assert len(samples.get(range(len(samples)))) == len(samples)
        COMM.Barrier()


def fail_on_one_rank(path: Path) -> None:
    """Raise an error on the last rank while the others wait for it."""
    with abort_on_error(COMM), open_samples(path, "trainset", "distributed", comm=COMM):
        if RANK == RANKS - 1:
            raise RuntimeError("no such luck")
        COMM.Barrier()


def kill_one_rank(path: Path, mode: str) -> None:
    """Kill the last rank while the others wait for it, so that shared memory that is not freed can be detected."""
    with open_samples(path, "trainset", mode, comm=COMM):
        if RANK == RANKS - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        COMM.Barrier()
        time.sleep(60)


def open_missing_file(path: Path) -> None:
    """Open a file that does not exist for rank 0; all ranks must end."""
    with abort_on_error(COMM):
        open_samples(path if RANK else path / "none", "trainset", "distributed", comm=COMM)


if __name__ == "__main__":
    {
        "all": read_all,
        "few": read_few,
        "failing": fail_on_one_rank,
        "killed": kill_one_rank,
        "missing": open_missing_file,
    }[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
    sys.stdout.write(f"rank {RANK} is done\n")  # one write, so that the lines of ranks do not mix
