"""MS25: ASE trajectories of materials systems, one or more .traj for each, eV and eV/angstrom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import Fault
from harness.reference.datasets.parsing.paths import files
from harness.reference.datasets.parsing.structure_builder import Unfit, made, one_line, row
from harness.reference.errors import InputError
from harness.reference.tasks.dataset import Labelled, Value, collected
from harness.reference.tasks.readers.energy_checks import check_materials

BLOCK = 10  # frames in a row that a split keeps together


def read(path: Path) -> Labelled:
    """All frames, the systems as subsets; raises InputError naming file and fault.

    A system is the folder of its trajectories below the path, or the one file that it is alone in. Training sets of
    growing size hold the same frames again: each frame is taken once.
    """
    found = files([path], (".traj",), "MS25 trajectories")
    systems = {label.partition("/")[0] for _, label in found}
    frames = _once((where, atoms) for file, label in found for where, atoms in _frames(file, label))
    labelled = collected(
        made(frames, _value),
        str(path),
        f"official MS25, {{count}} frames of {len(systems)} systems",
        "DFT, as deposited",
    )
    return check_materials(labelled, path)


def _frames(path: Path, label: str) -> Iterator[tuple[str, Atoms]]:
    try:
        frames = ase.io.read(path, ":", format="traj")
    except Exception as error:  # damaged trajectories make the reader fail in several ways
        raise InputError(f"{path}: cut short, or not an ASE trajectory ({one_line(error)})") from None
    for k, atoms in enumerate(frames):
        yield f"{label}/{k}", atoms


def _once(frames: Iterator[tuple[str, Atoms]]) -> Iterator[tuple[str, Atoms | Fault]]:
    seen: set[tuple[bytes, ...]] = set()
    for where, atoms in frames:
        key = atoms.numbers.tobytes(), atoms.positions.tobytes(), atoms.cell.array.tobytes()
        yield where, Fault(where, "comes twice", "the same atoms in the same places") if key in seen else atoms
        seen.add(key)


def _value(where: str, atoms: Atoms) -> Value:
    energy, forces = _labels(atoms)
    label, _, number = where.rpartition("/")
    columns = row(
        where,
        f"{label}/{int(number) // BLOCK}",
        atoms.numbers,
        atoms.positions,
        energy=energy,
        forces=forces,
        cell=np.array(atoms.cell) if atoms.pbc.any() else None,
        periodic=atoms.pbc,
    )
    return Value(columns, energy, where.partition("/")[0])


def _labels(atoms: Atoms) -> tuple[float, Array]:
    """Energy and forces from the results of a calculator, the energy maybe as E in the frame's info; raises Unfit."""
    results = {} if atoms.calc is None else atoms.calc.results
    energy = atoms.info.get("E", results.get("energy"))
    if energy is None:
        raise Unfit("no energy", "neither a calculator's energy nor E")
    if "forces" not in results:
        raise Unfit("no forces", "no calculator's forces")
    return float(energy), np.asarray(results["forces"], dtype=np.float64)
