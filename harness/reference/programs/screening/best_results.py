"""The best candidates of a screening, in best.csv."""

from __future__ import annotations

import copy
import csv
import os
from pathlib import Path

import msgspec
import numpy as np

from harness.protocol.events import CaseLog
from harness.protocol.programs.screening import BestCandidate
from harness.reference.models.foundation import FoundationModel
from harness.reference.programs.screening.candidates.workload import Workload
from harness.reference.programs.screening.ranking import find_suspicious, rank
from harness.reference.programs.screening.reference_phases import ReferencePhases
from harness.reference.programs.screening.scoring import Scores

BEST = "best.csv"
LOGGED_ROWS = 20


def write_best(
    folder: Path,
    best: Scores,
    workload: Workload,
    model: FoundationModel,
    *,
    phases: ReferencePhases | None,
    log: CaseLog,
) -> None:
    """Write best.csv to a folder; log its first rows when the file is complete, so that a failed attempt logs none.

    Args:
        folder: The folder of the case.
        best: The scores of the best candidates.
        workload: The candidates.
        model: The model that scored them.
        phases: The reference phases of the hull that ranks them, or None if they keep their order.
        log: The log of the case.
    """
    best, energies = rank_best(best, workload, model, phases)
    rows: list[dict[str, object]] = []
    for k, (index, values) in enumerate(zip(best.index.tolist(), best.values.tolist(), strict=True)):
        scores = dict(zip(best.names, values, strict=True))
        row = {"candidate": index, **workload.describe(index), **scores, **compute_interval(scores)}
        rows.append(row | (energies[k] if energies else {}))
    unfinished = folder / f"{BEST}.part"
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        if rows:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    os.replace(unfinished, folder / BEST)
    for position, row in enumerate(rows[:LOGGED_ROWS], start=1):
        log.write(msgspec.convert({"event": "best", "position": position, **row}, BestCandidate))


def rank_best(
    best: Scores, workload: Workload, model: FoundationModel, phases: ReferencePhases | None
) -> tuple[Scores, list[dict[str, object]]]:
    """Return the best candidates in the order of `rank`, and for each its energy above the hull as columns of best.csv.

    Without reference phases, the candidates keep their order, and there are no such columns.
    """
    if phases is None or not len(best):
        return best, []
    model = copy.deepcopy(model).to("cpu").double()
    model.autocast = None
    structures = [workload.structure(k) for k in best.index.tolist()]
    energies = phases.compute_energies_above_hull(model, structures)
    order = rank(energies)
    columns: list[dict[str, object]] = [
        {"energy_above_hull_mev_per_atom": None if np.isnan(e) else round(1e3 * e, 3), "suspicious": bool(suspicious)}
        for e, suspicious in zip(energies[order].tolist(), find_suspicious(energies)[order].tolist(), strict=True)
    ]
    return best[order], columns


def compute_interval(scores: dict[str, float]) -> dict[str, float]:
    """Return the ends of the interval of the energy, whose half width is the risk; none if the scores have no risk."""
    if "risk_ev_per_atom" not in scores:
        return {}
    energy, risk = scores["energy_ev_per_atom"], scores["risk_ev_per_atom"]
    return {"energy_low_ev_per_atom": energy - risk, "energy_high_ev_per_atom": energy + risk}


def read_best(folder: Path) -> list[int]:
    """Return the candidates of best.csv, best first."""
    with (folder / BEST).open(encoding="utf-8") as file:
        return [int(row["candidate"]) for row in csv.DictReader(file)]
