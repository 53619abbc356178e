"""Label crystals of the screening at the level of theory of one head, to fit, calibrate and test its risk.

python -m tests.builders.risk_labels CACHE [--count 2000] [--minutes 5]

CACHE collects finished labels as JSON lines, so that another call continues; once it contains `count` of them, the
shipped file is written. A structure, its split and its label depend on its number alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from harness.reference.data.structure import Structure
from harness.reference.datasets.levels import GFN1_METAL, NotConvergedError
from harness.reference.datasets.shipped_sets import find_shipped_set, load_table
from harness.reference.inference.risk_labels import LABELS_FILE, SPLITS, RiskLabel, write_labels
from harness.reference.programs.screening.candidates.prototype_space import SCALES, CandidateSpace
from harness.reference.programs.screening.candidates.prototypes import load_prototypes
from harness.reference.programs.screening.spot_checks import MAX_ATOMS, make_supercell

SET = "oc2020"
MAX_FORCE_EV_PER_ANGSTROM = 30.0  # the limit of the shipped sets
SPECIES_SHARES = {1: 0.1, 2: 0.35, 3: 0.25, 4: 0.3}  # of the structures, by number of species
FAR_SHARE, FAR_VOLUMES = 0.4, (0.5, 2.0)  # the share with any volume in this range; others have those of candidates
TURN = ("fit", "calibration", "test", "test")  # the split of the structures with the numbers 0, 1, 2, 3, modulo 4


@dataclass(frozen=True)
class RandomCrystals:
    """Random crystals; crystals of different splits have different prototypes and different sets of elements."""

    elements: tuple[int, ...]

    @cached_property
    def space(self) -> CandidateSpace:
        """All crystals at the volume at which the closest atoms touch."""
        return CandidateSpace(load_prototypes(), self.elements, (1.0,))

    @cached_property
    def prototypes_of_split(self) -> dict[tuple[str, int], list[int]]:
        """The prototypes of each split with each number of species, in a random order and in turns."""
        members: dict[tuple[str, int], list[int]] = {}
        for species in SPECIES_SHARES:
            numbers = [k for k, p in enumerate(self.space.prototypes) if p.n_species == species]
            for turn, number in enumerate(np.random.default_rng(species).permutation(numbers).tolist()):
                members.setdefault((TURN[turn % len(TURN)], species), []).append(number)
        return members

    def draw(self, number: int) -> tuple[str, str, Structure]:
        """Return the split, the tag of the prototype and the structure of a number, as a supercell."""
        rng = np.random.default_rng(number)
        split = TURN[number % len(TURN)]
        species = int(rng.choice(list(SPECIES_SHARES), p=list(SPECIES_SHARES.values())))
        prototype = int(rng.choice(self.prototypes_of_split[split, species]))
        while True:
            index = int(rng.integers(self.space.starts[prototype], self.space.starts[prototype + 1]))
            crystal = self.space.structure(index)
            if assign_split(np.unique(crystal.numbers).tolist()) == split:
                break
        is_far = rng.random() < FAR_SHARE
        volume = np.exp(rng.uniform(*np.log(FAR_VOLUMES))) if is_far else rng.choice(SCALES)
        supercell = make_supercell(crystal)
        structure = Structure(
            name=f"crystal {number}",
            numbers=supercell.numbers,
            positions=(supercell.positions * np.cbrt(volume)).astype(np.float32).astype(float),
            cell=(supercell.cell * np.cbrt(volume)).astype(np.float32).astype(float),
            periodic=(True, True, True),
        )
        return split, self.space.prototypes[prototype].tag, structure


def assign_split(elements: list[int]) -> str:
    """Return the split of a set of elements."""
    digest = hashlib.sha256(json.dumps(sorted(elements)).encode()).digest()
    return TURN[digest[0] % len(TURN)]


def label(crystals: RandomCrystals, number: int) -> dict[str, object]:
    """Return the label of a crystal as plain data, or the reason why it has none."""
    split, prototype, structure = crystals.draw(number)
    row: dict[str, object] = {"number": number, "split": split, "prototype": prototype}
    if len(structure) > MAX_ATOMS:
        return row | {"failed": f"more than {MAX_ATOMS} atoms"}
    started = time.process_time()
    try:
        energy, forces = GFN1_METAL.label(structure)
    except (NotConvergedError, ValueError, RuntimeError) as error:
        return row | {"failed": f"no label ({type(error).__name__})", "seconds": time.process_time() - started}
    row["seconds"] = time.process_time() - started
    if np.abs(forces).max() > MAX_FORCE_EV_PER_ANGSTROM:
        return row | {"failed": f"a force above {MAX_FORCE_EV_PER_ANGSTROM:g} eV/A"}
    return row | {"energy_ev": energy}


def keep_one_split_per_prototype(labels: list[RiskLabel]) -> list[RiskLabel]:
    """Return the labels without those whose prototype has the tag of one in another split; tests come first."""
    owner: dict[str, str] = {}
    for split in reversed(SPLITS):
        for x in labels:
            if x.split == split:
                owner.setdefault(x.prototype, split)
    return [x for x in labels if owner[x.prototype] == x.split]


def main() -> None:
    """Label crystals until the time limit, and write the shipped file if there are enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cache", type=Path)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--minutes", type=float, default=5.0)
    options = parser.parse_args()
    crystals = RandomCrystals(tuple(np.unique(load_table(find_shipped_set(SET)).numbers).tolist()))
    rows = [json.loads(line) for line in options.cache.read_text().splitlines()] if options.cache.exists() else []
    deadline = time.monotonic() + 60.0 * options.minutes
    with options.cache.open("a") as file:
        while sum("energy_ev" in row for row in rows) < options.count and time.monotonic() < deadline:
            rows.append(label(crystals, len(rows)))
            file.write(json.dumps(rows[-1]) + "\n")
            file.flush()
    labelled = [row for row in rows if "energy_ev" in row]
    seconds = sum(row.get("seconds", 0.0) for row in rows)
    print(f"{len(labelled)} labels of {len(rows)} crystals, {seconds:.0f} s of calculations")
    if len(labelled) < options.count:
        return
    labels = []
    for row in labelled:
        split, prototype, structure = crystals.draw(row["number"])
        labels.append(RiskLabel(structure, row["energy_ev"], split, prototype))
    unique = keep_one_split_per_prototype(labels)
    failed = [row["failed"] for row in rows if "failed" in row]
    failed += ["prototype with the tag of one in another split"] * (len(labels) - len(unique))
    about = {
        "head": find_shipped_set(SET).head,
        "level_of_theory": GFN1_METAL.name,
        "code": GFN1_METAL.code,
        "failed": {reason: failed.count(reason) for reason in sorted(set(failed))},
    }
    write_labels(LABELS_FILE, unique, about)
    print({split: sum(x.split == split for x in unique) for split in SPLITS}, LABELS_FILE.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
