"""Inference ladder: its stages at each width, compared with the baseline in FP64."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from harness.protocol.programs.ladder import LadderParameters, StageName
from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.preflight import CalculationResult
from harness.reference.inference.precision import find_precision
from harness.reference.profiling import timing
from harness.reference.programs.ladder.prepared_stage import PreparedStage
from harness.reference.programs.ladder.stages import Stage, select_stages
from harness.reference.programs.ladder.workload import make_model, make_structures, prepare_batch
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

SELECTED: tuple[StageName, ...] = ("baseline", "batched_heads", "fused_messages", "static_graphs", "mixed_precision")
# The products of `mixed_precision` in BF16 change forces by some per cent.
EXACT_TOLERANCE, MIXED_TOLERANCE = 1e-3, 0.3
EXPECTED = "every stage of the ladder agrees with the baseline"
ADVICE = "Remove the failed stages from `stages` in the suites of this system, and report the table."


def check(context: CheckContext) -> Outcome:
    """Compare the stages at each width in FP32."""
    device = open_device(context)
    budget, sizes = Budget(context.config.time_limit_s), choose_sizes(context.config, device)
    results = [r for width in sizes.widths for r in compare_stages(width, sizes.structures, device, budget)]
    return judge_calculations(EXPECTED, results, ADVICE)


def compare_stages(width: int, structures: int, device: torch.device, budget: Budget) -> Iterator[CalculationResult]:
    """Yield the result of each stage but the baseline at one width."""
    parameters = LadderParameters(
        workload="random", precision="fp32", stages=SELECTED, batch_size=structures,
        model=ModelParameters(hidden_dim=width, readout="sum"), device=device.type,  # type: ignore[arg-type]
    )  # fmt: skip
    exact = make_model(parameters)[0].to(device)
    sample = make_structures(parameters, structures)
    batch, _ = prepare_batch(sample, exact, parameters.model_copy(update={"precision": "fp64"}))
    stages = select_stages(parameters)
    expected = PreparedStage(stages[0], stages[0].predict())(exact, batch)
    model = find_precision("fp32").apply(make_model(parameters)[0].to(device))
    single = batch.to(device, torch.float32)
    baseline = PreparedStage(stages[0], stages[0].predict())
    baseline(model, single)
    plain_s = measure_seconds(lambda: baseline(model, single), device)
    for stage in stages[1:]:
        result = CalculationResult(
            calculation="energies and forces", formulation=stage.name, precision="fp32", width=width, plain_s=plain_s,
            tolerance=EXACT_TOLERANCE if stage.exact else MIXED_TOLERANCE,
        )  # fmt: skip

        def calculate(result: CalculationResult, stage: Stage = stage) -> None:
            prepared = PreparedStage(stage, stage.predict())
            prediction = prepared(model, single)
            result.error = compute_error(list(prediction), list(expected))
            result.duration_s = measure_seconds(lambda: prepared(model, single), device)
            result.peak_bytes = timing.measure_peak_bytes(lambda: prepared(model, single), device)

        try_calculation(budget, result, calculate)
        yield result
