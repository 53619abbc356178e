"""Screening: scores of candidates through fused messages, compared with the plain formulation."""

from __future__ import annotations

import torch

from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.preflight import CalculationResult
from harness.reference.inference.precision import find_precision
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages
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
from harness.reference.programs.preflight.checks.kernels import NEIGHBOURS, make_batch
from harness.reference.programs.screening.scoring import score_energies_and_forces

TOLERANCE = 1e-3
EXPECTED = "scores through fused messages agree with the plain formulation"
ADVICE = "Use `message_backend: unfused` in the suite `screening` on this system, and report the table."


def check(context: CheckContext) -> Outcome:
    """Score the same candidates with and without fused messages at each width."""
    device = open_device(context)
    messages.load(device)
    budget, sizes = Budget(context.config.time_limit_s), choose_sizes(context.config, device)
    results = []
    for width in sizes.widths:
        result = CalculationResult(
            calculation="scores with forces", formulation="fused", precision="fp32", width=width, tolerance=TOLERANCE
        )

        def calculate(result: CalculationResult, width: int = width) -> None:
            compare_scores(result, width, sizes.structures, device)

        try_calculation(budget, result, calculate)
        results.append(result)
    return judge_calculations(EXPECTED, results, ADVICE)


def compare_scores(result: CalculationResult, width: int, structures: int, device: torch.device) -> None:
    """Set the error of the scores through fused messages, the durations and the peak memory."""
    torch.manual_seed(0)
    parameters = ModelParameters(hidden_dim=width, max_neighbours=NEIGHBOURS)
    exact = FoundationModel(ModelConfig.from_parameters(parameters)).double().to(device).requires_grad_(False)
    exact.mark_all_elements_known()
    batch = make_batch(exact, structures, device)
    expected = score_energies_and_forces(exact, batch, None)
    model, single = find_precision("fp32").apply(exact), batch.to(device, torch.float32)
    scores = score_energies_and_forces(model, single, None, fused=True)
    result.error = compute_error(list(scores.T), list(expected.T))
    result.duration_s = measure_seconds(lambda: score_energies_and_forces(model, single, None, fused=True), device)
    result.plain_s = measure_seconds(lambda: score_energies_and_forces(model, single, None), device)
    result.peak_bytes = timing.measure_peak_bytes(
        lambda: score_energies_and_forces(model, single, None, fused=True), device
    )
