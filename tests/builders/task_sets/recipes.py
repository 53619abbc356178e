"""The recipe of each shipped set: its structures, level of theory and source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.reference.data.structure import Structure
from harness.reference.datasets import levels
from harness.reference.datasets.levels import LevelOfTheory
from tests.builders.mini_sets.packages import MATTERSIM, QM9
from tests.builders.task_sets import dynamics, perovskites, published
from tests.builders.task_sets.samples import Sample, make_energy_samples, make_relative_samples


@dataclass(frozen=True)
class Published:
    """A set of published values.

    Attributes:
        make: Returns the samples, given the folder of archives.
        level: Name of the level of theory.
        source: Text for the provenance.
    """

    make: Callable[[Path], list[Sample]]
    level: str
    source: str


@dataclass(frozen=True)
class Computed:
    """A set that is computed here.

    Attributes:
        make: Returns the structures.
        level: Level of theory that labels them.
        finish: Converts labelled structures to samples.
        source: Text for the provenance.
        packages: Packages that make the structures, whose versions are recorded.
    """

    make: Callable[[], list[Structure]]
    level: LevelOfTheory
    finish: Callable[[Sequence[Structure]], list[Sample]]
    source: str
    packages: tuple[str, ...]


RECIPES: dict[str, Published | Computed] = {
    "qm9": Published(
        published.sample_qm9,
        "B3LYP/6-31G(2df,p)",
        f"{QM9.provenance}, qm9_part{{1,2,3}}.csv, a random pick of those that no set for pretraining holds",
    ),
    "md17": Computed(
        dynamics.make_md17_frames,
        levels.GFN1,
        make_energy_samples,
        f"RDKit ETKDG geometries, Langevin dynamics on {dynamics.MD17_LEVEL} at {dynamics.MD17_KELVIN:.0f} K, "
        f"a frame every {dynamics.MD17_STEPS * dynamics.STEP_FS:.0f} fs",
        ("rdkit", "tblite", "ase"),
    ),
    "wiggle150": Computed(
        dynamics.make_wiggle150_conformers,
        levels.GFN2,
        make_relative_samples,
        f"RDKit ETKDG conformers, Langevin dynamics on {dynamics.WIGGLE_LEVEL} at {dynamics.WIGGLE_KELVIN:.0f} K, "
        f"each {dynamics.WIGGLE_STEPS * dynamics.STEP_FS:.0f} fs from a relaxed conformer, bonds intact",
        ("rdkit", "tblite", "ase"),
    ),
    "ms25": Published(
        published.sample_mlearn, "PBE (VASP)", f"{published.ALIGNN.provenance}, {published.MLEARN_FILE}, an even pick"
    ),
    "oqmd": Published(
        published.select_oqmd,
        "PBE / PBE+U (VASP), energies relative to a linear fit on composition",
        f"{MATTERSIM.provenance}, data/benchmarks/mptrj-random-1k.xyz, formulas that no set for pretraining has",
    ),
    "abx3": Computed(
        perovskites.build_supercells,
        levels.GFN1_PERIODIC,
        perovskites.select_cells,
        f"cubic cells repeated {perovskites.REPEATS} times along each axis, edges from covalent radii; "
        "energies relative to a linear fit on composition",
        ("ase",),
    ),
    "matbench_log_kvrh": Published(
        published.read_bulk_moduli,
        "PBE (WIEN2k), equations of state",
        "ASE's collection dcdft (ase/collections/dcdft.json)",
    ),
}
