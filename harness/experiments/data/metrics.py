"""Tables on datasets and on the rates of reading.

A conversion logs the facts `dataset`, `conversion`, `reference_energies` and `statistics`. A reading case
logs the fact `reading`, which describes one mode or is a list with one entry per mode, and a sample per batch: the
seconds of the slowest rank, and the structures and bytes of one rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.results.runs import RunRecord
from harness.results.tables import Columns, interval_columns
from harness.stats.intervals import compute_median_interval

DATASETS = Columns(
    "datasets",
    run="campaign system case id",
    attributes="dataset head data_origin level_of_theory source licence attribution published_structures subset_of",
    content="structures_read structures excluded excluded_kinds splits atoms groups size_median size_max elements"
    " periodic_fraction"
    " neighbours energy_std_ev_per_atom energy_low_ev_per_atom energy_high_ev_per_atom reference_mae_ev_per_atom"
    " reference_matrix_rank undetermined_elements"
    " force_median_ev_per_angstrom force_rms_ev_per_angstrom force_max_ev_per_angstrom stress_rms_ev_per_angstrom3"
    " charged_fraction",
    conversion="seconds structures_per_s workers store_bytes edges cutoff max_neighbours",
    folder="folder",
)
ELEMENTS = Columns("elements", columns="dataset element structures atoms")
DISTRIBUTIONS = Columns("distributions", columns="dataset quantity low high count")
READING = Columns(
    "reading",
    run="campaign system case id",
    mode="read_mode nodes ranks ranks_per_copy datasets stand_ins split samples batch_size",
    rates="bytes_per_sample us_per_sample us_per_sample_low us_per_sample_high samples_per_s samples_per_s_low"
    " samples_per_s_high mb_per_s",
    machine="lower_bound_us lower_bound open_s rss_bytes coverage batches",
    folder="folder",
)
ORIGINS = ("official", "sample", "stand-in")
QUANTITIES = {
    "atoms_per_structure": "atoms",
    "energy_ev_per_atom": "energy relative to the references, eV/atom",
    "force_norm_ev_per_angstrom": "norm of forces, eV/angstrom",
}


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on data, from the finished cases that log the facts of a conversion or of reading.

    `datasets` has a row per dataset, from its latest conversion, sorted by the size of the original dataset, largest
    first; `reference_matrix_rank` is the rank of the least-squares fit of the reference energies. `elements` has a row
    per dataset and element, and `distributions` a row per bin of a histogram. `reading` has a row per run and mode:
    `ranks_per_copy` is the number of ranks that share a copy of the data, and `lower_bound` describes the operation
    that takes `lower_bound_us`.
    """
    finished = [r for r in records if r.state == "done"]
    latest: dict[str, RunRecord] = {}
    for record in sorted(finished, key=lambda r: float(r.provenance.get("time_s", 0.0))):
        if {"dataset", "conversion"} <= record.facts.keys():
            latest[record.facts["dataset"]["name"]] = record
    by_size = sorted(latest.values(), key=lambda r: -float(r.facts["dataset"].get("published_structures") or 0))
    reading = READING.build(row for r in finished if "reading" in r.facts for row in _describe_reading(r))
    return {
        "datasets": DATASETS.build(_describe_dataset(r) for r in by_size),
        "elements": ELEMENTS.build(row for r in by_size for row in _list_elements(r)),
        "distributions": DISTRIBUTIONS.build(row for r in by_size for row in _list_bins(r)),
        "reading": reading.sort_values(["read_mode", "ranks"], kind="stable").reset_index(drop=True),
    }


def list_unavailable_modes(records: Sequence[RunRecord]) -> list[str]:
    """Return a text for each mode of reading that was not run: the case and the reason."""
    finished = [r for r in records if r.state == "done"]
    return [f"{r.case.get('name')}: {reason}" for r in finished for reason in r.facts.get("unavailable_modes", [])]


def exclude_subsets(datasets: pd.DataFrame) -> pd.DataFrame:
    """Return the datasets that are not a subset of another dataset in the table."""
    return datasets[~datasets["subset_of"].isin(datasets["dataset"])]


def _get_case_columns(record: RunRecord) -> dict[str, Any]:
    case = record.case
    names = {"campaign": record.campaign, "case": case.get("name"), "folder": record.location}
    return names | {k: case.get(k) for k in ("system", "id")}


def _describe_dataset(record: RunRecord) -> dict[str, Any]:
    attributes, conversion = record.facts["dataset"], record.facts["conversion"]
    excluded = conversion.get("excluded", {})
    return {
        **_get_case_columns(record),
        "dataset": attributes.get("name"),
        **{k: attributes.get(k) for k in ("head", "level_of_theory", "source", "licence", "attribution", "subset_of")},
        "data_origin": next((o for o in ORIGINS if attributes["data_origin"].startswith(o)), attributes["data_origin"]),
        "published_structures": attributes.get("published_structures") or None,
        "store_bytes": attributes.get("store_bytes"),
        **{k: conversion.get(k) for k in ("structures_read", "seconds", "structures_per_s", "workers", "cutoff")},
        "edges": conversion.get("edges", conversion.get("cutoff") is not None),
        "structures": conversion["structures_written"],
        "excluded": sum(excluded.values()),
        "excluded_kinds": _format_counts(excluded),
        "splits": _format_counts(conversion.get("splits", {})),
        "max_neighbours": conversion.get("max_neighbours"),
        **_describe_references(record.facts.get("reference_energies", {})),
        **_describe_statistics(record.facts.get("statistics", {})),
    }


