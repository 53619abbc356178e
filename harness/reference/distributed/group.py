"""The ranks of a run as a process group: collective operations, devices, and the report of a lost rank."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor
from torch import distributed as dist

from harness.reference.distributed.launch import LostRank, RankInfo, describe_error
from harness.reference.errors import InputError, get_first_line

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

FAILED = "failed"  # the key under which the first rank that fails stores its error
WAITING = "waiting"  # the key to which each rank that has waited in vain for another one appends its number
ANSWER_S, MAX_RANKS_NAMED = 2.0, 8
REQUIRED_DEVICE = {"nccl": "cuda", "xccl": "xpu"}
DEVICES = ("cpu", "cuda", "xpu")
BACKENDS = ("gloo", *REQUIRED_DEVICE)
LOW_BITS = 2**32 - 1
Value = TypeVar("Value")


@dataclass(frozen=True)
class ProcessGroup:
    """The ranks of a run. Every method is collective: all ranks must call it.

    Attributes:
        rank_info: The rank of this process.
        device: The device on which this process computes.
    """

    rank_info: RankInfo
    device: torch.device

    @property
    def rank(self) -> int:
        """The rank of this process, 0 .. size - 1."""
        return self.rank_info.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self.rank_info.size

    def all_reduce_max(self, numbers: Tensor) -> Tensor:
        """Return the element-wise maximum over the ranks, in double precision on the CPU."""
        return self._all_reduce(numbers, dist.ReduceOp.MAX)

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """Return the element-wise sum over the ranks, in double precision on the CPU."""
        return self._all_reduce(numbers, dist.ReduceOp.SUM)

    def all_reduce_mean(self, numbers: Tensor) -> Tensor:
        """Return the element-wise mean over the ranks, in double precision on the CPU."""
        return self.all_reduce_sum(numbers) / self.size

    def broadcast(self, values: Tensor) -> Tensor:
        """Return a copy of the tensor that rank 0 passes; the shape is the same on all ranks."""
        copy = values.detach().clone()
        dist.broadcast(copy, 0)
        return copy

    def gather(self, value: Value) -> list[Value]:
        """Return the picklable values of all ranks on rank 0, and an empty list on the others."""
        values: list[Value] = [value] * self.size if self.rank == 0 else []
        dist.gather_object(value, values or None)
        return values

    def scatter(self, values: Sequence[Value]) -> Value:
        """Return the picklable value for this rank, of which rank 0 passes one per rank; others may pass none."""
        received: list[Value | None] = [None]
        dist.scatter_object_list(received, list(values) if self.rank == 0 else None, 0)
        return cast("Value", received[0])

    def deal(self, items: Sequence[Value]) -> Sequence[Value]:
        """Return this rank's share of the picklable items that rank 0 passes: every size-th of them."""
        return self.scatter([items[rank :: self.size] for rank in range(self.size)])

    def broadcast_object(self, value: Value, source: int = 0) -> Value:
        """Return the picklable value that the rank `source` passes; the values of the other ranks are ignored."""
        values = [value]
        dist.broadcast_object_list(values, source)
        return values[0]

    def broadcast_first(self, value: Value | None) -> Value | None:
        """Return the picklable value of the lowest rank whose value is not None; None if there is none."""
        first = -int(self.all_reduce_max(torch.tensor([-self.size if value is None else -self.rank])))
        return None if first == self.size else self.broadcast_object(value, first)

    def sum_integers(self, values: Sequence[int]) -> list[int]:
        """Return the exact sums over the ranks of integers from 0 to 2^64 - 1, for at most 2^21 ranks."""
        halves = torch.tensor([(v & LOW_BITS, v >> 32) for v in values], dtype=torch.float64)
        return [int(low) + (int(high) << 32) for low, high in self.all_reduce_sum(halves).tolist()]

    def time_all_reduce(self, values: Tensor) -> float:
        """Sum values over all ranks in place, and return the seconds that the slowest rank needs for that."""
        synchronize(self.device)
        started = time.perf_counter()
        dist.all_reduce(values)
        synchronize(self.device)
        return float(self.all_reduce_max(torch.tensor([time.perf_counter() - started])))

    def barrier(self) -> None:
        """Wait until all ranks have reached this point and their devices are idle."""
        self.all_reduce_sum(torch.zeros(1))

    def _all_reduce(self, numbers: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
        """Reduce numbers [k] of any type on any device; return [k] in double precision on the CPU."""
        on_device = numbers.detach().to(self.device, torch.float64, copy=True)
        dist.all_reduce(on_device, operation)
        return on_device.cpu()


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work; on a CPU, return at once."""
    torch.get_device_module(device).synchronize()


def select_device(kind: str, backend: str, rank_info: RankInfo) -> torch.device:
    """Select and return the device whose number is the local rank modulo the number of visible devices.

    Args:
        kind: One of DEVICES.
        backend: One of BACKENDS, the library by which the ranks communicate.
        rank_info: The rank of this process.

    Raises:
        InputError: The device or the backend is unknown or absent, or the backend does not support the device.
    """
    if kind not in DEVICES or backend not in BACKENDS:
        raise InputError(
            f"device {kind!r} with backend {backend!r}: expected a device of {', '.join(DEVICES)}"
            f" and a backend of {', '.join(BACKENDS)}"
        )
    if REQUIRED_DEVICE.get(backend, kind) != kind:
        raise InputError(f"backend {backend!r} needs device {REQUIRED_DEVICE[backend]!r}, got {kind!r}")
    if not dist.is_backend_available(backend):
        raise InputError(f"this build of torch has no backend {backend!r}")
    if kind == "cpu":
        return torch.device("cpu")
    check_device(kind)
    module = torch.get_device_module(kind)
    device = torch.device(kind, rank_info.local_rank % module.device_count())
    module.set_device(device)
    return device


def check_device(kind: str) -> None:
    """Raise InputError unless a device of this kind, one of DEVICES, is visible."""
    if kind != "cpu" and not torch.get_device_module(kind).device_count():
        raise InputError(f"device {kind!r} was requested, but none is visible")


@contextmanager
def process_group(
    rank_info: RankInfo, *, backend: str, device: torch.device, timeout_s: float
) -> Iterator[ProcessGroup]:
    """Connect to the other ranks at MASTER_ADDR:MASTER_PORT, and disconnect on exit.

    An error of this rank is reported to rank 0 before the connections close.

    Args:
        rank_info: The rank of this process.
        backend: One of BACKENDS.
        device: The device on which this process computes.
        timeout_s: The longest wait for another rank.

    Raises:
        LostRank: Another rank has failed, ended or never started.
        InputError: MASTER_PORT is not set.
    """
    timeout = timedelta(seconds=timeout_s)
    try:
        store = _open_store(rank_info, timeout)
        dist.init_process_group(
            backend,
            store=store,
            rank=rank_info.rank,
            world_size=rank_info.size,
            timeout=timeout,
            device_id=None if device.type == "cpu" else device,
        )
    except RuntimeError as error:
        if not _is_connection_error(error):
            raise
        raise LostRank(
            f"the {rank_info.size} ranks did not all connect within {timeout_s:g} s ({get_first_line(error)})"
        ) from None
    try:
        yield ProcessGroup(rank_info, device)
    except Exception as error:
        if _is_connection_error(error):
            raise LostRank(_read_failure(store, rank_info, error)) from None
        _announce_failure(store, rank_info, error)
        raise
    finally:
        dist.destroy_process_group()


def _open_store(rank_info: RankInfo, timeout: timedelta) -> Store:
    """Return the key-value store of all ranks, which rank 0 serves."""
    if rank_info.size == 1:
        return dist.HashStore()  # type: ignore[attr-defined]
    address, port = os.environ.get("MASTER_ADDR", "127.0.0.1"), os.environ.get("MASTER_PORT", "")
    if not port.isdecimal():
        raise InputError(f"{rank_info.size} ranks need MASTER_PORT, a free port of rank 0's node, in the environment")
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, int(port), rank_info.size, is_master=rank_info.rank == 0, timeout=timeout
    )


def _is_connection_error(error: Exception) -> bool:
    """Return whether an error means that another rank does not answer; gloo has no error type for that."""
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _announce_failure(store: Store, rank_info: RankInfo, error: Exception) -> None:
    """Store the error of this rank, unless another rank has already failed."""
    try:
        store.compare_set(FAILED, "", f"rank {rank_info.rank} failed: {describe_error(error)}")
    except RuntimeError:
        return


def _read_failure(store: Store, rank_info: RankInfo, error: Exception) -> str:
    """Return the error that the failed rank has stored, or else, as a killed rank stores none, which ranks are silent.

    Only rank 0, which serves the store, reads it: the others might wait for rank 0 in vain.
    """
    detail = ""
    if rank_info.rank > 0:
        with suppress(RuntimeError):
            store.set_timeout(timedelta(seconds=ANSWER_S))
            store.append(WAITING, f"{rank_info.rank},")  # type: ignore[attr-defined]
    elif store.check([FAILED]):
        return store.get(FAILED).decode()
    else:
        time.sleep(ANSWER_S)
        waiting = store.get(WAITING).decode().split(",") if store.check([WAITING]) else []
        silent = sorted({*range(1, rank_info.size)} - {int(rank) for rank in waiting if rank})
        if 0 < len(silent) <= MAX_RANKS_NAMED:
            names = f"rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))}"
            detail = f": nothing from {names} for {ANSWER_S:g} s"
    return f"another rank has ended or no longer answers{detail} ({get_first_line(error)})"
