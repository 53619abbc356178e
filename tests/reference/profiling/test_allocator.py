"""The two modes of glibc's allocator differ in their page faults; other allocators are refused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from harness.reference.profiling import memory
from harness.reference.profiling.memory import NotGlibc

SCRIPT = """
import resource, sys
import torch
from harness.reference.profiling import memory

blocks = []

def faults(mode):
    memory.set_allocator_mode(mode)
    # small blocks that stay allocated above large ones that are freed: the free memory is not at the end of the heap
    large = [torch.zeros(100 << 20, dtype=torch.uint8) for _ in range(3)]
    blocks.append([torch.zeros(1000, dtype=torch.uint8) for _ in range(100)])
    del large
    for k in range(30):
        if k == 25:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(40 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for mode in sys.argv[1].split():
    print(mode, faults(mode))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc exists only on Linux")
def test_tuned_mode_retains_memory_and_default_mode_returns_memory_in_any_order() -> None:
    for order in ("default tuned default tuned", "tuned default"):
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), order], capture_output=True, text=True, check=True
        )
        for line in result.stdout.splitlines():
            mode, faults = line.split()
            # with huge pages there are a few hundred faults instead of ten thousand
            assert int(faults) < 50 if mode == "tuned" else int(faults) > 50, result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="glibc exists only on Linux")
def test_default_mode_ignores_malloc_variables_of_the_job() -> None:
    environment = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_TOP_PAD_": "268435456"}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), "default"],
        capture_output=True, text=True, check=True, env=os.environ | environment,
    )  # fmt: skip
    assert int(result.stdout.split()[1]) > 50


GROWTH = """
import psutil, torch
from harness.reference.profiling import memory

blocks = []
for _ in range(30):
    for mode in ("default", "default", "tuned"):
        memory.set_allocator_mode(mode)
        large = [torch.ones(20 << 20, dtype=torch.uint8) for _ in range(5)]
        blocks.append([torch.zeros(1000, dtype=torch.uint8) for _ in range(100)])
        del large
print(psutil.Process().memory_info().rss >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc exists only on Linux")
def test_switching_modes_repeatedly_does_not_accumulate_memory() -> None:
    result = subprocess.run([sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 1000


PROFILE = """
import psutil, torch
from harness.reference.profiling import timing

def call():
    for _ in range(10):
        x = torch.ones(2_000_000, requires_grad=True)
        y = x
        for _ in range(20):
            y = 1.01 * y
            for _ in range(20):
                torch.ones(1).neg()
        torch.autograd.grad(y.sum(), x)

call()
before = psutil.Process().memory_info().rss
timing.measure_peak_bytes(call, torch.device("cpu"))
print(psutil.Process().memory_info().rss - before >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc exists only on Linux")
def test_the_profiler_does_not_prevent_the_reuse_of_freed_tensors() -> None:
    result = subprocess.run([sys.executable, "-c", PROFILE], capture_output=True, text=True, check=True)
    assert int(result.stdout) < 200


@pytest.mark.skipif(sys.platform != "linux", reason="glibc exists only on Linux")
def test_measuring_the_peak_leaves_malloc_variables_of_the_job_in_force() -> None:
    environment = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_TOP_PAD_": "268435456"}
    measure = 'timing.measure_peak_bytes(lambda: torch.zeros(40 << 20), torch.device("cpu"))'
    script = SCRIPT.replace("import memory", "import memory, timing").replace(
        "memory.set_allocator_mode(mode)", measure
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "tuned"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    assert int(result.stdout.split()[1]) < 50


def test_another_allocator_is_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "OTHER_ALLOCATORS", ("c",))  # libc itself is in every process
    memory._load_glibc.cache_clear()
    try:
        with pytest.raises(NotGlibc, match="tensors come from c, not from glibc's allocator"):
            memory.set_allocator_mode("tuned")
    finally:
        memory._load_glibc.cache_clear()
