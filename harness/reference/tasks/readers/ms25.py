"""Reader of MS25: ASE trajectories (.traj) of materials systems, in eV and eV/angstrom."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from harness.reference.data.structure import Array
from harness.reference.data.structure_table import RejectedStructure
from harness.reference.datasets.parsing.paths import list_files
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, build_each, build_row
from harness.reference.errors import InputError, get_first_line
from harness.reference.tasks.dataset import LabelledRow, TaskDataset, collect_rows
from harness.reference.tasks.readers.energy_checks import check_materials

GROUP_FRAMES = 10  # number of consecutive frames that form a group, which is never divided between splits


def read_ms25(path: Path) -> TaskDataset:
    """Read all frames; a system is a subset. Raises InputError if files are missing or damaged.

    A system is a folder of trajectories below the path, or a single file. Frames that occur in several training sets
    are read once.
    """
    trajectories = list_files([path], (".traj",), "MS25 trajectories")
    systems = {label.partition("/")[0] for _, label in trajectories}
    frames = _reject_repeats(
        (where, atoms) for file, label in trajectories for where, atoms in _iter_frames(file, label)
    )
    labelled = collect_rows(
        build_each(frames, _build_row),
        str(path),
        f"official MS25, {{count}} frames of {len(systems)} systems",
        "DFT, as deposited",
    )
    return check_materials(labelled, path)


def _iter_frames(path: Path, label: str) -> Iterator[tuple[str, Atoms]]:
    try:
        frames = ase.io.read(path, ":", format="traj")
    except Exception as error:  # damaged trajectories make the reader fail in several ways
        raise InputError(f"{path}: cut short, or not an ASE trajectory ({get_first_line(error)})") from None
    for k, atoms in enumerate(frames):
        yield f"{label}/{k}", atoms


def _reject_repeats(frames: Iterator[tuple[str, Atoms]]) -> Iterator[tuple[str, Atoms | RejectedStructure]]:
    known: set[tuple[bytes, ...]] = set()
    for where, atoms in frames:
        key = atoms.numbers.tobytes(), atoms.positions.tobytes(), atoms.cell.array.tobytes()
        yield (
            where,
            RejectedStructure(where, "repeated", "the same atoms at the same positions") if key in known else atoms,
        )
        known.add(key)


def _build_row(where: str, atoms: Atoms) -> LabelledRow:
    energy, forces = _read_labels(atoms)
    label, _, number = where.rpartition("/")
    columns = build_row(
        where,
        f"{label}/{int(number) // GROUP_FRAMES}",
        atoms.numbers,
        atoms.positions,
        energy=energy,
        forces=forces,
        cell=np.array(atoms.cell) if atoms.pbc.any() else None,
        periodic=atoms.pbc,
    )
    return LabelledRow(columns, energy, where.partition("/")[0])


def _read_labels(atoms: Atoms) -> tuple[float, Array]:
    """Return the energy (`E` of the frame's info, or the calculator's) and forces; raises InvalidStructure."""
    results = {} if atoms.calc is None else atoms.calc.results
    energy = atoms.info.get("E", results.get("energy"))
    if energy is None:
        raise InvalidStructure("no energy", "neither a calculator's energy nor E")
    if "forces" not in results:
        raise InvalidStructure("no forces", "no calculator's forces")
    return float(energy), np.asarray(results["forces"], dtype=np.float64)
