"""`python -m harness.reference.screening.build_prototypes ARCHIVES`: make prototypes.json.gz.

From pymatgen's copy of the AFLOW library of crystallographic prototypes, downloaded into the folder if not there.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from ase.geometry import get_distances

from harness.reference.datasets.build.packages import Package, fetch, member
from harness.reference.screening.prototypes import FILE, MOST_ATOMS, MOST_SPECIES

PYMATGEN = Package(
    "pymatgen", "2026.10.24", "wheel", "bd341f2e0550ec38358de2c95a65cabd9f1efa433df48ed5b615cc2d0115d827"
)
CLOSEST_ANGSTROM = 0.5
DECIMALS = 8


def made(row: dict[str, Any]) -> dict[str, Any] | str:
    """One prototype as it is kept, or why it is not."""
    sites = row["snl"]["sites"]
    if any(len(site["species"]) > 1 or site["species"][0]["occu"] != 1 for site in sites):
        return "partly occupied sites"
    symbols = [site["species"][0]["element"] for site in sites]
    kinds = list(dict.fromkeys(symbols))
    if len(sites) > MOST_ATOMS:
        return f"more than {MOST_ATOMS} atoms"
    if len(kinds) > MOST_SPECIES:
        return f"more than {MOST_SPECIES} species"
    cell = np.array(row["snl"]["lattice"]["matrix"])
    fractions = np.array([site["abc"] for site in sites]) % 1.0
    _, apart = get_distances(fractions @ cell, cell=cell, pbc=True)
    np.fill_diagonal(apart, np.inf)
    if len(sites) > 1 and apart.min() < CLOSEST_ANGSTROM:
        return "coincident sites"
    counts = Counter(symbols)
    return {
        "tag": row["tags"]["aflow"],
        "like": row["tags"]["mineral"] or "".join(f"{k}{counts[k] if counts[k] > 1 else ''}" for k in kinds),
        "fractions": fractions.round(DECIMALS).tolist(),
        "slots": [kinds.index(symbol) for symbol in symbols],
        "cell": cell.round(DECIMALS).tolist(),
    }


def main(archives: Path) -> None:
    """Make the file anew."""
    packed = member(fetch(PYMATGEN, archives), "analysis/prototypes/aflow_prototypes.json.gz")
    rows = [made(row) for row in json.loads(gzip.decompress(packed))]
    kept = [row for row in rows if not isinstance(row, str)]
    content = {
        "source": f"{PYMATGEN.words}, pymatgen/analysis/prototypes/aflow_prototypes.json.gz",
        "licence": "MIT (pymatgen)",
        "attribution": "Mehl et al., The AFLOW Library of Crystallographic Prototypes: Part 1, Comput. Mater. Sci. 136,"
        " S1 (2017), https://doi.org/10.1016/j.commatsci.2017.01.017; parsed by the pymatgen developers",
        "left_out": dict(Counter(row for row in rows if isinstance(row, str))),
        "prototypes": sorted(kept, key=lambda row: (max(row["slots"]), row["tag"], row["like"])),
    }
    FILE.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
    print(f"{len(kept)} prototypes; left out: {content['left_out']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
