"""Suites on a real Slurm: a search that loses a node, and a training run that needs several jobs."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from harness.drills.cluster import Cluster
from harness.protocol import events
from tests.conftest import read_pages
from tests.support.cluster import wait_until
from tests.system.test_slurm import cluster, environment, run_harness  # noqa: F401

pytestmark = pytest.mark.slow
RunHarness = Callable[..., "subprocess.CompletedProcess[str]"]
SUITE = """\
name: small-search
title: A search of minutes
extends: hpo
matrix: {search: [painn]}
overlays:
  slurm:
    variables: {trial_nodes: 1}
    parameters:
      max_trials: 5
      space: {learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}
      trial:
        datasets: [qm7x]
        max_structures_per_dataset: 60
        epochs: 40
        samples_per_epoch: 64
        model: {hidden_dim: 4, num_conv_layers: 1}
    resources: {nodes: 3, walltime_minutes: 20}
"""

CHAIN = """\
name: chain
title: A chain of jobs
extends: pretrain-chain
parameters: {datasets: [qm7x], max_structures_per_dataset: 60, max_validation_structures: 8}
matrix: {chain_index: [1, 2, 3, 4]}
overlays:
  slurm:
    parameters:
      model: {hidden_dim: 4, num_conv_layers: 1, num_sharedlayers: 0, dim_headlayers: 4, max_neighbours: 8}
      time_limit_minutes: 0.15
      batch_size: 4
      epochs: 3
      samples_per_epoch: 4000
      gate_steps: 10
      compile: false
    resources: {nodes: 2, ranks_per_node: 1, walltime_minutes: 10}
"""


def read_trials(case: Path) -> list[dict[str, Any]]:
    return [e for e in events.read_last_events(case / "events.jsonl") if e["event"] == "trial"]


def test_search_survives_the_loss_of_a_node(run_harness: RunHarness, cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """The trial of the lost node runs again on another; trials never share a node, and none is lost."""
    (tmp_path / "small-search.yaml").write_text(SUITE)
    argv = ["run", "small-search.yaml", "--system", "slurm", "-S", "ranks_per_node=1"]
    submitted = run_harness(*argv, "--submit")
    assert submitted.returncode == 0, submitted.stderr
    campaign = tmp_path / "results" / "runs" / "small-search-slurm"
    case = next(campaign.glob("small-search-*"))
    running = [case / "trials" / f"{k:04d}" for k in range(3)]
    wait_until(
        "three trials run", lambda: all(any(e["event"] == "epoch" for e in read_log(folder)) for folder in running)
    )
    dead = (running[1] / "nodes").read_text().strip()
    cluster.kill_node(dead)
    result = run_harness(*argv, "--wait")
    assert result.returncode == 0, result.stderr
    reported = read_trials(case)
    assert sorted(t["trial"] for t in reported) == [0, 1, 2, 3, 4]
    assert {t["state"] for t in reported} == {"done"}
    assert len({t["nodes"][0] for t in reported} - {dead}) == 2
    for one, other in combinations(reported, 2):
        if one["nodes"] == other["nodes"]:
            assert one["end_time_s"] <= other["start_time_s"] or other["end_time_s"] <= one["start_time_s"]
    starts = [e for e in events.read(running[1] / "events.jsonl") if e["event"] == "start"]
    assert len(starts) == 2
    assert "5 trials: 5 done" in read_pages(tmp_path / "results")
    cluster.restart_node(dead)


def test_training_continues_over_several_jobs(run_harness: RunHarness, cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """Each job starts when the previous one has ended; no step is repeated, and the last jobs only finish the rest."""
    (tmp_path / "chain.yaml").write_text(CHAIN)
    result = run_harness("run", "chain.yaml", "--system", "slurm", "--submit", "--wait")
    assert result.returncode == 0, result.stderr
    campaign = tmp_path / "results" / "runs" / "chain-slurm"
    logs = [read_log(next(campaign.glob(f"*_{k}-*"))) for k in (1, 2, 3, 4)]
    start_times, end_times = ([log[index]["time_s"] for log in logs] for index in (0, -1))
    assert all(end < start for end, start in zip(end_times, start_times[1:], strict=False))
    stopped = [[e["step"] for e in log if e["event"] == "stopped"] for log in logs]
    resumed = [[e["step"] for e in log if e["event"] == "resumed"] for log in logs]
    assert stopped[0], "the first job runs out of time"
    assert resumed[0] == []
    for before, after in zip(stopped, resumed[1:], strict=False):
        assert after == before[-1:]
    for log in logs:
        reported = [e["epoch"] for e in log if e["event"] == "epoch"]
        assert reported == list(range(len(reported)))


def read_log(folder: Path) -> list[dict[str, Any]]:
    return events.read_last_events(folder / "events.jsonl")
