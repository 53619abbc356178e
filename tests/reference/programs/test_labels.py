"""Labels of new structures are those of the calculator; failures are named, and a killed run loses no label."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.formula import Formula

from harness.config.model_files import load_definitions
from harness.config.suite import load_suite
from harness.experiments.labels.metrics import build_tables, compute_residuals
from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_run
from harness.protocol.programs.labels import LabelsParameters
from harness.reference.data.structure import Structure
from harness.reference.datasets.levels import compute_xtb
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError
from harness.reference.potentials.process import PotentialError
from harness.reference.potentials.worker import build_object
from harness.reference.programs import labels
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.conftest import ROOT
from tests.support.programs import run_program

MODULE = "tests.reference.potentials.labelling"
EMT_CLASS = {"module": "ase.calculators.emt", "class_name": "EMT", "level_of_theory": "EMT"}
FAULTY = {"module": MODULE, "class_name": "CalculatorByElement"}
ELEMENTS = ("Cu", "Ag", "Au", "Pd", "Pt", "Ni")


def write_crystals(path: Path, symbols: tuple[str, ...] = ELEMENTS) -> list[Atoms]:
    """Write a crystal of each element with displaced atoms; no two have the same volume."""
    frames = []
    for k, symbol in enumerate(symbols):
        atoms = bulk(symbol, "fcc", a=3.9 + 0.01 * k, cubic=True)
        atoms.rattle(0.05, seed=k)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")
    return frames


def label(folder: Path, definition: dict[str, Any], **parameters: Any) -> list[dict[str, Any]]:
    """Run the program on the crystals, and return its events."""
    folder.mkdir(exist_ok=True)
    values = {"calculator": "mine", "definitions": {"mine": definition}, **parameters}
    return read_last_run(run_program("labels", values, folder).path).events


def test_labels_are_those_of_the_calculator(tmp_path: Path) -> None:
    frames = write_crystals(tmp_path / "in.extxyz")
    events = label(tmp_path / "case", EMT_CLASS, structure_file=str(tmp_path / "in.extxyz"))
    labelled = ase.io.read(tmp_path / "case" / "labels.extxyz", ":")
    assert len(labelled) == len([e for e in events if e["event"] == "label"]) == len(frames)
    for atoms, result in zip(frames, labelled, strict=True):
        atoms.calc = EMT()
        assert result.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
        assert result.get_forces() == pytest.approx(atoms.get_forces(), abs=1e-7)
        assert result.get_stress() == pytest.approx(atoms.get_stress(), abs=1e-7)
        assert (result.info["level_of_theory"], result.info["source"]) == ("EMT", str(tmp_path / "in.extxyz"))
        assert "ase 3" in result.info["calculator"]


def test_failures_are_named_and_the_rest_is_labelled(tmp_path: Path) -> None:
    """A calculator that hangs is stopped, and one that exits is started again."""
    write_crystals(tmp_path / "in.extxyz")
    file = str(tmp_path / "in.extxyz")
    events = label(tmp_path / "case", FAULTY, structure_file=file, time_limit_s=1.0)
    reasons = {next(iter(e["elements"])): e["reason"] for e in events if e["event"] == "label_failed"}
    assert reasons["Au"] == "no answer within 1 s"
    assert "exit code 3" in reasons["Ag"]
    assert reasons["Pd"] == "RuntimeError: SCF not converged"
    assert reasons["Pt"] == "its forces is not finite"
    assert [next(iter(e["elements"])) for e in events if e["event"] == "label"] == ["Cu", "Ni"]
    assert len(ase.io.read(tmp_path / "case" / "labels.extxyz", ":")) == 2


class FailingProcess:
    """A calculator that takes 100 s to start, and 1 s to fail."""

    description: ClassVar[dict[str, Any]] = {}
    clock_s: ClassVar[list[float]] = [0.0]

    def __init__(self, *_: object, **__: object) -> None:
        self.clock_s[0] += 100.0

    def try_predict(self, *_: object, **__: object) -> None:
        self.clock_s[0] += 1.0
        raise PotentialError("exit code 3")

    def close(self) -> None:
        pass


def test_time_of_a_failure_is_without_the_next_start_of_the_calculator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labels, "PotentialProcess", FailingProcess)
    monkeypatch.setattr(labels, "time", SimpleNamespace(monotonic=lambda: FailingProcess.clock_s[0]))
    parameters = LabelsParameters.model_validate({"calculator": "mine", "definitions": {"mine": EMT_CLASS}})
    labeller = labels.Labeller(parameters, parameters.definitions["mine"], tmp_path / "log")
    structure = Structure("copper", np.array([29]), np.zeros((1, 3)))
    assert labeller.label(structure) == {"reason": "exit code 3", "calculation_s": 1.0}


@pytest.mark.slow
def test_killed_run_loses_no_label_and_repeats_none(tmp_path: Path) -> None:
    write_crystals(tmp_path / "in.extxyz", ELEMENTS * 3)
    calls = tmp_path / "calls"
    definition = {"module": MODULE, "class_name": "CountingCalculator", "kwargs": {"file": str(calls)}}
    parameters = {
        "calculator": "mine", "definitions": {"mine": definition}, "structure_file": str(tmp_path / "in.extxyz")
    }  # fmt: skip
    case = tmp_path / "case"
    case.mkdir()
    (case / "case.json").write_text(json.dumps({"id": "1", "program": "labels", "parameters": parameters}))
    command = [sys.executable, "-m", "harness.reference", str(case)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    records = case / "labels-0.jsonl"
    deadline = time.monotonic() + 120
    while not records.exists() or records.read_text().count("\n") < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    earlier = records.read_text().splitlines()
    with records.open("a") as file:
        file.write('{"event": "label", "index": 17, "dig')  # as if it had been killed while it wrote
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert records.read_text().splitlines()[: len(earlier)] == earlier
    events = read_last_run(case / "events.jsonl").events
    assert sorted(e["index"] for e in events if e["event"] == "label") == list(range(18))
    (workload,) = [e["value"] for e in events if e.get("name") == "workload"]
    assert workload["finished_earlier"] == len(earlier)
    # only the structure that was being labelled when the run was killed may have been calculated twice
    volumes = calls.read_text().split()
    assert len(set(volumes)) == 18
    assert len(volumes) <= 19


def test_ranks_share_the_structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_crystals(tmp_path / "in.extxyz")
    for rank in (1, 0):
        monkeypatch.setattr(labels.launch, "detect_rank", lambda _, r=rank: RankInfo(r, 2))
        events = label(tmp_path / "case", EMT_CLASS, structure_file=str(tmp_path / "in.extxyz"))
    counts = [(tmp_path / "case" / f"labels-{rank}.jsonl").read_text().count("\n") for rank in (0, 1)]
    assert counts == [3, 3]
    assert [e["index"] for e in events if e["event"] == "label"] == list(range(6))


def test_misspelt_class_is_reported_with_file_and_line(tmp_path: Path) -> None:
    definition = EMT_CLASS | {"class_name": "EMTT", "place": "models/mine.yaml:7"}
    with pytest.raises(InputError, match=r"models/mine.yaml:7: mine: .* has no 'EMTT' \(did you mean 'EMT'\?\)"):
        label(tmp_path / "case", definition, dataset="qm7x", count=1)


def test_unknown_calculator_of_a_suite_is_reported_with_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: mine\ntitle: Mine\nextends: labels\nmatrix:\n  calculator: [gfn2-xtb, gfn1-xtv]\n"
    )
    with pytest.raises(UsageError, match=r"mine.yaml:5:26: unknown model 'gfn1-xtv' \(did you mean 'gfn1-xtb'\?\)"):
        load_suite(tmp_path / "mine.yaml", "local")


def test_levels_of_theory_are_not_compared_as_models() -> None:
    """A comparison of all models would otherwise time calculators from first principles."""
    suite = load_suite(ROOT / "suites" / "models.yaml", "local")
    assert "painn-64" in suite.parameters["definitions"]
    assert not {"gfn1-xtb", "gfn2-xtb", "pbe-def2-svp"} & suite.parameters["definitions"].keys()


@pytest.mark.parametrize(("charge", "multiplicity", "symbols"), [(-1, 1, "OH"), (0, 2, "OH"), (1, 1, "OH3")])
def test_charge_and_multiplicity_reach_the_calculator(
    tmp_path: Path, charge: int, multiplicity: int, symbols: str
) -> None:
    """The label of an ion agrees with that of tblite's own interface."""
    positions = [[0.0, 0.0, 0.0], [0.97, 0.0, 0.0], [-0.3, 0.92, 0.0], [-0.3, -0.4, 0.8]][: 2 if symbols == "OH" else 4]
    atoms = Atoms(symbols, positions=positions, info={"charge": charge, "multiplicity": multiplicity})
    ase.io.write(tmp_path / "in.extxyz", atoms, format="extxyz")
    definition = load_definitions()["gfn2-xtb"]
    (event,) = (
        e
        for e in label(tmp_path / "case", definition, structure_file=str(tmp_path / "in.extxyz"))
        if e["event"] == "label"
    )
    structure = Structure("ion", atoms.numbers, atoms.positions, charge=charge, multiplicity=multiplicity)
    assert event["energy_ev"] == pytest.approx(compute_xtb(structure, "GFN2-xTB")[0], abs=1e-5)


