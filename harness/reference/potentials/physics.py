"""Properties that every exact interatomic potential has, as numbers with tolerances.

A check compares predictions for structures that the property relates: turned, shifted, permuted, repeated, or moved
along a path. It needs nothing of a potential but its energies (eV) and forces (eV/angstrom).
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
STEPS = (1.0, 0.4, 0.16)
# Lattice vectors by which atoms are moved to check periodic images.
IMAGES = 2
DIRECTIONS = 6
PATH_STEP_ANGSTROM = 0.05
BISECTIONS = 9


@dataclass(frozen=True)
class Tolerances:
    """The largest violations that rounding explains in a precision.

    Attributes:
        roundoff: Unit roundoff of the type.
        force: Difference of forces over the largest force. Rounding errors of sums over neighbours are up to some
            thousand times the unit roundoff; faults that users have met are 1% or more.
        energy: Difference of energies, eV/atom, plus this share of the energy per atom.
        energy_share: See energy.
        step_angstrom: Displacement of finite differences, at which rounding and truncation errors are of one size.
        difference: Relative error of finite differences of energies.
        asymmetry: Relative asymmetry of the matrix of force constants from finite differences of forces.

    Finite differences are taken with three steps, of which the least error counts: rounding errors grow as the step
    shrinks, truncation errors as it grows, and a force that is wrong is wrong with all of them.
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
# Smaller jumps of the energy, such as those of truncated exponentials, matter neither to dynamics nor to relaxations.
JUMP_TOLERANCE_EV = 1e-5
DRIFT_TOLERANCE_MEV = 2.0  # per atom and ps


