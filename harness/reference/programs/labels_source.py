"""The structures that the program `labels` labels: of a file, of a shipped set, or the best of a screening."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.protocol.case import upgrade_case
from harness.protocol.programs.labels import LabelsParameters
from harness.protocol.registry import parse_parameters
from harness.reference.data.structure import Structure
from harness.reference.datasets.shipped_sets import find_shipped_set, load_structures
from harness.reference.datasets.user_files import read_structures
from harness.reference.errors import InputError

CANDIDATES_FILE = "best.csv"
MAX_COUNT = 10**9  # stands for all structures of a file


@dataclass(frozen=True)
class Source:
    """The structures to label.

    Attributes:
        name: The file, or the shipped set.
        sha256: The digest of the file; None for a shipped set.
        structures: The structures.
    """

    name: str
    sha256: str | None
    structures: Sequence[Structure]


def load_source(config: LabelsParameters) -> Source:
    """Return the structures to label: the first of a file, or random ones of a shipped set.

    Raises:
        InputError: The file or the set cannot be read, or best.csv is not the result of a screening.
    """
    if config.structure_file is None:
        pool = [s for s in load_structures(find_shipped_set(config.dataset)) if len(s) <= config.max_atoms]
        chosen = np.random.default_rng(config.seed).permutation(len(pool))[: config.count]
        return Source(f"shipped set {config.dataset}", None, make_supercells([pool[k] for k in chosen], config))
    path = Path(config.structure_file)
    if path.name == CANDIDATES_FILE:
        structures = load_candidates(path, config.count)
    else:
        structures = read_structures(path, config.count or MAX_COUNT)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Source(str(path), digest, make_supercells(structures, config))


def make_supercells(structures: Sequence[Structure], config: LabelsParameters) -> list[Structure]:
    """Return the structures, or supercells of small periodic ones if they are requested."""
    if not config.supercells:
        return list(structures)
    from harness.reference.programs.screening.spot_checks import make_supercell

    return [make_supercell(s) if all(s.periodic) else s for s in structures]


def load_candidates(path: Path, count: int | None) -> list[Structure]:
    """Return the best candidates of a screening, from its best.csv; raise InputError if its case is not next to it."""
    from harness.protocol.programs.screening import ScreeningParameters
    from harness.reference.programs.screening.best_results import read_best
    from harness.reference.programs.screening.candidates.choice import build_workload
    from harness.reference.programs.screening.model_setup import load_model

    case_file = path.with_name("case.json")
    try:
        case = upgrade_case(json.loads(case_file.read_text(encoding="utf-8")))
        best = read_best(path.parent)[:count]
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise InputError(f"{path}: not the result of a screening, with its case.json ({error})") from None
    config = parse_parameters("screening", case["parameters"])
    assert isinstance(config, ScreeningParameters)
    workload = build_workload(config.workload, load_model(config)[0])
    return [workload.structure(k) for k in best]
