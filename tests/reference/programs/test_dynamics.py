"""The program `dynamics`: events, agreement with ASE, its page, faults, and runs that are killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk

from harness.document.blocks import EN_DASH, list_rows
from harness.experiments.dynamics.figures import PANELS, draw_physics
from harness.experiments.dynamics.metrics import build_tables
from harness.experiments.dynamics.page import format_mean, format_spacegroups, summarize
from harness.experiments.dynamics.physics import compute_drift, compute_mean_temperature
from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_run
from harness.protocol.programs.dynamics import DynamicsParameters
from harness.protocol.records import Done
from harness.protocol.registry import parse_parameters
from harness.reference.data.structure import Structure
from harness.reference.datasets.user_files import structure_from_ase
from harness.reference.errors import InputError
from harness.reference.inference.structure_batch import NO_LIST
from harness.reference.models import checkpoints
from harness.reference.programs.dynamics import saved_state, workload
from harness.reference.programs.dynamics.ase_baseline import MAX_DISPLACED, AseBaseline
from harness.reference.programs.dynamics.program import compute_identity
from harness.report.render import write_report
from harness.results.runs import load_runs
from harness.results.tables import Row
from tests.conftest import ROOT
from tests.support.programs import run_program

SHORT: dict[str, Any] = {"steps": 20, "ase_rounds": 2, "source": "molecule", "count": 3, "time_step_fs": 0.5}
MOTIONS: dict[str, dict[str, Any]] = {
    "nve": SHORT,
    "langevin": SHORT | {"motion": "langevin", "batch_size": 2, "precision": "fp32"},
    "relaxation": {"motion": "relaxation", "ase_rounds": 1, "structure_file": "in.extxyz", "count": 2, "steps": 60},
}


def write_crystals(path: Path) -> None:
    """Write two crystals whose cells are strained."""
    frames = [bulk("NaCl", "rocksalt", a=5.9), bulk("Si", "diamond", a=5.6)]
    for k, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=k)
    ase.io.write(path, frames, format="extxyz")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a case of each motion."""
    out = tmp_path_factory.mktemp("dynamics")
    write_crystals(out / "in.extxyz")
    for name, parameters in MOTIONS.items():
        run_case(out, name, parameters)
    return out


def run_case(out: Path, name: str, parameters: dict[str, Any]) -> Path:
    """Run a case of a campaign in a results folder, which contains the file of structures; return the case's folder."""
    folder = out / "runs" / "dynamics-local" / name
    folder.mkdir(parents=True)
    values = dict(parameters)
    if "structure_file" in values:
        values["structure_file"] = str(out / "in.extxyz")
    case = {"id": name, "name": name, "suite": "dynamics", "program": "dynamics", "parameters": values}
    (folder / "case.json").write_text(json.dumps(case))
    run_program("dynamics", values, folder).write(Done())
    (folder / "exit_code").write_text("0\n")
    return folder


def read_rows(runs: Path) -> dict[str, Row]:
    """Return the rows of the table by case."""
    return {row["case"]: row for row in list_rows(build_tables(load_runs(runs))["dynamics"])}


def test_every_motion_agrees_with_ase(results: Path) -> None:
    rows = read_rows(results / "runs")
    assert {name: row["verdict"] for name, row in rows.items()} == dict.fromkeys(MOTIONS, "ok")
    assert rows["nve"]["energy_difference_mev_per_atom"] < 1e-6
    relaxation = rows["relaxation"]
    assert (relaxation["converged"], relaxation["same_spacegroup"], relaxation["compared_spacegroups"]) == (2, 1, 1)
    for row in rows.values():
        assert row["compared"] >= 1
        assert row["finished"] == row["structures"]
        shares = [row[f"{name}_share"] for name in ("lists", "model", "integrator")]
        assert min(shares) > 0
        assert sum(shares) == pytest.approx(1.0)


def test_rates_follow_from_the_samples(results: Path) -> None:
    row = read_rows(results / "runs")["nve"]
    seconds_per_step = row["us_per_atom_step"] * 1e-6 * row["mean_batch"] * row["atoms"] / row["structures"]
    assert row["ns_per_day"] == pytest.approx(0.5e-6 * 86400 / seconds_per_step, rel=0.5)
    assert row["ns_per_day_total"] == pytest.approx(row["mean_batch"] * row["ns_per_day"])


def test_a_wrong_energy_withholds_the_speed_up(results: Path, tmp_path: Path) -> None:
    rows = read_changed_rows(results, tmp_path, "nve", lambda e: {"energy_ev": e["energy_ev"] + 1e-3}, "ase_sample")
    assert rows["nve"]["verdict"] == "incorrect"
    assert rows["nve"]["speedup"] is None
    assert summarize(list(rows.values())) == "1 of 3 cases disagrees with ASE"


