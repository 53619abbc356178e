"""Time and memory of one call, the highest rates of the machine, and the device and model as a run observes them."""

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

Call = Callable[[], object]
REPEATS = 7
# Calls are timed in bursts of this length, so that the cost of launching one and waiting for it does not count.
BURST_S = 0.005
COPY_BYTES = 256 * 2**20  # more than caches hold


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
    """Return the peak memory of tensors during one call in bytes, less that before the call."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        before = module.memory_allocated(device)
        call()
        return int(module.max_memory_allocated(device) - before)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
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
    """Measure the rate of a product [m, k] [k, n], or of b of them for sizes (b, m, k, n), in GFLOP/s."""
    *stack, m, k, n = sizes
    a, b = (torch.randn(*stack, *s, dtype=dtype, device=device) for s in ((m, k), (k, n)))
    out = torch.empty(*stack, m, n, dtype=dtype, device=device)
    return 2 * prod(sizes) / measure_sustained_seconds(lambda: torch.matmul(a, b, out=out), device) / 1e9


def measure_copy_gb_per_s(device: torch.device) -> float:
    """Measure the rate of a copy of 256 MiB in GB/s, counting read and write."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / measure_sustained_seconds(lambda: target.copy_(source), device) / 1e9


# Groups of operations with parts of their names; the first match counts, and the rest is the framework's.
# Names of compiled kernels contain those of all operations fused into them, and so come first.
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


def classify_operation(operation: str) -> str:
    """Return the group of an operation of a profile."""
    return next((group for group, parts in GROUPS if any(p in operation for p in parts.split())), FRAMEWORK)


def profile_call(call: Call, device: torch.device, rows: int = 12) -> dict[str, list[dict[str, object]]]:
    """Profile one call: return `groups` (group, ms, share) and `rows` (operation, calls, ms, share), most costly first.

    Args:
        call: The call.
        device: The device that computes.
        rows: Number of operations to return.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type in ("cuda", "xpu"):
        activities.append(getattr(torch.profiler.ProfilerActivity, device.type.upper()))
    with torch.profiler.profile(activities=activities) as profile:
        call()
        synchronize(device)
    self_time = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    # on accelerators the operation that launches a kernel reports its time too
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


Fact = TypeVar("Fact", bound=Observed)


def observe(kind: type[Fact], model: FoundationModel, device: torch.device | str, **others: Any) -> Fact:
    """Return the fact of a program: types of parameters, device, threads, version of torch, and further fields.

    Args:
        kind: The program's type of the fact.
        model: The model as it runs.
        device: Where it runs.
        others: Further fields of the type.
    """
    common = {
        "parameters": sorted({str(p.dtype) for p in model.parameters()}),
        "device": str(device),
        "device_name": get_device_name(torch.device(device)),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    return kind(**common | others)
