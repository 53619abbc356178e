"""Molecular dynamics and relaxations in batches: parameters, events and facts of the program `dynamics`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from harness.protocol.parameters import DeviceName, Parameters, PrecisionName
from harness.protocol.records import (
    Count,
    Duration,
    Energy,
    Error,
    EventRecord,
    Facts,
    NonNegative,
    Number,
    Observed,
    Part,
    PositiveCount,
    Seconds,
)
from harness.protocol.types import NonNegativeInt, PositiveFloat, PositiveInt

MotionName = Literal["nve", "langevin", "relaxation"]
SourceName = Literal["crystal", "molecule", "dataset", "prototypes"]
RELAXED_TOLERANCE_MEV = 1.0  # largest difference of energies per atom between ends of relaxations that count as equal


class DynamicsParameters(Parameters):
    """Molecular dynamics or relaxations of many structures, which pass through one batch."""

    motion: MotionName = "nve"
    """Velocity Verlet at constant energy, Langevin dynamics at constant temperature, or relaxation by FIRE."""
    source: SourceName = "crystal"
    """Copies of a shipped crystal or molecule, structures of `dataset`, or candidates of the screening."""
    structure_file: str | None = None
    """A file of structures in a format of ASE, in place of `source`; null: none."""
    dataset: str = "qm7x"
    """The shipped dataset from which structures are drawn at random."""
    count: PositiveInt = 1
    """Number of structures; of a file, the first ones."""
    cells: PositiveInt = 2
    """Number of unit cells of the shipped crystal in each direction."""
    max_atoms: PositiveInt = 200
    """Largest number of atoms of a structure of the dataset."""
    steps: PositiveInt = 200
    """Number of time steps, or maximum number of steps of a relaxation."""
    time_step_fs: PositiveFloat = 1.0
    """Time step of dynamics in fs."""
    temperature_k: PositiveFloat = 300.0
    """Temperature of the initial velocities and of the thermostat in kelvin."""
    friction_per_ps: PositiveFloat = 10.0
    """Friction of Langevin dynamics in 1/ps."""
    fmax: PositiveFloat = 0.05
    """Limit of the forces of a relaxation in eV/angstrom."""
    record_interval: PositiveInt = 10
    """Number of time steps between recorded energies."""
    batch_size: PositiveInt | None = None
    """Maximum number of structures in the batch; null: only the number of edges limits it."""
    edges_per_batch: PositiveInt = 40_000
    """Number of pairs in the Verlet lists of the batch, from which on no structure enters."""
    checkpoint: str = "painn-64"
    """The model: a file, or the name of a shipped model."""
    head: str | None = None
    """The dataset whose head predicts; null: the gate weights all heads."""
    precision: PrecisionName = "fp64"
    """Precision of the model; positions and velocities are in double precision."""
    device: DeviceName = "cpu"
    """The device that runs the model."""
    steps_per_sample: PositiveInt = 10
    """Number of steps of the batch in a timed sample."""
    state_interval_s: PositiveFloat = 60.0
    """Seconds after which the state is saved again, from which a run continues after a kill."""
    ase_rounds: NonNegativeInt = 6
    """Number of comparisons with ASE, which moves one structure at a time with the same model; 0: none."""
    ase_structures: PositiveInt = 2
    """Number of structures that ASE moves in turn, in dynamics; in relaxations, each round relaxes another one."""
    seed: NonNegativeInt = 0
    """Seed of the choice of structures, of velocities and of noise."""

    @model_validator(mode="after")
    def check_intervals(self) -> Self:
        """Raise ValueError if no energy would be recorded after the start."""
        if self.motion != "relaxation" and self.record_interval > self.steps:
            raise ValueError(f"record_interval is {self.record_interval}, expected at most steps, {self.steps}")
        return self


class DynamicsSample(EventRecord, tag="sample"):
    """The time of some consecutive steps of the batch."""

    batch_steps: Count
    """Number of steps, without those in which no structure could be evaluated."""
    structure_steps: Count
    """Sum over the steps of the number of structures in the batch."""
    atom_steps: Count
    """Sum over the steps of the number of atoms in the batch."""
    edges: Count
    """Largest number of pairs in the Verlet lists of the batch."""
    rebuilt_lists: Count
    """Verlet lists that were built, including the first one of each structure."""
    wall_s: Duration
    cpu_s: Seconds
    """CPU time, over all threads."""
    lists_s: Seconds
    """Wall time for neighbour lists."""
    model_s: Seconds
    """Wall time for energies and forces."""
    is_warmup: bool
    """Whether these are the first steps of the process."""
    load_1min: NonNegative
    """Average load of the machine."""


class AseEvaluation(Part):
    """What ASE calculates for a structure."""

    energy_ev: Energy
    force_max_ev_per_angstrom: Error
    """The largest force or row of the scaled stress, which the criterion of convergence is on."""


class AseSample(EventRecord, tag="ase_sample"):
    """The time that ASE needs to move one structure with the same model."""

    round: Count
    index: Count
    """The position of the structure among all structures."""
    atoms: PositiveCount
    evaluations: PositiveCount
    """Number of steps; in a relaxation, also the evaluation after the last step."""
    step: Count
    """Number of steps since the start of the structure."""
    wall_s: Duration
    cpu_s: Seconds
    energy_ev: Energy
    """The potential energy at the end."""
    initial_energy_ev: Energy
    """The potential energy at the start of the structure."""
    converged: bool | None = None
    spacegroup: str | None = None
    """International symbol of the relaxed crystal."""
    batch_end: AseEvaluation | None = None
    """What ASE calculates for the structure at the end of its relaxation in the batch."""
    displaced_energies_ev: list[Number] | None = None
    """The energies at the end of further relaxations by ASE, from positions displaced by about the error of rounding;
    null if the energy at the end agrees with that of the batch, or if they do not converge."""


class StructureTrajectory(EventRecord, tag="trajectory"):
    """The recorded energies of a structure in dynamics."""

    index: Count
    structure: str
    atoms: PositiveCount
    steps: list[Count]
    potential_ev: list[Number]
    kinetic_ev: list[Number]
    """Kinetic energies; in Langevin dynamics, those right after the thermostat has acted."""


class StructureRelaxation(EventRecord, tag="relaxation"):
    """The relaxation of a structure."""

    index: Count
    structure: str
    atoms: PositiveCount
    converged: bool
    steps: Count
    initial_energy_ev: Energy
    energy_ev: Energy
    force_max_ev_per_angstrom: Error
    spacegroup: str | None = None
    """International symbol of the relaxed crystal."""


class UnfinishedStructure(EventRecord, tag="unfinished"):
    """A structure that left the batch before its end, and the reason."""

    index: Count
    structure: str
    reason: str


class DynamicsModel(Part):
    """The model that moves the structures."""

    checkpoint: str
    hidden_dim: PositiveCount
    backbone: str
    parameters: Count
    message_backend: str


class DynamicsWorkload(Part):
    """The structures, and how many steps of the batch an earlier attempt had made."""

    source: str
    structures: Count
    atoms: Count
    """Number of atoms of all structures."""
    earlier_batch_steps: Count
    file: str
    """The file of the structures at the end, in the folder of the case."""


class DynamicsFacts(Facts):
    """The facts of a run of the program `dynamics`."""

    model: DynamicsModel | None = None
    workload: DynamicsWorkload | None = None
    runtime: Observed | None = None


EVENTS = (DynamicsSample, AseSample, StructureTrajectory, StructureRelaxation, UnfinishedStructure)
