"""Label structures in parallel, with every answer kept on disk so that an interrupted build resumes."""

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
LARGEST_FORCE = 30.0

Answer = dict[str, object]


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


def _compute_answer(task: tuple[str, Structure, LevelOfTheory]) -> tuple[str, Answer]:
    name, structure, level = task
    try:
        energy, forces = level.label(structure)
    except NotConvergedError as error:
        return name, {"rejected": "not converged", "why": str(error).strip()[:200]}
    return name, {"energy": round(energy, ENERGY_DECIMALS), "forces": forces.round(FORCE_DECIMALS).tolist()}


def use_one_thread() -> None:
    """Limit this process and its children to one thread, for codes that are loaded from here on."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def load_answers(path: Path) -> dict[str, Answer]:
    """Return the answers of an earlier build, without a line that an interruption cut short."""
    answers = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            name, answer = json.loads(line)
        except ValueError:
            continue
        answers[name] = answer
    return answers


def label_structures(
    structures: Iterable[Structure], level: LevelOfTheory, cache: Path, processes: int = 1
) -> LabelledStructures:
    """Label each structure, with one thread for each process; keep the order of the input."""
    use_one_thread()
    named_structures = [(hash_structure(s, level), s) for s in structures]
    answers = load_answers(cache)
    tasks = [(name, s, level) for name, s in named_structures if name not in answers]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("a") as out, multiprocessing.get_context("spawn").Pool(processes) as pool:
        for name, answer in pool.imap_unordered(_compute_answer, tasks):
            answers[name] = answer
            out.write("\n" + json.dumps([name, answer]))
            out.flush()
    labelled: list[Structure] = []
    rejected: dict[str, int] = {}
    for name, structure in named_structures:
        reason = _find_fault(answers[name])
        if reason:
            rejected[reason] = rejected.get(reason, 0) + 1
        else:
            labelled.append(_attach_labels(structure, answers[name]))
    return LabelledStructures(labelled, rejected)


def _find_fault(answer: Answer) -> str:
    if "rejected" in answer:
        return str(answer["rejected"])
    largest = np.linalg.norm(np.array(answer["forces"]), axis=1).max()
    return f"a force above {LARGEST_FORCE:.0f} eV/A" if largest > LARGEST_FORCE else ""


def _attach_labels(structure: Structure, answer: Answer) -> Structure:
    return replace(structure, energy=float(str(answer["energy"])), forces=np.array(answer["forces"], dtype=float))
