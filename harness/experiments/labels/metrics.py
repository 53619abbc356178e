"""Tables on labels of new structures: how many, failures, seconds, and the errors of a model against the labels."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.experiments.experiment import Metric, MetricSamples, WorkCount
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, interval_columns
from harness.stats.intervals import Interval, compute_mean_interval, compute_median_interval

CASE = "campaign case folder"
LABELS = Columns(
    "labels",
    case=CASE,
    state="state",
    calculator="calculator level_of_theory class_name version python",
    source="source checkpoint head",
    counts="structures labelled failed finished_earlier ranks threads",
    seconds="calculation_s calculation_s_low calculation_s_high calculation_total_s",
    errors="compared elements energy_mae_ev_per_atom energy_mae_ev_per_atom_low energy_mae_ev_per_atom_high"
    " force_mae_ev_per_angstrom force_mae_ev_per_angstrom_low force_mae_ev_per_angstrom_high"
    " zero_force_mae_ev_per_angstrom unpredicted",
)
STRUCTURES = Columns(
    "label_structures",
    case=CASE,
    structure="index structure formula atoms",
    label="energy_ev energy_ev_per_atom residual_ev_per_atom force_mean_ev_per_angstrom force_max_ev_per_angstrom"
    " calculation_s",
    model="predicted_energy_ev energy_error_ev_per_atom force_error_ev_per_angstrom unpredicted_reason",
)
FAILURES = Columns("label_failures", case=CASE, failure="index structure formula atoms reason calculation_s")
CALCULATION_TIME = Metric("time per label", "s", "lower")
# With a larger leverage, the fit of the elements' energies passes through the structure, whatever its energy is.
MAX_LEVERAGE = 0.999


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables `labels` with a row per case, and `label_structures` and `label_failures`, per structure."""
    runs = [record for record in records if record.program == "labels" and record.facts.get("workload")]
    structures = {record.location: list(_list_structures(record)) for record in runs}
    return {
        "labels": LABELS.build(_describe_case(record, structures[record.location]) for record in runs),
        "label_structures": STRUCTURES.build(row for rows in structures.values() for row in rows),
        "label_failures": FAILURES.build(
            {**_get_case(record), **FAILURES.select(event), **_describe_composition(event)}
            for record in runs
            for event in record.events("label_failed")
        ),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the seconds of every label."""
    yield MetricSamples(CALCULATION_TIME, tuple(float(e["calculation_s"]) for e in record.events("label")))


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of labels of the case."""
    return float(len(record.events("label"))) if scope == "case" else math.nan, "label"


def _get_case(record: RunRecord) -> dict[str, Any]:
    return {"campaign": record.campaign, "case": record.case.get("name"), "folder": record.location}


def _describe_composition(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the formula and the number of atoms of a structure."""
    elements = event["elements"]
    formula = "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in sorted(elements.items()))
    return {"formula": formula, "atoms": sum(elements.values())}


def _list_structures(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row of the table `label_structures` for each label."""
    events = record.events("label")
    residuals = compute_residuals(events, [e["energy_ev"] for e in events])
    differences = [e.get("predicted_energy_ev", math.nan) - e["energy_ev"] for e in events]
    errors = np.full(len(events), math.nan)
    predicted = np.flatnonzero(np.isfinite(differences))
    errors[predicted] = compute_residuals([events[k] for k in predicted], [differences[k] for k in predicted])
    for event, residual, error in zip(events, residuals.tolist(), errors.tolist(), strict=True):
        row = {**_get_case(record), **STRUCTURES.select(event), **_describe_composition(event)}
        yield row | {
            "energy_ev_per_atom": event["energy_ev"] / row["atoms"],
            "residual_ev_per_atom": residual,
            "energy_error_ev_per_atom": error,
        }


def compute_residuals(events: Sequence[Mapping[str, Any]], energies_ev: Sequence[float]) -> NDArray[np.float64]:
    """Return the energies per atom minus a sum of one energy per element, fitted without the structure, [n] eV/atom.

    Levels of theory and models differ in the energies of the elements, which are therefore fitted to the structures by
    least squares of the energy per atom. The residual of a structure is that of a fit to all others, r / (1 - h) with
    its leverage h (Cook and Weisberg, Residuals and Influence in Regression, 1982, section 2.2.1). It is NaN if the
    others do not determine the energy, as for the only structure with an element.

    Args:
        events: The structures, with the field `elements`.
        energies_ev: The energy of each structure, or the difference of two energies.
    """
    if not events:
        return np.zeros(0)
    symbols = sorted({symbol for event in events for symbol in event["elements"]})
    counts = np.array([[event["elements"].get(symbol, 0) for symbol in symbols] for event in events], dtype=float)
    atoms = counts.sum(axis=1)
    fractions, values = counts / atoms[:, None], np.asarray(energies_ev, dtype=float) / atoms
    inverse = np.linalg.pinv(fractions, rcond=1e-9)
    leverage = np.einsum("ij,ji->i", fractions, inverse)
    residuals = values - fractions @ (inverse @ values)
    return np.where(leverage < MAX_LEVERAGE, residuals / np.maximum(1.0 - leverage, 1e-12), math.nan)


def _describe_case(record: RunRecord, structures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of a case; means of errors are over structures, with Student's interval.

    `elements` is the number of energies that the comparison of energies fits, one per element.
    """
    facts, failures = record.facts, record.events("label_failed")
    calculator, seconds = facts.get("calculator") or {}, [s["calculation_s"] for s in structures]
    compared = [s for s in structures if math.isfinite(s["energy_error_ev_per_atom"])]
    energies = compute_mean_interval(abs(s["energy_error_ev_per_atom"]) for s in compared)
    with_forces = [s for s in structures if s.get("force_error_ev_per_angstrom") is not None]
    forces = compute_mean_interval(s["force_error_ev_per_angstrom"] for s in with_forces)
    zero = [s["force_mean_ev_per_angstrom"] for s in with_forces]
    predicted = [e for e in record.events("label") if e.get("predicted_energy_ev") is not None]
    reasons = Counter(s["unpredicted_reason"] for s in structures if s.get("unpredicted_reason"))
    time = compute_median_interval(seconds) if seconds else Interval(math.nan, math.nan, math.nan)
    return {
        **_get_case(record),
        "state": record.state,
        "calculator": calculator.get("name"),
        "version": ", ".join(f"{name} {version}" for name, version in (calculator.get("packages") or {}).items()),
        **{key: calculator.get(key) for key in ("level_of_theory", "class_name", "python")},
        **LABELS.select(facts["workload"]),
        "labelled": len(structures),
        "failed": len(failures),
        **interval_columns("calculation_s", time),
        "calculation_total_s": sum(seconds) + sum(e["calculation_s"] for e in failures),
        "compared": len(compared),
        "elements": len({symbol for event in predicted for symbol in event["elements"]}),
        **interval_columns("energy_mae_ev_per_atom", energies),
        **interval_columns("force_mae_ev_per_angstrom", forces),
        "zero_force_mae_ev_per_angstrom": float(np.mean(zero)) if zero else math.nan,
        "unpredicted": "; ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
    }
