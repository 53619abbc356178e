"""The optimization ladder of inference: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from harness.protocol.parameters import AtomRange, DeviceName, ImplementationName, PrecisionName
from harness.protocol.programs.model import ModelParameters
from harness.protocol.records import (
    AtomicNumber,
    Bytes,
    Config,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    HeldOutErrors,
    ImplementationSource,
    NonNegative,
    Observed,
    Part,
    PhysicsCheck,
    Positive,
    PositiveCount,
    Seconds,
    Share,
    Time,
)
from harness.protocol.rounds import RoundParameters, RoundsEnded
from harness.protocol.types import NonNegativeInt, PositiveInt, check_unique

StageName = Literal[
    "baseline", "encoder_reuse", "branch_skip", "fused_gradient", "batched_heads", "torch_compile", "tuned_allocator",
    "fused_messages", "static_graphs", "mixed_precision",
]  # fmt: skip
STAGES: tuple[StageName, ...] = get_args(StageName)
# Stages that may differ from the baseline by more than rounding errors.
APPROXIMATE: frozenset[StageName] = frozenset({"branch_skip", "mixed_precision"})


class LadderParameters(RoundParameters):
    """The inference ladder: all stages in turn, on the same batches and in one process."""

    workload: Literal["random", "crystals", "file"]
    """Structures: random ones as in the paper, shipped crystals, or the first ones of a file that ASE reads."""
    precision: PrecisionName
    """Precision of every stage."""
    implementation: ImplementationName = "reference"
    """Whose code runs: that of this package, or a checkout of HydraGNN (settings hydragnn_folder, hydragnn_python)."""
    structure_file: str | None = None
    """File of the workload `file`."""
    stages: Annotated[tuple[StageName, ...], Field(min_length=1), AfterValidator(check_unique)] = STAGES
    """Stages to run, in the order of the ladder."""
    checkpoint: str | None = None
    """Model: a file, or the name of a shipped one; null for an untrained model of the sizes of `model`."""
    model: ModelParameters = ModelParameters()
    """Sizes of an untrained model."""
    active_heads: Annotated[int, Field(ge=1, le=16)] = 4
    """Number of heads that share the weight of the gate in an untrained model."""
    batch_size: PositiveInt | Literal["auto"] = 16
    """Structures per batch; auto: as many as fit into free memory in the stage that needs the most."""
    batches: PositiveInt = 2
    """Batches per round."""
    atoms: AtomRange = (2, 100)
    """Minimum and maximum number of atoms of a random structure."""
    max_neighbours: PositiveInt | None = 20
    """Maximum number of neighbours of an atom of a random structure; other workloads use the limit of the model."""
    matmul_precision: Literal["bf16", "tf32"] = "bf16"
    """Type of the matrix products of mixed_precision."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    transformations: NonNegativeInt = 0
    """Random rotations and reflections in the checks of each stage's physics; 0: no checks."""
    seed: NonNegativeInt = 0
    """Seed of weights and of the order of structures."""

    @model_validator(mode="after")
    def check_implementation(self) -> Self:
        """Raise ValueError for what HydraGNN's stages do not support."""
        if self.implementation == "hydragnn":
            if self.model.backbone != "painn":
                raise ValueError(
                    f"implementation: hydragnn runs the ladder of painn only, not of {self.model.backbone}"
                )
            if self.batch_size == "auto":
                raise ValueError("batch_size: only the implementation reference chooses it")
            if self.checkpoint is not None and not self.checkpoint.endswith(".pk"):
                raise ValueError("checkpoint: hydragnn reads a file MODEL.pk with its config.json next to it")
        return self

    @model_validator(mode="after")
    def check_file(self) -> Self:
        """Raise ValueError if the workload `file` has no file."""
        if self.workload == "file" and self.structure_file is None:
            raise ValueError("workload 'file' needs 'structure_file', the path of a file")
        return self


class Flops(Part):
    """Number of floating-point operations of one kind and type."""

    operation: str
    dtype: str
    flops: NonNegative


class WarmUp(EventRecord, tag="warm_up"):
    """The untimed first calls of a stage; operations and memory are those of one call on the first batch."""

    stage: str
    first_call_s: Seconds
    """Time of the first call, including compilation, or reading compiled code that torch has cached."""
    peak_bytes: Bytes | None = None
    memory_traffic_bytes: NonNegative | None = None
    matrix_flops: NonNegative | None = None
    flops: list[Flops] | None = None


