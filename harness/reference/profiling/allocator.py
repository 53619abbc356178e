"""glibc's allocator: as it is by itself, and as it serves large tensors better; switched while the process runs.

By itself it hands a large freed block back to the kernel, which clears every page of the next one anew; on tensors of
edges that can cost more than the arithmetic. Tuned it keeps what it once had (mallopt(3)).
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any, Literal

Mode = Literal["own", "tuned"]

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD, MMAP_MAX = -1, -2, -3, -4
MIB = 1 << 20
SETTINGS: dict[Mode, dict[int, int]] = {
    # what glibc's own adjustment ends up with once a block of 32 MiB or more has been freed
    "own": {TRIM_THRESHOLD: 64 * MIB, TOP_PAD: MIB // 8, MMAP_THRESHOLD: 32 * MIB, MMAP_MAX: 65536},
    # -1: nothing is ever handed back; no block comes from the kernel alone
    "tuned": {TRIM_THRESHOLD: -1, TOP_PAD: 256 * MIB, MMAP_MAX: 0},
}
OTHERS = ("jemalloc", "tcmalloc", "mimalloc", "hoard")


class NotGlibc(RuntimeError):
    """This process has another allocator; the message names it."""


@functools.cache
def _glibc() -> Any:
    """The C library; raises NotGlibc where these settings would change nothing."""
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
    """struct mallinfo2."""

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


_now: list[Mode] = []
_stoppers: list[int] = []
LARGEST, SMALLEST = 1024 * MIB, MIB


def use(mode: Mode) -> bool:
    """Let the allocator work that way from now on, as if it had never worked the other way; False if it does already.

    "own" also forgets what the heap has come to hold since, each time. Raises NotGlibc.
    """
    library = _glibc()
    if mode == "tuned" and _now == ["tuned"]:
        return False
    _now[:] = [mode]
    while _stoppers:
        library.free(_stoppers.pop())
    for name, value in SETTINGS[mode].items():
        library.mallopt(name, value)
    if mode == "own":
        library.malloc_trim(0)
        _stop_holes(library)
    return True


def _stop_holes(library: Any) -> None:
    """Take all large free blocks of the heap, so that none serves what would have to come from the kernel."""

    def held() -> tuple[int, int]:
        info = library.mallinfo2()
        return info.arena, info.hblks

    size = LARGEST
    while size >= SMALLEST:
        before = held()
        block = library.malloc(size)
        if block is not None and held() == before:
            _stoppers.append(block)
        else:
            library.free(block)
            size //= 2
