"""Fused kernels: each derivative in each precision, compared with the plain formulation in FP64, and timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.preflight import CalculationResult
from harness.reference.data.batch import Batch, build_batch
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.inference.precision import find_precision
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages
from harness.reference.ops.messages import MessageInputs
from harness.reference.ops.unfused_messages import compute_unfused_messages, list_float_inputs, make_terms
from harness.reference.profiling import timing
from harness.reference.programs.preflight.calculations import (
    Budget,
    choose_sizes,
    compute_error,
    judge_calculations,
    measure_seconds,
    try_calculation,
)
from harness.reference.programs.preflight.check import CheckContext, Outcome
from harness.reference.programs.preflight.checks.devices import open_device
from harness.reference.training.loss import predict_own_head

DERIVATIVES = ("forward", "backward", "double backward")
ATOMS_PER_STRUCTURE, NEIGHBOURS = 50, 20
COLUMNS = 7  # of the radial functions
# The tolerances of one operator, and those of whole models, whose errors may also be PLAIN_FACTOR times those of the
# plain formulation in the same precision.
TOLERANCES = {"fp64": 1e-11, "fp32": 1e-4}
MODEL_TOLERANCES = {"fp64": 1e-8, "fp32": 1e-4, "bf16": 0.0, "tf32": 0.0}
PLAIN_FACTOR = 4.0
EXPECTED = "the fused kernels agree with the plain formulation in every precision and with all derivatives"
ADVICE = "Use `message_backend: unfused` on this system, and report the table of calculations."
# A function that returns the result of a derivative, by its number in DERIVATIVES.
Derive = Callable[[int], list[Tensor]]


@dataclass(frozen=True)
class Formulations:
    """One calculation in the plain formulation in FP64, and in both formulations in the precision that is checked."""

    exact: Derive
    plain: Derive
    fused: Derive


def check(context: CheckContext) -> Outcome:
    """Compare the operators alone, then models that use them."""
    device = open_device(context)
    messages.load(device)
    budget, sizes = Budget(context.config.time_limit_s), choose_sizes(context.config, device)
    results: list[CalculationResult] = []
    for width in sizes.widths:
        for with_v in (True, False):
            for precision, tolerance in TOLERANCES.items():
                formulations = formulate_operators(width, sizes.structures, device, precision, with_v=with_v)
                name = f"messages {'with' if with_v else 'without'} vectors"
                results += compare(
                    formulations, name, tolerance, precision=precision, width=width, device=device,
                    budget=budget,
                )  # fmt: skip
    for backbone in messages.BACKBONES:
        for precision, tolerance in MODEL_TOLERANCES.items():
            if precision != "tf32" or device.type == "cuda":
                width = min(sizes.widths)
                formulations = formulate_model(backbone, width, sizes.structures, device, precision)
                with set_matmul_precision(precision):
                    results += compare(
                        formulations, f"{backbone} model", tolerance, PLAIN_FACTOR,
                        precision=precision, width=width, device=device, budget=budget,
                    )  # fmt: skip
    return judge_calculations(EXPECTED, results, ADVICE)


def compare(
    formulations: Formulations,
    name: str,
    tolerance: float,
    plain_factor: float = 0.0,
    *,
    precision: str,
    width: int,
    device: torch.device,
    budget: Budget,
) -> Iterator[CalculationResult]:
    """Yield the result of each derivative.

    Its error may be as large as the tolerance, or as `plain_factor` times the error of the plain formulation.
    """
    for order, derivative in enumerate(DERIVATIVES):
        result = CalculationResult(
            calculation=f"{name}, {derivative}", formulation="fused", precision=precision, width=width
        )

        def calculate(result: CalculationResult, order: int = order) -> None:
            expected = formulations.exact(order)
            result.error = compute_error(formulations.fused(order), expected)
            plain_error = compute_error(formulations.plain(order), expected) or 0.0
            result.tolerance = max(tolerance, plain_factor * plain_error)
            result.duration_s = measure_seconds(lambda: formulations.fused(order), device)
            result.plain_s = measure_seconds(lambda: formulations.plain(order), device)
            result.peak_bytes = timing.measure_peak_bytes(lambda: formulations.fused(order), device)

        try_calculation(budget, result, calculate)
        yield result


def formulate_operators(
    width: int, structures: int, device: torch.device, precision: str, *, with_v: bool
) -> Formulations:
    """Return the formulations of messages on random edges, with or without vectors of atoms."""
    atoms = ATOMS_PER_STRUCTURE * structures
    exact = make_terms(atoms, NEIGHBOURS * atoms, width, COLUMNS, with_v=with_v, device=str(device))
    dtype = find_precision(precision).dtype
    terms = MessageInputs._make(
        x.detach().to(dtype).requires_grad_() if x is not None and x.is_floating_point() else x for x in exact
    )
    return Formulations(
        exact=lambda order: differentiate(compute_unfused_messages(exact), exact, order),
        plain=lambda order: differentiate(compute_unfused_messages(terms), terms, order),
        fused=lambda order: differentiate(messages.messages(terms), terms, order),
    )


def differentiate(outputs: tuple[Tensor, ...], terms: MessageInputs, order: int) -> list[Tensor]:
    """Return the outputs (order 0), gradients of their sum of squares (1), or gradients of the squares of those (2)."""
    inputs = list_float_inputs(terms)
    if order == 0:
        return [x.detach() for x in outputs]
    first = torch.autograd.grad(sum_squares(outputs), inputs, create_graph=order == 2)
    return [x.detach() for x in (first if order == 1 else torch.autograd.grad(sum_squares(first), inputs))]


def sum_squares(tensors: tuple[Tensor, ...]) -> Tensor:
    """Return the sum of the squares of all elements of all tensors."""
    return torch.stack([x.square().sum() for x in tensors]).sum()


def formulate_model(backbone: str, width: int, structures: int, device: torch.device, precision: str) -> Formulations:
    """Return the formulations of energies, forces, and gradients of a loss on forces, of an untrained model."""
    torch.manual_seed(0)
    parameters = ModelParameters.model_validate(
        {"backbone": backbone, "hidden_dim": width, "max_neighbours": NEIGHBOURS}
    )
    exact = FoundationModel(ModelConfig.from_parameters(parameters)).double().to(device)
    batch = make_batch(exact, structures, device)
    applied = find_precision("fp32" if precision == "tf32" else precision)
    model, low = applied.apply(copy.deepcopy(exact)), batch.to(device, applied.dtype)
    return Formulations(
        exact=lambda order: predict(exact, batch, order, fused=False),
        plain=lambda order: predict(model, low, order, fused=False),
        fused=lambda order: predict(model, low, order, fused=True),
    )


@contextmanager
def set_matmul_precision(precision: str) -> Iterator[None]:
    """Compute matrix products of single-precision numbers in TF32 within the block, if that is the precision."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def make_batch(model: FoundationModel, structures: int, device: torch.device) -> Batch:
    """Return a batch of random structures in double precision."""
    spec = model.config.neighbour_spec
    random_structures = make_random_structures(structures, atoms=(2, 2 * ATOMS_PER_STRUCTURE))
    return build_batch([spec.build_list(structure) for structure in random_structures]).to(device, torch.float64)


def predict(model: FoundationModel, batch: Batch, order: int, *, fused: bool) -> list[Tensor]:
    """Return energies (order 0), forces (1), or the gradient of a loss on forces for the encoder's parameters (2)."""
    energy, forces = predict_own_head(model, batch, create_graph=order == 2, fused=fused)
    if order < 2:
        return [(energy if order == 0 else forces).detach()]
    parameters = list(model.encoder.parameters())
    gradients = torch.autograd.grad(energy.square().sum() + forces.square().sum(), parameters, allow_unused=True)
    return [torch.cat([g.flatten() for g in gradients if g is not None])]
