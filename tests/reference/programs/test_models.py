"""The comparison of potentials: valid potentials are measured, faulty ones get a verdict and do not stop the others."""

from __future__ import annotations

import csv
import json
import shutil
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT

from harness.cli.main import main
from harness.experiments.models.metrics import build_tables
from harness.protocol.events import CaseLog, read_last_events, read_last_run
from harness.protocol.programs.models import ModelDefinition, ModelsParameters
from harness.reference.potentials.process import PotentialError, PotentialPrediction, PotentialProcess, build_spec
from harness.reference.potentials.structures import CRYSTALS, build_molecule, build_supercells, make_alloy
from harness.reference.programs.models.errors import compute_energy_error_spread
from harness.reference.programs.models.loading import load_model
from harness.results.runs import RunRecord, load_run_folder
from tests.support.programs import run_program

FAULTY = {"module": "tests.reference.potentials.faulty", "class_name": "FaultyCalculator"}
EMT_CLASS = {"module": "ase.calculators.emt", "class_name": "EMT"}
CLAIMS = """\
source: "A. Author, a paper (2026)"
claims:
  - id: emt-rate
    statement: It predicts ten cells a second.
    source: Table 1
    unit: structures/s
    value: 20
    at_least: 10
    measurement: cells a second
    program: models
    suites: [models]
    query:
      table: models
      where: {model: emt}
      incorrect: {where: {verdict: incorrect}, note: "{reason}"}
      complete: {structures_per_s: present}
      measure: {column: structures_per_s}
  - id: bad-rate
    statement: It predicts ten cells a second.
    source: Table 1
    unit: structures/s
    value: 20
    at_least: 10
    measurement: cells a second
    program: models
    suites: [models]
    query:
      table: models
      where: {model: bad}
      incorrect: {where: {verdict: incorrect}, note: "{reason}"}
      complete: {structures_per_s: present}
      measure: {column: structures_per_s}
  - id: emt-error
    statement: Its forces are off by 0.1 eV/angstrom.
    source: Table 2
    unit: eV/angstrom
    value: 0.1
    within: 0.5
    measurement: mean absolute error of forces
    program: models
    suites: [models]
    query:
      table: model_errors
      where: {model: emt, reference: labels}
      complete: {structures: "> 0"}
      measure: {column: structures}
  - id: no-violation
    statement: No model violates physics.
    source: page 1
    unit: models
    value: 0
    at_most: 0
    measurement: models with a violation
    program: models
    suites: [models]
    query:
      table: models
      measure: {statistic: count, matching: {verdict: incorrect}}
"""
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


def make_process(definition: dict[str, Any], folder: Path, **options: Any) -> PotentialProcess:
    """Return the process of a definition."""
    model = ModelDefinition.model_validate(definition)
    spec = build_spec(model, "published", "cpu")
    return PotentialProcess(
        spec, python=model.python, threads=1, timeout_s=options.get("timeout_s", 60.0), log=folder / "log"
    )


def test_faulty_models_get_a_verdict_and_do_not_stop_the_others(tmp_path: Path) -> None:
    faults = ("forces_scaled", "kj_per_mol", "wrong_sign", "wrong_shape", "nan", "raises", "dies")
    definitions: dict[str, Any] = {fault: FAULTY | {"kwargs": {"fault": fault}} for fault in faults}
    definitions |= {
        "good": EMT_CLASS,
        "misspelt": EMT_CLASS | {"class_name": "EMTT", "place": "models/mine.yaml:7"},
        "absent": {"module": "no_such_package.calculators", "class_name": "X", "install": "pip install x"},
        "other-python": EMT_CLASS | {"python": str(tmp_path / "no-python")},
    }
    rows = compare(tmp_path, definitions)
    assert {name: row["verdict"] for name, row in rows.items()} == {
        "forces_scaled": "incorrect", "kj_per_mol": "incorrect", "wrong_sign": "incorrect", "wrong_shape": "failed",
        "nan": "failed", "raises": "failed", "dies": "failed", "good": "ok", "misspelt": "failed",
        "absent": "unavailable", "other-python": "unavailable",
    }  # fmt: skip
    for name, message in {
        "forces_scaled": "forces from energies",
        "misspelt": "models/mine.yaml:7: ValueError: module ase.calculators.emt has no 'EMTT' (did you mean 'EMT'?)",
        "absent": "no module 'no_such_package'",
        "dies": "its process ended (exit code 3)",
    }.items():
        assert message in rows[name]["reason"], rows[name]["reason"]


