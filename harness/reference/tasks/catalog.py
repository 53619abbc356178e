"""The twelve downstream tasks of transfer learning: their targets, error measures and data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.protocol.errors import did_you_mean
from harness.reference.errors import InputError
from harness.reference.tasks.published_results import MATBENCH, MD17, QM9, Result

Kind = Literal["energy", "energy_forces", "property"]


@dataclass(frozen=True)
class Task:
    """A downstream task, taken from a published benchmark or dataset.

    Attributes:
        name: The name in suites.
        title: The name in reports.
        target: The predicted quantity.
        unit: The unit of the target and of its error.
        kind: "energy" (of the whole structure, eV), "energy_forces" (with forces, eV/angstrom) or "property" (a number
            that does not grow with the size of the structure).
        files: The official files, with the keys that are read.
        fetch: Instructions to get the files.
        size: Number of published structures; 0 if it is not fixed.
        splits: How the publication splits the structures.
        licence: The licence.
        citation: The publication.
        url: The page of the benchmark or the publication.
        error_per_atom: Whether the error of an energy is divided by the number of atoms.
        metric: The name of the error.
        published: Published results on the official data.
    """

    name: str
    title: str
    target: str
    unit: str
    kind: Kind
    files: tuple[str, ...]
    fetch: str
    size: int
    splits: str
    licence: str
    citation: str
    url: str
    error_per_atom: bool = False
    metric: str = "MAE"
    published: tuple[Result, ...] = ()


def _build_matbench_task(name: str, target: str, unit: str, size: int, citation: str) -> Task:
    return Task(
        name=f"matbench_{name}",
        title=f"Matbench {name}",
        target=target,
        unit=unit,
        kind="property",
        files=(f"matbench_{name}.json.gz", f"matbench_{name}.json"),
        fetch=f"https://ml.materialsproject.org/projects/matbench_{name}.json.gz",
        size=size,
        splits="five official folds (KFold, shuffled, random_state 18012019); their test sets cover the whole dataset",
        licence="MIT (Matbench)",
        citation=f"Dunn et al., npj Comput. Mater. 6, 138 (2020); {citation}",
        url="https://matbench.materialsproject.org",
        published=MATBENCH[f"matbench_{name}"],
    )


TASKS: tuple[Task, ...] = (
    Task(
        name="qm9",
        title="QM9",
        target="internal energy at 0 K (U0)",
        unit="eV",
        kind="energy",
        files=(
            "dsgdb9nsd.xyz.tar.bz2 (or the folder that it unpacks to) with uncharacterized.txt",
            "qm9_part*.csv",
            "gdb9.sdf with gdb9.sdf.csv and, if present, uncharacterized.txt",
        ),
        fetch="https://doi.org/10.6084/m9.figshare.978904 (dsgdb9nsd.xyz.tar.bz2, uncharacterized.txt), as gdb9.sdf "
        "and gdb9.sdf.csv (qm9.zip of MoleculeNet), or as qm9_part*.csv (PyPI qm9pack)",
        size=130_831,
        splits="at random: 110,000 to train, 10,000 to validate, the rest to test",
        licence="CC0",
        citation="Ramakrishnan, Dral, Rupp, von Lilienfeld, Sci. Data 1, 140022 (2014)",
        url="https://doi.org/10.1038/sdata.2014.22",
        published=QM9,
    ),
    Task(
        name="md17",
        title="MD17",
        target="energy and forces along a trajectory, each molecule by itself",
        unit="eV",
        kind="energy_forces",
        files=("md17_*.npz (E, F, R, z)", "rmd17_*.npz (energies, forces, coords, nuclear_charges)"),
        fetch="http://www.sgdml.org/#datasets",
        size=0,
        splits="at random, for each molecule: 1,000 to train, the rest to test",
        licence="free for research (sgdml.org)",
        citation="Chmiela et al., Sci. Adv. 3, e1603015 (2017)",
        url="https://doi.org/10.1126/sciadv.1603015",
        published=MD17,
    ),
    Task(
        name="wiggle150",
        title="Wiggle150",
        target="energy of a strained conformer above the relaxed one of its molecule (_00)",
        unit="eV",
        kind="energy",
        files=("ct5c00015_si_003.xyz (comment lines: name and energy, kcal/mol)",),
        fetch="https://doi.org/10.1021/acs.jctc.5c00015, supporting information",
        size=0,
        splits="none fixed; at random over the conformers, as the paper's code does (70% to train)",
        licence="supporting information of the article",
        citation="Brew et al., J. Chem. Theory Comput. 21, 3922 (2025)",
        url="https://doi.org/10.1021/acs.jctc.5c00015",
    ),
    Task(
        name="ms25",
        title="MS25",
        target="energy and forces of materials systems",
        unit="eV",
        kind="energy_forces",
        files=("<system>/**/*.traj (ASE trajectories, as in HEA/set1/train-1000.traj)",),
        fetch="the deposit that https://doi.org/10.1021/acs.jcim.5c01262 names under data availability",
        size=0,
        splits="for each system, by training images (up to 1,000)",
        licence="as deposited",
        citation="Maxson, Soyemi, Zhang, Chen, Szilvasi, J. Chem. Inf. Model. (2025)",
        url="https://doi.org/10.1021/acs.jcim.5c01262",
        error_per_atom=True,
    ),
    Task(
        name="oqmd",
        title="OQMD",
        target="formation energy",
        unit="eV/atom",
        kind="property",
        files=(
            "pages of the OQMD's API (*.json: entry_id, unit_cell, sites, delta_e), optionally with oqmd_data.csv",
            "*.extxyz (formation_energy_per_atom in the comment lines)",
        ),
        fetch="http://oqmd.org/oqmdapi/formationenergy?filter=generic=ABC3&fields=entry_id,sites,unit_cell,delta_e, "
        "page by page, and https://github.com/chenebuah/ML_abx3_dataset (oqmd_data.csv)",
        size=16_323,
        splits="at random, as the paper's code does (70% to train); here no composition is in both training and test",
        licence="CC-BY-4.0",
        citation="Saal et al., JOM 65, 1501 (2013); Kirklin et al., npj Comput. Mater. 1, 15010 (2015); "
        "Chenebuah and Chenebuah, arXiv 2312.11335 (2023)",
        url="https://oqmd.org",
    ),
    Task(
        name="abx3",
        title="ABX3 perovskites",
        target="formation energy",
        unit="eV/atom",
        kind="property",
        files=(
            "abc3_data.csv (mp_id, formation_energy (eV/atom)) with structures.json ({mp_id: structure})",
            "*.csv with a column poscar, cif or structure",
            "*.extxyz (formation_energy_per_atom in the comment lines)",
        ),
        fetch="https://github.com/chenebuah/ML_abx3_dataset (abc3_data.csv); structures by mp_id from the Materials "
        "Project's API",
        size=4557,
        splits="at random, as the paper's code does (70% to train); here no composition is in both training and test",
        licence="as published; structures CC-BY-4.0 (Materials Project)",
        citation="Chenebuah and Chenebuah, arXiv 2312.11335 (2023); Jain et al., APL Mater. 1, 011002 (2013)",
        url="https://github.com/chenebuah/ML_abx3_dataset",
    ),
    _build_matbench_task("dielectric", "refractive index", "1", 4764, "Petousis et al., Sci. Data 4, 160134 (2017)"),
    _build_matbench_task("jdft2d", "exfoliation energy", "meV/atom", 636, "Choudhary et al., Sci. Rep. 7, 5179 (2017)"),
    _build_matbench_task(
        "log_gvrh", "log10 of the shear modulus", "log10(GPa)", 10987, "de Jong et al., Sci. Data 2, 150009 (2015)"
    ),
    _build_matbench_task(
        "log_kvrh", "log10 of the bulk modulus", "log10(GPa)", 10987, "de Jong et al., Sci. Data 2, 150009 (2015)"
    ),
    _build_matbench_task(
        "perovskites",
        "heat of formation of the five-atom cell",
        "eV/unit cell",
        18928,
        "Castelli et al., Energy Environ. Sci. 5, 9034 (2012)",
    ),
    _build_matbench_task(
        "phonons",
        "frequency of the highest optical phonon peak",
        "1/cm",
        1265,
        "Petretto et al., Sci. Data 5, 180065 (2018)",
    ),
)


def find_task(name: str) -> Task:
    """Return the task of a name; raises InputError, with similar or known names, if there is none."""
    for entry in TASKS:
        if entry.name == name:
            return entry
    raise InputError(f"no task {name!r}{did_you_mean(name.lower(), (task.name for task in TASKS))}")
