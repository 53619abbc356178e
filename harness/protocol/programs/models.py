"""Comparison of interatomic potentials: parameters, events and facts."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from harness.protocol.parameters import DeviceName, Names, ParameterGroup, Parameters
from harness.protocol.records import (
    Bytes,
    Count,
    Duration,
    Error,
    EventRecord,
    Facts,
    NonNegative,
    Part,
    PhysicsCheck,
    PositiveCount,
    Time,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt

# The published precision is the one in which the authors of a model distribute it.
PotentialPrecision = Literal["published", "fp64", "fp32", "bf16"]


class CalculatorClass(ParameterGroup):
    """A class to import, and the arguments to call it with."""

    module: str
    """The module to import, such as `sevenn.calculator`."""
    class_name: str
    """The class, or function, in it."""
    kwargs: dict[str, Any] = Field(default={})
    """Keyword arguments."""


class HydraFiles(ParameterGroup):
    """A model that HydraGNN has written."""

    checkpoint: str
    """Its `.pk` file."""
    config: str
    """Its `config.json`."""
    gate: str | None = None
    """The weights of its branches, `mlp_branch_weights.pt`."""
    head: str | None = None
    """The dataset of one branch, such as MPTrj. Null: the gate weighs all branches."""


class ModelDefinition(ParameterGroup):
    """An interatomic potential: an ASE calculator (module, class_name, kwargs), a checkpoint, or a torch-sim model."""

    module: str | None = None
    """The module of an ASE calculator."""
    class_name: str | None = None
    """The calculator's class, or a function that returns a calculator."""
    kwargs: dict[str, Any] = Field(default={})
    """Its keyword arguments."""
    checkpoint: str | None = None
    """A checkpoint of the reference implementation: its path, or the name of a shipped one."""
    hydragnn: HydraFiles | None = None
    """A checkpoint of HydraGNN."""
    torch_sim: CalculatorClass | None = None
    """A model with the interface of torch-sim, which predicts many structures at once."""
    precisions: dict[PotentialPrecision, dict[str, Any]] = Field(default={})
    """The keyword arguments that each precision needs in addition."""
    compiled: dict[str, Any] | None = None
    """The keyword arguments with which the model is compiled, such as `{compile_mode: default}`. Null: it cannot be."""
    python: str | None = None
    """The Python of another environment, in which the model is installed."""
    install: str = ""
    """What brings the module where it is absent, such as `pip install sevenn`."""
    place: str = ""
    """The file and line of the definition; filled in when the file is read."""

    @model_validator(mode="after")
    def check_kind(self) -> Self:
        """Raise ValueError unless exactly one kind of model is named."""
        kinds = [name for name in ("module", "checkpoint", "hydragnn", "torch_sim") if getattr(self, name) is not None]
        if len(kinds) != 1:
            names = " and ".join(kinds) or "none of them"
            raise ValueError(f"expected one of module, checkpoint, hydragnn and torch_sim, got {names}")
        if (self.module is None) != (self.class_name is None):
            raise ValueError("a calculator needs both module and class_name")
        return self


class ModelsParameters(Parameters):
    """Interatomic potentials compared on the same structures: speed, memory, errors, and physics."""

    models: Names | None = None
    """Names of models in models/*.yaml and among the shipped ones. Null: all of them."""
    definitions: dict[str, ModelDefinition] = Field(default={})
    """The definitions of these models; filled in from the files when the suite is expanded."""
    precision: PotentialPrecision = "published"
    """Precision of the models; those that do not offer it are unavailable."""
    compiled: bool = False
    """Whether the models are compiled; those that cannot be are unavailable."""
    device: DeviceName = "cpu"
    """Where the models run."""
    threads: PositiveInt = 1
    """Threads of each model."""
    datasets: Names = ("omat24", "mptrj")
    """Shipped labelled sets on whose structures errors are measured."""
    structures_per_dataset: PositiveInt = 16
    """Structures of each set."""
    sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (8, 64, 216)
    """Numbers of atoms of the cells that are timed; the nearest cubic supercells of rock salt are used."""
    rounds: PositiveInt = 6
    """Rounds; in each, every model predicts every size once."""
    max_atoms: NonNegativeInt = 0
    """Bound of the search for the largest cell that fits into memory; 0: no search."""
    timeout_s: PositiveFloat = 300.0
    """Time after which a request to a model counts as failed."""
    physics: bool = True
    """Whether symmetries, forces, smoothness and energy conservation are checked."""
    transformations: PositiveInt = 100
    """Random rotations and reflections per structure."""
    dynamics_steps: NonNegativeInt = 200
    """Steps of molecular dynamics at constant energy; 0: none."""
    seed: int = 0
    """Seed of structures and transformations."""


class ModelLoaded(EventRecord, tag="model_loaded"):
    """A model that answered; the class and the versions are as found in its environment."""

    model: str
    class_name: str
    load_s: Duration
    properties: list[str]
    """The properties that it predicts."""
    packages: dict[str, str]
    """Versions of the model's package, ASE, NumPy and torch."""
    python: str
    parameters: Count | None = None
    """Number of trainable parameters, if the calculator holds a torch module."""
    dtype: str | None = None
    """The type of its parameters."""


class ModelUnavailable(EventRecord, tag="model_unavailable"):
    """A model that cannot be measured here: it is not installed, or does not offer the precision."""

    model: str
    reason: str


class ModelFailed(EventRecord, tag="model_failed"):
    """A model whose answers are wrong, or which ended; the others go on."""

    model: str
    step: str
    """What was asked of it."""
    reason: str


class PotentialSample(EventRecord, tag="sample"):
    """One timed prediction of energy and forces, after a random displacement of all atoms."""

    model: str
    atoms: PositiveCount
    round: Count
    device_s: Duration
    load_1min: NonNegative
    end_time_s: Time | None = None


class PotentialMemory(EventRecord, tag="memory"):
    """Peak memory of the model's process after predictions of this size: resident, and of the accelerator."""

    model: str
    atoms: Count
    """0: after loading."""
    peak_bytes: Bytes
    device_peak_bytes: Bytes | None = None


class LargestSize(EventRecord, tag="largest_size"):
    """The largest cell that a model could predict, and what ended the search."""

    model: str
    atoms: Count
    limit: str


class PotentialErrors(EventRecord, tag="potential_errors"):
    """Errors against the labels of a dataset, or deviations from the model's own FP64 predictions.

    Energies against labels are differences between structures of one composition, so that no reference energy matters.
    """

    model: str
    reference: Literal["labels", "fp64"]
    dataset: str
    level_of_theory: str
    """That of the labels."""
    structures: Count
    energy_mae_ev_per_atom: Error | None = None
    force_mae_ev_per_angstrom: Error | None = None
    force_max_ev_per_angstrom: Error | None = None
    stress_mae_ev_per_angstrom3: Error | None = None
    excluded: dict[str, Count] | None = None
    """Structures that the model refused, by reason."""


class ModelsWorkload(Part):
    """What the models are asked."""

    structures: Count
    atoms: list[PositiveCount]
    """Atoms of the cells that are timed."""


class ModelsFacts(Facts):
    """Facts of a comparison of models."""

    workload: ModelsWorkload | None = None
    device: str | None = None
    device_name: str | None = None
    threads: PositiveCount | None = None


EVENTS = (
    ModelLoaded,
    ModelUnavailable,
    ModelFailed,
    PotentialSample,
    PotentialMemory,
    LargestSize,
    PotentialErrors,
    PhysicsCheck,
)
