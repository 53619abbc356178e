"""Training steps in several formulations, compared with the plain one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from harness.protocol.programs.preflight import CalculationResult
from harness.protocol.programs.training_steps import TrainingStepsParameters
from harness.reference.models.message_backend import find_unavailable_reason
from harness.reference.profiling import timing
from harness.reference.programs.preflight.calculations import Budget, measure_seconds, try_calculation
from harness.reference.programs.training_steps import (
    STAGES,
    Stage,
    TimedStep,
    compute_step_errors,
    make_batches,
    make_model,
)
from harness.reference.training.compile import compile_loss
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors

# Of the errors of the gradient: above those of rounding, and below those of a wrong kernel.
TOLERANCES = {"fp64": 1e-8, "fp32": 1e-4, "bf16": 0.2}


class CannotCompile(RuntimeError):
    """A formulation cannot be compiled, or has no kernel on the device; the message has the reason."""


def compare_steps(config: TrainingStepsParameters, budget: Budget) -> Iterator[CalculationResult]:
    """Yield a result for each formulation but the plain one, with the error of the gradient of all parameters."""
    model = make_model(config)
    batch = make_batches(model, config)[0]
    device = torch.device(config.device)
    plain = TimedStep(STAGES[0].name, PerGraphErrors(model), model, make_objective(config))
    expected = plain.take_step(batch)
    plain_s = measure_seconds(partial(plain, batch), device)
    for stage in STAGES[1:]:
        if stage.name not in config.stages:
            continue
        result = CalculationResult(
            calculation=f"training step of {model.config.backbone}", formulation=stage.name, plain_s=plain_s,
            precision=config.precision, width=model.config.hidden_dim, tolerance=TOLERANCES[config.precision],
        )  # fmt: skip

        def calculate(result: CalculationResult, stage: Stage = stage) -> None:
            reason = find_unavailable_reason(model.config.network, device) if stage.fused else None
            module = PerGraphErrors(model, fused=stage.fused)
            reason = reason or compile_loss(module, batch).eager_reason
            if reason is not None:
                raise CannotCompile(reason)
            step = TimedStep(stage.name, module, model, make_objective(config))
            errors = compute_step_errors(step.take_step(batch), expected)
            result.error = errors.get("gradient_error")
            result.duration_s = measure_seconds(partial(step, batch), device)
            result.peak_bytes = timing.measure_peak_bytes(partial(step, batch), device)

        try_calculation(budget, result, calculate)
        yield result


def make_objective(config: TrainingStepsParameters) -> MultiTaskLoss:
    """Return the loss of a step."""
    return MultiTaskLoss(config.force_weight, config.batch_size)
