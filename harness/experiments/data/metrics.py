"""Datasets and how fast they are read: records of conversions and of reading -> tidy tables.

A conversion leaves the facts dataset, conversion, references and statistics; reading leaves the fact reading, of its
mode or a list of several, and a sample a batch: seconds of the slowest rank, structures and bytes of one rank's batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.results.runs import Record
from harness.stats.intervals import median_interval

DATASETS = (
    "campaign", "system", "case", "id", "slug", "head", "role", "level", "source", "licence", "attribution",
    "original_count", "part_of", "read", "structures", "left_out", "left_out_kinds", "splits", "atoms", "groups",
    "size_median", "size_max", "elements", "periodic_share", "neighbours", "energy_sd", "energy_low", "energy_high",
    "reference_mae_ev_per_atom", "reference_rank", "elements_undetermined", "force_median", "force_rms", "force_max",
    "stress_rms", "charged_share", "seconds", "structures_per_s", "workers", "store_bytes", "edges", "cutoff",
    "max_neighbours", "folder",
)  # fmt: skip
READING = (
    "campaign", "system", "case", "id", "mode", "nodes", "ranks", "width", "sets", "stand_ins", "split", "samples",
    "batch", "bytes_per_sample", "us_per_sample", "us_low", "us_high", "samples_per_s", "samples_per_s_low",
    "samples_per_s_high", "mb_per_s", "floor_us", "floor", "open_s", "rss_bytes", "coverage", "batches",
    "folder",
)  # fmt: skip
ROLES = ("official", "sample", "stand-in")
QUANTITIES = {
    "sizes": "atoms",
    "energy_ev_per_atom": "energy beyond the references, eV/atom",
    "force_norm_ev_per_a": "length of forces, eV/angstrom",
}


@dataclass(frozen=True)
class DataTables:
    """datasets: one row a dataset, the latest conversion of each, that of the largest original first.

    elements: one row a dataset and element. distributions: one row a bin of a histogram. reading: one row a run and
    mode. out_of_reach: modes that were not tried, and why.
    """

    datasets: pd.DataFrame
    elements: pd.DataFrame
    distributions: pd.DataFrame
    reading: pd.DataFrame
    out_of_reach: tuple[str, ...] = ()


def data_tables(records: list[Record]) -> DataTables:
    """All tables on data; of finished cases alone, known by the facts that they leave."""
    done = [r for r in records if r.state == "done"]
    latest: dict[str, Record] = {}
    for record in sorted(done, key=lambda r: float(r.provenance.get("time_s", 0.0))):
        if {"dataset", "conversion"} <= record.facts.keys():
            latest[record.facts["dataset"]["slug"]] = record
    by_size = sorted(latest.values(), key=lambda r: -float(r.facts["dataset"].get("original_count") or 0))
    reading = [row for r in done if "reading" in r.facts for row in _reading(r)]
    return DataTables(
        pd.DataFrame([_dataset(r) for r in by_size], columns=DATASETS),
        pd.DataFrame(
            [row for r in by_size for row in _elements(r)], columns=["slug", "element", "structures", "atoms"]
        ),
        pd.DataFrame([row for r in by_size for row in _bins(r)], columns=["slug", "quantity", "low", "high", "count"]),
        pd.DataFrame(reading, columns=READING).sort_values(["mode", "ranks"], kind="stable").reset_index(drop=True),
        tuple(f"{r.case.get('name')}: {told}" for r in done for told in r.facts.get("out_of_reach", [])),
    )


def wholes(datasets: pd.DataFrame) -> pd.DataFrame:
    """The datasets without those that are parts of another one there."""
    return datasets[~datasets["part_of"].isin(datasets["slug"])]


def _origin(record: Record) -> dict[str, Any]:
    case = record.case
    named = {"campaign": record.folder.parent.name, "case": case.get("name"), "folder": str(record.folder)}
    return named | {k: case.get(k) for k in ("system", "id")}


def _dataset(record: Record) -> dict[str, Any]:
    about, made = record.facts["dataset"], record.facts["conversion"]
    left_out = made.get("left_out", {})
    return {
        **_origin(record),
        **{k: about.get(k) for k in ("slug", "head", "level", "source", "licence", "attribution", "part_of")},
        "role": next((r for r in ROLES if about["role"].startswith(r)), about["role"]),
        "original_count": about.get("original_count") or None,
        "store_bytes": about.get("store_bytes"),
        **{k: made.get(k) for k in ("read", "seconds", "structures_per_s", "workers", "cutoff")},
        "edges": made.get("edges", made.get("cutoff") is not None),
        "structures": made["written"],
        "left_out": sum(left_out.values()),
        "left_out_kinds": _counted(left_out),
        "splits": _counted(made.get("splits", {})),
        "max_neighbours": made.get("max_neighbours"),
        **_references(record.facts.get("references", {})),
        **_statistics(record.facts.get("statistics", {})),
    }


def _counted(counts: dict[str, int]) -> str:
    """`900 trainset, 50 valset`."""
    return ", ".join(f"{n} {what}" for what, n in counts.items())


def _references(told: dict[str, Any]) -> dict[str, Any]:
    return {
        "reference_mae_ev_per_atom": told.get("mae_ev_per_atom"),
        "reference_rank": told.get("rank"),
        "elements_undetermined": ", ".join(told.get("undetermined", [])),
    }


def _statistics(told: dict[str, Any]) -> dict[str, Any]:
    if not told:
        return {}
    sizes, energy, forces = (told[name] for name in QUANTITIES)
    structures = told["structures"]
    return {
        "atoms": told["atoms"],
        "groups": told["groups_estimate"],
        "size_median": _quantile(sizes, "0.5"),
        "size_max": sizes.get("max"),
        "elements": len(told["elements"]),
        "periodic_share": 1.0 - told["periodic"][0] / structures if structures else None,
        "neighbours": told["neighbours_mean"],
        "energy_sd": energy.get("sd"),
        "energy_low": _quantile(energy, "0.01"),
        "energy_high": _quantile(energy, "0.99"),
        "force_median": _quantile(forces, "0.5"),
        "force_rms": forces.get("rms"),
        "force_max": forces.get("max"),
        "stress_rms": told["stress_ev_per_a3"].get("rms"),
        "charged_share": 1.0 - told["charges"].get("0", 0) / structures if structures else None,
    }


def _quantile(spread: dict[str, Any], share: str) -> float | None:
    return spread.get("quantiles", {}).get(share)


def _elements(record: Record) -> list[dict[str, Any]]:
    slug = record.facts["dataset"]["slug"]
    return [
        {"slug": slug, "element": e, **n} for e, n in record.facts.get("statistics", {}).get("elements", {}).items()
    ]


def _bins(record: Record) -> list[dict[str, Any]]:
    """The bins that are not empty of each histogram, ascending; those of zero have no width."""
    slug, told = record.facts["dataset"]["slug"], record.facts.get("statistics", {})
    rows = []
    for quantity in QUANTITIES if told else ():
        spread = told[quantity]
        per_octave = spread["bins_per_octave"]
        edges = [(-(2 ** ((k + 1) / per_octave)), -(2 ** (k / per_octave)), n) for k, n in spread["negative"]]
        edges += [(0.0, 0.0, spread["zero"])] if spread["zero"] else []
        edges += [(2 ** (k / per_octave), 2 ** ((k + 1) / per_octave), n) for k, n in spread["positive"]]
        columns = ("low", "high", "count")
        rows += [{"slug": slug, "quantity": quantity, **dict(zip(columns, e, strict=True))} for e in sorted(edges)]
    return rows


def _reading(record: Record) -> list[dict[str, Any]]:
    """One row a mode; of several modes in one run each sample says which it is of."""
    told = record.facts["reading"]
    modes = told if isinstance(told, list) else [told]
    own = [(about, [s for s in record.samples if s.get("mode", about["mode"]) == about["mode"]]) for about in modes]
    return [_origin(record) | _mode(about, samples) for about, samples in own if samples]


def _mode(about: dict[str, Any], samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Time for a sample on the slowest rank, and what all ranks read together, over the timed batches."""
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
        **{"us_per_sample": each.median, "us_low": each.low, "us_high": each.high},
        "samples_per_s": together.median,
        "samples_per_s_low": together.low,
        "samples_per_s_high": together.high,
        "mb_per_s": float(np.median(ranks * count / seconds)) / 1e6,
        "floor_us": floor.get("us_per_sample"),
        "floor": floor.get("what"),
        "coverage": each.coverage,
        "batches": each.n,
    }
