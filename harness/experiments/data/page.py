"""The page on the datasets, their imbalance, and the rates at which they are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    interval_cell,
    list_rows,
    number_cell,
    text_cell,
)
from harness.document.figures import Figure
from harness.experiments.data.figures import (
    draw_distributions,
    draw_elements,
    draw_elements_by_dataset,
    draw_imbalance,
    draw_reading,
)
from harness.experiments.data.metrics import exclude_subsets, list_unavailable_modes
from harness.experiments.experiment import PageContext
from harness.protocol.text import pluralize
from harness.results.tables import Row

ORIGIN_MEANINGS = {
    "sample": "A sample is a random part of the dataset itself.",
    "stand-in": (
        "A stand-in is a set of real labelled data that replaces a dataset, and whose chemistry or level of theory"
        " differs from it; its numbers do not describe that dataset."
    ),
}
# The word between the origin of a dataset and the name of its head.
PREPOSITIONS = {"official": "files of", "sample": "of", "stand-in": "for"}


def build_sections(context: PageContext) -> list[Section]:
    """Return one section, or none if no dataset was converted or read."""
    tables = context.tables
    datasets, reading = tables["datasets"], tables["reading"]
    paragraphs, figures, blocks = [], [], []
    if len(datasets):
        rows = list_rows(datasets)
        paragraphs.append(describe_datasets(datasets))
        figures += draw_datasets(datasets, tables["elements"], tables["distributions"], context.figures)
        blocks += [build_datasets_block(rows), build_energies_block(rows), build_conversions_block(rows)]
    if len(reading):
        for system, group in reading.groupby("system"):
            figures.append(draw_reading(group, context.figures, f"data-reading-{system}"))
        blocks.append(build_reading_block(reading))
        paragraphs += [f"Some modes were not run: {reason}." for reason in list_unavailable_modes(context.records)]
    return [Section("Data", "data", paragraphs, figures, blocks, finding=summarize_sizes(datasets))] if blocks else []


def summarize_sizes(datasets: pd.DataFrame) -> str:
    """Return how unequal the sizes of the datasets are; empty without datasets."""
    sizes = [r["structures"] for r in list_rows(exclude_subsets(datasets)) if r["structures"]] if len(datasets) else []
    if not sizes:
        return ""
    total = f"{pluralize(sum(sizes), 'structure')} in {pluralize(len(sizes), 'dataset')}"
    return f"{total}; the largest dataset has {max(sizes) / min(sizes):,.0f} times as many as the smallest"


def describe_datasets(datasets: pd.DataFrame) -> str:
    """Return a paragraph on the number of datasets of each origin, and on what these origins mean."""
    counts = datasets["data_origin"].value_counts(sort=False)
    kinds = [f"{n} {origin}{'s' if n > 1 and origin != 'official' else ''}" for origin, n in counts.items()]
    counted = exclude_subsets(datasets)
    total = pluralize(counted["structures"].sum(), "structure")
    text = f"{total} in {pluralize(len(datasets), 'dataset')}: {', '.join(kinds)}."
    if len(counted) < len(datasets):
        n_subsets = len(datasets) - len(counted)
        text += f" {n_subsets} of them are subsets of another dataset; their structures are counted once."
    return " ".join([text, *(meaning for origin, meaning in ORIGIN_MEANINGS.items() if origin in counts)])


def draw_datasets(
    datasets: pd.DataFrame, elements: pd.DataFrame, distributions: pd.DataFrame, folder: Path
) -> list[Figure]:
    """Draw imbalance, elements and distributions; elements and distributions need statistics."""
    figures = [draw_imbalance(datasets, folder, "data-imbalance")]
    if len(elements):
        figures.append(draw_elements(datasets, elements, folder, "data-elements"))
        figures.append(draw_elements_by_dataset(datasets, elements, folder, "data-elements-by-dataset"))
    if len(distributions):
        figures.append(draw_distributions(datasets, distributions, folder, "data-distributions"))
    return figures


def describe_origin(row: Mapping[str, Any]) -> str:
    """Return the origin of a dataset with the name of its head: `stand-in for OC2020`."""
    return f"{row['data_origin']} {PREPOSITIONS[row['data_origin']]} {row['head']}"


def describe_source(row: Mapping[str, Any]) -> str:
    """Return the source of a dataset, without the digests of files."""
    return re.sub(r",? sha256 [0-9a-f]{64}", "", row["source"] or EN_DASH)


def build_datasets_block(rows: list[Row]) -> TableBlock:
    """Return the table of datasets, with the origin and the content of each."""
    columns: list[Column] = [
        ("data", describe_origin),
        ("source", describe_source),
        ("level of theory", text_cell("level_of_theory")),
        ("structures", number_cell("structures", ",")),
        ("published structures", number_cell("published_structures", ",.0f")),
        ("structures left out", number_cell("excluded", ",")),
        ("atoms", number_cell("atoms", ",.0f")),
        ("groups (estimate)", number_cell("groups", ",.0f")),
        ("atoms per structure: median, largest", lambda r: format_pair(r["size_median"], r["size_max"], ".0f")),
        ("elements", number_cell("elements", ".0f")),
        ("periodic structures", number_cell("periodic_fraction", ".0%")),
        (
            "|F| rms, max (eV/\N{ANGSTROM SIGN})",
            lambda r: format_pair(r["force_rms_ev_per_angstrom"], r["force_max_ev_per_angstrom"]),
        ),
        ("stress rms (eV/\N{ANGSTROM SIGN}\N{SUPERSCRIPT THREE})", number_cell("stress_rms_ev_per_angstrom3", ".2g")),
        ("neighbours per atom", number_cell("neighbours", ".1f")),
    ]
    note = (
        "Published structures are those of the dataset that the head is named after. Groups are molecules, materials or"
        " trajectories; all structures of a group are in the same split. Medians are accurate to 1%, numbers of groups"
        " to about 3%. A dash marks missing labels or unknown values. Digests of the sources are in"
        " tables/datasets.csv."
    )
    return build_block("Datasets", rows, columns, note)


def build_energies_block(rows: list[Row]) -> TableBlock:
    """Return the table of the reference energies of each dataset, and of the energies relative to the references."""
    columns: list[Column] = [
        ("data", describe_origin),
        ("rank of the fit", number_cell("reference_matrix_rank", ".0f")),
        ("elements not determined separately", text_cell("undetermined_elements", "none")),
        ("MAE of the fit (eV/atom)", number_cell("reference_mae_ev_per_atom")),
        ("SD of energies relative to the references (eV/atom)", number_cell("energy_std_ev_per_atom")),
        (
            "quantiles 1% to 99% of these energies (eV/atom)",
            lambda r: f"{format_number(r['energy_low_ev_per_atom'])} to {format_number(r['energy_high_ev_per_atom'])}",
        ),
    ]
    note = (
        "A reference energy per element and dataset is the result of a least-squares fit of the energy per atom to the"
        " composition. The rank of the fit is the number of independent energies that the data determine. Elements are"
        " not determined separately if the data determine only a sum of their energies, for example for two elements"
        " that always occur in the same ratio."
    )
    return build_block("Reference energies", rows, columns, note)


def build_conversions_block(rows: list[Row]) -> TableBlock:
    """Return the table of the licence and the conversion of each dataset."""
    columns: list[Column] = [
        ("data", describe_origin),
        ("licence", text_cell("licence")),
        ("attribution", text_cell("attribution")),
        ("structures read", number_cell("structures_read", ",")),
        ("structures left out", text_cell("excluded_kinds", "none")),
        ("splits", text_cell("splits")),
        ("conversion (structures/s)", number_cell("structures_per_s")),
        ("workers", number_cell("workers", ".0f")),
        ("store (MB)", number_cell("store_bytes", scale=1e-6)),
        ("edges stored", describe_edges),
    ]
    return build_block("Licences and conversions", rows, columns)


def format_pair(first: float | None, second: float | None, spec: str = ".3g") -> str:
    """Return two numbers as text, or a dash if the first is missing."""
    return EN_DASH if first is None else f"{format_number(first, spec)}, {format_number(second, spec)}"


def describe_edges(row: Mapping[str, Any]) -> str:
    """Return the stored edges as text: `at most 20 within 5 angstrom`, or `no`."""
    if not row["edges"]:
        return "no"
    number = f"at most {row['max_neighbours']:.0f}" if row["max_neighbours"] else "all"
    return f"{number} within {row['cutoff']:g} \N{ANGSTROM SIGN}"


def format_datasets(row: Mapping[str, Any]) -> str:
    """Return the names of at most three datasets, or their number: `16, 14 of them stand-ins`."""
    names = row["datasets"].split(", ")
    text = row["datasets"] if len(names) <= 3 else str(len(names))
    return text + (f", {row['stand_ins']} of them stand-ins" if row["stand_ins"] else "")


def build_reading_block(reading: pd.DataFrame) -> TableBlock:
    """Return the table of the times and rates of reading, with a row per run and mode."""
    columns: list[Column] = [
        ("mode", "read_mode"),
        ("system", "system"),
        ("nodes", number_cell("nodes", ".0f")),
        ("ranks", "ranks"),
        ("ranks per copy", number_cell("ranks_per_copy", ".0f")),
        ("datasets", format_datasets),
        (
            "\N{MICRO SIGN}s per sample [interval]",
            interval_cell("us_per_sample", "us_per_sample_low", "us_per_sample_high"),
        ),
        ("fastest possible read (\N{MICRO SIGN}s)", number_cell("lower_bound_us")),
        ("samples/s, all ranks [interval]", interval_cell("samples_per_s")),
        ("MB/s, all ranks", number_cell("mb_per_s")),
        ("bytes per sample", number_cell("bytes_per_sample", ",.0f")),
        ("opening of the stores (s)", number_cell("open_s", ".2g")),
        ("memory per rank (MiB)", number_cell("rss_bytes", ".0f", 2**-20)),
        ("samples per batch and rank", "batch_size"),
        ("n", "batches"),
    ]
    note = (
        "Medians over n batches with order-statistic intervals"
        f" ({format_number(100 * reading['coverage'].min(), '.1f')}% coverage). The time of a batch is the time of the"
        " slowest rank. Ranks per copy is the number of ranks that share a copy of the data in the mode `distributed`."
        " The fastest possible read is a copy of as many bytes in memory. Ranks on one host share the disk and the"
        " memory of the host."
    )
    return build_block("Reading", list_rows(reading), columns, note)
