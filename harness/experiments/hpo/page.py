"""The page on hyperparameter searches."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    format_number,
    link_run_folder,
    number_cell,
    rows_as_dicts,
    select_campaign,
    text_cell,
)
from harness.document.figures import Figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.hpo.figures import draw_best_so_far, draw_front, draw_points
from harness.experiments.hpo.metrics import MIN_TRIALS, STATES
from harness.protocol.backbones import BACKBONES, MIXED, get_backbone_title
from harness.protocol.text import pluralize
from harness.results.tables import Row

SEARCH_NAMES = {**{str(name): backbone.title for name, backbone in BACKBONES.items()}, "mixed": MIXED.title}
SEARCH_COLUMN: Column = ("search", lambda r: name_search(str(r["search"])))
MAX_ROWS = 40
SIGNIFICANCE = 0.05


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["hpo_searches"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on the searches of one campaign."""
    searches, trials, best, points, importance = (
        select_campaign(context.tables[f"hpo_{name}"], campaign)
        for name in ("searches", "trials", "best", "points", "importance")
    )
    figures: list[Figure] = []
    if trials["objective"].notna().any():
        figures = [
            draw_best_so_far(trials, SEARCH_NAMES, context.figures, f"{campaign}-best"),
            draw_front(trials, SEARCH_NAMES, context.figures, f"{campaign}-front"),
        ]
        for case, group in points.groupby("case", sort=False):
            if group["objective"].notna().any():
                title = f"Search of {name_search(str(group['search'].iloc[0]))}"
                figures.append(draw_points(group, title, context.figures, f"{campaign}-{case}-points"))
    blocks = [
        build_searches_block(searches),
        build_best_block(best),
        build_importance_block(importance),
        build_trials_block(trials),
    ]
    title = f"Hyperparameter search on {searches['system'].iloc[0]}"
    return Section(title, f"search-{campaign}", describe_searches(searches, trials), figures, blocks)


def name_search(search: str) -> str:
    """Return the title of a search: a backbone, or all of them."""
    return SEARCH_NAMES.get(search, search)


def describe_searches(searches: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """Return paragraphs on the number of trials, their states, and incomplete searches."""
    counts = [f"{n} {state}" for state in STATES if (n := int((trials["state"] == state).sum()))]
    text = [
        f"{pluralize(len(searches), 'search', 'searches')} by Bayesian optimization (DeepHyper),"
        f" {pluralize(len(trials), 'trial')}: {', '.join(counts)};"
        f" {format_number(trials['node_hours'].sum())} node-hours. Objective: -(MAE(E/atom) + MAE(F)) / 2 on validation"
        " structures, in eV/atom and eV/\N{ANGSTROM SIGN}; for a stopped trial, its value when the trial was stopped."
    ]
    if searches["stand_ins"].any():
        text.append(
            "The models are trained for minutes on the shipped datasets, most of which are stand-ins: their ranking of"
            " backbones cannot be compared with the paper's."
        )
    unfinished = [f"{r['case']} ({r['state']}, {r['trials']} of {r['evaluations']})" for r in rows_as_dicts(searches)
                  if r["state"] != "done"]  # fmt: skip
    if unfinished:
        text.append(f"Incomplete searches, with the trials that have ended: {', '.join(unfinished)}.")
    return text


def build_searches_block(searches: pd.DataFrame) -> TableBlock:
    """Return a row per search."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("trials", lambda r: f"{r['trials']} of {format_number(r['evaluations'], '.0f')}"),
        *((state, state) for state in STATES),
        ("best (MAE(E)+MAE(F))/2", lambda r: format_number(negate(r["best_objective"]))),
        ("hours", number_cell("hours")),
        ("node-hours", number_cell("node_hours")),
        ("time in trials (s)", number_cell("trial_s")),
        ("optimizer, share of that time", number_cell("overhead", ".1%")),
        ("earlier trials read", lambda r: r["told_before"] + r["left_out_before"]),
        ("of these left out", "left_out_before"),
    ]
    note = (
        "Optimizer: the time for proposing points and recording results, during which other trials run. Left out:"
        " failed trials, and points outside the search range."
    )
    return add_cost_columns(build_block("Searches", rows_as_dicts(searches), columns, note), searches)


def build_best_block(best: pd.DataFrame) -> TableBlock:
    """Return the best point of each backbone in each search."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("backbone", lambda r: get_backbone_title(r["backbone"])),
        ("trial", "trial"),
        ("MAE(E) (meV/atom)", number_cell("energy_mae_ev_per_atom", scale=1e3)),
        ("MAE(F) (meV/\N{ANGSTROM SIGN})", number_cell("force_mae_ev_per_a", scale=1e3)),
        ("graphs/s", number_cell("graphs_per_s")),
        ("point", lambda r: format_point(r["configuration"])),
        ("raw records", lambda r: link_run_folder(r["folder"], 5)),
    ]
    note = "Each trial has one seed: the scatter between trials of one point is not measured here."
    return build_block("Best of each backbone", rows_as_dicts(best), columns, note)


def negate(value: float | None) -> float | None:
    """Return the mean error that is the negative of an objective."""
    return None if value is None else -value


def format_point(configuration: str) -> str:
    """Return `hidden_dim 64, learning_rate 0.00123`."""
    values: dict[str, Any] = json.loads(configuration)
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def build_importance_block(importance: pd.DataFrame) -> TableBlock:
    """Return a row per search and hyperparameter on the variance that it explains."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("hyperparameter", "hyperparameter"),
        ("explains", number_cell("explained", ".0%")),
        ("better when", describe_direction),
        ("p", lambda r: format_number(r["p_value"], ".3f") + (" *" if r["p_value"] < SIGNIFICANCE else "")),
        ("trials", "trials"),
    ]
    note = (
        "Share of the variance of the objectives' ranks that the hyperparameter alone explains. p: share of"
        f" permutations of the objectives that explain as much (* below {SIGNIFICANCE:g}, which one row in twenty is by"
        f" chance). Searches with fewer than {MIN_TRIALS} trials are left out. The optimizer does not draw points"
        " independently, so these numbers only describe the search."
    )
    return build_block("Importance of hyperparameters", rows_as_dicts(importance), columns, note)


def describe_direction(row: Row) -> str:
    """Return whether larger or smaller values are better; a dash for choices."""
    return EN_DASH if row["kind"] == "choice" else ("larger" if row["direction"] > 0 else "smaller")


def build_trials_block(trials: pd.DataFrame) -> TableBlock:
    """Return the trials without an objective, and the best of the others."""
    failed, ranked = trials[trials["objective"].isna()], trials.sort_values("objective", ascending=False)
    selected = pd.concat([failed, ranked]).drop_duplicates(["case", "trial"])[:MAX_ROWS]
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("trial", "trial"),
        ("state", "state"),
        ("reason", text_cell("reason")),
        ("(MAE(E)+MAE(F))/2", lambda r: format_number(negate(r["objective"]))),
        ("graphs/s", number_cell("graphs_per_s")),
        ("minutes", lambda r: format_number(60 * (r["ended_h"] - r["began_h"]))),
        ("nodes", text_cell("nodes")),
        ("point", lambda r: format_point(r["configuration"])),
    ]
    n_more = len(trials) - len(selected)
    note = f"{f'{n_more} more trials are' if n_more else 'All trials are'} in tables/hpo_trials.csv."
    title = "Trials without an objective, and the best of the others"
    return add_cost_columns(build_block(title, rows_as_dicts(selected), columns, note), selected)
