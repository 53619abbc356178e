"""Time, memory and arithmetic of one call, and what the machine could do at best."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

Call = Callable[[], object]


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Call, device: torch.device) -> float:
    """Wall time of one call, the device's work included."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def peak_bytes(call: Call, device: torch.device) -> int:
    """Most memory that tensors allocated during one call held at once, above what was held before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def matrix_flops(call: Call) -> int:
    """Floating-point operations of the matrix products in one uncompiled call (2 per multiply-add)."""
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def ceilings(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """Measured here and now: a 1,024-square matrix product in GFLOP/s, and a 64 MB copy in GB/s (read + write)."""
    a = torch.randn(1024, 1024, dtype=dtype, device=device)
    out = torch.empty_like(a)
    source = torch.zeros(64 * 2**20 // a.element_size(), dtype=dtype, device=device)
    target = torch.zeros_like(source)
    product = median(seconds(lambda: torch.mm(a, a, out=out), device) for _ in range(7))
    copy = median(seconds(lambda: target.copy_(source), device) for _ in range(7))
    return {
        "matrix_product_gflop_per_s": 2 * 1024**3 / product / 1e9,
        "copy_gb_per_s": 2 * source.nbytes / copy / 1e9,
    }


def hot_spots(call: Call, device: torch.device, rows: int = 12) -> list[dict[str, object]]:
    """Where the time of one call goes: the operations with the most time of their own, in ms."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        call()
        synchronize(device)
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    averages = sorted(profile.key_averages(), key=lambda e: -getattr(e, own))
    total = sum(getattr(e, own) for e in averages)
    return [
        {
            "operation": e.key[:60],
            "calls": e.count,
            "ms": round(getattr(e, own) / 1e3, 3),
            "share": round(getattr(e, own) / total, 4) if total else 0.0,
        }
        for e in averages[:rows]
    ]
