"""Crystal structures as pymatgen writes them to JSON, without pymatgen."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.data import atomic_numbers

from harness.reference.data.structure import Array
from harness.reference.datasets.parsing.structure_builder import Unfit, need
from harness.reference.datasets.units import KBAR_EV_PER_A3


def crystal(structure: Any) -> tuple[list[int], Array, Array, list[bool]]:
    """(atomic numbers [n], positions [n, 3], cell [3, 3], periodic [3]) of a Structure; raises Unfit."""
    lattice = need(structure, "lattice")
    cell = np.asarray(need(lattice, "matrix"), dtype=np.float64)
    sites = need(structure, "sites")
    numbers = [_element(site) for site in sites]
    if sites and "xyz" in sites[0]:
        positions = np.array([site["xyz"] for site in sites], dtype=np.float64)
    else:
        positions = np.array([need(site, "abc") for site in sites], dtype=np.float64) @ cell
    return numbers, positions, cell, list(lattice.get("pbc", (True, True, True)))


def _element(site: Any) -> int:
    species = need(site, "species")
    if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
        raise Unfit("disorder", "a site with more than one element, or partly occupied")
    symbol = str(need(species[0], "element"))
    number = atomic_numbers.get(symbol.rstrip("0123456789+-"))
    if not number:
        raise Unfit("atomic number", f"{symbol!r} is not an element")
    return int(number)


def site_forces(structure: Any) -> Array | None:
    """The forces kept with the sites, [n, 3]; None unless every site has them."""
    forces = [(site.get("properties") or {}).get("forces") for site in structure["sites"]]
    return None if any(f is None for f in forces) else np.array(forces, dtype=np.float64)


def site_names(structure: Any) -> list[str]:
    """The names of the properties that the first site has."""
    sites = structure["sites"]
    return list(sites[0].get("properties") or {}) if sites else []


def stress_from_kbar(stress: Any) -> Array | None:
    """VASP's stress (kbar, positive under compression) in eV/angstrom^3, tension positive."""
    return None if stress is None else -KBAR_EV_PER_A3 * np.asarray(stress, dtype=np.float64)
