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

import pandas as pd
import pytest

from harness.claims.evaluate import judge_papers
from harness.claims.papers import load_papers
from harness.experiments.precision.metrics import build_tables, judge_inference
from harness.experiments.tables import build_results
from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_events
from harness.protocol.records import Done
from harness.reference.potentials.physics import TOLERANCES
from harness.report.render import write_report
from harness.results.runs import load_runs
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
    case = {"id": "1", "name": "precision-painn", "suite": "precision", "program": "precision", "parameters": SMALL}
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
    while not any(e["event"] == "sample" for e in read_last_events(folder / "events.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
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
    assert "error against labels for 2 of 2 backbones and heads" in page
    for name in ("costs", "inference", "training", "losses", "modules", "types"):
        assert len(pd.read_csv(out / "tables" / f"precision_{name}.csv"))
    scores = judge_papers(load_papers(), build_results(load_runs(out / "runs")), out)
    (score,) = [score for score in scores if score.id == "precisions"]
    assert (score.measured_value, score.verdict, score.basis) == (3, "reproduced", "stand-in")


def test_diverged_precision_stops_and_is_reported(tmp_path: Path) -> None:
    log = run_study(tmp_path, learning_rate=1e30, precisions=["fp64", "fp32"])
    tables = build_tables(load_runs(tmp_path / "runs"))
    assert not tables["precision_costs"][tables["precision_costs"]["phase"] == "training"]["finite"].any()
    assert [e for e in log if e["event"] == "sample" and e["phase"] == "training" and e["loss"] is None]
    assert set(tables["precision_inference"]["verdict"]) <= {"reference", "not finite"}
    write_report(tmp_path)
    assert "The training loss became non-finite: PaiNN in FP64, PaiNN in FP32." in read_pages(tmp_path)


def test_deviations_are_judged_relative_to_the_error_against_labels() -> None:
    row = {"precision": "bf16", "energy_fraction": 0.05, "force_fraction": math.nan,
    "energy_deviation_mean_ev_per_atom": 1e-3,
           "force_deviation_mean_ev_per_angstrom": 1e-3}  # fmt: skip
    assert judge_inference(row) == "harmless"
    assert judge_inference(row | {"force_fraction": 0.2}) == "harmful"
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
