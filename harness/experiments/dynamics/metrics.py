"""Tables on molecular dynamics and relaxations: time per atom and step, physics, and agreement with ASE."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from harness.experiments.dynamics.physics import MEV, compute_drift, compute_mean_temperature
from harness.experiments.experiment import Metric, MetricSamples, WorkCount
from harness.protocol.events import Event
from harness.protocol.programs.dynamics import RELAXED_TOLERANCE_MEV, DynamicsParameters
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import Interval, compute_mean_interval, compute_median_interval

CASE = "campaign case folder"
DYNAMICS = Columns(
    "dynamics",
    case=CASE,
    state="state verdict",
    setting="motion source precision batch_size time_step_fs steps temperature_k checkpoint hidden_dim backbone"
    " message_backend",
    counts="structures atoms finished unfinished reasons mean_batch",
    speed="us_per_atom_step us_per_atom_step_low us_per_atom_step_high cpu_us_per_atom_step"
    " ns_per_day ns_per_day_total structures_per_s"
    " lists_share model_share integrator_share steps_per_list",
    ase="ase_us_per_atom_step ase_us_per_atom_step_low ase_us_per_atom_step_high ase_cpu_us_per_atom_step"
    " speedup speedup_low speedup_high speedup_clock"
    " compared energy_difference_mev_per_atom rounding_decides compared_spacegroups same_spacegroup",
    physics="drift_mev_per_atom_ps drift_mev_per_atom_ps_low drift_mev_per_atom_ps_high"
    " drift_max_mev_per_atom_ps fluctuation_mev_per_atom mean_temperature_k"
    " mean_temperature_k_low mean_temperature_k_high converged median_steps",
    run="threads device load_1min earlier_batch_steps",
)
STRUCTURES = Columns(
    "dynamics_structures",
    case=CASE,
    structure="index structure atoms steps",
    dynamics="drift_mev_per_atom_ps fluctuation_mev_per_atom temperature_k",
    relaxation="converged initial_energy_ev_per_atom energy_ev_per_atom force_max_ev_per_angstrom spacegroup",
    ase="ase_energy_difference_mev_per_atom ase_spacegroup",
)
# Largest accepted differences in meV/atom from energies that ASE calculates for the same positions, or on its path.
TOLERANCE_MEV = {"fp64": 1e-3, "fp32": 1.0, "bf16": 10.0}
FORCE_TOLERANCE = 0.05  # share of the limit of forces by which ASE's may exceed it at the end of a relaxation
STEP_TIME = Metric("time per atom and step", "us", "lower")
NS_PER_DAY_PER_FS_PER_S = 86400.0 * 1e-6  # simulated ns in a day if a second simulates one fs


def build_tables(records: Sequence[RunRecord]) -> dict[str, Table]:
    """Return the tables `dynamics` with a row per case, and `dynamics_structures` with a row per structure.

    us_per_atom_step: the wall time of steps of the batch, with neighbour lists, per evaluated atom; the median over
    samples with its interval. ns_per_day: simulated time of one structure of the batch; ns_per_day_total: of all.
    speedup: ASE's time per atom and step over that of the batch, in CPU time on CPUs and in wall time on other devices;
    withheld unless the verdict is "ok". The verdict is "ok" if energies agree with ASE's, "incorrect" if they do not,
    and "not checked" if nothing was compared. compared and energy_difference_mev_per_atom: the structures that the
    verdict is on, and their largest difference; rounding_decides: relaxations whose end depends on rounding, and is
    not compared; compared_spacegroups: those with a space group in both relaxations.
    structures_per_s: relaxations that converged.
    """
    runs = [r for r in records if r.program == "dynamics" and r.facts.get("workload")]
    return {
        "dynamics": DYNAMICS.build(_describe_case(r) for r in runs),
        "dynamics_structures": STRUCTURES.build(row for r in runs for row in list_structures(r)),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the wall time per atom and step of each sample."""
    yield MetricSamples(STEP_TIME, tuple(compute_step_times(select_timed(record), "wall_s")))


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the steps of atoms in millions."""
    done = sum(s["atom_steps"] for s in record.samples)
    return done / 1e6 if scope == "case" else math.nan, "million steps of an atom"


def select_timed(record: RunRecord) -> list[Event]:
    """Return the samples with steps, without those of a warm-up if there are others."""
    moved = [s for s in record.samples if s["atom_steps"]]
    return [s for s in moved if not s["is_warmup"]] or moved


def compute_step_times(samples: Sequence[Event], clock: str) -> list[float]:
    """Return the microseconds per atom and step of each sample, by the clock `wall_s` or `cpu_s`."""
    return [1e6 * s[clock] / s["atom_steps"] for s in samples]


def _get_case(record: RunRecord) -> dict[str, Any]:
    return {"campaign": record.campaign, "case": record.case.get("name"), "folder": record.location}


def _get_parameter(record: RunRecord, name: str) -> Any:
    """Return a parameter of the case, or its default."""
    return record.case["parameters"].get(name, DynamicsParameters.model_fields[name].default)


def list_structures(record: RunRecord) -> Iterator[dict[str, Any]]:
    """Yield a row of the table `dynamics_structures` for each structure that has finished."""
    compared = compare_with_ase(record)
    time_step, motion = _get_parameter(record, "time_step_fs"), _get_parameter(record, "motion")
    for event in (*record.events("trajectory"), *record.events("relaxation")):
        row = _get_case(record) | {key: event[key] for key in ("index", "structure", "atoms")}
        if event["event"] == "trajectory":
            mean = compute_mean_temperature([event], has_momentum=motion == "langevin").value
            row |= {"steps": event["steps"][-1], "temperature_k": mean}
            if motion == "nve":
                drift, fluctuation = compute_drift(event, time_step)
                row |= {"drift_mev_per_atom_ps": drift, "fluctuation_mev_per_atom": fluctuation}
        else:
            row |= STRUCTURES.select(event, "relaxation") | {
                "steps": event["steps"],
                "initial_energy_ev_per_atom": event["initial_energy_ev"] / event["atoms"],
                "energy_ev_per_atom": event["energy_ev"] / event["atoms"],
            }
        if event["index"] in compared:
            difference, ase = compared[event["index"]]
            row |= {"ase_energy_difference_mev_per_atom": difference, "ase_spacegroup": ase.get("spacegroup")}
        yield row


def compare_with_ase(record: RunRecord) -> dict[int, tuple[float, Event]]:
    """Return the largest absolute difference of energies from ASE's, meV/atom, and ASE's last event, by structure.

    In Langevin dynamics, whose noise differs, only energies at the start are compared.
    """
    motion = _get_parameter(record, "motion")
    results = {e["index"]: e for e in (*record.events("trajectory"), *record.events("relaxation"))}
    compared: dict[int, tuple[float, Event]] = {}
    for ase in record.events("ase_sample"):
        result = results.get(ase["index"])
        if result is None:
            continue
        if motion == "relaxation":
            pairs = [(result["energy_ev"], ase["energy_ev"]), (result["initial_energy_ev"], ase["initial_energy_ev"])]
        else:
            by_step = dict(zip(result["steps"], result["potential_ev"], strict=True))
            pairs = [(by_step[0], ase["initial_energy_ev"])]
            if motion == "nve" and ase["step"] in by_step:
                pairs.append((by_step[ase["step"]], ase["energy_ev"]))
        difference = max(abs(a - b) for a, b in pairs) * MEV / ase["atoms"]
        earlier = compared[ase["index"]][0] if ase["index"] in compared else 0.0
        compared[ase["index"]] = (max(difference, earlier), ase)
    return compared


def judge(record: RunRecord) -> dict[str, Any]:
    """Return the verdict on the agreement of energies with ASE, and the columns on the structures that it is on.

    These are all compared structures; in relaxations, those that converge in both. Space groups are not judged: where a
    path passes a symmetric saddle point, rounding decides how it continues. Ends of relaxations are not compared if ASE
    itself ends elsewhere from positions that differ by an error of rounding; they still have to be converged, and to
    have the right energy, for ASE.
    """
    compared = compare_with_ase(record)
    columns: dict[str, Any] = {}
    tolerance, is_valid = TOLERANCE_MEV[_get_parameter(record, "precision")], True
    if _get_parameter(record, "motion") == "relaxation":
        tolerance = RELAXED_TOLERANCE_MEV
        ours = {e["index"]: e for e in record.events("relaxation") if e["converged"]}
        converged = {k: (d, ase) for k, (d, ase) in compared.items() if k in ours and ase["converged"]}
        is_valid = all(is_end_valid(record, ours[k], ase) for k, (_, ase) in converged.items())
        compared = {k: (d, ase) for k, (d, ase) in converged.items() if not depends_on_rounding(ase)}
        groups = [(ours[k].get("spacegroup"), ase.get("spacegroup")) for k, (_, ase) in compared.items()]
        known = [(a, b) for a, b in groups if a is not None and b is not None]
        columns = {
            "rounding_decides": len(converged) - len(compared),
            "compared_spacegroups": len(known),
            "same_spacegroup": sum(a == b for a, b in known),
        }
    largest = max((d for d, _ in compared.values()), default=math.nan)
    verdict = "incorrect" if not is_valid or largest > tolerance else "ok" if compared else "not checked"
    return columns | {"verdict": verdict, "compared": len(compared), "energy_difference_mev_per_atom": largest}


def depends_on_rounding(ase: Event) -> bool:
    """Return whether ASE's relaxation ends elsewhere if its start is displaced by an error of rounding."""
    tolerance_ev = RELAXED_TOLERANCE_MEV / MEV * ase["atoms"]
    return any(abs(energy - ase["energy_ev"]) > tolerance_ev for energy in ase.get("displaced_energies_ev") or ())


