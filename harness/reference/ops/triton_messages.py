"""The operators of messages.py on GPUs, which launch the kernels of triton_kernels.py.

This module needs Triton. No function waits for the device, so that CUDA graphs can capture all operators; for the same
reason, nothing checks whether receiver and sender are valid indices of atoms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, library
from triton.runtime import driver

from harness.reference.ops import triton_kernels as kernels

TYPES = (torch.float32, torch.float64)
# The numbers of edges and features in a tile.
EDGES = 8
MIN_FEATURES, MAX_FEATURES = 32, 128
# A program holds at most this many bytes of each part of the weights in registers; with twice as many, registers spill.
WEIGHT_BYTES = 2048
# For the gradient with respect to the weight: the minimum number of edges of a program, the maximum number of programs,
# and the number of elements (columns times features) of a tile.
MIN_CHUNK, MAX_CHUNKS = 64, 256
WEIGHT_TILE = 1024
OPTIONS = {"enable_fp_fusion": True}  # allow fused multiply-add even if Triton's default changes


def register(devices: Sequence[str] | str, lib: library.Library | None = None) -> None:
    """Register the three operators with torch for these device types, for the lifetime of `lib` or of the process."""
    for function in (messages, messages_backward, filter_backward):
        library.register_kernel(f"gfm_harness::{function.__name__}", devices, function, lib=lib)


def require_device() -> None:
    """Raise RuntimeError if Triton finds no device, or devices of several kinds."""
    driver.active.get_current_device()


class Sizes(NamedTuple):
    """The sizes that the kernels need: numbers of atoms, features F, columns C and parts P, as in messages.py."""

    atoms: int
    F: int
    C: int
    P: int

    def choose_block(self, limit: int = MAX_FEATURES) -> int:
        """Return the number of features in a tile: the largest power of two within the limit."""
        allowed = 1 << (max(limit, MIN_FEATURES).bit_length() - 1)
        return min(allowed, MAX_FEATURES, _round_up_to_power_of_two(self.F))

    def choose_atom_block(self, x: Tensor) -> int:
        """Return the number of features in a tile whose weights, in the data type of x, fit into registers."""
        return self.choose_block(WEIGHT_BYTES // (self.C * x.element_size()))


def messages(
    phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor, receiver: Tensor, sender: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sums of the messages that each atom receives; messages.py documents the shapes."""
    size = _check(phi, v, radial, unit, receiver, sender, weight)
    s, v_sum = phi.new_empty(size.atoms, size.F), phi.new_empty(3, size.atoms, size.F)
    block = size.choose_atom_block(phi)
    with torch.accelerator.device_index(phi.device.index):
        kernels.messages_kernel[size.atoms, -(-size.F // block)](
            s, v_sum, *_make_contiguous(phi, v, radial, weight, unit, sender), *sort_edges(receiver, size.atoms),
            **size._asdict(), EDGES=EDGES, BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return s, v_sum


def messages_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    receiver: Tensor, sender: Tensor, needs_nodes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients with respect to phi, v, radial and unit; without needs_nodes, the first two are empty."""
    size = _check(phi, v, radial, unit, receiver, sender, weight, grad_s, grad_v)
    phi_grad = phi.new_empty(phi.shape if needs_nodes else (0,))
    v_grad = phi.new_empty(v.shape if needs_nodes and v is not None else (0,))
    tensors = _make_contiguous(grad_s, grad_v, phi, v, radial, weight, unit, receiver, sender)
    shared = {**size._asdict(), "EDGES": EDGES, **OPTIONS}
    edges, block, atom_block = radial.shape[0], size.choose_block(), size.choose_atom_block(phi)
    partial = phi.new_empty(-(-size.F // block), edges, size.C + 3)
    with torch.accelerator.device_index(phi.device.index):
        if needs_nodes:
            kernels.node_gradients_kernel[size.atoms, -(-size.F // atom_block)](
                phi_grad, v_grad, *tensors[:-1], *sort_edges(sender, size.atoms), **shared, BLOCK=atom_block
            )
        kernels.edge_gradients_kernel[-(-edges // EDGES), partial.shape[0]](
            partial, *tensors, edges, **shared, BLOCK=block
        )
    radial_grad, unit_grad = partial.sum(0).split((size.C, 3), dim=1)
    return phi_grad, v_grad, radial_grad.contiguous(), unit_grad.contiguous()


def filter_backward(
    grad_s: Tensor, grad_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, unit: Tensor, receiver: Tensor,
    sender: Tensor,
) -> Tensor:  # fmt: skip
    """Return the gradient with respect to the weight [C, P F]: sums over chunks of edges, then the sum of these."""
    size = _check(phi, v, radial, unit, receiver, sender, None, grad_s, grad_v)
    edges = radial.shape[0]
    chunk = max(MIN_CHUNK, -(-edges // MAX_CHUNKS))
    columns = _round_up_to_power_of_two(size.C)
    block = size.choose_block(WEIGHT_TILE // columns)
    partial = phi.new_empty(-(-edges // chunk), size.C, size.P * size.F)
    with torch.accelerator.device_index(phi.device.index):
        kernels.weight_gradient_kernel[partial.shape[0], -(-size.F // block)](
            partial, *_make_contiguous(grad_s, grad_v, phi, v, radial, unit, receiver, sender), edges, chunk,
            **size._asdict(), COLUMNS=columns, BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return partial.sum(0)


def sort_edges(atom: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Sort edges by the atom [e] at one of their ends.

    Returns:
        The stable order of the edges [e], and the start of each atom's edges in this order [n + 1].
    """
    # a radix sort of 32-bit integers takes half as many passes as one of 64-bit integers
    ordered, order = torch.sort(atom.int(), stable=True)
    return order, torch.searchsorted(ordered, torch.arange(atoms + 1, dtype=torch.int32, device=atom.device))


def _check(
    phi: Tensor, v: Tensor | None, radial: Tensor, unit: Tensor, receiver: Tensor, sender: Tensor,
    weight: Tensor | None, *gradients: Tensor,
) -> Sizes:  # fmt: skip
    """Return the sizes; raise ValueError or TypeError for tensors whose shapes or data types do not match."""
    parts = 2 if v is None else 3
    (edges, columns), atoms, width = radial.shape, phi.shape[0], phi.shape[1] // parts
    checks = (
        (width > 0 and phi.shape[1] == parts * width, f"phi has {phi.shape[1]} columns"),
        (v is None or v.shape == (3, atoms, width), "v does not fit phi"),
        (unit.shape == (edges, 3), "unit is not [e, 3]"),
        (receiver.shape == sender.shape == (edges,), "edges do not match"),
        (weight is None or weight.shape == (columns, phi.shape[1]), "weight does not fit phi"),
        (all(x.shape[-2:] == (atoms, width) for x in gradients), "gradients do not fit phi"),
    )
    for is_valid, message in checks:
        if not is_valid:
            raise ValueError(message)
    tensors = [x for x in (phi, v, radial, unit, weight, *gradients) if x is not None]
    if phi.dtype not in TYPES or any(x.dtype != phi.dtype for x in tensors):
        raise TypeError(f"floating-point types differ, or are not among {TYPES}: {[x.dtype for x in tensors]}")
    return Sizes(atoms, width, columns, parts)


def _make_contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.contiguous() for x in tensors]


def _round_up_to_power_of_two(n: int) -> int:
    """Return the smallest power of two >= n."""
    return 1 << (n - 1).bit_length()
