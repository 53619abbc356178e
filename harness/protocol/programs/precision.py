"""One backbone in several precisions: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, Self, get_args

from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, Field, model_validator

from harness.protocol.parameters import (
    SPLIT_SEED,
    BackendName,
    DeviceName,
    Names,
    PrecisionName,
    TestFraction,
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
    PhysicsCheck,
    PositiveCount,
)
from harness.protocol.rounds import RoundParameters, RoundsEnded
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt, check_unique

REFERENCE: PrecisionName = "fp64"


class PrecisionParameters(RoundParameters):
    """One backbone in several precisions, with equal seeds and equal batches."""

    precisions: Annotated[tuple[PrecisionName, ...], Field(min_length=1), AfterValidator(check_unique)] = get_args(
        PrecisionName
    )
    """The precisions; the first must be fp64, with which the others are compared."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    checkpoint: str | None = None
    """Model whose predictions are compared; null: the model that the case trains in FP64."""
    datasets: Names | None = None
    """Shipped datasets; null: all."""
    test_fraction: TestFraction = 0.1
    """Share of each dataset for the test; half as many structures are for validation."""
    split_seed: int = SPLIT_SEED
    """Seed of the splits."""
    max_structures_per_dataset: PositiveInt | None = None
    """Number of structures of each dataset to use, from its start; null: all."""
    sampling_temperature: PositiveFloat = 2.0
    """Datasets are weighted by count ** (1 / sampling_temperature)."""
    batch_size: PositiveInt = 16
    """The number of structures in the batch of a training step."""
    steps: PositiveInt = 100
    """Number of training steps."""
    timing_warmup_steps: NonNegativeInt = 5
    """Number of first steps that are not timed."""
    predictions: PositiveInt = 16
    """Number of held-out structures of each dataset that a round predicts."""
    physics_transformations: NonNegativeInt = 0
    """Random rotations and reflections of each structure with which the physics of each precision is checked, together
    with the other checks; 0: none of them."""
    force_weight: PositiveFloat = 10.0
    """Weight of forces in the loss."""
    learning_rate: PositiveFloat = 1e-3
    """The learning rate of AdamW."""
    backend: BackendName = "gloo"
    """Library of the process group."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    seed: NonNegativeInt = 0
    """Seed of weights and of the order of structures."""

    @model_validator(mode="after")
    def check_precisions(self) -> Self:
        """Raise ValueError if there is no reference to compare with, or no step to time."""
        if self.precisions[0] != REFERENCE:
            raise ValueError(f"precisions: expected {REFERENCE} first")
        if self.steps <= self.timing_warmup_steps:
            raise ValueError(
                f"steps is {self.steps}, expected more than timing_warmup_steps, {self.timing_warmup_steps}"
            )
        return self


class PrecisionSample(EventRecord, tag="sample"):
    """One training step, or one round of predictions, in one precision."""

    phase: str
    precision: str
    round: Count
    is_warmup: bool
    structures: PositiveCount
    duration_s: Duration
    loss: Number | UnsetType | None = UNSET
    """Null if it or its gradient is not finite; absent for predictions."""


class PredictionErrors(EventRecord, tag="prediction"):
    """Errors of one head against labels, and deviations from FP64, with weights that were cast to one precision."""

    precision: str
    head: str
    structures: PositiveCount
    energy_mae_ev_per_atom: Error | None
    force_mae_ev_per_angstrom: Error | None
    force_scale_ev_per_angstrom: Error | None
    energy_deviation_mean_ev_per_atom: Error | None
    energy_deviation_max_ev_per_atom: Error | None
    force_deviation_mean_ev_per_angstrom: Error | None
    force_deviation_max_ev_per_angstrom: Error | None


class TrainedErrors(EventRecord, tag="trained_errors"):
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

    datasets: list[TrainSet] | None = None
    batch_size: PositiveCount | None = None
    steps: Count | None = None
    seed: int | None = None


class PeakMemory(Part):
    """Peak memory of one training step or one prediction in one precision."""

    phase: Literal["training", "inference"]
    precision: str
    peak_bytes: Bytes | None


class WeightSource(Part):
    """The origin of the weights whose predictions are compared."""

    checkpoint: str | None
    steps: Count | None


class PrecisionFacts(Facts):
    """Facts of a comparison of precisions."""

    model: PrecisionModel | None = None
    workload: PrecisionWorkload | None = None
    memory: list[PeakMemory] | None = None
    runtime: Observed | None = None
    weights: WeightSource | None = None


EVENTS = (PrecisionSample, RoundsEnded, PredictionErrors, TrainedErrors, ModuleErrors, PhysicsCheck)
