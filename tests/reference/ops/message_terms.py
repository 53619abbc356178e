"""Derivatives of messages, and the tolerances with which tests compare them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.reference.inference.prediction import Prediction
from harness.reference.ops.messages import MessageInputs
from harness.reference.ops.unfused_messages import list_float_inputs

Formulation = Callable[[MessageInputs], tuple[Tensor, Tensor]]

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}


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
