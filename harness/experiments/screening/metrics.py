"""Screenings: records of the program `screening` -> rates, times for a billion, the best, and how far to trust them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.results.runs import Record

BILLION = 1_129_000_000
PAPER_RANKS = 9408 * 8
MACHINES = {"Frontier": PAPER_RANKS, "Aurora": 10_624 * 12, "Perlmutter": 1_792 * 4}
RUNS = (
    "campaign", "case", "system", "workload", "total", "candidates", "evaluated", "left_out", "unranked", "ranks",
    "precision",
    "device", "threads", "compiled", "why_eager", "messages", "why_plain", "device_per_s", "end_to_end_per_s", "share",
    "make_share", "per_rank_per_s", "atoms", "edges", "seconds", "warm_up_s", "memory_growth", "memory_peak_bytes",
    "proven", "state", "folder",
)  # fmt: skip
TIMES = ("campaign", "case", "machine", "ranks", "basis", "seconds", "candidates")
BEST = ("campaign", "case", "place", "candidate", "formula", "prototype", "volume", "stream", "energy_ev_per_atom",
        "beyond_ev_per_atom", "spread_ev_per_atom", "force_max_ev_per_a", "distance")  # fmt: skip
TRUST = ("campaign", "case", "what", "kind", "value", "unit", "n")
LABELS = ("campaign", "case", "flagged", "candidates", "mae_ev_per_atom", "median_ev_per_atom", "worst_ev_per_atom",
          "force_mae_ev_per_a", "force_median_ev_per_a", "head", "level")  # fmt: skip
RELAXED = ("campaign", "case", "candidate", "formula", "prototype", "converged", "steps", "before_ev_per_atom",
           "after_ev_per_atom", "volume_before", "volume_after", "force_max_ev_per_a", "file")  # fmt: skip
PLACES = ("campaign", "case", "kind", "x", "y")


@dataclass(frozen=True)
class ScreeningTables:
    """runs: a row a case; share: of the device's rate that is left end to end, make_share: of the time of evaluation
    that making candidates took, beside it. times: seconds for the paper's 1.129e9 candidates at the rate of a rank,
    on this machine and, as a projection, on as many ranks as the machines of the paper have, each as fast as one here.
    best, relaxed: rows of candidates. trust: one number a row. labels: errors of calculated candidates, flagged and
    not. places: points of the plane of embeddings."""

    runs: pd.DataFrame
    times: pd.DataFrame
    best: pd.DataFrame
    trust: pd.DataFrame
    labels: pd.DataFrame
    relaxed: pd.DataFrame
    places: pd.DataFrame


def screening_tables(records: Sequence[Record]) -> ScreeningTables:
    """All tables; what a case has not come to is missing."""
    own = [r for r in records if r.case.get("program") == "screening"]
    runs = [_run(r) for r in own if r.others.get("rank")]
    return ScreeningTables(
        pd.DataFrame(runs, columns=RUNS),
        pd.DataFrame([row for run in runs for row in _times(run)], columns=TIMES),
        pd.DataFrame([row for r in own for row in _plain(r, "best")], columns=BEST),
        pd.DataFrame([row for r in own for row in _trust(r)], columns=TRUST),
        pd.DataFrame([row for r in own for row in _labels(r)], columns=LABELS),
        pd.DataFrame([row for r in own for row in _plain(r, "relaxed")], columns=RELAXED),
        pd.DataFrame([row for r in own for row in _places(r)], columns=PLACES),
    )


def _of(record: Record) -> dict[str, Any]:
    return {"campaign": record.folder.parent.name, "case": record.case.get("name")}


def _plain(record: Record, kind: str) -> list[dict[str, Any]]:
    return [{**_of(record), **event} for event in record.others.get(kind, [])]


def _run(record: Record) -> dict[str, Any]:
    """Rates of all ranks together: of the device alone, and by the slowest rank's clock end to end."""
    ranks = record.others["rank"]
    facts, proofs = record.facts, record.others.get("proof", [])
    done = sum(r["evaluated"] for r in ranks)
    slowest = max(r["wall_s"] for r in ranks)
    device = sum(r["evaluated"] / r["device_s"] for r in ranks if r["device_s"] > 0)
    end_to_end = done / slowest if slowest > 0 else math.nan
    left_out, unranked = (_summed(rank.get(name, {}) for rank in ranks) for name in ("left_out", "unranked"))
    model = facts.get("model", {})
    why_eager = next((r["why_eager"] for r in ranks if r.get("why_eager")), None)
    growth = max(r["memory_last_bytes"] / max(1, r["memory_bytes"]) for r in ranks)
    return _of(record) | {
        "system": record.case.get("system"),
        "workload": facts.get("workload", {}).get("name"),
        "total": facts.get("workload", {}).get("total"),
        "candidates": sum(r["candidates"] for r in ranks),
        "evaluated": done,
        "left_out": ", ".join(f"{n} {why}" for why, n in left_out.items() if n),
        "unranked": ", ".join(f"{n} {why}" for why, n in unranked.items() if n),
        "ranks": len(ranks),
        "precision": model.get("precision"),
        "device": model.get("device"),
        "threads": model.get("threads"),
        "compiled": bool(model.get("compiled")) and why_eager is None,
        "why_eager": why_eager,
        "messages": model.get("messages"),
        "why_plain": model.get("why_plain"),
        "device_per_s": device,
        "end_to_end_per_s": end_to_end,
        "share": end_to_end / device if device else math.nan,
        "make_share": sum(r["make_s"] for r in ranks) / max(1e-9, sum(r["device_s"] for r in ranks)),
        "per_rank_per_s": end_to_end / len(ranks),
        "atoms": sum(r["atoms"] for r in ranks) / max(1, done),
        "edges": sum(r["edges"] for r in ranks) / max(1, done),
        "seconds": slowest,
        "warm_up_s": max(r.get("warm_up_s", 0.0) for r in ranks),
        "memory_growth": growth,
        "memory_peak_bytes": max(r["memory_peak_bytes"] for r in ranks),
        "proven": bool(proofs) and proofs[-1]["checksum"] == proofs[-1]["expected"],
        "state": record.state,
        "folder": str(record.folder),
    }


