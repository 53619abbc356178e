"""Events of training runs become tables, figures, verdicts and sections of the report."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.claims.evaluate import judge_papers
from harness.claims.papers import load_papers
from harness.experiments.tables import build_results
from harness.experiments.training.descriptions import describe_runs
from harness.experiments.training.metrics import build_tables
from harness.protocol.events import JsonLinesLog
from harness.report.overview import format_measured
from harness.report.render import write_report
from harness.results.runs import load_runs
from harness.stats.intervals import compute_geometric_mean_interval, compute_mean_interval
from tests.conftest import read_pages

HEADS = (
    "Alexandria", "ANI1x", "MPTrj", "OC2020", "OC2022", "OC25", "ODAC23", "OMat24", "OMol25", "OMol25-neutral",
    "OMol25-non-neutral", "OPoly2026", "Nabla2DFT", "QCML", "QM7X", "transition1x",
)  # fmt: skip
SAMPLES = ("Alexandria", "MPTrj")
ZERO_FORCES = ("zero_force_mae_ev_per_angstrom", "zero_force_rmse_ev_per_angstrom")
T2 = 4.302652729749458  # 97.5% quantile of Student's distribution with two degrees of freedom
Errors = dict[str, tuple[float | None, float | None]]


def make_row(head: str, energy: float | None, force: float | None, **changes: Any) -> dict[str, Any]:
    """Return the errors of a head; the baselines are 90 meV/atom (composition) and 400 meV/angstrom (zero forces)."""
    return {
        "head": head, "dataset": head.lower(),
        "data_origin": f"sample of {head}" if head in SAMPLES else f"stand-in for {head}",
        "level_of_theory": "PBE <& co>", "structures": 50, "atoms": 700, "structures_with_unseen_elements": 0,
        "energy_mae_ev_per_atom": energy, "energy_rmse_ev_per_atom": None if energy is None else 2 * energy,
        "force_mae_ev_per_angstrom": force, "force_rmse_ev_per_angstrom": None if force is None else 3 * force,
        "composition_mae_ev_per_atom": 0.09, "composition_rmse_ev_per_atom": 0.12, "mean_mae_ev_per_atom": 0.5,
        "zero_force_mae_ev_per_angstrom": 0.4, "zero_force_rmse_ev_per_angstrom": 0.7,
    } | changes  # fmt: skip


def make_epoch(number: int, loss: float = 1.0, **changes: Any) -> dict[str, Any]:
    """Return the event of an epoch of ten steps."""
    return {
        "epoch": number, "step": 10 * (number + 1), "loss": loss, "energy_mae_ev_per_atom": 0.1 * loss,
        "force_mae_ev_per_angstrom": loss, "validation_loss": 1.5 * loss, "validation_energy_mae_ev_per_atom": 0.1,
        "validation_force_mae_ev_per_angstrom": 0.2, "learning_rate": 1e-3, "duration_s": 2.0, "wait_s": 0.1,
        "structures_per_s": 80.0 + number, "best": True,
    } | changes  # fmt: skip


def start_run(out: Path, name: str, rows: list[dict[str, Any]], seed: int, **changes: Any) -> JsonLinesLog:
    """Write a run up to its first step and return its log; `changes` override parts of its case and its facts."""
    folder = out / "runs" / changes.get("campaign", "pretrain-local") / name
    folder.mkdir(parents=True, exist_ok=True)
    parameters = {"datasets": [r["dataset"] for r in rows], "seed": seed, **changes.get("parameters", {})}
    case = {"id": name, "name": name, "suite": "pretrain", "program": "train", "parameters": parameters}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text(f"{changes.get('exit_code', 0)}\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    config = {"backbone": "painn", "hidden_dim": 64, "num_conv_layers": 3, "heads": len(rows)}
    log.write_fact("model", {"config": config, "parameters": 123_456})
    sets = [
        {k: r[k] for k in ("dataset", "head", "data_origin", "level_of_theory")} | {"train": 400, "test": 50}
        for r in rows
    ]
    workload = {
        "datasets": sets, "elements": list(range(1, 90)), "batch_size": 8, "global_batch_size": 8, "epochs": 3,
        "steps_per_epoch": 10, "temperature": 2.0, "seed": seed, "sampling": "mixed", "split_seed": 7,
    }  # fmt: skip
    log.write_fact("workload", workload | changes.get("workload", {}))
    observed = {
        "precision": "fp32", "parameters": ["torch.float32"], "energies": "torch.float32", "forces": "torch.float32",
        "matrix_layers": ["torch.float32"],
        "autocast": None, "compiled": True, "eager_reason": None, "world_size": 1, "backend": None, "device": "cpu",
        "threads": 2, "torch": "2.9",
    }  # fmt: skip
    log.write_fact("runtime", observed | changes.get("runtime", {}))
    return log


def write_run(out: Path, name: str, rows: list[dict[str, Any]], seed: int = 0, **changes: Any) -> None:
    """Write a finished run of three epochs; `changes` override parts of its case and its facts."""
    log = start_run(out, name, rows, seed, **changes)
    for number, loss in enumerate(changes.get("losses", (4.0, 2.0, 1.0))):
        log.write("epoch", **make_epoch(number, loss))
        for row in rows:
            for split in ("train", "validation"):
                fields = {
                    "epoch": number,
                    "head": row["head"],
                    "dataset": row["dataset"],
                    "split": split,
                    "structures": 40,
                }
                force = None if row["force_mae_ev_per_angstrom"] is None else row["force_mae_ev_per_angstrom"] * loss
                energy = (row["energy_mae_ev_per_atom"] or 0.1) * loss
                log.write("head_errors", **fields, energy_mae_ev_per_atom=energy, force_mae_ev_per_angstrom=force)
    log.write_fact("test_errors", rows)
    if len(rows) > 1:
        log.write_fact("gate", {"energy_error_ev_per_atom": 0.02, "accuracy": 0.9 + 0.01 * seed})
    log.write_fact("train_s", 6.0)
    for check in changes.get("physics", ()):
        log.write("physics_check", **check)
    log.write("done")


def load_tables(out: Path) -> dict[str, pd.DataFrame]:
    return build_tables(load_runs(out / "runs"))


def write_all_runs(out: Path) -> None:
    """Write runs of three seeds with all heads together and, as an ablation, with each head alone."""
    rng = np.random.default_rng(0)
    level = {h: (rng.uniform(0.01, 0.05), rng.uniform(0.05, 0.3)) for h in HEADS}
    ratio = {h: rng.uniform(0.6, 1.3) for h in HEADS}

    def rows(scale: dict[str, float]) -> list[dict[str, Any]]:
        noise = rng.lognormal(0, 0.05, (len(HEADS), 2))
        return [
            make_row(h, level[h][0] * scale[h] * e, None if h == "QM7X" else level[h][1] * scale[h] * f,
                     **(dict.fromkeys(ZERO_FORCES) if h == "QM7X" else {}))
            for h, (e, f) in zip(HEADS, noise, strict=True)
        ]  # fmt: skip

    for seed in range(3):
        write_run(out, f"pretrain-{seed}", rows(ratio), seed)
        write_run(out, f"all-{seed}", rows(ratio), seed, campaign="multitask-local")
        for row in rows(dict.fromkeys(HEADS, 1.0)):
            write_run(out, f"{row['dataset']}-{seed}", [row], seed, campaign="multitask-local")


def test_errors_are_means_over_seeds_with_interval(tmp_path: Path) -> None:
    for seed, (energy, force) in enumerate([(0.010, 0.1), (0.012, 0.2), (0.014, 0.3)]):
        write_run(tmp_path, f"run-{seed}", [make_row("MPTrj", energy, force), make_row("QCML", 0.1, 0.1)], seed)
    errors = load_tables(tmp_path)["training_errors"].set_index(["head", "quantity"])
    row = errors.loc[("MPTrj", "energy")]
    half = T2 * 0.002 / math.sqrt(3)
    assert (row["mae"], row["mae_low"], row["mae_high"]) == pytest.approx((0.012, 0.012 - half, 0.012 + half))
    assert (row["rmse"], row["rmse_high"]) == pytest.approx((0.024, 0.024 + 2 * half))
    assert (row["ratio"], row["ratio_high"]) == pytest.approx((0.012 / 0.09, (0.012 + half) / 0.09))
    assert (row["baseline_mae"], row["baseline_rmse"], row["mean_mae"]) == pytest.approx((0.09, 0.12, 0.5))
    assert (row["seeds"], row["structures"], row["verdict"]) == (3, 50, "met")
    assert errors.loc[("QCML", "energy"), "verdict"] == "missed"
    assert errors.loc[("QCML", "energy"), "mae_low"] == pytest.approx(0.1)
    forces = errors.loc[("MPTrj", "forces")]
    assert (forces["mae"], forces["rmse"], forces["ratio"]) == pytest.approx((0.2, 0.6, 0.5))
    assert forces["baseline_mae"] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("energy", "force", "verdicts"),
    [(0.0299, 0.199, ("met", "met")), (0.0301, 0.199, ("missed", "met")), (0.0299, 0.201, ("met", "missed"))],
)
def test_verdicts_follow_from_the_targets(
    tmp_path: Path, energy: float, force: float, verdicts: tuple[str, str]
) -> None:
    write_run(tmp_path, "run", [make_row("MPTrj", energy, force), make_row("QCML", 0.01, 0.1)])
    errors = load_tables(tmp_path)["training_errors"].set_index(["head", "quantity"])["verdict"]
    assert (errors["MPTrj", "energy"], errors["MPTrj", "forces"]) == verdicts
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    for title, verdict in zip(("Energy per atom", "Forces"), verdicts, strict=True):
        sentence = re.search(rf"{title}: the MAE is at most .*? for (\d) of 2 heads\.(.*)", text)
        assert sentence is not None
        assert sentence[1] == ("2" if verdict == "met" else "1")
        assert ("larger for MPTrj" in sentence[2]) == (verdict == "missed")


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path, "run", [make_row("MPTrj", 0.0123, 0.111), make_row("QCML", 0.1, 0.1)], seed=4)
    row = load_tables(tmp_path)["training_errors"].iloc[0]
    assert row["mae"] == 0.0123
    assert math.isnan(row["mae_low"])
    assert math.isnan(row["ratio_high"])
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "one seed (4), hence no intervals" in text
    assert "| 12.3 | 24.6 | 90 | 120 | 500 | 0.137 | met | 1 |" in text
    assert "with the whole interval" not in text


def test_training_tables_skip_failed_and_unfinished_runs(tmp_path: Path) -> None:
    rows = [make_row("MPTrj", 0.01, 0.1), make_row("QCML", 0.1, 0.1)]
    write_run(tmp_path, "good", rows, 0)
    write_run(tmp_path, "bad", [make_row("MPTrj", 0.5, 0.5), make_row("QCML", 0.5, 0.5)], 1, exit_code=1)
    start_run(tmp_path, "lost", rows, 2)
    training = load_tables(tmp_path)
    assert training["training_runs"]["case"].tolist() == ["good"]
    assert training["training_errors"].iloc[0]["mae"] == 0.01
    write_report(tmp_path)
    assert "bad | failed" in (tmp_path / "report.md").read_text()


def test_head_without_force_labels_has_no_force_verdict(tmp_path: Path) -> None:
    without = dict.fromkeys(ZERO_FORCES)
    for seed in range(2):
        write_run(tmp_path, f"run-{seed}", [make_row("QM7X", 0.01, None, **without), make_row("QCML", 0.01, 0.1)], seed)
    errors = load_tables(tmp_path)["training_errors"].set_index(["head", "quantity"])
    assert errors.loc[("QM7X", "forces"), "verdict"] == "no labels"
    assert math.isnan(errors.loc[("QM7X", "forces"), "mae"])
    assert errors.loc[("QM7X", "energy"), "verdict"] == "met"
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "zero forces for 1 of 1 heads" in text
    assert "no force labels" in text


def test_error_that_is_not_finite_is_not_averaged_away(tmp_path: Path) -> None:
    for seed, energy in enumerate((0.01, None, 0.01)):
        write_run(tmp_path, f"run-{seed}", [make_row("MPTrj", energy, 0.1), make_row("QCML", 0.01, 0.1)], seed)
    training = load_tables(tmp_path)
    row = training["training_errors"].iloc[0]
    assert math.isnan(row["mae"])
    assert row["verdict"] == "not finite"
    assert training["training_runs"]["evaluated_heads"].tolist() == [2, 1, 2]
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "composition alone for 1 of 2 heads (for 1 with the whole interval). It is larger for MPTrj" in text
    assert not re.search(r"\bnan\b", text)


def test_two_runs_with_one_seed_count_as_one_seed(tmp_path: Path) -> None:
    for name, seed, energy in (("a", 0, 0.010), ("b", 0, 0.014), ("c", 1, 0.020)):
        write_run(tmp_path, name, [make_row("MPTrj", energy, 0.1), make_row("QCML", 0.1, 0.1)], seed)
    row = load_tables(tmp_path)["training_errors"].iloc[0]
    assert row["seeds"] == 2
    assert row["mae"] == pytest.approx((0.012 + 0.020) / 2)


def test_runs_that_differ_in_more_than_seed_are_separate_experiments(tmp_path: Path) -> None:
    rows = [make_row("MPTrj", 0.01, 0.1), make_row("QCML", 0.1, 0.1)]
    for seed in range(2):
        for rate in (1e-3, 2e-3):
            write_run(tmp_path, f"run-{seed}-{rate}", rows, seed, parameters={"learning_rate": rate})
    errors = load_tables(tmp_path)["training_errors"]
    assert errors["setup"].nunique() == 2
    assert (errors["seeds"] == 2).all()


def write_ablation(out: Path, multi: dict[int, Errors], single: dict[int, Errors], **changes: Any) -> None:
    """Write multi-task and single-task runs with errors by seed and head."""
    for seed, errors in multi.items():
        rows = [make_row(h, *e) for h, e in errors.items()]
        write_run(out, f"all-{seed}", rows, seed, campaign="m", **changes)
    for seed, errors in single.items():
        for head, values in errors.items():
            write_run(out, f"{head}-{seed}", [make_row(head, *values)], seed, campaign="m")


def test_ablation_ratios_are_paired_by_seed(tmp_path: Path) -> None:
    write_ablation(
        tmp_path,
        {0: {"A": (0.02, 0.1), "B": (0.03, 0.1)}, 1: {"A": (0.08, 0.1), "B": (0.04, 0.1)}},
        {0: {"A": (0.01, 0.2), "B": (0.03, 0.2)}, 1: {"A": (0.10, 0.2), "B": (0.05, 0.2)}},
    )
    ablation = load_tables(tmp_path)
    heads = ablation["ablation_heads"].set_index(["head", "quantity"])
    row = heads.loc[("A", "energy")]
    logs = np.log([2.0, 0.8])
    half = stats.t.ppf(0.975, 1) * logs.std(ddof=1) / math.sqrt(2)
    assert row["ratio"] == pytest.approx(math.sqrt(1.6))
    assert row["ratio_high"] == pytest.approx(math.exp(logs.mean() + half))
    assert row["ratio_low"] == pytest.approx(math.exp(logs.mean() - half))
    assert (row["multi_task"], row["single_task"]) == pytest.approx((0.05, 0.055))
    assert (row["verdict"], heads.loc[("B", "energy"), "verdict"]) == ("worse", "ok")
    assert heads.loc[("A", "forces"), "ratio"] == pytest.approx(0.5)
    overall = ablation["ablation_overall"].set_index("quantity")
    assert overall.loc["energy", "ratio"] == pytest.approx((2.0 * 0.8 * 1.0 * 0.8) ** 0.25)
    assert overall.loc["forces", "ratio"] == pytest.approx(0.5)
    assert overall.loc["forces", "ratio_low"] == pytest.approx(0.5)
    assert overall["seeds"].tolist() == [2, 2]


@pytest.mark.parametrize(("ratio", "verdict"), [(1.09, "ok"), (1.11, "worse")])
def test_ablation_verdict_follows_from_the_tolerance(tmp_path: Path, ratio: float, verdict: str) -> None:
    write_ablation(tmp_path, {0: {"A": (0.01, 0.1 * ratio), "B": (0.01, 0.1)}}, {0: {"A": (0.01, 0.1)}})
    heads = load_tables(tmp_path)["ablation_heads"].set_index(["head", "quantity"])["verdict"]
    assert heads["A", "forces"] == verdict
    write_report(tmp_path)
    is_named = "Worse by more than 10%: A (1.11x)" in (tmp_path / "report.md").read_text()
    assert is_named == (verdict == "worse")


def test_ablation_uses_pairs_of_common_seeds(tmp_path: Path) -> None:
    """One head has one pair fewer; the mean over heads uses the seeds that have all heads."""
    both = {"A": (0.02, 0.1), "B": (0.01, 0.1)}
    write_ablation(tmp_path, dict.fromkeys(range(3), both), {0: both, 1: both, 2: {"A": (0.01, 0.1)}})
    ablation = load_tables(tmp_path)
    seeds = ablation["ablation_heads"].set_index(["head", "quantity"])["seeds"]
    assert (seeds["A", "energy"], seeds["B", "energy"]) == (3, 2)
    assert ablation["ablation_overall"]["seeds"].tolist() == [2, 2]
    write_report(tmp_path)
    assert "2 to 3 seeds" in (tmp_path / "report.md").read_text()


def test_ablation_shows_error_that_is_not_finite(tmp_path: Path) -> None:
    single: Errors = {"A": (0.01, 0.1), "B": (0.01, 0.1)}
    write_ablation(tmp_path, {0: {"A": (None, None), "B": (0.01, 0.1)}}, {0: single})
    ablation = load_tables(tmp_path)
    assert ablation["ablation_heads"].set_index(["head", "quantity"]).loc[("A", "energy"), "verdict"] == "not finite"
    assert ablation["ablation_overall"]["ratio"].isna().all()
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Worse by more than 10%: A (not finite)." in text
    assert "times the single-task error, as a geometric mean over 2 heads" in text
    assert not re.search(r"\bnan\b", text)


def test_ablation_page_states_budgets(tmp_path: Path) -> None:
    both: Errors = {"A": (0.01, 0.1), "B": (0.01, 0.1)}
    write_ablation(tmp_path / "equal", {0: both}, {0: both})
    write_ablation(tmp_path / "each", {0: both}, {0: both}, workload={"epochs": 6})
    write_ablation(tmp_path / "unequal", {0: both}, {0: both}, workload={"epochs": 9})
    sentences = {
        "equal": "Equal budgets: every run samples 240 structures in training",
        "each": "Equal budgets: both kinds of training sample 240 structures of each dataset",
        "unequal": "Incorrect: budgets",
    }
    for name, sentence in sentences.items():
        write_report(tmp_path / name)
        assert sentence in (tmp_path / name / "report.md").read_text()


def test_single_task_runs_make_one_section(tmp_path: Path) -> None:
    for head in ("MPTrj", "QCML"):
        write_run(tmp_path, head, [make_row(head, 0.01, 0.1)])
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert text.count("## Single-task training: PaiNN, width 64, 3 layers") == 1
    assert "2 datasets, trained separately: 1 sample, 1 stand-in" in text


@pytest.mark.parametrize(
    ("observed", "is_as_requested"),
    [
        ({}, True),
        ({"energies": "torch.float64"}, False),
        ({"matrix_layers": ["torch.bfloat16"]}, False),
        ({"precision": "fp64"}, False),
        ({"precision": "bf16"}, False),
        ({"precision": "bf16", "autocast": "torch.bfloat16"}, False),
        ({"precision": "bf16", "autocast": "torch.bfloat16", "matrix_layers": ["torch.bfloat16"]}, True),
        ({"autocast": "torch.bfloat16"}, False),
    ],
)
def test_page_reports_types_that_differ_from_the_requested_precision(
    tmp_path: Path, observed: dict[str, Any], is_as_requested: bool
) -> None:
    reasons = {"eager_reason": "no compiler"} | dict.fromkeys(
        ("unfused_reason", "default_sums_reason"), "no C++ compiler"
    )
    rows = [make_row("MPTrj", 0.01, 0.1), make_row("QCML", 0.1, 0.1)]
    write_run(tmp_path, "run", rows, runtime=observed | reasons | {"compiled": False})
    runs = load_tables(tmp_path)["training_runs"]
    assert bool(runs["dtypes_match_request"].iloc[0]) == is_as_requested
    sentences = describe_runs(runs)
    assert any(text.startswith("Incorrect: run requested") for text in sentences) != is_as_requested
    assert "Not compiled, 1 run: no compiler." in sentences
    assert "Messages not fused, 1 run: no C++ compiler." in sentences
    assert "Sums over neighbours without the C++ operators, 1 run: no C++ compiler." in sentences


def test_page_names_violations_of_the_checkpoint(tmp_path: Path) -> None:
    check = {"structure": "NaCl", "value": 2e-3, "tolerance": 1e-8, "unit": "of the largest force"}
    passed = {"rotation: forces": False, "batch: forces": True}
    checks = [check | {"check": name, "passed": value} for name, value in passed.items()]
    write_run(tmp_path, "run", [make_row("MPTrj", 0.01, 0.1)], physics=checks)
    runs = load_tables(tmp_path)["training_runs"]
    assert runs["physics"].tolist() == ["incorrect"]
    assert "Incorrect physics of the checkpoint, 1 run: rotation: forces (NaCl)." in describe_runs(runs)
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert "Physics of the checkpoint" in page
    assert "FAILS, 0.002 (1e-08)" in page


def test_page_has_section_per_precision(tmp_path: Path) -> None:
    """Each section shows the observed types and counts the structures that were left out."""
    rows = [make_row("MPTrj", 0.01, 0.1, structures_with_unseen_elements=3), make_row("QCML", 0.1, 0.1)]
    write_run(tmp_path, "single", rows)
    half = {"precision": "bf16", "autocast": "torch.bfloat16", "matrix_layers": ["torch.bfloat16"]}
    write_run(tmp_path, "half", rows, runtime=half, parameters={"precision": "bf16"})
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| FP32 | float32 throughout |" in text
    assert "| BF16 | parameters float32; matrix layers bfloat16; energies float32; forces float32 |" in text
    assert text.count("that the training set lacks are left out: 3 of MPTrj.") == 4
    assert text.count("## Multi-task training") == 2
    assert not re.search(r"\bnan\b", text)


def test_runs_table_holds_time_and_rate(tmp_path: Path) -> None:
    write_run(tmp_path, "run", [make_row("MPTrj", 0.01, 0.1), make_row("QCML", 0.1, 0.1)], seed=1)
    row = load_tables(tmp_path)["training_runs"].iloc[0]
    assert (row["steps"], row["epochs_done"], row["best_epoch"], row["validation_loss"]) == (30, 3, 2, 1.5)
    assert (row["structures_per_s"], row["data_wait_fraction"], row["train_s"]) == pytest.approx((81.0, 0.05, 6.0))
    assert (row["parameters"], row["elements"], row["stand_ins"], row["budget"]) == (123_456, 89, 1, 240)
    assert row["gate_accuracy"] == pytest.approx(0.91)


def test_resumed_run_counts_each_epoch_once(tmp_path: Path) -> None:
    """After a restart, the log repeats the epochs before the checkpoint; events before the last start do not count."""
    rows = [make_row("MPTrj", 0.01, 0.1), make_row("QCML", 0.1, 0.1)]
    fields = {"head": "MPTrj", "dataset": "mptrj", "split": "validation", "structures": 9}
    fields |= {"force_mae_ev_per_angstrom": 0.1}

    def write_epochs(log: JsonLinesLog, *losses: tuple[int, float]) -> None:
        for number, loss in losses:
            log.write("head_errors", epoch=number, energy_mae_ev_per_atom=loss, **fields)
            log.write("epoch", **make_epoch(number, loss))

    write_epochs(start_run(tmp_path, "run", rows, 0), (0, 8.0), (1, 4.0), (2, 99.0))
    log = start_run(tmp_path, "run", rows, 0)
    write_epochs(log, (0, 8.0), (1, 4.0))
    log.write("resumed", step=25, epoch=2)
    write_epochs(log, (2, 2.0), (3, 1.0))
    log.write("stopped", reason="no improvement for 5 epochs", epoch=3)
    log.write_fact("test_errors", rows)
    log.write("done")
    training = load_tables(tmp_path)
    assert training["training_epochs"]["loss"].tolist() == [8.0, 4.0, 2.0, 1.0]
    assert training["training_heads"]["energy_mae_ev_per_atom"].tolist() == [8.0, 4.0, 2.0, 1.0]
    assert training["training_heads"]["step"].tolist() == [10, 20, 30, 40]
    assert training["training_runs"][["n_resumptions", "train_s"]].iloc[0].tolist() == [1, 8.0]
    sentences = describe_runs(training["training_runs"])
    assert "Ended early, 1 run: no improvement for 5 epochs." in sentences
    assert "1 run resumed from a checkpoint after an interruption." in sentences


@pytest.mark.parametrize(
    ("heads", "data_origin", "elements", "verdicts"),
    [
        (16, "sample of", 89, ("reproduced", "reproduced")),
        (16, "official files of", 84, ("reproduced", "inconclusive")),
        (16, "stand-in for", 89, ("inconclusive", "inconclusive")),
        (3, "sample of", 89, ("inconclusive", "reproduced")),
        (1, "sample of", 89, ("not run", "not run")),
    ],
)
def test_claims_on_joint_training_follow_from_runs(
    tmp_path: Path, heads: int, data_origin: str, elements: int, verdicts: tuple[str, str]
) -> None:
    rows = [make_row(h, 0.01, 0.1, data_origin=f"{data_origin} {h}") for h in HEADS[:heads]]
    write_run(tmp_path, "run", rows, workload={"elements": list(range(1, elements + 1))})
    scores = {s.id: s for s in judge_papers(load_papers(), build_results(load_runs(tmp_path / "runs")), tmp_path)}
    assert (scores["datasets"].verdict, scores["elements"].verdict) == verdicts
    if heads > 1:
        assert scores["datasets"].measured_value == heads
        assert scores["elements"].measured_value == elements
        assert ("stand-ins" in scores["datasets"].reason) == (data_origin == "stand-in for")
        assert scores["datasets"].evidence == ["runs/pretrain-local/run/events.jsonl"]
        assert format_measured(scores["datasets"]) == f"{heads} datasets"


def test_training_page_shows_every_dataset_and_names_stand_ins(tmp_path: Path) -> None:
    write_all_runs(tmp_path)
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert "PBE &lt;&amp; co&gt;" in page
    for head in HEADS:
        assert page.count(f"{'sample of' if head in SAMPLES else 'stand-in for'} {head}<") == 3
    assert "| 16 datasets | inconclusive |" in (tmp_path / "report.md").read_text()
    figures = sorted(p.name.split("-", 2)[2] for p in (tmp_path / "figures").glob("training-*.png"))
    assert figures == ["errors.png", "heads.png", "loss.png"]
    assert len(list((tmp_path / "figures").glob("ablation-*.svg"))) == 1
    rows = {p.stem: len(pd.read_csv(p)) for p in (tmp_path / "tables").glob("*.csv") if p.stat().st_size > 1}
    assert (rows["training_runs"], rows["training_test_errors"]) == (3 + 3 + 48, 3 * 16 * 3)
    assert (rows["training_errors"], rows["ablation_heads"], rows["ablation_overall"]) == (3 * 32, 31, 2)
    assert rows["training_epochs"] == 3 * 54
    assert not re.search(r"\bnan\b", (tmp_path / "report.md").read_text())


def test_training_page_is_empty_without_runs(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ladder-local" / "none"
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(
        json.dumps({"id": "1", "name": "none", "suite": "ladder", "program": "ladder", "parameters": {}})
    )
    write_report(tmp_path)
    assert not re.search(r"## .*-task", (tmp_path / "report.md").read_text())
    assert not list((tmp_path / "tables").glob("training_*.csv"))
    assert not list((tmp_path / "tables").glob("ablation_*.csv"))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_mean_interval_has_nominal_coverage(n: int) -> None:
    rng = np.random.default_rng(n)
    intervals = [compute_mean_interval(rng.normal(5.0, 2.0, n)) for _ in range(3000)]
    assert np.mean([m.low <= 5.0 <= m.high for m in intervals]) == pytest.approx(0.95, abs=0.013)


def test_geometric_interval_of_zero_or_of_no_values_is_nan() -> None:
    assert math.isnan(compute_geometric_mean_interval([1.0, 0.0]).value)
    assert math.isnan(compute_geometric_mean_interval([]).value)
    assert compute_geometric_mean_interval([2.0]).value == pytest.approx(2.0)
    assert math.isnan(compute_geometric_mean_interval([2.0]).low)
