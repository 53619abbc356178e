"""Campaigns on a real Slurm of eight emulated nodes survive the loss of nodes, the controller and the harness."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.drills.cluster import Cluster
from harness.protocol import events
from tests.conftest import ROOT, require_slurm
from tests.support.cluster import wait_until

pytestmark = pytest.mark.slow
RunHarness = Callable[..., "subprocess.CompletedProcess[str]"]

FLEET = """\
name: fleet
title: Many small cases
program: data_parallel
parameters:
  precision: fp32
  batch_size: 1
  model: {hidden_dim: 4, num_conv_layers: 1, num_sharedlayers: 0, dim_headlayers: 4}
  datasets: [mptrj]
  epochs: 2
  steps: 1
matrix:
  seed: [1, 2, 3, 4]
resources: {walltime_minutes: 5}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    require_slurm()
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


@pytest.fixture
def environment(cluster: Cluster, tmp_path: Path) -> dict[str, str]:
    if not cluster.get_node_states():
        cluster.start_controller()
    for node in cluster.names:
        if cluster.get_node_states()[node] != "idle":
            cluster.restart_node(node)
    return cluster.make_environment() | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)}


@pytest.fixture
def run_harness(environment: dict[str, str], tmp_path: Path) -> RunHarness:
    """Return a function that runs the harness in the test's folder."""

    def run(*argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "harness", *argv],
            cwd=tmp_path,
            env=environment | variables,
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )

    return run


def write_suite(folder: Path, text: str = FLEET, name: str = "fleet") -> Path:
    (folder / f"{name}.yaml").write_text(text)
    return folder / "results" / "runs" / f"{name}-slurm"


def count_starts(campaign: Path) -> dict[str, int]:
    """Return how often the program of each case was started, in all its attempts."""
    counts = {}
    for case in campaign.glob("*/case.json"):
        logs = [case.parent / "events.jsonl", *case.parent.glob("attempt-*/events.jsonl")]
        name = json.loads(case.read_text())["name"]
        counts[name] = sum(e["event"] == "start" for log in logs for e in events.read(log))
    return counts


def test_submitted_jobs_are_collected_later(run_harness: RunHarness, tmp_path: Path) -> None:
    campaign = write_suite(tmp_path)
    written = run_harness("run", "fleet.yaml", "--system", "slurm")
    assert written.returncode == 0, written.stderr
    assert "4 not run" in written.stdout
    assert len(list(campaign.glob("jobs/*.sh"))) == 4
    assert not (campaign / "journal.jsonl").exists()

    first = run_harness("run", "fleet.yaml", "--system", "slurm", "--submit")
    assert first.returncode == 0, first.stderr
    assert "4 jobs as one array" in first.stderr
    assert run_harness("status", "fleet.yaml", "--system", "slurm").returncode == 3
    wait_until("all cases have ended", lambda: len(list(campaign.glob("*/exit_code"))) == 4)
    later = run_harness("run", "fleet.yaml", "--system", "slurm", "--submit")
    assert later.returncode == 0, later.stderr
    assert "4 done" in later.stdout
    assert "submitted" not in later.stderr
    assert set(count_starts(campaign).values()) == {1}
    assert run_harness("status", "fleet.yaml", "--system", "slurm").stdout.endswith("4 done\n")


