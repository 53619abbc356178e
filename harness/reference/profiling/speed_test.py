"""Measure the speed of this rank for some seconds: `python -m harness.reference.profiling.speed_test SECONDS DEVICE`.

The job script starts the test on all ranks of its nodes at once, before the first case. A rank prints one line, a
RankSpeed (harness.protocol.speed). The ranks do not communicate.

A repetition is shorter than a time slice of the operating system, so that most repetitions are not interrupted even if
another process shares the core. The value of a round is a rate that only the fastest repetitions exceed: interruptions
do not change it, and a slow processor is slow in its fastest repetitions too.
"""

from __future__ import annotations

import itertools
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
# The share of the repetitions of a round that are at most as fast as the round's value.
QUANTILE = 0.9
# A repetition takes at least this long, so that its time can be measured: longer on a device, where each call has a
# latency.
MIN_REPETITION_S, MIN_DEVICE_REPETITION_S = 0.0005, 0.005
# The widths of matrices and the sizes of copies are doubled within these ranges until a repetition takes long enough.
FIRST_WIDTH, LAST_WIDTH = 128, 8192
FIRST_BYTES, LAST_BYTES = 1 << 20, 1 << 30
# Copies move through a buffer of this size, larger than the share of a rank in most caches.
BUFFER_BYTES = 1 << 26
OPERATIONS = 10_000  # additions in a repetition
WRITTEN_BYTES = 1 << 23  # in one write per round

# Does some work and returns its amount: floating-point operations, bytes or operations of the interpreter.
Work = Callable[[], float]


def measure_speed(seconds: float, device: torch.device) -> dict[Quantity, list[float]]:
    """Return the rates of this rank in each quantity, with a value per round, in the units of harness.protocol.speed.

    After one write, a round repeats products, copies and operations in turn, so that a change of the machine affects
    all of them.

    Args:
        seconds: The duration of the test; at least one repetition per round and quantity takes place.
        device: The device of the products and copies.
    """
    values: dict[Quantity, list[float]] = {name: [] for name in QUANTITIES}
    with tempfile.TemporaryFile() as file:
        works: dict[Quantity, Work] = {
            "products": prepare_products(device),
            "copies": prepare_copies(device),
            "clock": run_operations,
        }
        end = time.perf_counter()
        for _ in range(ROUNDS):
            end += seconds / ROUNDS
            rates: dict[Quantity, list[float]] = {name: [] for name in QUANTITIES}
            rates["writes"].append(measure_rate(lambda: write_bytes(file.fileno()), device))
            while not rates["clock"] or time.perf_counter() < end:
                for name, work in works.items():
                    rates[name].append(measure_rate(work, device))
            for name in QUANTITIES:
                values[name].append(sorted(rates[name])[round(QUANTILE * (len(rates[name]) - 1))])
    return values


def measure_rate(work: Work, device: torch.device) -> float:
    """Do some work, and return its amount per second."""
    amount, duration = time_work(work, device)
    return amount / duration


def get_min_repetition_s(device: torch.device) -> float:
    """Return the shortest time in seconds that a repetition on a device may take."""
    return MIN_REPETITION_S if device.type == "cpu" else MIN_DEVICE_REPETITION_S


def time_work(work: Work, device: torch.device) -> tuple[float, float]:
    """Return the amount of work and the seconds that it takes."""
    synchronize(device)
    started = time.perf_counter()
    amount = work()
    synchronize(device)
    return amount, time.perf_counter() - started


def prepare_products(device: torch.device) -> Work:
    """Return a function that multiplies square matrices in FP32, wide enough for a repetition."""
    width = FIRST_WIDTH
    while True:
        factor = torch.rand(width, width, device=device)
        work = _multiply(factor, torch.empty_like(factor))
        work()  # the first call includes one-time costs
        if width >= LAST_WIDTH or time_work(work, device)[1] >= get_min_repetition_s(device):
            return work
        width *= 2


def _multiply(factor: torch.Tensor, product: torch.Tensor) -> Work:
    def work() -> float:
        torch.mm(factor, factor, out=product)
        return 2.0 * len(factor) ** 3

    return work


def prepare_copies(device: torch.device) -> Work:
    """Return a function that copies memory of the device, enough for a repetition."""
    size = FIRST_BYTES
    while True:
        source = torch.ones(max(size, BUFFER_BYTES), dtype=torch.uint8, device=device)
        work = _copy(source, torch.zeros_like(source), size)
        for _ in range(len(source) // size):  # the first copy of each page includes one-time costs
            work()
        if size >= LAST_BYTES or time_work(work, device)[1] >= get_min_repetition_s(device):
            return work
        size *= 2


def _copy(source: torch.Tensor, target: torch.Tensor, size: int) -> Work:
    parts = itertools.cycle(zip(source.split(size), target.split(size), strict=True))

    def work() -> float:
        part, copy = next(parts)
        copy.copy_(part)
        return float(part.nbytes)

    return work


def run_operations() -> float:
    """Add numbers one after another in the interpreter, and return the number of additions."""
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
