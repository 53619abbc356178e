"""Time, memory and profile of a call, measured peak rates of a device, and the facts that a run observes."""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil, prod
from statistics import median
from typing import Any, TypeVar

import torch
from torch._C._autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg

from harness.protocol.records import Observed
from harness.reference.distributed.group import synchronize
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import products, segment_sums
from harness.reference.profiling.memory import separate_large_blocks

Call = Callable[[], object]
REPEATS = 7
# Calls are timed in bursts of this length, so that the overhead of the launch and the synchronization is small.
BURST_S = 0.005
COPY_BYTES = 256 * 2**20  # more than fits into caches


def get_device_name(device: torch.device) -> str | None:
    """Return the name of an accelerator, or None for the CPU."""
    return None if device.type == "cpu" else str(torch.get_device_module(device).get_device_name(device))


def time_call(call: Call, device: torch.device) -> float:
    """Return the wall time of one call, including the work of the device."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def measure_peak_bytes(call: Call, device: torch.device) -> int:
    """Return the largest increase of the memory of tensors during one call, in bytes."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
        call()
        return int(module.max_memory_allocated(device) - before)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with separate_large_blocks(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call()
    current = peak = 0
    assert profile.profiler is not None
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def measure_sustained_seconds(call: Call, device: torch.device) -> float:
    """Return the median time of a call in bursts of consecutive calls."""
    call()
    calls = ceil(BURST_S / max(time_call(call, device), 1e-6))

    def burst() -> None:
        for _ in range(calls):
            call()

    return median(time_call(burst, device) for _ in range(REPEATS)) / calls


def measure_product_gflop_per_s(device: torch.device, dtype: torch.dtype, sizes: tuple[int, ...]) -> float:
    """Measure the rate of matrix products in GFLOP/s, by torch or, if it is faster, by the operator for linear layers.

    Args:
        device: The device.
        dtype: The data type of the matrices.
        sizes: (m, k, n) for a product [m, k] x [k, n], or (b, m, k, n) for a batch of b such products.
    """
    *batch, m, k, n = sizes
    a, b = (torch.randn(*batch, *s, dtype=dtype, device=device) for s in ((m, k), (k, n)))
    out = torch.empty(*batch, m, n, dtype=dtype, device=device)
    calls: list[Call] = [lambda: torch.matmul(a, b, out=out)]
    if not batch and products.is_loaded(device):
        calls.append(lambda: torch.ops.gfm_harness.multiply_add(a, b, None))
    return 2 * prod(sizes) / min(measure_sustained_seconds(call, device) for call in calls) / 1e9


def measure_copy_gb_per_s(device: torch.device) -> float:
    """Measure the rate of a copy of 256 MiB in GB/s; bytes read and bytes written both count."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / measure_sustained_seconds(lambda: target.copy_(source), device) / 1e9


# Groups of operations, each with substrings of their names. An operation belongs to the first group with a substring of
# its name, or else to FRAMEWORK. Compiled kernels come first, as their names contain those of all fused operations.
GROUPS: tuple[tuple[str, str], ...] = (
    ("matrix products", "triton_tem_ multiply_add"),
    ("batched products (heads)", "own_heads"),
    ("element-wise and sums, compiled", "_fused_"),
    ("gather and scatter", "segment_sum product_sum gather group_rows pair_edges sum_triple_products"),
    ("messages", "gfm_harness messages_"),
    ("batched products (heads)", "bmm batched _bgemm"),
    ("matrix products", "::mm addmm gemm cutlass cublas Cijk xmma linear"),
    ("gather and scatter", "index scatter embedding"),
    ("copies and filling", "copy Copy fill_ Fill zero_ ::cat CatArray pad clone empty memcpy memset Memcpy Memset"),
    ("element-wise and sums", "mul add sub div sum sqrt sin cos silu norm elementwise reduce"),
)
FRAMEWORK = "framework"


def classify_operation(operation: str) -> str:
    """Return the group of an operation of a profile."""
    return next((group for group, parts in GROUPS if any(p in operation for p in parts.split())), FRAMEWORK)


def profile_call(call: Call, device: torch.device, rows: int = 12) -> dict[str, list[dict[str, object]]]:
    """Profile one call.

    Args:
        call: The call.
        device: The device that computes.
        rows: Number of operations to return.

    Returns:
        `groups` with the milliseconds and the fraction of each group of operations, and `rows` with the calls,
        milliseconds and fraction of each operation; the most costly come first.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type in ("cuda", "xpu"):
        activities.append(getattr(torch.profiler.ProfilerActivity, device.type.upper()))
    with torch.profiler.profile(activities=activities) as profile:
        call()
        synchronize(device)
    self_time = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    # on accelerators, an operation on the host reports the time of the kernels that it launches a second time
    events = [e for e in profile.key_averages() if device.type == "cpu" or _is_device_event(e)]
    costs = sorted(((e.key, e.count, getattr(e, self_time) / 1e3) for e in events), key=lambda e: -e[2])
    total = sum(ms for *_, ms in costs) or 1.0
    group_ms: dict[str, float] = {}
    for name, _, ms in costs:
        group_ms[classify_operation(name)] = group_ms.get(classify_operation(name), 0.0) + ms
    return {
        "groups": [
            {"group": group, "ms": round(ms, 3), "fraction": round(ms / total, 4)}
            for group, ms in sorted(group_ms.items(), key=lambda item: -item[1])
        ],
        "rows": [
            {"operation": name[:60], "calls": calls, "ms": round(ms, 3), "fraction": round(ms / total, 4)}
            for name, calls, ms in costs[:rows]
        ],
    }


def _is_device_event(event: FunctionEventAvg) -> bool:
    """Return whether the event is a kernel or a copy."""
    return event.device_type != DeviceType.CPU and not event.is_user_annotation


ObservedFact = TypeVar("ObservedFact", bound=Observed)


def observe(
    fact_type: type[ObservedFact], model: FoundationModel, device: torch.device | str, **others: Any
) -> ObservedFact:
    """Return the fact on the runtime: data types, device, threads, version and operators of torch, and further fields.

    Args:
        fact_type: The program's class of the fact.
        model: The model as it runs.
        device: The device on which the model runs.
        others: Further fields of the class.
    """
    common = {
        "parameters": sorted({str(p.dtype) for p in model.parameters()}),
        "device": str(device),
        "device_name": get_device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "default_sums_reason": segment_sums.find_default_reason(device),
    }
    return fact_type(**common | others)