def test_thirty_cases_finish_while_nodes_controller_and_harness_are_killed(
    run_harness: RunHarness, cluster: Cluster, environment: dict[str, str], tmp_path: Path
) -> None:
    """One case fails, another loses its node, the harness is killed and started twice, the controller is restarted."""
    text = FLEET.replace("  seed: [1, 2, 3, 4]", f"  seed: [{', '.join(map(str, range(28)))}]")
    special = text[: text.index("matrix:")].replace("name: fleet", "name: special")
    special = special.replace("  datasets: [mptrj]\n", "").replace("  steps: 1\n", "")
    special += (
        "zips: {kinds: {datasets: [[mptrj], [no-such-set]], steps: [2500, 1]}}\nresources: {walltime_minutes: 5}\n"
    )
    fleet, special_campaign = write_suite(tmp_path, text), write_suite(tmp_path, special, "special")
    argv = ["run", "special.yaml", "--system", "slurm", "--submit"]
    assert run_harness(*argv).returncode == 0
    command = [
        sys.executable,
        "-m",
        "harness",
        "run",
        "fleet.yaml",
        "special.yaml",
        "--system",
        "slurm",
        "--wait",
        "--max-jobs",
        "7",
    ]
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, **options)  # type: ignore[call-overload]

    def read_progress() -> str:
        return "".join(p.read_text() for p in special_campaign.glob("*steps_2500*/events.jsonl"))

    wait_until("the long case has begun", lambda: '"ranks"' in read_progress())
    wait_until("some cases are done", lambda: len(list(fleet.glob("*/exit_code"))) >= 3)
    first.kill()
    first.communicate()
    long_job = next(job for job in cluster.list_jobs() if "steps_2500" in job.name and job.state == "RUNNING")
    cluster.kill_node(long_job.nodes)
    cluster.restart()
    harnesses = [subprocess.Popen(command, **options) for _ in range(2)]  # type: ignore[call-overload]
    cluster.start_requeued(long_job.id)
    output = [process.communicate(timeout=1200) for process in harnesses]
    assert sorted(p.returncode for p in harnesses) == [2, 3], output
    assert sum("another harness process is working in this folder" in stderr for _, stderr in output) == 1
    outcomes = run_harness("status", "fleet.yaml", "special.yaml", "--system", "slurm").stdout.splitlines()
    assert outcomes[-1] == "29 done, 1 failed"
    assert "no-such-set" in next(line for line in outcomes if line.startswith("failed"))
    assert set(count_starts(fleet).values()) == {1}
    assert len(count_starts(fleet)) == 28
    special_starts = count_starts(special_campaign)
    assert sorted(special_starts.values()) == [1, 2], special_starts
    rerun = run_harness(*command[3:])
    assert rerun.returncode == 3
    assert "submitted" not in rerun.stderr
    cluster.restart_node(long_job.nodes)


def test_harness_killed_during_submission_recovers_the_job(
    run_harness: RunHarness, environment: dict[str, str], tmp_path: Path
) -> None:
    """If sbatch accepts a job and the harness dies before it reads the id, no second job is submitted."""
    campaign = write_suite(tmp_path, FLEET.replace("[1, 2, 3, 4]", "[1]"))
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    fake_programs = tmp_path / "bin"
    fake_programs.mkdir()
    (fake_programs / "sbatch").write_text(f'#!/bin/sh\n{real} "$@" > /dev/null\nkill -9 $PPID\n')
    (fake_programs / "sbatch").chmod(0o755)
    argv = ["run", "fleet.yaml", "--system", "slurm", "--wait"]
    assert run_harness(*argv, PATH=f"{fake_programs}:{environment['PATH']}").returncode == -9
    assert '"submitting"' in (campaign / "journal.jsonl").read_text()
    result = run_harness(*argv)
    assert result.returncode == 0, result.stderr
    assert "submitted" not in result.stderr
    assert list(count_starts(campaign).values()) == [1]


def test_job_submitted_by_hand_is_joined(run_harness: RunHarness, cluster: Cluster, tmp_path: Path) -> None:
    campaign = write_suite(tmp_path, FLEET.replace("[1, 2, 3, 4]", "[1]").replace("steps: 1", "steps: 500"))
    argv = ["run", "fleet.yaml", "--system", "slurm"]
    assert run_harness(*argv).returncode == 0
    script = next(campaign.glob("jobs/*.sh"))
    cluster.call("sbatch", str(script))
    cluster.call("sbatch", str(script))
    result = run_harness(*argv, "--wait")
    assert result.returncode == 0, result.stderr
    assert "submitted" not in result.stderr
    wait_until(
        "the second copy has ended", lambda: not [j for j in cluster.list_jobs() if j.state in ("RUNNING", "PENDING")]
    )
    assert list(count_starts(campaign).values()) == [1]
    assert not list(campaign.glob("*/attempt-*"))
    assert "has it" in next(campaign.glob("jobs/*.log")).read_text()