def is_end_valid(record: RunRecord, relaxation: Event, ase: Event) -> bool:
    """Return whether ASE confirms the energies at the start and the converged end of a relaxation, and its forces."""
    pairs = [(relaxation["initial_energy_ev"], ase["initial_energy_ev"])]
    if (end := ase.get("batch_end")) is not None:
        pairs.append((relaxation["energy_ev"], end["energy_ev"]))
        if end["force_max_ev_per_angstrom"] > (1.0 + FORCE_TOLERANCE) * _get_parameter(record, "fmax"):
            return False
    tolerance_ev = TOLERANCE_MEV[_get_parameter(record, "precision")] / MEV * ase["atoms"]
    return all(abs(a - b) <= tolerance_ev for a, b in pairs)


def _describe_case(record: RunRecord) -> dict[str, Any]:
    facts, structures = record.facts, list(list_structures(record))
    workload, unfinished = facts["workload"], record.events("unfinished")
    reasons = Counter(e["reason"] for e in unfinished)
    setting = {
        name: _get_parameter(record, name)
        for name in ("motion", "precision", "batch_size", "time_step_fs", "steps", "temperature_k")
    }
    row = (
        _get_case(record)
        | setting
        | {
            "state": record.state,
            **judge(record),
            "source": workload["source"],
            **DYNAMICS.select(facts.get("model") or {}, "setting"),
            **{name: workload[name] for name in ("structures", "atoms", "earlier_batch_steps")},
            "finished": len(structures),
            "unfinished": len(unfinished),
            "reasons": "; ".join(f"{count} {reason}" for reason, count in reasons.most_common()),
            "threads": facts.get("runtime", {}).get("threads"),
            "device": facts.get("runtime", {}).get("device_name") or record.provenance.get("cpu"),
            "load_1min": max((s["load_1min"] for s in record.samples), default=math.nan),
        }
    )
    return row | _describe_speed(record, row) | _describe_physics(record, structures)


