"""The operators of messages.py on GPUs, which launch the kernels of triton_kernels.py.

This module needs Triton. Nothing in it waits for the device, so that CUDA graphs can capture all of it; for the same
reason it does not check whether receiver and sender are valid atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, library
from triton.runtime import driver

from harness.reference.ops import triton_kernels as kernels

TYPES = (torch.float32, torch.float64)
# edges and features of a tile
EDGES = 8
MIN_FEATURES, MAX_FEATURES = 32, 128
# bytes of each part of the weights that a program holds in registers; in double precision, twice as many spill
WEIGHT_BYTES = 2048
# gradient with respect to the weight: least edges of a program, most programs, columns x features of a tile
MIN_CHUNK, MAX_CHUNKS = 64, 256
WEIGHT_TILE = 1024
# fused multiply-add, whatever Triton's default becomes
OPTIONS = {"enable_fp_fusion": True}


def register(devices: Sequence[str] | str, lib: library.Library | None = None) -> None:
    """Register the three operators with torch for device types, for the lifetime of `lib` or of the process."""
    for function in (messages, messages_backward, filter_backward):
        library.register_kernel(f"gfm_harness::{function.__name__}", devices, function, lib=lib)


def require_device() -> None:
    """Raise RuntimeError if Triton sees no device, or devices of several kinds."""
    driver.active.get_current_device()


class Sizes(NamedTuple):
    """Sizes that the kernels take: numbers of atoms, features, columns and parts."""

    atoms: int
    F: int
    C: int
    P: int

    def block(self, limit: int = MAX_FEATURES) -> int:
        """Return the features of a tile: the largest power of two within the limit."""
        allowed = 1 << (max(limit, MIN_FEATURES).bit_length() - 1)
        return min(allowed, MAX_FEATURES, _power_of_two(self.F))

    def block_of_atoms(self, x: Tensor) -> int:
        """Return the features of a tile whose weights, of x's type, stay in registers."""
        return self.block(WEIGHT_BYTES // (self.C * x.element_size()))


def messages(
    phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor, receiver: Tensor, sender: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sums of messages to each atom; see the module messages for shapes."""
    size = _check(phi, v, radial, unit, receiver, sender, weight)
    s, v_sum = phi.new_empty(size.atoms, size.F), phi.new_empty(3, size.atoms, size.F)
    block = size.block_of_atoms(phi)
    with torch.accelerator.device_index(phi.device.index):
        kernels.messages_kernel[size.atoms, -(-size.F // block)](
            s, v_sum, *_contiguous(phi, v, radial, weight, unit, sender), *sort_edges(receiver, size.atoms),
            **size._asdict(), EDGES=EDGES, BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return s, v_sum


def messages_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    receiver: Tensor, sender: Tensor, needs_nodes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients with respect to phi and v, which are empty without `needs_nodes`, and to radial and unit."""
    size = _check(phi, v, radial, unit, receiver, sender, weight, grad_s, grad_v)
    by_phi = phi.new_empty(phi.shape if needs_nodes else (0,))
    by_v = phi.new_empty(v.shape if needs_nodes and v is not None else (0,))
    tensors = _contiguous(grad_s, grad_v, phi, v, radial, weight, unit, receiver, sender)
    shared = {**size._asdict(), "EDGES": EDGES, **OPTIONS}
    edges, block, atom_block = radial.shape[0], size.block(), size.block_of_atoms(phi)
    partial = phi.new_empty(-(-size.F // block), edges, size.C + 3)
    with torch.accelerator.device_index(phi.device.index):
        if needs_nodes:
            kernels.messages_of_nodes_kernel[size.atoms, -(-size.F // atom_block)](
                by_phi, by_v, *tensors[:-1], *sort_edges(sender, size.atoms), **shared, BLOCK=atom_block
            )
        kernels.messages_of_edges_kernel[-(-edges // EDGES), partial.shape[0]](
            partial, *tensors, edges, **shared, BLOCK=block
        )
    by_radial, by_unit = partial.sum(0).split((size.C, 3), dim=1)
    return by_phi, by_v, by_radial.contiguous(), by_unit.contiguous()


def filter_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, unit: Tensor, receiver: Tensor,
    sender: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient with respect to weight: sums over chunks of edges, then their sum."""
    size = _check(phi, v, radial, unit, receiver, sender, None, grad_s, grad_v)
    edges = radial.shape[0]
    chunk = max(MIN_CHUNK, -(-edges // MAX_CHUNKS))
    columns = _power_of_two(size.C)
    block = size.block(WEIGHT_TILE // columns)
    partial = phi.new_empty(-(-edges // chunk), size.C, size.P * size.F)
    with torch.accelerator.device_index(phi.device.index):
        kernels.messages_of_filter_kernel[partial.shape[0], -(-size.F // block)](
            partial, *_contiguous(grad_s, grad_v, phi, v, radial, unit, receiver, sender), edges, chunk,
            **size._asdict(), COLUMNS=columns, BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return partial.sum(0)


def sort_edges(end: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Sort edges by the atom at one of their ends [e]; return their order [e], stable per atom, and starts [n + 1]."""
    # half the bits take half the passes of a radix sort
    ordered, order = torch.sort(end.int(), stable=True)
    return order, torch.searchsorted(ordered, torch.arange(atoms + 1, dtype=torch.int32, device=end.device))


def _check(
    phi: Tensor, v: Tensor | None, radial: Tensor, unit: Tensor, receiver: Tensor, sender: Tensor,
    weight: Tensor | None, *to: Tensor,
) -> Sizes:  # fmt: skip
    """Return the sizes; raise ValueError or TypeError for tensors whose shapes or types do not agree."""
    parts = 2 if v is None else 3
    (edges, columns), atoms, width = radial.shape, phi.shape[0], phi.shape[1] // parts
    checks = (
        (width > 0 and phi.shape[1] == parts * width, f"phi has {phi.shape[1]} columns"),
        (v is None or v.shape == (3, atoms, width), "v does not fit phi"),
        (unit.shape == (edges, 3), "unit is not [e, 3]"),
        (receiver.shape == sender.shape == (edges,), "edges do not match"),
        (weight is None or weight.shape == (columns, phi.shape[1]), "weight does not fit phi"),
        (all(x.shape[-2:] == (atoms, width) for x in to), "gradients do not fit phi"),
    )
    for holds, message in checks:
        if not holds:
            raise ValueError(message)
    tensors = [x for x in (phi, v, radial, unit, weight, *to) if x is not None]
    if phi.dtype not in TYPES or any(x.dtype != phi.dtype for x in tensors):
        raise TypeError(f"floating-point types differ, or are not among {TYPES}: {[x.dtype for x in tensors]}")
    return Sizes(atoms, width, columns, parts)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.contiguous() for x in tensors]


def _power_of_two(n: int) -> int:
    """Return the smallest power of two >= n."""
    return 1 << (n - 1).bit_length()
