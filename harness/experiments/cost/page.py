"""The page on what runs cost: energy, GPU-hours, use of the machine; and the columns of it that stand beside rates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import DASH, Cell, Section, View, lines, number, raw_records
from harness.document.figures import STYLE, Figure, kept
from harness.experiments.cost.metrics import CostTables
from harness.protocol.text import count

SHOWN = 60
GIB = 2**30
SECONDS_AN_HOUR = 3600.0
# Column of a table of costs -> head of a column beside rates, and how its numbers are printed.
BESIDE = {
    "energy_per_result_j": ("J/{result}", ".3g"),
    "gpu_hours": ("GPU-hours", ".3g"),
    "counted_gflop_per_s": ("counted GFLOP/s", ".3g"),
    "counted_gb_per_s": ("counted GB/s", ".3g"),
}


def with_costs(view: View, rows: pd.DataFrame) -> View:
    """The view, whose rows are those of the table, with what each cost; unchanged where nothing of it is known."""
    columns, body = list(view.columns), [list(row) for row in view.rows]
    for name, (head, spec) in BESIDE.items():
        if name in rows and rows[name].notna().any():
            units = rows["result"].dropna().unique()
            columns.append(head.format(result=units[0] if len(units) == 1 else "result"))
            for row, value in zip(body, rows[name].tolist(), strict=True):
                row.append(number(value, spec))
    return replace(view, columns=columns, rows=body)


def cost_sections(tables: CostTables, figures: Path) -> list[Section]:
    """One section; draws its figures into the folder. None where no case has telemetry."""
    known = tables.cases[tables.cases["source"].notna()]
    if known.empty:
        return []
    drawn = []
    if known["energy_j"].notna().any():
        drawn.append(bars(known[known["energy_j"].notna()], figures))
    elif known["busy_cores"].notna().any():
        drawn.append(cores(known, figures))
    views = [campaigns_view(tables.cases), cases_view(known)]
    pieces = tables.pieces[tables.pieces["energy_j"].notna()]
    if len(pieces):
        views.append(pieces_view(pieces))
    views.append(sources_view(tables.sources))
    return [Section("What runs cost", "cost", paragraphs(tables, known), drawn, views)]


def paragraphs(tables: CostTables, known: pd.DataFrame) -> list[str]:
    """What telemetry there is, and how far it goes."""
    said = [
        f"{len(known)} of {count(len(tables.cases), 'case')} {'has' if len(known) == 1 else 'have'} telemetry,"
        f" sampled every {number(known['interval_s'].median())} s in the median."
        " Energy comes from counters where there are any"
        " (last minus first, resets mended), else from power, integrated; to each case, trial, epoch and stage by"
        " its times and nodes, with straight lines between samples."
    ]
    without = known[known["energy_j"].isna()]
    if len(without):
        reasons = ", ".join(f"{n}: {why}" for why, n in without["why_not"].value_counts().items())
        said.append(f"Without a number for energy are {len(without)} of them ({reasons}). None is made up for these.")
    withheld = tables.pieces[tables.pieces["energy_j"].isna()]
    if len(withheld):
        kinds = withheld["why_not"].str.split(":").str[0].value_counts()
        reasons = ", ".join(f"{n} {why}" for why, n in kinds.items())
        said.append(f"Of epochs, trials, stages and precisions, {len(withheld)} have none: {reasons}.")
    if known["sampler_share"].notna().any():
        share = known["sampler_share"]
        said.append(
            f"The harness's own sampler took {share.median():.2%} of one core in the median case,"
            f" {share.max():.2%} at most."
        )
    return said


def campaigns_view(cases: pd.DataFrame) -> View:
    """A row a campaign."""
    columns = ["campaign", "cases", "with telemetry", "with energy", "hours", "GPU-hours", "node-hours", "energy (kJ)",
               "of what"]  # fmt: skip
    body = []
    for campaign, own in cases.groupby("campaign", sort=False):
        energies = own["energy_j"].dropna()
        scopes = ", ".join(own.loc[energies.index, "energy_scope"].unique())
        body.append(
            [
                str(campaign), str(len(own)), str(int(own["source"].notna().sum())), str(len(energies)),
                number(own["seconds"].sum() / SECONDS_AN_HOUR),
                number(own["gpu_hours"].sum() if own["gpu_hours"].notna().any() else None),
                number(own["node_hours"].sum()), number(energies.sum() / 1e3 if len(energies) else None),
                scopes or DASH,
            ]
        )  # fmt: skip
    return View("Campaigns", columns, body, "Energy of the cases that have it; the others are not in the sum.")


def cases_view(known: pd.DataFrame) -> View:
    """A row a case, of the first so many."""
    columns = [
        "case", "precision", "seconds", "nodes", "energy (kJ)", "of", "by", "mean power (W)", "J/result", "result",
        "GPU-hours", "GPU use (%)", "GPU memory, most (%)", "GPU, hottest (\N{DEGREE SIGN}C)", "busy cores a node",
        "host memory, most (GiB)", "network (GB)", "counted GFLOP/s", "counted GB/s", "why no energy", "raw records",
    ]  # fmt: skip
    body: list[list[Cell]] = [
        [
            r["case"], r["precision"] or DASH, number(r["seconds"]), nodes(r),
            number(scaled(r["energy_j"], 1e3)), r["energy_scope"] or DASH, r["energy_by"] or DASH,
            number(r["power_w"]), number(r["energy_per_result_j"]), r["result"] or DASH, number(r["gpu_hours"]),
            number(r["accelerator_utilization_percent"]), number(r["accelerator_memory_highest_percent"]),
            number(r["accelerator_temperature_highest_c"]), number(r["busy_cores"]),
            number(scaled(r["host_memory_used_highest_bytes"], GIB)), number(network(r)),
            number(r["counted_gflop_per_s"]), number(r["counted_gb_per_s"]), r["why_not"] or DASH,
            raw_records(r["folder"]),
        ]
        for r in lines(known.head(SHOWN))
    ]  # fmt: skip
    more = f" The first {SHOWN} of {len(known)}; all are in tables/cost_cases.csv." if len(known) > SHOWN else ""
    note = (
        "Host memory is the node's, whoever uses it. Counted: operations (of all lanes of a wavefront) and bytes of"
        f" device memory by hardware counters, over the whole case.{more}"
    )
    told = [k for k in range(len(columns)) if any(row[k] != DASH for row in body)]
    return View("Cases", [columns[k] for k in told], [[row[k] for k in told] for row in body], note)


def pieces_view(pieces: pd.DataFrame) -> View:
    """A row a kind of piece of a case, of those with energy."""
    columns = ["case", "piece", "pieces", "J/result [lowest, highest]", "result", "mean power (W)"]
    body = []
    for (case, what), own in pieces.groupby(["case", "what"], sort=False):
        named = own.groupby("name", sort=False) if what in ("stage", "precision") else [("", own)]
        for name, rows in named:
            per = rows["energy_per_result_j"]
            body.append(
                [
                    str(case), f"{what} {name}".strip(), str(len(rows)),
                    f"{number(per.median())} [{number(per.min())}, {number(per.max())}]", rows["result"].iloc[0],
                    number(rows["power_w"].median()),
                ]
            )  # fmt: skip
    note = "Median; all are in tables/cost_pieces.csv."
    return View("Epochs, trials, stages, precisions", columns, body[:SHOWN], note)


def sources_view(sources: pd.DataFrame) -> View:
    """The files, one row for those that are alike."""
    body = []
    for (campaign, kind, version), own in sources.groupby(["campaign", "kind", "version"], sort=False):
        wrong = own[own["faults"] != ""]
        first = f"{Path(wrong['path'].iloc[0]).name}: {wrong['faults'].iloc[0]}" if len(wrong) else "nothing"
        more = f"; {count(len(wrong) - 1, 'more file')} in tables/cost_sources.csv" if len(wrong) > 1 else ""
        body.append([str(campaign), str(kind), str(version) or DASH, str(len(own)), first + more])
    note = "What was wrong is mended where that is safe, else left out; what is left out is in no number."
    return View("Telemetry", ["campaign", "kind", "collector", "files", "what was wrong"], body, note)


def nodes(row: Any) -> str:
    """`64`, or `62 of 64`."""
    return (
        f"{row['nodes']:.0f}" if row["nodes"] == row["nodes_seen"] else f"{row['nodes_seen']:.0f} of {row['nodes']:.0f}"
    )


def network(row: Any) -> float | None:
    """Gigabytes received and sent by the nodes' interfaces."""
    both = [row[name] for name in ("received_bytes", "sent_bytes") if row[name] is not None]
    return sum(both) / 1e9 if both else None