def test_residuals_are_those_of_a_fit_to_the_other_structures() -> None:
    rng = np.random.default_rng(0)
    events = [{"elements": {"H": int(h), "O": int(o), "C": int(c)}} for h, o, c in rng.integers(1, 9, (12, 3))]
    counts = np.array([[e["elements"][s] for s in "HOC"] for e in events], dtype=float)
    atoms = counts.sum(axis=1)
    energies = counts @ [-13.6, -2000.0, -1030.0] + atoms * rng.normal(size=12)
    residuals = compute_residuals(events, energies.tolist())
    for k in range(12):
        others = np.arange(12) != k
        fit = np.linalg.lstsq((counts / atoms[:, None])[others], (energies / atoms)[others], rcond=None)[0]
        assert residuals[k] == pytest.approx((energies - counts @ fit)[k] / atoms[k])
    shifted = energies + counts @ [5.0, -3.0, 11.0]
    assert compute_residuals(events, shifted.tolist()) == pytest.approx(residuals)
    events.append({"elements": {"Ne": 1}})
    assert np.isnan(compute_residuals(events, [*energies.tolist(), -3.0])[-1]), "no other structure contains neon"


def test_labels_of_a_shipped_set_are_compared_with_a_model_and_reported(tmp_path: Path) -> None:
    case = tmp_path / "runs" / "labels-local" / "case"
    case.mkdir(parents=True)
    definition = load_definitions()["gfn2-xtb"]
    parameters = {
        "calculator": "mine", "definitions": {"mine": definition}, "dataset": "qm7x", "count": 12,
        "checkpoint": "painn-64", "head": "QM7X", "max_atoms": 15,
    }  # fmt: skip
    run_program("labels", parameters, case)
    (case / "case.json").write_text(
        json.dumps({"id": "1", "name": "labels", "suite": "labels", "program": "labels", "parameters": parameters})
    )
    (case / "exit_code").write_text("0\n8\n")
    with (case / "events.jsonl").open("a") as log:
        log.write('{"event": "done", "time_s": 4000000000.0}\n')
    tables = build_tables(load_runs(tmp_path / "runs"))
    (row,) = tables["labels"].to_dict("records")
    structures = tables["label_structures"]
    assert (row["labelled"], row["failed"], row["structures"]) == (12, 0, 12)
    errors = structures["energy_error_ev_per_atom"].dropna().abs()
    assert row["compared"] == len(errors) >= 8
    assert row["energy_mae_ev_per_atom"] == pytest.approx(errors.mean())
    assert row["energy_mae_ev_per_atom_low"] < row["energy_mae_ev_per_atom"] < row["energy_mae_ev_per_atom_high"]
    assert 0 < row["force_mae_ev_per_angstrom"] < row["zero_force_mae_ev_per_angstrom"]
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "12 structures of 12 labelled with tblite.ase.TBLite (tblite" in text
    assert (tmp_path / "figures" / "labels-local.case-labels.svg").exists()


