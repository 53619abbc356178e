"""The sixteen datasets, one for each head of the model: their files, units, energy scales and sources."""

from __future__ import annotations

from dataclasses import dataclass

from harness.protocol.errors import did_you_mean
from harness.reference.errors import InputError

HEADS: tuple[str, ...] = (
    "Alexandria",
    "ANI1x",
    "MPTrj",
    "OC2020",
    "OC2022",
    "OC25",
    "ODAC23",
    "OMat24",
    "OMol25",
    "OMol25-neutral",
    "OMol25-non-neutral",
    "OPoly2026",
    "Nabla2DFT",
    "QCML",
    "QM7X",
    "transition1x",
)


EVERY_ELEMENT = 118
LAST_BEFORE_ECP = 36  # the def2 basis sets put effective core potentials on everything heavier than krypton
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
OPEN_CATALYST = "https://dl.fbaipublicfiles.com/opencatalystproject/data/"
_HUGGING_FACE = "accept the terms at {0}, then `hf download {1} --repo-type dataset`"
_OMOL = "Levine et al., The Open Molecules 2025 (OMol25) Dataset, arXiv 2505.08762 (2025)"
_OMOL_URL = "https://huggingface.co/facebook/OMol25"
_OMOL_FETCH = f"accept the terms at {_OMOL_URL}; the page lists the archives (train 4M, train all, val)"
_OMOL_LEVEL = "wB97M-V/def2-TZVPD (ORCA)"
_ANY = (-1e7, 10.0)  # eV/atom; no real limit: all-electron energies are compared with those of free atoms instead
_BULK = (-60.0, 60.0)
_SLAB = (-60.0, -0.2)  # eV/atom; excludes adsorption energies, which per atom of a slab are close to zero
_DRUG_LIKE = (-15.0, -0.5)  # eV/atom relative to free atoms; typically about -5
_WITH_STRESS = ("energy", "forces", "stress")
_WITH_SPIN = ("energy", "forces", "spin")


@dataclass(frozen=True)
class DatasetSource:
    """One dataset, as its authors publish it.

    Attributes:
        head: The head of the model.
        format: The name of the format.
        files: The names of the files, and the keys in them.
        units: The units of the files (readers return eV and angstrom).
        level: The level of theory.
        energy_kind: "total" or "formation".
        zero_energy_state: The state of zero energy.
        energy_range_ev_per_atom: The plausible range of the energy; it excludes little if energies are also compared
            with those of free atoms (heaviest_all_electron > 0).
        count: Number of published structures; 0 for a part of another dataset.
        licence: The licence.
        citation: The publication.
        url: The page of the dataset.
        fetch: Instructions to get the files.
        heaviest_all_electron: Atomic number up to which the energy includes all electrons; 0 if energies are those of
            pseudo-atoms.
        molecular: Whether structures have no periodic cell.
        charges: Which structures of the files belong to the head: "all", "neutral" or "charged".
        labels: Which of energy, forces, stress and spin all files have.
    """

    head: str
    format: str
    files: str
    units: str
    level: str
    energy_kind: str
    zero_energy_state: str
    energy_range_ev_per_atom: tuple[float, float]
    count: int
    licence: str
    citation: str
    url: str
    fetch: str
    heaviest_all_electron: int = 0
    molecular: bool = False
    charges: str = "all"
    labels: tuple[str, ...] = ("energy", "forces")

    @property
    def slug(self) -> str:
        """The head's name in lower case, for folders and the command line."""
        return self.head.lower()

    @property
    def branch(self) -> int:
        """The index of the head in the model."""
        return HEADS.index(self.head)


def _build_omol_source(head: str, charges: str, count: int) -> DatasetSource:
    return DatasetSource(
        head=head, format="aselmdb", energy_kind="total", zero_energy_state=_ELECTRONS, energy_range_ev_per_atom=_ANY,
        count=count, licence="CC-BY-4.0", level=_OMOL_LEVEL, heaviest_all_electron=LAST_BEFORE_ECP, molecular=True,
        charges=charges, labels=_WITH_SPIN, units=_EV, files=_ASELMDB, citation=_OMOL, url=_OMOL_URL, fetch=_OMOL_FETCH,
    )  # fmt: skip