@dataclass(frozen=True)
class Violation:
    """The result of a check.

    Attributes:
        check: Its name.
        structure: The name of the structure.
        value: The largest violation.
        tolerance: The largest violation that counts as rounding.
        unit: Unit of both.
        reason: Why there is no value, if it is NaN.
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


def to_event(
    violation: Violation, *, model: str | None = None, stage: str | None = None, precision: str | None = None
) -> PhysicsCheck:
    """Return the result of a check of a model, a stage or a precision as an event."""
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
    """Yield the result of every check; one that the potential cannot answer has the reason.

    Args:
        predict: Returns the predictions for structures; may raise PotentialError.
        crystal: A distorted periodic structure that the potential knows, or None.
        molecule: A structure in vacuum that the potential knows, or None.
        dtype: The type in which the potential computes, as NumPy names it; chooses the tolerances.
        transformations: Random rotations and reflections of each structure.
        dynamics_steps: Steps of molecular dynamics of TIME_STEP_FS; 0: none.
        skip: Checks to leave out: those of force constants take most of the time.
        seed: Seed of all random numbers.
    """
    limits = TOLERANCES.get(dtype, TOLERANCES["float64"])
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
        checker = _Checker(predict, limits, np.random.default_rng(seed))
        try:
            yield from check(checker, structure)
        except PotentialError as error:
            yield Violation(name, structure.name, float("nan"), 0.0, "", str(error))


class _Checker:
    """The checks, with the tolerances of a precision."""

    def __init__(self, predict: Predict, limits: Tolerances, rng: np.random.Generator) -> None:
        self.predict, self.limits, self.rng = predict, limits, rng

    def check_rotation(self, structure: Structure, count: int) -> Iterator[Violation]:
        """Turn and mirror the structure; energies stay, forces turn along."""
        turns = [random_orthogonal(self.rng, mirrored=bool(k % 2)) for k in range(count)]
        turned = [replace(structure, positions=structure.positions @ q, cell=structure.cell @ q) for q in turns]
        base, *rest = self.predict([structure, *turned])
        expected = [base.forces @ q for q in turns]
        yield from self.compare("rotation", structure, base, rest, expected)

    def check_translation(self, structure: Structure) -> Iterator[Violation]:
        """Shift all atoms, and wrap them into the cell if there is one."""
        shifts = self.rng.uniform(-5, 5, size=(8, 3))
        moved = [replace(structure, positions=wrap(structure, structure.positions + shift)) for shift in shifts]
        base, *rest = self.predict([structure, *moved])
        yield from self.compare("translation", structure, base, rest, [base.forces] * len(rest))

    def check_images(self, structure: Structure) -> Iterator[Violation]:
        """Move single atoms by lattice vectors, to positions that are the same in the crystal."""
        moved = []
        for _ in range(8):
            images = self.rng.integers(-IMAGES, IMAGES + 1, size=(len(structure), 3)).astype(float)
            moved.append(replace(structure, positions=structure.positions + images @ structure.cell))
        base, *rest = self.predict([structure, *moved])
        yield from self.compare("periodic images", structure, base, rest, [base.forces] * len(rest))

    def check_permutation(self, structure: Structure) -> Iterator[Violation]:
        """Change the order of atoms."""
        orders = [self.rng.permutation(len(structure)) for _ in range(8)]
        mixed = [replace(structure, numbers=structure.numbers[o], positions=structure.positions[o]) for o in orders]
        base, *rest = self.predict([structure, *mixed])
        yield from self.compare("permutation", structure, base, rest, [base.forces[o] for o in orders])

    def check_batch(self, structure: Structure) -> Iterator[Violation]:
        """Predict the structure alone, and between other structures."""
        others = [self.displace(structure, 0.1) for _ in range(4)]
        (base,) = self.predict([structure])
        mixed = self.predict([others[0], structure, *others[1:], structure])
        yield from self.compare("batch", structure, base, [mixed[1], mixed[-1]], [base.forces] * 2)

    def check_supercell(self, structure: Structure) -> Iterator[Violation]:
        """Repeat the cell along each vector: the energy doubles, and forces are those of the cell."""
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
        directions = [base.forces, *self.rng.normal(size=(DIRECTIONS, *base.forces.shape))]
        units = [direction / (np.linalg.norm(direction) or 1.0) for direction in directions]
        slopes = np.array([-(base.forces * u).sum() for u in units])
        errors = np.abs(self.measure_slopes(structure, units) - slopes[:, None])
        worst = float(errors.min(axis=1).max()) / scale
        # a difference of large energies is known to some units in their last place
        rounding = 16 * self.limits.roundoff * abs(base.energy) / (max(self.steps) * scale)
        tolerance = self.limits.difference + rounding
        yield Violation("forces from energies", structure.name, worst, tolerance, "of the norm of forces")

    def check_force_constants(self, structure: Structure) -> Iterator[Violation]:
        """Compare the matrix of force constants, from finite differences of forces, with its transpose."""
        value = min(self.measure_asymmetry(structure, h) for h in self.steps)
        yield Violation("conservative forces", structure.name, value, self.limits.asymmetry, "of force constants")

    @property
    def steps(self) -> list[float]:
        """The steps of finite differences, angstrom."""
        return [self.limits.step_angstrom * factor for factor in STEPS]

    def measure_slopes(self, structure: Structure, directions: Sequence[Array]) -> Array:
        """Return the derivative of the energy along each direction [n, 3] (eV/angstrom), in a column for each step."""
        steps = [u * h for u in directions for h in self.steps]
        moved = [replace(structure, positions=structure.positions + k * step) for step in steps for k in (-2, -1, 1, 2)]
        energies = np.array([p.energy for p in self.predict(moved)]).reshape(len(directions), len(self.steps), 4)
        e = np.moveaxis(energies, 2, 0)
        return np.asarray((8 * (e[2] - e[1]) - (e[3] - e[0])) / (12 * np.array(self.steps)))

    def measure_asymmetry(self, structure: Structure, h: float) -> float:
        """Return the norm of the antisymmetric part of the force constants, over the norm of all."""
        n = structure.positions.size
        steps = np.eye(n).reshape(n, *structure.positions.shape) * h
        moved = [replace(structure, positions=structure.positions + sign * step) for step in steps for sign in (1, -1)]
        forces = np.stack([p.forces.ravel() for p in self.predict(moved)])
        matrix = (forces[1::2] - forces[0::2]) / (2 * h)
        return float(np.linalg.norm(matrix - matrix.T)) / (float(np.linalg.norm(matrix)) or 1.0)

    def check_smoothness(self, structure: Structure) -> Iterator[Violation]:
        """Move one atom along a line, through the cutoff or past other neighbours: the energy must not jump.

        In each step, the energy must change by the work of the forces (Simpson's rule). A step that does not is halved
        until only a jump can explain the difference.
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
        tolerance = max(JUMP_TOLERANCE_EV, 10 * self.energy_tolerance(energy, 1))
        name = "smoothness in the crystal" if is_periodic else "smoothness through the cutoff"
        yield Violation(name, structure.name, jump, tolerance, "eV")

    def check_dynamics(self, structure: Structure, steps: int) -> Iterator[Violation]:
        """Run molecular dynamics at constant energy by the velocity Verlet method, and fit the drift of the energy."""
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
        # the energy of the Verlet method oscillates, which over a short run looks like a drift
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
        """Yield the largest differences of energies from the base's, and of forces from the expected ones."""
        n = len(structure)
        energy = max(abs(p.energy - base.energy) for p in predictions) / n
        scale = float(np.abs(base.forces).max()) or 1.0
        force = max(float(np.abs(p.forces - e).max()) for p, e in zip(predictions, expected, strict=True)) / scale
        yield Violation(f"{check}: energy", structure.name, energy, self.energy_tolerance(base.energy, n), "eV/atom")
        yield Violation(f"{check}: forces", structure.name, force, self.limits.force, "of the largest force")

    def energy_tolerance(self, energy: float, atoms: int) -> float:
        """Return the tolerance of an energy in eV/atom."""
        return self.limits.energy + self.limits.energy_share * abs(energy) / atoms

    def displace(self, structure: Structure, scale: float) -> Structure:
        """Return the structure with random displacements of all atoms, angstrom."""
        return replace(
            structure, positions=structure.positions + self.rng.normal(scale=scale, size=(len(structure), 3))
        )


def find_jump(predict: Callable[[Sequence[float]], list[tuple[float, float]]], grid: Array) -> tuple[float, float]:
    """Return the largest jump of the energy along a path, and the energy at its start, both in eV.

    Args:
        predict: Returns energy (eV) and force along the path (eV/angstrom) at each place (angstrom).
        grid: Places between which the path is searched, angstrom.
    """
    places = np.sort(np.concatenate([grid, (grid[1:] + grid[:-1]) / 2]))
    values = predict(list(places))
    intervals = [(places[k], places[k + 2], values[k : k + 3]) for k in range(0, len(places) - 2, 2)]
    intervals.sort(key=lambda interval: -measure_work_error(interval[0], interval[1], interval[2]))
    worst = 0.0
    for start, end, ends in intervals[:2]:
        low, high, three = start, end, ends
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            quarter, upper = predict([(low + middle) / 2, (middle + high) / 2])
            halves = [(low, middle, [three[0], quarter, three[1]]), (middle, high, [three[1], upper, three[2]])]
            low, high, three = max(halves, key=lambda half: measure_work_error(*half))
        worst = max(worst, measure_work_error(low, high, three))
    return worst, values[0][0]


def measure_work_error(start: float, end: float, values: Sequence[tuple[float, float]]) -> float:
    """Return by how much energies at start, middle and end differ from the work of the forces, in eV."""
    (e0, f0), (_, f1), (e2, f2) = values
    return abs(e2 - e0 + (end - start) * (f0 + 4 * f1 + f2) / 6)


def random_orthogonal(rng: np.random.Generator, *, mirrored: bool) -> Array:
    """Return a random rotation [3, 3], or a rotation with a reflection, uniform over all of them.

    Source: Mezzadri, Notices of the AMS 54, 592 (2007).
    """
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if (np.linalg.det(q) < 0) != mirrored:
        q[:, 0] = -q[:, 0]
    return np.asarray(q)


def wrap(structure: Structure, positions: Array) -> Array:
    """Return positions [n, 3] inside the cell, along its periodic vectors."""
    if not all(structure.periodic):
        return positions
    fractional = positions @ np.linalg.inv(structure.cell)
    return np.asarray((fractional - np.floor(fractional)) @ structure.cell)


def repeat_cell(structure: Structure, axis: int) -> Structure:
    """Return two copies of the cell along one of its vectors."""
    cell = structure.cell.copy()
    cell[axis] *= 2
    return replace(
        structure,
        name=f"{structure.name} doubled",
        numbers=np.concatenate([structure.numbers] * 2),
        positions=np.concatenate([structure.positions, structure.positions + structure.cell[axis]]),
        cell=cell,
    )
