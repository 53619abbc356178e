"""The section of the report on weak and strong scaling."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.report.blocks import Section, View, interval, number
from harness.report.figures import scaling_lines


def scaling_section(rows: pd.DataFrame, figures: Path) -> Section:
    """Throughput of training over ranks, for one campaign."""
    columns = [
        "case", "nodes", "ranks", "graphs a step", "graphs/s [lowest, highest]", "efficiency", "communication",
        "waiting for data", "gradient error", "divergence",
    ]  # fmt: skip
    table = [
        [
            r["case"], str(r["nodes"]), str(r["ranks"]), f"{r['global_batch']:,}",
            interval(r["graphs_per_s"], r["lowest"], r["highest"]), number(r["efficiency"], ".0%"),
            number(r["communication"], ".0%"), number(r["waiting"], ".1%"), number(r["gradient_error"], ".1e"),
            number(r["divergence"], ".1e"),
        ]
        for r in rows.to_dict("records")
    ]  # fmt: skip
    note = (
        "Ranks as they were found running, not as asked for. Efficiency: throughput per rank over that of the smallest"
        " run of the mode. Communication: 1 - time of the same steps without it / time with it. Waiting for data: share"
        " of the time of training. Gradient error: of the ranks' mean gradient against one process, over the largest"
        " gradient. Divergence: of the ranks' parameters after training."
    )
    paragraphs = [f"{rows['data'].iloc[0]}, {rows['precision'].iloc[0].upper()}, {rows['device'].iloc[0]}."]
    shared = rows[(rows["hosts"] < rows["nodes"]) | (rows["ranks"] > rows["cores"] * rows["hosts"])]
    if len(shared):
        paragraphs.append(
            f"{len(shared)} of {len(rows)} runs had more ranks than cores, or nodes emulated on one host: they show"
            " that training ran and computed the same, but not how it scales."
        )
    name = f"scaling-{rows['campaign'].iloc[0]}"
    drawn = [scaling_lines(rows, figures, name)] if len(rows) > 1 else []
    title = f"Scaling on {rows['system'].iloc[0]}"
    return Section(title, name, paragraphs, figures=drawn, views=[View("Runs", columns, table, note)])
