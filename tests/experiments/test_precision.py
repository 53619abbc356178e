"""A real run of the precision study, of a few seconds, becomes tables, verdicts and a section of the report."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness.claims.evaluate import judge_papers
from harness.claims.papers import load_papers
from harness.experiments.precision import figures
from harness.experiments.precision.metrics import INFERENCE, TYPES, build_tables, judge_inference
from harness.experiments.precision.page import (
    build_inference_block,
    build_modules_block,
    describe_comparison,
    summarize_precisions,
)
from harness.experiments.tables import build_results
from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_events
from harness.protocol.parameters import SPLIT_SEED
from harness.protocol.programs.model import ModelParameters
from harness.protocol.records import Done
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import DatasetCollection, load_shipped_splits
from harness.reference.datasets.splits import SPLITS
from harness.reference.errors import InputError
from harness.reference.models import checkpoints
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials.physics import TOLERANCES
from harness.reference.programs.precision import program
from harness.reference.storage.sampling.sampler import SampleIndices
from harness.reference.training import loss as training_loss
from harness.reference.training.loss import collate_labelled, predict_own_head
from harness.report.render import write_report
from harness.results.runs import RunRecord, load_runs
from tests.conftest import read_pages
from tests.support.programs import run_program

MODEL = {"hidden_dim": 8, "num_conv_layers": 2, "num_sharedlayers": 0, "dim_headlayers": 8, "max_neighbours": 8}
SMALL: dict[str, Any] = {
    "model": MODEL, "datasets": ["qm7x", "oc2022"], "max_structures_per_dataset": 60, "batch_size": 4, "steps": 8,
    "timing_warmup_steps": 2, "rounds": 6,
    "predictions": 4, "learning_rate": 1e-3,
}  # fmt: skip


def run_study(out: Path, **parameters: Any) -> list[dict[str, Any]]:
    """Run a case below out/runs and return its events."""
    folder = out / "runs" / "precision-local" / "precision-painn-1"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": "precision-painn", "suite": "precision", "program": "precision"}
    case |= {"parameters": SMALL | parameters}
    (folder / "case.json").write_text(json.dumps(case))
    log = run_program("precision", SMALL | parameters, folder)
    log.write(Done())
    (folder / "exit_code").write_text("0\n")
    return read_last_events(log.path)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    run_study(folder, physics_transformations=2)
    return folder


def test_precisions_start_from_the_same_weights_and_batches(out: Path) -> None:
    losses = build_tables(load_runs(out / "runs"))["precision_losses"]
    first = losses[losses["step"] == 0].set_index("precision")["relative_deviation"]
    assert first["fp64"] == 0
    assert 0 < first["fp32"] < 1e-5
    assert first["fp32"] < first["bf16"] < 0.1
    assert (losses.groupby("precision")["step"].nunique() == 8).all()


def test_each_precision_obeys_physics_within_its_tolerance(out: Path) -> None:
    checks = build_tables(load_runs(out / "runs"))["precision_physics"]
    rotations = checks[checks["check"] == "rotation: forces"].set_index("precision")
    for precision, dtype in {"fp64": "float64", "fp32": "float32", "bf16": "bfloat16"}.items():
        assert rotations["tolerance"][precision] == TOLERANCES[dtype].force
        assert rotations["value"][precision] < rotations["tolerance"][precision]
    assert rotations["value"]["fp64"] < 1e-3 * rotations["value"]["fp32"]
    write_report(out)
    assert "Physics of each precision" in read_pages(out)


def test_study_that_was_killed_and_repeated_has_the_same_tables(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "precision-local" / "precision-painn-1"
    shutil.copytree(out / "runs" / "precision-local" / "precision-painn-1", folder)
    (folder / "events.jsonl").unlink()
    command = [sys.executable, "-m", "harness.reference", str(folder)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    try:
        while not any(e["event"] == "sample" for e in read_last_events(folder / "events.jsonl")):
            assert time.monotonic() < deadline
            assert first.poll() is None
            time.sleep(0.02)
    finally:
        first.kill()
    assert first.wait(60) != 0
    subprocess.run(command, check=True, capture_output=True, timeout=400)
    uninterrupted, repeated = (build_tables(load_runs(results / "runs")) for results in (out, tmp_path))
    for name in ("inference", "training", "losses", "modules", "types"):
        pd.testing.assert_frame_equal(uninterrupted[f"precision_{name}"], repeated[f"precision_{name}"])


def test_errors_grow_with_lower_precision(out: Path) -> None:
    inference = build_tables(load_runs(out / "runs"))["precision_inference"]
    for column in ("energy_deviation_mean_ev_per_atom", "force_deviation_mean_ev_per_angstrom"):
        deviation = inference.groupby("precision")[column].mean()
        assert deviation["fp64"] == 0
        assert 0 < deviation["fp32"] < 1e-4
        assert deviation["fp32"] < deviation["bf16"]
    labels = inference.pivot_table(index="head", columns="precision", values="force_mae_ev_per_angstrom")
    assert labels["fp32"].tolist() == pytest.approx(labels["fp64"].tolist(), rel=1e-3)


def test_modules_have_errors_against_fp64(out: Path) -> None:
    modules = build_tables(load_runs(out / "runs"))["precision_modules"]
    largest = modules.groupby("precision")["output"].max()
    assert set(largest.index) == {"fp32", "bf16"}
    assert largest["fp32"] < 1e-4
    assert 1e-4 < largest["bf16"] < 0.5
    ordered = modules[modules["precision"] == "bf16"].sort_values("order")["module"].tolist()
    assert ordered.index("encoder.messages.1") > ordered.index("encoder.updates.0")


def test_each_precision_has_a_speedup_and_a_peak_memory(out: Path) -> None:
    costs = build_tables(load_runs(out / "runs"))["precision_costs"].set_index(["phase", "precision"])
    assert len(costs) == 6
    assert (costs["samples"] == 6).all()
    assert costs.loc[("training", "fp64"), "speedup"] == 1
    assert (costs["peak_bytes"] > 0).all()
    assert costs.loc[("training", "fp32"), "peak_bytes"] < costs.loc[("training", "fp64"), "peak_bytes"]


def test_table_shows_the_observed_types(out: Path) -> None:
    types = build_tables(load_runs(out / "runs"))["precision_types"].set_index("precision")
    assert types.loc["fp64", ["parameters", "matrix_layers", "forces"]].tolist() == ["float64"] * 3
    assert types.loc["bf16", ["parameters", "matrix_layers", "forces"]].tolist() == ["float32", "bfloat16", "float32"]


def test_page_shows_the_tables_and_the_claim_is_judged(out: Path) -> None:
    write_report(out)
    page = read_pages(out)
    assert "Precision: FP64, FP32, BF16" in page
    assert "error against labels for 2 of 2 pairs of backbone and head" in page
    for name in ("costs", "inference", "training", "losses", "modules", "types"):
        assert len(pd.read_csv(out / "tables" / f"precision_{name}.csv"))
    scores = judge_papers(load_papers(), build_results(load_runs(out / "runs")), out)
    (score,) = [score for score in scores if score.id == "precisions"]
    assert (score.measured_value, score.verdict, score.basis) == (3, "reproduced", "stand-in")


def test_cases_of_one_backbone_are_separate(out: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / "runs" / "precision-local" / f"precision-painn-{number}"
        shutil.copytree(out / "runs" / "precision-local" / "precision-painn-1", folder)
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert (tmp_path / "figures" / "precision-local-errors.svg").exists()
    for number in (1, 2):
        assert f"PaiNN (precision-painn-{number})" in page
    assert "2 of 2" in page
    assert "2 of 4" not in page
    assert "4 of 4 pairs of backbone and head" in page


def describe_head(head: str, energy: float, force: float, **changes: Any) -> dict[str, Any]:
    """Return a row of the table of inference in BF16 with these errors relative to those against labels."""
    deviations = {f"{name}_deviation_{statistic}_ev_per_{per}": 1e-3 for name, per in (("energy", "atom"),
                  ("force", "angstrom")) for statistic in ("mean", "max")}  # fmt: skip
    row = {"case": "a", "title": "PaiNN", "precision": "bf16", "head": head, "weights": "trained",
           "energy_fraction": energy, "force_fraction": force} | deviations | changes  # fmt: skip
    return row | {"verdict": judge_inference(row)}


def test_ratios_are_those_of_the_named_head() -> None:
    rows = [describe_head("A", 0.2, 0.1), describe_head("B", 0.05, 0.3), describe_head("no labels", math.nan, math.nan)]
    (finite,) = build_inference_block(pd.DataFrame(rows)).rows
    assert finite[6:10] == ["5.00%", "30.00%", "B", "0 of 3"]
    broken = dict.fromkeys(("energy_fraction", "energy_deviation_mean_ev_per_atom"), math.nan)
    (row,) = build_inference_block(pd.DataFrame([*rows, describe_head("C", 0.01, 0.01, **broken)])).rows
    assert row[2] == row[6] == "not finite"
    assert row[7:9] == ["1.00%", "C"]


def test_figures_describe_all_precisions_and_differences_of_zero(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures_by_name: dict[str, Any] = {}

    def save(figure: Any, folder: Path, name: str, caption: str, **options: Any) -> None:
        figures_by_name[name] = (figure, caption)

    monkeypatch.setattr(figures, "save_figure", save)
    deviations = [("a", "fp64", 0.0), ("a", "bf16", 0.1), *(("b", "fp32", value) for value in (1e-7, 0.0, 1e-6))]
    losses = pd.DataFrame(
        [{"title": t, "precision": p, "step": k, "relative_deviation": d} for k, (t, p, d) in enumerate(deviations)]
    )
    figures.draw_drift(losses, tmp_path, "drift")
    drift, _ = figures_by_name["drift"]
    assert {text.get_text() for text in drift.axes[0].get_legend().get_texts()} == {"BF16", "FP32"}
    (line,) = (line for line in drift.axes[1].get_lines() if line.get_label() == "FP32")
    assert np.isnan(line.get_ydata()).tolist() == [False, True, False]
    costs = pd.DataFrame([{"phase": "inference", "case": "a", "precision": "bf16", "speedup": 2.0}])
    inference = pd.DataFrame([describe_head("A", 0.2, 0.1), describe_head("B", 0.1, 0.1)]).assign(backbone="painn")
    figures.draw_deviation_against_speedup(costs, inference, tmp_path, "errors")
    assert "the mean over 2 heads of the mean difference" in figures_by_name["errors"][1]
    assert "Differences of 0 are not drawn." in figures_by_name["errors"][1]


def test_overflow_in_a_module_is_reported() -> None:
    """A layer without a bias whose input is 0 has no error either, but the heads do."""
    errors: dict[str, float | None] = {"encoder.zero": None, "encoder.a": 1e-7, "encoder.b": 1e-3, "encoder.c": None,
                                       "heads": None}  # fmt: skip
    rows = [{"title": "PaiNN", "precision": "bf16", "order": k, "module": name, "kind": "Linear", "input": 0.1,
             "output": error} for k, (name, error) in enumerate(errors.items())]  # fmt: skip
    (row,) = build_modules_block(pd.DataFrame(rows)).rows
    assert row[4:6] == ["after encoder.b (Linear)", "not finite"]
    assert row[7] == "not finite"
    rows[-1]["output"] = 2e-3
    (row,) = build_modules_block(pd.DataFrame(rows)).rows
    assert row[4:6] == ["heads (Linear)", "2.0e-03"]


def test_summary_has_no_empty_range_and_describes_only_measured_precisions() -> None:
    costs = pd.DataFrame([{"phase": "inference", "precision": precision, "speedup": speedup, "backbone": "painn",
                           "device": device, "threads": 1, "finite": True}
                          for precision, speedup, device in (("fp64", 1.0, "A"), ("fp32", 1.5, "B"))])  # fmt: skip
    inference = pd.DataFrame([describe_head("A", 0.01, 0.01, precision="fp32")])
    assert summarize_precisions(costs, inference).startswith("FP32 is 1.5 times as fast as FP64 and harmless for 100%")
    (first, *_) = describe_comparison(costs, inference, pd.DataFrame({"data_origin": []}))
    assert first == "1 backbone on A, 1 thread; B, 1 thread."


def make_prediction(precision: str, **changes: float | None) -> dict[str, Any]:
    """Return the event of a batch, with errors of 1 against labels and deviations of 0.1 from FP64."""
    errors = dict.fromkeys(INFERENCE["errors"], 1.0) | {k: 0.1 for k in INFERENCE["errors"] if "deviation" in k}
    return {"precision": precision, "head": "A", "structures": 1, **errors, **changes}


def make_record(*predictions: dict[str, Any]) -> RunRecord:
    precisions = dict.fromkeys(p["precision"] for p in predictions)
    runtime = {"precisions": {p: dict.fromkeys(TYPES["types"], "") for p in precisions}, "device": "cpu", "threads": 1}
    facts = {"model": {"config": {"backbone": "painn"}}, "weights": {"checkpoint": "x"}, "runtime": runtime,
             "memory": []}  # fmt: skip
    return RunRecord("c/a", {"name": "a", "program": "precision"}, "done", facts=facts,
                     events_by_kind={"prediction": list(predictions)})  # fmt: skip


def test_largest_deviation_is_not_finite_if_that_of_a_batch_is_not() -> None:
    overflow = make_prediction("bf16", energy_deviation_max_ev_per_atom=None)
    tables = build_tables([make_record(make_prediction("fp64"), make_prediction("bf16"), overflow)])
    _, row = tables["precision_inference"].to_dict("records")
    assert math.isnan(row["energy_deviation_max_ev_per_atom"])
    costs = tables["precision_costs"].set_index(["phase", "precision"])["finite"]
    assert costs["inference"].to_dict() == {"fp64": True, "bf16": False}


def test_fractions_are_relative_to_the_error_in_fp64() -> None:
    """A precision that makes the error larger must not thereby seem less harmful."""
    exact = make_prediction("fp64", energy_mae_ev_per_atom=0.5, force_mae_ev_per_angstrom=0.0)
    tables = build_tables([make_record(make_prediction("bf16"), exact)])
    row, _ = tables["precision_inference"].to_dict("records")
    assert row["energy_fraction"] == pytest.approx(0.2)
    assert math.isnan(row["force_fraction"])
    assert row["verdict"] == "harmful"


def test_diverged_precision_stops_and_is_reported(tmp_path: Path) -> None:
    log = run_study(tmp_path, learning_rate=1e30, precisions=["fp64", "fp32"])
    tables = build_tables(load_runs(tmp_path / "runs"))
    assert not tables["precision_costs"]["finite"].any()
    assert [e for e in log if e["event"] == "sample" and e["phase"] == "training" and e["loss"] is None]
    assert set(tables["precision_inference"]["verdict"]) <= {"reference", "not finite"}
    write_report(tmp_path)
    assert "The training loss or its gradient became non-finite: PaiNN in FP64, PaiNN in FP32." in read_pages(tmp_path)


def write_checkpoint(path: Path, **changes: Any) -> FoundationModel:
    """Write a model whose heads were trained on hydrogen to oxygen, and return it."""
    torch.manual_seed(1)
    model = FoundationModel(ModelConfig.from_parameters(ModelParameters(**MODEL | changes))).double()
    model.trained[:] = True
    model.known_elements[:, 1:9] = True
    checkpoints.save(model, path, {})
    return model


def test_checkpoint_is_evaluated_with_its_neighbours_and_elements(tmp_path: Path) -> None:
    """The case's own model has another cutoff, and some structures contain sulfur."""
    model = write_checkpoint(tmp_path / "model.safetensors", cutoff=3.0).requires_grad_(False)
    log = run_study(tmp_path, checkpoint=str(tmp_path / "model.safetensors"), datasets=["qm7x"], steps=3, rounds=2)
    [event] = [e for e in log if e["event"] == "prediction" and e["precision"] == "fp64"]
    test = load_shipped_splits("qm7x", limit=60, test_fraction=0.1, seed=SPLIT_SEED)[SPLITS[2]]
    collection = DatasetCollection([test], model.config.neighbour_spec)
    graphs = collection.load_graphs(SampleIndices(np.zeros(4, dtype=int), np.arange(4)))
    known = [g for g in graphs if g.structure.numbers.max() < 9]
    batch, labels = collate_labelled(known, torch.zeros(16, 119, dtype=torch.float64), torch.float64)
    energy, _ = predict_own_head(model, batch, create_graph=False)
    error = float(((energy - labels.residual_energy).abs() / batch.n_atoms).mean())
    assert event["structures"] == len(known)
    assert event["energy_mae_ev_per_atom"] == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "untrained", "message"),
    [
        ({"backbone": "schnet"}, None, "has the backbone schnet, expected painn"),
        ({}, "QM7X", "not trained on the head of"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_before_training(
    changes: dict[str, Any], untrained: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.safetensors"
    model = write_checkpoint(path, **changes)
    if untrained:
        model.trained[HEADS.index(untrained)] = False
        checkpoints.save(model, path, {})
    with pytest.raises(InputError, match=message):
        run_study(tmp_path, checkpoint=str(path), datasets=["qm7x"])


def test_no_test_structures_are_an_error_before_training(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="set 'qm7x': none of 4 structures is in the testset split"):
        run_study(tmp_path, max_structures_per_dataset=4)


def test_overflow_of_a_gradient_stops_a_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backpropagate(loss: torch.Tensor, module: torch.nn.Module) -> None:
        training_loss.backpropagate(loss * (math.inf if loss.dtype == torch.float32 else 1.0), module)

    monkeypatch.setattr(program, "backpropagate", backpropagate)
    log = run_study(tmp_path, precisions=["fp64", "fp32"], datasets=["qm7x"])
    losses = [(e["precision"], e["loss"]) for e in log if e["event"] == "sample" and e["phase"] == "training"]
    assert [loss for precision, loss in losses if precision == "fp32"] == [None]
    assert None not in [loss for precision, loss in losses if precision == "fp64"]


def test_deviations_are_judged_relative_to_the_error_against_labels() -> None:
    row = {"precision": "bf16", "energy_fraction": 0.05, "force_fraction": math.nan,
    "energy_deviation_mean_ev_per_atom": 1e-3,
           "force_deviation_mean_ev_per_angstrom": 1e-3}  # fmt: skip
    assert judge_inference(row) == "harmless"
    assert judge_inference(row | {"force_fraction": 0.2}) == "harmful"
    assert judge_inference(row | {"energy_fraction": math.nan}) == "not judged"
    assert judge_inference(row | {"energy_deviation_mean_ev_per_atom": math.nan}) == "not finite"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"precisions": ["fp32", "fp64"]}, "expected fp64 first"),
        ({"precisions": ["fp64", "fp16"]}, "precisions.1 is 'fp16'"),
        ({"steps": 2}, "steps is 2, expected more than timing_warmup_steps, 2"),
        ({"model": {"hiden": 3}}, "unknown parameter 'model.hiden'"),
    ],
)
def test_invalid_parameters_of_a_study_are_refused(parameters: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        run_program("precision", SMALL | parameters, tmp_path)