def test_calculators_and_suite_of_the_guide_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter of another environment is the only part of the examples that must exist."""
    text = (ROOT / "GUIDE.md").read_text().split("## Labels of new structures")[1].split("\n## ")[0]
    calculators, suite = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    for folder in ("models", "suites", "results/runs/screening-local/CASE"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "results/runs/screening-local/CASE/best.csv").touch()
    (tmp_path / "models/dft.yaml").write_text(calculators.replace("~/venvs/gpaw/bin/python", sys.executable))
    (tmp_path / "suites/candidates.yaml").write_text(suite)
    monkeypatch.chdir(tmp_path)
    definitions = load_definitions()
    assert {"gpaw-pbe", "vasp-pbe", "qe-pbesol"} <= definitions.keys()
    parameters = load_suite(tmp_path / "suites/candidates.yaml", "local").parameters
    assert list(parameters["definitions"]) == ["gpaw-pbe"]
    assert parameters["structure_file"] == str(tmp_path / "results/runs/screening-local/CASE/best.csv")
    for name in ("vasp-pbe", "qe-pbesol"):  # ASE itself has these calculators
        assert build_object({"paths": [], **definitions[name]}).implemented_properties


def test_best_candidates_of_a_screening_are_labelled(tmp_path: Path) -> None:
    """The structures are those of best.csv, in its order, in supercells of at least eight atoms."""
    screening = tmp_path / "screening"
    screening.mkdir()
    parameters = {
        "workload": {"kind": "prototypes", "elements": ["Cu", "Au"], "volumes": [1.0], "filters": []},
        "part_size": 64, "max_candidates": 64, "retention": {"mode": "top", "count": 5}, "compile": False,
    }  # fmt: skip
    run_program("screening", parameters, screening)
    (screening / "case.json").write_text(json.dumps({"id": "1", "program": "screening", "parameters": parameters}))
    events = label(tmp_path / "case", EMT_CLASS, structure_file=str(screening / "best.csv"), count=3, supercells=True)
    with (screening / "best.csv").open() as file:
        best = [row["formula"] for row in csv.DictReader(file)][:3]
    labelled = [e for e in events if e["event"] == "label"]
    assert len(labelled) == 3
    for formula, event in zip(best, labelled, strict=True):
        counts = Formula(formula).count()
        ratio = sum(event["elements"].values()) / sum(counts.values())
        assert event["elements"] == {symbol: count * ratio for symbol, count in counts.items()}
        assert sum(event["elements"].values()) >= 8
