"""Limits of the operating system: open files, processes, memory and shared memory of each rank."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome

KIB, MIB = 2**10, 2**20


class Limit(NamedTuple):
    """A limit of the operating system.

    Attributes:
        option: The option of `ulimit`.
        kind: The constant of the module `resource`.
        minimum: The smallest soft limit with which the programs run, in the unit of `ulimit`.
        unit: The unit of `ulimit`.
    """

    option: str
    kind: int
    minimum: int
    unit: int = 1


SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MIB = 64
# Each rank opens some hundred files and has some hundred threads, and libraries reserve more addresses than they use.
LIMITS = {
    "open files": Limit("-n", resource.RLIMIT_NOFILE, 1024),
    "processes and threads": Limit("-u", resource.RLIMIT_NPROC, 1024),
    "KiB of addresses": Limit("-v", resource.RLIMIT_AS, 64 * MIB, unit=KIB),
}
# Network adapters access locked memory directly.
LOCKED_MEMORY = {"KiB of locked memory": Limit("-l", resource.RLIMIT_MEMLOCK, 64 * KIB, unit=KIB)}
ADVICE = "Raise the limits with `ulimit` in `prepare` of the system's file, or ask the operators to raise them."


def check(context: CheckContext) -> Outcome:
    """Compare the limits of this rank with what the programs need."""
    limits = {**LIMITS, **(LOCKED_MEMORY if context.config.backend != "gloo" else {})}
    problems = find_low_limits({name: resource.getrlimit(limit.kind)[0] for name, limit in limits.items()})
    free_mib = get_free_mib(SHARED_MEMORY)
    if free_mib is None or free_mib < MIN_SHARED_MIB:
        size = "does not exist" if free_mib is None else f"has {free_mib:,} MiB free"
        problems.append(f"{SHARED_MEMORY} {size}, expected at least {MIN_SHARED_MIB} MiB")
    expected = f"{', '.join(limits)}, and shared memory for every rank"
    return make_outcome(
        expected, f"no limit is too low; {free_mib or 0:,} MiB of shared memory are free", problems, ADVICE
    )


def find_low_limits(values: Mapping[str, int]) -> list[str]:
    """Return a message for each limit that is too low.

    Args:
        values: The soft limits as the kernel returns them (memory in bytes), by the names in LIMITS and LOCKED_MEMORY.
    """
    limits = {**LIMITS, **LOCKED_MEMORY}
    return [
        f"the limit is {value // limits[name].unit:,} {name} (ulimit {limits[name].option}), expected at least"
        f" {limits[name].minimum:,}"
        for name, value in values.items()
        if value != resource.RLIM_INFINITY and value < limits[name].minimum * limits[name].unit
    ]


def get_free_mib(folder: Path) -> int | None:
    """Return the free space of the file system of a folder in MiB; None if there is no folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize // MIB
