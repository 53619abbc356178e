"""Checks of physical properties that every interatomic potential has: symmetries, exact forces, and smoothness.

A check compares predictions for structures that the property relates: rotated, translated, permuted or repeated
structures, or those along a path. It uses only the energies (eV) and forces (eV/angstrom) of a potential. Its result is
the largest violation, with a tolerance for rounding errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from ase.data import atomic_masses
from ase.units import fs, kB
from numpy.typing import NDArray

from harness.protocol.records import PhysicsCheck
from harness.reference.data.structure import Structure
from harness.reference.potentials.process import PotentialError, PotentialPrediction

Array = NDArray[np.float64]
Predict = Callable[[Sequence[Structure]], list[PotentialPrediction]]
TEMPERATURE_K = 300.0
TIME_STEP_FS = 0.5
# The steps of finite differences, relative to `Tolerances.step_angstrom`.
STEP_FACTORS = (1.0, 0.4, 0.16)
# The most cells along a lattice vector by which atoms are moved to check periodic images.
MAX_IMAGE = 2
# Random directions, in addition to that of the forces, along which finite differences are taken.
RANDOM_DIRECTIONS = 6
PATH_STEP_ANGSTROM = 0.05
# How often a step of the path with a suspected jump is halved.
BISECTIONS = 9


@dataclass(frozen=True)
class Tolerances:
    """The largest violations that rounding errors explain in a floating-point type.

    Finite differences are taken with three steps, and the smallest of the three errors counts: rounding errors grow as
    the step shrinks, truncation errors grow with the step, and a wrong force has a large error with every step.

    Attributes:
        roundoff: The unit roundoff of the type.
        force: The difference of forces, relative to the largest force. Rounding errors of sums over neighbours are up
            to a few thousand times the unit roundoff; faults that users have met are 1% or more.
        energy: The absolute part of the tolerance of an energy difference, eV/atom.
        energy_share: The relative part of the same tolerance, which is multiplied by the energy per atom.
        step_angstrom: The largest step of finite differences; rounding and truncation errors are similar there.
        difference: The relative error of forces against finite differences of energies.
        asymmetry: The relative asymmetry of the matrix of force constants, from finite differences of forces.
    """

    roundoff: float
    force: float
    energy: float
    energy_share: float
    step_angstrom: float
    difference: float
    asymmetry: float


TOLERANCES = {
    "float64": Tolerances(1.1e-16, 1e-8, 1e-9, 1e-11, 2e-3, 1e-6, 1e-4),
    "float32": Tolerances(6e-8, 5e-3, 2e-5, 2e-6, 3e-2, 4e-3, 3e-2),
    "bfloat16": Tolerances(3.9e-3, 5e-2, 5e-3, 1e-3, 1e-1, 1e-1, 3e-1),
}
# Smaller jumps of the energy, such as those of truncated exponentials, affect neither dynamics nor relaxations.
JUMP_TOLERANCE_EV = 1e-5
DRIFT_TOLERANCE_MEV = 2.0  # meV/atom/ps


@dataclass(frozen=True)
class Violation:
    """The result of a check.

    Attributes:
        check: The name of the check.
        structure: The name of the structure.
        value: The largest violation; NaN if it could not be measured.
        tolerance: The largest violation that rounding errors explain.
        unit: The unit of the value and of the tolerance.
        reason: The reason if the violation could not be measured.
    """

    check: str
    structure: str
    value: float
    tolerance: float
    unit: str
    reason: str | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the violation is within the tolerance; None if it could not be measured."""
        return None if self.reason is not None else self.value <= self.tolerance


def build_check_event(
    violation: Violation, *, model: str | None = None, stage: str | None = None, precision: str | None = None
) -> PhysicsCheck:
    """Return the result of a check as an event; the keyword arguments name the model, stage or precision."""
    return PhysicsCheck(
        check=violation.check,
        structure=violation.structure,
        value=violation.value if np.isfinite(violation.value) else None,
        tolerance=violation.tolerance,
        unit=violation.unit,
        passed=violation.passed,
        model=model,
        stage=stage,
        precision=precision,
        reason=violation.reason,
    )