def test_relaxations_that_did_not_converge_are_not_compared(results: Path, tmp_path: Path) -> None:
    change = {"converged": False, "energy_ev": 0.0}
    row = read_changed_rows(results, tmp_path, "relaxation", lambda _: change, "ase_sample")["relaxation"]
    assert row["verdict"] == "not checked"
    assert row["energy_difference_mev_per_atom"] is None
    assert (row["compared"], row["compared_spacegroups"], row["speedup"]) == (0, 0, None)


@pytest.mark.parametrize(
    ("displaced_mev", "verdict", "counts"),
    [((), "incorrect", (1, 0)), ((0, 0), "incorrect", (1, 0)), ((0, 5), "not checked", (0, 1))],
)
def test_another_end_is_wrong_unless_rounding_decides_it(
    results: Path, tmp_path: Path, displaced_mev: tuple[float, ...], verdict: str, counts: tuple[int, int]
) -> None:
    """ASE's energies after displacements by an error of rounding show whether rounding decides."""

    def change(ase: dict[str, Any]) -> dict[str, Any]:
        energy = ase["energy_ev"] - 2e-3 * ase["atoms"]
        return {"energy_ev": energy, "displaced_energies_ev": [energy + 1e-3 * d * ase["atoms"] for d in displaced_mev]}

    row = read_changed_rows(results, tmp_path, "relaxation", change, "ase_sample")["relaxation"]
    assert row["verdict"] == verdict
    assert (row["compared"], row["rounding_decides"]) == counts


@pytest.mark.parametrize("change", [{"force_max_ev_per_angstrom": 0.06}, {"energy_ev": 0.0}])
def test_an_end_that_is_none_for_ase_is_wrong(results: Path, tmp_path: Path, change: dict[str, float]) -> None:
    def change_end(ase: dict[str, Any]) -> dict[str, Any]:
        return {"batch_end": ase["batch_end"] | change}

    row = read_changed_rows(results, tmp_path, "relaxation", change_end, "ase_sample")["relaxation"]
    assert row["verdict"] == "incorrect"
    assert row["energy_difference_mev_per_atom"] < 1e-3


def test_unknown_space_groups_do_not_agree(results: Path, tmp_path: Path) -> None:
    tags = ("ase_sample", "relaxation")
    row = read_changed_rows(results, tmp_path, "relaxation", lambda _: {"spacegroup": None}, *tags)["relaxation"]
    assert (row["verdict"], row["compared"], row["compared_spacegroups"]) == ("ok", 1, 0)
    assert format_spacegroups(row) == EN_DASH


def test_only_converged_relaxations_count_in_the_rate(results: Path, tmp_path: Path) -> None:
    whole = read_rows(results / "runs")["relaxation"]
    row = read_changed_rows(results, tmp_path, "relaxation", lambda e: {"converged": e["index"] > 0}, "relaxation")
    assert row["relaxation"]["structures_per_s"] == pytest.approx(whole["structures_per_s"] / 2)


def test_the_finding_names_the_clocks_and_the_batch(results: Path) -> None:
    finding = summarize(list(read_rows(results / "runs").values()))
    assert re.fullmatch(
        r"a step of dynamics takes \S+ us of wall time per atom \(.* in a batch\), and ASE \S+ times as much CPU time; "
        r"a step of a relaxation takes .* CPU time",
        finding,
    )


def test_a_mean_without_an_interval_is_shown() -> None:
    row = Row({"t": 301.0, "t_low": None, "t_high": None})
    assert format_mean(row, "t") == "301"
    assert format_mean(Row(row | {"t_low": 300.0, "t_high": 302.0}), "t") == "301 [300, 302]"


def read_changed_rows(
    results: Path, folder: Path, case: str, change: Callable[[dict[str, Any]], dict[str, Any]], *tags: str
) -> dict[str, Row]:
    """Return the rows of the table after a change of the events of a case with certain tags."""
    shutil.copytree(results / "runs", folder / "runs")
    log = folder / "runs" / "dynamics-local" / case / "events.jsonl"
    events = [json.loads(line) for line in log.read_text().splitlines()]
    changed = [e | change(e) if e["event"] in tags else e for e in events]
    log.write_text("".join(json.dumps(event) + "\n" for event in changed))
    return read_rows(folder / "runs")


def test_the_page_shows_every_case(results: Path) -> None:
    write_report(results)
    page = (results / "dynamics.html").read_text(encoding="utf-8")
    assert "Compared with ASE" in page
    assert "meV/atom/ps" in page
    assert page.count("NVE") >= 3


