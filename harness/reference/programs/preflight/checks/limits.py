"""Limits of the operating system: open files, processes, memory and shared memory of each rank."""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome

# By name: the option of `ulimit`, the limit, and the smallest soft limit with which the programs run.
Limits = Mapping[str, tuple[str, int, int]]
MIB = 2**20
SHARED_MEMORY = Path("/dev/shm")
MIN_SHARED_MIB = 64
# Each rank opens some hundred files and has some hundred threads, and libraries reserve more addresses than they use.
LIMITS: Limits = {
    "open files": ("-n", resource.RLIMIT_NOFILE, 1024),
    "processes and threads": ("-u", resource.RLIMIT_NPROC, 1024),
    "bytes of addresses": ("-v", resource.RLIMIT_AS, 64 * 1024 * MIB),
}
# Network adapters access locked memory directly.
LOCKED_MEMORY: Limits = {"bytes of locked memory": ("-l", resource.RLIMIT_MEMLOCK, 64 * MIB)}
ADVICE = "Raise the limits with `ulimit` in `prepare` of the system's file, or ask the operators to raise them."


def check(context: CheckContext) -> Outcome:
    """Compare the limits of this rank with what the programs need."""
    limits = {**LIMITS, **(LOCKED_MEMORY if context.config.backend != "gloo" else {})}
    problems = find_low_limits({name: resource.getrlimit(kind)[0] for name, (_, kind, _) in limits.items()})
    free_mib = get_free_mib(SHARED_MEMORY)
    if free_mib is None or free_mib < MIN_SHARED_MIB:
        size = "does not exist" if free_mib is None else f"has {free_mib:,} MiB free"
        problems.append(f"{SHARED_MEMORY} {size}, expected at least {MIN_SHARED_MIB} MiB")
    expected = f"{', '.join(limits)}, and shared memory for every rank"
    return make_outcome(
        expected, f"no limit is too low; {free_mib or 0:,} MiB of shared memory are free", problems, ADVICE
    )


def find_low_limits(values: Mapping[str, int]) -> list[str]:
    """Return a message for each limit that is too low, by the names in LIMITS and LOCKED_MEMORY."""
    limits = {**LIMITS, **LOCKED_MEMORY}
    return [
        f"the limit is {value:,} {name} (ulimit {limits[name][0]}), expected at least {limits[name][2]:,}"
        for name, value in values.items()
        if value != resource.RLIM_INFINITY and value < limits[name][2]
    ]


def get_free_mib(folder: Path) -> int | None:
    """Return the free space of the file system of a folder; None if there is no folder."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize // MIB
