"""Backbones: a compiled training step of each, compared with the same step without compilation."""

from __future__ import annotations

from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.preflight import CalculationResult
from harness.protocol.programs.training_steps import TrainingStepsParameters
from harness.reference.distributed.launch import shard
from harness.reference.programs.preflight.calculations import Budget, choose_sizes, judge_calculations
from harness.reference.programs.preflight.check import CheckContext, Outcome, make_outcome
from harness.reference.programs.preflight.checks.devices import open_device
from harness.reference.programs.preflight.training_step import compare_steps

EXPECTED = "a compiled training step of each backbone agrees with the eager one"
ADVICE = "Set `compile: false` in the suites of this system until its compiler works, and see `stderr`."


def check(context: CheckContext) -> Outcome:
    """Compile a step of each backbone in this rank's share."""
    config, rank_info = context.config, context.rank_info
    device = open_device(context)
    budget, sizes = Budget(config.time_limit_s), choose_sizes(config, device)
    backbones = shard(config.backbones, rank_info.rank, rank_info.size)
    if not backbones:
        return make_outcome(EXPECTED, "other ranks check all backbones")
    results: list[CalculationResult] = []
    for backbone in backbones:
        parameters = TrainingStepsParameters(
            precision="fp32", model=ModelParameters(backbone=backbone, hidden_dim=min(sizes.widths)),
            stages=("baseline", "torch_compile"), batch_size=sizes.structures, atoms=(2, 20),
            device=device.type,  # type: ignore[arg-type]
        )  # fmt: skip
        results += compare_steps(parameters, budget)
    return judge_calculations(EXPECTED, results, ADVICE)