def check_physics(
    predict: Predict,
    crystal: Structure | None,
    molecule: Structure | None,
    *,
    dtype: str,
    transformations: int = 100,
    dynamics_steps: int = 400,
    skip: Collection[str] = (),
    seed: int = 0,
) -> Iterator[Violation]:
    """Yield the result of every check; if the potential fails in a check, its result has the reason and no value.

    Args:
        predict: Returns the predictions for structures; may raise PotentialError.
        crystal: A distorted periodic structure whose elements the potential supports; None: no checks of crystals.
        molecule: A structure in vacuum whose elements the potential supports; None: no checks of molecules.
        dtype: The floating-point type in which the potential computes, by its NumPy name; it determines the tolerances.
        transformations: The number of random rotations and reflections of each structure.
        dynamics_steps: The number of steps of molecular dynamics, each of TIME_STEP_FS; 0: no dynamics.
        skip: The names of checks to leave out; "force constants" takes most of the time.
        seed: The seed of all random numbers.
    """
    tolerances = TOLERANCES.get(dtype, TOLERANCES["float64"])
    checks: list[tuple[str, Structure, Callable[[_Checker, Structure], Iterator[Violation]]]] = []
    for structure in (crystal, molecule):
        if structure is not None:
            checks += [
                ("rotation", structure, lambda c, s: c.check_rotation(s, transformations)),
                ("translation", structure, _Checker.check_translation),
                ("permutation", structure, _Checker.check_permutation),
                ("forces", structure, _Checker.check_forces),
                ("force constants", structure, _Checker.check_force_constants),
                ("batch", structure, _Checker.check_batch),
                ("smoothness", structure, _Checker.check_smoothness),
            ]
    if crystal is not None:
        checks += [
            ("periodic images", crystal, _Checker.check_images),
            ("supercell", crystal, _Checker.check_supercell),
        ]
    if dynamics_steps and crystal is not None:
        checks.append(("dynamics", crystal, lambda c, s: c.check_dynamics(s, dynamics_steps)))
    for name, structure, check in checks:
        if name in skip:
            continue
        checker = _Checker(predict, tolerances, np.random.default_rng(seed))
        try:
            yield from check(checker, structure)
        except PotentialError as error:
            yield Violation(name, structure.name, float("nan"), 0.0, "", str(error))