def test_checkpoint_and_ase_calculator_get_the_same_measurements(tmp_path: Path) -> None:
    rows = compare(tmp_path, {"painn-64": {"checkpoint": "painn-64"}, "emt": EMT_CLASS}, physics=False)
    painn, emt = rows["painn-64"], rows["emt"]
    assert painn["dtype"] == "float64"
    assert painn["parameters"] > 600_000
    assert painn["force_mae_ev_per_angstrom"] > 0
    assert np.isnan(emt["force_mae_ev_per_angstrom"]), "EMT has no parameters for oxides"
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


def test_claims_judge_models_and_two_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    definitions = {"emt": EMT_CLASS, "bad": FAULTY | {"kwargs": {"fault": "forces_scaled"}}}
    folder = tmp_path / "a/runs/models-here/case"
    folder.mkdir(parents=True)
    compare(folder, definitions, rounds=4, datasets=["mptrj"])
    case = {"program": "models", "id": "1", "name": "models", "suite": "models", "system": "here",
            "parameters": QUICK | {"definitions": definitions}}  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text("0\n8\n")
    with (folder / "events.jsonl").open("a") as log:
        log.write('{"event": "done", "time_s": 4000000000.0}\n')
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "mine.yaml").write_text(CLAIMS)
    main(["check", "--out", str(tmp_path / "a"), "--claims", str(tmp_path / "mine.yaml")])
    captured = capsys.readouterr()
    assert not captured.err
    lines = {line.split(":")[0]: line for line in captured.out.splitlines()}
    assert lines["emt-rate"].startswith("emt-rate: reproduced")
    assert lines["bad-rate"].startswith("bad-rate: incorrect")
    assert lines["emt-error"].startswith("emt-error: not run"), "EMT knows no oxides, so that it has no error"
    assert lines["no-violation"].startswith("no-violation: deviates: 1")
    path = tmp_path / "compared.csv"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--csv", str(path)]) == 0
    with path.open() as table:
        rows = [row for row in csv.DictReader(table) if row["metric"] == "time per atom"]
    assert len(rows) == 4, "two models, two cells"
    assert all(float(row["ratio"]) == 1.0 for row in rows)


EMT_AND_PAINN: dict[str, Any] = {"painn-64": {"checkpoint": "painn-64"}, "emt": EMT_CLASS}
UNCHECKED: dict[str, Any] = {"physics": False, "rounds": 1, "structures_per_dataset": 2}


def test_bfloat16_predictions_are_compared_with_fp64(tmp_path: Path) -> None:
    row = compare(tmp_path, EMT_AND_PAINN, precision="bf16", **UNCHECKED)["painn-64"]
    assert 1e-4 < row["force_deviation_max_ev_per_angstrom"] < 10


@pytest.mark.slow
def test_compiled_predictions_are_compared_with_eager_fp64(tmp_path: Path) -> None:
    rows = compare(tmp_path, EMT_AND_PAINN, precision="fp64", compiled=True, **UNCHECKED)
    assert 0 <= rows["painn-64"]["force_deviation_max_ev_per_angstrom"] < 1e-9
    assert rows["painn-64"]["compiled"]
    assert rows["emt"]["verdict"] == "unavailable"