SOURCES: tuple[DatasetSource, ...] = (
    DatasetSource(
        head="Alexandria", format="alexandria", energy_kind="total", zero_energy_state=_VASP_ZERO,
        energy_range_ev_per_atom=_BULK, count=5_000_000, licence="CC-BY-4.0", level="PBE / PBE+U (VASP)",
        labels=_WITH_STRESS, units="eV, angstrom, eV/angstrom; stress kbar, compression positive",
        files=(
            "alexandria_*.json.bz2: entries[]: structure (sites with forces, magmom), data {mat_id, energy_total,"
            " stress}"
        ),
        citation="Schmidt et al., Adv. Mater. 35, 2210788 (2023)", url="https://alexandria.icams.rub.de",
        fetch=(
            "https://alexandria.icams.rub.de/data/pbe/2024.12.15/alexandria_000.json.bz2 and on to"
            " alexandria_049.json.bz2"
        ),
    ),
    DatasetSource(
        head="ANI1x", format="ani1x", energy_kind="total", zero_energy_state=_ELECTRONS, energy_range_ev_per_atom=_ANY,
        count=4_956_005, licence="CC0-1.0", level="wB97X/6-31G(d) (Gaussian)", heaviest_all_electron=EVERY_ELEMENT,
        molecular=True, units="hartree, angstrom, hartree/angstrom",
        files=(
            "ani1x-release.h5: a group per formula: coordinates [c, n, 3], atomic_numbers [n], wb97x_dz.energy [c],"
            " wb97x_dz.forces [c, n, 3]; NaN: not computed"
        ),
        citation="Smith et al., Sci. Data 7, 134 (2020)", url="https://doi.org/10.6084/m9.figshare.c.4712477",
        fetch="https://springernature.figshare.com/ndownloader/files/18112775 (5.6 GB, saved as ani1x-release.h5)",
    ),
    DatasetSource(
        head="MPTrj", format="mptrj", energy_kind="total", zero_energy_state=_VASP_ZERO, energy_range_ev_per_atom=_BULK,
        count=1_580_395, licence="CC-BY-4.0", level="PBE / PBE+U (VASP)", labels=_WITH_STRESS,
        units="eV, angstrom, eV/angstrom; stress kbar, compression positive",
        files="MPtrj_2022.9_full.json: {mp-id: {frame: structure, uncorrected_total_energy, force, stress, ...}}",
        citation="Deng et al., Nat. Mach. Intell. 5, 1031 (2023)", url="https://doi.org/10.6084/m9.figshare.23713842",
        fetch="the page's MPtrj_2022.9_full.json (12 GB)",
    ),
    DatasetSource(
        head="OC2020", format="s2ef_text", energy_kind="total", zero_energy_state=_VASP_ZERO,
        energy_range_ev_per_atom=_SLAB, count=133_934_018, licence="CC-BY-4.0", level="RPBE (VASP)", units=_EV,
        files=(
            "<n>.extxyz.xz with <n>.txt.xz (either may be decompressed), line i for frame i: system, frame, reference"
            " energy; the adsorption energy is energy - reference"
        ),
        citation="Chanussot et al., ACS Catal. 11, 6059 (2021)",
        url="https://fair-chem.github.io/catalysts/datasets/oc20",
        fetch=f"{OPEN_CATALYST}s2ef_train_200K.tar, s2ef_train_2M.tar, s2ef_train_20M.tar, s2ef_train_all.tar; untar",
    ),
    DatasetSource(
        head="OC2022", format="s2ef_lmdb", energy_kind="total", zero_energy_state=_VASP_ZERO,
        energy_range_ev_per_atom=_SLAB, count=9_854_504, licence="CC-BY-4.0", level="PBE+U (VASP)", units=_EV,
        files=_S2EF_LMDB, citation="Tran et al., ACS Catal. 13, 3066 (2023)",
        url="https://fair-chem.github.io/catalysts/datasets/oc22",
        fetch=(
            "the page's S2EF-Total archive s2ef_total_train_val_test_lmdbs.tar.gz"
            " (md5 ebea523c6f8d61248a37b4dd660b11e6)"
        ),
    ),
    DatasetSource(
        head="OC25", format="aselmdb", energy_kind="total", zero_energy_state=_VASP_ZERO,
        energy_range_ev_per_atom=_SLAB, count=7_801_261, licence="CC-BY-4.0", level="RPBE+D3 (VASP), explicit solvent",
        units=_EV, files=_ASELMDB,
        citation="Sahoo et al., The Open Catalyst 2025 (OC25) Dataset, arXiv 2509.17862 (2025)",
        url="https://huggingface.co/facebook/OC25",
        fetch=_HUGGING_FACE.format("https://huggingface.co/facebook/OC25", "facebook/OC25"),
    ),
    DatasetSource(
        head="ODAC23", format="s2ef_lmdb", energy_kind="total", zero_energy_state=_VASP_ZERO,
        energy_range_ev_per_atom=_SLAB, count=38_000_000, licence="CC-BY-4.0", level="PBE+D3 (VASP)", units=_EV,
        files=f"{_S2EF_LMDB}; raw_y: DFT total, y: adsorption energy",
        citation="Sriram et al., ACS Cent. Sci. 10, 923 (2024)", url="https://fair-chem.github.io/dac/datasets/odac",
        fetch="the page's S2EF archives",
    ),
    DatasetSource(
        head="OMat24", format="aselmdb", energy_kind="total", zero_energy_state=_VASP_ZERO,
        energy_range_ev_per_atom=_BULK, count=101_000_000, licence="CC-BY-4.0", level="PBE / PBE+U (VASP)",
        labels=_WITH_STRESS, units=f"{_EV}; stress eV/angstrom^3, tension positive", files=_ASELMDB,
        citation="Barroso-Luque et al., Open Materials 2024 (OMat24), arXiv 2410.12771 (2024)",
        url="https://huggingface.co/datasets/facebook/OMAT24",
        fetch=f"{OPEN_CATALYST}omat/241018/omat/train/rattled-1000.tar.gz and the page's other archives; untar",
    ),
    _build_omol_source("OMol25", "all", 100_000_000),
    _build_omol_source("OMol25-neutral", "neutral", 0),
    _build_omol_source("OMol25-non-neutral", "charged", 0),
    DatasetSource(
        head="OPoly2026", format="aselmdb", energy_kind="total", zero_energy_state=_ELECTRONS,
        energy_range_ev_per_atom=_ANY, count=6_570_000, licence="CC-BY-4.0", level="wB97M-V/def2-TZVPD (ORCA)",
        heaviest_all_electron=LAST_BEFORE_ECP, molecular=True, labels=_WITH_SPIN, units=_EV, files=_ASELMDB,
        citation="Levine et al., The Open Polymers 2026 (OPoly26) Dataset and Evaluations (2025)",
        url="https://huggingface.co/facebook/OMol25", fetch="ask at the page of OMol25, which is from the same authors",
    ),
    DatasetSource(
        head="Nabla2DFT", format="asedb", energy_kind="formation", zero_energy_state="free atoms, same level",
        energy_range_ev_per_atom=_DRUG_LIKE, count=12_676_264, licence="MIT", level="wB97X-D/def2-SVP (Psi4)",
        molecular=True, units="hartree, angstrom, hartree/angstrom",
        files=(
            "*.db: ASE SQLite; row data: energy [1], forces [n, 3]; keys moses_id, conformation_id, smiles;"
            " metadata _property_unit_dict, _distance_unit, atomrefs"
        ),
        citation="Khrabrov et al., NeurIPS Datasets and Benchmarks (2024), arXiv 2406.14347",
        url="https://github.com/AIRI-Institute/nablaDFT",
        fetch="the addresses in its nablaDFT/links/energy_databases.json",
    ),
    DatasetSource(
        head="QCML", format="qcml", energy_kind="total", zero_energy_state=_ELECTRONS, energy_range_ev_per_atom=_ANY,
        count=33_501_520, licence="CC-BY-NC-4.0", level="PBE0 (FHI-aims)", heaviest_all_electron=EVERY_ELEMENT,
        molecular=True, labels=_WITH_SPIN, units="hartree, bohr, hartree/bohr",
        files=(
            "tfds/qcml/dft_force_field/1.0.0: *.tfrecord-*-of-* with features.json: atomic_numbers, positions, charge,"
            " multiplicity, pbe0_energy, pbe0_forces, is_outlier, key_hash"
        ),
        citation="Ganscha et al., Sci. Data 12, 406 (2025)", url="https://doi.org/10.1038/s41597-025-04720-7",
        fetch="gcloud storage cp -r gs://qcml-datasets/tfds/qcml/dft_force_field/1.0.0 . --project=deepmind-opensource",
    ),
    DatasetSource(
        head="QM7X", format="qm7x", energy_kind="total", zero_energy_state=_ELECTRONS, energy_range_ev_per_atom=_ANY,
        count=4_195_237, licence="CC-BY-4.0", level="PBE0+MBD (FHI-aims)", heaviest_all_electron=EVERY_ELEMENT,
        molecular=True, units=_EV,
        files="1000.xz .. 8000.xz (HDF5, also decompressed): [molecule][conformation]: atNUM, atXYZ, ePBE0+MBD, totFOR",
        citation="Hoja et al., Sci. Data 8, 43 (2021)", url="https://doi.org/10.5281/zenodo.3905361",
        fetch="https://zenodo.org/records/4288677/files/1000.xz and likewise 2000.xz .. 8000.xz",
    ),
    DatasetSource(
        head="transition1x", format="transition1x", energy_kind="total", zero_energy_state=_ELECTRONS,
        energy_range_ev_per_atom=_ANY, count=9_644_740, licence="CC-BY-4.0", level="wB97X/6-31G(d) (ORCA)",
        heaviest_all_electron=EVERY_ELEMENT, molecular=True, units=_EV,
        files=(
            "Transition1x.h5: /data/<formula>/<reaction>: atomic_numbers [n], positions [c, n, 3],"
            " wB97x_6-31G(d).energy [c], wB97x_6-31G(d).forces [c, n, 3]; train, val, test hold the same again"
        ),
        citation="Schreiner et al., Sci. Data 9, 779 (2022)", url="https://doi.org/10.6084/m9.figshare.19614657",
        fetch="the page's Transition1x.h5",
    ),
)  # fmt: skip


def find_source(name: str) -> DatasetSource:
    """Return a dataset by its slug or head, ignoring case; raises InputError, with the closest name, if unknown."""
    slug = name.lower()
    for entry in SOURCES:
        if entry.slug == slug:
            return entry
    raise InputError(f"no dataset {name!r}{did_you_mean(slug, (entry.slug for entry in SOURCES))}")
