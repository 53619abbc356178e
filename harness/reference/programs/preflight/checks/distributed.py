"""torch.distributed: sums over all ranks with the backend of the system, their bandwidth, and the nodes' clocks."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence

import torch
from torch import distributed as dist

from harness.protocol.programs.preflight import Measurement
from harness.protocol.text import pluralize
from harness.reference.distributed.group import ProcessGroup, process_group, select_device
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome, set_rendezvous

SIZES = (1, 1000, 1_000_003)  # numbers per rank
DTYPES = (torch.float32, torch.float64)
LARGE_BYTES = 64 * 2**20
REPEATS = 5
CONNECT_S = 60.0
MIN_SHARE = 0.1  # of the bandwidth of the network
ADVICE = (
    "Compare the variables of the network library (NCCL, RCCL, oneCCL) and its plugin with `environment` in the"
    " system's file."
)
CLOCK_ADVICE = "Ask the operators to synchronize the clocks; telemetry is assigned to cases by the time."
MAX_CLOCK_DIFFERENCE_S = 5.0


def check(context: CheckContext) -> Outcome:
    """Sum known numbers over all ranks, and time the sum of a large tensor."""
    config = context.config
    set_rendezvous(context)
    kind = config.device or "cpu"
    device = select_device(kind, config.backend, context.rank_info)
    with process_group(context.rank_info, backend=config.backend, device=device, timeout_s=CONNECT_S) as world:
        backend = str(dist.get_backend())
        problems = [] if backend == config.backend else [f"torch chose the backend {backend}, not {config.backend}"]
        problems += find_wrong_sums(world)
        world.barrier()
        clock_problems = find_clock_differences(world.gather((platform.node(), time.time())))
        measurements = [] if world.size == 1 else [measure_bandwidth(world, context)]
    problems += find_slow(measurements)
    observed = f"sums over {pluralize(context.rank_info.size, 'rank')} by {backend} are right"
    if measurements:
        observed += f"; {measurements[0].value:.3g} GB/s"
    expected = f"right sums over all ranks by {config.backend}"
    advice = " ".join([ADVICE] * bool(problems) + [CLOCK_ADVICE] * bool(clock_problems))
    return make_outcome(expected, observed, problems + clock_problems, advice, measurements)


def find_wrong_sums(world: ProcessGroup) -> list[str]:
    """Return a message for each size and type whose sum over the ranks is wrong."""
    problems = []
    for dtype in DTYPES:
        for size in SIZES:
            pattern = torch.arange(size, dtype=dtype, device=world.device) % 13
            values = (world.rank + 1) * pattern
            dist.all_reduce(values)
            if not torch.equal(values, world.size * (world.size + 1) // 2 * pattern):
                problems.append(f"the sum of {size} numbers of type {dtype} over the ranks is wrong")
    return problems


def find_clock_differences(clocks: Sequence[tuple[str, float]]) -> list[str]:
    """Return a message for each node whose clock differs from that of the first.

    Args:
        clocks: The host and the Unix time of each rank, at the end of a barrier.
    """
    hosts = {host: seconds - clocks[0][1] for host, seconds in reversed(clocks)}
    return [
        f"the clock of {host} differs by {difference:+.0f} s from that of {clocks[0][0]}"
        for host, difference in hosts.items()
        if abs(difference) > MAX_CLOCK_DIFFERENCE_S
    ]


def measure_bandwidth(world: ProcessGroup, context: CheckContext) -> Measurement:
    """Return the bandwidth of a ring all-reduce: every rank sends and receives 2 (n - 1) / n of the tensor."""
    values = torch.ones(LARGE_BYTES // 4, dtype=torch.float32, device=world.device)
    seconds = min(world.time_all_reduce(values.fill_(1.0)) for _ in range(REPEATS))
    network = context.config.network
    return Measurement(
        name="all-reduce of 64 MiB", value=2 * (world.size - 1) / world.size * LARGE_BYTES / seconds / 1e9,
        unit="GB/s", reference=None if network is None else network.bandwidth_gb_per_s,
    )  # fmt: skip


def find_slow(measurements: list[Measurement]) -> list[str]:
    """Return a message for each bandwidth that is far below its reference."""
    return [
        f"{m.name}: {m.value:.3g} {m.unit}, less than {MIN_SHARE:.0%} of {m.reference:g}"
        for m in measurements
        if m.reference is not None and m.value < MIN_SHARE * m.reference
    ]
