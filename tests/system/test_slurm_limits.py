"""A real Slurm with accounting: limits of associations and QOS, cancelled arrays, held jobs, the user's variables."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.drills.cluster import Cluster
from harness.execution.journal import Journal
from tests.conftest import ROOT, require_slurm
from tests.support.cluster import wait_until
from tests.system.test_slurm import FLEET, count_starts, write_suite

pytestmark = pytest.mark.slow
RunHarness = Callable[..., "subprocess.CompletedProcess[str]"]
TEN_CASES = FLEET.replace("[1, 2, 3, 4]", "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]")
ONE_CASE = FLEET.replace("[1, 2, 3, 4]", "[1]")
ARGV = ("run", "fleet.yaml", "--system", "slurm")
NOBODY = 65534
UNLIMITED = "maxsubmitjobs=-1", "grpsubmitjobs=-1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a cluster of two nodes in a folder that other users may enter."""
    require_slurm(accounting=True)
    folder = Path(tempfile.mkdtemp(prefix="slurm-limits-"))
    folder.chmod(0o755)
    try:
        with Cluster(folder, nodes=2, gpus=0, accounting=True) as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def closed_partition(cluster: Cluster) -> Iterator[None]:
    """Let Slurm accept jobs and start none."""
    cluster.call("scontrol", "update", "partition=debug", "state=down")
    yield
    cluster.call("scancel", "--user=root")
    cluster.call("scontrol", "update", "partition=debug", "state=up", "hidden=no")
    cluster.call("sacctmgr", "--immediate", "modify", "user", "root", "set", UNLIMITED[0])
    cluster.call("sacctmgr", "--immediate", "modify", "account", "root", "set", UNLIMITED[1])
    cluster.call("sacctmgr", "--immediate", "modify", "qos", "normal", "set", *UNLIMITED[1:], "maxsubmitjobsperuser=-1")


@pytest.fixture
def run_harness(cluster: Cluster, tmp_path: Path) -> RunHarness:
    environment = cluster.make_environment() | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)}

    def run(*argv: str, prefix: tuple[str, ...] = (), **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*prefix, sys.executable, "-m", "harness", *argv],
            cwd=tmp_path, env=environment | variables, capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip

    return run


def list_fleet_jobs(cluster: Cluster) -> list[str]:
    """Return the jobs that have not ended, by id."""
    return [j.id for j in cluster.list_jobs() if j.name.startswith("fleet") and j.state in ("PENDING", "RUNNING")]


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        (("user", "root", "set", "maxsubmitjobs=3"), "AssocMaxSubmitJobLimit"),
        (("account", "root", "set", "grpsubmitjobs=3"), "AssocGrpSubmitJobsLimit"),
        (("qos", "normal", "set", "grpsubmitjobs=3"), "QOSGrpSubmitJobsLimit"),
        (("qos", "normal", "set", "maxsubmitjobsperuser=3"), "QOSMaxSubmitJobPerUserLimit"),
    ],
)
def test_jobs_over_a_limit_are_submitted_later(
    run_harness: RunHarness,
    cluster: Cluster,
    closed_partition: None,
    tmp_path: Path,
    change: tuple[str, ...],
    limit: str,
) -> None:
    campaign = write_suite(tmp_path, TEN_CASES)
    cluster.call("sacctmgr", "--immediate", "modify", *change)
    first = run_harness(*ARGV, "--submit")
    assert first.returncode == 0, first.stderr
    assert "7 jobs (7 cases) held back" in first.stderr
    assert limit in first.stderr
    assert len(list_fleet_jobs(cluster)) == 3
    second = run_harness(*ARGV, "--submit")
    assert second.returncode == 3, second.stderr
    assert len(list_fleet_jobs(cluster)) == 3
    cluster.call("sacctmgr", "--immediate", "modify", *change[:3], change[3].replace("=3", "=-1"))
    rest = run_harness(*ARGV, "--submit")
    assert rest.returncode == 0, rest.stderr
    assert len(list_fleet_jobs(cluster)) == 10
    assert len(Journal(campaign).active_jobs) == 10


def test_array_of_any_size_is_submitted(
    run_harness: RunHarness, cluster: Cluster, closed_partition: None, tmp_path: Path
) -> None:
    """With a MaxArraySize below its default of 1001, `--array=1-10` is rejected as an invalid specification."""
    write_suite(tmp_path, TEN_CASES)
    conf = cluster.folder / "slurm.conf"
    text = conf.read_text()
    conf.write_text(f"{text}MaxArraySize=5\n")
    cluster.restart()
    cluster.call("scontrol", "update", "partition=debug", "state=down")
    result = run_harness(*ARGV, "--submit")
    conf.write_text(text)
    cluster.restart()
    assert result.returncode == 0, result.stderr
    assert len(list_fleet_jobs(cluster)) == 10


def test_cancelled_waiting_array_is_not_resubmitted(
    run_harness: RunHarness, cluster: Cluster, closed_partition: None, tmp_path: Path
) -> None:
    write_suite(tmp_path)
    assert run_harness(*ARGV, "--submit").returncode == 0
    [array] = {job.partition("_")[0] for job in list_fleet_jobs(cluster)}
    cluster.call("scancel", array)
    wait_until(
        "sacct lists the cancelled array",
        lambda: "CANCELLED" in cluster.call("sacct", "-n", "-X", "-P", "-o", "State", "-j", array),
    )
    rows = cluster.call("sacct", "-n", "-X", "-P", "-o", "JobID,State", "-j", array)
    assert f"{array}_1|" not in rows, "this test needs a row for the whole array"
    result = run_harness(*ARGV, "--submit")
    assert result.returncode == 3, result.stderr
    assert list_fleet_jobs(cluster) == []
    status = run_harness("status", *ARGV[1:]).stdout
    assert status.endswith("4 cancelled\n"), status
    assert "CANCELLED by 0" in status