def test_precision_and_compilation_of_a_calculator_are_arguments(tmp_path: Path) -> None:
    model = ModelDefinition.model_validate(
        EMT_CLASS | {"kwargs": {"a": 1}, "precisions": {"fp32": {"b": 2}}, "compiled": {"c": 3}}
    )
    assert build_spec(model, "fp32", "cpu", compiled=True)["kwargs"] == {"a": 1, "b": 2, "c": 3}
    assert build_spec(model, "published", "cpu")["kwargs"] == {"a": 1}
    plain = ModelDefinition.model_validate(EMT_CLASS)
    with pytest.raises(PotentialError, match="no key `compiled`"):
        build_spec(plain, "published", "cpu", compiled=True)


def test_an_argument_can_be_an_object(tmp_path: Path) -> None:
    energies = []
    for energy in (1.0, 2.5):
        parts = {"module": "ase.calculators.lj", "class_name": "LennardJones", "kwargs": {"epsilon": energy}}
        nested = {"module": "ase.calculators.mixing", "class_name": "SumCalculator", "kwargs": {"calcs": [parts]}}
        with make_process(nested, tmp_path) as process:
            energies.append(process.predict([make_alloy()])[0].energy)
    assert energies[1] == pytest.approx(2.5 * energies[0])
    wrong = {"module": "ase.calculators.emt", "class_name": "EMT.calculat"}
    with pytest.raises(PotentialError, match=r"has no 'EMT.calculat' \(did you mean 'calculate'\?\)"):
        make_process(wrong, tmp_path)


def test_a_calculator_that_declares_a_stress_and_has_none_is_measured_without_it(tmp_path: Path) -> None:
    with make_process(FAULTY | {"kwargs": {"fault": "no_stress"}}, tmp_path) as process:
        (prediction,) = process.predict([make_alloy()], with_stress=True)
    assert prediction.stress is None
    assert np.abs(prediction.forces).max() > 0


def test_predictions_equal_the_results_of_the_calculator(tmp_path: Path) -> None:
    crystal = make_alloy()
    atoms = Atoms(numbers=crystal.numbers, positions=crystal.positions, cell=crystal.cell, pbc=True, calculator=EMT())
    with make_process(EMT_CLASS, tmp_path) as process:
        (prediction,) = process.predict([crystal], with_stress=True)
    assert prediction.energy == atoms.get_potential_energy()
    assert np.array_equal(prediction.forces, atoms.get_forces())
    assert np.array_equal(prediction.stress, atoms.get_stress())


def test_hanging_model_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\n\n\ndef make():\n    time.sleep(600)\n")
    (tmp_path / "python").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec python3 "$@"\n')
    (tmp_path / "python").chmod(0o755)
    started = time.monotonic()
    with pytest.raises(PotentialError, match="no answer within 1 s"):
        make_process(
            {"module": "slow", "class_name": "make", "python": str(tmp_path / "python")}, tmp_path, timeout_s=1.0
        )
    assert time.monotonic() - started < 60


def test_run_folder_of_a_comparison_is_readable(tmp_path: Path) -> None:
    compare(tmp_path, {"emt": EMT_CLASS})
    (tmp_path / "case.json").write_text('{"program": "models", "id": "1", "name": "case", "suite": "models"}')
    record = load_run_folder(str(tmp_path))
    assert record.state != "unreadable", record.error


@pytest.mark.parametrize(
    ("passed", "verdict"), [((None, None), "not checked"), ((True, None), "ok"), ((True, False), "incorrect")]
)
def test_checks_that_could_not_be_measured_do_not_count_as_passed(
    passed: tuple[bool | None, ...], verdict: str
) -> None:
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


def test_model_whose_process_dies_in_a_physics_check_has_failed(tmp_path: Path) -> None:
    """The process answers every timed request before the checks."""
    dying = FAULTY | {"kwargs": {"fault": "dies_later"}}
    row = compare(tmp_path, {"dying": dying}, datasets=["qm7x"], structures_per_dataset=1, rounds=1)["dying"]
    assert row["verdict"] == "failed"
    assert "physics: its process ended (exit code 3)" in row["reason"]


