"""Small molecules: rattled organic ones (ANI1x, QM7X) and many elements with charges and open shells (QCML)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ase import Atoms

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.chemistry.central import CentralMolecule, place_ligands
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
QCML_ORGANIC = (
    *(("C", 0, 1), ("N", 0, 1), ("O", 0, 1), ("CC", 0, 1), ("C=C", 0, 1), ("C#C", 0, 1), ("C=O", 0, 1), ("CO", 0, 1)),
    *(("C#N", 0, 1), ("CF", 0, 1), ("CCl", 0, 1), ("CBr", 0, 1), ("CS", 0, 1), ("CP", 0, 1), ("C[SiH3]", 0, 1)),
    *(("N#N", 0, 1), ("O=C=O", 0, 1), ("O=S=O", 0, 1), ("S=C=S", 0, 1), ("O=C=S", 0, 1), ("SS", 0, 1), ("OCl", 0, 1)),
    *(("O=O", 0, 3), ("[CH2]", 0, 3), ("[CH3]", 0, 2), ("[NH2]", 0, 2), ("[OH]", 0, 2), ("[SH]", 0, 2)),
    *(
        ("[N]=O", 0, 2),
        ("O[O]", 0, 2),
        ("[SiH3]", 0, 2),
        ("[PH2]", 0, 2),
        ("C[CH2]", 0, 2),
        ("C[O]", 0, 2),
        ("[CH]=O", 0, 2),
    ),
    *(("[NH4+]", 1, 1), ("[OH3+]", 1, 1), ("[CH3+]", 1, 1), ("[OH-]", -1, 1), ("[C-]#N", -1, 1), ("[SH-]", -1, 1)),
    *(("[NH2-]", -1, 1), ("[CH3-]", -1, 1), ("O=[CH+]", 1, 1), ("N#[O+]", 1, 1), ("[O-]N=O", -1, 1), ("C[O-]", -1, 1)),
    *(("C[NH3+]", 1, 1), ("[O-]C=O", -1, 1), ("C", 1, 2), ("O", 1, 2), ("N", 1, 2), ("O=O", -1, 2), ("C=C", 1, 2)),
)
QCML_CENTRAL = (
    *(CentralMolecule(a, "H", 1) for a in ("Li", "Na", "K", "Rb", "Cs", "Cu", "Ag", "Au", "F", "Cl", "Br", "I", "Tl")),
    *(CentralMolecule(a, "F", 1) for a in ("Li", "Na", "K", "Ag", "In", "Cl", "Br", "I")),
    *(CentralMolecule(a, "Cl", 1) for a in ("Li", "K", "Rb", "Cs", "Cu", "Au", "Ga", "Br")),
    *(CentralMolecule(a, "H", 2) for a in ("Be", "Mg", "Ca", "Zn", "Cd", "Hg", "S", "Se", "Te")),
    *(CentralMolecule(a, "F", 2) for a in ("Be", "Mg", "Ca", "Sr", "Ba", "Zn", "Ge", "Sn", "Pb", "Xe", "Kr", "O")),
    *(CentralMolecule(a, "H", 3) for a in ("B", "Al", "Ga", "In", "P", "As", "Sb", "Bi")),
    *(CentralMolecule(a, "F", 3) for a in ("B", "Al", "Sc", "Y", "La", "N", "P", "As", "Sb")),
    *(CentralMolecule(a, "H", 4) for a in ("Si", "Ge", "Sn", "Pb", "Ti", "Zr", "Hf")),
    *(
        CentralMolecule("B", "H", 4, -1),
        CentralMolecule("Al", "H", 4, -1),
        CentralMolecule("P", "H", 4, 1),
        CentralMolecule("S", "H", 3, 1),
    ),
    *(
        CentralMolecule("B", "F", 4, -1),
        CentralMolecule("Xe", "F", 1, 1),
        CentralMolecule("Ag", "H", 2, -1),
        CentralMolecule("Zn", "F", 3, -1),
    ),
    *(
        CentralMolecule("Os", "O", 4),
        CentralMolecule("Ru", "O", 4),
        CentralMolecule("Mn", "O", 4, -1),
        CentralMolecule("Tc", "O", 4, -1),
    ),
    *(
        CentralMolecule("Re", "O", 4, -1),
        CentralMolecule("Cr", "O", 3),
        CentralMolecule("Mo", "O", 3),
        CentralMolecule("W", "O", 3),
    ),
    *(CentralMolecule("V", "O", 1, 0, 4), CentralMolecule("Nb", "O", 1, 0, 4), CentralMolecule("Ta", "O", 1, 0, 2)),
    *(CentralMolecule("Mn", "H", 1, 0, 7), CentralMolecule("Pd", "O", 1, 0, 3), CentralMolecule("Ni", "H", 1, 0, 2)),
    *(CentralMolecule("Pt", "O", 1, 0, 3), CentralMolecule("Rh", "H", 1, 0, 3)),
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


def make_qcml(archives: Path, count: int = 750) -> list[Structure]:
    """Return hydrides, halides, oxides, ions and radicals from hydrogen to bismuth."""
    sources = []
    for smiles, charge, multiplicity in QCML_ORGANIC:
        group = f"{smiles} {charge:+d} {multiplicity}"
        sources += [(atoms, group, charge, multiplicity) for atoms in embed_smiles(smiles, 1, 7)]
    for species in QCML_CENTRAL:
        sources.append((place_ligands(species), species.label, species.charge, species.multiplicity))
    result: list[Structure] = []
    k = 0
    while len(result) < count:
        for atoms, group, charge, multiplicity in sources:
            result += rattle_frames(atoms, group, range(k, k + 1), (0.0, 0.05, 0.1, 0.15), charge, multiplicity)
        k += 1
    return result[:count]
