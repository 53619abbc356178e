"""Reaction paths of hydrogen shifts in small molecules (Transition1x)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.data import covalent_radii
from ase.mep import NEB
from ase.optimize import BFGS, FIRE

from harness.reference.data.structure import Array, Structure
from tests.builders.mini_sets.chemistry.molecules import ANI1X_SMILES
from tests.builders.mini_sets.geometry import build_structure, embed_smiles

IMAGES = 9
BAND_STEPS = 40
MAX_BOND_RATIO = 1.3


def attach_gfn2(atoms: Atoms) -> Atoms:
    """Set GFN2-xTB as the calculator of the atoms and return them."""
    from tblite.ase import TBLite

    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    return atoms


def relax(atoms: Atoms) -> Atoms | None:
    """Return the atoms at their GFN2-xTB minimum, or None if 200 steps do not reach it."""
    copy = attach_gfn2(atoms.copy())
    try:
        return copy if BFGS(copy, logfile=None).run(fmax=0.05, steps=200) else None
    except CalculationFailed:
        return None


def find_bonds(atoms: Atoms) -> Array:
    """Return which atoms are bonded, [n, n]: closer than 1.3 times the sum of the covalent radii."""
    radii = covalent_radii[atoms.numbers]
    bonded = atoms.get_all_distances() < MAX_BOND_RATIO * (radii[:, None] + radii[None, :])
    return np.asarray(bonded & ~np.eye(len(atoms), dtype=bool))


def shift_hydrogen(atoms: Atoms, hydrogen: int, donor: int, acceptor: int) -> Atoms:
    """Move the hydrogen to the acceptor, to the side that faces the donor and has room."""
    direction = atoms.positions[hydrogen] - atoms.positions[acceptor]
    axis = atoms.positions[donor] - atoms.positions[acceptor]
    axis /= np.linalg.norm(axis)
    # the direction leans away from the bond between donor and acceptor
    direction = direction - 0.9 * (direction @ axis) * axis
    copy = atoms.copy()
    copy.positions[hydrogen] = atoms.positions[acceptor] + 1.05 * direction / np.linalg.norm(direction)
    return copy


def list_shifts(atoms: Atoms) -> Iterator[tuple[int, int, int]]:
    """Yield (hydrogen, donor, acceptor) for one hydrogen of each donor and each other heavy atom."""
    bonded = find_bonds(atoms)
    for donor in np.flatnonzero(atoms.numbers > 1):
        hydrogens = [h for h in np.flatnonzero(bonded[donor]) if atoms.numbers[h] == 1]
        for acceptor in np.flatnonzero(atoms.numbers > 1):
            if acceptor != donor and hydrogens:
                nearest = min(hydrogens, key=lambda h: atoms.get_distance(h, acceptor))
                yield int(nearest), int(donor), int(acceptor)


def find_path(reactant: Atoms, product: Atoms) -> list[Atoms]:
    """Return the images of a nudged elastic band on GFN2-xTB, with its ends; [] if it fails."""
    images = [
        attach_gfn2(reactant.copy()),
        *(attach_gfn2(reactant.copy()) for _ in range(IMAGES - 2)),
        attach_gfn2(product.copy()),
    ]
    band = NEB(images, climb=True, method="improvedtangent", allow_shared_calculator=False)
    band.interpolate(method="idpp")
    try:
        FIRE(band, logfile=None).run(fmax=0.1, steps=BAND_STEPS)
    except CalculationFailed:
        return []
    return images


def compute_bands(smiles: str) -> Iterator[tuple[str, list[Atoms]]]:
    """Yield (name, images) of each path of a molecule whose ends keep their bonds when relaxed."""
    conformers = embed_smiles(smiles, 1, 7)
    reactant = relax(conformers[0]) if conformers else None
    if reactant is None:
        return
    for hydrogen, donor, acceptor in list_shifts(reactant):
        product = relax(shift_hydrogen(reactant, hydrogen, donor, acceptor))
        if product is None or (bonds := find_bonds(product))[hydrogen, donor] or not bonds[hydrogen, acceptor]:
            continue
        symbols = reactant.symbols
        yield (
            f"{smiles} H{hydrogen} {symbols[donor]}{donor}-{symbols[acceptor]}{acceptor}",
            find_path(reactant, product),
        )


def make_transition1x(count: int = 450) -> list[Structure]:
    """Return paths of molecules with two and three heavy atoms, grouped by molecule."""
    result: list[Structure] = []
    for heavy in (2, 3):
        for smiles in ANI1X_SMILES:
            if len([c for c in smiles if c in "CNO"]) != heavy:
                continue
            for name, images in compute_bands(smiles):
                result += [build_structure(atoms, f"{name}/{k}", smiles) for k, atoms in enumerate(images)]
                if len(result) >= count:
                    return result[:count]
    return result
