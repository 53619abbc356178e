"""Messages of PaiNN by their definition, with tensors of shape [edges, features], and random inputs of messages."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.reference.ops.messages import MessageInputs


def make_terms(
    atoms: int,
    edges: int,
    width: int,
    columns: int,
    *,
    with_v: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> MessageInputs:
    """Return random inputs on random, unsorted edges; many atoms have no edge.

    Args:
        atoms: Number of atoms.
        edges: Number of edges.
        width: Number of features.
        columns: Number of columns of `radial`.
        with_v: Whether there are vectors of atoms.
        dtype: Type of the inputs.
        device: The device of the inputs.
    """
    generator = torch.Generator().manual_seed(atoms + edges)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator).to(device).requires_grad_()

    receiver, sender = (
        torch.randint(max(1, (2 * atoms) // 3), (edges,), generator=generator).to(device) for _ in range(2)
    )
    n_parts = 3 if with_v else 2
    return MessageInputs(
        normal(atoms, n_parts * width),
        normal(3, atoms, width) if with_v else None,
        normal(edges, columns),
        normal(columns, n_parts * width),
        normal(edges, 3),
        receiver,
        sender,
    )


def list_float_inputs(terms: MessageInputs) -> list[Tensor]:
    """Return the inputs that are numbers, not indices."""
    return [x for x in terms if x is not None and x.is_floating_point()]


def compute_unfused_messages(terms: MessageInputs) -> tuple[Tensor, Tensor]:
    """Compute the messages by their definition, with tensors of shape [edges, features]."""
    filters = terms.radial @ terms.weight
    x = (filters * terms.phi[terms.sender]).split(filters.shape[1] // terms.parts, dim=1)
    to_v = x[1] * terms.unit.T.unsqueeze(-1)
    if terms.v is not None:
        to_v = to_v + x[2] * terms.v[:, terms.sender]
    atoms, width = terms.phi.shape[0], x[0].shape[1]
    return (
        x[0].new_zeros(atoms, width).index_add(0, terms.receiver, x[0]),
        x[0].new_zeros(3, atoms, width).index_add(1, terms.receiver, to_v),
    )
