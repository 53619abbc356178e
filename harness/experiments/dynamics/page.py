"""The page on molecular dynamics and relaxations."""

from __future__ import annotations

import pandas as pd

from harness.document.blocks import (
    EN_DASH,
    Column,
    Section,
    TableBlock,
    build_block,
    format_interval,
    format_number,
    format_threads,
    interval_cell,
    link_run_folder,
    list_rows,
    number_cell,
    select_campaign,
    text_cell,
)
from harness.experiments.cost.page import add_cost_columns
from harness.experiments.dynamics.figures import draw_physics, draw_times
from harness.experiments.dynamics.metrics import TOLERANCE_MEV
from harness.experiments.experiment import PageContext
from harness.protocol.programs.dynamics import RELAXED_TOLERANCE_MEV
from harness.protocol.text import pluralize
from harness.results.tables import Row

MOTIONS = {"nve": "NVE", "langevin": "Langevin", "relaxation": "relaxation"}


def build_sections(context: PageContext) -> list[Section]:
    """Return a section for each campaign."""
    table = context.tables["dynamics"]
    return [build_section(str(name), select_campaign(table, str(name)), context) for name in table["campaign"].unique()]


def build_section(campaign: str, rows: pd.DataFrame, context: PageContext) -> Section:
    """Return the section on a campaign: times, agreement with ASE, physics and figures."""
    listed = list_rows(rows)
    has_times = rows["us_per_atom_step"].notna().any()
    figures = [draw_times(rows, context.figures, f"{campaign}-dynamics-times")] if has_times else []
    records = [r for r in context.records if r.program == "dynamics" and r.location in set(rows["folder"])]
    if any(r.events("trajectory") for r in records):
        figures.append(draw_physics(records, context.figures, f"{campaign}-dynamics-physics"))
    blocks = [build_speed_block(rows), build_ase_block(listed)]
    if (rows["motion"] != "relaxation").any():
        blocks.append(build_physics_block([row for row in listed if row["motion"] != "relaxation"]))
    return Section(
        f"Molecular dynamics and relaxations: {campaign}", campaign, describe_campaign(listed), figures, blocks,
        finding=summarize(listed),
    )  # fmt: skip


def summarize(rows: list[Row]) -> str:
    """Return the number of wrong cases or, if there are none, the largest speed-ups over ASE."""
    wrong = [row for row in rows if row["verdict"] == "incorrect"]
    if wrong:
        return (
            f"{len(wrong)} of {pluralize(len(rows), 'case')} {'disagrees' if len(wrong) == 1 else 'disagree'} with ASE"
        )
    parts = []
    for names, text in ((("nve", "langevin"), "a step of dynamics"), (("relaxation",), "a step of a relaxation")):
        known = [row for row in rows if row["motion"] in names and row["speedup"] is not None]
        if known:
            best = max(known, key=lambda row: float(row["speedup"]))
            parts.append(
                f"{text} takes {format_number(best['us_per_atom_step'])} us of wall time per atom ({name_case(best)}),"
                f" and ASE {format_number(best['speedup'])} times as much {best['speedup_clock']}"
            )
    return "; ".join(parts)


def describe_campaign(rows: list[Row]) -> list[str]:
    """Return sentences on the model, the structures that did not finish, and interrupted runs."""
    models = dict.fromkeys(f"{row['checkpoint']} ({row['backbone']}, width {row['hidden_dim']})" for row in rows)
    devices = dict.fromkeys(f"{row['device']}, {format_threads(row['threads'])}" for row in rows)
    texts = [
        f"Model: {', '.join(models)}. Device: {'; '.join(devices)}. Times include neighbour lists, whose skin keeps"
        " them valid for several steps. ASE moves one structure at a time through the calculator of the same model,"
        " with the same operators, which builds a new neighbour list in each step."
    ]
    for row in rows:
        if row["unfinished"]:
            texts.append(
                f"{name_case(row)}: {pluralize(row['unfinished'], 'structure')} ended early: {row['reasons']}."
            )
        if row["earlier_batch_steps"]:
            texts.append(f"{name_case(row)} continued after {row['earlier_batch_steps']} steps of an earlier attempt.")
    return texts


def name_case(row: Row) -> str:
    """Return the motion, the structures and the batch of a case."""
    batch = "one at a time" if row["batch_size"] == 1 else f"{format_number(row['mean_batch'])} in a batch"
    return f"{MOTIONS[row['motion']]}, {row['source']}, {row['precision'].upper()}, {batch}"


def build_speed_block(rows: pd.DataFrame) -> TableBlock:
    """Return the table of times."""
    columns: list[Column] = [
        ("motion", format_motion),
        ("structures", "source"),
        ("precision", lambda r: r["precision"].upper()),
        ("structures in the batch", number_cell("mean_batch")),
        ("us/atom/step [95%]", interval_cell("us_per_atom_step")),
        ("CPU time, us/atom/step", number_cell("cpu_us_per_atom_step")),
        ("ns/day of each structure", number_cell("ns_per_day")),
        ("ns/day, sum over the batch", number_cell("ns_per_day_total")),
        ("converged structures/s", number_cell("structures_per_s")),
        ("lists, model, rest", format_shares),
        ("steps per list", number_cell("steps_per_list")),
        ("load", number_cell("load_1min")),
        ("raw records", lambda r: link_run_folder(r["folder"])),
    ]
    note = (
        "Wall times and CPU times are medians over samples of several steps, without the first samples of a process."
        " ns/day: the simulated time by which each structure of the batch advances in a day of wall time. Converged"
        " structures/s: over the whole run, with its first steps. Shares are those of the wall time; steps per list is"
        " the mean number of steps before the neighbours of a structure are searched again. The load is the largest"
        " average load of the machine during the case."
    )
    return add_cost_columns(build_block("Times", list_rows(rows), columns, note), rows)