def scaled(value: float | None, unit: float) -> float | None:
    """In another unit."""
    return None if value is None else value / unit


def bars(known: pd.DataFrame, figures: Path) -> Figure:
    """Energy of each useful result, case by case."""
    rows = known[known["energy_per_result_j"] > 0]
    if rows.empty:
        caption = f"Energy of each case, of {', '.join(known['energy_scope'].unique())}."
        return _horizontal(known, known["energy_j"] / 1e3, "kJ", "cost-energy", caption, figures, log=False)
    caption = (
        "Energy of each useful result (structure, candidate, trial, ...), a bar a case, of"
        f" {', '.join(rows['energy_scope'].unique())}."
    )
    return _horizontal(rows, rows["energy_per_result_j"], "J a result", "cost-energy", caption, figures, log=True)


def cores(known: pd.DataFrame, figures: Path) -> Figure:
    """Busy cores, case by case, where there is no energy to show."""
    rows = known[known["busy_cores"].notna()]
    caption = "Cores at work on a node, mean over the case, whoever kept them busy: no sensor tells of energy here."
    return _horizontal(rows, rows["busy_cores"], "busy cores a node", "cost-cores", caption, figures, log=False)


def _horizontal(
    rows: pd.DataFrame, values: pd.Series[float], label: str, name: str, caption: str, figures: Path, *, log: bool
) -> Figure:
    rows, values = rows.head(SHOWN), values.head(SHOWN)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.4, 0.9 + 0.21 * max(len(rows), 2)), layout="constrained")
        places = range(len(rows))
        axes.barh(places, values.tolist(), color="#0072b2", height=0.7)
        axes.set_yticks(list(places), rows["case"].tolist(), fontsize=7)
        axes.invert_yaxis()
        if log:
            axes.set_xscale("log")
        axes.set_xlabel(label)
        return kept(figure, figures, name, caption)
