"""Tables on datasets and on how fast they are read.

A conversion leaves the facts dataset, conversion, references and statistics. Reading leaves the fact reading, of one
mode or a list of several, and a sample per batch: seconds of the slowest rank, structures and bytes of one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.results.runs import RunRecord
from harness.results.tables import Columns, interval_columns
from harness.stats.intervals import median_interval

DATASETS = Columns(
    "datasets",
    run="campaign system case id",
    about="slug head role level source licence attribution original_count part_of",
    content="read structures left_out left_out_kinds splits atoms groups size_median size_max elements periodic_share"
    " neighbours energy_sd energy_low energy_high reference_mae_ev_per_atom reference_rank elements_undetermined"
    " force_median force_rms force_max stress_rms charged_share",
    conversion="seconds structures_per_s workers store_bytes edges cutoff max_neighbours",
    folder="folder",
)
ELEMENTS = Columns("elements", columns="slug element structures atoms")
DISTRIBUTIONS = Columns("distributions", columns="slug quantity low high count")
READING = Columns(
    "reading",
    run="campaign system case id",
    mode="mode nodes ranks width sets stand_ins split samples batch",
    rates="bytes_per_sample us_per_sample us_low us_high samples_per_s samples_per_s_low samples_per_s_high mb_per_s",
    machine="floor_us floor open_s rss_bytes coverage batches",
    folder="folder",
)
ROLES = ("official", "sample", "stand-in")
QUANTITIES = {
    "sizes": "atoms",
    "energy_ev_per_atom": "energy beyond the references, eV/atom",
    "force_norm_ev_per_a": "length of forces, eV/angstrom",
}


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on data, of finished cases alone, which are known by the facts that they leave.

    datasets: a row per dataset, from its latest conversion; the one with the largest original comes first.
    elements: a row per dataset and element. distributions: a row per bin of a histogram. reading: a row per run and
    mode.
    """
    done = [r for r in records if r.state == "done"]
    latest: dict[str, RunRecord] = {}
    for record in sorted(done, key=lambda r: float(r.provenance.get("time_s", 0.0))):
        if {"dataset", "conversion"} <= record.facts.keys():
            latest[record.facts["dataset"]["slug"]] = record
    by_size = sorted(latest.values(), key=lambda r: -float(r.facts["dataset"].get("original_count") or 0))
    reading = READING.build(row for r in done if "reading" in r.facts for row in _reading(r))
    return {
        "datasets": DATASETS.build(_dataset(r) for r in by_size),
        "elements": ELEMENTS.build(row for r in by_size for row in _elements(r)),
        "distributions": DISTRIBUTIONS.build(row for r in by_size for row in _bins(r)),
        "reading": reading.sort_values(["mode", "ranks"], kind="stable").reset_index(drop=True),
    }


def list_unreachable(records: Sequence[RunRecord]) -> list[str]:
    """Return the modes of reading that were not tried, and why."""
    done = [r for r in records if r.state == "done"]
    return [f"{r.case.get('name')}: {reason}" for r in done for reason in r.facts.get("out_of_reach", [])]


def exclude_subsets(datasets: pd.DataFrame) -> pd.DataFrame:
    """Return the datasets without those that are parts of another one in the table."""
    return datasets[~datasets["part_of"].isin(datasets["slug"])]


def _origin(record: RunRecord) -> dict[str, Any]:
    case = record.case
    names = {"campaign": record.campaign, "case": case.get("name"), "folder": str(record.folder)}
    return names | {k: case.get(k) for k in ("system", "id")}


def _dataset(record: RunRecord) -> dict[str, Any]:
    about, conversion = record.facts["dataset"], record.facts["conversion"]
    left_out = conversion.get("left_out", {})
    return {
        **_origin(record),
        **{k: about.get(k) for k in ("slug", "head", "level", "source", "licence", "attribution", "part_of")},
        "role": next((r for r in ROLES if about["role"].startswith(r)), about["role"]),
        "original_count": about.get("original_count") or None,
        "store_bytes": about.get("store_bytes"),
        **{k: conversion.get(k) for k in ("read", "seconds", "structures_per_s", "workers", "cutoff")},
        "edges": conversion.get("edges", conversion.get("cutoff") is not None),
        "structures": conversion["written"],
        "left_out": sum(left_out.values()),
        "left_out_kinds": _counted(left_out),
        "splits": _counted(conversion.get("splits", {})),
        "max_neighbours": conversion.get("max_neighbours"),
        **_references(record.facts.get("references", {})),
        **_statistics(record.facts.get("statistics", {})),
    }


