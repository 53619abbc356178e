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
from harness.experiments.hpo.metrics import LEAST_TRIALS, STATES
from harness.protocol.backbones import BACKBONES, MIXED, name_backbone
from harness.protocol.text import count
from harness.results.tables import Row

SEARCH_NAMES = {**{str(name): backbone.title for name, backbone in BACKBONES.items()}, "mixed": MIXED.title}
SEARCH_COLUMN: Column = ("search", lambda r: name_search(str(r["search"])))
SHOWN = 40
LIKELY = 0.05


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["hpo_searches"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on the searches of one campaign."""
    searches, trials, best, points, importance = (
        select_campaign(context.tables[f"hpo_{name}"], campaign)
        for name in ("searches", "trials", "best", "points", "importance")
    )
    figures = context.figures
    drawn: list[Figure] = []
    if trials["objective"].notna().any():
        drawn = [
            draw_best_so_far(trials, SEARCH_NAMES, figures, f"{campaign}-best"),
            draw_front(trials, SEARCH_NAMES, figures, f"{campaign}-front"),
        ]
        for case, group in points.groupby("case", sort=False):
            if group["objective"].notna().any():
                title = f"Search of {name_search(str(group['search'].iloc[0]))}"
                drawn.append(draw_points(group, title, figures, f"{campaign}-{case}-points"))
    blocks = [
        build_searches_block(searches),
        build_best_block(best),
        build_importance_block(importance),
        build_trials_block(trials),
    ]
    title = f"Hyperparameter search on {searches['system'].iloc[0]}"
    return Section(title, f"search-{campaign}", describe_searches(searches, trials), drawn, blocks)


def name_search(search: str) -> str:
    """Return the name of what was searched: a backbone, or all of them."""
    return SEARCH_NAMES.get(search, search)


def describe_searches(searches: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """Return how many trials there are, how they ended, and how complete the searches are."""
    counts = [f"{n} {state}" for state in STATES if (n := int((trials["state"] == state).sum()))]
    text = [
        f"{count(len(searches), 'search', 'searches')} by Bayesian optimization (DeepHyper),"
        f" {count(len(trials), 'trial')}: {', '.join(counts)};"
        f" {format_number(trials['node_hours'].sum())} node-hours. Objective: -(MAE(E/atom) + MAE(F)) / 2 on validation"
        " structures, eV and eV/\N{ANGSTROM SIGN}; of a stopped trial, when it was stopped."
    ]
    if searches["stand_ins"].any():
        text.append(
            "Trained on the shipped sets, most of them stand-ins, and for minutes: the ranking of backbones here says"
            " nothing of the paper's."
        )
    unfinished = [f"{r['case']} ({r['state']}, {r['trials']} of {r['evaluations']})" for r in rows_as_dicts(searches)
                  if r["state"] != "done"]  # fmt: skip
    if unfinished:
        text.append(f"Not complete, and read as far as they went: {', '.join(unfinished)}.")
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
        ("optimizer, of that time", number_cell("overhead", ".1%")),
        ("earlier trials that it was given", lambda r: r["told_before"] + r["left_out_before"]),
        ("of these left out", "left_out_before"),
    ]
    note = (
        "Optimizer: the time that asking for points and telling results took; other trials run meanwhile. Left out:"
        " points outside the range searched, and failures."
    )
    return add_cost_columns(build_block("Searches", rows_as_dicts(searches), columns, note), searches)


def build_best_block(best: pd.DataFrame) -> TableBlock:
    """Return the best point of each backbone in each search."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("backbone", lambda r: name_backbone(r["backbone"])),
        ("trial", "trial"),
        ("MAE(E) (meV/atom)", number_cell("energy_mae_ev_per_atom", scale=1e3)),
        ("MAE(F) (meV/\N{ANGSTROM SIGN})", number_cell("force_mae_ev_per_a", scale=1e3)),
        ("graphs/s", number_cell("graphs_per_s")),
        ("point", lambda r: format_point(r["configuration"])),
        ("raw records", lambda r: link_run_folder(r["folder"], 5)),
    ]
    note = "One seed each: how far apart two trials of one point lie is not measured here."
    return build_block("Best of each backbone", rows_as_dicts(best), columns, note)


def negate(value: float | None) -> float | None:
    """Return the mean error that is the negative of an objective."""
    return None if value is None else -value


def format_point(configuration: str) -> str:
    """Return `hidden_dim 64, learning_rate 0.00123`."""
    values: dict[str, Any] = json.loads(configuration)
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def build_importance_block(importance: pd.DataFrame) -> TableBlock:
    """Return what each hyperparameter alone explains."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("hyperparameter", "hyperparameter"),
        ("explains", number_cell("explained", ".0%")),
        ("better when", describe_direction),
        ("chance", lambda r: format_number(r["p_value"], ".3f") + (" *" if r["p_value"] < LIKELY else "")),
        ("trials", "trials"),
    ]
    note = (
        "Share of the variance of the objectives' ranks that the hyperparameter alone explains; chance: how often a"
        f" permutation of the objectives explains as much (* below {LIKELY:g}; of twenty rows, one by luck). Not for"
        f" searches with fewer than {LEAST_TRIALS} trials. The optimizer does not draw points independently, so read"
        " this as a description of the search."
    )
    return build_block("Importance of hyperparameters", rows_as_dicts(importance), columns, note)


def describe_direction(row: Row) -> str:
    """Return whether larger or smaller values are better; a dash for choices."""
    return EN_DASH if row["kind"] == "choice" else ("larger" if row["direction"] > 0 else "smaller")


def build_trials_block(trials: pd.DataFrame) -> TableBlock:
    """Return the trials without an objective, and the best of the others."""
    failed, ranked = trials[trials["objective"].isna()], trials.sort_values("objective", ascending=False)
    shown = pd.concat([failed, ranked]).drop_duplicates(["case", "trial"])[:SHOWN]
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("trial", "trial"),
        ("state", "state"),
        ("why", text_cell("reason")),
        ("(MAE(E)+MAE(F))/2", lambda r: format_number(negate(r["objective"]))),
        ("graphs/s", number_cell("graphs_per_s")),
        ("minutes", lambda r: format_number(60 * (r["ended_h"] - r["began_h"]))),
        ("nodes", text_cell("nodes")),
        ("point", lambda r: format_point(r["configuration"])),
    ]
    more = f" {len(trials) - len(shown)} more" if len(trials) > len(shown) else " All"
    note = f"{more} in tables/hpo_trials.csv.".strip()
    title = "Trials without an objective, and the best"
    return add_cost_columns(build_block(title, rows_as_dicts(shown), columns, note), shown)
