"""Labels of new structures: parameters, events and facts of the program `labels`."""

from __future__ import annotations

from pydantic import Field

from harness.protocol.parameters import Parameters
from harness.protocol.programs.models import ModelDefinition
from harness.protocol.records import Count, Counts, Energy, Error, EventRecord, Facts, Part, PositiveCount, Seconds
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt


class LabelsParameters(Parameters):
    """Energies and forces of structures by a calculator; ranks share the structures."""

    calculator: str
    """The name of a calculator that models/*.yaml or the package defines, such as `gfn2-xtb`."""
    definitions: dict[str, ModelDefinition] = Field(default={})
    """The definition of the calculator by its name; set from the files when the suite is expanded."""
    structure_file: str | None = None
    """A file of structures in a format of ASE, or the file best.csv of a screening. Null: structures of `dataset`."""
    dataset: str = "qm7x"
    """The shipped dataset from which structures are drawn at random if there is no file."""
    count: PositiveInt | None = None
    """Number of structures: the first ones of the file, the best of the screening, or random ones; null: all."""
    max_atoms: PositiveInt = 200
    """Largest number of atoms of a labelled structure; larger ones count as failed."""
    supercells: bool = False
    """Whether small cells are repeated to at least eight atoms, for calculators that use the Gamma point alone."""
    time_limit_s: PositiveFloat = 3600.0
    """Time after which the calculation of a structure is stopped and counts as failed."""
    threads: PositiveInt = 1
    """Number of threads of the calculator on each rank."""
    checkpoint: str | None = None
    """A model whose errors against the labels are measured: a file, or the name of a shipped model; null: none."""
    head: str | None = None
    """The dataset whose head predicts; null: the gate weights all heads."""
    seed: NonNegativeInt = 0
    """Seed of the choice of structures of a dataset."""


class StructureLabel(EventRecord, tag="label"):
    """A labelled structure, and the prediction of the model if there is one."""

    index: Count
    """The position of the structure in the source."""
    structure: str
    elements: Counts
    """Number of atoms of each element, by symbol."""
    energy_ev: Energy
    force_mean_ev_per_angstrom: Error
    """Mean absolute component of the forces."""
    force_max_ev_per_angstrom: Error
    """Largest absolute component of the forces."""
    calculation_s: Seconds
    predicted_energy_ev: Energy | None = None
    force_error_ev_per_angstrom: Error | None = None
    """Mean absolute error of the predicted components of the forces."""
    unpredicted_reason: str | None = None
    """The reason why the model does not predict the structure."""


class UnlabelledStructure(EventRecord, tag="label_failed"):
    """A structure that could not be labelled, and the reason."""

    index: Count
    structure: str
    elements: Counts
    reason: str
    calculation_s: Seconds


class LabelCalculator(Part):
    """The calculator, with the versions in its environment."""

    name: str
    class_name: str
    level_of_theory: str
    properties: list[str]
    packages: dict[str, str]
    python: str


class LabelsWorkload(Part):
    """The structures, and how many of them an earlier attempt had finished."""

    source: str
    structures: Count
    finished_earlier: Count
    ranks: PositiveCount
    threads: PositiveCount
    sha256: str | None = None
    """Digest of the file of structures."""
    checkpoint: str | None = None
    head: str | None = None


class LabelsFacts(Facts):
    """The facts of a run of the program `labels`."""

    calculator: LabelCalculator | None = None
    workload: LabelsWorkload | None = None
    file: str | None = None
    """The file with the labels, in the folder of the case."""


EVENTS = (StructureLabel, UnlabelledStructure)
