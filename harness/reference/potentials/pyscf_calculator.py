"""An ASE calculator of Kohn-Sham DFT in Gaussian basis sets with PySCF, which has no calculator of its own."""

from __future__ import annotations

from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from harness.reference.datasets.levels import compute_gaussian_basis_dft
from harness.reference.datasets.user_files import structure_from_ase


class GaussianBasisCalculator(Calculator):
    """Energy (eV) and forces (eV/angstrom) of molecules; charge and multiplicity come from `atoms.info`.

    Args:
        functional: The functional, by its name in PySCF.
        basis: The basis set, by its name in PySCF.
    """

    packages = ("pyscf",)

    def __init__(self, functional: str, basis: str) -> None:
        import pyscf  # noqa: F401  # a missing package is reported before the first structure

        super().__init__()
        self.implemented_properties = ["energy", "forces"]
        self.functional, self.basis = functional, basis

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute energy and forces; raise an error for periodic structures, and if the density does not converge."""
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        if self.atoms.pbc.any():
            raise PropertyNotImplementedError("Gaussian basis sets are for molecules; the structure is periodic")
        structure = structure_from_ase(self.atoms, "atoms")
        energy, forces = compute_gaussian_basis_dft(structure, self.functional, self.basis)
        self.results = {"energy": energy, "forces": forces}
