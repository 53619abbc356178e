"""Kernels of a compiled graph are in few libraries, and have the results and the names that they have in many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._inductor.async_compile import AsyncCompile, get_compile_threads
from torch._inductor.utils import fresh_cache

from harness.reference.ops.kernel_libraries import KernelLibrary, join_kernels

pytestmark = pytest.mark.slow
WEIGHT = torch.linspace(-1.0, 1.0, 64, dtype=torch.float64).reshape(8, 8)


@pytest.fixture
def kernel_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Return the empty folder of Inductor's caches while kernels are joined."""
    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", AsyncCompile.cpp_pybinding)
    join_kernels()
    torch.compiler.reset()
    with fresh_cache(dir=str(tmp_path)):
        yield tmp_path


def evaluate(x: Tensor) -> Tensor:
    """Alternate products, which are no kernels, with functions of elements, each of which is a kernel."""
    for shift in (1.0, 2.0, 3.0):
        x = torch.sin((x + shift) @ WEIGHT)
    return x


def list_kernel_libraries(folder: Path) -> list[Path]:
    """Return the libraries of kernels, each next to its source."""
    return [path for path in folder.rglob("*.so") if b"kernel_0" in path.read_bytes()]


def test_kernels_of_a_graph_share_libraries(kernel_cache: Path) -> None:
    x = torch.linspace(0.0, 1.0, 40, dtype=torch.float64).reshape(5, 8)
    compiled = torch.compile(evaluate, fullgraph=True)
    assert torch.allclose(compiled(x), evaluate(x), rtol=1e-12)
    libraries = list_kernel_libraries(kernel_cache)
    assert 0 < len(libraries) <= get_compile_threads()
    torch.compiler.reset()  # the next call loads the libraries that exist
    assert torch.allclose(torch.compile(evaluate, fullgraph=True)(x), evaluate(x), rtol=1e-12)
    assert list_kernel_libraries(kernel_cache) == libraries


@torch._inductor.config.patch("compile_threads", 1)
def test_one_thread_builds_a_library_for_each_kernel(kernel_cache: Path) -> None:
    x = torch.linspace(0.0, 1.0, 40, dtype=torch.float64).reshape(5, 8)
    assert torch.allclose(torch.compile(evaluate, fullgraph=True)(x), evaluate(x), rtol=1e-12)


@torch._inductor.config.patch("cpp.enable_kernel_profile", True)
def test_profiles_name_each_kernel(kernel_cache: Path) -> None:
    x = torch.ones(5, 8, dtype=torch.float64)
    compiled = torch.compile(evaluate, fullgraph=True)
    compiled(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        compiled(x)
    names = {event.key for event in profile.key_averages() if "cpp_fused" in event.key}
    assert len(names) >= 3


def test_kernels_that_cannot_share_a_library_are_built_alone(kernel_cache: Path) -> None:
    """A macro of one kernel is a name in the other."""
    compiler = AsyncCompile()
    define = '#define kernel_constant 1\nextern "C" void kernel(double* x) { *x = kernel_constant; }'
    use = 'extern "C" void kernel(double* x) { double kernel_constant = 2; *x = kernel_constant; }'
    with torch._inductor.config.patch("compile_threads", 2):
        futures = [compiler.cpp_pybinding(["double*"], source) for source in (define, define, use, use)]
        x = torch.zeros(1, dtype=torch.float64)
        for future, value in zip(futures, (1, 1, 2, 2), strict=True):
            future.result()(x)
            assert x.item() == value


def test_source_that_the_compiler_rejects_is_an_error(kernel_cache: Path) -> None:
    with pytest.raises(Exception, match="no_such_type"):
        KernelLibrary.build([(["double*"], 'extern "C" void kernel(double* x) { no_such_type y; }')])()