def _counted(counts: dict[str, int]) -> str:
    """Return `900 trainset, 50 valset`."""
    return ", ".join(f"{n} {what}" for what, n in counts.items())


def _references(fact: dict[str, Any]) -> dict[str, Any]:
    return {
        "reference_mae_ev_per_atom": fact.get("mae_ev_per_atom"),
        "reference_rank": fact.get("rank"),
        "elements_undetermined": ", ".join(fact.get("undetermined", [])),
    }


def _statistics(fact: dict[str, Any]) -> dict[str, Any]:
    if not fact:
        return {}
    sizes, energy, forces = (fact[name] for name in QUANTITIES)
    structures = fact["structures"]
    return {
        "atoms": fact["atoms"],
        "groups": fact["groups_estimate"],
        "size_median": _quantile(sizes, "0.5"),
        "size_max": sizes.get("max"),
        "elements": len(fact["elements"]),
        "periodic_share": 1.0 - fact["periodic"][0] / structures if structures else None,
        "neighbours": fact["neighbours_mean"],
        "energy_sd": energy.get("sd"),
        "energy_low": _quantile(energy, "0.01"),
        "energy_high": _quantile(energy, "0.99"),
        "force_median": _quantile(forces, "0.5"),
        "force_rms": forces.get("rms"),
        "force_max": forces.get("max"),
        "stress_rms": fact["stress_ev_per_a3"].get("rms"),
        "charged_share": 1.0 - fact["charges"].get("0", 0) / structures if structures else None,
    }


def _quantile(spread: dict[str, Any], share: str) -> float | None:
    return spread.get("quantiles", {}).get(share)


def _elements(record: RunRecord) -> list[dict[str, Any]]:
    slug = record.facts["dataset"]["slug"]
    return [
        {"slug": slug, "element": e, **n} for e, n in record.facts.get("statistics", {}).get("elements", {}).items()
    ]


def _bins(record: RunRecord) -> list[dict[str, Any]]:
    """Return the bins of each histogram that are not empty, ascending; the bin of zero has no width."""
    slug, fact = record.facts["dataset"]["slug"], record.facts.get("statistics", {})
    rows = []
    for quantity in QUANTITIES if fact else ():
        histogram = fact[quantity]
        per_octave = histogram["bins_per_octave"]
        edges = [(-(2 ** ((k + 1) / per_octave)), -(2 ** (k / per_octave)), n) for k, n in histogram["negative"]]
        edges += [(0.0, 0.0, histogram["zero"])] if histogram["zero"] else []
        edges += [(2 ** (k / per_octave), 2 ** ((k + 1) / per_octave), n) for k, n in histogram["positive"]]
        rows += [
            {"slug": slug, "quantity": quantity, "low": low, "high": high, "count": count}
            for low, high, count in sorted(edges)
        ]
    return rows


def _reading(record: RunRecord) -> list[dict[str, Any]]:
    """Return one row per mode; where a run has several modes, each sample says which one it is of."""
    fact = record.facts["reading"]
    rows = []
    for about in fact if isinstance(fact, list) else [fact]:
        samples = [s for s in record.samples if s.get("mode", about["mode"]) == about["mode"]]
        if samples:
            rows.append(_origin(record) | _mode(about, samples))
    return rows


def _mode(about: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the time per sample on the slowest rank, and the rate of all ranks together, over the timed batches."""
    seconds, batch, count = (np.array([s[k] for s in samples]) for k in ("seconds", "batch", "bytes"))
    ranks = about["ranks"]
    each = median_interval((1e6 * seconds / batch).tolist())
    together = median_interval((ranks * batch / seconds).tolist())
    floor = about.get("floor") or {}
    return {
        **{k: about.get(k) for k in ("mode", "nodes", "ranks", "width", "split", "samples", "open_s", "rss_bytes")},
        "sets": ", ".join(about.get("sets", [])),
        "stand_ins": sum(role.startswith("stand-in") for role in about.get("roles", [])),
        "batch": int(np.median(batch)),
        "bytes_per_sample": about.get("bytes_per_sample_mean"),
        "us_per_sample": each.value,
        "us_low": each.low,
        "us_high": each.high,
        **interval_columns("samples_per_s", together),
        "mb_per_s": float(np.median(ranks * count / seconds)) / 1e6,
        "floor_us": floor.get("us_per_sample"),
        "floor": floor.get("what"),
        "coverage": each.coverage,
        "batches": each.n,
    }
