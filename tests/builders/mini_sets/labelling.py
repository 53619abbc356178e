"""Label structures in parallel, and cache every label on disk, so that an interrupted build resumes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from harness.reference.data.structure import Structure
from harness.reference.datasets.levels import LevelOfTheory, NotConvergedError

ENERGY_DECIMALS = 8
FORCE_DECIMALS = 6
LARGEST_FORCE = 30.0  # eV/angstrom

LabelResult = dict[str, object]


@dataclass(frozen=True)
class LabelledStructures:
    """Labelled structures, and the number rejected for each reason."""

    structures: list[Structure]
    rejected: dict[str, int]


def hash_structure(structure: Structure, level: LevelOfTheory) -> str:
    """Return a hash of the structure and the level."""
    parts = (
        level.name.encode(),
        level.code.encode(),
        structure.numbers.tobytes(),
        structure.positions.tobytes(),
        structure.cell.tobytes(),
        repr((structure.periodic, structure.charge, structure.multiplicity)).encode(),
    )
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _compute_result(task: tuple[str, Structure, LevelOfTheory]) -> tuple[str, LabelResult]:
    name, structure, level = task
    try:
        energy, forces = level.label(structure)
    except NotConvergedError as error:
        return name, {"rejected": "not converged", "why": str(error).strip()[:200]}
    return name, {"energy": round(energy, ENERGY_DECIMALS), "forces": forces.round(FORCE_DECIMALS).tolist()}


def use_one_thread() -> None:
    """Limit this process and its children to one thread, for codes that are loaded afterwards."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def load_results(path: Path) -> dict[str, LabelResult]:
    """Return the results of an earlier build, without a line that an interruption has truncated."""
    results = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            name, result = json.loads(line)
        except ValueError:
            continue
        results[name] = result
    return results


def label_structures(
    structures: Iterable[Structure], level: LevelOfTheory, cache: Path, processes: int = 1
) -> LabelledStructures:
    """Label each structure, with one thread for each process; keep the order of the input."""
    use_one_thread()
    named_structures = [(hash_structure(s, level), s) for s in structures]
    results = load_results(cache)
    tasks = [(name, s, level) for name, s in named_structures if name not in results]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a") as cache_file, multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, result in pool.imap_unordered(_compute_result, tasks):
            results[name] = result
            cache_file.write("\n" + json.dumps([name, result]))
            cache_file.flush()
    labelled: list[Structure] = []
    rejected: dict[str, int] = {}
    for name, structure in named_structures:
        reason = _find_rejection_reason(results[name])
        if reason:
            rejected[reason] = rejected.get(reason, 0) + 1
        else:
            labelled.append(_attach_labels(structure, results[name]))
    return LabelledStructures(labelled, rejected)


def _find_rejection_reason(result: LabelResult) -> str:
    if "rejected" in result:
        return str(result["rejected"])
    largest = np.linalg.norm(np.array(result["forces"]), axis=1).max()
    return f"a force above {LARGEST_FORCE:.0f} eV/A" if largest > LARGEST_FORCE else ""


def _attach_labels(structure: Structure, result: LabelResult) -> Structure:
    return replace(structure, energy=float(str(result["energy"])), forces=np.array(result["forces"], dtype=float))
