"""Levels of theory: functions from a structure to its energy and forces, in eV and eV/angstrom.

tblite (https://github.com/tblite/tblite) computes GFN1-xTB (Grimme, Bannwarth, Shushkov, JCTC 13, 1989 (2017)) and
GFN2-xTB (Bannwarth, Ehlert, Grimme, JCTC 15, 1652 (2019)). PySCF (Sun et al., J. Chem. Phys. 153, 024109 (2020)) and
GPAW (Mortensen et al., J. Chem. Phys. 160, 092503 (2024)) compute DFT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import numpy as np

from harness.reference.data.structure import Array, Structure
from harness.reference.datasets.parsing.constants import BOHR_ANGSTROM, HARTREE_EV

KELVIN_HARTREE = 3.166811563e-6  # Boltzmann's constant
METAL_KELVIN = 3000.0  # electronic temperature for metals
POINTS_ANGSTROM = 6.3  # number of k-points along a lattice vector times its length

Labels = tuple[float, Array]


def format_versions(packages: Iterable[str]) -> str:
    """Return the packages with their installed versions."""
    return ", ".join(f"{name} {version(name)}" for name in packages)


class NotConvergedError(Exception):
    """The self-consistent field has not converged; the structure is rejected."""


@dataclass(frozen=True)
class LevelOfTheory:
    """A level of theory: its name, the packages that compute it, and the function that labels a structure."""

    name: str
    packages: tuple[str, ...]
    label: Callable[[Structure], Labels]

    @property
    def code(self) -> str:
        """The packages with their installed versions."""
        return format_versions(self.packages)


def count_unpaired_electrons(structure: Structure) -> int:
    """Return the number of unpaired electrons from the multiplicity, or from the parity if the multiplicity is unknown.

    Raises ValueError if the number of electrons does not allow the multiplicity.
    """
    odd = int(structure.numbers.sum() - structure.charge) % 2
    if structure.multiplicity and structure.multiplicity % 2 == odd:
        raise ValueError(
            f"{structure.name}: a multiplicity of {structure.multiplicity} is impossible for its number of electrons"
        )
    return structure.multiplicity - 1 if structure.multiplicity else odd


def compute_xtb(structure: Structure, method: str, kelvin: float = 300.0) -> Labels:
    """Compute energy and forces by GFN1-xTB or GFN2-xTB; periodic structures use the Gamma point alone.

    Args:
        structure: The structure.
        method: "GFN1-xTB" or "GFN2-xTB".
        kelvin: Electronic temperature; the energy is the electronic free energy.
    """
    from tblite.interface import Calculator

    is_periodic = any(structure.periodic)
    calculator = Calculator(
        method,
        structure.numbers,
        structure.positions / BOHR_ANGSTROM,
        charge=structure.charge,
        uhf=count_unpaired_electrons(structure),
        lattice=structure.cell / BOHR_ANGSTROM if is_periodic else None,
        periodic=np.array(structure.periodic) if is_periodic else None,
    )
    calculator.set("verbosity", 0)
    calculator.set("temperature", kelvin * KELVIN_HARTREE)
    try:
        result = calculator.singlepoint()
    except RuntimeError as error:
        raise NotConvergedError(str(error)) from None
    return _check_finite(result.get("energy") * HARTREE_EV, -result.get("gradient") * HARTREE_EV / BOHR_ANGSTROM)


def compute_gaussian_basis_dft(structure: Structure, functional: str, basis: str) -> Labels:
    """Compute energy and forces by Kohn-Sham DFT in a Gaussian basis with density fitting.

    Open shells are unrestricted; def2 basis sets have effective core potentials (ECP) from rubidium on.
    """
    from ase.data import chemical_symbols as symbols
    from pyscf import dft, gto, lib

    lib.num_threads(1)
    atoms = list(zip(structure.numbers.tolist(), structure.positions.tolist(), strict=True))
    spin = count_unpaired_electrons(structure)
    core = {symbols[z]: basis for z in set(structure.numbers.tolist()) if z > 36 and basis.startswith("def2")}
    molecule = gto.M(atom=atoms, basis=basis, ecp=core, charge=structure.charge, spin=spin, verbose=0)
    field = (dft.UKS if spin else dft.RKS)(molecule).density_fit()
    field.xc = functional
    field.grids.level = 2
    field.conv_tol = 1e-9
    energy = field.kernel()
    if not field.converged:
        raise NotConvergedError(f"{functional}/{basis}: no convergence in {field.max_cycle} cycles")
    return _check_finite(energy * HARTREE_EV, -field.nuc_grad_method().kernel() * HARTREE_EV / BOHR_ANGSTROM)


def compute_plane_wave_dft(structure: Structure, functional: str, cutoff: float) -> Labels:
    """Compute energy and forces by spin-paired DFT with PAW and plane waves up to the cutoff in eV."""
    from ase import Atoms
    from gpaw import GPAW, PW, FermiDirac, KohnShamConvergenceError

    atoms = Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.periodic)
    points = [max(1, round(POINTS_ANGSTROM / length)) for length in atoms.cell.lengths()]
    atoms.calc = GPAW(
        mode=PW(cutoff),
        xc=functional,
        kpts={"size": points, "gamma": True},
        occupations=FermiDirac(0.1),
        convergence={"energy": 1e-5, "density": 1e-4, "eigenstates": 1e-6},
        maxiter=80,
        txt=None,
    )
    try:
        energy, forces = atoms.get_potential_energy(force_consistent=True), atoms.get_forces()
    except KohnShamConvergenceError as error:
        raise NotConvergedError(str(error)) from None
    return _check_finite(energy, forces)


def _check_finite(energy: float, forces: Array) -> Labels:
    if not (np.isfinite(energy) and np.isfinite(forces).all()):
        raise NotConvergedError("a label is not finite")
    return float(energy), np.asarray(forces)


GFN2 = LevelOfTheory("GFN2-xTB (semi-empirical)", ("tblite",), partial(compute_xtb, method="GFN2-xTB"))
GFN1 = LevelOfTheory("GFN1-xTB (semi-empirical)", ("tblite",), partial(compute_xtb, method="GFN1-xTB"))
GFN1_PERIODIC = LevelOfTheory(
    "GFN1-xTB (semi-empirical), periodic, Gamma point alone", ("tblite",), partial(compute_xtb, method="GFN1-xTB")
)
GFN1_METAL = LevelOfTheory(
    f"GFN1-xTB (semi-empirical), periodic, Gamma point alone, electronic temperature {METAL_KELVIN:.0f} K",
    ("tblite",),
    partial(compute_xtb, method="GFN1-xTB", kelvin=METAL_KELVIN),
)
WB97X = LevelOfTheory(
    "wB97X/6-31G*, density fitting, PySCF grid level 2",
    ("pyscf",),
    partial(compute_gaussian_basis_dft, functional="wb97x", basis="6-31g*"),
)
PBE0 = LevelOfTheory(
    "PBE0/def2-SVP without dispersion, density fitting, PySCF grid level 2",
    ("pyscf",),
    partial(compute_gaussian_basis_dft, functional="pbe0", basis="def2-svp"),
)
PBE_PAW = LevelOfTheory(
    "PBE (GPAW), PAW plane waves to 400 eV, "
    f"k-grid of round({POINTS_ANGSTROM} A / length) points with Gamma, spin-paired",
    ("gpaw", "gpaw-data"),
    partial(compute_plane_wave_dft, functional="PBE", cutoff=400.0),
)
