"""Training of models: records of the program `train` -> runs, learning curves and errors on held-out structures.

A run leaves the facts model, workload, observed, held_out (a row a head) and perhaps gate, and the events epoch, head,
resumed and stopped. Runs that differ in nothing but the seed are one experiment.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from harness.results.runs import Record
from harness.stats.means import Mean, mean_interval

RUNS = (
    "campaign", "suite", "system", "case", "id", "experiment", "recipe", "task", "seed", "split_seed", "sets", "data",
    "stand_ins", "judged_heads", "structures", "elements", "backbone", "hidden_dim", "num_conv_layers", "parameters",
    "precision", "found", "as_asked", "compiled", "why_eager", "messages", "why_plain", "epochs",
    "epochs_done", "steps", "batch_size", "global_batch", "budget", "best_epoch", "validation_loss", "stopped",
    "resumed", "skipped", "train_s",
    "graphs_per_s", "waiting", "gate_energy_error_ev_per_atom", "gate_right_branch", "world_size", "device", "threads",
    "torch", "folder",
)  # fmt: skip
HELD_OUT = (
    "experiment", "recipe", "task", "seed", "case", "head", "set", "role", "level", "structures", "atoms",
    "unseen_elements", "energy_mae_ev_per_atom", "energy_rmse_ev_per_atom", "force_mae_ev_per_a", "force_rmse_ev_per_a",
    "composition_mae_ev_per_atom", "composition_rmse_ev_per_atom", "mean_mae_ev_per_atom", "zero_force_mae_ev_per_a",
    "zero_force_rmse_ev_per_a", "folder",
)  # fmt: skip
ABOUT = ("head", "set", "role", "level", "structures", "unseen_elements")
ERRORS = (
    "experiment", "task", *ABOUT, "quantity", "seeds", "mae", "mae_low", "mae_high", "rmse", "rmse_low", "rmse_high",
    "baseline_mae", "baseline_rmse", "mean_mae", "ratio", "ratio_low", "ratio_high", "target", "verdict",
)  # fmt: skip
EPOCHS = (
    "experiment", "task", "seed", "case", "epoch", "step", "loss", "energy_mae_ev_per_atom", "force_mae_ev_per_a",
    "validation_loss", "validation_energy_mae_ev_per_atom", "validation_force_mae_ev_per_a", "learning_rate", "seconds",
    "wait_s", "graphs_per_s", "best",
)  # fmt: skip
HEADS = (
    "experiment", "task", "seed", "case", "epoch", "step", "head", "set", "split", "energy_mae_ev_per_atom",
    "force_mae_ev_per_a", "structures",
)  # fmt: skip
# Parameters in which multi-task training and its single-task twins may differ: of the budget, and idle with one set.
FREE = frozenset({"sets", "epochs", "epoch_length", "batch_size", "sampling", "temperature", "balance", "gate_steps"})
# Where types are observed in one pass.
PLACES = ("parameters", "matrix_layers", "pooled", "energies", "loss", "forces")
FLOATS = {"fp64": "torch.float64", "fp32": "torch.float32", "bf16": "torch.float32"}
Verdict = Literal["met", "missed", "not finite", "no labels", "no structures"]


@dataclass(frozen=True)
class Quantity:
    """What is predicted, the columns that tell of it, and how far below its baseline the error ought to be."""

    name: str
    mae: str
    rmse: str
    baseline_mae: str
    baseline_rmse: str
    target: float
    mean_mae: str | None = None


ENERGY = Quantity(
    "energy", "energy_mae_ev_per_atom", "energy_rmse_ev_per_atom", "composition_mae_ev_per_atom",
    "composition_rmse_ev_per_atom", 1 / 3, "mean_mae_ev_per_atom",
)  # fmt: skip
FORCES = Quantity(
    "forces", "force_mae_ev_per_a", "force_rmse_ev_per_a", "zero_force_mae_ev_per_a", "zero_force_rmse_ev_per_a", 1 / 2
)
QUANTITIES = (ENERGY, FORCES)


@dataclass(frozen=True)
class TrainingTables:
    """runs, held_out, epochs, heads: as the runs left them, a row a run, run and head, run and epoch, or all three.

    errors: a row an experiment, head and quantity, means over seeds with 95% intervals beside the baselines.
    """

    runs: pd.DataFrame
    held_out: pd.DataFrame
    epochs: pd.DataFrame
    heads: pd.DataFrame
    errors: pd.DataFrame


def training_tables(records: list[Record]) -> TrainingTables:
    """All tables on training, of finished runs alone; missing values are NaN or None."""
    done = [r for r in records if r.case.get("program") == "train" and r.state == "done"]
    done = [r for r in done if r.facts.get("held_out") and r.facts.get("workload", {}).get("sets")]
    names = [_names(r) for r in done]
    runs = pd.DataFrame([{**n, **_run(r)} for n, r in zip(names, done, strict=True)], columns=RUNS)
    told = [
        {**row, **n, "folder": str(r.folder)} for n, r in zip(names, done, strict=True) for row in r.facts["held_out"]
    ]
    held_out = _numbers(pd.DataFrame(told, columns=HELD_OUT), HELD_OUT[12:-1])
    epochs = [{**event, **n} for n, r in zip(names, done, strict=True) for event in r.others.get("epoch", [])]
    heads = [{**event, **n} for n, r in zip(names, done, strict=True) for event in _heads(r)]
    return TrainingTables(
        runs,
        held_out,
        _numbers(pd.DataFrame(epochs, columns=EPOCHS), EPOCHS[5:-1]),
        _numbers(pd.DataFrame(heads, columns=HEADS), HEADS[9:]),
        _errors(held_out),
    )


def _numbers(table: pd.DataFrame, columns: tuple[str, ...]) -> pd.DataFrame:
    return table.astype(dict.fromkeys(columns, float))


def _names(record: Record) -> dict[str, Any]:
    """What every row of a run carries: whose it is, and what it may be averaged with or held against."""
    case, facts = record.case, record.facts
    workload, parameters = facts["workload"], case.get("parameters", {})
    names = sorted(s["set"] for s in workload["sets"])
    config = {k: v for k, v in facts.get("model", {}).get("config", {}).items() if k != "heads"}
    common = [record.folder.parent.name, case.get("settings"), config, workload.get("split_seed")]
    alone = len(names) == 1
    return {
        "case": case.get("name"),
        "experiment": _digest(*common, _without(parameters, {"seed", "sets"}), "alone" if alone else names),
        "recipe": _digest(*common, _without(parameters, FREE | {"seed"})),
        "task": "single-task" if alone else "multi-task",
        "seed": workload.get("seed"),
    }


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _without(value: Any, keys: Set[str]) -> Any:
    """The value, at no depth with one of the keys."""
    if isinstance(value, dict):
        return {k: _without(v, keys) for k, v in value.items() if k not in keys}
    return value


def _run(record: Record) -> dict[str, Any]:
    case, facts = record.case, record.facts
    workload, about, seen, gate = (facts.get(k) or {} for k in ("workload", "model", "observed", "gate"))
    epochs, roles = record.others.get("epoch", []), [s["role"] for s in workload["sets"]]
    waits = [e["wait_s"] for e in epochs if e.get("wait_s") is not None]
    best = next((e for e in reversed(epochs) if e.get("best")), {})
    return {
        "campaign": record.folder.parent.name,
        **{k: case.get(k) for k in ("suite", "system", "id")},
        "sets": len(roles),
        "data": ", ".join(f"{s['set']} ({s['role']})" for s in workload["sets"]),
        "stand_ins": sum(role.startswith("stand-in") for role in roles),
        "judged_heads": sum(row.get(ENERGY.mae) is not None for row in facts["held_out"]),
        "structures": sum(s.get("train") or 0 for s in workload["sets"]),
        "elements": len(workload.get("elements", [])),
        **{k: about.get("config", {}).get(k) for k in ("backbone", "hidden_dim", "num_conv_layers")},
        "parameters": about.get("parameters"),
        "precision": seen.get("requested"),
        "found": _types(seen),
        "as_asked": _as_asked(seen),
        **{k: seen.get(k) for k in ("compiled", "why_eager", "why_plain", "world_size", "device", "threads", "torch")},
        "messages": seen.get("messages", "plain"),
        **{k: workload.get(k) for k in ("split_seed", "epochs", "batch_size")},
        "global_batch": workload.get("global_batch_size"),
        "budget": math.prod(workload.get(k) or 0 for k in ("epochs", "steps_per_epoch", "global_batch_size")),
        "epochs_done": len(epochs),
        "steps": epochs[-1]["step"] if epochs else None,
        "best_epoch": best.get("epoch"),
        "validation_loss": best.get("validation_loss"),
        "stopped": next((e["why"] for e in record.others.get("stopped", [])), None),
        "resumed": len(record.others.get("resumed", [])),
        "skipped": len(record.others.get("skipped", [])),
        "train_s": facts.get("train_s", sum(e["seconds"] for e in epochs)),
        "graphs_per_s": statistics.median(rates) if (rates := [e["graphs_per_s"] for e in epochs]) else None,
        "waiting": sum(waits) / seconds if waits and (seconds := sum(e["seconds"] for e in epochs)) else None,
        "gate_energy_error_ev_per_atom": gate.get("energy_error_ev_per_atom"),
        "gate_right_branch": gate.get("right_branch"),
        "folder": str(record.folder),
    }


def _found(seen: dict[str, Any]) -> dict[str, set[str]]:
    """The types at each place where any were observed."""
    each = {k: seen[k] if isinstance(seen[k], list) else [seen[k]] for k in PLACES if seen.get(k)}
    return {k: set(types) for k, types in each.items()}


def _types(seen: dict[str, Any]) -> str:
    """`float32 throughout`, or what was found where."""
    each = {k: ", ".join(sorted(types)).replace("torch.", "") for k, types in _found(seen).items()}
    if len(set(each.values())) == 1:
        return f"{each.popitem()[1]} throughout"
    return "; ".join(f"{k.replace('_', ' ')} {types}" for k, types in each.items())


def _as_asked(seen: dict[str, Any]) -> bool:
    """Whether each place has the type that the precision asks for; bf16 has its own in matrix layers alone."""
    wanted, half, found = FLOATS.get(seen.get("requested", "")), "torch.bfloat16", _found(seen)
    matrices = found.pop("matrix_layers", set())
    if seen.get("requested") == "bf16":
        right = seen.get("autocast") == half and (not matrices or half in matrices)
    else:
        right = seen.get("autocast") is None and matrices <= {wanted}
    return right and bool(found) and all(types == {wanted} for types in found.values())


def _heads(record: Record) -> list[dict[str, Any]]:
    """The curves of the heads over steps, of those epochs that are known."""
    steps = {e["epoch"]: e["step"] for e in record.others.get("epoch", [])}
    events = record.others.get("head", [])
    return [{**e, "step": steps[e["epoch"]]} for e in events if e["epoch"] in steps]


def _errors(held_out: pd.DataFrame) -> pd.DataFrame:
    groups = held_out.groupby(["experiment", "head"], sort=False)
    return pd.DataFrame([_error(own, q) for _, own in groups for q in QUANTITIES], columns=ERRORS)


def _error(own: pd.DataFrame, quantity: Quantity) -> dict[str, Any]:
    """Of one head and quantity, over all seeds of an experiment."""
    first = own.iloc[0]
    mae, baseline = by_seed(own, quantity.mae), by_seed(own, quantity.baseline_mae)
    ratio = mean_interval(mae / baseline.where(baseline > 0))
    return {
        **{k: first[k] for k in ("experiment", "task", *ABOUT)},
        "quantity": quantity.name,
        "seeds": len(mae),
        **spread("mae", mean_interval(mae)),
        **spread("rmse", mean_interval(by_seed(own, quantity.rmse))),
        "baseline_mae": baseline.mean(),
        "baseline_rmse": own[quantity.baseline_rmse].mean(),
        "mean_mae": own[quantity.mean_mae].mean() if quantity.mean_mae else math.nan,
        **spread("ratio", ratio),
        "target": quantity.target,
        "verdict": _verdict(own, quantity, ratio.value),
    }


def by_seed(own: pd.DataFrame, column: str) -> pd.Series[float]:
    """The column by seed, of one seed run again the mean; not a number as soon as one of them is none."""
    return own.groupby("seed", dropna=False)[column].agg(lambda values: values.mean(skipna=False))


def spread(name: str, found: Mean) -> dict[str, float]:
    """A mean and its interval as three columns."""
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _verdict(own: pd.DataFrame, quantity: Quantity, ratio: float) -> Verdict:
    if not (own["structures"] > 0).any():
        return "no structures"
    if own[quantity.baseline_mae].isna().all() and own[quantity.mae].isna().all():
        return "no labels"
    if own[quantity.mae].isna().any():
        return "not finite"
    return "met" if ratio <= quantity.target else "missed"