class Unavailable(EventRecord, tag="unavailable"):
    """A stage that cannot run on this machine."""

    stage: str
    reason: str


class LadderSample(EventRecord, tag="sample"):
    """One timed call of a stage on one batch, and its errors against the baseline; null if a result is not finite."""

    stage: str
    round: Count
    batch: Count
    structures: PositiveCount
    device_s: Duration
    neighbour_lists_s: Seconds
    collation_s: Seconds
    transfer_s: Seconds
    end_time_s: Time | None = None
    load_1min: NonNegative | None = None
    """Load average of the machine over the last minute."""
    energy_dtype: str | None = None
    force_dtype: str | None = None
    finite: bool | None = None
    energy_error_ev_per_atom: Error | None = None
    force_error_ev_per_angstrom: Error | None = None
    energy_scale_ev_per_atom: Error | None = None
    """Largest energy of the baseline, for relative errors."""
    force_scale_ev_per_angstrom: Error | None = None


class Padding(EventRecord, tag="padding"):
    """Padding of a stage with static shapes."""

    stage: str
    shapes: list[Any]
    """Numbers of graphs, atoms and edges of each shape."""
    padding_atom_fraction: Share
    padding_edge_fraction: Share


class GroupTime(Part):
    """Time of one group of operations."""

    group: str
    ms: NonNegative
    fraction: NonNegative


class OperationTime(Part):
    """The calls of one operation in a profile, their time, and its fraction of the whole."""

    operation: str
    calls: Count
    ms: NonNegative
    fraction: NonNegative


class Profile(EventRecord, tag="profile"):
    """Profile of one call of the last stage."""

    stage: str
    rows: list[OperationTime]
    groups: list[GroupTime] | None = None


class LadderModel(Part):
    """The model that all stages of a ladder run."""

    config: Config
    trained: bool
    parameters: Count
    checkpoint: str | None = None
    gate_file: str | None = None
    """The file of the gate's weights, if it is separate from the checkpoint."""
    test_errors: list[HeldOutErrors] | None = None
    untrained_heads: list[str] | None = None
    forced_active_heads: PositiveCount | None = None

    def __post_init__(self) -> None:
        for name, kinds, expected in (("readout", (str,), "text"), ("cutoff", (int, float), "a number")):
            if name not in self.config:
                raise ValueError(f"config.{name} is missing")
            if not isinstance(self.config[name], kinds):
                raise ValueError(f"config.{name} is {self.config[name]!r}, expected {expected}")


class LadderWorkload(Part):
    """The batches of a ladder; numbers of structures, atoms and edges are totals."""

    structures: Count
    batches: Count
    batch_size: PositiveCount
    unseen_elements: list[AtomicNumber]
    max_neighbours: Count | None
    name: str | None = None
    atoms: Count | None = None
    edges: Count | None = None
    elements: Count | None = None


class LadderGate(Part):
    """The weights of the gate on the batches."""

    threshold: NonNegative
    """Weight below which a head is skipped."""
    active_heads: list[list[str]]
    """The heads whose weight reaches the threshold, for each batch."""
    mean_weight: dict[str, Share]


class LadderObserved(Observed, kw_only=True):
    """The types, the device and the software that a ladder observed."""

    threads: PositiveCount


class SquareRate(Part):
    """Rate of a square matrix product."""

    dtype: str
    gflop_per_s: Positive


class ProductRate(SquareRate):
    """Rate of a matrix product with the shape that dominates one kind of operations."""

    operation: str
    sizes: list[Count] | None = None


class Ceilings(Part):
    """Peak rates of the machine, measured in the same run."""

    copy_gb_per_s: Positive | None = None
    squares: list[SquareRate] | None = None
    products: list[ProductRate] | None = None


class AutoBatchSize(Part):
    """The automatically chosen batch size, and the measurements that it is based on."""

    batch_size: PositiveCount
    free_bytes: Bytes
    probe_structures: PositiveCount
    probe_peak_bytes: Bytes


class LadderFacts(Facts):
    """The model, workload, gate and machine of a ladder, and the rates and memory that limit its stages."""

    implementation: ImplementationSource | None = None
    model: LadderModel | None = None
    workload: LadderWorkload | None = None
    gate: LadderGate | None = None
    runtime: LadderObserved | None = None
    ceilings: Ceilings | None = None
    auto_batch_size: AutoBatchSize | None = None
    free_bytes: Bytes | None = None


EVENTS = (WarmUp, Unavailable, LadderSample, RoundsEnded, Padding, Profile, PhysicsCheck)
