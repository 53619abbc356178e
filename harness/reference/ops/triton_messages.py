"""The operators of messages.py on GPUs: the kernels of triton_kernels.py, launched.

Needs Triton. Nothing here waits for the device, so that CUDA graphs can hold it all; for the same reason nobody looks
whether receiver and sender name atoms that there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, library
from triton.runtime import driver

from harness.reference.ops import triton_kernels as kernels

TYPES = (torch.float32, torch.float64)
# of a tile
EDGES = 8
LEAST_FEATURES, MOST_FEATURES = 32, 128
# of one part of the weights, which a program over an atom's edges keeps in registers; twice as many spill in double
WEIGHT_BYTES = 2048
# edges that a program sums up by weight, in at most so many programs; columns x features of each of its parts
LEAST_CHUNK, MOST_CHUNKS = 64, 256
SUMMED = 1024
# multiply-add in one, whatever Triton's default becomes
OPTIONS = {"enable_fp_fusion": True}


def register(devices: Sequence[str] | str, holder: library.Library | None = None) -> None:
    """Give the three operators to torch for devices of these types, as long as the holder lives, or for good."""
    for function in (messages, messages_backward, filter_backward):
        library.register_kernel(f"gfm_harness::{function.__name__}", devices, function, lib=holder)


def find_device() -> None:
    """Raise RuntimeError if Triton sees no device here, or several kinds."""
    driver.active.get_current_device()


class Sizes(NamedTuple):
    """What the kernels are told of their tensors: numbers of atoms, features, columns and parts."""

    atoms: int
    F: int
    C: int
    P: int

    def block(self, most: int = MOST_FEATURES) -> int:
        """Features of a tile: the most that is allowed, a power of two."""
        allowed = 1 << (max(most, LEAST_FEATURES).bit_length() - 1)
        return min(allowed, MOST_FEATURES, _power_of_two(self.F))

    def block_of_atoms(self, x: Tensor) -> int:
        """Features of a tile where weights of x's type stay in registers."""
        return self.block(WEIGHT_BYTES // (self.C * x.element_size()))


def messages(
    phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor, receiver: Tensor, sender: Tensor
) -> tuple[Tensor, Tensor]:
    """What each atom hears, as of the module messages."""
    size = _check(phi, v, radial, unit, receiver, sender, weight)
    s, to_v = phi.new_empty(size.atoms, size.F), phi.new_empty(3, size.atoms, size.F)
    block = size.block_of_atoms(phi)
    with torch.accelerator.device_index(phi.device.index):
        kernels.messages_kernel[size.atoms, -(-size.F // block)](
            s, to_v, *_contiguous(phi, v, radial, weight, unit, sender), *rows(receiver, size.atoms),
            **size._asdict(), EDGES=EDGES, BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return s, to_v


def messages_backward(
    to_s: Tensor, to_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, weight: Tensor, unit: Tensor,
    receiver: Tensor, sender: Tensor, nodes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients by phi and v, which are empty without nodes, and by radial and unit."""
    size = _check(phi, v, radial, unit, receiver, sender, weight, to_s, to_v)
    by_phi = phi.new_empty(phi.shape if nodes else (0,))
    by_v = phi.new_empty(v.shape if nodes and v is not None else (0,))
    given = _contiguous(to_s, to_v, phi, v, radial, weight, unit, receiver, sender)
    shared = {**size._asdict(), "EDGES": EDGES, **OPTIONS}
    edges, block, of_atoms = radial.shape[0], size.block(), size.block_of_atoms(phi)
    partial = phi.new_empty(-(-size.F // block), edges, size.C + 3)
    with torch.accelerator.device_index(phi.device.index):
        if nodes:
            kernels.messages_of_nodes_kernel[size.atoms, -(-size.F // of_atoms)](
                by_phi, by_v, *given[:-1], *rows(sender, size.atoms), **shared, BLOCK=of_atoms
            )
        kernels.messages_of_edges_kernel[-(-edges // EDGES), partial.shape[0]](
            partial, *given, edges, **shared, BLOCK=block
        )
    by_radial, by_unit = partial.sum(0).split((size.C, 3), dim=1)
    return by_phi, by_v, by_radial.contiguous(), by_unit.contiguous()


def filter_backward(
    to_s: Tensor, to_v: Tensor, phi: Tensor, v: Tensor | None, radial: Tensor, unit: Tensor, receiver: Tensor,
    sender: Tensor,
) -> Tensor:  # fmt: skip
    """The gradient by weight: sums of chunks of edges, then their sum."""
    size = _check(phi, v, radial, unit, receiver, sender, None, to_s, to_v)
    edges = radial.shape[0]
    chunk = max(LEAST_CHUNK, -(-edges // MOST_CHUNKS))
    columns = _power_of_two(size.C)
    block = size.block(SUMMED // columns)
    partial = phi.new_empty(-(-edges // chunk), size.C, size.P * size.F)
    with torch.accelerator.device_index(phi.device.index):
        kernels.messages_of_filter_kernel[partial.shape[0], -(-size.F // block)](
            partial, *_contiguous(to_s, to_v, phi, v, radial, unit, receiver, sender), edges, chunk,
            **size._asdict(), COLUMNS=columns, BLOCK=block, **OPTIONS,
        )  # fmt: skip
    return partial.sum(0)


def rows(end: Tensor, atoms: int) -> tuple[Tensor, Tensor]:
    """Edges by the atom at one of their ends [e] -> order [e], as given for each atom, and its starts [n + 1]."""
    # half as many bits, half as many passes of a radix sort
    ordered, order = torch.sort(end.int(), stable=True)
    return order, torch.searchsorted(ordered, torch.arange(atoms + 1, dtype=torch.int32, device=end.device))


def _check(
    phi: Tensor, v: Tensor | None, radial: Tensor, unit: Tensor, receiver: Tensor, sender: Tensor,
    weight: Tensor | None, *to: Tensor,
) -> Sizes:  # fmt: skip
    """Raise ValueError or TypeError for tensors that do not fit each other."""
    parts = 2 if v is None else 3
    (edges, columns), atoms, width = radial.shape, phi.shape[0], phi.shape[1] // parts
    wanted = (
        (width > 0 and phi.shape[1] == parts * width, f"phi has {phi.shape[1]} columns"),
        (v is None or v.shape == (3, atoms, width), "v fits no phi"),
        (unit.shape == (edges, 3), "unit is not [e, 3]"),
        (receiver.shape == sender.shape == (edges,), "edges do not match"),
        (weight is None or weight.shape == (columns, phi.shape[1]), "weight fits no phi"),
        (all(x.shape[-2:] == (atoms, width) for x in to), "gradients fit no phi"),
    )
    for holds, otherwise in wanted:
        if not holds:
            raise ValueError(otherwise)
    given = [x for x in (phi, v, radial, unit, weight, *to) if x is not None]
    if phi.dtype not in TYPES or any(x.dtype != phi.dtype for x in given):
        raise TypeError(f"floating-point types differ, or are none of {TYPES}: {[x.dtype for x in given]}")
    return Sizes(atoms, width, columns, parts)


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [x if x is None else x.contiguous() for x in tensors]


def _power_of_two(n: int) -> int:
    """The least one that is not below n."""
    return 1 << (n - 1).bit_length()
