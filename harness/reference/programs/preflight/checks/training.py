"""Training: a step of PaiNN at each width, compiled and with fused messages, compared with the plain step."""

from __future__ import annotations

from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.preflight import CalculationResult
from harness.protocol.programs.training_steps import TrainingStepsParameters
from harness.reference.programs.preflight.calculations import Budget, choose_sizes, judge_calculations
from harness.reference.programs.preflight.check import CheckContext, Outcome
from harness.reference.programs.preflight.checks.devices import open_device
from harness.reference.programs.preflight.training_step import compare_steps

EXPECTED = "compiled training steps agree with the plain one, with and without fused messages"
ADVICE = "Set `compile: false` or `message_backend: unfused` in the suites of this system, and report the table."


def check(context: CheckContext) -> Outcome:
    """Compare the formulations of a training step at each width."""
    device = open_device(context)
    budget, sizes = Budget(context.config.time_limit_s), choose_sizes(context.config, device)
    results: list[CalculationResult] = []
    for width in sizes.widths:
        parameters = TrainingStepsParameters(
            precision="fp32", model=ModelParameters(hidden_dim=width), batch_size=sizes.structures,
            device=device.type,  # type: ignore[arg-type]
        )  # fmt: skip
        results += compare_steps(parameters, budget)
    return judge_calculations(EXPECTED, results, ADVICE)
