"""The section of the report on screenings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd

from harness.document.blocks import DASH, Cell, Section, View, lines, number, raw_records
from harness.document.figures import STYLE, Figure, kept
from harness.experiments.cost.page import with_costs
from harness.experiments.screening.metrics import ScreeningTables
from harness.protocol.text import count

KINDS = {"training": "#bdbdbd", "held out": "#0072b2", "candidates": "#e69f00", "random box": "#d55e00"}
SHOWN = 12
UNITS = ((60.0, 1.0, "s"), (3600.0, 60.0, "min"), (86400.0, 3600.0, "h"), (3.2e7, 86400.0, "days"))


def screening_sections(tables: ScreeningTables, figures: Path) -> list[Section]:
    """A section for each campaign; draws its figures into the folder."""
    return [campaign_section(str(c), tables, figures) for c in tables.runs["campaign"].unique()]


def campaign_section(campaign: str, tables: ScreeningTables, figures: Path) -> Section:
    """What the screenings of one campaign came to."""
    runs, times, best, trust, labels, relaxed, places = (
        t[t["campaign"] == campaign]
        for t in (tables.runs, tables.times, tables.best, tables.trust, tables.labels, tables.relaxed, tables.places)
    )
    drawn = [
        embedding(own, str(case), figures, f"{campaign}-{case}-embedding")
        for case, own in places.groupby("case", sort=False)
    ]
    views = [runs_view(runs), times_view(times), trust_view(trust)]
    views += [v for v in (labels_view(labels), best_view(best), relaxed_view(relaxed)) if v.rows]
    return Section("Screening", f"screening-{campaign}", paragraphs(runs), drawn, views)


def paragraphs(runs: pd.DataFrame) -> list[str]:
    """What was screened, and whether nothing was left out or taken twice."""
    proven = int(runs["proven"].sum())
    said = [
        f"{count(len(runs), 'screening')}, {count(runs['candidates'].sum(), 'candidate')};"
        f" of {proven} of them a checksum over"
        " the indices"
        " proves that every candidate was taken once. The rate of the device alone counts evaluation, as the"
        " paper's does;"
        " end to end also what makes candidates and neighbour lists, moves them and writes results."
    ]
    weak = []
    for workload, own in runs.groupby("workload", sort=False):
        first, most = own.iloc[own["ranks"].argmin()], own.iloc[own["ranks"].argmax()]
        if most["ranks"] > first["ranks"]:
            share = most["per_rank_per_s"] / first["per_rank_per_s"]
            weak.append(
                f"{workload}: {share:.0%} of the rate of a rank is left from {first['ranks']} to {most['ranks']} ranks"
            )
    if weak:
        said.append("Weak scaling, " + "; ".join(weak) + ".")
    for why, own in runs[runs["why_eager"].notna()].groupby("why_eager"):
        said.append(f"Not compiled, {count(len(own), 'screening')}: {why}.")
    for why, own in runs[runs["why_plain"].notna()].groupby("why_plain"):
        said.append(f"Plain messages in place of fused ones, {count(len(own), 'screening')}: {why}.")
    return said


def runs_view(runs: pd.DataFrame) -> View:
    """A row a screening."""
    columns = [
        "workload", "messages", "ranks", "candidates", "left out", "not ranked", "atoms", "edges", "device alone (1/s)",
        "end to end (1/s)", "end to end / device", "making them / evaluating", "memory, last / median",
        "taken once", "raw records",
    ]  # fmt: skip
    body: list[list[Cell]] = [
        [
            f"{r['workload']}, {r['precision']}", r["messages"] or DASH, str(r["ranks"]), f"{r['candidates']:,}",
            r["left_out"] or DASH, r["unranked"] or DASH, number(r["atoms"]), number(r["edges"]),
            number(r["device_per_s"]), number(r["end_to_end_per_s"]), number(r["share"], ".0%"),
            number(r["make_share"], ".0%"),
            number(r["memory_growth"]), "proven" if r["proven"] else "NOT PROVEN", raw_records(r["folder"]),
        ]
        for r in lines(runs)
    ]  # fmt: skip
    note = (
        "Rates of all ranks together; atoms and edges of a candidate on average; the first batch, with"
        " compilation, is not"
        " in the rates. Left out: by filters, for coincident atoms, or because the model gave no finite number. Not"
        " ranked: evaluated, but with elements that no single head was trained on, or atoms closer than any in"
        " training, so that the scores mean nothing; they are in no table of results. Memory"
        " of a rank at the end over the median after its parts: it rises with batches larger than any before, not with"
        " the number of candidates."
    )
    return with_costs(View("Rates", columns, body, note), runs)


def times_view(times: pd.DataFrame) -> View:
    """Seconds for the paper's count."""
    columns = ["case", "machine", "ranks", "1.129e9 candidates take", "basis"]
    body = [
        [str(r["case"]), str(r["machine"]), f"{r['ranks']:,}", duration(r["seconds"]), r["basis"]] for r in lines(times)
    ]
    note = (
        "The paper: 50 s on 9,408 nodes of Frontier, device work alone. Projected: as many ranks as the machine has"
        " accelerators or tiles, each as fast as one core here, which they are not; it tells what is asked of each."
    )
    return View("Time for the paper's count of candidates", columns, body, note)