class _Checker:
    """The checks of a potential; each method is one check, and yields its results.

    Args:
        predict: Returns the predictions for structures.
        tolerances: The tolerances of the potential's floating-point type.
        rng: The source of random numbers.
    """

    def __init__(self, predict: Predict, tolerances: Tolerances, rng: np.random.Generator) -> None:
        self.predict, self.tolerances, self.rng = predict, tolerances, rng

    def check_rotation(self, structure: Structure, count: int) -> Iterator[Violation]:
        """Rotate and reflect the structure: the energy must not change, and the forces must rotate with it."""
        matrices = [draw_orthogonal_matrix(self.rng, mirrored=bool(k % 2)) for k in range(count)]
        base, *rest = self.predict([structure, *(rotate(structure, matrix) for matrix in matrices)])
        expected = [base.forces @ matrix for matrix in matrices]
        yield from self.compare("rotation", structure, base, rest, expected)

    def check_translation(self, structure: Structure) -> Iterator[Violation]:
        """Translate all atoms, and wrap them into the cell of a crystal: nothing must change."""
        shifts = self.rng.uniform(-5, 5, size=(8, 3))
        moved = [
            replace(structure, positions=wrap_into_cell(structure, structure.positions + shift)) for shift in shifts
        ]
        base, *rest = self.predict([structure, *moved])
        yield from self.compare("translation", structure, base, rest, [base.forces] * len(rest))

    def check_images(self, structure: Structure) -> Iterator[Violation]:
        """Move each atom by random lattice vectors, which gives the same crystal: nothing must change."""
        moved = []
        for _ in range(8):
            images = self.rng.integers(-MAX_IMAGE, MAX_IMAGE + 1, size=(len(structure), 3)).astype(float)
            moved.append(replace(structure, positions=structure.positions + images @ structure.cell))
        base, *rest = self.predict([structure, *moved])
        yield from self.compare("periodic images", structure, base, rest, [base.forces] * len(rest))

    def check_permutation(self, structure: Structure) -> Iterator[Violation]:
        """Change the order of the atoms: the energy must not change, and the forces must have the new order."""
        orders = [self.rng.permutation(len(structure)) for _ in range(8)]
        mixed = [replace(structure, numbers=structure.numbers[o], positions=structure.positions[o]) for o in orders]
        base, *rest = self.predict([structure, *mixed])
        yield from self.compare("permutation", structure, base, rest, [base.forces[o] for o in orders])

    def check_batch(self, structure: Structure) -> Iterator[Violation]:
        """Predict the structure alone and among other structures: nothing must change."""
        others = [self.displace(structure, 0.1) for _ in range(4)]
        (base,) = self.predict([structure])
        mixed = self.predict([others[0], structure, *others[1:], structure])
        yield from self.compare("batch", structure, base, [mixed[1], mixed[-1]], [base.forces] * 2)

    def check_supercell(self, structure: Structure) -> Iterator[Violation]:
        """Double the cell along each lattice vector: the energy must double, and the forces must be the same."""
        for axis in range(3):
            double = repeat_cell(structure, axis)
            base, large = self.predict([structure, double])
            halved = replace(large, energy=large.energy / 2)
            yield from self.compare(
                f"supercell {'abc'[axis]}", structure, base, [halved], [np.concatenate([base.forces] * 2)]
            )

    def check_forces(self, structure: Structure) -> Iterator[Violation]:
        """Compare forces with finite differences of the energy, along the forces and along random directions."""
        (base,) = self.predict([structure])
        scale = float(np.linalg.norm(base.forces)) or 1.0
        directions = [base.forces, *self.rng.normal(size=(RANDOM_DIRECTIONS, *base.forces.shape))]
        units = [direction / (np.linalg.norm(direction) or 1.0) for direction in directions]
        slopes = np.array([-(base.forces * u).sum() for u in units])
        errors = np.abs(self.measure_slopes(structure, units) - slopes[:, None])
        worst = float(errors.min(axis=1).max()) / scale
        # the difference of two large energies is uncertain by a few units in their last place
        rounding = 16 * self.tolerances.roundoff * abs(base.energy) / (max(self.steps) * scale)
        tolerance = self.tolerances.difference + rounding
        yield Violation("forces from energies", structure.name, worst, tolerance, "of the norm of forces")

    def check_force_constants(self, structure: Structure) -> Iterator[Violation]:
        """Compare the matrix of force constants, from finite differences of forces, with its transpose."""
        value = min(self.measure_asymmetry(structure, h) for h in self.steps)
        yield Violation("conservative forces", structure.name, value, self.tolerances.asymmetry, "of force constants")

    @property
    def steps(self) -> list[float]:
        """The displacements of finite differences, angstrom."""
        return [self.tolerances.step_angstrom * factor for factor in STEP_FACTORS]

    def measure_slopes(self, structure: Structure, directions: Sequence[Array]) -> Array:
        """Return the derivatives of the energy in eV/angstrom, [directions, steps], by central differences of order 4.

        Args:
            structure: A structure of n atoms.
            directions: Displacements of all atoms, each [n, 3] of norm 1.
        """
        steps = [u * h for u in directions for h in self.steps]
        moved = [replace(structure, positions=structure.positions + k * step) for step in steps for k in (-2, -1, 1, 2)]
        energies = np.array([p.energy for p in self.predict(moved)]).reshape(len(directions), len(self.steps), 4)
        e = np.moveaxis(energies, 2, 0)
        return np.asarray((8 * (e[2] - e[1]) - (e[3] - e[0])) / (12 * np.array(self.steps)))

    def measure_asymmetry(self, structure: Structure, h: float) -> float:
        """Return the norm of F - F^T over that of F, the matrix of force constants by displacements of h angstrom."""
        n = structure.positions.size
        steps = np.eye(n).reshape(n, *structure.positions.shape) * h
        moved = [replace(structure, positions=structure.positions + sign * step) for step in steps for sign in (1, -1)]
        forces = np.stack([p.forces.ravel() for p in self.predict(moved)])
        matrix = (forces[1::2] - forces[0::2]) / (2 * h)
        return float(np.linalg.norm(matrix - matrix.T)) / (float(np.linalg.norm(matrix)) or 1.0)

    def check_smoothness(self, structure: Structure) -> Iterator[Violation]:
        """Move one atom along a line, past its neighbours and through the cutoff: the energy must not jump.

        In each step, the energy must change by the work of the forces, which Simpson's rule integrates. The steps with
        the largest differences are halved until only a jump of the energy can explain the difference.
        """
        is_periodic = any(structure.periodic)
        direction = self.rng.normal(size=3)
        if not is_periodic:
            direction = structure.positions[0] - structure.positions.mean(axis=0)
        direction /= np.linalg.norm(direction)
        length = 1.0 if is_periodic else 7.0

        def predict(distances: Sequence[float]) -> list[tuple[float, float]]:
            moved = []
            for t in distances:
                positions = structure.positions.copy()
                positions[0] += t * direction
                moved.append(replace(structure, positions=positions))
            return [(p.energy, float(p.forces[0] @ direction)) for p in self.predict(moved)]

        jump, energy = find_jump(predict, np.arange(0.0, length + 1e-9, PATH_STEP_ANGSTROM))
        tolerance = max(JUMP_TOLERANCE_EV, 10 * self.get_energy_tolerance(energy, 1))
        name = "smoothness in the crystal" if is_periodic else "smoothness through the cutoff"
        yield Violation(name, structure.name, jump, tolerance, "eV")

    def check_dynamics(self, structure: Structure, steps: int) -> Iterator[Violation]:
        """Run molecular dynamics by the velocity Verlet method: the total energy must not drift."""
        masses = atomic_masses[structure.numbers][:, None]
        velocities = self.rng.normal(size=structure.positions.shape) * np.sqrt(TEMPERATURE_K * kB / masses)
        velocities -= (masses * velocities).sum(axis=0) / masses.sum()
        dt, positions = TIME_STEP_FS * fs, structure.positions.copy()
        (current,) = self.predict([structure])
        energies = []
        for _ in range(steps):
            velocities = velocities + 0.5 * dt * current.forces / masses
            positions = positions + dt * velocities
            (current,) = self.predict([replace(structure, positions=positions)])
            velocities = velocities + 0.5 * dt * current.forces / masses
            energies.append(current.energy + 0.5 * float((masses * velocities**2).sum()))
        times = np.arange(steps) * TIME_STEP_FS / 1000
        per_atom_mev = np.asarray(energies) * 1000 / len(structure)
        slope, offset = np.polyfit(times, per_atom_mev, 1)
        # the energy of the Verlet method oscillates; over a short run, an oscillation looks like a drift
        oscillation = float(np.std(per_atom_mev - slope * times - offset))
        tolerance = DRIFT_TOLERANCE_MEV + 3 * oscillation / float(times[-1])
        yield Violation("drift of the energy", structure.name, abs(float(slope)), tolerance, "meV/atom/ps")

    def compare(
        self,
        check: str,
        structure: Structure,
        base: PotentialPrediction,
        predictions: Sequence[PotentialPrediction],
        expected: Sequence[Array],
    ) -> Iterator[Violation]:
        """Yield the largest differences of the energies from that of `base`, and of the forces from the expected ones.

        Args:
            check: The name of the check.
            structure: The original structure.
            base: Its prediction.
            predictions: The predictions for the transformed structures.
            expected: The expected forces of each transformed structure, eV/angstrom.
        """
        n = len(structure)
        energy = max(abs(p.energy - base.energy) for p in predictions) / n
        scale = float(np.abs(base.forces).max()) or 1.0
        force = max(float(np.abs(p.forces - e).max()) for p, e in zip(predictions, expected, strict=True)) / scale
        yield Violation(
            f"{check}: energy", structure.name, energy, self.get_energy_tolerance(base.energy, n), "eV/atom"
        )
        yield Violation(f"{check}: forces", structure.name, force, self.tolerances.force, "of the largest force")

    def get_energy_tolerance(self, energy: float, atoms: int) -> float:
        """Return the tolerance, in eV/atom, of the energy (eV) of a structure with this number of atoms."""
        return self.tolerances.energy + self.tolerances.energy_share * abs(energy) / atoms

    def displace(self, structure: Structure, scale: float) -> Structure:
        """Return the structure with random displacements of all atoms; scale: their standard deviation, angstrom."""
        return replace(
            structure, positions=structure.positions + self.rng.normal(scale=scale, size=(len(structure), 3))
        )


