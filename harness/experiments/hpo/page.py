"""The section of the report on hyperparameter searches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from harness.document.blocks import DASH, Section, View, lines, number, raw_records
from harness.document.figures import Figure
from harness.experiments.cost.page import with_costs
from harness.experiments.hpo.figures import accuracy_against_throughput, best_so_far, tried
from harness.experiments.hpo.metrics import LEAST_TRIALS, STATES, SearchTables
from harness.experiments.training.page import NAMES
from harness.protocol.text import count

SEARCHES = {**NAMES, "mixed": "all backbones"}
SHOWN = 40
LIKELY = 0.05


def search_sections(tables: SearchTables, figures: Path) -> list[Section]:
    """A section for each campaign; draws its figures into the folder."""
    return [campaign_section(str(campaign), tables, figures) for campaign in tables.searches["campaign"].unique()]


def campaign_section(campaign: str, tables: SearchTables, figures: Path) -> Section:
    """What the searches of one campaign have found."""
    searches, trials, best, points, importance = (
        t[t["campaign"] == campaign]
        for t in (tables.searches, tables.trials, tables.best, tables.points, tables.importance)
    )
    drawn: list[Figure] = []
    if trials["objective"].notna().any():
        drawn = [
            best_so_far(trials, SEARCHES, figures, f"{campaign}-best"),
            accuracy_against_throughput(trials, SEARCHES, figures, f"{campaign}-front"),
        ]
        for case, own in points.groupby("case", sort=False):
            if own["objective"].notna().any():
                search = str(own["search"].iloc[0])
                title = f"Search of {SEARCHES.get(search, search)}"
                drawn.append(tried(own, title, figures, f"{campaign}-{case}-points"))
    views = [searches_view(searches), best_view(best), importance_view(importance), trials_view(trials)]
    title = f"Hyperparameter search on {searches['system'].iloc[0]}"
    return Section(title, f"search-{campaign}", paragraphs(searches, trials), drawn, views)


def paragraphs(searches: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """How many trials, what became of them, and what the search itself cost."""
    counts = [f"{n} {state}" for state in STATES if (n := int((trials["state"] == state).sum()))]
    said = [
        f"{count(len(searches), 'search', 'searches')} by Bayesian optimization (DeepHyper),"
        f" {count(len(trials), 'trial')}: {', '.join(counts)};"
        f" {number(trials['node_hours'].sum())} node-hours. Objective: -(MAE(E/atom) + MAE(F)) / 2 on validation"
        " structures, eV and eV/\N{ANGSTROM SIGN}; of a stopped trial, when it was stopped."
    ]
    if searches["stand_ins"].any():
        said.append(
            "Trained on the shipped sets, most of them stand-ins, and for minutes: the ranking of backbones here says"
            " nothing of the paper's."
        )
    unfinished = [f"{r['case']} ({r['state']}, {r['trials']} of {r['evaluations']})" for r in lines(searches)
                  if r["state"] != "done"]  # fmt: skip
    if unfinished:
        said.append(f"Not complete, and read as far as they went: {', '.join(unfinished)}.")
    return said


def searches_view(searches: pd.DataFrame) -> View:
    """A row a search."""
    columns = [
        "search", "trials", *STATES, "best (MAE(E)+MAE(F))/2", "hours", "node-hours", "time in trials (s)",
        "optimizer, of that time", "told of earlier trials", "of these left out",
    ]  # fmt: skip
    body = [
        [
            SEARCHES.get(r["search"], str(r["search"])), f"{r['trials']} of {number(r['evaluations'], '.0f')}",
            *(str(r[state]) for state in STATES), number(negative(r["best_objective"])), number(r["hours"]),
            number(r["node_hours"]), number(r["trial_s"]), number(r["overhead"], ".1%"),
            str(r["told_before"] + r["left_out_before"]), str(r["left_out_before"]),
        ]
        for r in lines(searches)
    ]  # fmt: skip
    note = (
        "Optimizer: the time that asking for points and telling results took; other trials run meanwhile. Left out:"
        " points outside the range searched, and failures."
    )
    return with_costs(View("Searches", columns, body, note), searches)


def best_view(best: pd.DataFrame) -> View:
    """The best point of each backbone in each search."""
    columns = [
        "search", "backbone", "trial", "MAE(E) (meV/atom)", "MAE(F) (meV/\N{ANGSTROM SIGN})", "graphs/s", "point",
        "raw records",
    ]  # fmt: skip
    body = [
        [
            SEARCHES.get(r["search"], str(r["search"])), NAMES.get(r["backbone"], r["backbone"]), str(r["trial"]),
            number(1e3 * r["energy_mae_ev_per_atom"]), number(1e3 * r["force_mae_ev_per_a"]),
            number(r["graphs_per_s"]), point(r["configuration"]), raw_records(r["folder"], 5),
        ]
        for r in lines(best)
    ]  # fmt: skip
    note = "One seed each: how far apart two trials of one point lie is not measured here."
    return View("Best of each backbone", columns, body, note)


def negative(value: float | None) -> float | None:
    """The mean error of an objective."""
    return None if value is None else -value


def point(configuration: str) -> str:
    """`hidden_dim 64, learning_rate 0.00123`."""
    plain: dict[str, Any] = json.loads(configuration)
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())


def importance_view(importance: pd.DataFrame) -> View:
    """What each hyperparameter alone explains."""
    columns = ["search", "hyperparameter", "explains", "better when", "chance", "trials"]
    body = [
        [
            SEARCHES.get(r["search"], str(r["search"])), r["hyperparameter"], number(r["explained"], ".0%"),
            DASH if r["kind"] == "choice" else ("larger" if r["direction"] > 0 else "smaller"),
            number(r["p_value"], ".3f") + (" *" if r["p_value"] < LIKELY else ""), str(r["trials"]),
        ]
        for r in lines(importance)
    ]  # fmt: skip
    note = (
        "Share of the variance of the objectives' ranks that the hyperparameter alone explains; chance: how often a"
        f" permutation of the objectives explains as much (* below {LIKELY:g}; of twenty rows, one by luck). Not for"
        f" searches with fewer than {LEAST_TRIALS} trials. The optimizer does not draw points independently, so read"
        " this as a description of the search."
    )
    return View("Importance of hyperparameters", columns, body, note)


def trials_view(trials: pd.DataFrame) -> View:
    """The trials that matter: those without an objective, and the best."""
    kept = pd.concat(
        [trials[trials["objective"].isna()], trials.sort_values("objective", ascending=False)]
    ).drop_duplicates(["case", "trial"])[:SHOWN]
    columns = ["search", "trial", "state", "why", "(MAE(E)+MAE(F))/2", "graphs/s", "minutes", "nodes", "point"]
    body = [
        [
            SEARCHES.get(r["search"], str(r["search"])), str(r["trial"]), r["state"], r["reason"] or DASH,
            number(negative(r["objective"])), number(r["graphs_per_s"]), number(60 * (r["ended_h"] - r["began_h"])),
            r["nodes"] or DASH, point(r["configuration"]),
        ]
        for r in lines(kept)
    ]  # fmt: skip
    more = f" {len(trials) - len(kept)} more" if len(trials) > len(kept) else " All"
    note = f"{more} in tables/hpo_trials.csv.".strip()
    return with_costs(View("Trials without an objective, and the best", columns, body, note), kept)
