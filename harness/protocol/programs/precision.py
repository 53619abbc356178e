"""One backbone in several precisions: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, Field, model_validator

from harness.protocol.parameters import (
    SPLIT_SEED,
    BackendName,
    DeviceName,
    HeldOutFraction,
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
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt, check_unique

REFERENCE: PrecisionName = "fp64"


class PrecisionParameters(Parameters):
    """One backbone in several precisions, with equal seeds and equal batches."""

    precisions: Annotated[tuple[PrecisionName, ...], Field(min_length=1), AfterValidator(check_unique)] = get_args(
        PrecisionName
    )
    """The precisions, fp64 first: the others are compared with it."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    checkpoint: str | None = None
    """Model whose predictions are compared; null: the model that the case trains in FP64."""
    sets: Names | None = None
    """Shipped sets; null: all."""
    held_out: HeldOutFraction = 0.1
    """Share of each set for the test; half as much is for validation."""
    split_seed: int = SPLIT_SEED
    """Seed of the splits."""
    limit: PositiveInt | None = None
    """Maximum number of structures of a set, the first ones."""
    temperature: PositiveFloat = 2.0
    """Datasets are weighted by count ** (1 / temperature)."""
    batch_size: PositiveInt = 16
    """Graphs of a step."""
    steps: PositiveInt = 100
    """Training steps."""
    discard: NonNegativeInt = 5
    """Number of first steps that are not timed."""
    rounds: PositiveInt = 6
    """Rounds of predictions."""
    predictions: PositiveInt = 16
    """Held-out structures of each set per round."""
    force_weight: PositiveFloat = 10.0
    """Weight of forces in the loss."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate."""
    backend: BackendName = "gloo"
    """Library of the process group."""
    device: DeviceName = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Seed of weights and of the order of structures."""

    @model_validator(mode="after")
    def check_precisions(self) -> Self:
        """Raise ValueError if there is no reference to compare with, or no step to time."""
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
    """Null if it is not finite; absent for predictions."""


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
    """Errors of the model trained in one precision, on held-out structures."""

    precision: str
    rows: list[HeldOutErrors]


class ModuleErrors(EventRecord, tag="module"):
    """Relative differences of the input and the output of a module from those in FP64."""

    precision: str
    module: str
    kind: str
    input: Error | None
    output: Error | None


class PrecisionModel(Part):
    """The model that every precision runs."""

    config: Config | None = None
    parameters: Count | None = None


class PrecisionWorkload(Part):
    """The data that the model is trained on."""

    sets: list[TrainSet] | None = None
    batch_size: PositiveCount | None = None
    steps: Count | None = None
    seed: int | None = None


class PeakMemory(Part):
    """Memory of one training step or one prediction in one precision."""

    task: Literal["training", "inference"]
    precision: str
    peak_bytes: Bytes | None


class WeightSource(Part):
    """The origin of the weights whose predictions are compared."""

    checkpoint: str | None
    steps: Count | None


class PrecisionFacts(Facts):
    """Facts of a study."""

    model: PrecisionModel | None = None
    workload: PrecisionWorkload | None = None
    memory: list[PeakMemory] | None = None
    observed: Observed | None = None
    predicting: WeightSource | None = None


EVENTS = (PrecisionSample, PredictionErrors, TrainedErrors, ModuleErrors)
