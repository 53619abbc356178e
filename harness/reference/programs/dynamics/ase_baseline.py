"""The baseline: ASE's integrators and optimizer with the reference calculator, one structure at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE
from numpy.random import default_rng

from harness.protocol.programs.dynamics import AseSample, DynamicsParameters
from harness.reference.data.structure import Structure
from harness.reference.datasets.user_files import structure_from_ase
from harness.reference.errors import InputError
from harness.reference.inference.calculator import ReferenceCalculator
from harness.reference.inference.molecular_dynamics import Dynamics
from harness.reference.inference.structure_batch import NOT_FINITE
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.symmetry import find_spacegroup


class FiniteCalculator(ReferenceCalculator):
    """A calculator that raises InputError for energies and forces that are not finite, as the batch removes those."""

    def calculate(self, *args: Any, **kwargs: Any) -> None:
        """Calculate as ReferenceCalculator does."""
        super().calculate(*args, **kwargs)
        if not (np.isfinite(self.results["energy"]) and np.isfinite(self.results["forces"]).all()):
            raise InputError(NOT_FINITE)


class AseBaseline:
    """Structures that ASE moves with the model of the case.

    Args:
        config: The parameters of the case.
        model: The model.
        structures: All structures.
    """

    def __init__(self, config: DynamicsParameters, model: FoundationModel, structures: Sequence[Structure]) -> None:
        self.config, self.structures = config, structures
        self.calculator = FiniteCalculator(model, head=config.head, precision=config.precision, device=config.device)
        self._moving: dict[int, tuple[Any, float]] = {}

    def measure(self, number: int, index: int) -> AseSample | None:
        """Relax a structure, or move it by `record_interval` steps.

        Return None if it leaves the training sets, has no neighbour list (its cell collapses, for example), or has
        energies or forces that are not finite; the batch reports such structures as unfinished.

        Args:
            number: The number of the round.
            index: The position of the structure among all structures.
        """
        try:
            if self.config.motion == "relaxation":
                return self._relax(number, index)
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
        optimizer = FIRE(FrechetCellFilter(atoms) if all(structure.periodic) else atoms, logfile=None)
        converged = bool(optimizer.run(fmax=self.config.fmax, steps=self.config.steps))
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return AseSample(
            round=number, index=index, atoms=len(structure), evaluations=optimizer.nsteps + 1, step=optimizer.nsteps,
            wall_s=wall_s, cpu_s=cpu_s, energy_ev=atoms.get_potential_energy(), initial_energy_ev=initial_energy,
            converged=converged, spacegroup=find_spacegroup(structure_from_ase(atoms, structure.name)),
        )  # fmt: skip

    def _integrate(self, number: int, index: int) -> AseSample:
        if index not in self._moving:
            self._moving[index] = self._start(index)
        dynamics, initial_energy = self._moving[index]
        # the calculator has the results of the structure that it calculated last
        dynamics.atoms.get_forces()
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        dynamics.run(self.config.record_interval)
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        return AseSample(
            round=number, index=index, atoms=len(dynamics.atoms), evaluations=self.config.record_interval,
            step=dynamics.nsteps, wall_s=wall_s, cpu_s=cpu_s, energy_ev=dynamics.atoms.get_potential_energy(),
            initial_energy_ev=initial_energy,
        )  # fmt: skip

    def _start(self, index: int) -> tuple[Any, float]:
        """Return ASE's integrator, with the initial velocities of the batch, and the potential energy at the start."""
        config = self.config
        atoms = self._build_atoms(self.structures[index])
        motion = Dynamics(config.steps, config.time_step_fs, config.temperature_k, seed=config.seed)
        state = motion.start(index, self.structures[index])
        atoms.set_velocities(state.velocity[: len(atoms)])
        time_step = config.time_step_fs * units.fs
        if config.motion == "nve":
            return VelocityVerlet(atoms, timestep=time_step), atoms.get_potential_energy()
        friction = config.friction_per_ps / (1000.0 * units.fs)
        langevin = Langevin(
            atoms, timestep=time_step, temperature_K=config.temperature_k, friction=friction,
            rng=default_rng(config.seed), fixcm=False,
        )  # fmt: skip
        return langevin, atoms.get_potential_energy()