def test_unavailable_controller_interrupts_and_recovers(
    run_harness: RunHarness, cluster: Cluster, tmp_path: Path
) -> None:
    campaign = write_suite(tmp_path, FLEET.replace("[1, 2, 3, 4]", "[1, 2]"))
    argv = ["run", "fleet.yaml", "--system", "slurm"]
    cluster.stop_controller()
    interrupted = run_harness(*argv, "--submit", GFM_HARNESS_PATIENCE_S="2")
    assert interrupted.returncode == 3
    assert interrupted.stderr.splitlines()[-1].startswith(
        "error: squeue: slurm_load_jobs error: Unable to contact slurm"
    )
    assert "run the same command to continue" in interrupted.stderr
    assert run_harness("status", "fleet.yaml", "--system", "slurm", GFM_HARNESS_PATIENCE_S="2").returncode == 3
    cluster.start_controller()
    assert run_harness(*argv, "--wait").returncode == 0
    assert set(count_starts(campaign).values()) == {1}


def test_case_waits_for_an_unavailable_controller(run_harness: RunHarness, cluster: Cluster, tmp_path: Path) -> None:
    """srun ends with exit code 1, like a program, if it does not reach the controller in MessageTimeout seconds."""
    stage = f"touch {tmp_path}/staged; until [ -e {tmp_path}/go ]; do sleep 0.2; done"
    (tmp_path / "here.yaml").write_text(f"name: here\nextends: slurm\nstage_in: ['{stage}']\n")
    write_suite(tmp_path, FLEET.replace("[1, 2, 3, 4]", "[1]"))
    campaign = tmp_path / "results" / "runs" / "fleet-here"
    argv = ["run", "fleet.yaml", "--system", "here.yaml"]
    assert run_harness(*argv, "--submit").returncode == 0
    wait_until("the job has its nodes", (tmp_path / "staged").exists)
    cluster.stop_controller()
    (tmp_path / "go").touch()
    [log] = campaign.glob("jobs/*.log")
    wait_until("srun has given up", lambda: "Slurm's controller did not answer srun" in log.read_text())
    cluster.start_controller()
    result = run_harness(*argv, "--wait")
    assert result.returncode == 0, result.stderr
    assert "submitted" not in result.stderr
    assert not list(campaign.glob("*/attempt-*"))
    assert count_starts(campaign) == {"fleet-seed_1": 1}


def test_rejection_is_reported_and_can_be_corrected(run_harness: RunHarness, tmp_path: Path) -> None:
    write_suite(tmp_path, FLEET.replace("[1, 2, 3, 4]", "[1]"))
    argv = ["run", "fleet.yaml", "--system", "slurm", "--wait"]
    refused = run_harness(*argv, "-S", "partition=nope")
    assert refused.returncode == 2
    assert "invalid partition specified: nope" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert run_harness(*argv, "-S", "partition=debug").returncode == 0


def test_cases_start_after_their_dependencies(run_harness: RunHarness, tmp_path: Path) -> None:
    text = FLEET.replace("matrix:", "depends_on: [{cases: {seed: 2}, required_cases: {seed: 1}}]\nmatrix:").replace(
        "1, 2, 3, 4", "2, 1"
    )
    campaign = write_suite(tmp_path, text)
    result = run_harness("run", "fleet.yaml", "--system", "slurm", "--wait")
    assert result.returncode == 0, result.stderr
    first, second = (
        [e["time_s"] for e in events.read(next(campaign.glob(f"fleet-seed_{k}-*")) / "events.jsonl")] for k in (1, 2)
    )
    assert first[-1] < second[0]


def test_case_with_failed_dependency_is_blocked(run_harness: RunHarness, tmp_path: Path) -> None:
    text = FLEET.replace("[mptrj]", "[no-such-set]")
    text = text.replace("matrix:", "depends_on: [{cases: {seed: 2}, required_cases: {seed: 1}}]\nmatrix:").replace(
        "1, 2, 3, 4", "1, 2"
    )
    campaign = write_suite(tmp_path, text)
    result = run_harness("run", "fleet.yaml", "--system", "slurm", "--wait")
    assert result.returncode == 3
    assert "blocked" in run_harness("status", "fleet.yaml", "--system", "slurm").stdout
    assert count_starts(campaign)["fleet-seed_1"] == 1
    assert count_starts(campaign).get("fleet-seed_2", 0) == 0


