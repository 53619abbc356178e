"""Molecular dynamics of many structures in one batch: velocity Verlet (NVE), and Langevin dynamics by BAOAB.

Sources: Swope et al., J. Chem. Phys. 76, 637 (1982); Leimkuhler and Matthews, Appl. Math. Res. Express 2013, 34.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from ase import units
from ase.data import atomic_masses
from numpy.typing import NDArray

from harness.reference.data.structure import Array, Structure
from harness.reference.inference.batch_members import JoinedMembers
from harness.reference.inference.batch_state import CELL_ROWS, BatchState, extend_positions
from harness.reference.inference.structure_batch import BatchEvaluation

NOISE_STEPS = 64  # steps for which the noise of a structure is drawn at once
VELOCITY_STREAM, NOISE_STREAM = 0, 1  # keys of the random streams of a structure


@dataclass(frozen=True)
class Trajectory:
    """The end of a trajectory, and its energies at regular intervals.

    Attributes:
        structure: The structure with its last positions.
        velocity: [n, 3] at the end, in ASE's units.
        steps: [k] the recorded steps.
        potential_ev: [k] potential energies.
        kinetic_ev: [k] kinetic energies; with a thermostat, those right after it has acted.
    """

    structure: Structure
    velocity: Array
    steps: tuple[int, ...]
    potential_ev: tuple[float, ...]
    kinetic_ev: tuple[float, ...]


@dataclass(frozen=True)
class Thermostat:
    """A Langevin thermostat.

    Attributes:
        temperature_k: Temperature in K.
        friction_per_ps: Friction in 1/ps.
    """

    temperature_k: float
    friction_per_ps: float


@dataclass
class Dynamics:
    """Molecular dynamics at constant cell.

    The random numbers of a structure depend on the seed, the index of the structure and the step alone, so that a
    trajectory does not depend on the other structures of the batch.

    Attributes:
        steps: Number of steps of each structure.
        time_step_fs: Time step in fs.
        temperature_k: Temperature of the initial velocities in K, see `draw_velocities`.
        thermostat: The thermostat; None: the energy is conserved.
        interval: Number of steps between recorded energies.
        seed: Seed of velocities and noise.
        initial_velocity: Initial velocities [n, 3] in ASE's units by index, in place of random ones.
    """

    steps: int
    time_step_fs: float
    temperature_k: float
    thermostat: Thermostat | None = None
    interval: int = 10
    seed: int = 0
    initial_velocity: Mapping[int, Array] = field(default_factory=dict)
    _records: dict[int, list[tuple[int, float, float]]] = field(default_factory=dict, init=False)
    _noise: dict[int, tuple[int, Array]] = field(default_factory=dict, init=False)

    def start(self, index: int, structure: Structure) -> BatchState:
        """Return the state of a structure with velocities of the Maxwell-Boltzmann distribution."""
        velocity = self.initial_velocity.get(index)
        if velocity is None:
            velocity = draw_velocities(structure, self.temperature_k, [self.seed, index, VELOCITY_STREAM])
        return BatchState.start(
            extend_positions(structure.positions),
            time_step=self.time_step_fs * units.fs,
            velocity=extend_positions(velocity),
        )

    def begin_step(self, state: BatchState, forces: Array, joined: JoinedMembers) -> BatchState:
        """Return the state after a half kick and a full drift; a thermostat acts in the middle of the drift.

        Args:
            state: The state at the start of the step.
            forces: [m, 3] in eV/angstrom, for the atoms of each structure and then for its cell.
            joined: The structures of the batch, and the structure of each of the m rows.
        """
        velocity = state.velocity + compute_kick(state, forces, joined)
        drift = 0.5 * state.time_step[joined.owner, None]
        coordinates = state.coordinates + drift * velocity
        if self.thermostat is not None:
            velocity = self._exchange_heat(self.thermostat, velocity, state, joined)
        return replace(state, coordinates=coordinates + drift * velocity, velocity=velocity, steps=state.steps + 1)

    def complete_step(self, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> BatchState:
        """Return the state after the second half kick; append its energies to the records of the structures.

        Args:
            state: The state after `begin_step`, or at the start of the trajectory, where there is no kick.
            evaluation: Energies [g] in eV and forces [m, 3] in eV/angstrom at the positions of this state.
            joined: The structures of the batch, and the structure of each of the m rows.
        """
        at_entry = state
        has_moved = (state.steps > 0)[joined.owner, None]
        kick = compute_kick(state, evaluation.forces, joined)
        velocity = np.where(has_moved, state.velocity + kick, state.velocity)
        state = replace(
            state,
            velocity=velocity,
            initial_energy=np.where(state.steps == 0, evaluation.energy, state.initial_energy),
        )
        is_recorded = (state.steps % self.interval == 0) | (state.steps == self.steps)
        if is_recorded.any():
            # in BAOAB, the mean kinetic energy is exact right after the thermostat, and too small at the end of a step
            kinetic = compute_kinetic_energies(state if self.thermostat is None else at_entry, joined)
            for k in np.flatnonzero(is_recorded).tolist():
                record = (int(state.steps[k]), float(evaluation.energy[k]), float(kinetic[k]))
                self._records.setdefault(int(joined.index[k]), []).append(record)
        return state

    def find_finished(self, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> NDArray[np.bool_]:
        """Return which structures have made all steps, [g]."""
        return state.steps >= self.steps

    def build_result(self, k: int, state: BatchState, evaluation: BatchEvaluation, joined: JoinedMembers) -> Trajectory:
        """Return the trajectory of structure k of the batch, whose records and noise have the key joined.index[k]."""
        index = int(joined.index[k])
        steps, potential, kinetic = zip(*self._records[index], strict=True)
        atom_rows = (joined.owner == k) & ~joined.is_cell
        structure = joined.build_structure(k, evaluation.placement)
        return Trajectory(structure, state.velocity[atom_rows], steps, potential, kinetic)

    def _exchange_heat(
        self, thermostat: Thermostat, velocity: Array, state: BatchState, joined: JoinedMembers
    ) -> Array:
        """Return the velocities after a time step of the Ornstein-Uhlenbeck process alone."""
        decay = math.exp(-thermostat.friction_per_ps * 1e-3 * self.time_step_fs)
        variance = (1.0 - decay**2) * units.kB * thermostat.temperature_k * joined.inverse_mass
        noise = [self._draw_noise(i, s, n) for i, s, n in zip(joined.index, state.steps, joined.sizes, strict=True)]
        return decay * velocity + np.sqrt(variance)[:, None] * np.concatenate(noise)

    def _draw_noise(self, index: int, step: int, atoms: int) -> Array:
        """Return normal random numbers [n + 3, 3] for a step of a structure."""
        block, offset = divmod(int(step), NOISE_STEPS)
        known = self._noise.get(int(index))
        if known is None or known[0] != block:
            rng = np.random.default_rng([self.seed, int(index), NOISE_STREAM, block])
            known = self._noise[int(index)] = (block, rng.standard_normal((NOISE_STEPS, atoms + CELL_ROWS, 3)))
        return known[1][offset]

    def forget(self, index: int) -> None:
        """Drop the recorded energies and the noise of a structure."""
        self._records.pop(index, None)
        self._noise.pop(index, None)

    def save(self) -> dict[str, Any]:
        """Return the recorded energies of the structures in the batch."""
        return {"records": {k: torch.tensor(rows, dtype=torch.float64) for k, rows in self._records.items()}}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore recorded energies."""
        self._records = {
            index: [(int(step), potential, kinetic) for step, potential, kinetic in rows.tolist()]
            for index, rows in saved["records"].items()
        }


