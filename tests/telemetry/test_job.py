"""Telemetry in jobs: fakes of Omnistat's programs with a real run and database, and the harness's own sampler."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.drills.ports import find_free_ports
from tests.conftest import ROOT, Harness, require_program

FAKE_OMNISTAT = Path(__file__).parent / "fake_omnistat.py"
SUITE = """\
name: tiny
title: Two stages of a small model
program: ladder
parameters:
  workload: random
  precision: fp32
  stages: [baseline, fused_gradient]
  model: {hidden_dim: 16, num_conv_layers: 2, dim_headlayers: 16, dim_sharedlayers: 8}
  batches: 2
  rounds: 12
  batch_size: 4
  atoms: [4, 20]
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with fakes of Omnistat's programs."""
    folder = tmp_path / "omnistat"
    folder.mkdir()
    for tool in ("usermode", "annotate", "query"):
        script = folder / f"omnistat-{tool}"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_OMNISTAT} {tool} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("OMNISTAT_SERVER", f"http://127.0.0.1:{find_free_ports()}")
    monkeypatch.setenv("OMNISTAT_FOM", f"http://127.0.0.1:{find_free_ports()}/fom")
    monkeypatch.setenv("FAKE_OMNISTAT_HOME", str(tmp_path / "server"))
    return folder


def run_suite(harness: Harness, tmp_path: Path, *settings: str) -> tuple[Path, dict[str, str], str]:
    """Run the suite; return the campaign, the row of costs, and the output of the job."""
    (tmp_path / "tiny.yaml").write_text(SUITE)
    options = [argument for setting in settings for argument in ("-S", setting)]
    result = harness("run", "tiny.yaml", "-q", *options)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "results/tables/cost_cases.csv").open() as table:
        row = next(csv.DictReader(table))
    campaign = tmp_path / "results/runs/tiny-local"
    return campaign, row, next(p for p in campaign.glob("jobs/*.log") if "omnistat" not in p.name).read_text()


@pytest.mark.slow
def test_telemetry_of_a_job_is_exported_and_becomes_energy(harness: Harness, tmp_path: Path, programs: Path) -> None:
    require_program("victoria-metrics")
    campaign, row, _ = run_suite(
        harness, tmp_path, "telemetry=omnistat", f"omnistat_folder={programs}/", "telemetry_interval_s=0.5"
    )
    calls = [line.split()[:2] for line in (tmp_path / "calls").read_text().splitlines()]
    assert [c for c in calls if c[0] != "collect"] == [
        ["usermode", "--start"], ["annotate", "--mode"], ["annotate", "--mode"], ["usermode", "--stopexporters"],
        ["query", "--job"], ["usermode", "--stopserver"],
    ]  # fmt: skip
    export = next(campaign.glob("jobs/*.omnistat.jsonl"))
    series = [json.loads(line)["metric"] for line in export.read_text().splitlines()]
    folder = next(campaign.glob("tiny*/"))
    assert {m["marker"] for m in series if m["__name__"] == "rmsjob_annotations"} == {folder.name}
    assert {m["name"] for m in series if m["__name__"] == "omnistat_fom"} == {"structures_per_s"}
    assert not (folder / "telemetry").exists()
    assert float(row["energy_j"]) == pytest.approx(200 * float(row["seconds"]), rel=0.05)
    assert float(row["energy_per_result_j"]) == pytest.approx(float(row["energy_j"]) / float(row["work_units"]))
    assert (row["energy_method"], row["energy_scope"]) == ("power integrated", "accelerators")
    assert "power integrated" in (tmp_path / "results/cost.html").read_text()


@pytest.mark.parametrize("fault", ["no start", "no sample"])
@pytest.mark.slow
def test_failure_of_telemetry_does_not_fail_the_job(
    harness: Harness, tmp_path: Path, programs: Path, fault: str
) -> None:
    if fault == "no start":
        shutil.rmtree(programs)
    else:
        (programs / "omnistat-usermode").write_text("#!/bin/sh\ntrue\n")
    campaign, row, output = run_suite(
        harness, tmp_path, "telemetry=omnistat", f"omnistat_folder={programs}/", "telemetry_interval_s=0.5"
    )
    assert row["state"] == "done"
    assert not list(campaign.glob("jobs/*.jsonl*"))
    reason = "Omnistat did not start" if fault == "no start" else "Omnistat started, but no sample of this job reached"
    assert f"warning: {reason}" in output
    assert float(row["busy_cores"]) > 0.3  # the harness's own sampler ran instead of Omnistat


@pytest.mark.slow
def test_sampler_uses_less_than_one_percent_of_a_core(harness: Harness, tmp_path: Path) -> None:
    campaign, row, _ = run_suite(harness, tmp_path, "telemetry_interval_s=0.5")
    assert next(campaign.glob("*/telemetry/*-0.jsonl")).stat().st_size > 500
    assert 0 < float(row["sampler_core_fraction"]) < 0.01
    assert int(row["samples"]) >= 3
    assert row["unavailable_reason"] == "no power or energy sensor" or float(row["energy_j"]) > 0


def test_sampler_survives_a_full_disk_and_flushes_before_a_kill(tmp_path: Path) -> None:
    """The sampler stops silently if it cannot write, and its samples survive a kill of its process."""
    script = (
        "import os, sys, time; from pathlib import Path; import harness.reference.profiling.node_sampler\n"
        "harness.reference.profiling.node_sampler.BUFFER_S = 0.2\n"
        "sampler = harness.reference.profiling.node_sampler.start(Path(sys.argv[1]), 0, on_gpu=True); time.sleep(3.0)\n"
        "print(sampler.is_alive(), flush=True); os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "GFM_HARNESS_SAMPLER_S": "0.05", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert result.stdout == "True\n"
    lines = next((tmp_path / "telemetry").glob("*.jsonl")).read_text().splitlines()
    assert len([json.loads(line) for line in lines]) > 5

    full = tmp_path / "full"
    (full / "telemetry").mkdir(parents=True)
    node = socket.gethostname()
    (full / "telemetry" / f"{node}-0.jsonl").symlink_to("/dev/full")
    result = subprocess.run(
        [sys.executable, "-c", script, str(full)], env=environment, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr) == ("False\n", "")
