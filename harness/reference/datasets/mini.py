"""The small labelled sets that ship with the harness, and which branch each one stands in for."""

from __future__ import annotations

import hashlib
import io
import lzma
from dataclasses import dataclass, replace
from pathlib import Path

import ase.io

from harness.reference.datasets.files import from_ase
from harness.reference.datasets.heads import HEADS
from harness.reference.errors import InputError
from harness.reference.structures import Structure

FOLDER = Path(__file__).parent / "mini"


@dataclass(frozen=True)
class MiniSet:
    """One shipped file: mini/<name>.extxyz.xz, in eV, angstrom, eV/angstrom, eV/angstrom^3 (ASE's stress sign).

    sample: the file is a sample of the branch's own dataset; otherwise it is a stand-in with other chemistry or
    another level of theory. package, member, source_sha256: the PyPI archive and the file in it.
    """

    name: str
    head: str
    sample: bool
    level: str
    labels: str
    count: int
    sha256: str
    package: str
    member: str
    source_sha256: str
    licence: str
    attribution: str

    @property
    def branch(self) -> int:
        """The branch id in the model."""
        return HEADS.index(self.head)

    @property
    def role(self) -> str:
        """How the set is to be called wherever its numbers are shown."""
        return f"sample of {self.head}" if self.sample else f"stand-in for {self.head}"


_MATTERSIM = "mattersim==1.2.3 (sdist)"
_MATTERSIM_SHA = "04bc55dd97bc1170c744ae93d30d773f3d8c07d35ad3efbeb817314ec0ecb16b"
_BENCHMARKS = "data/benchmarks/"
_MATTERSIM_BY = "Yang et al., MatterSim, arXiv 2405.04967; (c) Microsoft Corporation"

MINI_SETS: tuple[MiniSet, ...] = (
    MiniSet(
        name="alexandria-random",
        head="Alexandria",
        sample=True,
        level="PBE (VASP), near relaxed",
        labels="E, F, stress",
        count=1000,
        sha256="642f260ef83ed6b06115efb3f3f19e4d5f6597d655295faca57c02e293ea3722",
        package=_MATTERSIM,
        member=_BENCHMARKS + "alexandria-random-1k.xyz",
        source_sha256=_MATTERSIM_SHA,
        licence="CC-BY-4.0",
        attribution="Schmidt et al., Alexandria, Adv. Mater. 35, 2210788 (2023); selection: " + _MATTERSIM_BY,
    ),
    MiniSet(
        name="mptrj-random",
        head="MPTrj",
        sample=True,
        level="PBE / PBE+U (VASP), uncorrected energies",
        labels="E, F, stress",
        count=1000,
        sha256="5b071feb94fbd2db346828a01ebcf755e9f21d90fa97c283093a8bdd6b3617f1",
        package=_MATTERSIM,
        member=_BENCHMARKS + "mptrj-random-1k.xyz",
        source_sha256=_MATTERSIM_SHA,
        licence="CC-BY-4.0",
        attribution="Deng et al., MPtrj (CHGNet), Nat. Mach. Intell. 5, 1031 (2023); selection: " + _MATTERSIM_BY,
    ),
    MiniSet(
        name="mlearn",
        head="OC2020",
        sample=False,
        level="PBE (VASP), bulk, strained, slabs, vacancies and molecular dynamics of Ni Cu Li Ge Si Mo",
        labels="E, F",
        count=300,
        sha256="edf0aa0f4d5581b7e8b7fcc66ca61b56be294ef2d2e8453ffcbce0db73da3d4c",
        package="alignn==2026.8.11 (sdist)",
        member="alignn/examples/sample_data_ff/mlearn_data/all/id_prop.json",
        source_sha256="b5354495a782fa0e2589cb1d20f3eb1ad1d6694464278fcba49d9715a8d935da",
        licence="BSD-3-Clause (mlearn), NIST public domain (packaging)",
        attribution="Zuo et al., J. Phys. Chem. A 124, 731 (2020); packaging: Choudhary, ALIGNN, NIST",
    ),
    MiniSet(
        name="mpf-tp",
        head="OC2022",
        sample=False,
        level="PBE / PBE+U, Materials Project compositions at high temperature and pressure",
        labels="E, F, stress",
        count=1069,
        sha256="daf74be3c7b3aff497ece0516db230d84d86614ba862dc82c845d91db16431c1",
        package=_MATTERSIM,
        member=_BENCHMARKS + "mpf-TP.xyz",
        source_sha256=_MATTERSIM_SHA,
        licence="MIT",
        attribution=_MATTERSIM_BY,
    ),
    MiniSet(
        name="mpf-alkali-tp",
        head="OC25",
        sample=False,
        level="PBE / PBE+U, alkali and alkaline-earth compounds at high temperature and pressure",
        labels="E, F, stress",
        count=460,
        sha256="e23a6007d75c8ec6caf24696765e9c71ae02fb5f1f2a4b11edf394d8d2fbc602",
        package=_MATTERSIM,
        member=_BENCHMARKS + "mpf-alkali-TP.xyz",
        source_sha256=_MATTERSIM_SHA,
        licence="MIT",
        attribution=_MATTERSIM_BY,
    ),
    MiniSet(
        name="random-tp",
        head="OMat24",
        sample=False,
        level="PBE / PBE+U, random compositions at high temperature and pressure",
        labels="E, F, stress",
        count=693,
        sha256="36f4ba71296ca4348c20c6db785612ef67e0a52a1a32f7b3845b16c940408aac",
        package=_MATTERSIM,
        member=_BENCHMARKS + "random-TP.xyz",
        source_sha256=_MATTERSIM_SHA,
        licence="MIT",
        attribution=_MATTERSIM_BY,
    ),
    MiniSet(
        name="qm9",
        head="QM7X",
        sample=False,
        level="B3LYP/6-31G(2df,p), relaxed molecules, energy at 0 K without zero-point energy",
        labels="E",
        count=1000,
        sha256="c5bdaaec8370af6322ca07ca8a7fef27ce93902656d19609f05615ce8050057c",
        package="qm9pack==1.0.3 (wheel)",
        member="qm9pack/data/qm9_part1.csv, qm9_part2.csv, qm9_part3.csv",
        source_sha256="1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0",
        licence="CC0 (QM9), MIT (packaging)",
        attribution="Ramakrishnan et al., Sci. Data 1, 140022 (2014); packaging: R. Ramakrishnan, qm9pack",
    ),
)


def mini_set(name: str) -> MiniSet:
    """The set of that name; raises InputError with the known names."""
    for entry in MINI_SETS:
        if entry.name == name:
            return entry
    raise InputError(f"no mini set {name!r}; there are {', '.join(s.name for s in MINI_SETS)}")


def load_mini(entry: MiniSet) -> list[Structure]:
    """Read a shipped set after checking its digest; raises InputError if the file is not the one described."""
    path = FOLDER / f"{entry.name}.extxyz.xz"
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise InputError(f"{path}: sha256 differs from the one recorded for {entry.name!r}")
    frames = ase.io.read(io.StringIO(lzma.decompress(data).decode()), ":", format="extxyz")
    structures = []
    for k, atoms in enumerate(frames):
        labels = atoms.calc.results
        structures.append(
            replace(
                from_ase(atoms, f"{entry.name}/{k}"),
                head=entry.branch,
                energy=float(labels["energy"]),
                forces=labels.get("forces"),
                stress=atoms.get_stress(voigt=False) if "stress" in labels else None,
            ).check()
        )
    if len(structures) != entry.count:
        raise InputError(f"{path}: {len(structures)} structures, expected {entry.count}")
    return structures
