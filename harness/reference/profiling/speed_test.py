"""Measure the speed of this rank for some seconds: `python -m harness.reference.profiling.speed_test SECONDS DEVICE`.

The job script starts the test on all ranks of its nodes at once, before the first case. A rank prints one line, a
RankSpeed of harness.protocol.speed. The ranks do not communicate.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable

import msgspec
import torch

from harness.protocol.speed import QUANTITIES, Quantity, RankSpeed
from harness.reference.distributed.group import synchronize
from harness.reference.distributed.launch import detect_rank

ROUNDS = 12
# A repetition of a test takes at least this long, so that its time can be measured.
MIN_REPETITION_S = 0.01
FIRST_WIDTH, LAST_WIDTH = 256, 8192
FIRST_BYTES, LAST_BYTES = 1 << 24, 1 << 30
OPERATIONS = 100_000
WRITTEN_BYTES = 1 << 23

# Does some work and returns its amount.
Work = Callable[[], float]


def measure_speed(seconds: float, device: torch.device) -> dict[Quantity, list[float]]:
    """Return the rates of this rank in each quantity, with a value per round.

    Each round measures all quantities, so that a change of the machine affects all of them.

    Args:
        seconds: The duration of the test; at least one repetition per round and quantity takes place.
        device: The device of the products and copies.
    """
    slot_s = seconds / (ROUNDS * len(QUANTITIES))
    rates: dict[Quantity, list[float]] = {name: [] for name in QUANTITIES}
    with tempfile.TemporaryFile() as file:
        works: dict[Quantity, Work] = {
            "products": prepare_products(device),
            "copies": prepare_copies(device),
            "clock": run_operations,
            "writes": lambda: write_bytes(file.fileno()),
        }
        for _ in range(ROUNDS):
            for name, work in works.items():
                rates[name].append(measure_rate(work, slot_s, device))
    return rates


def measure_rate(work: Work, seconds: float, device: torch.device) -> float:
    """Repeat some work for some seconds, and return its amount per second."""
    amount = duration = 0.0
    while not duration or duration < seconds:
        repetition = time_work(work, device)
        amount, duration = amount + repetition[0], duration + repetition[1]
    return amount / duration


def time_work(work: Work, device: torch.device) -> tuple[float, float]:
    """Return the amount of work and the seconds that it takes."""
    synchronize(device)
    started = time.perf_counter()
    amount = work()
    synchronize(device)
    return amount, time.perf_counter() - started


def prepare_products(device: torch.device) -> Work:
    """Return a function that multiplies square matrices in FP32, as wide as MIN_REPETITION_S requires."""
    width = FIRST_WIDTH
    while True:
        factor = torch.rand(width, width, device=device)
        work = _multiply(factor, torch.empty_like(factor))
        work()  # includes one-time costs
        if width >= LAST_WIDTH or time_work(work, device)[1] >= MIN_REPETITION_S:
            return work
        width *= 2


def _multiply(factor: torch.Tensor, product: torch.Tensor) -> Work:
    def work() -> float:
        torch.mm(factor, factor, out=product)
        return 2.0 * len(factor) ** 3

    return work


def prepare_copies(device: torch.device) -> Work:
    """Return a function that copies memory of the device, as much as MIN_REPETITION_S requires."""
    size = FIRST_BYTES
    while True:
        source = torch.ones(size, dtype=torch.uint8, device=device)
        work = _copy(source, torch.zeros_like(source))
        work()
        if size >= LAST_BYTES or time_work(work, device)[1] >= MIN_REPETITION_S:
            return work
        size *= 2


def _copy(source: torch.Tensor, target: torch.Tensor) -> Work:
    def work() -> float:
        target.copy_(source)
        return float(source.nbytes)

    return work


def run_operations() -> float:
    """Add numbers one after another in the interpreter, and return how many."""
    total = 0.0
    for number in range(OPERATIONS):
        total += number
    return float(OPERATIONS)


def write_bytes(descriptor: int) -> float:
    """Write WRITTEN_BYTES to a file, wait until they are on the disk, and return their number."""
    os.pwrite(descriptor, bytes(WRITTEN_BYTES), 0)
    os.fsync(descriptor)
    return float(WRITTEN_BYTES)


def main(arguments: list[str]) -> None:
    """Print the speed of this rank as one line of JSON."""
    seconds, kind = float(arguments[0]), arguments[1]
    info = detect_rank(os.environ)
    device = torch.device(kind)
    if kind != "cpu":
        module = torch.get_device_module(kind)
        device = torch.device(kind, info.local_rank % module.device_count())
    speed = RankSpeed(
        node=os.environ.get("SLURMD_NODENAME", platform.node()),
        rank=info.rank,
        local_rank=info.local_rank,
        device=str(device),
        **{name: [float(f"{rate:.5g}") for rate in rates] for name, rates in measure_speed(seconds, device).items()},
    )
    print(msgspec.json.encode(speed).decode(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