@pytest.mark.parametrize("motion", PANELS)
def test_the_figure_has_only_panels_with_trajectories(results: Path, tmp_path: Path, motion: str) -> None:
    records = [r for r in load_runs(results / "runs") if r.case["parameters"].get("motion", "nve") == motion]
    assert draw_physics(records, tmp_path, "physics").caption == PANELS[motion].caption


def test_final_structures_are_written(results: Path) -> None:
    frames = ase.io.read(results / "runs" / "dynamics-local" / "relaxation" / "final.extxyz", ":")
    assert [atoms.get_chemical_formula() for atoms in frames] == ["ClNa", "Si2"]
    assert [atoms.info["index"] for atoms in frames] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("motion", ["langevin", "relaxation"])
def test_a_killed_run_continues_and_gives_the_same_numbers(tmp_path: Path, motion: str) -> None:
    write_crystals(tmp_path / "in.extxyz")
    parameters = {"state_interval_s": 1e-3, "steps_per_sample": 1, "ase_rounds": 0} | (
        {"motion": "langevin", "source": "molecule", "count": 6, "steps": 60, "batch_size": 3}
        if motion == "langevin"
        else {
            "motion": motion, "structure_file": str(tmp_path / "in.extxyz"), "count": 2, "batch_size": 1, "fmax": 5e-3
        }
    )  # fmt: skip
    whole = write_case(tmp_path / "whole", parameters)
    killed = write_case(tmp_path / "killed", parameters)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([*COMMAND, str(whole)], env=environment, check=False).returncode == 0
    process = subprocess.Popen([*COMMAND, str(killed)], env=environment, start_new_session=True)
    deadline = time.monotonic() + 300
    while count_samples(killed) < 12:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert subprocess.run([*COMMAND, str(killed)], env=environment, check=False).returncode == 0
    expected, continued = (read_last_run(folder / "events.jsonl").events for folder in (whole, killed))
    tags = ("trajectory", "relaxation")
    assert strip_times(continued, *tags) == strip_times(expected, *tags)
    (workload,) = [e["value"] for e in continued if e.get("name") == "workload"]
    assert workload["earlier_batch_steps"] >= 5
    assert sum(e["batch_steps"] for e in continued if e["event"] == "sample") == sum(
        e["batch_steps"] for e in expected if e["event"] == "sample"
    )
    assert (killed / "final.extxyz").read_text() == (whole / "final.extxyz").read_text()


COMMAND = [sys.executable, "-m", "harness.reference"]


def write_case(folder: Path, parameters: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "case.json").write_text(json.dumps({"id": "1", "program": "dynamics", "parameters": parameters}))
    return folder


def count_samples(folder: Path) -> int:
    log = folder / "events.jsonl"
    return log.read_text().count('"event": "sample"') if log.exists() else 0


def strip_times(events: list[dict[str, Any]], *tags: str) -> list[dict[str, Any]]:
    chosen = [{k: v for k, v in e.items() if k != "time_s"} for e in events if e["event"] in tags]
    return sorted(chosen, key=lambda e: int(e["index"]))


