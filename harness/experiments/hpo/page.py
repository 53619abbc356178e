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
    duration_cell,
    format_number,
    format_quantity,
    label_cases,
    link_run_folder,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.document.figures import Figure
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.hpo.figures import draw_best_so_far, draw_configurations, draw_front
from harness.experiments.hpo.metrics import MIN_TRIALS, PERMUTATIONS, STATES
from harness.protocol.backbones import BACKBONES, MIXED, get_backbone_title
from harness.protocol.text import pluralize
from harness.results.tables import Row

SEARCH_TITLES = {**{str(name): backbone.title for name, backbone in BACKBONES.items()}, "mixed": MIXED.title}
SEARCH_COLUMN: Column = ("search", "title")
OBJECTIVE_HEADER = "(MAE(E) + MAE(F)) / 2 (eV/atom and eV/\N{ANGSTROM SIGN})"
MAX_ROWS = 40
SECONDS_PER_HOUR = 3600.0
SIGNIFICANCE = 0.05
MIN_PRINTED_P = 0.001


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    return [build_campaign_section(str(c), context) for c in context.tables["hpo_searches"]["campaign"].unique()]


def build_campaign_section(campaign: str, context: PageContext) -> Section:
    """Return the section on the searches of one campaign."""
    searches = select_campaign(context.tables["hpo_searches"], campaign)
    titles = label_cases(searches["case"], searches["search"].map(get_search_title))
    searches, trials, best, points, importance = (
        table.assign(title=table["case"].map(titles))
        for name in ("searches", "trials", "best", "points", "importance")
        for table in [select_campaign(context.tables[f"hpo_{name}"], campaign)]
    )
    spaces = {
        record.case.get("name"): record.facts.get("search", {}).get("space", {})
        for record in context.records
        if record.campaign == campaign
    }
    figures: list[Figure] = []
    if trials["objective"].notna().any():
        figures = [
            draw_best_so_far(trials, context.figures, f"{campaign}-best"),
            draw_front(trials, context.figures, f"{campaign}-front"),
        ]
        for case, group in points.groupby("case", sort=False):
            if group["objective"].notna().any():
                title, name = f"Search of {titles[str(case)]}", f"{campaign}-{case}-points"
                figures.append(draw_configurations(group, spaces[case], title, context.figures, name))
    blocks = [
        build_searches_block(searches),
        build_best_block(best),
        build_importance_block(importance),
        build_trials_block(trials),
    ]
    title = f"Hyperparameter search on {searches['system'].iloc[0]}"
    paragraphs = describe_searches(searches, trials)
    return Section(title, f"search-{campaign}", paragraphs, figures, blocks, finding=summarize_trials(trials))


def summarize_trials(trials: pd.DataFrame) -> str:
    """Return the backbone of the best trial and its errors; empty without an objective."""
    scored = trials[trials["objective"].notna()]
    if scored.empty:
        return ""
    best = list_rows(scored.loc[[scored["objective"].idxmax()]])[0]
    energy, forces = (number_cell(f"{name}_mae_ev_per_{unit}", scale=1e3)(best)
                      for name, unit in (("energy", "atom"), ("force", "angstrom")))  # fmt: skip
    return (
        f"{get_backbone_title(best['backbone'])} has the lowest error of {pluralize(len(trials), 'trial')}:"
        f" {energy} meV/atom and {forces} meV/\N{ANGSTROM SIGN}"
    )


def get_search_title(search: Any) -> str:
    """Return the title of a search, which is the name of its backbone, or `all backbones`."""
    return SEARCH_TITLES.get(str(search), str(search))


def describe_searches(searches: pd.DataFrame, trials: pd.DataFrame) -> list[str]:
    """Return paragraphs on the number of trials, their states, and incomplete searches."""
    counts = [f"{n} {state}" for state in STATES if (n := int((trials["state"] == state).sum()))]
    text = [
        f"{pluralize(len(searches), 'search', 'searches')} by Bayesian optimization (DeepHyper),"
        f" {pluralize(len(trials), 'trial')}: {', '.join(counts)};"
        f" {format_number(trials['node_hours'].sum())} node-hours. Objective: -(MAE(E) + MAE(F)) / 2 on validation"
        " structures, in eV/atom and eV/\N{ANGSTROM SIGN}; for a pruned trial, its value when the trial was stopped."
    ]
    if searches["stand_ins"].any():
        text.append(
            "The models are trained on the shipped datasets, most of which are stand-ins, so the ranking of"
            " backbones cannot be compared with that of the paper."
        )
    incomplete = [f"{r['case']} ({r['state']}, {r['trials']} of {r['max_trials']})" for r in list_rows(searches)
                  if r["state"] != "done"]  # fmt: skip
    if incomplete:
        text.append(f"Incomplete searches, with the trials that have ended: {', '.join(incomplete)}.")
    return text


