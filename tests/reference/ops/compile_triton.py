"""Compile the kernels of the fused messages for three kinds of GPUs, none of which has to be present.

The program prints one line for each combination of GPU, sizes and dtype, with the size of each kernel.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from harness.reference.ops import triton_messages

ATOMICS = re.compile(r"\b(atom|red)\.|_atomic_|\bds_add")
TARGETS = (
    (GPUTarget("cuda", 80, 32), "ptx", "cubin"),
    (GPUTarget("cuda", 90, 32), "ptx", "cubin"),
    (GPUTarget("hip", "gfx90a", 64), "amdgcn", "hsaco"),
)
# (atoms, edges, width, columns, parts): odd widths; two parts, without v; ones, which Triton treats as constants
SIZES = (
    ((10, 50, 337, 7, 3), torch.float32),
    ((10, 50, 337, 7, 3), torch.float64),
    ((10, 50, 128, 7, 2), torch.float32),
    ((1, 1, 1, 2, 3), torch.float32),
)


class AbsentGpuDriver:
    """A Triton driver of a GPU that is not present."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> Any:
        return self.target.arch

    def get_current_stream(self, _device: Any) -> int:
        return 0


def launch_all_kernels(n: int, e: int, width: int, columns: int, parts: int, dtype: torch.dtype) -> None:
    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    output_gradients = zeros(n, width), zeros(3, n, width)
    nodes = zeros(n, parts * width), zeros(3, n, width) if parts == 3 else None
    radial, weight, unit = zeros(e, columns), zeros(columns, parts * width), zeros(e, 3)
    ends = torch.zeros(e, dtype=torch.int64), torch.zeros(e, dtype=torch.int64)
    triton_messages.messages(*nodes, radial, weight, unit, *ends)
    triton_messages.messages_backward(*output_gradients, *nodes, radial, weight, unit, *ends, True)
    triton_messages.filter_backward(*output_gradients, *nodes, radial, unit, *ends)


def main() -> None:
    run = JITFunction.run
    compiled: list[Any] = []

    def compile_only(*arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        assert not warmup
        compiled.append(run(*arguments, grid=grid, warmup=True, **options))

    JITFunction.run = compile_only
    for target, assembly, binary in TARGETS:
        driver.set_active(AbsentGpuDriver(target))
        for sizes, dtype in SIZES:
            compiled.clear()
            launch_all_kernels(*sizes, dtype)
            for kernel in compiled:
                atomic = ATOMICS.search(kernel.asm[assembly])
                assert atomic is None, (kernel.name, atomic)
            print(target.arch, dtype, sizes, *(len(kernel.asm[binary]) for kernel in compiled))


if __name__ == "__main__":
    main()
