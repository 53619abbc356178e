"""Data-parallel training steps, a point of weak or strong scaling: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Self

from msgspec import Meta
from pydantic import Field, model_validator

from harness.protocol.parameters import (
    AtomRange,
    BackendName,
    DeviceName,
    Names,
    ParameterGroup,
    Parameters,
    PrecisionName,
    ReadMode,
    Sampling,
    StoreBackend,
)
from harness.protocol.programs.model import ModelParameters
from harness.protocol.records import (
    Bytes,
    Config,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    NotNegative,
    Number,
    Observed,
    Part,
    PositiveCount,
    PositiveRate,
    RankPlace,
    Seconds,
)
from harness.protocol.types import Count as ParameterCount
from harness.protocol.types import NonNegativeInt as ParameterNotNegative
from harness.protocol.types import Positive

# The kinds of work that a step is cut into, in their order: on the host, and on the device.
HOST_REGIONS = ("data", "neighbour_lists", "collation")
DEVICE_REGIONS = ("forward", "gradient", "backward", "optimizer")
REGIONS = (*HOST_REGIONS, *DEVICE_REGIONS)


class Network(ParameterGroup):
    """What a projection to other numbers of ranks assumes of the machine; no run reads it."""

    latency_us: Annotated[float, Field(ge=0)]
    """Time of a message between nodes."""
    bandwidth_gb_s: Positive
    """What a node can send."""


class DataParallelParameters(Parameters):
    """Data-parallel training steps, one process per rank."""

    batch_size: ParameterCount
    """Graphs of one rank and step."""
    precision: PrecisionName
    """Precision of training."""
    backend: BackendName = "gloo"
    """Library by which ranks exchange gradients."""
    device: DeviceName = "cpu"
    """Where the model runs."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    sets: Names | None = None
    """Shipped sets; null: all."""
    atoms: AtomRange | None = None
    """Atoms of the structures of shipped sets that are used, fewest and most."""
    stores: str = ""
    """A folder of stores, in place of shipped sets."""
    read: ReadMode = "preload"
    """How stores are read."""
    width: ParameterCount | None = None
    """Ranks that hold one copy of the data together, in the mode `distributed`; null: all."""
    store_backend: StoreBackend = "auto"
    """Library of the mode `distributed`; auto: DDStore where it is installed."""
    sampling: Sampling = "mixed"
    """Whether all ranks draw from all datasets, or each from its own."""
    temperature: Positive = 1.0
    """Datasets are weighed by count ** (1 / temperature)."""
    ahead: ParameterNotNegative = 2
    """Batches that are prepared in advance."""
    steps: ParameterCount = 20
    """Steps of an epoch."""
    epochs: Annotated[int, Field(ge=2)] = 4
    """Epochs; the first is discarded."""
    learning_rate: Positive = 1e-3
    """Learning rate of AdamW."""
    force_weight: Positive = 10.0
    """Weight of forces in the loss."""
    max_neighbours: ParameterCount | None = 20
    """Neighbours of an atom at most; holds in place of the model's own limit."""
    seed: int = 0
    """Seed of weights and of the order of structures."""
    timeout_s: Positive = 600.0
    """Time that a rank waits for the others before it gives the run up."""
    network: Network | None = None
    """The network that a projection assumes."""

    @model_validator(mode="after")
    def check_stores(self) -> Self:
        """Raise ValueError where stores are to be limited as only shipped sets can be."""
        if self.stores and self.atoms is not None:
            raise ValueError("atoms: only shipped sets can be limited to some sizes, not stores")
        return self


class ScalingEpoch(EventRecord, tag="epoch"):
    """One epoch, trained through without a barrier; times of the slowest rank, and means over ranks."""

    epoch: Count
    discarded: bool
    graphs: Count
    train_s: Duration
    train_s_mean: Duration
    wait_s: Seconds | None = None
    """Wait for data, part of train_s."""
    wait_s_mean: Seconds | None = None


class ScalingSample(EventRecord, tag="sample"):
    """One step."""

    epoch: Count
    step: Count
    discarded: bool
    seconds: Duration
    """Of the slowest rank."""
    atoms: NotNegative
    """Of all ranks."""
    edges: NotNegative
    graphs: Count | None = None
    busy: Duration | None = None
    """Without the wait for data (on a device: with it), of the slowest rank."""
    seconds_mean: Seconds | None = None
    wait_mean: Seconds | None = None
    """Wait of the host for data."""
    loss: Number | None = None
    atoms_most: NotNegative | None = None
    """Of the rank with most."""
    edges_most: NotNegative | None = None


class OwnStep(EventRecord, tag="own_step"):
    """One step of rank 0, with the size of its own batch."""

    epoch: Count
    step: Count
    discarded: bool
    exchanged: bool
    """Whether a gradient was exchanged meanwhile."""
    busy: Duration
    atoms: NotNegative
    edges: NotNegative
    graphs: Count | None = None


class ComputeOnly(EventRecord, tag="compute_only"):
    """One step of the last pass, without exchange of gradients."""

    step: Count
    seconds: Duration
    """Of the slowest rank."""
    seconds_mean: Seconds | None = None


class Exchange(EventRecord, tag="exchange"):
    """One all-reduce on its own."""

    bytes: Bytes
    seconds: Duration
    """Of the slowest rank."""


class Region(EventRecord, tag="region"):
    """Time of one kind of work in one step that was cut up."""

    step: Count
    name: str
    """One of REGIONS."""
    seconds: Seconds
    """Of the slowest rank."""
    seconds_mean: Seconds


class ScalingModel(Part):
    """The model that is trained."""

    config: Config | None = None
    parameters: Count | None = None
    trained_parameters: Count | None = None


class ScalingSet(Part):
    """A dataset, and how many of its structures an epoch draws."""

    set: str
    role: str
    level: str | None = None
    structures: Count | None = None
    drawn: Count | None = None
    head: str | None = None
    train: Count | None = None


class ScalingWorkload(Part):
    """What is trained on."""

    sets: list[ScalingSet] | None = None
    structures: Count | None = None
    atoms: list[Count] | None = None
    read: str | None = None
    sampling: str | None = None
    temperature: NotNegative | None = None
    batch_size: PositiveCount | None = None
    global_batch_size: PositiveCount | None = None
    steps: Count | None = None
    epochs: Count | None = None
    passes: NotNegative | None = None
    """Times that the run sees every structure, on average."""
    max_neighbours: Count | None = None
    seed: int | None = None


class ScalingObserved(Observed, kw_only=True):
    """What a run observed of itself."""

    device_name: str | None


class GradientCheck(Part):
    """Over how many ranks and graphs the exchanged gradient was checked."""

    ranks: Count
    graphs: Count


class DataParallelFacts(Facts):
    """Facts of a scaling point."""

    model: ScalingModel | None = None
    workload: ScalingWorkload | None = None
    observed: ScalingObserved | None = None
    ranks: Annotated[list[RankPlace], Meta(min_length=1)] | None = None
    gradient_error: Error | None = None
    gradient_check: GradientCheck | None = None
    throughput_graphs_per_s: list[PositiveRate] | None = None
    """Of each epoch that counts."""
    parameter_divergence: Error | None = None
    graph_sizes: list[tuple[NotNegative, NotNegative]] | None = None
    """Atoms and edges of some graphs of rank 0."""


EVENTS = (ScalingEpoch, ScalingSample, OwnStep, ComputeOnly, Exchange, Region)
