"""Training of the multi-task model and its gate: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from msgspec import Meta
from pydantic import Field, model_validator

from harness.protocol.parameters import (
    SPLIT_SEED,
    BackendName,
    DeviceName,
    HeldOutShare,
    MessagesName,
    Names,
    Parameters,
    PrecisionName,
    ReadMode,
    Sampling,
    Share,
    StoreBackend,
)
from harness.protocol.programs.model import ModelParameters
from harness.protocol.records import (
    AtomicNumber,
    Config,
    Count,
    Counts,
    Error,
    EventRecord,
    Facts,
    HeldOutErrors,
    NotNegative,
    Number,
    Observed,
    Part,
    PositiveCount,
    RankPlace,
    Rate,
    Seconds,
)
from harness.protocol.records import Share as MeasuredShare
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import NonNegativeInt as ParameterNotNegative
from harness.protocol.types import Positive


class OptimizerParameters(Parameters):
    """How weights move: AdamW, its schedule, gradient clipping, and the average of weights."""

    learning_rate: Positive = 1e-3
    """Learning rate before the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """Plateau: the rate falls by `factor` when the validation loss has not improved for `patience` epochs, as in the
    paper. Cosine: it falls to 1% over all steps."""
    factor: Share = 0.5
    """What the rate is multiplied by on a plateau."""
    patience: ParameterNotNegative = 5
    """Epochs without improvement that make a plateau."""
    warmup_steps: ParameterNotNegative = 0
    """Steps over which the rate rises linearly before either schedule."""
    clip_norm: Positive | None = None
    """Norm to which the gradient of all parameters is clipped; null: not at all."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of an average of the weights, which is evaluated in their place; null: none."""


