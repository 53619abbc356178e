"""Reader of Wiggle150: XYZ files with comment lines of a name and an energy in kcal/mol, such as 'ado_00 -603984.7'."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ase.data import atomic_numbers

from harness.reference.data.structure_table import RejectedStructure
from harness.reference.datasets.parsing.constants import KCAL_PER_MOL_EV
from harness.reference.datasets.parsing.paths import list_files
from harness.reference.datasets.parsing.structure_builder import InvalidStructure, StructureRow, build_row
from harness.reference.errors import InputError
from harness.reference.tasks.dataset import LabelledRow, TaskDataset, collect_rows
from harness.reference.tasks.readers.energy_checks import check_molecules

REFERENCE = "_00"  # the end of the name of the relaxed conformer of a molecule, the zero of energy
MAX_DIGITS = 9  # maximum number of digits of a number of atoms


def read_wiggle150(path: Path) -> TaskDataset:
    """Read conformers with their energies relative to the conformer _00; raises InputError for malformed files."""
    conformers: list[tuple[StructureRow, float]] = []
    values: list[LabelledRow | RejectedStructure] = []
    for file, _ in list_files([path], (".xyz",), "Wiggle150 files"):
        for name, kcal, atoms in _iter_frames(file):
            try:
                conformers.append((_build_row(name, kcal, atoms), kcal))
            except (InvalidStructure, ValueError) as error:
                values.append(RejectedStructure(name, getattr(error, "kind", "malformed"), str(error)))
    zero_kcal = {_parse_molecule(c): kcal for c, kcal in conformers if c.id.endswith(REFERENCE)}
    for c, kcal in conformers:
        if _parse_molecule(c) in zero_kcal:
            values.append(LabelledRow(c, (kcal - zero_kcal[_parse_molecule(c)]) * KCAL_PER_MOL_EV))
        else:
            values.append(RejectedStructure(c.id, f"missing conformer {REFERENCE} of its molecule", c.id))
    labelled = collect_rows(values, str(path), "official Wiggle150, {count} conformers", "DLPNO-CCSD(T)/CBS")
    return check_molecules(labelled, path)


def _parse_molecule(conformer: StructureRow) -> str:
    return conformer.id.rpartition("_")[0]


def _iter_frames(path: Path) -> Iterator[tuple[str, float, list[list[str]]]]:
    """Yield (name, energy in kcal/mol, words of each atom's line) of each frame."""
    lines = path.read_text(errors="replace").splitlines()
    k = 0
    while k < len(lines):
        if not lines[k].strip():
            k += 1
            continue
        where = f"{path}, line {k + 1}"
        if not (lines[k].strip().isdecimal() and len(lines[k].strip()) <= MAX_DIGITS):
            raise InputError(f"{where}: {lines[k].strip()[:40]!r} is not a number of atoms")
        count = int(lines[k])
        block = lines[k + 1 : k + 2 + count]
        if len(block) < count + 1:
            raise InputError(f"{where}: truncated inside a frame of {count} atoms")
        name, energy = _parse_comment(f"{path}, line {k + 2}", block[0])
        yield name, energy, [line.split() for line in block[1:]]
        k += 2 + count


def _parse_comment(where: str, line: str) -> tuple[str, float]:
    words = line.split()
    try:
        return words[0], float(words[1])
    except (IndexError, ValueError):
        raise InputError(f"{where}: {line.strip()[:60]!r}, expected a name and an energy in kcal/mol") from None


def _build_row(name: str, kcal: float, atoms: list[list[str]]) -> StructureRow:
    symbols = [words[0] if words else "" for words in atoms]
    if unknown := [s for s in symbols if s.capitalize() not in atomic_numbers]:
        raise InvalidStructure("atomic number", f"{unknown[0]!r} is not an element")
    return build_row(
        name,
        name,
        [atomic_numbers[s.capitalize()] for s in symbols],
        [[float(x) for x in words[1:4]] for words in atoms],
        energy=kcal * KCAL_PER_MOL_EV,
        multiplicity=1,
    )