def _summed(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return total


def _times(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds for the paper's count of candidates."""
    origin = {k: run[k] for k in ("campaign", "case")} | {"candidates": BILLION}
    here = {"machine": str(run["system"]), "ranks": run["ranks"], "basis": "from the rate measured"}
    rows = [{**origin, **here, "seconds": BILLION / run["end_to_end_per_s"]}]
    for machine, ranks in MACHINES.items():
        seconds = BILLION / (ranks * run["per_rank_per_s"])
        rows.append({**origin, "machine": machine, "ranks": ranks, "basis": "projected", "seconds": seconds})
    return rows


def _trust(record: Record) -> list[dict[str, Any]]:
    """Every number that bears on trust, with the number of structures that it rests on."""
    rows: list[tuple[str, str, float | None, str, int]] = []
    for e in record.others.get("calibration", []):
        rows += [
            ("threshold", "distance from training sets", e["threshold"], "1", e["calibrated_on"]),
            ("flagged", "held out, for the threshold", e["share"], "share", e["calibrated_on"]),
            ("flagged", "held out, others: false alarms", e["false_alarms"], "share", e["tested_on"]),
        ]
        rows += [("flagged", f"{kind}: detected", v, "share", e["strange"]) for kind, v in e["detected"].items()]
    for e in record.others.get("outside", []):
        n = e["candidates"]
        rows += [("outside the training", why, count / n, "share", n) for why, count in e["reasons"].items()]
    for e in record.others.get("uncertainty", []):
        for way in ("heads", "dropout", "ensemble"):
            rows.append((f"median spread of {way}", e["kind"], e[f"{way}_ev_per_atom"], "eV/atom", e["candidates"]))
    for e in record.others.get("overlap", []):
        rows.append(("mean Wasserstein distance", e["kind"], e["mean"], "training deviations", e["structures"]))
        rows.append(("outside the plot's range", e["kind"], e["beyond"], "share", e["structures"]))
    for e in record.others.get("elements", []):
        rows.append(("elements", "in the sample", len(e["candidates"]), "elements", sum(e["candidates"].values())))
        rows.append(("elements", "in it, of none in training", len(e["never_seen"]), "elements", 0))
    columns = ("what", "kind", "value", "unit", "n")
    return [{**_of(record), **dict(zip(columns, row, strict=True))} for row in rows]


def _labels(record: Record) -> list[dict[str, Any]]:
    """Errors of calculated candidates; of a few, one that is far off makes the mean, so the median stands beside it."""
    rows = pd.DataFrame(record.others.get("label", []))
    if rows.empty:
        return []
    found = []
    for flagged, own in rows.groupby("flagged"):
        energy, force = own["off_ev_per_atom"], own["force_off_ev_per_a"]
        found.append(
            {
                **_of(record), "flagged": bool(flagged), "candidates": len(own), "mae_ev_per_atom": energy.mean(),
                "median_ev_per_atom": energy.median(), "worst_ev_per_atom": energy.max(),
                "force_mae_ev_per_a": force.mean(), "force_median_ev_per_a": force.median(),
                "head": own["head"].iloc[0], "level": own["level"].iloc[0],
            }
        )  # fmt: skip
    return found


def _places(record: Record) -> list[dict[str, Any]]:
    return [
        {**_of(record), "kind": e["kind"], "x": x, "y": y}
        for e in record.others.get("embedding", [])
        for x, y in zip(e["x"], e["y"], strict=True)
    ]
