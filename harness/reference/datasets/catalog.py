"""The sixteen datasets of the branches: their files, units, energy scales and owners."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from harness.reference.datasets.heads import HEADS
from harness.reference.errors import InputError

EVERY_ELEMENT = 118
LAST_BEFORE_ECP = 36  # the def2 basis sets put effective core potentials on everything heavier than krypton


@dataclass(frozen=True)
class Source:
    """One published dataset, as its authors hand it out.

    files: names and keys. units: as in the files (readers hand on eV and angstrom). level: level of theory.
    label: what the energy is: "total" or "formation". zero: where that energy is zero.
    all_electron: heaviest element whose electrons are all in the energy; 0: energies are those of pseudo-atoms.
    per_atom: eV per atom between which an energy is plausible, where all_electron does not decide.
    molecular: no periodic cell. charges: "all", "neutral" or "charged": what of the files belongs to the branch.
    labels: what every file of the dataset has, of energy, forces, stress and spin.
    count: structures, published or listed; 0: a part of another dataset, not listed. fetch: where the files come from.
    """

    head: str
    format: str
    files: str
    units: str
    level: str
    label: str
    zero: str
    per_atom: tuple[float, float]
    count: int
    licence: str
    citation: str
    url: str
    fetch: str
    all_electron: int = 0
    molecular: bool = False
    charges: str = "all"
    labels: tuple[str, ...] = ("energy", "forces")

    @property
    def slug(self) -> str:
        """The head's name in lower case, for folders and the command line."""
        return self.head.lower()

    @property
    def branch(self) -> int:
        """The branch id in the model."""
        return HEADS.index(self.head)


_EV = "eV, angstrom, eV/angstrom"
_ASELMDB = (
    "*.aselmdb, also in folders: LMDB without a folder of its own; keys '1', '2', ... + nextid (deleted_ids, metadata);"
    " values zlib(JSON): numbers, positions, cell, pbc, energy, forces, stress, data {charge, spin, source, ...}"
)
_S2EF_LMDB = (
    "*.lmdb: pickled PyG Data: atomic_numbers, pos, cell, y, force, sid, fid, natoms, fixed, tags; key 'length'"
)
_VASP_ZERO = "VASP: separate non-spin-polarised pseudo-atoms"
_ELECTRONS = "nuclei and electrons at rest, infinitely apart"
_OPEN_CATALYST = "https://dl.fbaipublicfiles.com/opencatalystproject/data/"
_HUGGING_FACE = "accept the terms at {0}, then `hf download {1} --repo-type dataset`"
_OMOL = "Levine et al., The Open Molecules 2025 (OMol25) Dataset, arXiv 2505.08762 (2025)"
_OMOL_URL = "https://huggingface.co/facebook/OMol25"
_OMOL_FETCH = f"accept the terms at {_OMOL_URL}; the page lists the archives (train 4M, train all, val)"
_OMOL_LEVEL = "wB97M-V/def2-TZVPD (ORCA)"
_ANY = (-1e7, 10.0)  # all-electron energies of heavy elements: the comparison with free atoms decides, not a range
_BULK = (-60.0, 60.0)
_SLAB = (-60.0, -0.2)  # adsorption and other referenced energies are near zero, of a slab even more so per atom
_DRUG_LIKE = (-15.0, -0.5)  # formation from atoms: about -5
_WITH_STRESS = ("energy", "forces", "stress")
_WITH_SPIN = ("energy", "forces", "spin")


def _omol(head: str, charges: str, count: int) -> Source:
    return Source(
        head, "aselmdb", _ASELMDB, _EV, _OMOL_LEVEL, "total", _ELECTRONS, _ANY, count, "CC-BY-4.0", _OMOL, _OMOL_URL,
        _OMOL_FETCH, all_electron=LAST_BEFORE_ECP, molecular=True, charges=charges, labels=_WITH_SPIN,
    )  # fmt: skip


