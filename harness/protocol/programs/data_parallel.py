"""Data-parallel training steps, which measure weak or strong scaling: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Self

from msgspec import Meta
from pydantic import Field, model_validator

from harness.protocol.parameters import (
    AtomRange,
    BackendName,
    DeviceName,
    ImplementationName,
    MessageBackendName,
    Names,
    ParameterGroup,
    Parameters,
    PrecisionName,
    ReadMode,
    Sampling,
    StoreBackend,
    check_store_options,
)
from harness.protocol.programs.model import ModelParameters, require_hydragnn_training
from harness.protocol.records import (
    Bytes,
    Config,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    ImplementationSource,
    NonNegative,
    Number,
    Observed,
    Part,
    PositiveCount,
    PositiveRate,
    RankPlace,
    Seconds,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt

# The regions of a step in their order: on the host, then on the device.
HOST_REGIONS = ("data", "neighbour_lists", "collation")
DEVICE_REGIONS = ("forward", "force_gradient", "backward", "optimizer")
REGIONS = (*HOST_REGIONS, *DEVICE_REGIONS)


class Network(ParameterGroup):
    """The network that a projection to other numbers of ranks assumes; the training does not use it."""

    latency_us: Annotated[float, Field(ge=0)]
    """Latency of a message between nodes in microseconds."""
    bandwidth_gb_per_s: PositiveFloat
    """Injection bandwidth of a node in 10^9 bytes per second."""


class DataParallelParameters(Parameters):
    """Data-parallel training steps, one process per rank."""

    batch_size: PositiveInt
    """Structures per rank and step."""
    precision: PrecisionName
    """Precision of training."""
    implementation: ImplementationName = "reference"
    """Whose code runs: that of this package, or a checkout of HydraGNN (settings hydragnn_folder, hydragnn_python)."""
    backend: BackendName = "gloo"
    """Library by which ranks exchange gradients."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    message_backend: MessageBackendName = "fused"
    """Whether messages are computed as tensors of edges, or by the fused operator where there is one for the backbone
    and the device; results are equal except for rounding."""
    datasets: Names | None = None
    """Shipped datasets; null: all."""
    atoms: AtomRange | None = None
    """Minimum and maximum number of atoms of the structures of shipped sets; null: no limits."""
    store_folder: str = ""
    """A folder of stores, instead of shipped sets."""
    read_mode: ReadMode = "preload"
    """How ranks read stores. preload: each rank loads all structures; shared: the ranks of a node hold one copy;
    distributed: `replica_ranks` ranks hold one copy; on_demand: each structure is read from disk when it is needed."""
    replica_ranks: PositiveInt | None = None
    """Ranks that share one copy of the data, in the mode `distributed`; null: all."""
    store_backend: StoreBackend = "auto"
    """Library of the mode `distributed`; auto: DDStore where it is installed."""
    sampling: Sampling = "mixed"
    """mixed: all ranks draw from all datasets; assigned: each rank draws from the dataset that it is assigned to."""
    sampling_temperature: PositiveFloat = 1.0
    """Datasets are weighted by count ** (1 / sampling_temperature)."""
    prefetch_batches: NonNegativeInt = 2
    """Batches that are prepared in advance."""
    steps: PositiveInt = 20
    """Number of steps of an epoch."""
    epochs: Annotated[int, Field(ge=2)] = 4
    """Number of epochs, of which the first is discarded."""
    learning_rate: PositiveFloat = 1e-3
    """Learning rate of AdamW."""
    force_weight: PositiveFloat = 10.0
    """Weight of forces in the loss."""
    max_neighbours: PositiveInt | None = 20
    """Maximum number of neighbours of an atom, instead of the limit of the model."""
    seed: int = 0
    """Seed of weights and of the order of structures."""
    timeout_s: PositiveFloat = 600.0
    """Seconds that a rank waits for the others before the run fails."""
    network: Network | None = None
    """The network that a projection assumes."""

    @model_validator(mode="after")
    def check_implementation(self) -> Self:
        """Raise ValueError for what HydraGNN's training does not support."""
        if self.implementation == "hydragnn":
            require_hydragnn_training(self.model, self.store_folder)
            if self.max_neighbours != 20:
                raise ValueError("max_neighbours: the stores of hydragnn have 20")
            for name in ("replica_ranks", "sampling_temperature", "prefetch_batches"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect on the training of hydragnn")
        return self

    @model_validator(mode="after")
    def check_stores(self) -> Self:
        """Raise ValueError for a range of sizes of the structures of stores, and for options that have no effect."""
        check_store_options(self.store_folder, self.read_mode, self.replica_ranks, self.store_backend)
        if self.store_folder and self.atoms is not None:
            raise ValueError("atoms: only shipped sets can be limited to some sizes, not stores")
        return self


class ScalingEpoch(EventRecord, tag="epoch"):
    """One epoch of training without a barrier; `_mean_s` are means over ranks."""

    epoch: Count
    is_warmup: bool
    structures: Count
    """Structures of all ranks."""
    train_s: Duration
    """Time of the slowest rank."""
    train_mean_s: Duration
    wait_s: Seconds | None = None
    """Time for which the rank that waits longest waits for data; its time of training includes it."""
    wait_mean_s: Seconds | None = None


class ScalingSample(EventRecord, tag="sample"):
    """The time and size of one step, over all ranks; `_mean_s` are means over ranks."""

    epoch: Count
    step: Count
    is_warmup: bool
    duration_s: Duration
    """Time of the slowest rank."""
    atoms: NonNegative
    """The number of atoms in the batches of all ranks."""
    edges: NonNegative
    structures: Count | None = None
    busy_s: Duration | None = None
    """Time of the rank that computes longest; on a CPU, it excludes the time of waiting for data."""
    duration_mean_s: Seconds | None = None
    wait_mean_s: Seconds | None = None
    loss: Number | None = None
    atoms_max: NonNegative | None = None
    """Atoms of the rank that has the most atoms."""
    edges_max: NonNegative | None = None


class LocalStep(EventRecord, tag="local_step"):
    """One step of rank 0, with the size of its batch."""

    epoch: Count
    step: Count
    is_warmup: bool
    gradients_synchronized: bool
    """Whether the ranks exchanged gradients in the step."""
    busy_s: Duration
    """Time of rank 0; on a CPU, it excludes the time of waiting for data."""
    atoms: NonNegative
    edges: NonNegative
    structures: Count | None = None


class ComputeOnly(EventRecord, tag="compute_only"):
    """One step of the last pass, without exchange of gradients."""

    step: Count
    duration_s: Duration
    """Time of the slowest rank; on a CPU, it excludes the time of waiting for data."""
    duration_mean_s: Seconds | None = None


class RankSteps(EventRecord, tag="rank_steps"):
    """One step of the last pass on every rank, without exchange of gradients, so that no rank waits for another."""

    step: Count
    duration_s: list[Duration]
    """Time of each rank; on a CPU, it excludes the time of waiting for data. Entry k is that of rank k."""
    edges: list[NonNegative]
    """Edges in the batch of each rank."""


class AllReduce(EventRecord, tag="all_reduce"):
    """One all-reduce without other work."""

    bytes: Bytes
    duration_s: Duration
    """Time of the slowest rank."""


class Region(EventRecord, tag="region"):
    """Time of one region of a step."""

    step: Count
    name: str
    """The region of a training step: one of REGIONS."""
    duration_s: Seconds
    """Time of the slowest rank."""
    duration_mean_s: Seconds


class ScalingModel(Part):
    """The model that is trained."""

    config: Config | None = None
    parameters: Count | None = None
    trained_parameters: Count | None = None


class ScalingSet(Part):
    """A dataset, and the number of its structures that an epoch draws."""

    dataset: str
    data_origin: str
    level_of_theory: str | None = None
    structures: Count | None = None
    samples_per_epoch: Count | None = None
    """Structures that an epoch draws from the dataset."""
    head: str | None = None
    train: Count | None = None
    """Structures for training."""


class ScalingWorkload(Part):
    """The data that the model is trained on."""

    datasets: list[ScalingSet] | None = None
    structures: Count | None = None
    atoms: list[Count] | None = None
    """Minimum and maximum number of atoms of a structure; null: no limits."""
    read_mode: str | None = None
    sampling: str | None = None
    sampling_temperature: NonNegative | None = None
    batch_size: PositiveCount | None = None
    global_batch_size: PositiveCount | None = None
    steps: Count | None = None
    epochs: Count | None = None
    passes: NonNegative | None = None
    """How often the run draws each structure, on average."""
    max_neighbours: Count | None = None
    seed: int | None = None


class ScalingObserved(Observed, kw_only=True):
    """The types, the device and the software that a run observed."""

    device_name: str | None


class GradientCheck(Part):
    """Numbers of ranks and structures with which the exchanged gradient was checked."""

    ranks: Count
    structures: Count


class DataParallelFacts(Facts):
    """The model, ranks and machine of a scaling case, and checks of its gradient and its parameters."""

    implementation: ImplementationSource | None = None
    model: ScalingModel | None = None
    workload: ScalingWorkload | None = None
    runtime: ScalingObserved | None = None
    ranks: Annotated[list[RankPlace], Meta(min_length=1)] | None = None
    gradient_error: Error | None = None
    """Largest difference of the ranks' mean gradient from that of one process, relative to the largest gradient."""
    gradient_check: GradientCheck | None = None
    throughput_structures_per_s: list[PositiveRate] | None = None
    """Throughput of each epoch that is not discarded."""
    parameter_divergence: Error | None = None
    """Largest difference of a rank's parameters from those of rank 0 after training, relative to the largest one."""
    graph_sizes: list[tuple[NonNegative, NonNegative]] | None = None
    """Atoms and edges of some graphs of rank 0."""


EVENTS = (ScalingEpoch, ScalingSample, LocalStep, ComputeOnly, RankSteps, AllReduce, Region)
