"""Pretraining runs from the command line to the report, and a job that was killed resumes from its last checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.cli.main import main
from harness.config.resources import find_resource
from harness.config.suite import load_suite
from harness.protocol import events
from tests.conftest import ROOT, read_pages

pytestmark = pytest.mark.slow
SUITE = """\
name: brief
title: Short training on three datasets
extends: pretrain-short
parameters:
  model: {hidden_dim: 8, num_conv_layers: 1, dim_headlayers: 8}
  datasets: [qm7x, transition1x, oc2022]
overlays:
  local:
    resources: {ranks_per_node: 1}
    parameters: {model: {hidden_dim: 8, dim_headlayers: 8}, batch_size: 4, epochs: 3, samples_per_epoch: 1200,
      checkpoint_interval_s: 0.000001, max_validation_structures: 8, gate_steps: 10}
"""


def test_killed_training_job_resumes_and_is_reported(tmp_path: Path) -> None:
    (tmp_path / "brief.yaml").write_text(SUITE)
    command = [sys.executable, "-m", "harness", "run", "brief.yaml", "-q"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    folder = tmp_path / "results" / "runs" / "brief-local"
    try:
        deadline = time.monotonic() + 120
        while not (checkpoints := list(folder.glob("brief-*/training.safetensors"))):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        case = checkpoints[0].parent
        time.sleep(0.5)
        first.send_signal(signal.SIGKILL)
        for process in [p for p in psutil.process_iter() if _working_folder(p) in (str(case), str(folder))]:
            process.kill()
    finally:
        first.kill()
        first.wait()
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    log = events.read_last_events(case / "events.jsonl")
    (resumed,) = [e for e in log if e["event"] == "resumed"]
    assert 0 < resumed["step"] < 900
    assert [e["epoch"] for e in log if e["event"] == "epoch"] == [0, 1, 2]
    page = read_pages(tmp_path / "results")
    assert "stand-in for QM7X" in page


def _working_folder(process: psutil.Process) -> str:
    try:
        return process.cwd()
    except psutil.Error:
        return ""


@pytest.mark.parametrize("system", ["frontier", "perlmutter", "aurora", "slurm", "local"])
def test_pretraining_suites_plan_on_every_system(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-S", "account=a"] if system in ("frontier", "perlmutter", "aurora") else []
    nodes = {"frontier": 2048, "aurora": 2048, "perlmutter": 128, "slurm": 2, "local": 1}[system]
    assert main(["plan", "pretrain", "--system", system, "--out", str(tmp_path), *options]) == 0
    assert f" {nodes} " in capsys.readouterr().out.splitlines()[2]
    assert main(["list", "multitask", "--system", system, *options]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 17 * 3


def test_single_task_cases_differ_only_in_their_data() -> None:
    """Otherwise the ratio of their errors would not compare multi-task with single-task training."""
    suite = load_suite(find_resource("suites", "multitask"), "local")
    assert suite.parameters["datasets"] == "{{ all_datasets if dataset == 'all' else [dataset] }}"
    assert suite.parameters["samples_per_epoch"] == "{{ samples_per_dataset * (16 if dataset == 'all' else 1) }}"
    others = {name: value for name, value in suite.parameters.items() if name not in ("datasets", "samples_per_epoch")}
    assert "dataset" not in str(others)
    assert set(suite.matrix) == {"dataset"}
