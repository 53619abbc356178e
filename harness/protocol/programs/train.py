"""Training of the multi-task model and its gate: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from msgspec import Meta
from pydantic import Field, model_validator

from harness.protocol.parameters import (
    SPLIT_SEED,
    BackendName,
    DeviceName,
    Fraction,
    ImplementationName,
    MessageBackendName,
    Names,
    Parameters,
    PrecisionName,
    ReadMode,
    Sampling,
    StoreBackend,
    TestFraction,
    check_store_options,
)
from harness.protocol.programs.holdout import Holdout
from harness.protocol.programs.model import ModelParameters, require_hydragnn_training
from harness.protocol.records import (
    AtomicNumber,
    Config,
    Count,
    Counts,
    Error,
    EventRecord,
    Facts,
    HeldOutErrors,
    ImplementationSource,
    NonNegative,
    Number,
    Observed,
    Part,
    PhysicsCheck,
    PositiveCount,
    RankPlace,
    Rate,
    Seconds,
    Share,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt


class OptimizerParameters(Parameters):
    """Optimization of the weights: AdamW, its schedule, gradient clipping, and the average of the weights."""

    learning_rate: PositiveFloat = 1e-3
    """Learning rate before the schedule."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    """Weight decay of AdamW."""
    schedule: Literal["plateau", "cosine"] = "plateau"
    """Plateau: the rate is multiplied by `plateau_factor` when the validation loss has not improved for
    `plateau_patience` epochs, as in the paper. Cosine: the rate decreases to 1% over all steps."""
    plateau_factor: Fraction = 0.5
    """Factor by which the rate is multiplied on a plateau."""
    plateau_patience: NonNegativeInt = 5
    """Number of epochs without improvement after which the rate is multiplied."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly before either schedule."""
    clip_norm: PositiveFloat | None = None
    """Maximum norm of the gradient of all parameters; null: no clipping."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Decay of the moving average of the weights, with which the model is evaluated; null: no average."""