def duration(seconds: float) -> str:
    """`50 s`, `3.2 h`, `41 days`."""
    for below, unit, word in UNITS:
        if seconds < below:
            return f"{number(seconds / unit)} {word}"
    return f"{number(seconds / 3.156e7)} years"


def trust_view(trust: pd.DataFrame) -> View:
    """Every number that bears on trust."""
    columns = ["case", "what", "of", "value", "unit", "structures"]
    body = [
        [str(r["case"]), r["what"], r["kind"], number(r["value"]), r["unit"], number(r["n"] or None, ".0f")]
        for r in lines(trust)
        if r["value"] is not None
    ]
    note = (
        "On a random sample of the candidates. A structure is flagged whose embedding lies further from the"
        " training sets"
        " than the threshold, which was set on structures held out of training; false alarms are of others. Dropout is"
        " put on the features that the heads read; the shipped model was trained without it."
    )
    return View("How far to trust it", columns, body, note)


def labels_view(labels: pd.DataFrame) -> View:
    """Errors of calculated candidates."""
    columns = [
        "case", "candidates", "count", "MAE (eV/atom)", "median", "worst", "force MAE (eV/\N{ANGSTROM SIGN})", "median",
        "head", "calculated at",
    ]  # fmt: skip
    body = [
        [
            str(r["case"]), "flagged" if r["flagged"] else "not flagged", str(r["candidates"]),
            number(r["mae_ev_per_atom"]), number(r["median_ev_per_atom"]), number(r["worst_ev_per_atom"]),
            number(r["force_mae_ev_per_a"]), number(r["force_median_ev_per_a"]), r["head"], r["level"],
        ]
        for r in lines(labels)
    ]  # fmt: skip
    note = "Candidates of the elements that this head was trained on, drawn at random over the whole space."
    return View("A random subset calculated", columns, body, note)


def best_view(best: pd.DataFrame) -> View:
    """The first of best.csv."""
    columns = ["case", "place", "candidate", "formula", "prototype", "beyond elements (eV/atom)", "spread", "distance"]
    body = [
        [
            str(r["case"]), str(r["place"]), str(r["candidate"]), r["formula"] or DASH, r["prototype"] or DASH,
            number(r["beyond_ev_per_atom"]), number(r["spread_ev_per_atom"]), number(r["distance"]),
        ]
        for r in lines(best[best["place"] <= SHOWN])
    ]  # fmt: skip
    return View("The best", columns, body, "More in best.csv of each case; all that was kept in its results-*.bp.")


def relaxed_view(relaxed: pd.DataFrame) -> View:
    """What relaxation did to the best."""
    columns = [
        "case",
        "candidate",
        "formula",
        "converged",
        "steps",
        "energy before, after (eV/atom)",
        "volume before, after",
        "file",
    ]
    body = [
        [
            str(r["case"]), str(r["candidate"]), r["formula"] or DASH, "yes" if r["converged"] else "no",
            str(r["steps"]),
            f"{r['before_ev_per_atom']:.4f}, {r['after_ev_per_atom']:.4f}",
            f"{r['volume_before']:.2f}, {r['volume_after']:.2f}", r["file"],
        ]
        for r in lines(relaxed)
    ]  # fmt: skip
    return View("The best, relaxed on the model", columns, body, "Volumes an atom, cubic \N{ANGSTROM SIGN}.")


def embedding(places: pd.DataFrame, case: str, folder: Path, name: str) -> Figure:
    """The plane of the first two principal components of the training sets' embeddings."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 4.0), layout="constrained")
        for kind, own in places.groupby("kind", sort=False):
            style: Any = {"color": KINDS.get(str(kind), "#cc79a7"), "ms": 3.2, "ls": "", "alpha": 0.75}
            axes.plot(own["x"], own["y"], "o", label=f"{kind} ({len(own)})", **style)
        axes.set_xlabel("first component / its deviation")
        axes.set_ylabel("second")
        axes.legend(frameon=False, fontsize=7.5)
        caption = (
            f"{case}: embeddings per atom along the first two principal components of the training sets; what"
            " lies beyond"
            " ten deviations is drawn at the edge. Numbers in brackets: structures drawn."
        )
        return kept(figure, folder, name, caption)
