"""One backbone in several precisions: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, Field, model_validator

from harness.protocol.parameters import (
    SPLIT_SEED,
    BackendName,
    DeviceName,
    HeldOutShare,
    Names,
    Parameters,
    PrecisionName,
)
from harness.protocol.programs.model import ModelParameters
from harness.protocol.programs.train import TrainSet
from harness.protocol.records import (
    Bytes,
    Config,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    HeldOutErrors,
    Number,
    Observed,
    Part,
    PositiveCount,
)
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import NonNegativeInt as ParameterNotNegative
from harness.protocol.types import Positive, check_unique

REFERENCE: PrecisionName = "fp64"


class PrecisionParameters(Parameters):
    """One backbone in several precisions side by side: equal seeds, equal batches."""

    precisions: Annotated[tuple[PrecisionName, ...], Field(min_length=1), AfterValidator(check_unique)] = get_args(
        PrecisionName
    )
    """The precisions, fp64 first: the others are compared with it."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    checkpoint: str | None = None
    """Model whose predictions are compared; null: what was trained in FP64."""
    sets: Names | None = None
    """Shipped sets; null: all."""
    held_out: HeldOutShare = 0.1
    """Share of each set for the test; half as much is for validation."""
    split_seed: int = SPLIT_SEED
    """Seed of the splits."""
    limit: ParameterCount | None = None
    """Structures of a set at most, the first ones."""
    temperature: Positive = 2.0
    """Datasets are weighed by count ** (1 / temperature)."""
    batch_size: ParameterCount = 16
    """Graphs of a step."""
    steps: ParameterCount = 100
    """Training steps."""
    discard: ParameterNotNegative = 5
    """First steps, which are not timed."""
    rounds: ParameterCount = 6
    """Rounds of predictions."""
    predictions: ParameterCount = 16
    """Held-out structures of each set in a round."""
    force_weight: Positive = 10.0
    """Weight of forces in the loss."""
    learning_rate: Positive = 1e-3
    """Learning rate."""
    backend: BackendName = "gloo"
    """Library of the process group."""
    device: DeviceName = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Seed of weights and of the order of structures."""

    @model_validator(mode="after")
    def check_precisions(self) -> Self:
        """Raise ValueError where there is no reference to compare with, or no step to time."""
        if self.precisions[0] != REFERENCE:
            raise ValueError(f"precisions: expected {REFERENCE} first")
        if self.steps <= self.discard:
            raise ValueError(f"steps is {self.steps}, expected more than discard, {self.discard}")
        return self


class PrecisionSample(EventRecord, tag="sample"):
    """One training step, or one round of predictions, in one precision."""

    task: str
    precision: str
    round: Count
    discarded: bool
    structures: PositiveCount
    seconds: Duration
    loss: Number | UnsetType | None = UNSET
    """Null where it is not finite; predictions have none."""


class PredictionErrors(EventRecord, tag="prediction"):
    """Errors of one head whose weights were cast to a precision, against FP64 and against labels."""

    precision: str
    head: str
    structures: PositiveCount
    energy_mae_ev_per_atom: Error | None
    force_mae_ev_per_a: Error | None
    force_scale_ev_per_a: Error | None
    energy_off_mean_ev_per_atom: Error | None
    energy_off_max_ev_per_atom: Error | None
    force_off_mean_ev_per_a: Error | None
    force_off_max_ev_per_a: Error | None


class TrainedErrors(EventRecord, tag="trained"):
    """Errors of what was trained in a precision, on held-out structures."""

    precision: str
    rows: list[HeldOutErrors]


class ModuleErrors(EventRecord, tag="module"):
    """Relative distance of what a module was given and what it returned from that in FP64."""

    precision: str
    module: str
    kind: str
    input: Error | None
    output: Error | None


class PrecisionModel(Part):
    """The model of a study."""

    config: Config | None = None
    parameters: Count | None = None


class PrecisionWorkload(Part):
    """What is trained on."""

    sets: list[TrainSet] | None = None
    batch_size: PositiveCount | None = None
    steps: Count | None = None
    seed: int | None = None


class PeakMemory(Part):
    """Memory of one training step or one prediction in one precision."""

    task: Literal["training", "inference"]
    precision: str
    peak_bytes: Bytes | None


class Predicting(Part):
    """Where the weights come from whose predictions are compared."""

    checkpoint: str | None
    steps: Count | None


class PrecisionFacts(Facts):
    """Facts of a study."""

    model: PrecisionModel | None = None
    workload: PrecisionWorkload | None = None
    memory: list[PeakMemory] | None = None
    observed: Observed | None = None
    predicting: Predicting | None = None


EVENTS = (PrecisionSample, PredictionErrors, TrainedErrors, ModuleErrors)