def find_jump(predict: Callable[[Sequence[float]], list[tuple[float, float]]], grid: Array) -> tuple[float, float]:
    """Return the largest jump of the energy along a path, and the energy at its start, both in eV.

    Args:
        predict: Returns the energy (eV) and the force along the path (eV/angstrom) at each distance (angstrom).
        grid: Distances along the path, angstrom; the two intervals with the largest work errors are searched.
    """
    distances = np.sort(np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]))
    values = predict(list(distances))
    intervals = [(distances[k], distances[k + 2], values[k : k + 3]) for k in range(0, len(distances) - 2, 2)]
    intervals.sort(key=lambda interval: -measure_work_error(*interval))
    searched = intervals[:2]
    for _ in range(BISECTIONS):
        # one call predicts the quarters of both intervals
        quarters = predict([low + share * (high - low) for low, high, _ in searched for share in (0.25, 0.75)])
        for k, (low, high, (first, centre, last)) in enumerate(searched):
            middle, (lower, upper) = (low + high) / 2, quarters[2 * k : 2 * k + 2]
            halves = [(low, middle, [first, lower, centre]), (middle, high, [centre, upper, last])]
            searched[k] = max(halves, key=lambda half: measure_work_error(*half))
    worst = max(measure_work_error(*interval) for interval in searched)
    return worst, values[0][0]