class TrainParameters(OptimizerParameters):
    """Training of model and gate, one process per rank."""

    implementation: ImplementationName = "reference"
    """Whose code runs: that of this package, or a checkout of HydraGNN (settings hydragnn_folder, hydragnn_python)."""
    precision: PrecisionName = "fp32"
    """Precision of training."""
    model: ModelParameters = ModelParameters()
    """Sizes of the model."""
    datasets: Names | None = None
    """Shipped datasets; null: all."""
    store_folder: str = ""
    """A folder of stores, which contain their splits, instead of shipped sets."""
    read_mode: ReadMode = "preload"
    """How ranks read stores. preload: each rank loads all structures; shared: the ranks of a node hold one copy;
    distributed: `replica_ranks` ranks hold one copy; on_demand: each structure is read from disk when it is needed."""
    replica_ranks: PositiveInt | None = None
    """Ranks that share one copy of the data, in the mode `distributed`; null: all."""
    store_backend: StoreBackend = "auto"
    """Library of the mode `distributed`; auto: DDStore where it is installed."""
    test_fraction: TestFraction = 0.1
    """Share of each shipped set for the test; half as many structures are for validation."""
    split_seed: int = SPLIT_SEED
    """Seed of the splits of shipped sets."""
    max_structures_per_dataset: PositiveInt | None = None
    """Number of structures of each shipped set to use, from its start; null: all."""
    holdout: Holdout | None = None
    """Rule for structures that training and validation leave out, and that are evaluated as a split of their own, and
    files of labelled structures that are evaluated in the same way."""
    sampling: Sampling = "mixed"
    """mixed: all ranks draw from all datasets; assigned: each rank draws from the dataset that it is assigned to."""
    sampling_temperature: PositiveFloat = 1.0
    """Datasets are weighted by count ** (1 / sampling_temperature)."""
    balance: Literal["none", "atoms"] = "none"
    """Whether the batches of all ranks have equal numbers of structures, or similar numbers of atoms."""
    batch_size: PositiveInt = 16
    """Structures per rank and step."""
    epochs: PositiveInt = 20
    """Maximum number of epochs."""
    samples_per_epoch: PositiveInt | None = None
    """Structures per epoch; null: the number of structures in the training sets."""
    prefetch_batches: NonNegativeInt = 2
    """Batches that are prepared in advance."""
    force_weight: PositiveFloat = 10.0
    """Weight of forces in the loss."""
    loss_units: Literal["physical", "per_head"] = "physical"
    """Units of errors in the loss: eV and eV/angstrom, as in the paper, or, for each head, the error of the composition
    model on its training set and the median over its structures of the mean size of force components."""
    loss_temperature: PositiveFloat | None = None
    """Temperature of the weights in the loss, with which the loss is that of samples drawn at this temperature; null:
    all samples have equal weights."""
    early_stopping_patience: PositiveInt | None = None
    """Number of epochs without a better validation loss after which the run ends; null: no early stopping."""
    max_validation_structures: PositiveInt = 64
    """Number of structures of each validation set that are evaluated after an epoch."""
    heads: Literal["replicated", "parallel"] = "replicated"
    """Whether every rank has all heads, or only those of its datasets; the latter needs assigned sampling."""
    message_backend: MessageBackendName = "fused"
    """Whether messages are computed as tensors of edges, or by the fused operator where there is one for the backbone
    and the device; results are equal except for rounding."""
    compile: bool = True
    """Whether the model is compiled."""
    deterministic: bool = True
    """Whether PyTorch uses deterministic algorithms."""
    gate_steps: NonNegativeInt = 3000
    """Steps of training the gate; 0 leaves it untrained."""
    shrink_heads: bool = False
    """Whether the learnt energies of each head are multiplied, after training, by the factor between 0 and 1 that has
    the lowest loss on the validation structures of the head, with force errors of at most those of zero forces."""
    checkpoint_interval_s: PositiveFloat = 300.0
    """Seconds between checkpoints of the training state."""
    backend: BackendName = "gloo"
    """Library by which ranks exchange gradients."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    seed: int = 0
    """Seed of weights and of the order of structures."""
    physics_transformations: NonNegativeInt = 0
    """Random rotations and reflections of each structure with which the physics of the checkpoint is checked at the
    end, together with the other checks; 0: none of them."""
    timeout_s: PositiveFloat = 600.0
    """Seconds that a rank waits for the others before the run fails."""
    time_limit_minutes: PositiveFloat | None = None
    """Minutes after which the run writes its state and ends, so that a later case can resume it; null: no limit."""
    resume_previous: bool = False
    """Whether the run resumes from the state of the case that it depends on."""

    @model_validator(mode="after")
    def check_implementation(self) -> Self:
        """Raise ValueError for what HydraGNN's training does not support."""
        if self.implementation == "hydragnn":
            require_hydragnn_training(self.model, self.store_folder)
            if self.holdout is not None:
                raise ValueError("implementation: hydragnn does not hold structures out; remove `holdout`")
            if self.resume_previous or self.time_limit_minutes is not None:
                raise ValueError("implementation: hydragnn does not resume, and so has no chains of links")
        return self

    @model_validator(mode="after")
    def check_stores(self) -> Self:
        """Raise ValueError for options of reading stores that have no effect."""
        check_store_options(self.store_folder, self.read_mode, self.replica_ranks, self.store_backend)
        return self

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        """Raise ValueError for parallel heads without assigned sampling."""
        if self.heads == "parallel" and self.sampling != "assigned":
            raise ValueError("heads: parallel heads need assigned sampling, with which a rank has its own datasets")
        return self


class TrainEpoch(EventRecord, tag="epoch"):
    """Means over the training structures of an epoch and over the validation sets."""

    epoch: Count
    step: Count
    duration_s: Seconds
    structures_per_s: Rate
    loss: Number | None = None
    energy_mae_ev_per_atom: Error | None = None
    force_mae_ev_per_angstrom: Error | None = None
    validation_loss: Number | None = None
    validation_energy_mae_ev_per_atom: Error | None = None
    validation_force_mae_ev_per_angstrom: Error | None = None
    learning_rate: Number | None = None
    wait_s: Seconds | None = None
    """Time that the slowest rank waited for data."""
    best: bool | None = None
    """Whether no earlier epoch had a lower validation loss."""


class HeadErrors(EventRecord, tag="head_errors"):
    """Errors of one head on one split after an epoch."""

    epoch: Count
    head: str
    dataset: str
    split: str
    energy_mae_ev_per_atom: Error | None
    force_mae_ev_per_angstrom: Error | None
    structures: Count | None = None


