"""Run by each rank in test_ranks.py: reads a store in the modes and reports; words: what to do, path of a store."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # ADIOS2 would import it, which takes a second

from mpi4py import MPI  # noqa: E402

from harness.reference.storage.adios.writer import BPFile  # noqa: E402
from harness.reference.storage.collectives import abort_on_error  # noqa: E402
from harness.reference.storage.memory.distributed import DistributedStore  # noqa: E402
from harness.reference.storage.open import open_samples  # noqa: E402
from harness.reference.storage.prefetch import Prefetch  # noqa: E402
from harness.reference.storage.samples import concatenate_samples  # noqa: E402
from tests.reference.storage.examples import same  # noqa: E402

COMM = MPI.COMM_WORLD
RANK, RANKS = COMM.Get_rank(), COMM.Get_size()


def read_all(path: Path, backend: str) -> None:
    """Every mode and width gives what the file holds."""
    with BPFile(path) as file:
        count = file.samples("trainset")
        expected = [file.record("trainset", k) for k in range(count)]
    order = [(7 * k + 3 * RANK) % count for k in range(count)] + [5, 5, 0, count - 1]
    options = [("preload", {}), ("shared", {}), ("on_demand", {})]
    options += [("distributed", {"width": w, "backend": backend}) for w in (None, *range(1, RANKS + 1))]
    for mode, more in options:
        with open_samples(path, "trainset", mode, comm=COMM, **more) as samples:
            assert len(samples) == count
            assert all(map(same, samples.get(order), [expected[k] for k in order])), (mode, more)
            assert samples.get([]) == []
            with Prefetch(samples.get, [order[k : k + 8] for k in range(0, 24, 8)], samples=samples) as ahead:
                result = [record for batch in ahead for record in batch]
            assert all(map(same, result, [expected[k] for k in order[:24]]))
            COMM.Barrier()
    with open_samples(path, "trainset", "preload", comm=COMM, own_share=True) as samples:
        held = COMM.allgather(list(samples.held))
        assert [k for part in held for k in part] == list(range(count))
    parts = [open_samples(path, label, "distributed", comm=COMM, backend=backend) for label in ("valset", "trainset")]
    with concatenate_samples(parts) as both:
        first = len(parts[0])
        assert all(map(same, both.get([first + 4, 0, first]), [expected[4], parts[0].get([0])[0], expected[0]]))
        COMM.Barrier()


def few(path: Path, backend: str) -> None:
    """Fewer samples than ranks."""
    with open_samples(path, "valset", "distributed", comm=COMM, backend=backend) as samples:
        assert isinstance(samples, DistributedStore)
        assert len(samples.get(range(len(samples)))) == len(samples)
        COMM.Barrier()


def failing(path: Path) -> None:
    """The last rank fails while the others wait for it."""
    with abort_on_error(COMM), open_samples(path, "trainset", "distributed", comm=COMM):
        if RANK == RANKS - 1:
            raise RuntimeError("no such luck")
        COMM.Barrier()


def killed(path: Path, mode: str) -> None:
    """The last rank is killed while the others wait for it; the memory would be seen if it stayed."""
    with open_samples(path, "trainset", mode, comm=COMM):
        if RANK == RANKS - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        COMM.Barrier()
        time.sleep(60)


def missing(path: Path) -> None:
    """One rank does not find the file: all say so."""
    with abort_on_error(COMM):
        open_samples(path if RANK else path / "none", "trainset", "distributed", comm=COMM)


if __name__ == "__main__":
    {"all": read_all, "few": few, "failing": failing, "killed": killed, "missing": missing}[sys.argv[1]](
        Path(sys.argv[2]), *sys.argv[3:]
    )
    sys.stdout.write(f"rank {RANK} is done\n")  # in one piece
