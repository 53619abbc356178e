"""A real Slurm on this machine: one controller and several emulated nodes on loopback, in one folder.

Nothing outside the folder is read or written: it contains a munge key, the configuration, state and logs. Several
clusters may run at once: they use free ports, and their job ids, from which jobs derive the port of their ranks,
start at a random number. A guard process kills all processes of the cluster when the program that started it ends.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from harness.drills import cluster_guard
from harness.drills.cluster_guard import find_log, kill_matching
from harness.drills.ports import find_free_ports
from harness.drills.slurm_files import ACCOUNTING, CONFIGURATION, DATABASE, SETTINGS

# A user's PATH often lacks the folders of the daemons.
PATH = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin"
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacctmgr")


def find_missing(accounting: bool = False) -> str | None:
    """Return the first program that this machine lacks for a cluster, or "root", the user whom the daemons require."""
    if os.geteuid() != 0:
        return "root"
    programs = PROGRAMS + ACCOUNTING_PROGRAMS * accounting
    return next((program for program in programs if shutil.which(program, path=PATH) is None), None)


@dataclass(frozen=True)
class Job:
    """A job or array task, as squeue or the completion log lists it."""

    id: str
    name: str
    state: str
    nodes: str
    reason: str = ""
    start: str = ""
    end: str = ""


@dataclass
class Cluster:
    """A Slurm cluster of `nodes` nodes that run jobs, and `planned_nodes` that only `sbatch --test-only` can use.

    With `accounting`, the cluster has a database, so that sacct works, and limits of associations and QOS apply.
    """

    folder: Path
    nodes: int = 8
    cpus: int = 4
    gpus: int = 4
    features: tuple[str, ...] = ()
    partition: str = "debug"
    planned_nodes: int = 0
    accounting: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    has_gpu_devices: bool = field(default=True, init=False)
    _guard: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, init=False)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def names(self) -> list[str]:
        """Return the names of the nodes that run jobs."""
        return [f"n{i}" for i in range(1, self.nodes + 1)]

    def make_environment(self) -> dict[str, str]:
        """Return an environment in which Slurm's commands use this cluster."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        database = {"MYSQL_UNIX_PORT": f"{self.folder}/database.socket"} if self.accounting else {}
        return inherited | {"SLURM_CONF": str(self.folder / "slurm.conf")} | database

    def start(self) -> None:
        """Start all daemons and wait until all nodes are idle."""
        self._write_files()
        self._guard = subprocess.Popen(
            [sys.executable, cluster_guard.__file__, str(self.folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        files = [f"--{name}-file={self.folder}/munge.{name}" for name in ("key", "pid", "seed")]
        self._spawn("munged", "--foreground", "--force", *files, f"--socket={self.folder}/munge.socket")
        self._wait_for("munged", (self.folder / "munge.socket").exists)
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for name in self.names:
            self._spawn_node(name)
        self._wait_for("idle nodes", self._has_idle_nodes)

    def _has_idle_nodes(self) -> bool:
        states = self.get_node_states()
        return all(states.get(name) == "idle" for name in self.names)

    def _start_accounting(self) -> None:
        options = (f"--defaults-file={self.folder}/database.cnf", "--auth-root-authentication-method=normal")
        self.call("mariadb-install-db", *options, "--skip-test-db")
        self._spawn("mariadbd", options[0])
        self._wait_for("mariadbd", (self.folder / "database.socket").exists)
        self._spawn("slurmdbd", "-D")
        self._wait_for("slurmdbd", lambda: self.run("sacctmgr", "--noheader", "show", "cluster").returncode == 0)
        self.call("sacctmgr", "--immediate", "add", "cluster", "local")

    def stop(self) -> None:
        """End every process of the cluster, including those of its jobs."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        for process in self._daemons.values():
            process.wait(30)
        self._guard.wait(30)
        self._guard = None
        self._daemons.clear()

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's folder."""
        return subprocess.run(
            command,
            env=self.make_environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def call(self, *command: str) -> str:
        """Run a command and return its output; raise RuntimeError if it fails."""
        result = self.run(*command)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)}: exit code {result.returncode}: {result.stderr.strip()}")
        return result.stdout

    def get_node_states(self) -> dict[str, str]:
        """Return the state of each node as sinfo prints it."""
        try:
            lines = self.call("sinfo", "-h", "-N", "-o", "%N %t").splitlines()
        except RuntimeError:
            return {}
        return {line.split()[0]: line.split()[1] for line in lines}

    def kill_node(self, name: str) -> None:
        """Kill all processes of a node, then tell the controller (SlurmdTimeout would take minutes)."""
        log = f"{self.folder}/log/slurmd-{name}.log"
        kill_matching(lambda process: find_log(process) == log)
        self._daemons.pop(name).wait(10)
        self.call("scontrol", "update", f"nodename={name}", "state=down", "reason=died")

    def restart_node(self, name: str) -> None:
        """Start a node again and wait until it accepts jobs."""
        self._spawn_node(name)
        self._wait_for(f"{name} to be back", lambda: self.get_node_states().get(name) in ("idle", "mix", "alloc"))

    def start_requeued(self, job: str) -> None:
        """Start a requeued job at once: Slurm makes it wait for two minutes, and no setting shortens that."""
        self._wait_for(
            f"{job} to be pending", lambda: any(j.id == job and j.state == "PENDING" for j in self.list_jobs())
        )
        self.call("scontrol", "update", f"jobid={job}", "starttime=now")

    def stop_controller(self) -> None:
        """Stop the controller, which saves its state: Slurm's commands fail until it is started again."""
        process = self._daemons.pop("slurmctld")
        process.terminate()
        process.wait(30)

    def start_controller(self) -> None:
        """Start the controller with its saved state, and wait until all living nodes have reported."""
        self._spawn("slurmctld", "-D", "-f", str(self.folder / "slurm.conf"))
        alive = self._daemons.keys() & set(self.names)
        self._wait_for(
            "slurmctld", lambda: bool(states := self.get_node_states()) and all(states[n] != "unk" for n in alive)
        )

    def restart(self) -> None:
        """Stop and start the controller."""
        self.stop_controller()
        self.start_controller()

    def list_jobs(self) -> list[Job]:
        """Return the jobs of squeue: pending, running and completing ones, and those that have just ended."""
        lines = self.call("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%N|%r|%S|%e|%j").splitlines()
        rows = (line.split("|", 6) for line in lines)
        return [Job(i, name, state, nodes, reason, start, end) for i, state, nodes, reason, start, end, name in rows]

    def list_finished_runs(self) -> list[Job]:
        """Return the completion log: one entry for each run of a job, so several for a requeued one."""
        path = self.folder / "log" / "jobcomp.txt"
        lines = path.read_text().splitlines() if path.exists() else []
        jobs = []
        for row in (dict(re.findall(r"(\w+)=(.*?)(?= \w+=|\s*$)", line)) for line in lines):
            job = f"{row['ArrayJobId']}_{row['ArrayTaskId']}" if "ArrayJobId" in row else row["JobId"]
            start, end = row["StartTime"], row["EndTime"]
            jobs.append(Job(job, row["Name"], row["JobState"], row["NodeList"], start=start, end=end))
        return jobs

    def _write_files(self) -> None:
        self.folder = self.folder.resolve()
        for name in ("state", "spool", "run", "log", *(f"spool/{node}" for node in self.names)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        (self.folder / "gres.conf").write_text(self._make_fake_gpus())
        first_port = find_free_ports(self.nodes + 2)
        text = self._render_configuration(first_port)
        if self.accounting:
            port = first_port + self.nodes + 1
            text += f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStoragePort={port}\n"
            text += "AccountingStorageHost=127.0.0.1\nAccountingStorageEnforce=limits,qos\n"
            text += f"AccountingStoragePass={self.folder}/munge.socket\n"
            (self.folder / "database.cnf").write_text(DATABASE.format(folder=self.folder))
            accounting = self.folder / "slurmdbd.conf"
            accounting.touch(mode=0o600)
            accounting.write_text(ACCOUNTING.format(folder=self.folder, port=port))
        (self.folder / "slurm.conf").write_text(text)

    def _make_fake_gpus(self) -> str:
        """Return gres.conf for character devices that stand in for GPUs, or only for a count if they cannot be created.

        Only with devices do tasks see CUDA_VISIBLE_DEVICES.
        """
        gpus = f"Count={self.gpus}"
        try:
            for i in range(self.gpus):
                os.mknod(self.folder / f"gpu{i}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
            gpus = f"File={self.folder}/gpu[0-{self.gpus - 1}]"
        except PermissionError:
            self.has_gpu_devices = False
        return f"AutoDetect=off\nName=gpu {gpus}\n" if self.gpus else ""

    def _render_configuration(self, port: int) -> str:
        """Return slurm.conf, with this port for the controller, and the next ones for the nodes."""
        hardware = f"CPUs={self.cpus} RealMemory=2000" + f" Gres=gpu:{self.gpus}" * bool(self.gpus)
        hardware += f" Features={','.join(self.features)}" * bool(self.features)
        text = CONFIGURATION.format(
            host=socket.gethostname(), port=port, folder=self.folder, first_job=random.randrange(1001, 9000),
            nodes=self.nodes, first=port + 1, last=port + self.nodes, hardware=hardware,
        )  # fmt: skip
        members = f"n[1-{self.nodes}]"
        if self.planned_nodes:
            # powered-down cloud nodes count as free without a slurmd; the weight keeps real jobs away from them
            text += f"NodeName=planned[1-{self.planned_nodes}] {hardware} Weight=1000 State=CLOUD\n"
            text += "SuspendProgram=/bin/true\nResumeProgram=/bin/true\nSuspendTime=INFINITE\n"
            members += f",planned[1-{self.planned_nodes}]"
        text += f"PartitionName={self.partition} Nodes={members} Default=YES MaxTime=INFINITE State=UP\n"
        return text + "".join(f"{key}={value}\n" for key, value in (SETTINGS | dict(self.settings)).items())

    def _spawn_node(self, name: str) -> None:
        self._spawn("slurmd", "-D", "-f", str(self.folder / "slurm.conf"), "-N", name, name=name)

    def _spawn(self, program: str, *command: str, name: str = "") -> None:
        path = shutil.which(program, path=PATH) or program
        with (self.folder / "log" / f"{name or program}.out").open("ab") as out:
            self._daemons[name or program] = subprocess.Popen(
                [path, *command], env=self.make_environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True, cwd=self.folder,
            )  # fmt: skip

    def _wait_for(self, goal: str, condition: Callable[[], bool], timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            dead = [name for name, process in self._daemons.items() if process.poll() is not None]
            if dead or time.monotonic() > deadline:
                reason = f"{', '.join(dead)} ended" if dead else f"timed out after {timeout_s:.0f} s"
                raise RuntimeError(f"waiting for {goal}: {reason}\n{self._read_logs()}")
            time.sleep(0.05)

    def _read_logs(self, lines: int = 15) -> str:
        texts = {file.name: file.read_text(errors="replace") for file in sorted((self.folder / "log").iterdir())}
        return "\n".join(f"--- {name}\n" + "\n".join(text.splitlines()[-lines:]) for name, text in texts.items())