def test_model_whose_process_dies_in_the_search_for_the_largest_crystal_has_its_verdict(tmp_path: Path) -> None:
    dying = FAULTY | {"kwargs": {"fault": "dies_if_large"}}
    row = compare(tmp_path, {"dying": dying}, datasets=["qm7x"], structures_per_dataset=1, rounds=1, max_atoms=500)[
        "dying"
    ]
    assert row["verdict"] == "ok"
    assert 8 < row["largest_atoms"] <= 100
    assert "exit code 9" in row["largest_limit"]


def test_largest_crystal_is_at_least_the_largest_timed_one(tmp_path: Path) -> None:
    row = compare(tmp_path, {"emt": EMT_CLASS}, max_atoms=10, **UNCHECKED)["emt"]
    assert row["largest_atoms"] == row["atoms"]
    assert row["largest_limit"] == "no search: the largest timed crystal has more than 10 atoms"


def test_timed_crystals_are_sorted_by_size() -> None:
    alloys = build_supercells(make_alloy, [216, 8, 32])
    assert [len(crystal) for crystal in alloys] == [8, 32, 256]
    assert [crystal.name for crystal in alloys] == ["Cu3Au 2x1x1", "Cu3Au 2x2x2", "Cu3Au 4x4x4"]
    assert [len(crystal) for crystal in build_supercells(CRYSTALS[0], [133, 1, 145])] == [8, 64, 216]


def test_displacements_leave_the_atoms_of_the_caller_as_they_are() -> None:
    atoms = Atoms("CO", positions=[[0, 0, 0], [0, 0, 1.1]])
    structure = build_molecule("CO", atoms)
    assert atoms.positions[1].tolist() == [0, 0, 1.1]
    assert structure.positions[1].tolist() != [0, 0, 1.1]


def test_model_that_predicts_no_crystal_is_not_loaded(tmp_path: Path) -> None:
    definitions = {"bad": FAULTY | {"kwargs": {"fault": "raises"}}}
    log = CaseLog(tmp_path / "events.jsonl", "models")
    with ExitStack() as stack:
        assert load_model("bad", ModelsParameters(definitions=definitions), log, tmp_path, stack) is None
    loaded, failed = read_last_events(log.path)
    assert (loaded["event"], failed["event"]) == ("model_loaded", "model_failed")


def test_structures_without_an_energy_have_no_error() -> None:
    crystals = [replace(make_alloy(), energy=energy) for energy in (8.0, 16.0, None)]
    pairs = [(crystal, PotentialPrediction(0.0, crystal.positions)) for crystal in crystals]
    assert compute_energy_error_spread(pairs) == pytest.approx(0.5)
    assert compute_energy_error_spread(pairs[1:]) is None


@pytest.mark.parametrize("step", ["start", "predictions"])
def test_failing_fp64_predictions_are_recorded_and_do_not_exclude_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    fault = {"kwargs": {"fault": "raises"}, "precisions": {"fp32": {"fault": "none"}, "fp64": {}}}
    if step == "start":
        fault["precisions"]["fp64"] = {"fautl": "none"}
    row = compare(tmp_path, {"model": FAULTY | fault}, datasets=["qm7x"], precision="fp32", rounds=1)["model"]
    assert row["verdict"] == "ok"
    assert row["us_per_atom"] > 0
    (event,) = (e for e in read_last_run(tmp_path / "events.jsonl").events if e.get("reference") == "fp64")
    assert event["structures"] == 0
    ((reason, count),) = event["excluded"].items()
    assert reason.startswith("in FP64: ")
    assert count > 0
    assert np.isnan(row["force_deviation_max_ev_per_angstrom"])


def test_process_that_was_ended_answers_no_request(tmp_path: Path) -> None:
    with make_process(EMT_CLASS, tmp_path) as process:
        process.close()  # as after a timeout
        with pytest.raises(PotentialError, match="its process ended"):
            process.predict([make_alloy()])