SOURCES: tuple[Source, ...] = (
    Source(
        "Alexandria", "alexandria",
        "alexandria_*.json.bz2: entries[]: structure (sites with forces, magmom), data {mat_id, energy_total, stress}",
        "eV, angstrom, eV/angstrom; stress kbar, compression positive", "PBE / PBE+U (VASP)", "total", _VASP_ZERO,
        _BULK, 5_000_000, "CC-BY-4.0", "Schmidt et al., Adv. Mater. 35, 2210788 (2023)",
        "https://alexandria.icams.rub.de",
        "https://alexandria.icams.rub.de/data/pbe/2024.12.15/alexandria_000.json.bz2 and on to alexandria_049.json.bz2",
        labels=_WITH_STRESS,
    ),
    Source(
        "ANI1x", "ani1x",
        "ani1x-release.h5: a group per formula: coordinates [c, n, 3], atomic_numbers [n], wb97x_dz.energy [c],"
        " wb97x_dz.forces [c, n, 3]; NaN: not computed",
        "hartree, angstrom, hartree/angstrom", "wB97X/6-31G(d) (Gaussian)", "total", _ELECTRONS, _ANY, 4_956_005,
        "CC0-1.0", "Smith et al., Sci. Data 7, 134 (2020)", "https://doi.org/10.6084/m9.figshare.c.4712477",
        "https://springernature.figshare.com/ndownloader/files/18112775 (5.6 GB, saved as ani1x-release.h5)",
        all_electron=EVERY_ELEMENT, molecular=True,
    ),
    Source(
        "MPTrj", "mptrj",
        "MPtrj_2022.9_full.json: {mp-id: {frame: structure, uncorrected_total_energy, force, stress, ...}}",
        "eV, angstrom, eV/angstrom; stress kbar, compression positive", "PBE / PBE+U (VASP)", "total", _VASP_ZERO,
        _BULK, 1_580_395, "CC-BY-4.0", "Deng et al., Nat. Mach. Intell. 5, 1031 (2023)",
        "https://doi.org/10.6084/m9.figshare.23713842", "the page's MPtrj_2022.9_full.json (12 GB)",
        labels=_WITH_STRESS,
    ),
    Source(
        "OC2020", "s2ef_text",
        "<n>.extxyz.xz with <n>.txt.xz (either may be decompressed), line i for frame i: system, frame, reference"
        " energy; the adsorption energy is energy - reference",
        _EV, "RPBE (VASP)", "total", _VASP_ZERO, _SLAB, 133_934_018, "CC-BY-4.0",
        "Chanussot et al., ACS Catal. 11, 6059 (2021)", "https://fair-chem.github.io/catalysts/datasets/oc20",
        f"{_OPEN_CATALYST}s2ef_train_200K.tar, s2ef_train_2M.tar, s2ef_train_20M.tar, s2ef_train_all.tar; untar",
    ),
    Source(
        "OC2022", "s2ef_lmdb", _S2EF_LMDB, _EV, "PBE+U (VASP)", "total", _VASP_ZERO, _SLAB, 9_854_504,
        "CC-BY-4.0", "Tran et al., ACS Catal. 13, 3066 (2023)", "https://fair-chem.github.io/catalysts/datasets/oc22",
        "the page's S2EF-Total archive s2ef_total_train_val_test_lmdbs.tar.gz (md5 ebea523c6f8d61248a37b4dd660b11e6)",
    ),
    Source(
        "OC25", "aselmdb", _ASELMDB, _EV, "RPBE+D3 (VASP), explicit solvent", "total", _VASP_ZERO, _SLAB,
        7_801_261, "CC-BY-4.0", "Sahoo et al., The Open Catalyst 2025 (OC25) Dataset, arXiv 2509.17862 (2025)",
        "https://huggingface.co/facebook/OC25",
        _HUGGING_FACE.format("https://huggingface.co/facebook/OC25", "facebook/OC25"),
    ),
    Source(
        "ODAC23", "s2ef_lmdb", f"{_S2EF_LMDB}; raw_y: DFT total, y: adsorption energy", _EV, "PBE+D3 (VASP)", "total",
        _VASP_ZERO, _SLAB, 38_000_000, "CC-BY-4.0", "Sriram et al., ACS Cent. Sci. 10, 923 (2024)",
        "https://fair-chem.github.io/dac/datasets/odac", "the page's S2EF archives",
    ),
    Source(
        "OMat24", "aselmdb", _ASELMDB, f"{_EV}; stress eV/angstrom^3, tension positive", "PBE / PBE+U (VASP)",
        "total", _VASP_ZERO, _BULK, 101_000_000, "CC-BY-4.0",
        "Barroso-Luque et al., Open Materials 2024 (OMat24), arXiv 2410.12771 (2024)",
        "https://huggingface.co/datasets/facebook/OMAT24",
        f"{_OPEN_CATALYST}omat/241018/omat/train/rattled-1000.tar.gz and the page's other archives; untar",
        labels=_WITH_STRESS,
    ),
    _omol("OMol25", "all", 100_000_000),
    _omol("OMol25-neutral", "neutral", 0),
    _omol("OMol25-non-neutral", "charged", 0),
    Source(
        "OPoly2026", "aselmdb", _ASELMDB, _EV, "wB97M-V/def2-TZVPD (ORCA)", "total", _ELECTRONS, _ANY, 6_570_000,
        "CC-BY-4.0", "Levine et al., The Open Polymers 2026 (OPoly26) Dataset and Evaluations (2025)",
        "https://huggingface.co/facebook/OMol25", "ask at the page of OMol25, which is from the same authors",
        all_electron=LAST_BEFORE_ECP, molecular=True, labels=_WITH_SPIN,
    ),
    Source(
        "Nabla2DFT", "asedb",
        "*.db: ASE SQLite; row data: energy [1], forces [n, 3]; keys moses_id, conformation_id, smiles;"
        " metadata _property_unit_dict, _distance_unit, atomrefs",
        "hartree, angstrom, hartree/angstrom", "wB97X-D/def2-SVP (Psi4)", "formation", "free atoms, same level",
        _DRUG_LIKE, 12_676_264, "MIT", "Khrabrov et al., NeurIPS Datasets and Benchmarks (2024), arXiv 2406.14347",
        "https://github.com/AIRI-Institute/nablaDFT", "the addresses in its nablaDFT/links/energy_databases.json",
        molecular=True,
    ),
    Source(
        "QCML", "qcml",
        "tfds/qcml/dft_force_field/1.0.0: *.tfrecord-*-of-* with features.json: atomic_numbers, positions, charge,"
        " multiplicity, pbe0_energy, pbe0_forces, is_outlier, key_hash",
        "hartree, bohr, hartree/bohr", "PBE0 (FHI-aims)", "total", _ELECTRONS, _ANY, 33_501_520, "CC-BY-NC-4.0",
        "Ganscha et al., Sci. Data 12, 406 (2025)", "https://doi.org/10.1038/s41597-025-04720-7",
        "gcloud storage cp -r gs://qcml-datasets/tfds/qcml/dft_force_field/1.0.0 . --project=deepmind-opensource",
        all_electron=EVERY_ELEMENT, molecular=True, labels=_WITH_SPIN,
    ),
    Source(
        "QM7X", "qm7x",
        "1000.xz .. 8000.xz (HDF5, also decompressed): [molecule][conformation]: atNUM, atXYZ, ePBE0+MBD, totFOR",
        _EV, "PBE0+MBD (FHI-aims)", "total", _ELECTRONS, _ANY, 4_195_237, "CC-BY-4.0",
        "Hoja et al., Sci. Data 8, 43 (2021)", "https://doi.org/10.5281/zenodo.3905361",
        "https://zenodo.org/records/4288677/files/1000.xz and likewise 2000.xz .. 8000.xz",
        all_electron=EVERY_ELEMENT, molecular=True,
    ),
    Source(
        "transition1x", "transition1x",
        "Transition1x.h5: /data/<formula>/<reaction>: atomic_numbers [n], positions [c, n, 3],"
        " wB97x_6-31G(d).energy [c], wB97x_6-31G(d).forces [c, n, 3]; train, val, test hold the same again",
        _EV, "wB97X/6-31G(d) (ORCA)", "total", _ELECTRONS, _ANY, 9_644_740, "CC-BY-4.0",
        "Schreiner et al., Sci. Data 9, 779 (2022)", "https://doi.org/10.6084/m9.figshare.19614657",
        "the page's Transition1x.h5", all_electron=EVERY_ELEMENT, molecular=True,
    ),
)  # fmt: skip


def source(name: str) -> Source:
    """The dataset of that slug or head name, whatever its case; raises InputError with the nearest name."""
    slug = name.lower()
    for entry in SOURCES:
        if entry.slug == slug:
            return entry
    slugs = [entry.slug for entry in SOURCES]
    near = difflib.get_close_matches(slug, slugs, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(slugs)}"
    raise InputError(f"no dataset {name!r} ({hint})")