def build_searches_block(searches: pd.DataFrame) -> TableBlock:
    """Return the table of searches."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("trials", lambda r: f"{r['trials']} of {format_number(r['max_trials'], '.0f')}"),
        *((state, state) for state in STATES),
        (f"lowest {OBJECTIVE_HEADER}", lambda r: format_number(negate(r["best_objective"]))),
        ("duration", duration_cell("elapsed_h", SECONDS_PER_HOUR)),
        ("node-hours", number_cell("node_hours")),
        ("sum of trial times", duration_cell("trial_s")),
        ("optimizer time / sum of trial times", number_cell("optimizer_time_fraction", ".1%")),
        ("earlier trials read", lambda r: r["earlier_trials_received"] + r["earlier_trials_excluded"]),
        ("earlier trials left out", "earlier_trials_excluded"),
    ]
    note = (
        "The time of the optimizer is the time for proposing configurations and recording results, during which other"
        " trials run. Earlier trials are results of other searches, from which the optimizer starts; they are left out"
        " if they failed or are outside the search range. Pruned trials were stopped early."
    )
    return add_cost_columns(build_block("Searches", list_rows(searches), columns, note), searches)


def build_best_block(best: pd.DataFrame) -> TableBlock:
    """Return the table of the best trial of each backbone in each search."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("backbone", lambda r: get_backbone_title(r["backbone"])),
        ("trial", "trial"),
        ("MAE(E) (meV/atom)", number_cell("energy_mae_ev_per_atom", scale=1e3)),
        ("MAE(F) (meV/\N{ANGSTROM SIGN})", number_cell("force_mae_ev_per_angstrom", scale=1e3)),
        ("structures/s", number_cell("structures_per_s")),
        ("configuration", lambda r: format_configuration(r["configuration"])),
        ("raw records", lambda r: link_run_folder(r["folder"], 5)),
    ]
    note = "Each trial has one seed, so the scatter between trials of the same configuration is unknown."
    return build_block("Best of each backbone", list_rows(best), columns, note)


def negate(value: float | None) -> float | None:
    """Return the negative of a value, such as the mean error of an objective; None for a missing value."""
    return None if value is None else -value


def format_configuration(configuration: str) -> str:
    """Return a configuration in JSON as text: `hidden_dim 64, learning_rate 0.00123`."""
    values: dict[str, Any] = json.loads(configuration)
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())


def build_importance_block(importance: pd.DataFrame) -> TableBlock:
    """Return the table of importance, with a row per search and hyperparameter."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("hyperparameter", "hyperparameter"),
        ("explained variance", number_cell("explained_variance", ".0%")),
        ("better values", describe_direction),
        ("p value", lambda r: format_p_value(r["p_value"])),
        ("trials", "trials"),
    ]
    note = (
        "Explained variance is the share of the variance of the ranked objectives that the hyperparameter explains on"
        f" its own. The p value is (1 + k) / (1 + {PERMUTATIONS:,}) if it explains at least as much for k of"
        f" {PERMUTATIONS:,} random permutations of the objectives; a * marks p values below {SIGNIFICANCE:g}, which one"
        " row in twenty reaches by chance. Searches with"
        f" fewer than {MIN_TRIALS} trials are left out. The optimizer does not draw configurations independently, so"
        " these numbers only describe the search."
    )
    return build_block("Importance of hyperparameters", list_rows(importance), columns, note)


def format_p_value(p_value: float) -> str:
    """Return a p value as text, with a * below SIGNIFICANCE."""
    text = f"< {MIN_PRINTED_P:g}" if p_value < MIN_PRINTED_P else format_number(p_value, ".3f")
    return text + (" *" if p_value < SIGNIFICANCE else "")


def describe_direction(row: Row) -> str:
    """Return which values are better, `larger` or `smaller`; a dash for choices."""
    return EN_DASH if row["kind"] == "choice" else ("larger" if row["direction"] > 0 else "smaller")


def build_trials_block(trials: pd.DataFrame) -> TableBlock:
    """Return the table of the trials without an objective, then of the best trials, at most MAX_ROWS in total."""
    without, ranked = trials[trials["objective"].isna()], trials.sort_values("objective", ascending=False)
    selected = pd.concat([without, ranked]).drop_duplicates(["case", "trial"])[:MAX_ROWS]
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("trial", "trial"),
        ("state", "state"),
        ("reason", text_cell("reason")),
        (OBJECTIVE_HEADER, lambda r: format_number(negate(r["objective"]))),
        ("structures/s", number_cell("structures_per_s")),
        ("duration", lambda r: format_quantity(SECONDS_PER_HOUR * (r["end_h"] - r["start_h"]), "s")),
        ("nodes", text_cell("nodes")),
        ("configuration", lambda r: format_configuration(r["configuration"])),
    ]
    is_cut = len(selected) < len(trials)
    subject = f"The table shows {len(selected)} of {len(trials)} trials; all" if is_cut else "All trials"
    note = f"{subject} are in tables/hpo_trials.csv."
    title = "Trials without an objective, and the best of the other trials"
    return add_cost_columns(build_block(title, list_rows(selected), columns, note), selected)
