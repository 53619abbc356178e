"""A search on a real Slurm: every trial on a node of its own, and a node that goes down in the middle."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from harness import events
from tests.cluster import Cluster
from tests.conftest import pages_of
from tests.test_slurm import call, cluster, environment, until  # noqa: F401

pytestmark = pytest.mark.slow
Call = Callable[..., "subprocess.CompletedProcess[str]"]
SUITE = """\
name: hunt
title: A search of minutes
extends: hpo
matrix: {search: [painn]}
scale:
  slurm:
    variables: {trial_nodes: 1}
    parameters:
      evaluations: 5
      space: {learning_rate: {low: 1.0e-4, high: 1.0e-2, log: true}}
      trial: {sets: [qm7x], limit: 60, epochs: 40, epoch_length: 64, model: {hidden_dim: 4, num_conv_layers: 1}}
    resources: {nodes: 3, minutes: 20}
"""


def trials(case: Path) -> list[dict[str, Any]]:
    return [e for e in events.last_run(case / "events.jsonl") if e["event"] == "trial"]


def test_a_search_outlives_a_node(call: Call, cluster: Cluster, tmp_path: Path) -> None:  # noqa: F811
    """The trial that was on it runs again on another; no two trials share a node at a time; none is lost."""
    (tmp_path / "hunt.yaml").write_text(SUITE)
    words = ["run", "hunt.yaml", "--system", "slurm", "-S", "ranks_per_node=1"]
    submitted = call(*words, "--submit")
    assert submitted.returncode == 0, submitted.stderr
    campaign = tmp_path / "results" / "runs" / "hunt-slurm"
    case = next(campaign.glob("hunt-*"))
    running = [case / "trials" / f"{k:04d}" for k in range(3)]
    until("three trials run", lambda: all(any(e["event"] == "epoch" for e in log(place)) for place in running))
    dead = (running[1] / "nodes").read_text().strip()
    cluster.down(dead)
    done = call(*words, "--wait")
    assert done.returncode == 0, done.stderr
    told = trials(case)
    assert sorted(t["trial"] for t in told) == [0, 1, 2, 3, 4]
    assert {t["state"] for t in told} == {"done"}
    assert len({t["nodes"][0] for t in told} - {dead}) == 2
    for one, other in combinations(told, 2):
        if one["nodes"] == other["nodes"]:
            assert one["ended_s"] <= other["began_s"] or other["ended_s"] <= one["began_s"]
    starts = [e for e in events.read(running[1] / "events.jsonl") if e["event"] == "start"]
    assert len(starts) == 2
    assert "5 trials: 5 done" in pages_of(tmp_path / "results")
    cluster.resume(dead)


def log(folder: Path) -> list[dict[str, Any]]:
    return events.last_run(folder / "events.jsonl")
