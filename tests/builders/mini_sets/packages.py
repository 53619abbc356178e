"""Read data published inside PyPI packages, which are fetched by name and version and checked by sha256."""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from ase import Atoms


@dataclass(frozen=True)
class Package:
    """An archive on PyPI."""

    name: str
    version: str
    kind: str
    sha256: str

    @property
    def provenance(self) -> str:
        """Return the provenance of a set that is read from the package."""
        return f"PyPI {self.name}=={self.version} ({self.kind}), sha256 {self.sha256}"


MATTERSIM = Package("mattersim", "1.2.3", "sdist", "04bc55dd97bc1170c744ae93d30d773f3d8c07d35ad3efbeb817314ec0ecb16b")
QM9 = Package("qm9pack", "1.0.3", "wheel", "1d88c2988007c6778e717ee3224cf511bd60e10732ebe3b7ed500ea5af05c9f0")


def fetch_archive(package: Package, archives: Path) -> Path:
    """Return the package's archive, downloaded if absent; raise SystemExit if its digest differs."""
    pattern = f"{package.name}-{package.version}*.{'whl' if package.kind == 'wheel' else 'tar.gz'}"
    if not list(archives.glob(pattern)):
        source = ["--no-binary", package.name] if package.kind == "sdist" else []
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *source, f"{package.name}=={package.version}"]
        subprocess.run([*command, "--dest", str(archives)], check=True)
    path = next(archives.glob(pattern))
    if hashlib.sha256(path.read_bytes()).hexdigest() != package.sha256:
        raise SystemExit(f"{path}: sha256 differs from the one recorded for {package.name}")
    return path


def read_member(archive: Path, ending: str) -> bytes:
    """Return the bytes of the file in a wheel or sdist whose path has this ending."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(n for n in wheel.namelist() if n.endswith(ending)))
    with tarfile.open(archive) as sdist:
        member = next(i for i in sdist if i.name.endswith(ending))
        file = sdist.extractfile(member)
        assert file is not None
        return file.read()


@cache
def read_qm9_rows(archives: Path) -> tuple[dict[str, str], ...]:
    """Return the table of QM9 in its order (Ramakrishnan et al., Sci. Data 1, 140022 (2014))."""
    csv.field_size_limit(1 << 24)
    archive = fetch_archive(QM9, archives)
    parts = [read_member(archive, f"qm9_part{part}.csv").decode() for part in (1, 2, 3)]
    return tuple(row for part in parts for row in csv.DictReader(io.StringIO(part)))


def build_qm9_molecule(row: dict[str, str]) -> Atoms:
    """Return the relaxed geometry, whose group is the index of the molecule."""
    atoms = Atoms(ast.literal_eval(row["Elements"]), positions=ast.literal_eval(row["XYZ_Ang"]))
    atoms.info = {"group": f"qm9-{int(row['Index']):06d}"}
    return atoms


def sample_molecules(archives: Path, count: int) -> list[Atoms]:
    """Return an even selection from QM9."""
    rows = read_qm9_rows(archives)
    return [build_qm9_molecule(rows[k]) for k in np.linspace(0, len(rows) - 1, count).round().astype(int)]


def count_heavy_atoms(atoms: Atoms) -> int:
    """Return the number of atoms other than hydrogen."""
    return int(np.count_nonzero(atoms.numbers > 1))


def list_small_molecules(archives: Path, heavy: int, elements: frozenset[int]) -> list[Atoms]:
    """Return the molecules of these elements with `heavy` (at most five) heavy atoms in the first 2000 rows of QM9."""
    molecules = [build_qm9_molecule(row) for row in read_qm9_rows(archives)[:2000]]
    return [m for m in molecules if count_heavy_atoms(m) == heavy and elements.issuperset(m.numbers.tolist())]
