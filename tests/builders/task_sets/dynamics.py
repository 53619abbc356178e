"""Molecules in motion: thermal trajectories (MD17) and hot, strained conformers (Wiggle150)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from numpy.typing import NDArray

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.geometry import build_structure, embed_smiles, make_rng

# Molecules of MD17 that no set for pretraining contains at the level of theory used here.
MD17_SMILES = {"ethanol": "CCO", "malonaldehyde": "O=CCC=O", "uracil": "O=c1cc[nH]c(=O)[nH]1", "toluene": "Cc1ccccc1"}
MD17_LEVEL = "GFN1-xTB"
MD17_KELVIN = 500.0
MD17_FRAMES = 1000
MD17_STEPS = 20
STEP_FS = 1.0
WARM_UP_STEPS = 1000
MD17_FRICTION, WIGGLE_FRICTION = 0.01, 0.1  # 1/fs
BLOCK = 20  # consecutive frames that a split keeps together

WIGGLE_SMILES = {
    "ado": "OC[C@H]1O[C@H]([C@H](O)[C@@H]1O)n1cnc2c(N)ncnc12",
    "bpn": "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O",
    "efa": "O=C1Nc2ccc(Cl)cc2[C@@](C#CC2CC2)(C(F)(F)F)O1",
}
WIGGLE_LEVEL = "GFN2-xTB"
WIGGLE_KELVIN = 1500.0
WIGGLE_FRAMES = 50
WIGGLE_STARTS = 4
WIGGLE_STEPS = 60
MAX_FORCE_EV_A = 0.01
# Distances relative to the sum of covalent radii, in the relaxed molecule and in a conformer.
MAX_BOND_RATIO = 1.25
MIN_BROKEN_RATIO = 1.5


def make_md17_frames() -> list[Structure]:
    """Return unlabelled frames of each molecule, every 20 fs of a Langevin trajectory."""
    return [s for name, smiles in MD17_SMILES.items() for s in _run_trajectory(name, smiles)]


def _run_trajectory(name: str, smiles: str) -> Iterator[Structure]:
    atoms = _attach_calculator(embed_smiles(smiles, 1, 7)[0], MD17_LEVEL)
    frames = _iterate_frames(atoms, MD17_KELVIN, MD17_FRICTION, WARM_UP_STEPS, MD17_STEPS, f"md17/{name}")
    for k in range(MD17_FRAMES):
        yield build_structure(next(frames), f"{name}/{k}", f"{name}/{k // BLOCK}", 0, 1)


def make_wiggle150_conformers() -> list[Structure]:
    """Return the relaxed molecule (_00) and fifty hot conformers with intact bonds, for each of three drugs."""
    return [s for name, smiles in WIGGLE_SMILES.items() for s in _strain_conformers(name, smiles)]


def _strain_conformers(name: str, smiles: str) -> Iterator[Structure]:
    relaxed = sorted((_relax(a) for a in embed_smiles(smiles, WIGGLE_STARTS, 11)), key=_get_energy)
    yield build_structure(relaxed[0], f"{name}_00", f"{name}_00", 0, 1)
    bonds = _find_bonds(relaxed[0])
    n_conformers = 0
    for attempt in count():
        start = relaxed[attempt % len(relaxed)]
        atoms = next(
            _iterate_frames(start, WIGGLE_KELVIN, WIGGLE_FRICTION, 0, WIGGLE_STEPS, f"wiggle150/{name}/{attempt}")
        )
        if _has_intact_bonds(atoms, bonds):
            n_conformers += 1
            yield build_structure(atoms, f"{name}_{n_conformers:02d}", f"{name}_{n_conformers:02d}", 0, 1)
        if n_conformers == WIGGLE_FRAMES:
            return


def _attach_calculator(atoms: Atoms, level: str) -> Atoms:
    from tblite.ase import TBLite

    atoms.calc = TBLite(method=level, verbosity=0)
    return atoms


def _relax(atoms: Atoms) -> Atoms:
    with BFGS(_attach_calculator(atoms, WIGGLE_LEVEL), logfile=None) as optimizer:
        if not optimizer.run(fmax=MAX_FORCE_EV_A, steps=1000):
            raise SystemExit("a conformer did not relax")
    return atoms


def _get_energy(atoms: Atoms) -> float:
    return float(atoms.get_potential_energy())


def _iterate_frames(
    atoms: Atoms, kelvin: float, friction: float, warm_up: int, steps: int, seed: str
) -> Iterator[Atoms]:
    """Yield frames of an endless Langevin trajectory (friction in 1/fs), `steps` apart."""
    moving = atoms.copy()
    moving.calc = atoms.calc
    rng = make_rng(seed)
    MaxwellBoltzmannDistribution(moving, temperature_K=kelvin, rng=rng)
    run = Langevin(moving, STEP_FS * units.fs, temperature_K=kelvin, friction=friction / units.fs, fixcm=False, rng=rng)
    run.run(warm_up)
    while True:
        run.run(steps)
        yield moving.copy()


def _find_bonds(atoms: Atoms) -> NDArray[np.bool_]:
    return np.triu(_compute_distance_ratios(atoms) < MAX_BOND_RATIO, 1)


def _has_intact_bonds(atoms: Atoms, bonds: NDArray[np.bool_]) -> bool:
    """Check that no bond of the molecule is broken and that no new bond has formed."""
    ratios = np.triu(_compute_distance_ratios(atoms), 1)
    return bool((ratios[bonds] < MIN_BROKEN_RATIO).all() and not ((ratios > 0) & (ratios < 0.9) & ~bonds).any())


def _compute_distance_ratios(atoms: Atoms) -> NDArray[np.float64]:
    """Return the distances divided by the sums of covalent radii, [n, n]."""
    radii = covalent_radii[atoms.numbers]
    return np.asarray(atoms.get_all_distances() / (radii[:, None] + radii[None, :]))
