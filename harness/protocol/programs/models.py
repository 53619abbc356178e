"""The parameters, events and facts of the program `models`, which compares interatomic potentials."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from harness.protocol.parameters import DeviceName, Names, ParameterGroup
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
from harness.protocol.rounds import RoundParameters, RoundsEnded
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt

# "published" is the precision in which the authors of a model distribute it.
PotentialPrecision = Literal["published", "fp64", "fp32", "bf16"]


class CalculatorClass(ParameterGroup):
    """A class to import, and the arguments of its constructor."""

    module: str
    """The module to import, such as `sevenn.calculator`."""
    class_name: str
    """The class, or a function that returns an object, in this module."""
    kwargs: dict[str, Any] = Field(default={})
    """Keyword arguments of the class or function."""


class HydraGNNFiles(ParameterGroup):
    """The files of a model that HydraGNN has saved."""

    checkpoint: str
    """The file of the weights, `*.pk`."""
    config: str
    """The file `config.json`, which HydraGNN writes next to the weights."""
    gate: str | None = None
    """The file of the gate's weights, `mlp_branch_weights.pt`. Null: all branches have equal weights."""
    head: str | None = None
    """The dataset whose branch predicts, such as MPTrj. Null: all branches predict, and the gate weights them."""


class ModelDefinition(ParameterGroup):
    """An interatomic potential: an ASE calculator (module, class_name, kwargs), a checkpoint, or a torch-sim model."""

    module: str | None = None
    """The module of an ASE calculator."""
    class_name: str | None = None
    """The calculator's class, or a function that returns a calculator."""
    kwargs: dict[str, Any] = Field(default={})
    """Keyword arguments of the calculator."""
    checkpoint: str | None = None
    """A checkpoint of the reference implementation: its path, or the name of a shipped one."""
    hydragnn: HydraGNNFiles | None = None
    """A checkpoint of HydraGNN."""
    torch_sim: CalculatorClass | None = None
    """A model with the interface of torch-sim, which predicts many structures at once."""
    precisions: dict[PotentialPrecision, dict[str, Any]] = Field(default={})
    """The keyword arguments that each precision needs in addition."""
    compiled: dict[str, Any] | None = None
    """The keyword arguments that compile the model, such as `{compile_mode: default}`. Null: it cannot be compiled."""
    python: str | None = None
    """The Python interpreter of the environment in which the model is installed. Null: that of the harness."""
    level_of_theory: str | None = None
    """The level of theory of a calculator from first principles. Null: a model, which `models: null` includes."""
    install: str = ""
    """The command that installs the module, such as `pip install sevenn`; error messages quote it."""
    place: str = ""
    """The file and line of the definition; set when the file is read."""

    @model_validator(mode="after")
    def check_kind(self) -> Self:
        """Raise ValueError unless the definition names exactly one kind of model."""
        kinds = [name for name in ("module", "checkpoint", "hydragnn", "torch_sim") if getattr(self, name) is not None]
        if len(kinds) != 1:
            names = " and ".join(kinds) or "none of them"
            raise ValueError(f"expected one of module, checkpoint, hydragnn and torch_sim, got {names}")
        if (self.module is None) != (self.class_name is None):
            raise ValueError("a calculator needs both module and class_name")
        return self


class ModelsParameters(RoundParameters):
    """Parameters of a comparison of interatomic potentials: their speed, memory, errors and physics."""

    models: Names | None = None
    """Names of models that models/*.yaml or the package defines. Null: all but levels of theory."""
    definitions: dict[str, ModelDefinition] = Field(default={})
    """The definitions of these models by name; set from the files when the suite is expanded."""
    precision: PotentialPrecision = "published"
    """Precision of the models; those that do not offer it are unavailable."""
    compiled: bool = False
    """Whether the models are compiled; those that cannot be are unavailable."""
    device: DeviceName = "cpu"
    """The device on which the models run."""
    threads: PositiveInt = 1
    """Number of threads of each model."""
    datasets: Names = ("omat24", "mptrj")
    """Shipped datasets on whose labels the errors are measured."""
    structures_per_dataset: PositiveInt = 16
    """Number of structures of each dataset."""
    sizes: Annotated[tuple[PositiveInt, ...], Field(min_length=2)] = (8, 64, 216)
    """Numbers of atoms of the timed crystals; the n x n x n supercells with the nearest numbers are used."""
    max_atoms: NonNegativeInt = 0
    """Largest number of atoms in the search for the largest crystal that fits into memory; 0: no search."""
    timeout_s: PositiveFloat = 300.0
    """Time after which a request to a model counts as failed."""
    physics: bool = True
    """Whether symmetries, forces, smoothness and energy conservation are checked."""
    transformations: PositiveInt = 100
    """Number of random rotations and reflections per structure."""
    dynamics_steps: NonNegativeInt = 200
    """Number of steps of molecular dynamics at constant energy; 0: no dynamics."""
    seed: NonNegativeInt = 0
    """Seed of the choice of structures and of all random transformations."""


class ModelLoaded(EventRecord, tag="model_loaded"):
    """The description of a model that was loaded, with the versions in its environment."""

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
    """The floating-point type of the parameters."""


class ModelUnavailable(EventRecord, tag="model_unavailable"):
    """A model is unavailable here: it is not installed, or does not offer the precision."""

    model: str
    reason: str


class ModelFailed(EventRecord, tag="model_failed"):
    """A model has failed, and is excluded from then on."""

    model: str
    step: str
    """The measurement in which it failed."""
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
    """The peak memory of a model's process, resident and on the accelerator, after predictions for a crystal."""

    model: str
    atoms: Count
    """Number of atoms of the crystal; 0: after the first prediction for the smallest one."""
    peak_bytes: Bytes
    device_peak_bytes: Bytes | None = None


class LargestSize(EventRecord, tag="largest_size"):
    """The largest crystal that a model could predict, at least the largest timed one, and why the search ended."""

    model: str
    atoms: Count
    limit: str


class PotentialErrors(EventRecord, tag="potential_errors"):
    """Errors against the labels of a dataset, or deviations from the model's own FP64 predictions.

    The error of energies against labels is the mean absolute deviation from the mean error of structures of equal
    composition, so that reference energies cancel.
    """

    model: str
    reference: Literal["labels", "fp64"]
    dataset: str
    level_of_theory: str
    """The level of theory of the labels."""
    structures: Count
    energy_mae_ev_per_atom: Error | None = None
    force_mae_ev_per_angstrom: Error | None = None
    force_max_ev_per_angstrom: Error | None = None
    stress_mae_ev_per_angstrom3: Error | None = None
    excluded: dict[str, Count] | None = None
    """Number of structures that the model refused, or for which its FP64 predictions failed, by reason."""


class ModelsWorkload(Part):
    """The structures that the models predict."""

    structures: Count
    atoms: list[PositiveCount]
    """Numbers of atoms of the timed crystals."""


class ModelsFacts(Facts):
    """The facts of a comparison of models."""

    workload: ModelsWorkload | None = None
    device: str | None = None
    device_name: str | None = None
    threads: PositiveCount | None = None


EVENTS = (
    ModelLoaded,
    ModelUnavailable,
    ModelFailed,
    PotentialSample,
    RoundsEnded,
    PotentialMemory,
    LargestSize,
    PotentialErrors,
    PhysicsCheck,
)
