"""The section of the report on weak and strong scaling."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.document.blocks import DASH, Section, View, interval, lines, number
from harness.document.figures import scaling_lines
from harness.experiments.cost.page import with_costs
from harness.experiments.scaling.metrics import REGIONS

MS = 1e3
ENDS = ("low", "high")


def scaling_section(rows: pd.DataFrame, projection: pd.DataFrame, figures: Path) -> Section:
    """Throughput of training over ranks, for one campaign, and its projection to more of them."""
    paragraphs = [f"{rows['data'].iloc[0]}, {rows['precision'].iloc[0].upper()}, {rows['device'].iloc[0]}."]
    shared = rows[(rows["hosts"] < rows["nodes"]) | (rows["ranks"] > rows["cores"] * rows["hosts"])]
    if len(shared):
        paragraphs.append(
            f"{len(shared)} of {len(rows)} runs had more ranks than cores, or nodes emulated on one host: they show"
            " that training ran and computed the same, but not how it scales; nothing is projected from them."
        )
    campaign = rows["campaign"].iloc[0]
    own = projection[projection["campaign"] == campaign]
    tested = own[own["basis"] == "held out"]
    if len(tested):
        off = tested["error"]
        paragraphs.append(
            f"The projection, made from smaller runs alone, is off by {off.min():+.0%} to {off.max():+.0%} on"
            f" {len(tested)} measured runs. What it says of more ranks is a projection, and no measurement."
        )
    name = f"scaling-{campaign}"
    drawn = [scaling_lines(rows, own, figures, name)] if len(rows) > 1 else []
    views = [runs_view(rows), regions_view(rows), *([projection_view(own)] if len(own) else [])]
    return Section(f"Scaling on {rows['system'].iloc[0]}", name, paragraphs, drawn, views)


def runs_view(rows: pd.DataFrame) -> View:
    """A row a run."""
    columns = [
        "case", "nodes", "ranks", "graphs a step", "graphs/s [lowest, highest]", "efficiency [lowest, highest]",
        "communication", "waiting for data", "edges, most over mean rank", "gradient error", "divergence",
    ]  # fmt: skip
    body = [
        [
            r["case"], str(r["nodes"]), str(r["ranks"]), f"{r['global_batch']:,}",
            interval(r["graphs_per_s"], r["lowest"], r["highest"]),
            f"{number(r['efficiency'], '.0%')} [{', '.join(number(r[f'efficiency_{k}'], '.0%') for k in ENDS)}]",
            number(r["communication"], ".0%"), number(r["waiting"], ".1%"), number(r["edges_imbalance"], ".2f"),
            number(r["gradient_error"], ".1e"), number(r["divergence"], ".1e"),
        ]
        for r in lines(rows)
    ]  # fmt: skip
    note = (
        "Ranks as they were found running, not as asked for. Efficiency: throughput per rank over that of the smallest"
        " run of the mode; from the slowest epoch of one over the fastest of the other, and the reverse. Communication:"
        " 1 - time of the same steps without it / time with it. Waiting for data: share of the time of training."
        " Gradient error: of the ranks' mean gradient against one process, over the largest gradient. Divergence: of"
        " the ranks' parameters after training."
    )
    return with_costs(View("Runs", columns, body, note), rows)


def regions_view(rows: pd.DataFrame) -> View:
    """Where a step's time goes."""
    columns = ["case", "ranks", *(f"{name.replace('_', ' ')} (ms)" for name in REGIONS)]
    body = [
        [r["case"], str(r["ranks"]), *(number(None if r[f"{n}_s"] is None else MS * r[f"{n}_s"]) for n in REGIONS)]
        for r in lines(rows)
    ]
    note = (
        "Steps done once more, cut up: nothing is prefetched, no gradient exchanged; median over steps of the slowest"
        " rank. In training, data, neighbour lists and collation happen in a thread beside the rest. Gradient: of the"
        " energies, for forces; backward: of the loss, through both."
    )
    return View("Where a step's time goes", columns, body, note)


def projection_view(own: pd.DataFrame) -> View:
    """Projected beside measured."""
    columns = [
        "mode", "ranks", "graphs a rank", "basis", "from up to (ranks)", "step, measured (ms)", "computing (ms)",
        "all-reduce (ms)", "step, projected (ms)", "if overlapped (ms)", "off by", "graphs/s", "network",
    ]  # fmt: skip
    body = [
        [
            r["mode"], f"{r['ranks']:,}", str(r["batch_size"]), r["basis"], str(r["from_ranks"]),
            *(number(None if r[k] is None else MS * r[k]) for k in
              ("measured_s", "compute_s", "communication_s", "projected_s", "overlapped_s")),
            number(r["error"], "+.0%"), number(r["graphs_per_s"], ",.0f"), r["network"] or DASH,
        ]
        for r in lines(own)
    ]  # fmt: skip
    note = (
        "Computing: expected time of the slowest of so many ranks, each with a batch drawn from the graphs that were"
        " dealt; a rank's time is linear in atoms and edges, with the scatter of measured steps. All-reduce: of the"
        " gradient, 2 log2(p) latencies and 2 (p - 1) / p of its bytes. Overlapped: hidden behind the backward pass as"
        " far as that goes. Held out: a measured run, projected from smaller ones."
    )
    return View("Projection", columns, body, note)