def _format_counts(counts: dict[str, int]) -> str:
    """Return counts as text: `900 train, 50 validation`."""
    return ", ".join(f"{n} {name}" for name, n in counts.items())


def _describe_references(fact: dict[str, Any]) -> dict[str, Any]:
    return {
        "reference_mae_ev_per_atom": fact.get("mae_ev_per_atom"),
        "reference_matrix_rank": fact.get("rank"),
        "undetermined_elements": ", ".join(fact.get("undetermined_elements", [])),
    }


def _describe_statistics(fact: dict[str, Any]) -> dict[str, Any]:
    if not fact:
        return {}
    sizes, energy, forces = (fact[name] for name in QUANTITIES)
    structures = fact["structures"]
    return {
        "atoms": fact["atoms"],
        "groups": fact["groups_estimate"],
        "size_median": _get_quantile(sizes, "0.5"),
        "size_max": sizes.get("max"),
        "elements": len(fact["elements"]),
        "periodic_fraction": 1.0 - fact["structures_by_periodicity"][0] / structures if structures else None,
        "neighbours": fact["neighbours_mean"],
        "energy_std_ev_per_atom": energy.get("std"),
        "energy_low_ev_per_atom": _get_quantile(energy, "0.01"),
        "energy_high_ev_per_atom": _get_quantile(energy, "0.99"),
        "force_median_ev_per_angstrom": _get_quantile(forces, "0.5"),
        "force_rms_ev_per_angstrom": forces.get("rms"),
        "force_max_ev_per_angstrom": forces.get("max"),
        "stress_rms_ev_per_angstrom3": fact["stress_ev_per_angstrom3"].get("rms"),
        "charged_fraction": 1.0 - fact["charges"].get("0", 0) / structures if structures else None,
    }


def _get_quantile(spread: dict[str, Any], share: str) -> float | None:
    return spread.get("quantiles", {}).get(share)


def _list_elements(record: RunRecord) -> list[dict[str, Any]]:
    dataset = record.facts["dataset"]["name"]
    return [
        {"dataset": dataset, "element": e, **n}
        for e, n in record.facts.get("statistics", {}).get("elements", {}).items()
    ]


def _list_bins(record: RunRecord) -> list[dict[str, Any]]:
    """Return the non-empty bins of each histogram in ascending order; the bin of zero has no width."""
    dataset, fact = record.facts["dataset"]["name"], record.facts.get("statistics", {})
    rows = []
    for quantity in QUANTITIES if fact else ():
        histogram = fact[quantity]
        per_octave = histogram["bins_per_octave"]
        edges = [(-(2 ** ((k + 1) / per_octave)), -(2 ** (k / per_octave)), n) for k, n in histogram["negative"]]
        edges += [(0.0, 0.0, histogram["zero"])] if histogram["zero"] else []
        edges += [(2 ** (k / per_octave), 2 ** ((k + 1) / per_octave), n) for k, n in histogram["positive"]]
        rows += [
            {"dataset": dataset, "quantity": quantity, "low": low, "high": high, "count": count}
            for low, high, count in sorted(edges)
        ]
    return rows


def _describe_reading(record: RunRecord) -> list[dict[str, Any]]:
    """Return one row per mode of reading; in a run with several modes, each sample names its mode."""
    fact = record.facts["reading"]
    rows = []
    for attributes in fact if isinstance(fact, list) else [fact]:
        samples = [s for s in record.samples if s.get("read_mode", attributes["read_mode"]) == attributes["read_mode"]]
        if samples:
            rows.append(_get_case_columns(record) | _describe_mode(attributes, samples))
    return rows


def _describe_mode(attributes: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the time per sample on the slowest rank, and the rate of all ranks, over the timed batches."""
    seconds, batch, n_bytes = (np.array([s[k] for s in samples]) for k in ("duration_s", "batch_size", "bytes"))
    ranks = attributes["ranks"]
    time_us = compute_median_interval((1e6 * seconds / batch).tolist())
    rate = compute_median_interval((ranks * batch / seconds).tolist())
    bound = attributes.get("floor") or {}
    return {
        **{k: attributes.get(k) for k in ("read_mode", "nodes", "ranks", "split", "samples", "open_s", "rss_bytes")},
        "ranks_per_copy": attributes.get("replica_ranks"),
        "datasets": ", ".join(attributes.get("datasets", [])),
        "stand_ins": sum(origin.startswith("stand-in") for origin in attributes.get("data_origins", [])),
        "batch_size": int(np.median(batch)),
        "bytes_per_sample": attributes.get("bytes_per_sample_mean"),
        "us_per_sample": time_us.value,
        "us_per_sample_low": time_us.low,
        "us_per_sample_high": time_us.high,
        **interval_columns("samples_per_s", rate),
        "mb_per_s": float(np.median(ranks * n_bytes / seconds)) / 1e6,
        "lower_bound_us": bound.get("us_per_sample"),
        "lower_bound": bound.get("description"),
        "coverage": time_us.coverage,
        "batches": time_us.n,
    }
