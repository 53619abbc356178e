"""Single training steps, one after another in several ways: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from harness.protocol.parameters import AtomRange, DeviceName, Parameters, PrecisionName
from harness.protocol.programs.ladder import Unavailable, WarmUp
from harness.protocol.programs.model import ModelParameters
from harness.protocol.records import (
    Config,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    NotNegative,
    Observed,
    Part,
    PositiveCount,
    Time,
)
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import Positive, check_unique

StepStageName = Literal["baseline", "torch_compile", "fused_messages"]
STEP_STAGES: tuple[StepStageName, ...] = get_args(StepStageName)


class TrainingStepsParameters(Parameters):
    """Steps of training an untrained model on the random workload, each stage in turn; the update is left out."""

    precision: PrecisionName
    """Precision of every stage."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    stages: Annotated[tuple[StepStageName, ...], Field(min_length=1), AfterValidator(check_unique)] = STEP_STAGES
    """Ways to take a step."""
    batch_size: ParameterCount = 16
    """Structures of a batch."""
    batches: ParameterCount = 1
    """Batches of a round."""
    rounds: ParameterCount = 6
    """A round is one step of every stage on every batch."""
    atoms: AtomRange = (2, 100)
    """Atoms of a structure, fewest and most."""
    max_neighbours: ParameterCount | None = 20
    """Neighbours of an atom at most."""
    force_weight: Positive = 10.0
    """Weight of forces in the loss."""
    device: DeviceName = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Seed of weights and labels."""


class StepSample(EventRecord, tag="sample"):
    """One timed step; errors are relative differences from the baseline's step on the same batch."""

    stage: str
    round: Count
    batch: Count
    structures: PositiveCount
    device_s: Duration
    load_1min: NotNegative
    ended_s: Time | None = None
    dtype: str | None = None
    finite: bool | None = None
    loss_error: Error | None = None
    gradient_error: Error | None = None
    """Of the gradient of all parameters in one row: norm of the difference over norm."""


class StepModel(Part):
    """The model that is trained for a step."""

    config: Config | None = None
    parameters: Count | None = None
    trained: bool | None = None


class StepWorkload(Part):
    """The batches, in total."""

    name: str | None = None
    structures: Count | None = None
    atoms: Count | None = None
    edges: Count | None = None
    batches: Count | None = None
    batch_size: PositiveCount | None = None
    max_neighbours: Count | None = None


class TrainingStepsFacts(Facts):
    """Facts of training steps."""

    model: StepModel | None = None
    workload: StepWorkload | None = None
    observed: Observed | None = None


EVENTS = (WarmUp, Unavailable, StepSample)