def compute_kick(state: BatchState, forces: Array, joined: JoinedMembers) -> Array:
    """Return the change of the velocities [m, 3] in half of a time step; 0 for cells."""
    return (0.5 * state.time_step[joined.owner] * joined.inverse_mass)[:, None] * forces


def compute_kinetic_energies(state: BatchState, joined: JoinedMembers) -> Array:
    """Return the kinetic energy of each structure in eV, [g]."""
    mass = np.where(joined.is_cell, 0.0, 1.0 / np.where(joined.is_cell, 1.0, joined.inverse_mass))
    energies: Array = np.add.reduceat(
        0.5 * mass * np.einsum("mk,mk->m", state.velocity, state.velocity), joined.first_row
    )
    return energies


def draw_velocities(structure: Structure, temperature_k: float, seed: list[int]) -> Array:
    """Return velocities [n, 3] of the Maxwell-Boltzmann distribution, in ASE's units, without total momentum.

    The temperature is that of the 3n - 3 degrees of freedom that remain; a single atom rests.
    """
    mass = atomic_masses[structure.numbers][:, None]
    rng = np.random.default_rng(seed)
    velocity: Array = np.sqrt(units.kB * temperature_k / mass) * rng.standard_normal((len(structure), 3))
    return velocity - (mass * velocity).sum(axis=0) / mass.sum()
