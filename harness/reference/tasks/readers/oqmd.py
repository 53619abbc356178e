"""OQMD: formation energies of crystals, from pages of its API or extended XYZ.

A page is the answer of oqmdapi/formationenergy: entries of entry_id, unit_cell (angstrom), sites ("Al @ 0 0 0.5",
fractional) and delta_e (eV/atom). Where oqmd_data.csv lies beside the pages, its entries (entry_id) with its energies
(Ef, eV/atom) are the dataset, and what else the pages hold is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers

from harness.reference.datasets.parsing.paths import files
from harness.reference.datasets.parsing.structure_builder import Unfit, made, need
from harness.reference.errors import InputError
from harness.reference.tasks.dataset import Labelled, Value, collected
from harness.reference.tasks.readers.crystals import Sample, finished, frames, json_file, table, value
from harness.reference.tasks.readers.energy_checks import check_formation

TABLE, ENTRY, ENERGY = "oqmd_data.csv", "entry_id", "Ef"
Energies = dict[str, str]


def read(path: Path) -> Labelled:
    """All crystals, grouped by reduced formula; raises InputError naming file and fault."""
    found = [file for file, _ in files([path], (".json", ".extxyz", ".xyz"), "OQMD files")]
    beside = (path if path.is_dir() else path.parent) / TABLE
    energies = {r[ENTRY]: r[ENERGY] for r in table(beside, (ENTRY, ENERGY))} if beside.is_file() else None
    samples = [s for file in found for s in (_page(file, energies) if file.suffix == ".json" else frames(file))]
    absent = 0 if energies is None else len(energies.keys() - {where for where, _ in samples})
    labelled = collected(
        made(samples, finished),
        str(path),
        "official OQMD, {count} crystals",
        "PBE / PBE+U (VASP)",
        Counter({f"in {TABLE}, not in the pages": absent}),
    )
    return check_formation(labelled, path)


def _page(path: Path, energies: Energies | None) -> Iterator[Sample]:
    page = json_file(path)
    entries = page.get("data") if isinstance(page, dict) else page
    if not isinstance(entries, list):
        raise InputError(f"{path}: not a page of the OQMD's API, expected {{'data': [...]}}")
    for k, entry in enumerate(entries):
        name = str(entry.get(ENTRY, f"{path.stem}/{k}")) if isinstance(entry, dict) else f"{path.stem}/{k}"
        if energies is None or name in energies:
            yield name, partial(_crystal, name, entry, energies)


def _crystal(name: str, entry: Any, energies: Energies | None) -> Value:
    cell = np.array(need(entry, "unit_cell"), dtype=float)
    sites = [site.partition("@") for site in need(entry, "sites")]
    symbols = [symbol.strip().rstrip("0123456789+-") for symbol, _, _ in sites]
    if unknown := [s for s in symbols if not atomic_numbers.get(s)]:
        raise Unfit("atomic number", f"{unknown[0]!r} is not an element")
    places = np.array([[float(x) for x in place.split()] for _, _, place in sites])
    energy = need(entry, "delta_e") if energies is None else energies[name]
    return value(name, [atomic_numbers[s] for s in symbols], places @ cell, cell, energy)
