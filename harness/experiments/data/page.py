"""The section of the report on the datasets, their imbalance, and how fast they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.document.blocks import DASH, Section, View, interval, number
from harness.document.figures import Figure
from harness.experiments.data.figures import (
    distribution_rows,
    element_table,
    element_tables,
    imbalance_bars,
    reading_lines,
)
from harness.experiments.data.metrics import DataTables, wholes
from harness.protocol.text import count

MEANING = {
    "sample": "A sample is drawn from the dataset itself.",
    "stand-in": (
        "A stand-in is real labelled data of other chemistry or another level of theory than the dataset whose head it"
        " trains, and says nothing of that dataset."
    ),
}
PREPOSITION = {"official": "files of", "sample": "of", "stand-in": "for"}


def data_section(data: DataTables, figures: Path) -> list[Section]:
    """The section, or none where no dataset was converted and none read; draws its figures into the folder."""
    paragraphs, drawn, views = [], [], []
    rows = [{str(k): None if pd.isna(v) else v for k, v in r.items()} for r in data.datasets.to_dict("records")]
    if rows:
        paragraphs.append(in_short(data.datasets))
        drawn += dataset_figures(data, figures)
        views += [datasets_view(rows), energies_view(rows), conversions_view(rows)]
    if len(data.reading):
        for system, own in data.reading.groupby("system"):
            drawn.append(reading_lines(own, figures, f"data-reading-{system}"))
        views.append(reading_view(data.reading))
        paragraphs += [f"Out of reach here: {told}." for told in data.out_of_reach]
    return [Section("Data", "data", paragraphs, drawn, views)] if views else []


def in_short(datasets: pd.DataFrame) -> str:
    """How many there are and of which kind, and what that means."""
    counts = datasets["role"].value_counts(sort=False)
    kinds = [f"{n} {role}{'s' if n > 1 and role != 'official' else ''}" for role, n in counts.items()]
    own = wholes(datasets)
    said = f"{count(own['structures'].sum(), 'structure')} in {count(len(datasets), 'dataset')}: {', '.join(kinds)}."
    if len(own) < len(datasets):
        said += f" {len(datasets) - len(own)} of them are parts of another, and are counted once."
    return " ".join([said, *(text for role, text in MEANING.items() if role in counts)])


def dataset_figures(data: DataTables, figures: Path) -> list[Figure]:
    """Imbalance, elements and distributions; without statistics only the first."""
    drawn = [imbalance_bars(data.datasets, figures, "data-imbalance")]
    if len(data.elements):
        drawn.append(element_table(data.datasets, data.elements, figures, "data-elements"))
        drawn.append(element_tables(data.datasets, data.elements, figures, "data-elements-by-dataset"))
    if len(data.distributions):
        drawn.append(distribution_rows(data.datasets, data.distributions, figures, "data-distributions"))
    return drawn


def role(row: dict[str, Any]) -> str:
    """`stand-in for OC2020`."""
    return f"{row['role']} {PREPOSITION[row['role']]} {row['head']}"


def source(row: dict[str, Any]) -> str:
    """Where a dataset comes from, without the digests of files."""
    return re.sub(r",? sha256 [0-9a-f]{64}", "", row["source"] or DASH)


def datasets_view(rows: list[dict[str, Any]]) -> View:
    """What each dataset is and holds."""
    columns = [
        "data", "source", "level of theory", "structures", "original", "left out", "atoms", "groups, about",
        "atoms each: median, largest", "elements", "periodic", "|F| rms, max (eV/\N{ANGSTROM SIGN})",
        "stress rms (eV/\N{ANGSTROM SIGN}\N{SUPERSCRIPT THREE})", "neighbours",
    ]  # fmt: skip
    body = [
        [
            role(r), source(r), r["level"] or DASH, number(r["structures"], ","),
            number(r["original_count"], ",.0f"), number(r["left_out"], ","), number(r["atoms"], ",.0f"),
            number(r["groups"], ",.0f"), pair(r["size_median"], r["size_max"], ".0f"),
            number(r["elements"], ".0f"), number(r["periodic_share"], ".0%"),
            pair(r["force_rms"], r["force_max"]), number(r["stress_rms"], ".2g"),
            number(r["neighbours"], ".1f"),
        ]
        for r in rows
    ]  # fmt: skip
    note = (
        "Original: structures of the dataset that the head is named after, as published or listed. Medians are right"
        " to 1%, groups (molecules, materials, trajectories that no split parts) to about 3%. A dash: no such labels,"
        " or not known. Digests of the sources are in tables/datasets.csv."
    )
    return View("Datasets", columns, body, note)


def energies_view(rows: list[dict[str, Any]]) -> View:
    """Reference energies and what is left beyond them."""
    columns = [
        "data", "elements told apart", "not determined alone", "MAE of the references (eV/atom)",
        "sd beyond them (eV/atom)", "1% .. 99% (eV/atom)",
    ]  # fmt: skip
    body = [
        [
            role(r), number(r["reference_rank"], ".0f"), r["elements_undetermined"] or "none",
            number(r["reference_mae_ev_per_atom"]), number(r["energy_sd"]),
            f"{number(r['energy_low'])} .. {number(r['energy_high'])}",
        ]
        for r in rows
    ]  # fmt: skip
    note = (
        "One energy per element and dataset, by least squares of the energy per atom on the composition. Not determined"
        " alone: elements of which the data knows only sums, as of two that always come in one ratio."
    )
    return View("Reference energies", columns, body, note)


def conversions_view(rows: list[dict[str, Any]]) -> View:
    """Whom each dataset is owed to and how it was converted."""
    columns = [
        "data", "licence", "attribution", "read", "left out", "splits", "structures/s", "workers", "store (MB)",
        "edges stored",
    ]  # fmt: skip
    body = [
        [
            role(r), r["licence"] or DASH, r["attribution"] or DASH, number(r["read"], ","),
            r["left_out_kinds"] or "none", r["splits"] or DASH, number(r["structures_per_s"]),
            number(r["workers"], ".0f"), number(None if r["store_bytes"] is None else r["store_bytes"] / 1e6), edges(r),
        ]
        for r in rows
    ]  # fmt: skip
    return View("Licences and conversions", columns, body)


def pair(one: float | None, other: float | None, spec: str = ".3g") -> str:
    """Two numbers, or one dash for none."""
    return DASH if one is None else f"{number(one, spec)}, {number(other, spec)}"


def edges(row: dict[str, Any]) -> str:
    """`at most 20 within 5 angstrom`, or that there are none."""
    if not row["edges"]:
        return "no"
    most = f"at most {row['max_neighbours']:.0f}" if row["max_neighbours"] else "all"
    return f"{most} within {row['cutoff']:g} \N{ANGSTROM SIGN}"


def read_sets(row: Mapping[Any, Any]) -> str:
    """`16, 14 of them stand-ins`, or their names where they are few."""
    names = row["sets"].split(", ")
    said = row["sets"] if len(names) <= 3 else str(len(names))
    return said + (f", {row['stand_ins']} of them stand-ins" if row["stand_ins"] else "")


def reading_view(reading: pd.DataFrame) -> View:
    """Every run of reading, with intervals, beside its floor."""
    columns = [
        "mode", "system", "nodes", "ranks", "replica width", "sets", "\N{MICRO SIGN}s per sample [interval]",
        "floor (\N{MICRO SIGN}s)", "samples/s, all ranks [interval]", "MB/s, all ranks", "bytes per sample", "open (s)",
        "memory per rank (MiB)", "batch", "n",
    ]  # fmt: skip
    body = [
        [
            r["mode"], r["system"], number(r["nodes"], ".0f"), str(r["ranks"]), number(r["width"], ".0f"), read_sets(r),
            interval(r["us_per_sample"], r["us_low"], r["us_high"]), number(r["floor_us"]),
            interval(r["samples_per_s"], r["samples_per_s_low"], r["samples_per_s_high"]), number(r["mb_per_s"]),
            number(r["bytes_per_sample"], ",.0f"), number(r["open_s"], ".2g"),
            number(None if r["rss_bytes"] is None else r["rss_bytes"] / 2**20, ".0f"), str(r["batch"]),
            str(r["batches"]),
        ]
        for r in reading.to_dict("records")
    ]  # fmt: skip
    note = (
        f"Medians over n batches with order-statistic intervals ({number(100 * reading['coverage'].min(), '.1f')}%"
        " coverage); the time of a batch is that of the slowest rank. Ranks in one process or on one host share its"
        " disk and memory."
    )
    return View("Reading", columns, body, note)
