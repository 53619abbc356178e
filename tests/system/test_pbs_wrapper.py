"""Jobs for PBS are run through Slurm's wrappers qsub, qstat and qdel (Debian's package slurm-wlm-torque).

The tests cover the job script of a system that extends pbs, its #PBS lines as a scheduler reads them, PBS_JOBID and
PBS_O_WORKDIR, a copy of the script in a spool folder, the text output of qstat, and a job on two nodes. They do not
cover a PBS server, the mpiexec of PALS, or modules. The wrappers have no JSON, no history and no `qdel -W force`, and
they ignore -o in the script; the nodes are emulated, and only Slurm knows their names.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.drills.cluster import Cluster
from harness.execution.schedulers.pbs import PbsScheduler
from harness.protocol import events
from tests.conftest import ROOT, require_program, require_slurm
from tests.support.cluster import wait_until
from tests.system.test_slurm import FLEET

pytestmark = pytest.mark.slow
RunHarness = Callable[..., "subprocess.CompletedProcess[str]"]

SYSTEM = f"""\
name: torque
extends: pbs
node: {{ranks_per_node: 1}}
prepare:
  - uname() {{ echo "$SLURMD_NODENAME"; }}
  - export -f uname
  - PBS_NODEFILE=$(generate_pbs_nodefile)
python: {sys.executable}
health_check: test -w /tmp
health_check_launcher: srun --ntasks="$requested_nodes" --ntasks-per-node=1
launch:
  - env MASTER_ADDR=127.0.0.1
  - srun --nodes={{{{ case.nodes }}}} --ntasks={{{{ case.ranks }}}} --nodelist="$(first {{{{ case.nodes }}}})"
"""
ARGV = ("run", "fleet.yaml", "--system", "torque.yaml", "-S", "account=abc", "-S", "queue=debug")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    for program in ("qsub", "qstat", "qdel", "generate_pbs_nodefile"):
        require_program(program)
    require_slurm()
    folder = tmp_path_factory.mktemp("pbs")
    (folder / "plugstack.conf").write_text("required spank_pbs.so\n")
    with Cluster(folder, nodes=2, gpus=0) as running:
        yield running


@pytest.fixture
def run_harness(cluster: Cluster, tmp_path: Path) -> RunHarness:
    """Return a function that runs the harness in a folder with a system and a suite of two cases."""
    (tmp_path / "torque.yaml").write_text(SYSTEM)
    text = FLEET.replace("[1, 2, 3, 4]", "[1, 2]").replace(
        "{walltime_minutes: 5}", "{walltime_minutes: 5, nodes: '{{ 3 - seed }}'}"
    )
    (tmp_path / "fleet.yaml").write_text(text)
    environment = cluster.make_environment() | {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(tmp_path)}

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "harness", *argv],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return run


def test_harness_joins_a_script_submitted_with_qsub(run_harness: RunHarness, cluster: Cluster, tmp_path: Path) -> None:
    assert run_harness(*ARGV).returncode == 0
    campaign = tmp_path / "results" / "runs" / "fleet-torque"
    [script] = campaign.glob("jobs/*seed_1*.sh")
    job = cluster.call("qsub", str(script)).strip()
    description = cluster.call("scontrol", "show", "job", job)
    for request in (f"JobName={script.stem}\n", "NumNodes=2", "TimeLimit=00:07:00", "Account=abc", "Requeue=1"):
        assert request in description
    assert "\n#PBS -l select=2:ncpus=1:mpiprocs=1\n#PBS -l place=scatter:excl\n" in script.read_text()
    result = run_harness(*ARGV, "--wait")
    assert result.returncode == 0, result.stderr
    assert run_harness("status", *ARGV[1:]).stdout.endswith("2 done\n")
    assert result.stderr.count("submitted") == 1
    [by_hand] = campaign.glob("fleet-seed_1-*")
    assert (by_hand / "job.sh").read_text() == script.read_text()
    assert (by_hand / "claim").read_text() == f"{job}\n"
    assert (campaign / "jobs" / f"{script.stem}.{job}.nodes").read_text() == "n1\nn2\n"
    log = events.read(by_hand / "events.jsonl")
    [ranks] = [e["value"] for e in log if e["event"] == "fact" and e["name"] == "ranks"]
    assert [rank["rank"] for rank in ranks] == [0, 1]


def test_pbs_clients_list_and_delete_a_job(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This qstat has no JSON and fails without jobs; this qdel prints nothing for a job that has ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_CONF", cluster.make_environment()["SLURM_CONF"])
    script = tmp_path / "long.sh"
    script.write_text("#!/bin/bash\n#PBS -N long\n#PBS -l select=1\nsleep 60\n")
    scheduler = PbsScheduler()
    job = scheduler.submit(script, "long")
    after = scheduler.submit(script, "long", [job])
    wait_until("the first job runs", lambda: [q.state for q in scheduler.list_jobs((), [job])] == ["running"])
    assert {queued.id: queued.state for queued in scheduler.list_jobs(["long"])} == {job: "running", after: "waiting"}
    assert scheduler.list_jobs(["other"]) == []
    scheduler.cancel([after, job])
    wait_until("both jobs have left the queue", lambda: scheduler.list_jobs(["long"]) == [])
    scheduler.cancel([after, job])
    assert scheduler.query_last_states({job: "long"}) == {}