class TrainParameters(OptimizerParameters):
    """Training of model and gate, one process per rank."""

    precision: PrecisionName = "fp32"
    """Precision of training."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    sets: Names | None = None
    """Shipped sets; null: all."""
    stores: str = ""
    """A folder of stores with splits of their own, in place of shipped sets."""
    read: ReadMode = "preload"
    """How stores are read."""
    width: ParameterCount | None = None
    """Ranks that hold one copy of the data together, in the mode `distributed`; null: all."""
    store_backend: StoreBackend = "auto"
    """Library of the mode `distributed`; auto: DDStore where it is installed."""
    held_out: HeldOutShare = 0.1
    """Share of each shipped set for the test; half as much is for validation."""
    split_seed: int = SPLIT_SEED
    """Seed of the splits of shipped sets."""
    limit: ParameterCount | None = None
    """Structures of a shipped set at most, the first ones."""
    sampling: Sampling = "mixed"
    """Whether all ranks draw from all datasets, or each from its own."""
    temperature: Positive = 1.0
    """Datasets are weighed by count ** (1 / temperature)."""
    balance: Literal["none", "atoms"] = "none"
    """Whether ranks get batches of as many graphs, or of as many atoms."""
    batch_size: ParameterCount = 16
    """Graphs of one rank and step."""
    epochs: ParameterCount = 20
    """Epochs at most."""
    epoch_length: ParameterCount | None = None
    """Graphs that an epoch draws; null: as many as there are."""
    ahead: ParameterNotNegative = 2
    """Batches that are prepared in advance."""
    force_weight: Positive = 10.0
    """Weight of forces in the loss."""
    units: Literal["plain", "head"] = "plain"
    """Whether errors count in eV and eV/angstrom, as in the paper, or in what composition and zero forces miss on the
    training set of each head."""
    stop_after: ParameterCount | None = None
    """Epochs without a better validation loss that end the run; null: none do."""
    validation_limit: ParameterCount = 64
    """Structures of each set that are evaluated after an epoch."""
    heads: Literal["replicated", "parallel"] = "replicated"
    """Whether every rank has all heads, or only those of its own datasets; the latter needs assigned sampling."""
    messages: MessagesName = "plain"
    """Whether messages of PaiNN and PNAEq go through tensors of edges, or through one operator where there is one."""
    compile: bool = True
    """Whether the model is compiled."""
    deterministic: bool = True
    """Whether deterministic algorithms are asked for."""
    gate_steps: ParameterNotNegative = 3000
    """Steps of training the gate; 0 leaves it untrained."""
    checkpoint_s: Positive = 300.0
    """Seconds between states on disk."""
    backend: BackendName = "gloo"
    """Library by which ranks exchange gradients."""
    device: DeviceName = "cpu"
    """Where the model runs."""
    seed: int = 0
    """Seed of weights and of the order of structures."""
    timeout_s: Positive = 600.0
    """Time that a rank waits for the others before it gives the run up."""
    minutes: Positive | None = None
    """Time after which the run leaves its state and ends, one link of a chain; null: none."""
    continues: bool = False
    """Whether the run goes on from the state of the case before it."""

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        """Raise ValueError for parallel heads of ranks that draw from all datasets."""
        if self.heads == "parallel" and self.sampling != "assigned":
            raise ValueError("heads: only with assigned sampling can a rank do with the heads of its own datasets")
        return self


class TrainEpoch(EventRecord, tag="epoch"):
    """Means over the training graphs of an epoch and over the validation sets."""

    epoch: Count
    step: Count
    seconds: Seconds
    graphs_per_s: Rate
    loss: Number | None = None
    energy_mae_ev_per_atom: Error | None = None
    force_mae_ev_per_a: Error | None = None
    validation_loss: Number | None = None
    validation_energy_mae_ev_per_atom: Error | None = None
    validation_force_mae_ev_per_a: Error | None = None
    learning_rate: Number | None = None
    wait_s: Seconds | None = None
    """Wait for data of the slowest rank."""
    best: bool | None = None
    """Whether no epoch before had a lower validation loss."""


class HeadErrors(EventRecord, tag="head"):
    """Errors of one head on one split after an epoch."""

    epoch: Count
    head: str
    set: str
    split: str
    energy_mae_ev_per_atom: Error | None
    force_mae_ev_per_a: Error | None
    structures: Count | None = None


class Resumed(EventRecord, tag="resumed"):
    """The run goes on from a state on disk; the events of its epochs come before this one once more."""

    step: Count
    epoch: Count


class SkippedStep(EventRecord, tag="skipped"):
    """A step that was left out, as its gradient was not finite."""

    step: Count
    worst: str | None = None
    """The structure of rank 0 with the largest error."""


class Stopped(EventRecord, tag="stopped"):
    """Why a run ended before its last epoch."""

    why: str
    epoch: Count | None = None
    step: Count | None = None


class TrainModel(Part):
    """The model that is trained."""

    config: Config | None = None
    parameters: Count | None = None
    parts: Counts | None = None
    """Parameters of encoder, heads and gate."""
    trained: bool | None = None


class TrainSet(Part):
    """A dataset: structures of its splits, and how many an epoch draws."""

    set: str
    role: str
    head: str | None = None
    level: str | None = None
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    drawn: Count | None = None


class TrainWorkload(Part):
    """What is trained on, and the parameters that the analysis asks for."""

    sets: list[TrainSet] | None = None
    elements: list[AtomicNumber] | None = None
    global_batch_size: PositiveCount | None = None
    steps_per_epoch: Count | None = None
    batch_size: PositiveCount | None = None
    epochs: Count | None = None
    temperature: NotNegative | None = None
    seed: int | None = None
    sampling: str | None = None
    split_seed: int | None = None
    units: str | None = None
    heads: str | None = None
    balance: str | None = None
    read: str | None = None


class GateErrors(Part):
    """Errors of the gate on what it was trained on."""

    energy_error_ev_per_atom: Error | None = None
    """Mean distance of the mixed energy from that of the right branch."""
    right_branch: MeasuredShare | None = None
    """Share of structures of which the right branch gets more than half of the weight."""


class TrainFacts(Facts):
    """Facts of a training run."""

    model: TrainModel | None = None
    workload: TrainWorkload | None = None
    ranks: Annotated[list[RankPlace], Meta(min_length=1)] | None = None
    observed: Observed | None = None
    graphs_compiled: Count | None = None
    gate: GateErrors | None = None
    held_out: list[HeldOutErrors] | None = None
    train_s: Seconds | None = None
    ended_before: str | None = None
    """The folder of the earlier link in which the training came to its end."""


EVENTS = (TrainEpoch, HeadErrors, Resumed, SkippedStep, Stopped)
