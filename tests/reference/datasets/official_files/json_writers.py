"""Write tiny JSON files in the official layouts of MPtrj and Alexandria."""

from __future__ import annotations

import bz2
import json
from pathlib import Path
from typing import Any

import numpy as np


def make_crystal(k: int, count: int = 2) -> dict[str, Any]:
    """Return a pymatgen Structure as a dictionary, with pairs of Na and Cl in a sheared cell."""
    matrix = [[4.0 + 0.01 * k, 0.0, 0.0], [0.3, 4.1, 0.0], [0.0, 0.0, 4.2]]
    sites = []
    for s in range(count):
        abc = [0.5 * s, 0.5 * s, 0.5 * s + 0.01]
        sites.append(
            {
                "species": [{"element": ("Na", "Cl")[s % 2], "occu": 1}],
                "abc": abc,
                "xyz": (np.array(abc) @ np.array(matrix)).tolist(),
                "label": ("Na", "Cl")[s % 2],
                "properties": {"forces": [0.01 * k, 0.02, -0.03 * s], "magmom": 0.0},
            }
        )
    lattice = {"matrix": matrix, "a": 4.0, "b": 4.1, "c": 4.2, "volume": 69.0, "pbc": [True, True, True]}
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0,
        "lattice": lattice,
        "sites": sites,
    }


def make_mptrj_frame(k: int) -> dict[str, Any]:
    return {
        "structure": make_crystal(k), "uncorrected_total_energy": -6.5 - k, "corrected_total_energy": -7.5 - k,
        "energy_per_atom": -3.75, "ef_per_atom": -3.3, "e_per_atom_relaxed": -3.4, "ef_per_atom_relaxed": -3.4,
        "force": [[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0]], "stress": [[10.0, 1.0, 0.0], [1.0, 20.0, 0.0], [0.0, 0.0, -30.0]],
        "magmom": None, "bandgap": 0.0, "mp_id": "mp-1",
    }  # fmt: skip


def write_mptrj(path: Path, materials: dict[str, int]) -> None:
    path.write_text(
        json.dumps({m: {f"{m}-{k}-0": make_mptrj_frame(k) for k in range(count)} for m, count in materials.items()})
    )


def make_alexandria_entry(k: int) -> dict[str, Any]:
    return {
        "@module": "pymatgen.entries.computed_entries", "@class": "ComputedStructureEntry", "energy": -6.4 - k,
        "composition": {"Na": 1.0, "Cl": 1.0}, "correction": 0.0, "parameters": {}, "structure": make_crystal(k),
        "data": {"mat_id": f"agm{k:09d}", "energy_total": -6.5 - k, "e_form": -2.0, "e_above_hull": 0.01,
                 "stress": [[10.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, -30.0]], "formula": 'NaCl "{[quoted\\"]}'},
    }  # fmt: skip


def write_alexandria(path: Path, count: int) -> None:
    path.write_bytes(bz2.compress(json.dumps({"entries": [make_alexandria_entry(k) for k in range(count)]}).encode()))
