"""glibc's allocator: its default settings, and settings for large tensors, switched while the process runs.

By default it returns a large freed block to the kernel, which clears every page of the next one; for tensors of edges
that can cost more than the arithmetic. With the tuned settings it retains freed blocks (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Literal

Mode = Literal["default", "tuned"]

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
MIB = 1 << 20
SETTINGS: dict[Mode, dict[int, int]] = {
    # the result of glibc's own adjustment once a block of 32 MiB or more has been freed
    "default": {TRIM_THRESHOLD: 64 * MIB, TOP_PAD: MIB // 8, MMAP_THRESHOLD: 32 * MIB, MMAP_MAX: 65536},
    # -1: nothing is ever returned to the kernel, and no block is mapped separately
    "tuned": {TRIM_THRESHOLD: -1, TOP_PAD: 256 * MIB, MMAP_MAX: 0},
}
OTHERS = ("jemalloc", "tcmalloc", "mimalloc", "hoard")


class NotGlibc(RuntimeError):
    """This process does not use glibc's allocator; the message says why."""


@functools.cache
def _glibc() -> Any:
    """Return the C library; raise NotGlibc if these settings would have no effect."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        maps = ""
    preloaded = next((o for o in OTHERS if f"lib{o}" in maps), None)
    if preloaded:
        raise NotGlibc(f"tensors come from {preloaded}, not from glibc's allocator")
    library = ctypes.CDLL(None)
    if not all(hasattr(library, name) for name in ("mallopt", "malloc_trim", "mallinfo2")):
        raise NotGlibc("no glibc of 2021 or later, whose allocator is meant")
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


_current: list[Mode] = []
_heap_fillers: list[int] = []
LARGEST, SMALLEST = 1024 * MIB, MIB


def set_mode(mode: Mode) -> bool:
    """Switch the allocator to a mode, as if it had never been in the other; return False if nothing changes.

    Mode "default" also releases, at every call, the free blocks that the heap has accumulated.

    Raises:
        NotGlibc: This process does not use glibc's allocator.
    """
    library = _glibc()
    if mode == "tuned" and _current == ["tuned"]:
        return False
    _current[:] = [mode]
    while _heap_fillers:
        library.free(_heap_fillers.pop())
    for name, value in SETTINGS[mode].items():
        library.mallopt(name, value)
    if mode == "default":
        library.malloc_trim(0)
        _fill_heap(library)
    return True


def _fill_heap(library: Any) -> None:
    """Occupy all large free blocks of the heap, so that none serves a request that should go to the kernel."""

    def measure() -> tuple[int, int]:
        info = library.mallinfo2()
        return info.arena, info.hblks

    size = LARGEST
    while size >= SMALLEST:
        before = measure()
        block = library.malloc(size)
        if block is not None and measure() == before:
            _heap_fillers.append(block)
        else:
            library.free(block)
            size //= 2
