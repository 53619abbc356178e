"""Free memory, and how large a batch it holds."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

# Of what is free, this much is planned with: sizes differ from batch to batch.
SHARE = 0.8
CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_bytes(device: torch.device) -> int:
    """What can still be had on the device; of the host what the system or this process's control group leaves."""
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *left_by_groups()])
    free, _ = torch.get_device_module(device).mem_get_info(device)
    return int(free)


def left_by_groups(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limit less usage of the control group, where one is set."""
    left = []
    for names in CGROUPS:
        try:
            limit, used = ((root / name).read_text().strip() for name in names)
        except OSError:
            continue
        if limit != "max":
            left.append(max(0, int(limit) - int(used)))
    return left


def largest_batch(peak_bytes: int, structures: int, free: int) -> int:
    """How many structures fit, if so many took that peak; at least 1.

    In proportion, which is on the safe side: some of what a small batch takes does not grow with it.
    """
    return max(1, int(SHARE * free * structures / max(1, peak_bytes)))