def test_cancelled_running_case_is_shown_as_cancelled(
    run_harness: RunHarness, cluster: Cluster, tmp_path: Path
) -> None:
    campaign = write_suite(tmp_path, ONE_CASE.replace("steps: 1", "steps: 100000"))
    assert run_harness(*ARGV, "--submit").returncode == 0
    wait_until("the case runs", lambda: bool(list(campaign.glob("fleet-*/events.jsonl"))))
    cluster.call("scancel", *list_fleet_jobs(cluster))
    wait_until("the job has left the queue", lambda: list_fleet_jobs(cluster) == [])
    result = run_harness(*ARGV, "--submit")
    assert result.returncode == 3, result.stderr
    assert list_fleet_jobs(cluster) == []
    assert run_harness("status", *ARGV[1:]).stdout.endswith("1 cancelled\n")
    assert sum(count_starts(campaign).values()) <= 1


def test_held_job_ends_the_wait_with_its_reason(
    run_harness: RunHarness, cluster: Cluster, closed_partition: None, tmp_path: Path
) -> None:
    write_suite(tmp_path, ONE_CASE)
    assert run_harness(*ARGV, "--submit").returncode == 0
    cluster.call("scontrol", "uhold", *list_fleet_jobs(cluster))
    result = run_harness(*ARGV, "--wait")
    assert result.returncode == 3
    assert "JobHeldUser; it will not start by itself" in result.stderr
    assert "JobHeldUser (it will not start by itself)" in run_harness("status", *ARGV[1:]).stdout


def test_user_variables_hide_no_job(
    run_harness: RunHarness, cluster: Cluster, closed_partition: None, tmp_path: Path
) -> None:
    """The user's variables add no options to jobs either."""
    write_suite(tmp_path, ONE_CASE)
    user_variables = {
        "SQUEUE_STATES": "COMPLETED", "SQUEUE_PARTITION": "other", "SQUEUE_FORMAT": "%j", "SQUEUE_USERS": "nobody",
        "SBATCH_HOLD": "1", "SBATCH_ACCOUNT": "none", "SBATCH_PARTITION": "other", "SACCT_FORMAT": "JobName",
    }  # fmt: skip
    for _ in range(2):
        result = run_harness(*ARGV, "--submit", **user_variables)
        assert result.returncode == 0, result.stderr
        assert len(list_fleet_jobs(cluster)) == 1
    assert "1 waiting" in run_harness("status", *ARGV[1:], **user_variables).stdout


def test_job_submitted_inside_salloc_ignores_the_allocation(
    run_harness: RunHarness, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "here.yaml").write_text(f"name: here\nextends: slurm\nprepare: ['env > {tmp_path}/variables']\n")
    write_suite(tmp_path, ONE_CASE)
    argv = ("run", "fleet.yaml", "--system", "here.yaml", "--submit")
    result = run_harness(*argv, prefix=("salloc", "--quiet", "--nodes=1", "--ntasks=3", "--mem=700"))
    assert result.returncode == 0, result.stderr
    wait_until("the job has started", (tmp_path / "variables").exists)
    wait_until("the job has written its environment", lambda: "SLURM_JOB_ID" in (tmp_path / "variables").read_text())
    variables = (tmp_path / "variables").read_text()
    assert "SLURM_MEM_PER_NODE=700" not in variables
    assert "SLURM_NTASKS=3" not in variables
    wait_until("the job has ended", lambda: list_fleet_jobs(cluster) == [])


def test_jobs_in_a_hidden_partition_are_listed(cluster: Cluster, closed_partition: None) -> None:
    """Root sees all partitions, so another user submits and queries."""
    cluster.run("sacctmgr", "--immediate", "add", "user", "nobody", "account=root")
    cluster.call("scontrol", "update", "partition=debug", "hidden=yes")
    # imported before the user changes, since the new user may not read this Python's folder
    script = "import os, sys; from harness.execution.schedulers.slurm import SlurmScheduler as Slurm; "
    script += "os.setgroups([]); os.setgid(65534); "
    script += "os.setuid(65534); print(len(Slurm().list_jobs([sys.argv[1]], [sys.argv[2]])))"

    def as_nobody(*argv: str) -> str:
        user = {} if argv[0] == sys.executable else {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        result = subprocess.run(
            argv, env=cluster.make_environment() | {"PYTHONPATH": str(ROOT), "HOME": "/tmp"}, **user,  # type: ignore[call-overload]
            cwd="/tmp", capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    job = as_nobody("sbatch", "--parsable", "--job-name=unseen", "--output=/dev/null", "--wrap=true")
    assert as_nobody("squeue", "--noheader", "--name=unseen") == "", "this test needs a hidden partition"
    assert as_nobody(sys.executable, "-c", script, "unseen", "none") == "1"
    assert as_nobody(sys.executable, "-c", script, "none", job) == "1"
    cluster.call("scancel", job)