def test_spare_nodes_replace_unhealthy_ones(run_harness: RunHarness, tmp_path: Path) -> None:
    """A node that fails the check is not used; the job requested one more than its case needs."""
    (tmp_path / "here.yaml").write_text('name: here\nextends: slurm\nhealth_check: test "$SLURMD_NODENAME" != n1\n')
    write_suite(
        tmp_path,
        FLEET.replace("[1, 2, 3, 4]", "[1]").replace("{walltime_minutes: 5}", "{walltime_minutes: 5, nodes: 1}"),
    )
    argv = ["run", "fleet.yaml", "--system", "here.yaml", "--wait"]
    result = run_harness(*argv, "-S", "spare_nodes=7")
    assert result.returncode == 0, result.stderr
    campaign = tmp_path / "results" / "runs" / "fleet-here"
    assert "7 of 8 nodes passed the check" in next(campaign.glob("jobs/*.log")).read_text()
    assert "n1 " not in next(campaign.glob("jobs/*.nodes")).read_text()


def test_requeued_packed_job_continues_where_it_stopped(
    run_harness: RunHarness, cluster: Cluster, tmp_path: Path
) -> None:
    text = FLEET.replace("resources", "pack: 3\nresources").replace("  steps: 1\n", "")
    text = text.replace("matrix:\n  seed: [1, 2, 3, 4]", "zips: {one: {seed: [1, 2, 3], steps: [1, 2000, 1]}}")
    campaign = write_suite(tmp_path, text)
    assert run_harness("run", "fleet.yaml", "--system", "slurm", "--submit").returncode == 0
    second = next(campaign.glob("*seed_2*"))
    wait_until(
        "the second case runs", lambda: any(e.get("name") == "ranks" for e in events.read(second / "events.jsonl"))
    )
    job = next(job for job in cluster.list_jobs() if job.state == "RUNNING")
    cluster.call("scontrol", "requeue", job.id)
    time.sleep(3)  # Slurm does not restart a job within the same second
    cluster.start_requeued(job.id)
    result = run_harness("run", "fleet.yaml", "--system", "slurm", "--wait")
    assert result.returncode == 0, result.stderr
    counts = count_starts(campaign)
    assert sorted(counts.values()) == [1, 1, 2], counts
    assert "has ended before" in next(campaign.glob("jobs/*.log")).read_text()


def test_cancelled_jobs_can_be_submitted_again(run_harness: RunHarness, cluster: Cluster, tmp_path: Path) -> None:
    campaign = write_suite(tmp_path, FLEET.replace("steps: 1", "steps: 100000"))
    assert run_harness("run", "fleet.yaml", "--system", "slurm", "--submit").returncode == 0
    wait_until("one job runs", lambda: any(job.state == "RUNNING" for job in cluster.list_jobs()))
    cancelled = run_harness("cancel", "fleet.yaml", "--system", "slurm")
    assert "4 jobs cancelled" in cancelled.stdout, cancelled.stderr
    alive = [job for job in cluster.list_jobs() if job.state in ("RUNNING", "PENDING")]
    assert not [job for job in alive if job.name.startswith("fleet")]
    write_suite(tmp_path)
    assert run_harness("run", "fleet.yaml", "--system", "slurm", "--wait").returncode == 0
    assert len(list(campaign.glob("*/exit_code"))) == 4


def test_scaling_runs_on_the_planned_nodes(run_harness: RunHarness, tmp_path: Path) -> None:
    """Two cases run in one allocation, on one node and on two, and record the ranks that ran."""
    result = run_harness("run", "scaling", "--system", "slurm", "--wait", "-n", "weak-nodes_1", "-n", "weak-nodes_2")
    assert result.returncode == 0, result.stderr
    for nodes in (1, 2):
        log = (
            next((tmp_path / "results" / "runs" / "scaling-slurm").glob(f"scaling-weak-nodes_{nodes}-*"))
            / "events.jsonl"
        )
        facts = {e["name"]: e["value"] for e in events.read(log) if e["event"] == "fact"}
        assert [rank["rank"] for rank in facts["ranks"]] == list(range(2 * nodes))
        assert len({rank["node"] for rank in facts["ranks"]}) == nodes
        assert facts["gradient_error"] < 1e-9
        assert facts["parameter_divergence"] == 0
