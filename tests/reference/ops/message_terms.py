"""Random inputs of messages, and a reference implementation of messages without fusion."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.reference.inference.prediction import Prediction
from harness.reference.ops.messages import MessageInputs

Formulation = Callable[[MessageInputs], tuple[Tensor, Tensor]]

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}


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
    """Return random inputs on random, unsorted edges; many atoms have no edge."""
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


def compute_values_and_gradients(outputs: tuple[Tensor, ...], terms: MessageInputs) -> list[Tensor]:
    directions = [torch.linspace(-1, 1, x.numel()).to(x).reshape(x.shape) for x in outputs]
    gradients = torch.autograd.grad(outputs, list_float_inputs(terms), directions)
    return [x.detach() for x in (*outputs, *gradients)]


def compute_first_and_second_derivatives(formulation: Formulation, terms: MessageInputs) -> list[Tensor]:
    """Return the gradients of a sum of cubes, and those of the sum of their cubes, for inputs that need them."""
    inputs = [x for x in list_float_inputs(terms) if x.requires_grad]
    s, v = formulation(terms)
    first = torch.autograd.grad((s**3).sum() + (v**3).sum(), inputs, create_graph=True)
    return [*first, *torch.autograd.grad(sum((x**3).sum() for x in first), inputs)]  # type: ignore[arg-type]


def assert_close(got: Prediction, expected: Prediction, tolerance: float) -> None:
    assert torch.allclose(got.energy, expected.energy, rtol=tolerance, atol=0)
    assert (got.forces - expected.forces).abs().max() <= tolerance * expected.forces.abs().max() + 1e-15
