"""Small molecules: rattled organic ones (ANI1x, QM7X) and many elements with charges and open shells (QCML)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ase import Atoms

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.chemistry.central import CentralMolecule, place_ligands
from tests.builders.mini_sets.chemistry.species import (
    QCML_CENTRAL,
    QCML_MORE_CENTRAL,
    QCML_MORE_SMILES,
    QCML_SMILES,
)
from tests.builders.mini_sets.geometry import build_structure, compute_closest_ratio, embed_smiles, make_rng, rattle
from tests.builders.mini_sets.packages import list_small_molecules

ORGANIC = frozenset((1, 6, 7, 8))
# Molecules of H, C, N and O with up to four heavy atoms, most of them with two or three.
ANI1X_SMILES = (
    *("[H][H]", "C", "N", "O", "CC", "C=C", "C#C", "CN", "C=N", "C#N", "CO", "C=O", "NN", "N=N", "NO", "OO", "N=O"),
    *("CCC", "C=CC", "C#CC", "C1CC1", "C1=CC1", "CCN", "CCO", "CNC", "COC", "CC=O", "CC#N", "C=C=C", "C=C=O"),
    *("NC=O", "OC=O", "O=C=O", "N=C=O", "NC#N", "C1CO1", "C1CN1", "OCO", "NCO", "CON", "CNO", "COO", "CNN", "CN=O"),
    *("C=CN", "C=CO", "CC=N", "C=NO", "C=NN", "[C-]#[N+]C", "CN=C", "ON=O", "NN=O", "N#N"),
    *("CC(=O)C", "NC(=O)N", "C1=COC=C1", "CC(=O)O", "CCC=O", "CC(=O)N", "C=CC=C", "C1CCC1", "C=CC=O", "OCC=O"),
)
MIN_DISTANCE_RATIO = 0.72


def rattle_frames(
    atoms: Atoms, group: str, frames: range, displacements: tuple[float, ...], charge: int = 0, multiplicity: int = 0
) -> Iterator[Structure]:
    """Yield frames of one molecule, rattled by the displacements in turn; frames with atoms too close are skipped."""
    for k in frames:
        displacement = displacements[k % len(displacements)]
        moved = rattle(atoms, make_rng(group, k), displacement)
        # the unmoved structure is yielded only once
        if compute_closest_ratio(moved) > MIN_DISTANCE_RATIO and (displacement or k < len(displacements)):
            yield build_structure(moved, f"{group}/{k}", group, charge, multiplicity)


def make_ani1x(archives: Path, count: int = 480) -> list[Structure]:
    """Return neutral CHNO molecules off equilibrium."""
    result: list[Structure] = []
    sources = [(smiles, embed_smiles(smiles, 1, 7)) for smiles in ANI1X_SMILES]
    k = 0
    while len(result) < count:
        for smiles, (atoms, *_) in ((s, a) for s, a in sources if a):
            # molecules with four heavy atoms cost ten times as much as with two, so they get fewer frames
            if k % 3 == 0 or len([z for z in atoms.numbers if z > 1]) < 4:
                result += rattle_frames(atoms, smiles, range(k, k + 1), (0.05, 0.1, 0.15, 0.2))
        k += 1
    return result[:count]


def make_qm7x(archives: Path, count: int = 200) -> list[Structure]:
    """Return molecules of QM9 at equilibrium and displaced: up to three heavy atoms many times, four once."""
    result: list[Structure] = []
    by_size = {heavy: list_small_molecules(archives, heavy, ORGANIC) for heavy in (1, 2, 3, 4)}
    for k in range(count):
        for heavy, molecules in by_size.items():
            for atoms in molecules:
                if heavy < 4 or k == 0:
                    result += rattle_frames(atoms, atoms.info["group"], range(k, k + 1), (0.0, 0.04, 0.08, 0.12))
        if len(result) >= count:
            break
    return result[:count]


def make_qcml(archives: Path, counts: tuple[int, int] = (750, 308)) -> list[Structure]:
    """Return hydrides, halides, oxides, ions and radicals from hydrogen to bismuth, and few frames of further ones."""
    tables = ((QCML_SMILES, QCML_CENTRAL), (QCML_MORE_SMILES, QCML_MORE_CENTRAL))
    return [s for table, count in zip(tables, counts, strict=True) for s in rattle_in_turn(*table, count)]


def rattle_in_turn(
    smiles: Iterable[tuple[str, int, int]], central: Iterable[CentralMolecule], count: int
) -> list[Structure]:
    """Return frames of molecules, a frame of each in turn."""
    sources = []
    for text, charge, multiplicity in smiles:
        group = f"{text} {charge:+d} {multiplicity}"
        sources += [(atoms, group, charge, multiplicity) for atoms in embed_smiles(text, 1, 7)]
    for species in central:
        sources.append((place_ligands(species), species.label, species.charge, species.multiplicity))
    result: list[Structure] = []
    k = 0
    while len(result) < count:
        for atoms, group, charge, multiplicity in sources:
            result += rattle_frames(atoms, group, range(k, k + 1), (0.0, 0.05, 0.1, 0.15), charge, multiplicity)
        k += 1
    return result[:count]
