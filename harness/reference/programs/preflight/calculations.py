"""Compare formulations of one calculation, and time them, as long as the time limit of the item allows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.protocol.programs.preflight import CalculationResult, PreflightParameters
from harness.protocol.text import pluralize
from harness.reference.errors import get_first_line
from harness.reference.profiling import timing
from harness.reference.programs.preflight.check import Outcome, make_outcome, make_unchecked

REPEATS = 3
# The share of the time limit after which no calculation begins; the rest is for the last one, which may be compiled.
USABLE_SHARE = 0.3
NO_TIME = "the time limit of the item left no time for it"
MAX_PROBLEMS = 3  # that a message lists
MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Sizes:
    """The sizes of the calculations: the widths of the models, and the number of structures in a batch."""

    widths: tuple[int, ...]
    structures: int


# On a CPU, the calculations only show that the code works. 337 is the width of the lead model of the paper.
CPU_SIZES, ACCELERATOR_SIZES = Sizes((16,), 4), Sizes((64, 337), 16)


def choose_sizes(config: PreflightParameters, device: torch.device) -> Sizes:
    """Return the sizes that the parameters name, or else those that suit the device."""
    default = CPU_SIZES if device.type == "cpu" else ACCELERATOR_SIZES
    return Sizes(config.widths or default.widths, config.structures or default.structures)


@dataclass(frozen=True)
class Budget:
    """The time that an item has.

    Attributes:
        time_limit_s: The time limit of the item.
        started: When the item began, as `time.monotonic` returns it.
    """

    time_limit_s: float
    started: float = field(default_factory=time.monotonic)

    @property
    def is_spent(self) -> bool:
        """Whether no further calculation should begin."""
        return time.monotonic() - self.started > USABLE_SHARE * self.time_limit_s


def try_calculation(budget: Budget, result: CalculationResult, calculate: Callable[[CalculationResult], None]) -> None:
    """Let a function complete a result, or record why the calculation is unavailable.

    Args:
        budget: The time of the item.
        result: The result, in which only the names of the calculation are set.
        calculate: The function, which sets error and duration.
    """
    if budget.is_spent:
        result.unavailable_reason = NO_TIME
        return
    try:
        calculate(result)
    except Exception as error:  # each compiler raises its own errors
        result.unavailable_reason = get_first_line(error)[:MAX_REASON_CHARACTERS]


def measure_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the shortest duration of REPEATS calls, after calls that have compiled and warmed up what they use."""
    return min(timing.time_call(call, device) for _ in range(REPEATS))


def compute_error(values: Sequence[Tensor], expected: Sequence[Tensor]) -> float | None:
    """Return the largest difference from expected tensors, relative to the largest absolute value of each.

    The difference from a tensor of zeros is not divided. The error is None if a value is not finite.
    """
    errors = []
    for value, reference in zip(values, expected, strict=True):
        if not (value.isfinite().all() and reference.isfinite().all()):
            return None
        scale = float(reference.abs().max()) if reference.numel() else 0.0
        difference = float((value.double() - reference.double()).abs().max()) if reference.numel() else 0.0
        errors.append(difference / scale if scale else difference)
    return max(errors)


def judge_calculations(expected: str, results: Iterable[CalculationResult], advice: str) -> Outcome:
    """Return the outcome of an item: every calculation ran, and its error is within the tolerance."""
    results = list(results)
    if not results:
        return make_unchecked(expected, "no calculation was selected", "Correct the parameters of the case.")
    skipped = [result for result in results if result.unavailable_reason == NO_TIME]
    problems = [problem for result in results if result not in skipped and (problem := find_problem(result))]
    speedups = [r.plain_s / r.duration_s for r in results if r.plain_s and r.duration_s]
    observed = f"{pluralize(len(results), 'calculation')} agreed"
    if speedups:
        speeds = dict.fromkeys(f"{speed:.2g}" for speed in (min(speedups), max(speedups)))
        observed += f", at {' to '.join(speeds)} times the speed of the plain formulation"
    listed = problems[:MAX_PROBLEMS]
    if len(problems) > MAX_PROBLEMS:
        listed.append(f"and {len(problems) - MAX_PROBLEMS} more")
    outcome = make_outcome(expected, observed, listed, advice)
    if skipped and not problems:
        reason = f"{len(skipped)} of {pluralize(len(results), 'calculation')} did not run: {NO_TIME}"
        outcome = make_unchecked(expected, reason, "Set the parameter `time_limit_s` to a longer time.")
    outcome.calculations = results
    return outcome


def find_problem(result: CalculationResult) -> str | None:
    """Return a message if a calculation did not run or has a large error."""
    name = f"{result.calculation}, {result.formulation}, {result.precision}"
    if result.unavailable_reason is not None:
        return f"{name}: {result.unavailable_reason}"
    if result.error is None:
        return f"{name}: the result is not finite"
    if result.tolerance is not None and not result.error <= result.tolerance:
        return f"{name}: error {result.error:.1e}, more than {result.tolerance:.0e}"
    return None
