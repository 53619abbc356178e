"""Build prototypes.json.gz: `python -m tests.builders.prototypes ARCHIVES` (needs spglib).

ARCHIVES is a folder for the wheel of pymatgen, which is downloaded if it is not there.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import spglib
from numpy.typing import NDArray

from harness.reference.data.structure import Array
from harness.reference.programs.screening.candidates.prototypes import FILE, Prototype
from tests.builders.mini_sets.packages import Package, fetch_archive, read_member

PYMATGEN = Package(
    "pymatgen", "2026.10.24", "wheel", "bd341f2e0550ec38358de2c95a65cabd9f1efa433df48ed5b615cc2d0115d827"
)
MEMBER = "pymatgen/analysis/prototypes/aflow_prototypes.json.gz"
MAX_ATOMS, MAX_SPECIES = 20, 4
COINCIDENT_ANGSTROM = 0.5
DECIMALS = 10  # the source has more than five decimals for thirds and square roots
SAME_SITE_ANGSTROM = 1e-3


def parse_prototype(row: dict[str, Any]) -> Prototype | str:
    """Return the prototype of one entry of the archive, or the reason why it is left out."""
    sites = row["snl"]["sites"]
    if any(len(site["species"]) != 1 or site["species"][0]["occu"] != 1 for site in sites):
        return "partly occupied sites"
    symbols = [site["species"][0]["element"] for site in sites]
    elements = list(dict.fromkeys(symbols))
    if len(sites) > MAX_ATOMS:
        return f"more than {MAX_ATOMS} atoms"
    if len(elements) > MAX_SPECIES:
        return f"more than {MAX_SPECIES} species"
    tags, counts = row["tags"], Counter(symbols)
    fractions = np.round(np.array([site["abc"] for site in sites]) % 1.0, DECIMALS) % 1.0
    cell = np.round(np.array(row["snl"]["lattice"]["matrix"]), DECIMALS) + 0.0
    slots = [elements.index(symbol) for symbol in symbols]
    result = Prototype(
        tag=tags["aflow"],
        name=tags["mineral"] or "".join(f"{k}{counts[k] if counts[k] > 1 else ''}" for k in elements),
        strukturbericht="" if tags["strukturbericht"] == "None" else tags["strukturbericht"],
        spacegroup=find_spacegroup(cell, fractions, slots),
        fractions=fractions,
        cell=cell,
        slots=np.array(slots),
    )
    return "coincident sites" if result.closest.min() < COINCIDENT_ANGSTROM else result


def find_spacegroup(cell: Array, fractions: Array, slots: list[int]) -> int:
    """Return the number of the space group of these sites; raise SystemExit if spglib finds none."""
    result = spglib.get_symmetry_dataset((cell.tolist(), fractions.tolist(), slots), symprec=SAME_SITE_ANGSTROM)
    if result is None:
        raise SystemExit(f"spglib finds no space group of {slots} at {fractions.tolist()}")
    return int(result.number)


def find_exchanges(prototype: Prototype) -> list[tuple[int, ...]]:
    """Return the permutations of slots, except the identity, for which an isometry maps the crystal onto itself.

    Such an isometry is a symmetry of the sites if all atoms are identical; spglib finds all in a primitive cell.
    """
    identical_atoms = (prototype.cell.tolist(), prototype.fractions.tolist(), [0] * len(prototype))
    symmetry = spglib.get_symmetry(identical_atoms, symprec=SAME_SITE_ANGSTROM)
    if symmetry is None:
        raise SystemExit(f"{prototype.tag}: spglib finds no symmetry, not even the identity")
    permutations = set()
    for rotation, translation in zip(symmetry["rotations"], symmetry["translations"], strict=True):
        target = prototype.slots[_find_landing_sites(prototype, prototype.fractions @ rotation.T + translation)]
        slot_pairs = {(int(a), int(b)) for a, b in zip(prototype.slots, target, strict=True)}
        if len(slot_pairs) == prototype.n_species:
            permutations.add(tuple(b for _, b in sorted(slot_pairs)))
    return sorted(permutations - {tuple(range(prototype.n_species))})


def _find_landing_sites(prototype: Prototype, moved: Array) -> NDArray[np.int64]:
    """Return the index of the site with which each moved site coincides, [n]."""
    differences = moved[:, None] - prototype.fractions[None]
    differences -= np.round(differences)
    return np.asarray(np.linalg.norm(differences @ prototype.cell, axis=2).argmin(axis=1))


def format_row(prototype: Prototype) -> dict[str, Any]:
    """Return the prototype's entry of the file."""
    return {
        "tag": prototype.tag,
        "name": prototype.name,
        "strukturbericht": prototype.strukturbericht,
        "spacegroup": prototype.spacegroup,
        "fractions": prototype.fractions.tolist(),
        "cell": prototype.cell.tolist(),
        "slots": prototype.slots.tolist(),
        "exchanges": find_exchanges(prototype),
    }


def main(archives: Path, file: Path = FILE) -> None:
    """Write the file and print a summary."""
    compressed = read_member(fetch_archive(PYMATGEN, archives), MEMBER)
    entries = [parse_prototype(row) for row in json.loads(gzip.decompress(compressed))]
    prototypes = sorted((p for p in entries if isinstance(p, Prototype)), key=lambda p: (p.n_species, p.tag, p.name))
    left_out = dict(Counter(p for p in entries if isinstance(p, str)))
    content = {
        "source": f"{PYMATGEN.provenance}, {MEMBER}",
        "source_sha256": hashlib.sha256(compressed).hexdigest(),
        "symmetry": f"spglib {spglib.__version__}, {SAME_SITE_ANGSTROM} angstrom",
        "licence": "MIT (pymatgen)",
        "attribution": "Mehl et al., The AFLOW Library of Crystallographic Prototypes: Part 1, Comput. Mater. Sci. 136,"
        " S1 (2017), https://doi.org/10.1016/j.commatsci.2017.01.017; read into pymatgen by its developers",
        "entries": len(entries),
        "left_out": left_out,
        "prototypes": [format_row(p) for p in prototypes],
    }
    file.write_bytes(gzip.compress(json.dumps(content, separators=(",", ":")).encode(), mtime=0))
    print(f"{len(prototypes)} prototypes of {len(entries)} entries; left out: {left_out}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
