"""Free memory of a device, and the largest batch that fits into it."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

# Share of the free memory that is used, as sizes differ from batch to batch.
SHARE = 0.8
# The files of a control group with its limit and use, and the entry of memory.stat for reclaimable cached files.
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def measure_free_bytes(device: torch.device) -> int:
    """Return the free memory of a device; for the host, within the control groups of this process."""
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *list_cgroup_free_bytes()])
    module = torch.get_device_module(device)
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def list_cgroup_free_bytes(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the limit less the use of the control group of this process and of each parent group with a limit.

    Args:
        groups: The file that lists the control groups of this process.
        root: Where control groups are mounted.
    """
    free = []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        names = VERSION_1 if controllers else VERSION_2
        folder = top / path.lstrip("/")
        folders = [folder, *(p for p in folder.parents if p.is_relative_to(top))]
        free += [n for f in folders if (n := _read_free_bytes(f, *names)) is not None]
    return free


def _read_free_bytes(folder: Path, limit: str, used: str, inactive: str) -> int | None:
    """Return the limit less the use of one group, or None if it has no limit or cannot be read."""
    try:
        maximum, current = (folder / limit).read_text().strip(), int((folder / used).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if maximum == "max" else max(0, int(maximum) - current + int(statistics.get(inactive, 0)))


def estimate_largest_batch(peak_bytes: int, structures: int, free: int) -> int:
    """Return how many structures fit into the free memory, at least 1.

    The estimate is proportional, which is safe: some of the memory of a small batch does not grow with it.

    Args:
        peak_bytes: Peak memory of a batch.
        structures: Structures in that batch.
        free: Free memory in bytes.
    """
    return max(1, int(SHARE * free * structures / max(1, peak_bytes)))
