"""The free memory of a device, the largest batch that fits into it, and the settings of glibc's memory allocator.

By default the allocator returns a large freed block to the kernel, which clears every page of the next block; for
tensors with one row per edge, that can cost more than the arithmetic. With the tuned settings, the allocator retains
freed blocks (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import torch

AllocatorMode = Literal["default", "tuned"]

# The options of mallopt, as malloc.h numbers them; the first three take bytes, the last a number of blocks.
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
MIB = 1 << 20
ALLOCATOR_SETTINGS: dict[AllocatorMode, dict[int, int]] = {
    # glibc adjusts its thresholds to these values once a block of 32 MiB or more has been freed
    "default": {TRIM_THRESHOLD: 64 * MIB, TOP_PAD: MIB // 8, MMAP_THRESHOLD: 32 * MIB, MMAP_MAX: 65536},
    # no memory is ever returned to the kernel (-1), and no block is mapped separately (0)
    "tuned": {TRIM_THRESHOLD: -1, TOP_PAD: 256 * MIB, MMAP_MAX: 0},
}
# The environment variables that set these options at the start of a process.
MALLOC_VARIABLES = {
    TRIM_THRESHOLD: "MALLOC_TRIM_THRESHOLD_",
    TOP_PAD: "MALLOC_TOP_PAD_",
    MMAP_THRESHOLD: "MALLOC_MMAP_THRESHOLD_",
    MMAP_MAX: "MALLOC_MMAP_MAX_",
}
LARGEST_VALUE = 2**31 - 1  # mallopt takes a C int
# every block of 1 MiB or more is mapped separately
SEPARATE_BLOCKS = {MMAP_THRESHOLD: MIB, MMAP_MAX: 65536}
OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc", "hoard")


class NotGlibc(RuntimeError):
    """This process does not use glibc's allocator; the message says why."""


@functools.cache
def _load_glibc() -> Any:
    """Return the C library; raise NotGlibc if these settings would have no effect."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        maps = ""
    preloaded = next((o for o in OTHER_ALLOCATORS if f"lib{o}" in maps), None)
    if preloaded:
        raise NotGlibc(f"tensors come from {preloaded}, not from glibc's allocator")
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("mallopt", "malloc_trim", "mallinfo2")):
        raise NotGlibc("the C library is not glibc 2.33 or later")
    library.mallinfo2.restype = _Info
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    return library


class _Info(ctypes.Structure):
    """The struct mallinfo2 of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    )


_current: list[AllocatorMode] = []  # the mode of this process; empty until one is set
_heap_fillers: list[int] = []  # addresses of the blocks that occupy the heap in the mode "default"
LARGEST_BLOCK, SMALLEST_BLOCK = 1024 * MIB, MIB  # sizes of these blocks in bytes


def set_allocator_mode(mode: AllocatorMode) -> bool:
    """Switch the allocator to a mode, so that it behaves as if it had never been in the other one.

    Every call with the mode "default" also returns the free blocks of the heap to the kernel, as far as possible.

    Returns:
        False if the mode is "tuned" and was set already, so that nothing is done; otherwise True.

    Raises:
        NotGlibc: This process does not use glibc's allocator.
    """
    library = _load_glibc()
    if mode == "tuned" and _current == ["tuned"]:
        return False
    _current[:] = [mode]
    while _heap_fillers:
        library.free(_heap_fillers.pop())
    _set_options(library, ALLOCATOR_SETTINGS[mode])
    if mode == "default":
        library.malloc_trim(0)
        _fill_heap(library)
    return True


@contextmanager
def separate_large_blocks() -> Iterator[None]:
    """Give every block of 1 MiB or more a mapping of its own within the context.

    The records of the profiler are small blocks, which would otherwise fill freed large ones: each tensor would then
    need new memory.
    """
    try:
        library = _load_glibc()
    except NotGlibc:
        yield
        return
    _set_options(library, SEPARATE_BLOCKS)
    try:
        yield
    finally:
        _set_options(library, _get_current_settings())


def _set_options(library: Any, options: Mapping[int, int]) -> None:
    for name, value in options.items():
        library.mallopt(name, value)


def _get_current_settings() -> dict[int, int]:
    """Return the settings of the current mode, or else those with which the process started."""
    if _current:
        return ALLOCATOR_SETTINGS[_current[0]]
    variables = {option: os.environ.get(name, "") for option, name in MALLOC_VARIABLES.items()}
    # a variable may have a larger value than mallopt accepts
    numbers = {option: int(text) for option, text in variables.items() if re.fullmatch(r"-?\d+", text)}
    settings = {option: min(number, LARGEST_VALUE) for option, number in numbers.items()}
    return ALLOCATOR_SETTINGS["default"] | settings


def _fill_heap(library: Any) -> None:
    """Occupy all large free blocks of the heap, so that large requests go to the kernel as in a new process."""

    def measure() -> tuple[int, int]:
        """Return the bytes of the heap and the number of separate mappings; a reused free block changes neither."""
        info = library.mallinfo2()
        return info.arena, info.hblks

    size = LARGEST_BLOCK
    while size >= SMALLEST_BLOCK:
        before = measure()
        block = library.malloc(size)
        if block is not None and measure() == before:
            _heap_fillers.append(block)
        else:
            library.free(block)
            size //= 2


# The share of the free memory that a batch may use; the rest is a reserve, as batches differ in size.
USABLE_SHARE = 0.8
# The files of a control group with its limit and use, and the entry of memory.stat for reclaimable cached files.
CGROUP_V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
CGROUP_V2_FILES = ("memory.max", "memory.current", "inactive_file")


def measure_free_bytes(device: torch.device) -> int:
    """Return the free memory of a device in bytes; on the host, the limits of control groups count too."""
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *list_cgroup_free_bytes()])
    module = torch.get_device_module(device)
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


def list_cgroup_free_bytes(groups: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return the free bytes (limit minus use) of this process's control group and of each parent with a limit.

    Args:
        groups: The file that lists the control groups of this process.
        root: The folder in which control groups are mounted.
    """
    free = []
    for line in groups.read_text().splitlines() if groups.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "memory" if controllers else root
        names = CGROUP_V1_FILES if controllers else CGROUP_V2_FILES
        folder = top / path.lstrip("/")
        folders = [folder, *(p for p in folder.parents if p.is_relative_to(top))]
        free += [n for f in folders if (n := _read_free_bytes(f, *names)) is not None]
    return free


def _read_free_bytes(folder: Path, limit: str, used: str, inactive: str) -> int | None:
    """Return the free bytes of one control group, or None if the group has no limit or cannot be read."""
    try:
        maximum, current = (folder / limit).read_text().strip(), int((folder / used).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    return None if maximum == "max" else max(0, int(maximum) - current + int(statistics.get(inactive, 0)))


def estimate_largest_batch(peak_bytes: int, structures: int, free: int) -> int:
    """Return how many structures fit into the free memory, at least 1.

    The estimate assumes that memory is proportional to the size of the batch. It is conservative, as a part of the
    memory does not depend on the size.

    Args:
        peak_bytes: Peak memory of a batch in bytes.
        structures: Number of structures in that batch.
        free: Free memory in bytes.
    """
    return max(1, int(USABLE_SHARE * free * structures / max(1, peak_bytes)))
