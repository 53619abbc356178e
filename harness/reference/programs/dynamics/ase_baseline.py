"""Measure the baseline: ASE's integrators and optimizer with the reference calculator, one structure at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from numpy.random import default_rng

from harness.protocol.programs.dynamics import RELAXED_TOLERANCE_MEV, AseEvaluation, AseSample, DynamicsParameters
from harness.reference.data.structure import Structure
from harness.reference.datasets.user_files import structure_from_ase
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.molecular_dynamics import Dynamics
from harness.reference.inference.structure_batch import NOT_FINITE
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.symmetry import find_spacegroup

# The standard deviation of displacements, about the rounding error of a coordinate, by the precision of the model.
DISPLACEMENT_ANGSTROM = {"fp64": 1e-10, "fp32": 1e-6, "bf16": 1e-2}
MAX_DISPLACED = 4  # number of relaxations from displaced positions


class FiniteCalculator(ReferenceCalculator):
    """A calculator that raises InputError if energies or forces are not finite; the batch removes such structures."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        """Calculate as ReferenceCalculator does, and raise InputError if energy or forces are not finite."""
        super().calculate(*args, **kwargs)
        if not (np.isfinite(self.results["energy"]) and np.isfinite(self.results["forces"]).all()):
            raise InputError(NOT_FINITE)


class AseBaseline:
    """The structures of a case, which ASE moves with the model of the case.

    Args:
        config: The parameters of the case.
        model: The model.
        structures: All structures.
    """

    def __init__(self, config: DynamicsParameters, model: FoundationModel, structures: Sequence[Structure]) -> None:
        self.config, self.structures = config, structures
        self.calculator = FiniteCalculator(model, head=config.head, precision=config.precision, device=config.device)
        self._moving: dict[int, tuple[Any, float]] = {}  # integrators and initial energies in eV by index

    def measure(self, number: int, index: int, end: Structure | None = None) -> AseSample | None:
        """Relax a structure, or move it by `record_interval` steps, and return the time that this takes.

        Return None if it leaves the training sets, has no neighbour list (its cell collapses, for example), or has
        energies or forces that are not finite; the batch reports such structures as unfinished.

        Args:
            number: The number of the round.
            index: The position of the structure among all structures.
            end: The structure and its energy at the end of its relaxation in the batch, if it has converged there.
        """
        try:
            if self.config.motion == "relaxation":
                sample = self._relax(number, index)
                return sample if end is None else self._compare_ends(sample, end)
            return self._integrate(number, index)
        except InputError:
            return None

    def _build_atoms(self, structure: Structure) -> Atoms:
        atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
        atoms.info |= {"charge": structure.charge, "multiplicity": structure.multiplicity}
        atoms.calc = self.calculator
        return atoms

    def _relax(self, number: int, index: int) -> AseSample:
        structure = self.structures[index]
        atoms = self._build_atoms(structure)
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        initial_energy = atoms.get_potential_energy()
        optimizer = FIRE(add_cell(atoms), logfile=None)
        converged = bool(optimizer.run(fmax=self.config.fmax, steps=self.config.steps))
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return AseSample(
            round=number, index=index, atoms=len(structure), evaluations=optimizer.nsteps + 1, step=optimizer.nsteps,
            wall_s=wall_s, cpu_s=cpu_s, energy_ev=atoms.get_potential_energy(), initial_energy_ev=initial_energy,
            converged=converged, spacegroup=find_spacegroup(structure_from_ase(atoms, structure.name)),
        )  # fmt: skip

    def _compare_ends(self, sample: AseSample, end: Structure) -> AseSample:
        """Return the sample with ASE's evaluation of the structure at the end of its relaxation in the batch.

        If the energies at the ends differ, ASE also relaxes the structure from displaced positions, at most
        MAX_DISPLACED times, until one of these relaxations also ends at another energy, or does not converge. The path
        can depend on rounding: FIRE's step is unstable in directions whose curvature exceeds 4 / time_step^2, and
        symmetry hides that only while forces along them are exactly zero.
        """
        structure, tolerance_ev = self.structures[sample.index], 1e-3 * RELAXED_TOLERANCE_MEV * sample.atoms
        atoms = self._build_atoms(structure)
        moving = add_cell(atoms)  # before the cell changes: the filter measures deformation from the initial cell
        atoms.set_cell(end.cell)
        atoms.positions = end.positions
        force_max = float(np.linalg.norm(moving.get_forces(), axis=1).max())
        evaluation = AseEvaluation(energy_ev=atoms.get_potential_energy(), force_max_ev_per_angstrom=force_max)
        displaced: list[float] = []
        if sample.converged and end.energy is not None and abs(end.energy - sample.energy_ev) > tolerance_ev:
            rng = default_rng(self.config.seed)
            while len(displaced) < MAX_DISPLACED:
                atoms = self._build_atoms(structure)
                atoms.positions += DISPLACEMENT_ANGSTROM[self.config.precision] * rng.standard_normal((len(atoms), 3))
                if not FIRE(add_cell(atoms), logfile=None).run(fmax=self.config.fmax, steps=self.config.steps):
                    break
                displaced.append(atoms.get_potential_energy())
                if abs(displaced[-1] - sample.energy_ev) > tolerance_ev:
                    break
        return msgspec.structs.replace(sample, batch_end=evaluation, displaced_energies_ev=displaced or None)

    def _integrate(self, number: int, index: int) -> AseSample:
        if index not in self._moving:
            self._moving[index] = self._start(index)
        integrator, initial_energy = self._moving[index]
        # all structures share the calculator, which stores only its last results: evaluate this one outside the timing
        integrator.atoms.get_forces()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        integrator.run(self.config.record_interval)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return AseSample(
            round=number, index=index, atoms=len(integrator.atoms), evaluations=self.config.record_interval,
            step=integrator.nsteps, wall_s=wall_s, cpu_s=cpu_s, energy_ev=integrator.atoms.get_potential_energy(),
            initial_energy_ev=initial_energy,
        )  # fmt: skip

    def _start(self, index: int) -> tuple[Any, float]:
        """Return ASE's integrator, with the initial velocities of the batch, and the initial potential energy in eV."""
        config = self.config
        atoms = self._build_atoms(self.structures[index])
        dynamics = Dynamics(config.steps, config.time_step_fs, config.temperature_k, seed=config.seed)
        state = dynamics.start(index, self.structures[index])
        atoms.set_velocities(state.velocity[: len(atoms)])  # the other rows belong to the cell
        time_step = config.time_step_fs * units.fs
        if config.motion == "nve":
            return VelocityVerlet(atoms, timestep=time_step), atoms.get_potential_energy()
        friction = config.friction_per_ps / (1000.0 * units.fs)
        langevin = Langevin(
            atoms, timestep=time_step, temperature_K=config.temperature_k, friction=friction,
            rng=default_rng(config.seed), fixcm=False,
        )  # fmt: skip
        return langevin, atoms.get_potential_energy()


def add_cell(atoms: Atoms) -> Any:
    """Return what an optimizer moves: the atoms, with their cell if it is periodic along all lattice vectors."""
    return FrechetCellFilter(atoms) if atoms.pbc.all() else atoms
