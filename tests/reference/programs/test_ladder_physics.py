"""Physics checks of the ladder: a planted fault is named in the stage's row, and the stage gets no speed-up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from torch._dynamo.utils import counters

from harness.experiments.ladder.metrics import build_ladder_table
from harness.protocol.programs.ladder import LadderParameters
from harness.reference.potentials.process import PotentialError
from harness.reference.potentials.structures import make_alloy, make_cluster
from harness.reference.programs.ladder.physics import build_predict
from harness.reference.programs.ladder.prepared_stage import PreparedStage
from harness.reference.programs.ladder.stages import LADDER
from harness.reference.programs.ladder.workload import make_model, make_structures, prepare_batch
from harness.results.runs import load_runs
from tests.support.programs import run_program

pytestmark = pytest.mark.slow
SIZES = {"hidden_dim": 8, "num_conv_layers": 2, "num_sharedlayers": 0, "dim_headlayers": 4, "readout": "sum"}
CASE: dict[str, Any] = {
    "workload": "random", "precision": "fp64", "model": SIZES, "stages": ["baseline", "branch_skip", "batched_heads"],
    "batch_size": 2, "batches": 1, "rounds": 2, "atoms": [2, 6], "transformations": 4, "max_neighbours": None,
}  # fmt: skip


def run_ladder(folder_of_runs: Path, **parameters: Any) -> dict[str, dict[str, Any]]:
    """Run a small ladder and return the rows of its table by stage."""
    folder = folder_of_runs / "runs" / "ladder-local" / "case"
    folder.mkdir(parents=True)
    case: dict[str, Any] = {
        "id": "",
        "name": "case",
        "suite": "ladder",
        "program": "ladder",
        "version": 2,
        "parameters": CASE | parameters,
    }
    (folder / "case.json").write_text(json.dumps(case))
    run_program("ladder", CASE | parameters, folder)
    return {row["stage"]: row for row in build_ladder_table(load_runs(folder_of_runs / "runs")).to_dict("records")}


def plant_force_error(monkeypatch: pytest.MonkeyPatch, *stages: str) -> None:
    """Make the forces of these stages 1 % too large and leave the energies unchanged."""
    call = PreparedStage.__call__

    def call_with_fault(self: PreparedStage, *arguments: Any) -> Any:
        result = call(self, *arguments)
        return result._replace(forces=1.01 * result.forces) if self.stage.name in stages else result

    monkeypatch.setattr(PreparedStage, "__call__", call_with_fault)


@pytest.mark.parametrize("precision", ["fp64", "fp32"])
def test_sound_stages_pass(tmp_path: Path, precision: str) -> None:
    rows = run_ladder(tmp_path, precision=precision)
    for stage in ("baseline", "batched_heads"):
        assert rows[stage]["verdict"] == "ok"
        assert (
            "checks passed" in rows[stage]["physics"] or "violated by the model: smoothness" in rows[stage]["physics"]
        )


def test_no_stage_is_wrong_for_a_violation_of_its_model(tmp_path: Path) -> None:
    """With HydraGNN's vector biases, the forces of no stage rotate with the structure."""
    rows = run_ladder(tmp_path, model=SIZES | {"hydragnn": {"vector_bias": True}})
    for stage in ("baseline", "batched_heads"):
        assert rows[stage]["verdict"] == "ok"
        assert "violated by the model: " in rows[stage]["physics"]
        assert "rotation" in rows[stage]["physics"]


def test_stage_with_a_fault_has_no_speedup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_force_error(monkeypatch, "batched_heads")
    row = run_ladder(tmp_path)["batched_heads"]
    assert row["verdict"] == "incorrect"
    assert "forces from energies" in row["physics"]
    assert math.isnan(row["speedup"])


def test_fault_that_the_baseline_shares_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both stages have the same wrong forces, so a comparison with the baseline shows no difference."""
    plant_force_error(monkeypatch, "baseline", "batched_heads")
    rows = run_ladder(tmp_path)
    for stage in ("baseline", "batched_heads"):
        assert rows[stage]["verdict"] == "incorrect"
        assert "forces from energies" in rows[stage]["physics"]


@pytest.mark.parametrize(("name", "error"), [("torch_compile", PotentialError), ("batched_heads", RuntimeError)])
def test_failure_of_a_stage_on_a_new_shape_is_reported(name: str, error: type[Exception]) -> None:
    """A compiler may refuse a new shape after the stage was timed; the check then has no value and the case goes on."""

    def refuse(*arguments: Any) -> Any:
        raise RuntimeError("no kernel for this shape")

    config = LadderParameters(**CASE)
    prepared = PreparedStage(next(stage for stage in LADDER if stage.name == name), refuse)
    crystal = make_alloy()
    with pytest.raises(error, match="no kernel for this shape"):
        build_predict(prepared, make_model(config)[0], config, fillers=[crystal], graphs=2)([crystal])


@pytest.mark.parametrize("name", ["torch_compile", "static_graphs"])
def test_checks_compile_no_stage_again(name: str) -> None:
    """With as many structures as heads, code for dynamic shapes is special to their number."""
    config = LadderParameters(**CASE | {"batch_size": 16, "atoms": [12, 20], "max_neighbours": 12, "stages": [name]})
    model = make_model(config)[0]
    batch, _ = prepare_batch(make_structures(config, 16), model, config)
    stage = next(stage for stage in LADDER if stage.name == name)
    prepared = PreparedStage(stage, stage.predict())
    prepared(model, batch)
    compiled = counters["stats"]["unique_graphs"]
    crystal, molecule = make_alloy(), make_cluster()
    predict = build_predict(prepared, model, config, fillers=[crystal, molecule], graphs=16)
    assert len(predict([crystal, molecule])) == 2
    assert counters["stats"]["unique_graphs"] == compiled > 0


def test_model_that_covers_no_structure_for_checks_is_not_an_error() -> None:
    config = LadderParameters(**CASE)
    stage = LADDER[0]
    predict = build_predict(PreparedStage(stage, stage.predict()), make_model(config)[0], config, fillers=[], graphs=16)
    assert predict([]) == []
