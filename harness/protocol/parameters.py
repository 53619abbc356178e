"""What a case may ask of training, searches, studies and data: names, types and bounds, without torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from harness.protocol.errors import did_you_mean
from harness.protocol.types import Count, NotNegative, Positive, Strict, without_repeats

PrecisionName = Literal["fp64", "fp32", "bf16"]
StoreBackend = Literal["auto", "rma", "ddstore", "ddstore-libfabric"]
ReadMode = Literal["on_demand", "preload", "shared", "distributed"]
StageName = Literal[
    "baseline", "encoder_reuse", "branch_skip", "fused_gradient", "batched_heads", "torch_compile", "tuned_allocator",
    "fused_messages", "static_graphs", "mixed_precision",
]  # fmt: skip

StepStageName = Literal["baseline", "torch_compile", "fused_messages"]


class ModelSizes(Strict):
    """Sizes of an untrained model; lengths in angstrom."""

    backbone: Literal["painn", "pnaeq", "egnn", "schnet", "dimenet", "mace"] | None = None
    hidden_dim: Count | None = None
    num_conv_layers: Count | None = None
    cutoff: Positive | None = None
    max_neighbours: Count | None = None
    num_sharedlayers: NotNegative | None = None
    dim_sharedlayers: Count | None = None
    num_headlayers: NotNegative | None = None
    dim_headlayers: Count | None = None
    readout: Literal["sum", "extensive"] | None = None
    num_radial: Count | None = None
    norm_epsilon: Positive | None = None
    num_filters: Count | None = None
    num_gaussians: Annotated[int, Field(ge=2)] | None = None
    num_spherical: Annotated[int, Field(ge=2)] | None = None
    envelope_exponent: Count | None = None
    basis_emb_size: Count | None = None
    int_emb_size: Count | None = None
    out_emb_size: Count | None = None
    num_before_skip: NotNegative | None = None
    num_after_skip: NotNegative | None = None
    radial_type: Literal["bessel", "gaussian", "chebyshev"] | None = None
    distance_transform: Literal["none", "Agnesi", "Soft"] | None = None
    max_ell: Count | None = None
    node_max_ell: NotNegative | None = None
    correlation: Count | None = None


class LadderParameters(Strict):
    """One case of the inference ladder."""

    workload: Literal["random", "crystals", "file"]
    precision: PrecisionName
    structures: str | None = None
    stages: Annotated[list[StageName], AfterValidator(without_repeats)] | None = None
    checkpoint: str | None = None
    model: ModelSizes | None = None
    open_heads: Annotated[int, Field(ge=1, le=16)] | None = None
    batch_size: Count | Literal["auto"] | None = None
    batches: Count | None = None
    rounds: Count | None = None
    atoms: tuple[Count, Count] | None = None
    max_neighbours: Count | None = None
    products: Literal["bf16", "tf32"] | None = None
    device: Literal["cpu", "cuda", "xpu"] | None = None
    seed: int | None = None


class TrainParameters(Strict):
    """Training of model and gate, one process per rank; batch_size counts the graphs of one rank and step."""

    precision: PrecisionName | None = None
    model: ModelSizes | None = None
    sets: list[str] | None = None
    stores: str | None = None
    read: ReadMode | None = None
    width: Count | None = None
    store_backend: StoreBackend | None = None
    held_out: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    split_seed: int | None = None
    limit: Count | None = None
    sampling: Literal["mixed", "assigned"] | None = None
    temperature: Positive | None = None
    balance: Literal["none", "atoms"] | None = None
    batch_size: Count | None = None
    epochs: Count | None = None
    epoch_length: Count | None = None
    ahead: NotNegative | None = None
    force_weight: Positive | None = None
    units: Literal["plain", "head"] | None = None
    learning_rate: Positive | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    schedule: Literal["plateau", "cosine"] | None = None
    factor: Annotated[float, Field(gt=0, lt=1)] | None = None
    patience: NotNegative | None = None
    warmup_steps: NotNegative | None = None
    clip_norm: Positive | None = None
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    stop_after: Count | None = None
    validation_limit: Count | None = None
    heads: Literal["replicated", "parallel"] | None = None
    messages: Literal["plain", "fused"] | None = None
    compile: bool | None = None
    deterministic: bool | None = None
    gate_steps: NotNegative | None = None
    checkpoint_s: Positive | None = None
    backend: Literal["gloo", "nccl", "xccl"] | None = None
    device: Literal["cpu", "cuda", "xpu"] | None = None
    seed: int | None = None
    timeout_s: Positive | None = None
    minutes: Positive | None = None
    continues: bool | None = None


class TrainingStepsParameters(Strict):
    """Steps of training an untrained model on the random workload, each stage in turn; the update is left out."""

    precision: PrecisionName
    model: ModelSizes | None = None
    stages: Annotated[list[StepStageName], AfterValidator(without_repeats)] | None = None
    batch_size: Count | None = None
    batches: Count | None = None
    rounds: Count | None = None
    atoms: tuple[Count, Count] | None = None
    max_neighbours: Count | None = None
    force_weight: Positive | None = None
    device: Literal["cpu", "cuda", "xpu"] | None = None
    seed: int | None = None


class Network(Strict):
    """What a projection assumes: time of a message between nodes, and what a node can send."""

    latency_us: Annotated[float, Field(ge=0)]
    bandwidth_gb_s: Positive


class DataParallelParameters(Strict):
    """Data-parallel training steps, one process per rank; batch_size counts the graphs of one rank and step."""

    batch_size: Count
    precision: PrecisionName
    backend: Literal["gloo", "nccl", "xccl"] | None = None
    device: Literal["cpu", "cuda", "xpu"] | None = None
    model: ModelSizes | None = None
    sets: list[str] | None = None
    atoms: tuple[Count, Count] | None = None
    stores: str | None = None
    read: ReadMode | None = None
    width: Count | None = None
    store_backend: StoreBackend | None = None
    sampling: Literal["mixed", "assigned"] | None = None
    temperature: Positive | None = None
    ahead: Annotated[int, Field(ge=0)] | None = None
    steps: Count | None = None
    epochs: Annotated[int, Field(ge=2)] | None = None
    learning_rate: Positive | None = None
    force_weight: Positive | None = None
    max_neighbours: Count | None = None
    seed: int | None = None
    timeout_s: Positive | None = None
    network: Network | None = None


class DataParameters(Strict):
    """Conversion of one dataset to a store, or reading of all stores that the cases before it have made.

    source: a folder with one folder of official files a dataset; a dataset that is not there is stood in for.
    """

    task: Literal["convert", "read"]
    dataset: str
    source: str | None = None
    cutoff: Positive | None = None
    max_neighbours: Count | None = None
    max_force: Positive | None = None
    strict: bool | None = None
    workers: Count | None = None
    modes: list[ReadMode] | None = None
    width: Count | None = None
    store_backend: StoreBackend | None = None
    batch_size: Count | None = None
    batches: Count | None = None
    rounds: Count | None = None
    seed: int | None = None


class Range(Strict):
    """What a hyperparameter is searched between; log: every decade alike."""

    low: int | float
    high: int | float
    log: bool = False


class Halving(Strict):
    """Successive halving: after least_epochs, eta times as many, ... the best 1/eta of trials go on."""

    eta: Annotated[int, Field(ge=2)]
    least_epochs: Count


def searchable(space: dict[str, Any]) -> dict[str, Any]:
    """The space as it is; raises ValueError for a name that training does not know, and for an empty range."""
    known = {*ModelSizes.model_fields, *TrainParameters.model_fields} - {"model", "sets", "stores"}
    for name, of in space.items():
        if name not in known:
            raise ValueError(f"unknown hyperparameter {name!r}{did_you_mean(name, known)}")
        if isinstance(of, Range) and (of.low >= of.high or (of.log and of.low <= 0)):
            raise ValueError(f"{name}: from {of.low:g} to {of.high:g} is no range{' of a logarithm' * of.log}")
    return space


Space = Annotated[
    dict[str, Range | Annotated[list[int | float | str], Field(min_length=1)]], AfterValidator(searchable)
]


class HpoParameters(Strict):
    """A search for hyperparameters, whose trials are runs of `train`; own_space: over space, for one search alone."""

    space: Space
    own_space: Space | None = None
    backbone: Literal["painn", "pnaeq", "egnn", "schnet", "dimenet", "mace"] | None = None
    trial: TrainParameters | None = None
    evaluations: Count | None = None
    nodes_per_trial: Count | None = None
    at_once: Count | None = None
    trial_minutes: Positive | None = None
    minutes: Positive | None = None
    initial_points: Count | None = None
    objectives: list[Literal["accuracy", "throughput"]] | None = None
    warm_start: list[str] | None = None
    halving: Halving | None = None
    seed: int | None = None


class PrecisionParameters(Strict):
    """One backbone in several precisions side by side, fp64 first."""

    precisions: Annotated[list[PrecisionName], AfterValidator(without_repeats)] | None = None
    model: ModelSizes | None = None
    checkpoint: str | None = None
    sets: list[str] | None = None
    held_out: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    split_seed: int | None = None
    limit: Count | None = None
    temperature: Positive | None = None
    batch_size: Count | None = None
    steps: Count | None = None
    discard: NotNegative | None = None
    rounds: Count | None = None
    predictions: Count | None = None
    force_weight: Positive | None = None
    learning_rate: Positive | None = None
    backend: Literal["gloo", "nccl", "xccl"] | None = None
    device: Literal["cpu", "cuda", "xpu"] | None = None
    seed: int | None = None
