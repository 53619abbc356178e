"""Time, memory and arithmetic of one call, and what the machine could do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil, prod
from statistics import median

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

Call = Callable[[], object]
REPEATS = 7
# Calls follow each other for so long, for what it costs to launch one and wait for it is not the machine's rate.
BURST_S = 0.005
COPIED = 256 * 2**20  # bytes: more than caches hold


def device_name(device: torch.device) -> str | None:
    """What an accelerator calls itself."""
    return None if device.type == "cpu" else str(torch.get_device_module(device).get_device_name(device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished what was asked of it."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def seconds(call: Call, device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most memory that tensors allocated during one call held at once, above what was held before it."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
        call()
        return int(module.max_memory_allocated(device) - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def best_s(call: Call, device: torch.device) -> float:
    """Seconds of a call among others that follow each other closely."""
    call()
    calls = ceil(BURST_S / max(seconds(call, device), 1e-6))

    def burst() -> None:
        for _ in range(calls):
            call()

    return median(seconds(burst, device) for _ in range(REPEATS)) / calls


def product_gflop_per_s(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
    """Measured here and now: a product [m, k] [k, n], or b of them for sizes (b, m, k, n)."""
    *stack, m, k, n = sizes
    a, b = (torch.randn(*stack, *s, dtype=dtype, device=device) for s in ((m, k), (k, n)))
    out = torch.empty(*stack, m, n, dtype=dtype, device=device)
    return 2 * prod(sizes) / best_s(lambda: torch.matmul(a, b, out=out), device) / 1e9


def copy_gb_per_s(device: torch.device) -> float:
    """Measured here and now: a copy of 256 MiB, read and write counted."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / best_s(lambda: target.copy_(source), device) / 1e9


# A group, and what the names of its operations hold; the first that fits. What fits nowhere is the framework's own.
# Names of compiled kernels hold those of all that went into them, and so come first.
GROUPS: tuple[tuple[str, str], ...] = (
    ("matrix products", "triton_tem_"),
    ("element-wise and sums, compiled", "_fused_"),
    ("messages", "gfm_harness messages_"),
    ("batched products (heads)", "bmm batched _bgemm"),
    ("matrix products", "::mm addmm gemm cutlass cublas Cijk xmma linear"),
    ("gather and scatter", "index scatter gather embedding"),
    ("copies and filling", "copy Copy fill_ Fill zero_ ::cat CatArray pad clone empty memcpy memset Memcpy Memset"),
    ("element-wise and sums", "mul add sub div sum sqrt sin cos silu norm elementwise reduce"),
)
FRAMEWORK = "framework"


def group_of(operation: str) -> str:
    """What kind of work an operation of a profile is."""
    return next((group for group, words in GROUPS if any(w in operation for w in words.split())), FRAMEWORK)


def hot_spots(call: Call, device: torch.device, rows: int = 12) -> dict[str, list[dict[str, object]]]:
    """Where the time of one call goes: by group, and the operations with the most time of their own, in ms."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type in ("cuda", "xpu"):
        activities.append(getattr(torch.profiler.ProfilerActivity, device.type.upper()))
    with torch.profiler.profile(activities=activities) as profile:
        call()
        synchronize(device)
    own = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    # on accelerators a kernel's time is told once more of the operation that has launched it
    told = [e for e in profile.key_averages() if device.type == "cpu" or _of_device(e)]
    found = sorted(((e.key, e.count, getattr(e, own) / 1e3) for e in told), key=lambda e: -e[2])
    total = sum(ms for *_, ms in found) or 1.0
    of_group: dict[str, float] = {}
    for name, _, ms in found:
        of_group[group_of(name)] = of_group.get(group_of(name), 0.0) + ms
    return {
        "groups": [
            {"group": group, "ms": round(ms, 3), "share": round(ms / total, 4)}
            for group, ms in sorted(of_group.items(), key=lambda item: -item[1])
        ],
        "rows": [
            {"operation": name[:60], "calls": calls, "ms": round(ms, 3), "share": round(ms / total, 4)}
            for name, calls, ms in found[:rows]
        ],
    }


def _of_device(event: FunctionEventAvg) -> bool:
    """Whether the row is of a kernel or a copy itself."""
    return event.device_type != DeviceType.CPU and not event.is_user_annotation
