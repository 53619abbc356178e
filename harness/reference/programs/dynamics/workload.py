"""The structures that move."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from harness.protocol.programs.dynamics import DynamicsParameters
from harness.protocol.programs.screening import Candidates
from harness.reference.data.structure import Structure
from harness.reference.datasets.shipped_sets import find_shipped_set, load_structures
from harness.reference.datasets.user_files import read_structures
from harness.reference.errors import InputError
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.reference_model import covers_elements
from harness.reference.potentials.structures import CRYSTALS, MOLECULES
from harness.reference.programs.screening.candidates.choice import build_workload
from harness.reference.programs.screening.candidates.workload import Workload

CANDIDATES_PER_SEARCH = 8192  # candidates that are filtered at a time


def build_structures(config: DynamicsParameters, model: FoundationModel) -> tuple[str, list[Structure]]:
    """Return a description of the source of the structures, and the structures.

    Raises:
        InputError: The file or the dataset cannot be read, the source has no suitable structure, or dynamics would move
            a single atom.
    """
    smallest = 1 if config.motion == "relaxation" else 2
    if config.structure_file is not None:
        path = Path(config.structure_file)
        return path.name, check_sizes(read_structures(path, config.count), smallest, str(path))
    match config.source:
        case "crystal":
            crystal = find_covered(model, [partial(build, config.cells) for build in CRYSTALS])
            return f"{crystal.name}, {config.cells}^3 cells", copy_structure(crystal, config.count)
        case "molecule":
            molecule = find_covered(model, MOLECULES)
            return molecule.name, copy_structure(molecule, config.count)
        case "dataset":
            loaded = load_structures(find_shipped_set(config.dataset))
            pool = [s for s in loaded if 2 <= len(s) <= config.max_atoms and covers_elements(model, s)]
            chosen = np.random.default_rng(config.seed).permutation(len(pool))[: config.count]
            if not pool:
                raise InputError(
                    f"{config.dataset}: no structure of 2 to {config.max_atoms} atoms whose elements the model covers"
                )
            return f"shipped set {config.dataset}", [pool[k] for k in chosen]
        case "prototypes":
            sampled = [s for s in sample_candidates(model, config.count, config.seed) if len(s) >= smallest]
            if not sampled:
                raise InputError(
                    "prototypes: found no candidate that passes the filters and whose elements the model covers"
                )
            return "prototypes of the screening", sampled


def find_covered(model: FoundationModel, builders: Iterable[Callable[[], Structure]]) -> Structure:
    """Return the first structure whose elements the model covers; raise InputError if there is none."""
    for build in builders:
        if covers_elements(model, structure := build()):
            return structure
    raise InputError("no head of the model was trained on the elements of a shipped structure; name a structure_file")


def copy_structure(structure: Structure, count: int) -> list[Structure]:
    """Return copies of a structure, which get different velocities."""
    return [replace(structure, name=f"{structure.name} {k}") for k in range(count)]


def check_sizes(structures: list[Structure], smallest: int, source: str) -> list[Structure]:
    """Return the structures of a file; raise InputError if one has too few atoms."""
    for structure in structures:
        if len(structure) < smallest:
            raise InputError(f"{source}: {structure.name} has one atom, and dynamics need at least two")
    return structures


def sample_candidates(model: FoundationModel, count: int, seed: int = 0) -> Iterator[Structure]:
    """Yield a candidate that passes the filters from each of many equal stretches of the space of prototypes.

    It is the first one after a random place of the stretch; a stretch without any is left out.
    """
    workload, rng = build_workload(Candidates(), model), np.random.default_rng(seed)
    ends = np.linspace(0, workload.total, count + 1).astype(np.int64)
    for first, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        if first == end:
            continue
        index = _find_passing(workload, int(rng.integers(first, end)), end)
        if index is not None:
            yield workload.structure(index)


def _find_passing(workload: Workload, first: int, end: int) -> int | None:
    """Return the first candidate in a range that passes the filters, or None."""
    for start in range(first, end, CANDIDATES_PER_SEARCH):
        # with batches of one candidate, the graphs of the others are not built
        for candidates in workload.batches(start, min(start + CANDIDATES_PER_SEARCH, end), edges=1):
            if len(candidates.index):
                return int(candidates.index[0])
    return None
