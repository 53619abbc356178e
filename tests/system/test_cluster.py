"""The emulated Slurm cluster behaves like a real one, so that tests on it are meaningful."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from harness.drills.cluster import Cluster, Job
from tests.conftest import require_slurm
from tests.support.cluster import wait_until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Start a cluster of eight nodes."""
    require_slurm()
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


def submit(cluster: Cluster, body: str, *options: str) -> str:
    """Submit a script and return its id."""
    result = subprocess.run(
        ["sbatch", "--parsable", f"--chdir={cluster.folder}", *options],
        input=f"#!/bin/bash\n{body}\n", env=cluster.make_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return result.stdout.strip()


def list_runs(cluster: Cluster, job: str) -> list[Job]:
    return [entry for entry in cluster.list_finished_runs() if entry.id == job]


def list_states(cluster: Cluster, job: str) -> list[str]:
    return [entry.state for entry in list_runs(cluster, job)]


def wait_for_states(cluster: Cluster, job: str, *expected: str) -> None:
    wait_until(f"{job} is {', '.join(expected)}", lambda: list_states(cluster, job) == list(expected), 60)


def wait_for_start(cluster: Cluster, job: str) -> None:
    wait_until(f"{job} runs", lambda: is_running(cluster, job), 60)


def is_running(cluster: Cluster, job: str) -> bool:
    return any(entry.id == job and entry.state == "RUNNING" for entry in cluster.list_jobs())


def read_output(cluster: Cluster, job: str) -> list[str]:
    return (cluster.folder / f"slurm-{job}.out").read_text().splitlines()


def test_completion_log_has_exit_codes(cluster: Cluster) -> None:
    good, bad = submit(cluster, "true"), submit(cluster, "exit 3")
    wait_for_states(cluster, good, "COMPLETED")
    wait_for_states(cluster, bad, "FAILED")
    assert " ExitCode=3:0 " in cluster.call("scontrol", "show", "job", "-o", bad)


def test_step_spans_nodes(cluster: Cluster) -> None:
    job = submit(cluster, "srun bash -c 'echo $SLURMD_NODENAME'", "-N2", "--ntasks-per-node=1")
    wait_for_states(cluster, job, "COMPLETED")
    assert len(set(read_output(cluster, job))) == 2


def test_tasks_see_their_gpus(cluster: Cluster) -> None:
    if not cluster.has_gpu_devices:
        pytest.skip("this machine does not permit device files")
    result = cluster.call("srun", "--gpus-per-node=2", "bash", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert len(result.strip().split(",")) == 2


def test_job_of_a_dead_node_restarts_under_its_id(cluster: Cluster) -> None:
    body = "echo restarts=$SLURM_RESTART_COUNT; [[ $SLURM_RESTART_COUNT ]] || sleep 60"
    job = submit(cluster, body, "-N2", "--requeue", "--open-mode=append")
    wait_for_start(cluster, job)
    wait_until("the job writes", (cluster.folder / f"slurm-{job}.out").exists, 60)
    node = next(entry for entry in cluster.list_jobs() if entry.id == job).nodes[2:3]
    cluster.kill_node(f"n{node}")
    assert cluster.get_node_states()[f"n{node}"].startswith("down")
    cluster.start_requeued(job)
    wait_for_states(cluster, job, "NODE_FAIL", "COMPLETED")
    assert read_output(cluster, job)[-1] == "restarts=1"
    cluster.restart_node(f"n{node}")
    assert cluster.get_node_states()[f"n{node}"] == "idle"


def test_job_without_requeue_ends_with_its_node(cluster: Cluster) -> None:
    job = submit(cluster, "sleep 60", "--no-requeue", "-w", "n5")
    wait_for_start(cluster, job)
    cluster.kill_node("n5")
    wait_for_states(cluster, job, "NODE_FAIL")
    cluster.restart_node("n5")


def test_controller_restart_keeps_the_queue(cluster: Cluster) -> None:
    held_job, running_job = submit(cluster, "true", "--hold"), submit(cluster, "sleep 60")
    wait_for_start(cluster, running_job)
    cluster.restart()
    assert {held_job: "PENDING", running_job: "RUNNING"}.items() <= {
        entry.id: entry.state for entry in cluster.list_jobs()
    }.items()
    cluster.call("scancel", held_job, running_job)
    wait_for_states(cluster, running_job, "CANCELLED")


def test_commands_fail_without_controller(cluster: Cluster) -> None:
    job = submit(cluster, "sleep 5")
    wait_for_start(cluster, job)
    cluster.stop_controller()
    result = cluster.run("squeue")
    assert result.returncode == 1
    assert "Unable to contact slurm controller" in result.stderr
    cluster.start_controller()
    wait_for_states(cluster, job, "COMPLETED")


def test_arrays_and_dependencies_run_in_order(cluster: Cluster) -> None:
    array = submit(cluster, "exit $SLURM_ARRAY_TASK_ID", "--array=0-3")
    dependent = submit(cluster, "true", f"--dependency=afterany:{array}")
    wait_for_states(cluster, dependent, "COMPLETED")
    ends = {task: list_states(cluster, f"{array}_{task}") for task in range(4)}
    assert ends == {0: ["COMPLETED"], 1: ["FAILED"], 2: ["FAILED"], 3: ["FAILED"]}
    assert list_runs(cluster, dependent)[0].start >= max(
        list_runs(cluster, f"{array}_{task}")[0].end for task in range(4)
    )


@pytest.mark.usefixtures("cluster")
def test_planned_nodes_are_available_to_sbatch_test_only(tmp_path: Path) -> None:
    large_cluster = Cluster(
        tmp_path, nodes=1, cpus=128, gpus=8, features=("nvme", "gpu"), partition="batch", planned_nodes=1100,
        settings={"EnforcePartLimits": "ALL"},
    )  # fmt: skip
    (tmp_path / "job.sh").write_text("#!/bin/bash\n")
    frontier = "-A x -p batch -C nvme -N 1024 -t 6:00:00"
    perlmutter = "-A x -C gpu -q regular -N 1024 --gpus-per-node=4 --ntasks-per-node=4 -c 32"
    with large_cluster:
        for options in (frontier, perlmutter):
            assert large_cluster.run("sbatch", "--test-only", *options.split(), "job.sh").returncode == 0
        assert large_cluster.run("sbatch", "--test-only", "-N", "1200", "job.sh").returncode == 1
        assert large_cluster.run("sbatch", "--test-only", "-C", "knl", "job.sh").returncode == 1


@pytest.mark.usefixtures("cluster")
def test_cluster_ends_when_the_program_that_started_it_is_killed(tmp_path: Path) -> None:
    program = f"""
import sys, time, pathlib
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from harness.drills.cluster import Cluster
with Cluster(pathlib.Path({str(tmp_path)!r}), nodes=2) as cluster:
    (cluster.folder / "job.sh").write_text("#!/bin/bash\\nsrun sleep 987\\n")
    cluster.call("sbatch", "-N2", "job.sh")
    while "sleep 987" not in cluster.call("ps", "-eo", "args"):
        time.sleep(0.1)
    print("ready", flush=True)
    time.sleep(60)
"""
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    wait_until("all processes of the cluster have ended", lambda: not list_survivors(tmp_path), 20)


def list_survivors(folder: Path) -> list[psutil.Process]:
    """Return the processes whose command line contains the folder or the job's `sleep 987`."""
    marks = str(folder), "sleep 987"
    processes = psutil.process_iter(["cmdline", "status"])
    return [p for p in processes if any(mark in " ".join(p.info["cmdline"] or []) for mark in marks)]
