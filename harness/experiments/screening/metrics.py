"""Tables on screenings: rates, times for the paper's workload, best candidates, and reliability of results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.experiments.experiment import Metric, MetricSamples, WorkCount, select_numbers
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns
from harness.stats.risk_measures import compute_auroc

# The numbers of candidates and ranks of the paper's screening; on its machines, a rank uses one GPU or tile.
PAPER_CANDIDATES = 1_129_000_000
PAPER_RANKS = 9408 * 8
MACHINE_RANKS = {"Frontier": PAPER_RANKS, "Aurora": 10_624 * 12, "Perlmutter": 1_792 * 4}
# By filter of a workload: the crystals that it removes.
FILTERED = {
    "no_elements": "single elements", "no_noble_gases": "with noble gases",
    "charge_balance": "without balanced charges", "no_intermetallics": "intermetallic",
    "no_duplicates": "duplicates",
}  # fmt: skip
RUNS = Columns(
    "screening_runs",
    case="campaign case system workload",
    candidates="candidates_in_workload candidates evaluated excluded outside_training_sets ranks",
    model="precision device threads compiled eager_reason message_backend unfused_reason default_sums_reason"
    " hull_head reference_phases n_reference_phases",
    rates="device_candidates_per_s end_to_end_candidates_per_s end_to_end_fraction generation_fraction"
    " candidates_per_s_per_rank",
    size="atoms edges seconds warm_up_s memory_growth memory_peak_bytes",
    run="is_verified state folder",
)
TIMES = Columns("screening_times", columns="campaign case machine ranks basis seconds candidates")
BEST = Columns(
    "screening_best",
    case="campaign case",
    candidate="position candidate formula chemistry prototype volume stream energy_above_hull_mev_per_atom suspicious"
    " energy_ev_per_atom residual_energy_ev_per_atom spread_ev_per_atom force_max_ev_per_angstrom distance"
    " risk_ev_per_atom energy_low_ev_per_atom energy_high_ev_per_atom",
)
ASSESSMENT = Columns("screening_assessment", case="campaign case", value="quantity kind value unit n")
LABELS = Columns(
    "screening_labels",
    columns="campaign case flagged candidates mae_ev_per_atom median_ev_per_atom max_error_ev_per_atom"
    " force_mae_ev_per_angstrom"
    " force_median_ev_per_angstrom head level_of_theory",
)
RISK = Columns(
    "screening_risk",
    case="campaign case",
    label="formula energy_error_ev_per_atom risk_ev_per_atom is_accepted head level_of_theory",
)
RELAXED = Columns(
    "screening_relaxed",
    case="campaign case",
    candidate="candidate formula chemistry prototype spacegroup energy_above_hull_mev_per_atom duplicate_of converged"
    " steps initial_energy_ev_per_atom final_energy_ev_per_atom initial_volume_angstrom3_per_atom"
    " final_volume_angstrom3_per_atom force_max_ev_per_angstrom file",
    others="also_reached_from",
)
DRAWINGS = Columns("screening_drawings", columns="campaign case candidate part x y radius colour element")
EMBEDDING = Columns("screening_embedding", columns="campaign case kind x y")
LARGE_ERROR = 5.0  # times the median error
DEVICE_RATE = Metric("device throughput", "candidates/s", "higher")
END_TO_END_RATE = Metric("end-to-end throughput", "candidates/s", "higher")


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on screenings; an unfinished case has only some of the rows.

    `screening_runs` has a row per case; `end_to_end_fraction` is the end-to-end rate divided by the rate of the device,
    and `generation_fraction` is the time of the generation of candidates, which runs concurrently, divided by the time
    of evaluation. `candidates_in_workload` counts all candidates that the workload defines, `candidates` those that the
    case has processed, and `evaluated` those of them with finite results or outside the training sets.
    `screening_times` has the seconds for the paper's 1.129e9 candidates at the measured rate of a rank, on this machine
    and, as an extrapolation, on the paper's machines with ranks that are as fast as a rank of this machine.
    `screening_best` and `screening_relaxed` have a row per candidate. `position` is the rank of a candidate among the
    best, from 1, `stream` the random stream that generated it, and `distance` its distance from the training sets.
    `also_reached_from` lists the prototypes of other candidates that relax to the same crystal, each of which has the
    number of the better candidate in `duplicate_of`. `screening_drawings` has the discs of atoms in a projection of
    relaxed crystals, from back to front, and the corners of their cells, in angstrom.
    `screening_assessment` has a row for each quantity that tells how reliable the results are. `screening_labels` has
    the errors of candidates with reference calculations, flagged and not flagged, and `screening_risk` a row for each
    of these candidates with its risk. `screening_embedding` has points in the plane of embeddings.
    """
    cases = [r for r in records if r.program == "screening"]
    runs = [_describe_run(r) for r in cases if r.events("rank_summary")]
    return {
        "screening_runs": RUNS.build(runs),
        "screening_times": TIMES.build(row for run in runs for row in _list_times(run)),
        "screening_best": BEST.build(row for r in cases for row in _list_candidates(r, "best", BEST)),
        "screening_assessment": ASSESSMENT.build(row for r in cases for row in _list_assessment(r)),
        "screening_labels": LABELS.build(row for r in cases for row in _list_label_errors(r)),
        "screening_relaxed": RELAXED.build(row for r in cases for row in _list_relaxed(r)),
        "screening_drawings": DRAWINGS.build(row for r in cases for row in _list_drawings(r)),
        "screening_risk": RISK.build(row for r in cases for row in _list_risks(r)),
        "screening_embedding": EMBEDDING.build(row for r in cases for row in _list_embedding_points(r)),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the throughput of the device alone and of the whole program, with a sample per rank."""
    for metric, seconds in ((DEVICE_RATE, "device_s"), (END_TO_END_RATE, "wall_s")):
        ranks = [r for r in record.events("rank_summary") if r.get("evaluated") and r.get(seconds)]
        yield MetricSamples(metric, select_numbers(r["evaluated"] / r[seconds] for r in ranks))


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of evaluated candidates."""
    del scope, name
    return float(sum(e.get("evaluated", 0) for e in record.events("rank_summary"))), "candidate"


def _get_case_columns(record: RunRecord) -> dict[str, Any]:
    return {"campaign": record.campaign, "case": record.case.get("name")}


def _list_candidates(record: RunRecord, kind: str, columns: Columns) -> list[dict[str, Any]]:
    return [_get_case_columns(record) | columns.select(event, "candidate") for event in record.events(kind)]


def _list_relaxed(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row for each relaxed candidate, with the other prototypes that relax to the same crystal."""
    rows = _list_candidates(record, "relaxation", RELAXED)
    for row in rows:
        others = {r["prototype"] for r in rows if r.get("duplicate_of") == row["candidate"]} - {row["prototype"]}
        row["also_reached_from"] = ", ".join(sorted(others))
    return rows


def _list_drawings(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row for each disc, and for each corner of the cell, of the drawings of relaxed crystals."""
    for event in record.events("drawing"):
        common = _get_case_columns(record) | {"candidate": event["candidate"]}
        atoms = zip(*(event[name] for name in ("x", "y", "radius", "colour", "element")), strict=True)
        for x, y, radius, colour, element in atoms:
            yield {**common, "part": "atom", "x": x, "y": y, "radius": radius, "colour": colour, "element": element}
        for x, y in zip(event["cell_x"], event["cell_y"], strict=True):
            yield {**common, "part": "corner", "x": x, "y": y}


def _describe_run(record: RunRecord) -> dict[str, Any]:
    """Return the row of a case.

    The rate of the devices is the sum of their rates; the end-to-end rate is candidates / time of the slowest rank.
    """
    ranks = record.events("rank_summary")
    facts, verifications = record.facts, record.events("verification")
    evaluated = sum(r["evaluated"] for r in ranks)
    slowest_s = max(r["wall_s"] for r in ranks)
    device = sum(r["evaluated"] / r["device_s"] for r in ranks if r["device_s"] > 0)
    end_to_end = evaluated / slowest_s if slowest_s > 0 else math.nan
    excluded, outside = (_sum_counts(rank.get(name, {}) for rank in ranks) for name in ("excluded", "outside_coverage"))
    model = facts.get("model", {})
    eager_reason = next((r["eager_reason"] for r in ranks if r.get("eager_reason")), None)
    growth = max(r["memory_last_bytes"] / max(1, r["memory_median_bytes"]) for r in ranks)
    return _get_case_columns(record) | {
        "system": record.case.get("system"),
        "workload": facts.get("workload", {}).get("name"),
        "candidates_in_workload": facts.get("workload", {}).get("total"),
        "candidates": sum(r["candidates"] for r in ranks),
        "evaluated": evaluated,
        "excluded": _list_counts(excluded),
        "outside_training_sets": _list_counts(outside),
        "ranks": len(ranks),
        "precision": model.get("precision"),
        "device": model.get("device"),
        "threads": model.get("threads"),
        "compiled": bool(model.get("compiled")) and eager_reason is None,
        "eager_reason": eager_reason,
        "message_backend": model.get("message_backend"),
        **{k: model.get(k) for k in ("unfused_reason", "default_sums_reason")},
        "hull_head": facts.get("hull", {}).get("head"),
        "reference_phases": facts.get("hull", {}).get("reference_phases"),
        "n_reference_phases": facts.get("hull", {}).get("phases"),
        "device_candidates_per_s": device,
        "end_to_end_candidates_per_s": end_to_end,
        "end_to_end_fraction": end_to_end / device if device else math.nan,
        "generation_fraction": sum(r["generation_s"] for r in ranks) / max(1e-9, sum(r["device_s"] for r in ranks)),
        "candidates_per_s_per_rank": end_to_end / len(ranks),
        "atoms": sum(r["atoms"] for r in ranks) / max(1, evaluated),
        "edges": sum(r["edges"] for r in ranks) / max(1, evaluated),
        "seconds": slowest_s,
        "warm_up_s": max(r.get("warm_up_s", 0.0) for r in ranks),
        "memory_growth": growth,
        "memory_peak_bytes": max(r["memory_peak_bytes"] for r in ranks),
        "is_verified": bool(verifications) and verifications[-1]["checksum"] == verifications[-1]["expected"],
        "state": record.state,
        "folder": record.location,
    }


def _list_counts(counts: Mapping[str, int]) -> str:
    """Return the numbers of candidates by reason as text."""
    return ", ".join(f"{n:,} {FILTERED.get(reason, reason)}" for reason, n in counts.items() if n)


def _sum_counts(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for rank_counts in counts:
        total.update(rank_counts)
    return total


def _list_times(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the seconds for the paper's number of candidates on this machine and on the paper's machines."""
    common = {k: run[k] for k in ("campaign", "case")} | {"candidates": PAPER_CANDIDATES}
    this_machine = {"machine": str(run["system"]), "ranks": run["ranks"], "basis": "measured"}
    rows = [{**common, **this_machine, "seconds": PAPER_CANDIDATES / run["end_to_end_candidates_per_s"]}]
    for machine, ranks in MACHINE_RANKS.items():
        seconds = PAPER_CANDIDATES / (ranks * run["candidates_per_s_per_rank"])
        rows.append({**common, "machine": machine, "ranks": ranks, "basis": "extrapolated", "seconds": seconds})
    return rows


def _list_assessment(record: RunRecord) -> list[dict[str, Any]]:
    """Return a row for each measure of the reliability of results, with the number of structures that it rests on."""
    rows: list[tuple[str, str, float | None, str, int]] = []
    for e in record.events("calibration"):
        rows += [
            ("threshold", "distance from training sets", e["threshold"], "1", e["calibration_structures"]),
            (
                "flagged",
                "held out, used for the threshold",
                e["flagged_fraction"],
                "fraction",
                e["calibration_structures"],
            ),
            (
                "flagged",
                "held out, not used for the threshold: false alarms",
                e["false_alarms"],
                "fraction",
                e["test_structures"],
            ),
        ]
        rows += [
            ("flagged", f"{kind}: detected", v, "fraction", e["ood_structures"]) for kind, v in e["detected"].items()
        ]
    for e in record.events("outside_coverage"):
        n = e["candidates"]
        rows += [
            ("outside the training sets", reason, count / n, "fraction", n) for reason, count in e["reasons"].items()
        ]
    for e in record.events("sample_risk"):
        n = e["candidates"]
        rows += [
            ("threshold of the risk", "accepted candidates", e["threshold_ev_per_atom"], "eV/atom", n),
            ("risk at most the threshold", "candidates", e["accepted_fraction"], "fraction", n),
            ("median risk", "candidates", e["median_ev_per_atom"], "eV/atom", n),
        ]
    rows += _measure_risk(pd.DataFrame(_list_risks(record)))
    rows += _count_failures(record)
    for e in record.events("uncertainty"):
        methods, candidates = ("heads", "dropout", "ensemble"), int(e["candidates"])
        # logs of older versions have a median only if every candidate has a spread
        counts: dict[str, int] = e.get("with_spread") or dict.fromkeys(methods, candidates)
        for method in methods:
            value = e[f"{method}_ev_per_atom"]
            rows.append((f"median spread of {method}", e["kind"], value, "eV/atom", counts[method]))
    for e in record.events("overlap"):
        unit = "standard deviations of the training sets"
        rows.append(("mean Wasserstein distance", e["kind"], e["mean"], unit, e["structures"]))
        rows.append(("outside the plot's range", e["kind"], e["outside_range_fraction"], "fraction", e["structures"]))
    for e in record.events("elements"):
        rows.append(("elements", "in the sample", len(e["candidates"]), "elements", sum(e["candidates"].values())))
        rows.append(("elements", "in the sample, but in no training set", len(e["unseen_elements"]), "elements", 0))
    return [_get_case_columns(record) | dict(zip(ASSESSMENT["value"], row, strict=True)) for row in rows]


def _list_risks(record: RunRecord) -> list[dict[str, Any]]:
    labels = [event for event in record.events("label") if event.get("risk_ev_per_atom") is not None]
    return [_get_case_columns(record) | RISK.select(event, "label") for event in labels]


def _measure_risk(risks: pd.DataFrame) -> list[tuple[str, str, float | None, str, int]]:
    """Return rows of `screening_assessment` on how well the risk describes the errors of labelled candidates."""
    if risks.empty:
        return []
    risk, error = (risks[name].to_numpy(float) for name in ("risk_ev_per_atom", "energy_error_ev_per_atom"))
    n, median = len(error), float(np.median(error))
    auroc = compute_auroc(risk, error > LARGE_ERROR * median)
    accepted = error[risks["is_accepted"].to_numpy(bool)]
    largest = float(accepted.max() / median) if len(accepted) and median else None
    return [
        ("error within the risk", "labelled candidates", float((error <= risk).mean()), "fraction", n),
        (
            f"AUROC, error above {LARGE_ERROR:g} medians",
            "labelled candidates",
            None if math.isnan(auroc) else auroc,
            "1",
            n,
        ),
        ("risk at most the threshold", "labelled candidates", len(accepted) / n, "fraction", n),
        ("largest error / median error of all", "accepted labelled candidates", largest, "1", len(accepted)),
    ]


def _count_failures(record: RunRecord) -> list[tuple[str, str, float | None, str, int]]:
    """Return rows of `screening_assessment` on candidates without a label, and on those that were not relaxed."""
    rows: list[tuple[str, str, float | None, str, int]] = []
    for e in record.events("unlabelled"):
        n_labels, failed = len(record.events("label")), e.get("failed") or {}
        tried = n_labels + sum(failed.values())
        rows.append(("labels", e["reason"], n_labels, "candidates", tried))
        rows += [("no label", reason, count, "candidates", tried) for reason, count in failed.items()]
    for e in record.events("unrelaxed"):
        n = e["candidates"]
        rows += [
            ("best candidates not relaxed", reason, count, "candidates", n) for reason, count in e["reasons"].items()
        ]
    return rows


def _list_label_errors(record: RunRecord) -> list[dict[str, Any]]:
    """Return the errors of candidates with reference calculations, for flagged candidates and for the others."""
    rows = pd.DataFrame(record.events("label"))
    if rows.empty:
        return []
    errors = []
    for flagged, group in rows.groupby("flagged"):
        energy, force = group["energy_error_ev_per_atom"], group["force_error_ev_per_angstrom"]
        errors.append(
            {
                **_get_case_columns(record), "flagged": bool(flagged), "candidates": len(group),
                "mae_ev_per_atom": energy.mean(),
                "median_ev_per_atom": energy.median(), "max_error_ev_per_atom": energy.max(),
                "force_mae_ev_per_angstrom": force.mean(), "force_median_ev_per_angstrom": force.median(),
                "head": group["head"].iloc[0], "level_of_theory": group["level_of_theory"].iloc[0],
            }
        )  # fmt: skip
    return errors


def _list_embedding_points(record: RunRecord) -> list[dict[str, Any]]:
    return [
        {**_get_case_columns(record), "kind": e["kind"], "x": x, "y": y}
        for e in record.events("embedding")
        for x, y in zip(e["x"], e["y"], strict=True)
    ]
