"""Free memory, and how large a batch it holds."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

# Of what is free, this much is planned with: sizes differ from batch to batch.
SHARE = 0.8
# Where a control group of either version says its limit, its use, and what of that is cached files it can do without.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def free_bytes(device: torch.device) -> int:
    """What can still be had on the device; of the host what the system or this process's control groups leave."""
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *left_by_groups()])
    module = torch.get_device_module(device)
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def left_by_groups(own: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limit less use of this process's control group, and of each that this one is in, where a limit is set."""
    left = []
    for line in own.read_text().splitlines() if own.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        names = VERSION_1 if controllers else VERSION_2
        folder = top / path.lstrip("/")
        folders = [folder, *(p for p in folder.parents if p.is_relative_to(top))]
        left += [n for f in folders if (n := _left(f, *names)) is not None]
    return left


def _left(folder: Path, limit: str, used: str, inactive: str) -> int | None:
    """None where no limit is set, or none can be read."""
    try:
        most, now = (folder / limit).read_text().strip(), int((folder / used).read_text())
        told = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if most == "max" else max(0, int(most) - now + int(told.get(inactive, 0)))


def largest_batch(peak_bytes: int, structures: int, free: int) -> int:
    """How many structures fit, if so many took that peak; at least 1.

    In proportion, which is on the safe side: some of what a small batch takes does not grow with it.
    """
    return max(1, int(SHARE * free * structures / max(1, peak_bytes)))