class StructureErrors(EventRecord, tag="structure_errors"):
    """Errors of the head of one structure's dataset, after training with a holdout."""

    head: str
    dataset: str
    split: Literal["inside", "outside"]
    """Whether the structure satisfies the rule of the holdout or is from a file (outside)."""
    index: Count
    """Number of the structure in its split or file."""
    atoms: PositiveCount
    energy_error_ev_per_atom: Number
    """Predicted minus labelled energy."""
    composition_error_ev_per_atom: Error
    """Absolute error of the reference energies alone."""
    force_mae_ev_per_angstrom: Error | None = None
    zero_force_mae_ev_per_angstrom: Error | None = None
    """Error of predicting zero forces."""
    held_out_share: Share = 0.0
    """Share of atoms of the elements that the rule names."""
    file: str | None = None
    """The file of `holdout.files` that contains the structure."""
    distance: NonNegative | None = None
    """Distance of the pooled features per atom from those of the training sets."""


class Resumed(EventRecord, tag="resumed"):
    """The run continues from a state on disk; the events of the earlier epochs are logged again before this event."""

    step: Count
    epoch: Count


class SkippedStep(EventRecord, tag="skipped"):
    """A step that was skipped because its gradient was not finite."""

    step: Count
    worst: str | None = None
    """The structure of rank 0 with the largest error."""


class Stopped(EventRecord, tag="stopped"):
    """The reason why a run ended before its last epoch."""

    reason: str
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
    """A dataset, with the numbers of structures in its splits and of the structures that an epoch draws."""

    dataset: str
    data_origin: str
    head: str | None = None
    level_of_theory: str | None = None
    train: Count | None = None
    validation: Count | None = None
    test: Count | None = None
    samples_per_epoch: Count | None = None


class TrainWorkload(Part):
    """The data that the model is trained on, and the parameters that the analysis reads."""

    datasets: list[TrainSet] | None = None
    elements: list[AtomicNumber] | None = None
    global_batch_size: PositiveCount | None = None
    steps_per_epoch: Count | None = None
    batch_size: PositiveCount | None = None
    epochs: Count | None = None
    sampling_temperature: NonNegative | None = None
    seed: int | None = None
    sampling: str | None = None
    split_seed: int | None = None
    loss_units: str | None = None
    loss_temperature: NonNegative | None = None
    heads: str | None = None
    balance: str | None = None
    read_mode: str | None = None


class GateErrors(Part):
    """Errors of the gate on its training data."""

    energy_error_ev_per_atom: Error | None = None
    """Mean absolute difference of the mixed energy from the energy of the correct head."""
    accuracy: Share | None = None
    """Share of structures for which the correct head has more than half of the weight."""


class HeadFactor(Part):
    """The factor by which the learnt energies of a head were multiplied after training."""

    head: str
    factor: Share


class HoldoutSet(Part):
    """The structures outside of a dataset, or of a file for its head."""

    dataset: str
    head: str
    outside: Count
    """Structures of the test set that satisfy the rule, or structures of the file."""
    without_reference: Count
    """Those of the evaluated ones with an element that has no reference energy, whose errors are unknown."""
    file: str | None = None
    """The file of `holdout.files`."""
    sha256: str | None = None
    """SHA-256 of the content of the file, in hexadecimal digits."""


class TrainFacts(Facts):
    """The model, datasets and ranks of a training, and the errors of the trained model."""

    implementation: ImplementationSource | None = None
    model: TrainModel | None = None
    workload: TrainWorkload | None = None
    ranks: Annotated[list[RankPlace], Meta(min_length=1)] | None = None
    runtime: Observed | None = None
    compiled_graphs: Count | None = None
    gate: GateErrors | None = None
    head_factors: list[HeadFactor] | None = None
    test_errors: list[HeldOutErrors] | None = None
    holdout: list[HoldoutSet] | None = None
    train_s: Seconds | None = None
    completed_in: str | None = None
    """The folder of the case of a chain in which the training ended, if it ended in an earlier case."""


EVENTS = (TrainEpoch, HeadErrors, StructureErrors, Resumed, SkippedStep, Stopped, PhysicsCheck)
