"""The recipe of each set: its structures, level of theory and source."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.reference.data.structure import Structure
from harness.reference.datasets import levels
from harness.reference.datasets.levels import LevelOfTheory
from tests.builders.mini_sets.chemistry import (
    charged,
    drugs,
    interfaces,
    molecules,
    oxides,
    polymers,
    porous,
    published,
    reactions,
    slabs,
)
from tests.builders.mini_sets.packages import MATTERSIM, QM9

RDKIT = "RDKit ETKDG conformers"


@dataclass(frozen=True)
class Recipe:
    """The recipe of a set.

    Attributes:
        make: Returns the structures, given the folder of archives.
        level: Level of theory that labels the structures, or the name of the level of published labels.
        source: The archive and its files, or where the geometries come from.
        packages: Packages that make the geometries, whose versions are recorded.
    """

    make: Callable[[Path], list[Structure]]
    level: LevelOfTheory | str
    source: str
    packages: tuple[str, ...] = ("ase",)

    @property
    def module(self) -> str:
        """Return the file of this package that makes the structures."""
        return f"{self.make.__module__.rsplit('.', 1)[-1]}.py"


def _ignore_archives(make: Callable[[], list[Structure]]) -> Callable[[Path], list[Structure]]:
    """Return the function with an unused parameter for the folder of archives, as recipes require."""

    def make_from_archives(archives: Path) -> list[Structure]:
        return make()

    make_from_archives.__module__ = make.__module__
    return make_from_archives


def _describe_files(*names: str) -> str:
    return f"{MATTERSIM.provenance}, {published.FOLDER}{{{', '.join(names)}}}"


RECIPES: dict[str, Recipe] = {
    "alexandria": Recipe(
        published.read_alexandria, "PBE (VASP), near relaxed", _describe_files("alexandria-random-1k.xyz")
    ),
    "ani1x": Recipe(molecules.make_ani1x, levels.WB97X, RDKIT, ("rdkit", "ase")),
    "mptrj": Recipe(
        published.read_mptrj,
        "PBE / PBE+U (VASP), uncorrected energies",
        _describe_files("mptrj-random-1k.xyz") + ", an even pick",
    ),
    "oc2020": Recipe(_ignore_archives(slabs.make_oc2020), levels.GFN1_METAL, "ASE slabs and molecules"),
    "oc2022": Recipe(
        _ignore_archives(oxides.make_oc2022), levels.PBE_PAW, "slabs from rounded experimental lattice constants"
    ),
    "oc25": Recipe(_ignore_archives(interfaces.make_oc25), levels.GFN1_METAL, "ASE slabs, molecules packed at random"),
    "odac23": Recipe(
        _ignore_archives(porous.make_odac23), levels.GFN1_PERIODIC, "frameworks from covalent radii, ASE molecules"
    ),
    "omat24": Recipe(
        published.read_omat24,
        "PBE / PBE+U (VASP), off equilibrium",
        _describe_files("mpf-TP.xyz", "mpf-alkali-TP.xyz", "random-TP.xyz", "mptrj-highest-stress-1k.xyz"),
    ),
    "omol25": Recipe(charged.make_omol25, levels.GFN2, f"QM9 from {QM9.provenance}, ASE molecules, covalent radii"),
    "opoly2026": Recipe(_ignore_archives(polymers.make_opoly2026), levels.GFN2, RDKIT, ("rdkit", "ase")),
    "nabla2dft": Recipe(_ignore_archives(drugs.make_nabla2dft), levels.GFN1, RDKIT, ("rdkit", "ase")),
    "qcml": Recipe(molecules.make_qcml, levels.PBE0, f"{RDKIT}, covalent radii", ("rdkit", "ase")),
    "qm7x": Recipe(molecules.make_qm7x, levels.PBE0, f"QM9 from {QM9.provenance}"),
    "transition1x": Recipe(
        _ignore_archives(reactions.make_transition1x),
        levels.WB97X,
        f"{RDKIT}, nudged elastic bands on GFN2-xTB",
        ("rdkit", "tblite", "ase"),
    ),
}