def build_ase_block(rows: list[Row]) -> TableBlock:
    """Return the table of the comparison with ASE."""
    columns: list[Column] = [
        ("motion", lambda r: MOTIONS[r["motion"]]),
        ("structures", "source"),
        ("precision", lambda r: r["precision"].upper()),
        ("structures in the batch", number_cell("mean_batch")),
        ("ASE, us/atom/step [95%]", interval_cell("ase_us_per_atom_step")),
        ("ASE, CPU time, us/atom/step", number_cell("ase_cpu_us_per_atom_step")),
        ("speed-up", interval_cell("speedup")),
        ("compared structures", "compared"),
        ("energy difference (meV/atom)", number_cell("energy_difference_mev_per_atom", ".2g")),
        ("end depends on rounding", number_cell("rounding_decides")),
        ("same space group", format_spacegroups),
        ("converged", lambda r: EN_DASH if r["converged"] is None else f"{r['converged']:.0f} of {r['finished']}"),
        ("verdict", text_cell("verdict")),
    ]
    tolerances = ", ".join(f"{tolerance:g} in {name.upper()}" for name, tolerance in TOLERANCE_MEV.items())
    note = (
        "The speed-up is the ratio of the times per atom and step, on CPUs of CPU times, which other processes disturb"
        " less; its interval is that of the quotient of the two intervals. It is shown only if energies agree: in"
        f" dynamics within a tolerance in meV/atom ({tolerances}), at each compared step (with a thermostat, whose"
        " noise differs, at the start), in relaxations that converge in both, within"
        f" {RELAXED_TOLERANCE_MEV:g} meV/atom at the end. ASE also evaluates the end of the batch: its forces have to"
        " be below the limit, and its energy has to agree within the tolerance of dynamics, as at the start. A step of"
        " FIRE is unstable in directions of large curvature: as long as symmetry keeps the forces along them at zero,"
        " rounding grows exponentially, until it decides the path. If ends differ, ASE therefore relaxes the"
        " structure again, from positions displaced by about the error of rounding; if ASE then ends elsewhere, too,"
        " the end depends on rounding, and is not compared. The space group can differ for the same reason."
    )
    return build_block("Compared with ASE, one structure at a time", rows, columns, note)


def build_physics_block(rows: list[Row]) -> TableBlock:
    """Return the table of conservation and temperature."""
    columns: list[Column] = [
        ("motion", lambda r: MOTIONS[r["motion"]]),
        ("structures", "source"),
        ("precision", lambda r: r["precision"].upper()),
        ("finished", lambda r: f"{r['finished']} of {r['structures']}"),
        ("ps", lambda r: format_number(1e-3 * r["steps"] * r["time_step_fs"])),
        ("energy drift, mean (meV/atom/ps) [95%]", lambda r: format_mean(r, "drift_mev_per_atom_ps")),
        ("largest", number_cell("drift_max_mev_per_atom_ps", ".2g")),
        ("fluctuation (meV/atom)", number_cell("fluctuation_mev_per_atom", ".2g")),
        ("temperature (K) [95%]", lambda r: format_mean(r, "mean_temperature_k")),
        ("thermostat (K)", lambda r: format_number(r["temperature_k"]) if r["motion"] == "langevin" else EN_DASH),
    ]
    note = (
        "Drift: slope of a line through the total energy of a structure; mean over the structures with Student's"
        " interval, and largest absolute value. Fluctuation: root mean square deviation from this line. Temperature:"
        " mean over the second half of the trajectories, with Student's interval over structures, or over five blocks"
        " of a single one."
    )
    return build_block("Conservation and temperature", rows, columns, note)


def format_motion(row: Row) -> str:
    """Return the motion and, in dynamics, the time step."""
    motion = MOTIONS[row["motion"]]
    return motion if row["motion"] == "relaxation" else f"{motion}, {format_number(row['time_step_fs'])} fs"


def format_shares(row: Row) -> str:
    """Return the shares of neighbour lists, the model and the rest in the time, in percent."""
    shares = [row[f"{part}_share"] for part in ("lists", "model", "integrator")]
    return EN_DASH if None in shares else f"{', '.join(format_number(100 * share, '.0f') for share in shares)}%"


def format_spacegroups(row: Row) -> str:
    """Return how many of the crystals with a known space group have that of ASE's relaxation."""
    known = row["compared_spacegroups"]
    return f"{row['same_spacegroup']:.0f} of {known:.0f}" if known else EN_DASH


def format_mean(row: Row, column: str) -> str:
    """Return a mean with its interval, or without one if it is unknown."""
    mean, low, high = (row[f"{column}{end}"] for end in ("", "_low", "_high"))
    return format_number(mean) if low is None else format_interval(mean, low, high)
