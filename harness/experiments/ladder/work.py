"""What each stage of a ladder computes and moves, what it needs of memory, and where the last one's time goes."""

from __future__ import annotations

import math

import pandas as pd

from harness.document.blocks import View, number
from harness.results.runs import Record


def work_view(precision: str, rows: pd.DataFrame) -> View:
    """Arithmetic, traffic and memory of each stage of one case, beside what the machine can do."""
    columns = [
        "stage", "GFLOP/batch", "GB/batch", "FLOP/byte", "GFLOP/s", "attainable GFLOP/s", "of attainable",
        "of matrix peak", "peak memory (MiB)", "largest batch", "empty atoms", "empty edges", "shapes",
    ]  # fmt: skip
    body = [
        [
            r["stage"].replace("_", " "),
            number(r["gflop"]),
            number(r["gb"]),
            number(r["gflop"] / r["gb"]),
            number(r["gflop_per_s"]),
            number(r["attainable_gflop_per_s"]),
            percent(r["share_of_attainable"]),
            percent(r["share_of_matrix_peak"]),
            number(r["peak_bytes"] / 2**20, ".0f"),
            number(r["largest_batch"], ",.0f"),
            percent(r["empty_atoms"], ".1f"),
            percent(r["empty_edges"], ".1f"),
            number(r["shapes"], ".0f"),
        ]
        for _, r in rows.iterrows()
    ]
    note = (
        "Of the first batch. Arithmetic: matrix products and, where one operator makes them, messages; element-wise"
        " work is left out. Traffic: each operation's, or compiled kernel's, inputs and results, as if no cache held"
        " them. Attainable: the arithmetic at the rate of a product of the same shape and type, or the traffic at the"
        " rate of a copy, whichever takes longer, all measured in this run; what caches do"
        " hold can bring a stage above 100%. Of matrix peak: matrix products alone"
        " against square ones of the same types. Peak memory: what tensors of one call hold at once, the weights not"
        " counted; the largest batch is what free memory would hold at that rate, not tried. Empty: what static shapes"
        " fill up."
    )
    return View(f"{precision.upper()}: arithmetic, traffic and memory", columns, body, note)


def percent(share: float, form: str = ".0f") -> str:
    """`37%`, or a dash."""
    return number(100 * share, form) + ("" if math.isnan(share) else "%")


def profile_views(record: Record) -> list[View]:
    """Where the last stage spends its time: by kind of work, and by operation."""
    if record.profile is None:
        return []
    stage, precision = record.profile["stage"].replace("_", " "), record.case["parameters"]["precision"].upper()
    of = f"the time of {stage} goes, {precision}"
    said = "One profiled call; own time."
    groups = [[g["group"], f"{g['ms']:.2f}", percent(g["share"], ".1f")] for g in record.profile.get("groups", [])]
    rows = [
        [r["operation"], str(r["calls"]), f"{r['ms']:.2f}", percent(r["share"], ".1f")] for r in record.profile["rows"]
    ]
    by_group = View(f"Where {of}", ["kind of work", "ms", "share"], groups, said)
    note = f"{said} Compiled element-wise and gather/scatter kernels hold `_fused_`."
    by_operation = View(f"Operations: where {of}", ["operation", "calls", "ms", "share"], rows, note)
    return [by_group, by_operation] if groups else [by_operation]
