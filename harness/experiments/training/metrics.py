"""Tables on training: runs, learning curves and errors on held-out structures.

A run logs the facts `model`, `workload`, `runtime`, `test_errors` (a row per head) and, optionally, `gate`, and the
events `epoch`, `head_errors`, `resumed` and `stopped`. Runs that only differ in the seed have the same setup.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Literal

import pandas as pd

from harness.experiments.experiment import THROUGHPUT, Metric, MetricSamples, WorkCount, select_numbers
from harness.experiments.implementations import get_implementation_name
from harness.experiments.physics import CHECK_COLUMNS, judge_checks, list_checks, name_violated
from harness.experiments.training.imbalance import build_imbalance_tables
from harness.experiments.training.multitask import build_ablation_tables
from harness.experiments.training.quantities import ENERGY, HEAD, QUANTITIES, Quantity, average_by_seed
from harness.protocol.backbones import describe_architecture
from harness.protocol.parameters import RESULT_DTYPES
from harness.protocol.types import Scope
from harness.results.runs import RunRecord
from harness.results.tables import Columns, Table, interval_columns
from harness.stats.intervals import compute_mean_interval

RUNS = Columns(
    "training_runs",
    case="campaign suite system case id setup recipe regime seed split_seed",
    data="datasets data stand_ins evaluated_heads structures elements",
    model="implementation backbone architecture hidden_dim num_conv_layers parameters",
    precision="precision observed_dtypes dtypes_match_request compiled eager_reason message_backend unfused_reason"
    " default_sums_reason",
    length="epochs epochs_done steps batch_size global_batch_size budget best_epoch validation_loss stop_reason"
    " n_resumptions skipped_steps",
    rates="train_s structures_per_s data_wait_fraction",
    heads="shrunk_heads gate_energy_error_ev_per_atom gate_accuracy",
    physics="physics physics_violated",
    machine="world_size device threads torch",
    folder="folder",
)
HELD_OUT = Columns(
    "training_test_errors",
    run="setup recipe regime seed case",
    head="head dataset data_origin level_of_theory structures atoms structures_with_unseen_elements",
    errors="energy_mae_ev_per_atom energy_rmse_ev_per_atom force_mae_ev_per_angstrom force_rmse_ev_per_angstrom"
    " composition_mae_ev_per_atom composition_rmse_ev_per_atom mean_mae_ev_per_atom zero_force_mae_ev_per_angstrom"
    " zero_force_rmse_ev_per_angstrom",
    folder="folder",
)
ERRORS = Columns(
    "training_errors",
    setup="setup regime",
    head=HEAD,
    errors="quantity seeds mae mae_low mae_high rmse rmse_low rmse_high",
    baselines="baseline_mae baseline_rmse mean_mae ratio ratio_low ratio_high",
    verdict="target verdict",
)
EPOCHS = Columns(
    "training_epochs",
    run="setup regime seed case",
    counts="epoch",
    curves="step loss energy_mae_ev_per_atom force_mae_ev_per_angstrom validation_loss"
    " validation_energy_mae_ev_per_atom validation_force_mae_ev_per_angstrom learning_rate duration_s wait_s"
    " structures_per_s",
    best="best",
)
HEADS = Columns(
    "training_heads",
    run="setup regime seed case",
    head="epoch step head dataset split",
    errors="energy_mae_ev_per_atom force_mae_ev_per_angstrom structures",
)
PHYSICS = Columns("training_physics", run="setup seed case precision", check=CHECK_COLUMNS, folder="folder")
VALIDATION_LOSS = Metric("validation loss", "", "lower")
# Parameters in which multi-task training and the single-task training that it is compared with may differ: parameters
# of the budget, and parameters without an effect on a single dataset.
BUDGET_PARAMETERS = frozenset(
    {
        "datasets",
        "epochs",
        "samples_per_epoch",
        "batch_size",
        "sampling",
        "sampling_temperature",
        "balance",
        "gate_steps",
    }
)
# The fields of the fact `runtime` with the types that occurred in one pass.
OBSERVED_QUANTITIES = ("parameters", "matrix_layers", "pooled", "energies", "loss", "forces")
Verdict = Literal["met", "missed", "not finite", "no labels", "no structures"]


def build_tables(records: Sequence[RunRecord]) -> dict[str, pd.DataFrame]:
    """Return the tables on finished training runs; missing values are NaN or None.

    `training_runs` has a row per run, `training_test_errors` a row per run and head, `training_epochs` a row per run
    and epoch, and `training_heads` a row per run, epoch and head, with the values of the log. `training_physics` has a
    row per run and check of its checkpoint. `training_errors` has a row per setup, head and quantity, with means over
    seeds, 95% intervals, and the baselines. For `ablation_*` and `imbalance_*`, see the modules multitask and
    imbalance.
    """
    runs = [r for r in records if r.program == "train" and r.state == "done"]
    runs = [r for r in runs if not r.case.get("parameters", {}).get("holdout")]  # these are about generalisation
    runs = [r for r in runs if r.facts.get("test_errors") and r.facts.get("workload", {}).get("datasets")]
    identified = [(r, _get_run_columns(r)) for r in runs]
    test_errors = _convert_to_floats(
        HELD_OUT.build(
            {**HELD_OUT.select(row), **names, "folder": r.location}
            for r, names in identified
            for row in r.facts["test_errors"]
        ),
        HELD_OUT["errors"],
    )
    epochs = EPOCHS.build(
        {**EPOCHS.select(e), **EPOCHS.select(names)} for r, names in identified for e in r.events("epoch")
    )
    heads = HEADS.build(
        {**HEADS.select(e), **HEADS.select(names)} for r, names in identified for e in _list_head_events(r)
    )
    return {
        "training_runs": RUNS.build({**names, **_describe_run(r)} for r, names in identified),
        "training_test_errors": test_errors,
        "training_epochs": _convert_to_floats(epochs, EPOCHS["curves"]),
        "training_heads": _convert_to_floats(heads, HEADS["errors"]),
        "training_errors": _build_errors(test_errors),
        "training_physics": PHYSICS.build(
            {**PHYSICS.select(names), **check, "precision": r.case["parameters"].get("precision")}
            for r, names in identified
            for check in list_checks(r)
        ),
        **build_ablation_tables(test_errors),
        **build_imbalance_tables(identified, test_errors),
    }


def list_metric_samples(record: RunRecord) -> Iterator[MetricSamples]:
    """Yield the throughput, with a sample per epoch, and the lowest validation loss."""
    epochs = record.events("epoch")
    yield MetricSamples(THROUGHPUT, select_numbers(e.get("structures_per_s") for e in epochs))
    losses = select_numbers(e.get("validation_loss") for e in epochs)
    yield MetricSamples(VALIDATION_LOSS, (min(losses),) if losses else ())


def count_work(record: RunRecord, scope: Scope, name: str) -> WorkCount:
    """Return the number of structures, steps x global batch size, of all epochs or of one epoch."""
    steps, previous = {}, 0
    for event in record.events("epoch"):
        steps[str(event["epoch"])] = event["step"] - previous
        previous = event["step"]
    n_steps = sum(steps.values()) if scope == "case" else steps.get(name, 0)
    return float(n_steps * record.facts.get("workload", {}).get("global_batch_size", math.nan)), "structure"


def _convert_to_floats(table: Table, columns: tuple[str, ...]) -> Table:
    """Return the table with these columns as floats."""
    return table.astype(dict.fromkeys(columns, float))


def _get_run_columns(record: RunRecord) -> dict[str, Any]:
    """Return the columns of every row of a run: its case, its seed, and two digests.

    Runs whose errors are averaged have the same `setup`: all parameters but the seed; in single-task training, the
    datasets may differ, since errors are averaged per head. Runs that are compared with each other, multi-task with
    single-task, have the same `recipe`.
    """
    case, facts = record.case, record.facts
    workload, parameters = facts["workload"], case.get("parameters", {})
    names = sorted(s["dataset"] for s in workload["datasets"])
    config = {k: v for k, v in facts.get("model", {}).get("config", {}).items() if k != "heads"}
    common = [record.campaign, case.get("settings"), config, workload.get("split_seed")]
    is_single = len(names) == 1
    return {
        "case": case.get("name"),
        "setup": _digest(*common, _remove_keys(parameters, {"seed", "datasets"}), "alone" if is_single else names),
        "recipe": _digest(*common, _remove_keys(parameters, BUDGET_PARAMETERS | {"seed"})),
        "regime": "single-task" if is_single else "multi-task",
        "seed": workload.get("seed"),
    }


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


def _remove_keys(value: Any, keys: Set[str]) -> Any:
    """Return the value without these keys, at any depth."""
    if isinstance(value, dict):
        return {k: _remove_keys(v, keys) for k, v in value.items() if k not in keys}
    return value


def _describe_run(record: RunRecord) -> dict[str, Any]:
    case, facts = record.case, record.facts
    workload, model, observed, gate = (facts.get(k) or {} for k in ("workload", "model", "runtime", "gate"))
    epochs, origins = record.events("epoch"), [s["data_origin"] for s in workload["datasets"]]
    waits = [e["wait_s"] for e in epochs if e.get("wait_s") is not None]
    best = next((e for e in reversed(epochs) if e.get("best")), {})
    checks = record.events("physics_check")
    return {
        "campaign": record.campaign,
        **{k: case.get(k) for k in ("suite", "system", "id")},
        "datasets": len(origins),
        "data": ", ".join(f"{s['dataset']} ({s['data_origin']})" for s in workload["datasets"]),
        "stand_ins": sum(origin.startswith("stand-in") for origin in origins),
        "evaluated_heads": sum(row.get(ENERGY.mae) is not None for row in facts["test_errors"]),
        "structures": sum(s.get("train") or 0 for s in workload["datasets"]),
        "elements": len(workload.get("elements", [])),
        "implementation": get_implementation_name(record) or None,
        **{k: model.get("config", {}).get(k) for k in ("backbone", "hidden_dim", "num_conv_layers")},
        "architecture": describe_architecture(model.get("config", {})),
        "parameters": model.get("parameters"),
        "precision": observed.get("precision"),
        "observed_dtypes": _format_types(observed),
        "dtypes_match_request": _has_requested_types(observed),
        **{k: observed.get(k) for k in ("compiled", "eager_reason", "unfused_reason", "default_sums_reason")},
        **{k: observed.get(k) for k in ("world_size", "device", "threads", "torch")},
        "message_backend": observed.get("message_backend", "unfused"),
        **{k: workload.get(k) for k in ("split_seed", "epochs", "batch_size")},
        "global_batch_size": workload.get("global_batch_size"),
        "budget": math.prod(workload.get(k) or 0 for k in ("epochs", "steps_per_epoch", "global_batch_size")),
        "epochs_done": len(epochs),
        "steps": epochs[-1]["step"] if epochs else None,
        "best_epoch": best.get("epoch"),
        "validation_loss": best.get("validation_loss"),
        "stop_reason": next((e["reason"] for e in record.events("stopped")), None),
        "n_resumptions": len(record.events("resumed")),
        "skipped_steps": len(record.events("skipped")),
        "train_s": facts.get("train_s", sum(e["duration_s"] for e in epochs)),
        "structures_per_s": statistics.median(rates) if (rates := [e["structures_per_s"] for e in epochs]) else None,
        "data_wait_fraction": sum(waits) / seconds
        if waits and (seconds := sum(e["duration_s"] for e in epochs))
        else None,
        "shrunk_heads": name_shrunk_heads(facts.get("head_factors") or ()) or None,
        "gate_energy_error_ev_per_atom": gate.get("energy_error_ev_per_atom"),
        "gate_accuracy": gate.get("accuracy"),
        "physics": judge_checks(checks)[0] if checks else None,
        "physics_violated": name_violated(checks) or None,
        "folder": record.location,
    }


def name_shrunk_heads(factors: Iterable[Mapping[str, Any]]) -> str:
    """Return the heads whose learnt energies were multiplied by less than 1, with their factors."""
    return ", ".join(f"{row['head']} ({row['factor']:.2g})" for row in factors if row["factor"] < 1)


def _collect_types(observed: dict[str, Any]) -> dict[str, set[str]]:
    """Return the observed types by quantity."""
    values = {k: observed[k] for k in OBSERVED_QUANTITIES if observed.get(k)}
    return {k: set(types if isinstance(types, list) else [types]) for k, types in values.items()}


def _format_types(observed: dict[str, Any]) -> str:
    """Return the observed types as text: `float32 throughout`, or the types of each quantity."""
    texts = {k: ", ".join(sorted(v)).replace("torch.", "") for k, v in _collect_types(observed).items()}
    if len(set(texts.values())) == 1:
        return f"{texts.popitem()[1]} throughout"
    return "; ".join(f"{k.replace('_', ' ')} {types}" for k, types in texts.items())


def _has_requested_types(observed: dict[str, Any]) -> bool:
    """Return whether each quantity has the type of the requested precision; bf16 only changes the matrix layers."""
    expected, bfloat16 = RESULT_DTYPES.get(observed.get("precision", "")), "torch.bfloat16"
    by_quantity = _collect_types(observed)
    matrices = by_quantity.pop("matrix_layers", set())
    if observed.get("precision") == "bf16":
        is_correct = observed.get("autocast") == bfloat16 and (not matrices or bfloat16 in matrices)
    else:
        is_correct = observed.get("autocast") is None and matrices <= {expected}
    return is_correct and bool(by_quantity) and all(types == {expected} for types in by_quantity.values())


def _list_head_events(record: RunRecord) -> list[dict[str, Any]]:
    """Return the events `head_errors` with the step at the end of their epoch, without those of unknown epochs."""
    steps = {e["epoch"]: e["step"] for e in record.events("epoch")}
    events = record.events("head_errors")
    return [{**e, "step": steps[e["epoch"]]} for e in events if e["epoch"] in steps]


def _build_errors(test_errors: pd.DataFrame) -> Table:
    groups = test_errors.groupby(["setup", "head"], sort=False)
    return ERRORS.build(_summarize_errors(rows, quantity) for _, rows in groups for quantity in QUANTITIES)


def _summarize_errors(rows: pd.DataFrame, quantity: Quantity) -> dict[str, Any]:
    """Return the errors of one head and quantity over all seeds of a setup."""
    first = rows.iloc[0]
    mae, baseline = average_by_seed(rows, quantity.mae), average_by_seed(rows, quantity.baseline_mae)
    ratio = compute_mean_interval(mae / baseline.where(baseline > 0))
    return {
        **{k: first[k] for k in (*ERRORS["setup"], *HEAD)},
        "quantity": quantity.name,
        "seeds": len(mae),
        **interval_columns("mae", compute_mean_interval(mae)),
        **interval_columns("rmse", compute_mean_interval(average_by_seed(rows, quantity.rmse))),
        "baseline_mae": baseline.mean(),
        "baseline_rmse": rows[quantity.baseline_rmse].mean(),
        "mean_mae": rows[quantity.mean_mae].mean() if quantity.mean_mae else math.nan,
        **interval_columns("ratio", ratio),
        "target": quantity.target,
        "verdict": _judge(rows, quantity, ratio.value),
    }


def _judge(rows: pd.DataFrame, quantity: Quantity, ratio: float) -> Verdict:
    if not (rows["structures"] > 0).any():
        return "no structures"
    if rows[quantity.baseline_mae].isna().all() and rows[quantity.mae].isna().all():
        return "no labels"
    if rows[quantity.mae].isna().any():
        return "not finite"
    return "met" if ratio <= quantity.target else "missed"
