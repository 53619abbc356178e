"""The precision study, from a real run of seconds to tables, verdicts and a section of the report."""

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

from harness.document import paper
from harness.experiments.precision.metrics import precision_tables, verdict
from harness.experiments.tables import results
from harness.protocol.events import EventLog, last_run
from harness.reference.errors import InputError
from harness.reference.programs.precision import program as precision_study
from harness.report.judges import score
from harness.report.render import report
from harness.results.runs import load
from tests.conftest import pages_of

MODEL = {"hidden_dim": 8, "num_conv_layers": 2, "num_sharedlayers": 0, "dim_headlayers": 8, "max_neighbours": 8}
SMALL: dict[str, Any] = {
    "model": MODEL, "sets": ["qm7x", "oc2022"], "limit": 60, "batch_size": 4, "steps": 8, "discard": 2, "rounds": 6,
    "predictions": 4, "learning_rate": 1e-3,
}  # fmt: skip


def studied(out: Path, **parameters: Any) -> list[dict[str, Any]]:
    """A finished case below out/runs, and what it has told."""
    folder = out / "runs" / "precision-local" / "precision-painn-1"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": "precision-painn", "suite": "precision", "program": "precision", "parameters": SMALL}
    (folder / "case.json").write_text(json.dumps(case))
    log = EventLog(folder / "events.jsonl")
    log.write("start")
    precision_study.run(SMALL | parameters, log, folder)
    log.write("done")
    (folder / "exit_code").write_text("0\n")
    return last_run(log.path)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("precision")
    studied(place)
    return place


def test_all_precisions_start_from_the_same_weights_and_batches(out: Path) -> None:
    losses = precision_tables(load(out / "runs")).losses
    first = losses[losses["step"] == 0].set_index("precision")["off"]
    assert first["fp64"] == 0
    assert 0 < first["fp32"] < 1e-5
    assert first["fp32"] < first["bf16"] < 0.1
    assert (losses.groupby("precision")["step"].nunique() == 8).all()


def test_a_study_killed_and_run_again_has_the_tables_of_one_that_was_not(out: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "precision-local" / "precision-painn-1"
    shutil.copytree(out / "runs" / "precision-local" / "precision-painn-1", folder)
    (folder / "events.jsonl").unlink()
    words = [sys.executable, "-m", "harness.reference", str(folder)]
    first = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not any(e["event"] == "sample" for e in last_run(folder / "events.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    assert first.wait(60) != 0
    subprocess.run(words, check=True, capture_output=True, timeout=400)
    whole, torn = (precision_tables(load(place / "runs")) for place in (out, tmp_path))
    for name in ("inference", "training", "losses", "modules", "types"):
        pd.testing.assert_frame_equal(getattr(whole, name), getattr(torn, name))


def test_errors_grow_as_digits_go(out: Path) -> None:
    inference = precision_tables(load(out / "runs")).inference
    for column in ("energy_off_mean_ev_per_atom", "force_off_mean_ev_per_a"):
        off = inference.groupby("precision")[column].mean()
        assert off["fp64"] == 0
        assert 0 < off["fp32"] < 1e-4
        assert off["fp32"] < off["bf16"]
    labels = inference.pivot_table(index="head", columns="precision", values="force_mae_ev_per_a")
    assert labels["fp32"].tolist() == pytest.approx(labels["fp64"].tolist(), rel=1e-3)


def test_every_module_is_held_against_fp64(out: Path) -> None:
    modules = precision_tables(load(out / "runs")).modules
    largest = modules.groupby("precision")["output"].max()
    assert set(largest.index) == {"fp32", "bf16"}
    assert largest["fp32"] < 1e-4
    assert 1e-4 < largest["bf16"] < 0.5
    ordered = modules[modules["precision"] == "bf16"].sort_values("order")["module"].tolist()
    assert ordered.index("encoder.messages.1") > ordered.index("encoder.updates.0")


def test_rates_are_of_pairs_in_turn(out: Path) -> None:
    costs = precision_tables(load(out / "runs")).costs.set_index(["task", "precision"])
    assert len(costs) == 6
    assert (costs["samples"] == 6).all()
    assert costs.loc[("training", "fp64"), "speedup"] == 1
    assert (costs["peak_bytes"] > 0).all()
    assert costs.loc[("training", "fp32"), "peak_bytes"] < costs.loc[("training", "fp64"), "peak_bytes"]


def test_types_are_those_that_occurred(out: Path) -> None:
    types = precision_tables(load(out / "runs")).types.set_index("precision")
    assert types.loc["fp64", ["parameters", "matrix_layers", "forces"]].tolist() == ["float64"] * 3
    assert types.loc["bf16", ["parameters", "matrix_layers", "forces"]].tolist() == ["float32", "bfloat16", "float32"]


def test_the_report_and_the_verdict(out: Path) -> None:
    report(out)
    page = pages_of(out)
    assert "Precision: FP64, FP32, BF16" in page
    assert "FP32 in inference: on 2 of 2 backbones and heads it adds at most 10% of the error" in page
    for name in ("costs", "inference", "training", "losses", "modules", "types"):
        assert len(pd.read_csv(out / "tables" / f"precision_{name}.csv"))
    claim = next(c for c in paper.load().claims if c.id == "precisions")
    (found,) = score([claim], results(load(out / "runs")), out)
    assert (found.measured_value, found.verdict, found.basis) == (3, "reproduced", "stand-in")


def test_a_precision_that_diverges_takes_no_further_part_and_is_told(tmp_path: Path) -> None:
    log = studied(tmp_path, learning_rate=1e30, precisions=["fp64", "fp32"])
    tables = precision_tables(load(tmp_path / "runs"))
    assert not tables.costs[tables.costs["task"] == "training"]["finite"].any()
    assert [e for e in log if e["event"] == "sample" and e["task"] == "training" and e["loss"] is None]
    assert set(tables.inference["verdict"]) <= {"reference", "not finite"}
    report(tmp_path)
    assert "Training came to a loss that is no number: PaiNN in FP64, PaiNN in FP32." in pages_of(tmp_path)


def test_what_counts_as_harmless() -> None:
    row = {"precision": "bf16", "energy_share": 0.05, "force_share": math.nan, "energy_off_mean_ev_per_atom": 1e-3,
           "force_off_mean_ev_per_a": 1e-3}  # fmt: skip
    assert verdict(row) == "harmless"
    assert verdict(row | {"force_share": 0.2}) == "adds to the error"
    assert verdict(row | {"energy_off_mean_ev_per_atom": math.nan}) == "not finite"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precisions": ["fp32", "fp64"]}, "expected fp64 first"),
        ({"precisions": ["fp64", "fp16"]}, "unknown precision 'fp16'"),
        ({"steps": 2}, "steps beyond `discard`"),
        ({"model": {"hiden": 3}}, "unknown option 'hiden'"),
    ],
)
def test_a_wrong_study_is_refused(given: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        precision_study.run(SMALL | given, EventLog(tmp_path / "events.jsonl"), tmp_path)
