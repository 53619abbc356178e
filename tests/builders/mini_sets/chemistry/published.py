"""Frames with published labels: the benchmark files of mattersim (Alexandria, MPtrj, high temperature and pressure)."""

from __future__ import annotations

import io
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms

from harness.reference.data.structure import Structure
from tests.builders.mini_sets.packages import MATTERSIM, fetch_archive, read_member

FOLDER = "data/benchmarks/"


def read_frames(archives: Path, file: str, count: int | None = None) -> list[Structure]:
    """Return all frames of a file, or an even selection, with labels in eV and angstrom and ASE's sign of stress."""
    text = read_member(fetch_archive(MATTERSIM, archives), FOLDER + file).decode()
    result = list(ase.io.read(io.StringIO(text), ":", format="extxyz"))
    selected = np.linspace(0, len(result) - 1, count or len(result)).round().astype(int)
    return [_build_structure(result[k], f"{file}/{k}") for k in selected]


def _build_structure(atoms: Atoms, name: str) -> Structure:
    return Structure(
        name=name,
        numbers=atoms.numbers.astype(np.int64),
        positions=atoms.positions,
        cell=atoms.cell.array,
        periodic=(True, True, True),
        energy=float(atoms.get_potential_energy()),
        forces=atoms.get_forces(),
        stress=atoms.get_stress(voigt=False),
        # The files name frames, not materials, so each composition is a group, whatever its cell.
        group=str(atoms.symbols.get_chemical_formula(empirical=True)),
    )


def read_alexandria(archives: Path) -> list[Structure]:
    """Return all thousand frames."""
    return read_frames(archives, "alexandria-random-1k.xyz")


def read_mptrj(archives: Path, counts: tuple[int, ...] = (200, 340)) -> list[Structure]:
    """Return even selections of the frames, each of those that the selections before it leave.

    A frame more leaves about one less to the task `oqmd`, whose elements must occur in several of its frames.
    """
    frames = read_frames(archives, "mptrj-random-1k.xyz")
    selected: list[Structure] = []
    for count in counts:
        rest = [s for s in frames if s not in selected]
        selected += [rest[k] for k in np.linspace(0, len(rest) - 1, count).round().astype(int)]
    return selected


def read_omat24(archives: Path) -> list[Structure]:
    """Return crystals off equilibrium, from three files at high temperature and pressure and one with high stress."""
    files = ("mpf-TP.xyz", "mpf-alkali-TP.xyz", "random-TP.xyz", "mptrj-highest-stress-1k.xyz")
    return [s for file in files for s in read_frames(archives, file)]
