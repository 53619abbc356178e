"""The ranks of one run at work together: how they meet, agree on numbers, and learn that one of them is lost."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from harness.reference.distributed.launch import LostRank, Place, first_line, told
from harness.reference.errors import InputError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

FAILED = "failed"
NEEDED_DEVICE = {"nccl": "cuda", "xccl": "xpu"}
DEVICES = ("cpu", "cuda", "xpu")
BACKENDS = ("gloo", *NEEDED_DEVICE)
Value = TypeVar("Value")


@dataclass(frozen=True)
class Team:
    """This process's place and device, and what all ranks do together; every method must be called by all ranks."""

    place: Place
    device: torch.device

    def largest(self, numbers: Tensor) -> Tensor:
        """Of each number the largest over the ranks."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def total(self, numbers: Tensor) -> Tensor:
        """Of each number the sum over the ranks."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def mean(self, numbers: Tensor) -> Tensor:
        """Of each number the mean over the ranks."""
        return self.total(numbers) / self.place.size

    def from_first(self, values: Tensor) -> Tensor:
        """What rank 0 holds, as a copy."""
        copy = values.detach().clone()
        dist.broadcast(copy, 0)
        return copy

    def gathered(self, value: Value) -> list[Value]:
        """The plain values of all ranks, in their order."""
        found: list[Value] = [value] * self.place.size
        dist.all_gather_object(found, value)
        return found

    def gathered_by_first(self, value: Value) -> list[Value]:
        """As gathered, on rank 0; nothing elsewhere."""
        found: list[Value] = [value] * self.place.size if self.place.rank == 0 else []
        dist.gather_object(value, found or None)
        return found

    def told_by(self, rank: int, value: Value) -> Value:
        """The plain value of one rank; what the others bring is nowhere read."""
        found = [value]
        dist.broadcast_object_list(found, rank)
        return found[0]

    def reduce_s(self, content: Tensor) -> float:
        """Seconds that a sum of the content over all ranks takes, on the slowest; content is overwritten."""
        synchronize(self.device)
        began = time.perf_counter()
        dist.all_reduce(content)
        synchronize(self.device)
        return float(self.largest(torch.tensor([time.perf_counter() - began])))

    def meet(self) -> None:
        """Wait until all ranks are here and their devices idle."""
        self.total(torch.zeros(1))

    def _reduced(self, numbers: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """numbers [k], from anywhere -> [k] in double precision on the CPU."""
        there = numbers.detach().to(self.device, torch.float64, copy=True)
        dist.all_reduce(there, operation)
        return there.cpu()


def synchronize(device: torch.device) -> None:
    """Wait until the device, of whatever kind, has finished what was asked of it."""
    torch.get_device_module(device).synchronize()


def own_device(kind: str, backend: str, place: Place) -> torch.device:
    """The rank's device, by local rank modulo those it sees; raises InputError where it or the backend is absent."""
    if kind not in DEVICES or backend not in BACKENDS:
        raise InputError(
            f"device {kind!r} with backend {backend!r}: there are {', '.join(DEVICES)}; {', '.join(BACKENDS)}"
        )
    if NEEDED_DEVICE.get(backend, kind) != kind:
        raise InputError(f"backend {backend!r} needs device {NEEDED_DEVICE[backend]!r}, got {kind!r}")
    if not dist.is_backend_available(backend):
        raise InputError(f"this build of torch has no backend {backend!r}")
    if kind == "cpu":
        return torch.device("cpu")
    module = torch.get_device_module(kind)
    visible = module.device_count()
    if not visible:
        raise InputError(f"device {kind!r} is asked for and none is visible")
    device = torch.device(kind, place.local_rank % visible)
    module.set_device(device)
    return device


@contextmanager
def joined(place: Place, *, backend: str, device: torch.device, timeout_s: float) -> Iterator[Team]:
    """Meet the other ranks at MASTER_ADDR:MASTER_PORT, work, and part.

    No wait for another rank lasts longer than timeout_s. Raises LostRank when another rank is the reason for the end;
    an error of this rank is told to rank 0 before the connections close.
    """
    timeout = timedelta(seconds=timeout_s)
    try:
        store = _store(place, timeout)
        dist.init_process_group(
            backend,
            store=store,
            rank=place.rank,
            world_size=place.size,
            timeout=timeout,
            device_id=None if device.type == "cpu" else device,
        )
    except RuntimeError as error:
        if not _of_connection(error):
            raise
        raise LostRank(
            f"the {place.size} ranks did not all meet within {timeout_s:g} s ({first_line(error)})"
        ) from None
    try:
        yield Team(place, device)
    except Exception as error:
        if _of_connection(error):
            raise LostRank(_reason(store, place, error)) from None
        _announce(store, place, error)
        raise
    finally:
        dist.destroy_process_group()


def _store(place: Place, timeout: timedelta) -> Store:
    """Where ranks leave word for one another; rank 0 keeps it."""
    if place.size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "")
    if not port.isdecimal():
        raise InputError(f"{place.size} ranks need MASTER_PORT, a free port of rank 0's node, in the environment")
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, int(port), place.size, is_master=place.rank == 0, timeout=timeout
    )


def _of_connection(error: Exception) -> bool:
    """True if the error says that another rank does not answer; those of gloo have no type of their own."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _announce(store: Store, place: Place, error: Exception) -> None:
    """Leave word of this rank's error; the first to fail is the one that counts."""
    try:
        store.compare_set(FAILED, "", f"rank {place.rank} failed: {told(error)}")
    except RuntimeError:
        return


def _reason(store: Store, place: Place, error: Exception) -> str:
    """What the failed rank has left word of; one that was killed has left none.

    Rank 0 alone looks: the others would have to ask it, and it may be the one that no longer answers.
    """
    if place.rank == 0 and store.check([FAILED]):
        return store.get(FAILED).decode()
    return f"another rank has ended or no longer answers ({first_line(error)})"