def _describe_speed(record: RunRecord, row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns on times, over all samples after the warm-up; only structures_per_s includes the warm-up."""
    samples = select_timed(record)
    if not samples:
        return {}
    total = {name: sum(s[name] for s in samples) for name in samples[0] if name.endswith(("_s", "_steps", "_lists"))}
    per_atom = compute_median_interval(compute_step_times(samples, "wall_s"))
    mean_batch = total["structure_steps"] / total["batch_steps"]
    columns = {
        **interval_columns("us_per_atom_step", per_atom),
        "cpu_us_per_atom_step": float(np.median(compute_step_times(samples, "cpu_s"))),
        "mean_batch": mean_batch,
        "lists_share": total["lists_s"] / total["wall_s"],
        "model_share": total["model_s"] / total["wall_s"],
        "integrator_share": 1.0 - (total["lists_s"] + total["model_s"]) / total["wall_s"],
        "steps_per_list": total["structure_steps"] / total["rebuilt_lists"] if total["rebuilt_lists"] else math.nan,
    }
    if row["motion"] == "relaxation":
        converged = sum(e["converged"] for e in record.events("relaxation"))
        columns["structures_per_s"] = converged / sum(s["wall_s"] for s in record.samples)
    else:
        rate = NS_PER_DAY_PER_FS_PER_S * row["time_step_fs"] * total["batch_steps"] / total["wall_s"]
        columns |= {"ns_per_day": rate, "ns_per_day_total": rate * mean_batch}
    return columns | _describe_ase(record, samples, row["verdict"])


def _describe_ase(record: RunRecord, samples: Sequence[Event], verdict: str) -> dict[str, Any]:
    ase = [dict(e, atom_steps=e["atoms"] * e["evaluations"]) for e in record.events("ase_sample")]
    if not ase:
        return {}
    columns = interval_columns("ase_us_per_atom_step", compute_median_interval(compute_step_times(ase, "wall_s")))
    columns["ase_cpu_us_per_atom_step"] = float(np.median(compute_step_times(ase, "cpu_s")))
    if verdict != "ok":
        return columns
    is_cpu = _get_parameter(record, "device") == "cpu"
    clock = "cpu_s" if is_cpu else "wall_s"
    ours, others = (compute_median_interval(compute_step_times(events, clock)) for events in (samples, ase))
    speedup = Interval(others.value / ours.value, others.low / ours.high, others.high / ours.low)
    return columns | interval_columns("speedup", speedup) | {"speedup_clock": "CPU time" if is_cpu else "wall time"}


def _describe_physics(record: RunRecord, structures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the columns on conservation, temperature and convergence."""
    motion, trajectories = _get_parameter(record, "motion"), record.events("trajectory")
    if motion == "relaxation":
        steps = [row["steps"] for row in structures]
        return {
            "converged": sum(row["converged"] for row in structures),
            "median_steps": float(np.median(steps)) if steps else math.nan,
        }
    if not trajectories:
        return {}
    temperature = compute_mean_temperature(trajectories, has_momentum=motion == "langevin")
    columns = interval_columns("mean_temperature_k", temperature)
    if motion == "nve":
        drifts = [row["drift_mev_per_atom_ps"] for row in structures]
        columns |= {
            **interval_columns("drift_mev_per_atom_ps", compute_mean_interval(drifts)),
            "drift_max_mev_per_atom_ps": float(np.max(np.abs(drifts))),
            "fluctuation_mev_per_atom": float(np.median([row["fluctuation_mev_per_atom"] for row in structures])),
        }
    return columns
