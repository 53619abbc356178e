"""The page on hyperparameter searches, and its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
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
    link_run_folder,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.document.figures import STYLE, Figure, save_figure, set_plain_ticks
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.experiment import PageContext
from harness.experiments.hpo.metrics import MIN_TRIALS, STATES
from harness.protocol.backbones import BACKBONES, GREY, MIXED, find_backbone, get_backbone_title
from harness.protocol.text import pluralize
from harness.results.tables import Row

NO_OBJECTIVE_COLOUR = "#b42318"
# The hyperparameters of a figure of configurations beyond which the ends of their ranges are written vertically.
MAX_LEVEL_LABELS = 8


def draw_best_so_far(trials: pd.DataFrame, titles: dict[str, str], folder: Path, name: str) -> Figure:
    """Draw the lowest error so far against time and against node-hours, with a line per search."""
    with mpl.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(8.6, 3.5), sharey=True, layout="constrained")
        per_hour, unit = (1.0, "hours") if trials["end_h"].max() > 1.0 else (60.0, "minutes")
        for axes, column, label in zip(
            panels,
            ("end_h", "cumulative_node_hours"),
            (f"{unit} since the search began", f"node-{unit} used"),
            strict=True,
        ):
            for search, group in trials.groupby("search", sort=False):
                colour = find_backbone(search).colour
                title = titles.get(str(search), str(search))
                x = per_hour * group[column]
                axes.step(x, -group["best_so_far"], where="post", color=colour, lw=1.4, label=title)
                axes.plot(x, -group["objective"], ".", color=colour, ms=4, alpha=0.6)
                failed = x[group["objective"].isna()]
                if len(failed):
                    options: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False}
                    axes.plot(failed, np.full(len(failed), 1.0), "x", color=colour, ms=5, **options)
            axes.set_xlabel(label)
        panels[0].set_yscale("log")
        set_plain_ticks(panels[0].yaxis, *panels[0].get_ylim())
        panels[0].set_ylabel("(MAE(E/atom) + MAE(F)) / 2")
        panels[1].legend(frameon=False, fontsize=8)
        caption = (
            f"Mean errors on validation structures of {pluralize(len(trials), 'trial')}, in eV/atom and"
            " eV/\N{ANGSTROM SIGN}. Dots are trials, lines are the lowest errors so far, and crosses at the top are"
            " trials without an objective."
        )
        return save_figure(figure, folder, name, caption, card=0)


def draw_front(trials: pd.DataFrame, titles: dict[str, str], folder: Path, name: str) -> Figure:
    """Draw the error of every trial against its training throughput, and the Pareto front."""
    scored = trials[trials["objective"].notna()]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 3.8), layout="constrained")
        for backbone, group in scored.groupby("backbone", sort=False):
            key = str(backbone)
            style: Any = {
                "color": find_backbone(key).colour,
                "marker": find_backbone(key).marker,
                "ls": "",
                "ms": 4.5,
            }
            axes.plot(group["structures_per_s"], -group["objective"], label=titles.get(key, key), alpha=0.8, **style)
        front = scored[scored["is_pareto_optimal"].astype(bool)].sort_values("structures_per_s")
        axes.plot(front["structures_per_s"], -front["objective"], "-", color=GREY, lw=0.9, zorder=0, label="front")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis, ends in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            set_plain_ticks(axis, *ends)
        axes.set_xlabel("training throughput, structures/s")
        axes.set_ylabel("(MAE(E/atom) + MAE(F)) / 2")
        axes.legend(frameon=False, fontsize=8)
        caption = (
            f"Error against throughput for {pluralize(len(scored), 'trial')} of all searches. The line is the Pareto"
            " front, on which no trial is worse than another one in both quantities."
        )
        return save_figure(figure, folder, name, caption)


def draw_configurations(points: pd.DataFrame, title: str, folder: Path, name: str) -> Figure:
    """Draw the parallel coordinates of one search, with a line per trial."""
    names = list(points["hyperparameter"].unique())
    table = points.pivot_table(index="trial", columns="hyperparameter", values="normalized_value")[names]
    objective = points.drop_duplicates("trial").set_index("trial")["objective"]
    ranks = objective.rank(ascending=False)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(5.2, 0.95 * len(names) + 1.4), 3.0), layout="constrained")
        colours = mpl.colormaps["cividis"]
        n_scored = max(1, int(objective.notna().sum()))
        for trial in ranks.sort_values(ascending=False, na_position="first").index:
            style: Any = {"color": NO_OBJECTIVE_COLOUR, "ls": ":", "lw": 0.9}
            if not np.isnan(objective[trial]):
                share = 1.0 - (ranks[trial] - 1) / n_scored
                style = {"color": colours(share), "lw": 2.4 if ranks[trial] == 1 else 1.0}
            axes.plot(range(len(names)), table.loc[trial, names], **style)
        ends = points.groupby("hyperparameter", sort=False)["value"]
        rotation = 90 if len(names) > MAX_LEVEL_LABELS else 0
        for k, hyperparameter in enumerate(names):
            axes.axvline(k, color="#d8dee4", lw=0.8, zorder=0)
            low, high = _format_ends(ends.get_group(hyperparameter))
            for value, y, side in ((low, -0.06, "top"), (high, 1.06, "bottom")):
                axes.text(k, y, value, ha="center", va=side, fontsize=7, color=GREY, rotation=rotation)
        axes.set_xticks(range(len(names)), [n.replace("_", "\n") for n in names], fontsize=7.5)
        axes.tick_params(length=0, pad=12)
        axes.set_ylim(-0.05, 1.05)
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        failed = int(objective.isna().sum())
        caption = (
            f"{title}: one line per trial, {n_scored} with an objective (yellow is good; the best one is thick)"
            + (f" and {failed} without an objective (dotted)" if failed else "")
            + ". Each axis spans the search range; the numbers are the smallest and the largest evaluated value."
        )
        return save_figure(figure, folder, name, caption)


def _format_ends(values: pd.Series[Any]) -> tuple[str, str]:
    """Return the smallest and the largest value as text."""
    if values.map(lambda v: isinstance(v, str)).any():
        return str(values.iloc[0]) if values.nunique() == 1 else "", ""
    return f"{values.astype(float).min():.3g}", f"{values.astype(float).max():.3g}"


SEARCH_TITLES = {**{str(name): backbone.title for name, backbone in BACKBONES.items()}, "mixed": MIXED.title}
SEARCH_COLUMN: Column = ("search", lambda r: get_search_title(str(r["search"])))
MAX_ROWS = 40
SECONDS_PER_HOUR = 3600.0
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
            draw_best_so_far(trials, SEARCH_TITLES, context.figures, f"{campaign}-best"),
            draw_front(trials, SEARCH_TITLES, context.figures, f"{campaign}-front"),
        ]
        for case, group in points.groupby("case", sort=False):
            if group["objective"].notna().any():
                title = f"Search of {get_search_title(str(group['search'].iloc[0]))}"
                figures.append(draw_configurations(group, title, context.figures, f"{campaign}-{case}-points"))
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


def get_search_title(search: str) -> str:
    """Return the title of a search, which is the name of its backbone, or `all backbones`."""
    return SEARCH_TITLES.get(search, search)


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
            "The models are trained for minutes on the shipped datasets, most of which are stand-ins, so the ranking of"
            " backbones cannot be compared with that of the paper."
        )
    unfinished = [f"{r['case']} ({r['state']}, {r['trials']} of {r['max_trials']})" for r in list_rows(searches)
                  if r["state"] != "done"]  # fmt: skip
    if unfinished:
        text.append(f"Incomplete searches, with the trials that have ended: {', '.join(unfinished)}.")
    return text


def build_searches_block(searches: pd.DataFrame) -> TableBlock:
    """Return the table of searches."""
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("trials", lambda r: f"{r['trials']} of {format_number(r['max_trials'], '.0f')}"),
        *((state, state) for state in STATES),
        ("lowest (MAE(E/atom) + MAE(F)) / 2", lambda r: format_number(negate(r["best_objective"]))),
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
    """Return the mean error, which is the negative of an objective; None if there is no objective."""
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
        ("p value", lambda r: format_number(r["p_value"], ".3f") + (" *" if r["p_value"] < SIGNIFICANCE else "")),
        ("trials", "trials"),
    ]
    note = (
        "Explained variance is the share of the variance of the ranked objectives that the hyperparameter explains on"
        " its own. The p value is the share of random permutations of the objectives for which it explains at least as"
        f" much; a * marks p values below {SIGNIFICANCE:g}, which one row in twenty reaches by chance. Searches with"
        f" fewer than {MIN_TRIALS} trials are left out. The optimizer does not draw configurations independently, so"
        " these numbers only describe the search."
    )
    return build_block("Importance of hyperparameters", list_rows(importance), columns, note)


def describe_direction(row: Row) -> str:
    """Return which values are better, `larger` or `smaller`; a dash for choices."""
    return EN_DASH if row["kind"] == "choice" else ("larger" if row["direction"] > 0 else "smaller")


def build_trials_block(trials: pd.DataFrame) -> TableBlock:
    """Return the table of the trials without an objective, then of the best trials, at most MAX_ROWS in total."""
    failed, ranked = trials[trials["objective"].isna()], trials.sort_values("objective", ascending=False)
    selected = pd.concat([failed, ranked]).drop_duplicates(["case", "trial"])[:MAX_ROWS]
    columns: list[Column] = [
        SEARCH_COLUMN,
        ("trial", "trial"),
        ("state", "state"),
        ("reason", text_cell("reason")),
        ("(MAE(E/atom) + MAE(F)) / 2", lambda r: format_number(negate(r["objective"]))),
        ("structures/s", number_cell("structures_per_s")),
        ("duration", lambda r: format_quantity(SECONDS_PER_HOUR * (r["end_h"] - r["start_h"]), "s")),
        ("nodes", text_cell("nodes")),
        ("configuration", lambda r: format_configuration(r["configuration"])),
    ]
    n_more = len(trials) - len(selected)
    note = f"{f'{n_more} more trials are' if n_more else 'All trials are'} in tables/hpo_trials.csv."
    title = "Trials without an objective, and the best of the other trials"
    return add_cost_columns(build_block(title, list_rows(selected), columns, note), selected)
