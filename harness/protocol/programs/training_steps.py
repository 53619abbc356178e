"""Training steps in several formulations: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from harness.protocol.parameters import AtomRange, DeviceName, PrecisionName
from harness.protocol.programs.ladder import Ceilings, Unavailable, WarmUp
from harness.protocol.programs.model import ModelParameters
from harness.protocol.records import (
    Config,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    NonNegative,
    Observed,
    Part,
    PositiveCount,
    Time,
)
from harness.protocol.rounds import RoundParameters, RoundsEnded
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt, check_unique

StepStageName = Literal["baseline", "torch_compile", "fused_messages"]
STEP_STAGES: tuple[StepStageName, ...] = get_args(StepStageName)


class TrainingStepsParameters(RoundParameters):
    """Training steps of an untrained model on the random workload, each stage in turn, without updates of weights."""

    precision: PrecisionName
    """Precision of every stage."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    stages: Annotated[tuple[StepStageName, ...], Field(min_length=1), AfterValidator(check_unique)] = STEP_STAGES
    """Formulations of a step, which are timed in turn; one that cannot be compiled as a whole is not timed."""
    batch_size: PositiveInt = 16
    """Structures per batch."""
    batches: PositiveInt = 1
    """Batches per round."""
    atoms: AtomRange = (2, 100)
    """Minimum and maximum number of atoms of a structure."""
    max_neighbours: PositiveInt | None = 20
    """Maximum number of neighbours of an atom."""
    force_weight: PositiveFloat = 10.0
    """Weight of forces in the loss."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    seed: NonNegativeInt = 0
    """Seed of weights and labels."""


class StepSample(EventRecord, tag="sample"):
    """One timed step; errors are relative differences from the baseline's step on the same batch."""

    stage: str
    round: Count
    batch: Count
    structures: PositiveCount
    device_s: Duration
    load_1min: NonNegative
    end_time_s: Time | None = None
    dtype: str | None = None
    finite: bool | None = None
    loss_error: Error | None = None
    gradient_error: Error | None = None
    """Norm of the difference of the gradients of all parameters, divided by the norm of the baseline's gradient."""


class StepModel(Part):
    """The model that is trained for a step."""

    config: Config | None = None
    parameters: Count | None = None
    trained: bool | None = None


class StepWorkload(Part):
    """The batches of a case; numbers of structures, atoms and edges are totals."""

    name: str | None = None
    structures: Count | None = None
    atoms: Count | None = None
    edges: Count | None = None
    batches: Count | None = None
    batch_size: PositiveCount | None = None
    max_neighbours: Count | None = None


class TrainingStepsFacts(Facts):
    """The model, workload and machine of timed training steps, and the rates that limit them."""

    model: StepModel | None = None
    workload: StepWorkload | None = None
    runtime: Observed | None = None
    ceilings: Ceilings | None = None


EVENTS = (WarmUp, Unavailable, StepSample, RoundsEnded)