def measure_work_error(start: float, end: float, values: Sequence[tuple[float, float]]) -> float:
    """Return the difference, in eV, of the change of energy over an interval and the work of the forces.

    Args:
        start: The distance at which the interval starts, angstrom.
        end: The distance at which the interval ends, angstrom.
        values: The energy (eV) and the force (eV/angstrom) at the start, the middle and the end.
    """
    (e0, f0), (_, f1), (e2, f2) = values
    return abs(e2 - e0 + (end - start) * (f0 + 4 * f1 + f2) / 6)


def draw_orthogonal_matrix(rng: np.random.Generator, *, mirrored: bool) -> Array:
    """Return a random matrix [3, 3], uniformly distributed over rotations, or over reflections if `mirrored`.

    Source: Mezzadri, Notices of the AMS 54, 592 (2007).
    """
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if (np.linalg.det(q) < 0) != mirrored:
        q[:, 0] = -q[:, 0]
    return np.asarray(q)


def rotate(structure: Structure, matrix: Array) -> Structure:
    """Return the structure with its positions and its cell multiplied by an orthogonal matrix [3, 3]."""
    return replace(structure, positions=structure.positions @ matrix, cell=structure.cell @ matrix)


def wrap_into_cell(structure: Structure, positions: Array) -> Array:
    """Return positions [n, 3] wrapped into the cell of a crystal; those of other structures are unchanged."""
    if not all(structure.periodic):
        return positions
    fractional = positions @ np.linalg.inv(structure.cell)
    return np.asarray((fractional - np.floor(fractional)) @ structure.cell)


def repeat_cell(structure: Structure, axis: int) -> Structure:
    """Return a structure with two copies of the cell along one of its lattice vectors."""
    cell = structure.cell.copy()
    cell[axis] *= 2
    return replace(
        structure,
        name=f"{structure.name} doubled",
        numbers=np.concatenate([structure.numbers] * 2),
        positions=np.concatenate([structure.positions, structure.positions + structure.cell[axis]]),
        cell=cell,
    )
