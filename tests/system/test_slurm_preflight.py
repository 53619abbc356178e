"""The preflight of two nodes passes on a real Slurm whose srun starts the ranks of MPICH."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from harness.drills.cluster import Cluster
from harness.protocol import events
from tests.conftest import ROOT, require_slurm

ITEMS = ["environment", "devices", "binding", "distributed", "locks", "telemetry", "mpi"]
SUITE = f"""\
name: two-nodes
title: Two nodes and their network
extends: preflight
parameters: {{only: {ITEMS}}}
matrix: {{nodes: [2]}}
depends_on: []
"""


@pytest.mark.slow
def test_two_nodes_pass_the_preflight(tmp_path: Path) -> None:
    """Without the MPI plugin for MPICH, every rank would be alone in its world, and the item fails."""
    require_slurm()
    (tmp_path / "two-nodes.yaml").write_text(SUITE)
    argv = [sys.executable, "-m", "harness", "run", "two-nodes.yaml", "--system", "slurm", "-S", "ranks_per_node=1"]
    with Cluster(tmp_path / "c", nodes=2, gpus=0, settings={"MpiDefault": "pmi2"}) as cluster:
        result = subprocess.run(
            [*argv, "--wait"], cwd=tmp_path, env=cluster.make_environment() | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert result.returncode == 0, result.stderr
    [log] = (tmp_path / "results" / "runs" / "two-nodes-slurm").glob("two-nodes-*/events.jsonl")
    items = {e["item"]: e for e in events.read(log) if e["event"] == "preflight_item"}
    assert [item["verdict"] for item in items.values()] == ["ok"] * (len(ITEMS) + 1)
    assert items["mpi"]["observed"].startswith("2 ranks of MPICH")
    assert items["binding"]["observed"].startswith("2 ranks with ")