def test_a_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    parameters = SHORT | {"count": 1, "ase_rounds": 0, "steps": 10}
    run_program("dynamics", parameters, tmp_path)
    path = tmp_path / saved_state.FILE_NAME
    with pytest.raises(InputError, match="other structures, parameters or weights; delete it to start anew"):
        run_program("dynamics", parameters | {"seed": 1}, tmp_path)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"dynamics.safetensors: .* checksum differs\); delete it"):
        run_program("dynamics", parameters, tmp_path)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"motion": "nvt"}, "motion is 'nvt'"),
        ({"steps": 5}, "record_interval is 10, expected at most steps, 5"),
        ({"time_step_fs": 0}, "time_step_fs is 0, expected a number above 0"),
        ({"seed": -1}, "seed is -1, expected at least 0"),
        ({"precison": "fp32"}, "unknown parameter 'precison' .did you mean 'precision'"),
    ],
)
def test_wrong_parameters_are_named(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_parameters("dynamics", parameters)


def test_structures_that_cannot_move_are_named(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "in.extxyz", bulk("Cu"), format="extxyz")
    file = str(tmp_path / "in.extxyz")
    with pytest.raises(InputError, match=r"in.extxyz/0 has one atom, and dynamics need at least two"):
        run_program("dynamics", {"structure_file": file}, tmp_path)
    with pytest.raises(InputError, match=r"no shipped set 'qm7y' .did you mean 'qm7x'"):
        run_program("dynamics", {"source": "dataset", "dataset": "qm7y"}, tmp_path)
    with pytest.raises(InputError, match=r"no head 'MPTrjj' .did you mean 'MPTrj'"):
        run_program("dynamics", {"head": "MPTrjj"}, tmp_path)


def test_structures_that_cannot_be_evaluated_end_neither_the_batch_nor_ase(tmp_path: Path) -> None:
    """Atoms coincide, so that no step counts, ASE has no sample, and the page has no times."""
    ase.io.write(tmp_path / "in.extxyz", [Atoms("Cu2", positions=np.zeros((2, 3)))] * 2, format="extxyz")
    folder = run_case(tmp_path, "coinciding", {"structure_file": "in.extxyz", "count": 2, "ase_rounds": 2})
    events = read_last_run(folder / "events.jsonl").events
    assert [e["reason"] for e in events if e["event"] == "unfinished"] == [NO_LIST, NO_LIST]
    assert [e["batch_steps"] for e in events if e["event"] == "sample"] == [0]
    assert not [e for e in events if e["event"] == "ase_sample"]
    write_report(tmp_path)
    assert f"2 structures ended early: 2 {NO_LIST}" in (tmp_path / "dynamics.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("motion", ["nve", "relaxation"])
def test_ase_has_no_sample_if_energies_are_not_finite(motion: Literal["nve", "relaxation"]) -> None:
    config = DynamicsParameters(motion=motion, steps=10)
    model = checkpoints.load_named(config.checkpoint)[0].double().requires_grad_(False)
    crystal = structure_from_ase(bulk("Cu", cubic=True), "copper")
    assert AseBaseline(config, model, [crystal]).measure(0, 0) is not None
    next(model.encoder.parameters()).fill_(torch.nan)
    assert AseBaseline(config, model, [crystal]).measure(0, 0) is None


def test_ase_relaxes_displaced_positions_if_the_ends_differ() -> None:
    config = DynamicsParameters(motion="relaxation", fmax=0.2)
    model = checkpoints.load_named(config.checkpoint)[0].double().requires_grad_(False)
    crystal = structure_from_ase(bulk("Cu", a=3.7), "copper")
    baseline = AseBaseline(config, model, [crystal])
    sample = baseline.measure(0, 0)
    assert sample is not None
    assert sample.batch_end is None
    same, other = (baseline.measure(0, 0, replace(crystal, energy=sample.energy_ev + d)) for d in (0.0, 0.1))
    assert same is not None
    assert other is not None
    assert same.displaced_energies_ev is None
    assert other.displaced_energies_ev == pytest.approx([sample.energy_ev] * MAX_DISPLACED, abs=1e-6)
    assert other.batch_end is not None
    assert other.batch_end.energy_ev == pytest.approx(sample.initial_energy_ev)


def test_a_space_without_candidates_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "build_workload", lambda *_: SimpleNamespace(total=0))
    config = DynamicsParameters(source="prototypes", count=3)
    with pytest.raises(InputError, match="prototypes: found no candidate"):
        workload.build_structures(config, checkpoints.load_named(config.checkpoint)[0])


def test_a_state_belongs_to_a_charge_and_a_cell() -> None:
    config = DynamicsParameters()
    model = checkpoints.load_named(config.checkpoint)[0]
    pair = Structure("pair", np.array([29, 29]), np.diag([0.0, 0.0, 2.5])[1:])
    others = [replace(pair, charge=1), replace(pair, multiplicity=3), replace(pair, periodic=(True, False, False))]
    assert len({compute_identity(config, model, [structure]) for structure in (pair, *others)}) == 4


def test_drift_and_temperature_are_those_of_made_up_trajectories() -> None:
    steps = list(range(0, 1000, 10))
    rng = np.random.default_rng(0)
    kinetic = 1.5 * 8 * 8.617333262e-5 * (400.0 + 20.0 * rng.standard_normal(len(steps)))
    total = -3.0 + 8 * 2e-3 * 1e-3 * np.array(steps)  # 2 meV/atom/ps at 1 fs
    event = {"atoms": 8, "steps": steps, "potential_ev": (total - kinetic).tolist(), "kinetic_ev": kinetic.tolist()}
    drift, fluctuation = compute_drift(event, 1.0)
    assert drift == pytest.approx(2.0)
    assert fluctuation == pytest.approx(0.0, abs=1e-9)
    mean = compute_mean_temperature([event], has_momentum=True)
    assert mean.low < 400.0 < mean.high
    assert compute_mean_temperature([event], has_momentum=False).value == pytest.approx(mean.value * 8 / 7)
