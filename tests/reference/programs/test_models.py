"""The comparison of potentials: real ones side by side, and bad ones that get a verdict while the others go on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from harness.experiments.models.metrics import build_tables
from harness.protocol.events import read_last_run
from harness.protocol.programs.models import ModelDefinition
from harness.reference.potentials.process import PotentialError, PotentialProcess, build_spec
from harness.reference.potentials.structures import make_alloy
from harness.results.runs import RunRecord, load_run_folder
from tests.support.programs import run_program

FAULTY = {"module": "tests.reference.potentials.faulty", "class_name": "Faulty"}
EMT_CLASS = {"module": "ase.calculators.emt", "class_name": "EMT"}
QUICK: dict[str, Any] = {
    "sizes": [8, 32], "rounds": 2, "datasets": ["omat24"], "structures_per_dataset": 4, "transformations": 4,
    "dynamics_steps": 10,
}  # fmt: skip


def compare(folder: Path, definitions: dict[str, Any], **parameters: Any) -> dict[str, dict[str, Any]]:
    """Run the program and return the rows of the table `models` by model."""
    values = QUICK | parameters | {"definitions": definitions}
    events = read_last_run(run_program("models", values, folder).path).events
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        kinds.setdefault(event["event"], []).append(event)
    record = RunRecord(
        str(folder), {"name": "case", "suite": "models", "program": "models", "parameters": values}, "done",
        facts={e["name"]: e["value"] for e in kinds.get("fact", [])},
        samples=kinds.get("sample", []),
        events_by_kind=kinds,
    )  # fmt: skip
    return {row["model"]: row for row in build_tables([record])["models"].to_dict("records")}


def start(definition: dict[str, Any], folder: Path, **options: Any) -> PotentialProcess:
    """Return the process of a definition."""
    model = ModelDefinition.model_validate(definition)
    spec = build_spec(model, "published", "cpu")
    return PotentialProcess(
        spec, python=model.python, threads=1, timeout_s=options.get("timeout_s", 60.0), log=folder / "log"
    )


def test_bad_models_get_a_verdict_and_the_others_go_on(tmp_path: Path) -> None:
    faults = ("forces_off", "kj_per_mol", "wrong_sign", "wrong_shape", "nan", "raises", "dies")
    definitions: dict[str, Any] = {fault: FAULTY | {"kwargs": {"fault": fault}} for fault in faults}
    definitions |= {
        "good": EMT_CLASS,
        "misspelt": EMT_CLASS | {"class_name": "EMTT", "place": "models/mine.yaml:7"},
        "absent": {"module": "no_such_package.calculators", "class_name": "X", "install": "pip install x"},
        "other-python": EMT_CLASS | {"python": str(tmp_path / "no-python")},
    }
    rows = compare(tmp_path, definitions)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "forces_off": "incorrect", "kj_per_mol": "incorrect", "wrong_sign": "incorrect", "wrong_shape": "failed",
        "nan": "failed", "raises": "failed", "dies": "failed", "good": "ok", "misspelt": "failed",
        "absent": "unavailable", "other-python": "unavailable",
    }  # fmt: skip
    for name, words in {
        "forces_off": "forces from energies",
        "misspelt": "models/mine.yaml:7: ValueError: module ase.calculators.emt has no 'EMTT' (did you mean 'EMT'?)",
        "absent": "no module 'no_such_package'",
        "dies": "its process ended (exit code 3)",
    }.items():
        assert words in rows[name]["reason"], rows[name]["reason"]


def test_reference_checkpoint_and_calculator_are_measured_alike(tmp_path: Path) -> None:
    rows = compare(tmp_path, {"painn-64": {"checkpoint": "painn-64"}, "emt": EMT_CLASS}, physics=False)
    ours, emt = rows["painn-64"], rows["emt"]
    assert ours["dtype"] == "float64"
    assert ours["parameters"] > 600_000
    assert ours["force_mae_ev_per_angstrom"] > 0
    assert np.isnan(emt["force_mae_ev_per_angstrom"]), "EMT knows no oxides"
    for row in rows.values():
        assert row["verdict"] == "not checked"
        assert row["us_per_atom_low"] <= row["us_per_atom"] <= row["us_per_atom_high"]
        assert row["peak_bytes"] > 2**20


def test_lower_precision_is_compared_with_fp64(tmp_path: Path) -> None:
    definitions = {"painn-64": {"checkpoint": "painn-64"}, "emt": EMT_CLASS}
    rows = compare(tmp_path, definitions, physics=False, precision="fp32")
    assert 0 < rows["painn-64"]["force_deviation_max_ev_per_angstrom"] < 1e-2
    assert rows["emt"]["verdict"] == "unavailable"
    assert "precision fp32 is not among those of its definition" in rows["emt"]["reason"]


def test_predictions_are_those_of_the_calculator(tmp_path: Path) -> None:
    crystal = make_alloy()
    atoms = Atoms(numbers=crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True, calculator=EMT())
    with start(EMT_CLASS, tmp_path) as process:
        (prediction,) = process.predict([crystal], with_stress=True)
    assert prediction.energy == atoms.get_potential_energy()
    assert np.array_equal(prediction.forces, atoms.get_forces())
    assert np.array_equal(prediction.stress, atoms.get_stress())


def test_hanging_model_is_ended(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\n\n\ndef make():\n    time.sleep(600)\n")
    (tmp_path / "python").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec python3 "$@"\n')
    (tmp_path / "python").chmod(0o755)
    started = time.monotonic()
    with pytest.raises(PotentialError, match="no answer within 1 s"):
        start({"module": "slow", "class_name": "make", "python": str(tmp_path / "python")}, tmp_path, timeout_s=1.0)
    assert time.monotonic() - started < 60


def test_run_folder_is_read_as_valid(tmp_path: Path) -> None:
    compare(tmp_path, {"emt": EMT_CLASS})
    (tmp_path / "case.json").write_text('{"program": "models", "id": "1", "name": "case", "suite": "models"}')
    record = load_run_folder(str(tmp_path))
    assert record.state != "unreadable", record.error


@pytest.mark.parametrize(
    ("passed", "verdict"), [((None, None), "not checked"), ((True, None), "ok"), ((True, False), "incorrect")]
)
def test_checks_without_a_value_are_no_proof(passed: tuple[bool | None, ...], verdict: str) -> None:
    checks = [
        {"event": "physics_check", "model": "m", "check": "rotation", "structure": "s", "value": 1.0, "tolerance": 1.0,
         "unit": "", "passed": value, "reason": "no answer" if value is None else None}
        for value in passed
    ]  # fmt: skip
    loaded = {"event": "model_loaded", "model": "m"}
    record = RunRecord(
        "folder", {"name": "case", "program": "models", "parameters": {"definitions": {"m": EMT_CLASS}}}, "done",
        events_by_kind={"physics_check": checks, "model_loaded": [loaded]},
    )  # fmt: skip
    (row,) = build_tables([record])["models"].to_dict("records")
    assert row["verdict"] == verdict
    if None in passed:
        assert "could not be measured: no answer" in row["reason"]


def test_model_that_dies_in_its_physics_has_failed(tmp_path: Path) -> None:
    """It answered every timed request before."""
    dying = FAULTY | {"kwargs": {"fault": "dies_later"}}
    row = compare(tmp_path, {"dying": dying}, datasets=["qm7x"], structures_per_dataset=1, rounds=1)["dying"]
    assert row["verdict"] == "failed"
    assert "physics: its process ended (exit code 3)" in row["reason"]
