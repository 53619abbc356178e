"""Run asv (airspeed velocity) over commits: one round at a time, each in its own folder.

A round runs every benchmark once on every commit, in a random order, so that drift of a busy machine affects all
commits alike. If a round is killed, its results are kept, and the next call resumes the round.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
import psutil

from harness.host.files import write_json, write_text
from harness.host.provenance import read_cpu_name
from harness.protocol.errors import UsageError
from harness.tracking.git_commits import Commit

CONFIG_FILES = ("asv.conf.json", "tests/benchmarks/over_commits/asv.conf.json")
DEFAULT_THRESHOLD = 0.02
# The module of the plugin that asv loads; the dot makes asv import it from outside its package.
PLUGIN = ".harness.tracking.asv_plugin"
# The plugin's type of environment.
SOURCES_ENVIRONMENT = "sources"
MACHINE_FILE = "machines.json"
LOG = "asv.log"
BUILD_CACHE_SIZE = 50
OK, SOME_FAILED = 0, 2  # exit codes of asv


@dataclass(frozen=True)
class Project:
    """A git clone and its benchmarks.

    Attributes:
        repo: The clone.
        config: The content of asv.conf.json.
        benchmarks: The absolute path of the benchmark folder.
    """

    repo: Path
    config: dict[str, Any]
    benchmarks: Path

    def get_threshold(self, name: str) -> float:
        """Return the smallest relative change of a benchmark that counts: the largest of the matching thresholds."""
        thresholds = self.config.get("regressions_thresholds", {})
        return max((float(v) for regex, v in thresholds.items() if re.match(regex, name)), default=DEFAULT_THRESHOLD)


@dataclass(frozen=True)
class AsvSession:
    """The commits, benchmarks, machine and kind of environment of comparable measurements.

    Attributes:
        machine: Description of the machine, with asv's keys.
        in_place: Whether to run the sources of each commit with the current Python without installing them.
        root: Folder of all sessions.
    """

    project: Project
    commits: Sequence[Commit]
    machine: dict[str, str]
    in_place: bool
    root: Path

    @cached_property
    def id(self) -> str:
        """The identifier of the session; equal sessions have equal identifiers, and share their rounds."""
        files = {
            str(path.relative_to(self.project.benchmarks)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.project.benchmarks.rglob("*.py")
        }
        packages = list_packages() if self.in_place else []
        commits = [commit.hash for commit in self.commits]
        identity = [files, commits, self.project.config, self.machine, self.in_place, sys.version, packages]
        return hashlib.sha256(orjson.dumps(identity, option=orjson.OPT_SORT_KEYS)).hexdigest()[:12]

    @property
    def machine_name(self) -> str:
        """Host and processor, which must be equal for times to be comparable."""
        return f"{self.machine['machine']} ({self.machine['cpu']})"

    @property
    def folder(self) -> Path:
        """The folder of the session's rounds."""
        return self.root / self.id

    def get_round_folder(self, number: int) -> Path:
        """Return the folder of one round."""
        return self.folder / f"round-{number:02}"


def list_packages() -> list[str]:
    """Return the names and versions of the packages of this Python."""
    return sorted({f"{d.metadata['Name']} {d.version}" for d in importlib.metadata.distributions()})


def load_project(repo: Path, config: Path | None) -> Project:
    """Load the benchmarks of a clone, from `config` or from the first of CONFIG_FILES that exists.

    Raises:
        UsageError: There is no configuration, or it is not valid.
    """
    if config is not None and not config.is_file():
        raise UsageError(f"{config}: no such file")
    candidates = [config] if config is not None else [repo / name for name in CONFIG_FILES]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        raise UsageError(f"{repo}: neither {' nor '.join(CONFIG_FILES)} describes benchmarks; pass --config FILE")
    content = _load_config(path)
    benchmarks = (path.parent / str(content.get("benchmark_dir", "benchmarks"))).resolve()
    if not benchmarks.is_dir():
        raise UsageError(f"{path}: benchmark_dir: no folder {benchmarks}")
    key = "regressions_thresholds"
    thresholds = content.get(key, {})
    if not isinstance(thresholds, dict):
        raise UsageError(f"{path}: {key}: expected a table of patterns with numbers above 0")
    for pattern, value in thresholds.items():
        if not _is_threshold(pattern, value):
            raise UsageError(f"{path}: {key}: {pattern!r}: {value!r}, expected a pattern with a number above 0")
    return Project(repo, content, benchmarks)


def check_patterns(patterns: Sequence[str]) -> tuple[str, ...]:
    """Return the patterns as a tuple; raise UsageError if one is not a valid regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"--bench {pattern}: not a regular expression: {error}") from None
    return tuple(patterns)


def run_round(session: AsvSession, number: int, patterns: Sequence[str]) -> bool:
    """Run one round, counted from 1, unless it is complete; return whether a benchmark failed.

    Raises:
        UsageError: asv stopped; the message contains the last line of its output.
    """
    folder = session.get_round_folder(number)
    marker, log = folder / "done.json", session.folder / LOG
    # a complete round of all benchmarks contains every selection of them
    if read_json(marker).get("bench") in ([], list(patterns)):
        return False
    _remove_truncated(folder / "results")
    write_configuration(session, number)
    command = [sys.executable, "-m", "asv", "run", "--config", str(folder / "asv.conf.json"), "HASHFILE:commits.txt"]
    command += ["--machine", session.machine["machine"], "--attribute", "rounds=1", "--record-samples", "--show-stderr"]
    command += ["--skip-existing-successful", "--no-pull", *(f"--bench={p}" for p in patterns)]
    with log.open("ab") as handle:
        handle.write(f"\nround {number}\n".encode())
        handle.flush()
        start = handle.tell()
        code = _run_asv(command, handle.fileno())
    if code == OK:
        write_json(marker, {"bench": list(patterns)})
    elif code != SOME_FAILED:
        raise UsageError(f"asv stopped: {_read_last_line(log, start)}\n  its whole output is in {log}")
    return code != OK


def write_configuration(session: AsvSession, number: int) -> None:
    """Write asv's configuration for one round, the list of commits in the order of the round, and the machine file."""
    folder = session.get_round_folder(number)
    folder.mkdir(parents=True, exist_ok=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    config: dict[str, Any] = {
        "build_cache_size": BUILD_CACHE_SIZE,
        "pythons": [version],
        "environment_type": "virtualenv",
        **session.project.config,
        "repo": str(session.project.repo),
        "dvcs": "git",
        "branches": [session.commits[-1].hash],
        "benchmark_dir": str(session.project.benchmarks),
        "env_dir": str(session.root / "env"),
        "results_dir": str(folder / "results"),
        "html_dir": str(folder / "html"),
        "plugins": [PLUGIN, *session.project.config.get("plugins", [])],
    }
    if session.in_place:
        config |= {"environment_type": SOURCES_ENVIRONMENT, "pythons": [version]}
    write_json(folder / "asv.conf.json", config)
    write_json(folder / MACHINE_FILE, {session.machine["machine"]: session.machine, "version": 1})
    order = [commit.hash for commit in session.commits]
    random.Random(f"{session.id} {number}").shuffle(order)
    write_text(folder / "commits.txt", "\n".join(order) + "\n")


def kill_children(pid: int) -> None:
    """Kill the child processes of a process, and theirs."""
    with suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, which may contain NaN; return an empty one if the file is missing or truncated.

    Raises:
        OSError: The file exists but cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def describe_machine() -> dict[str, str]:
    """Return the description of this machine, with the keys that asv uses."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()) or "unnamed"
    return {
        "machine": host, "os": platform.system(), "arch": platform.machine(), "cpu": read_cpu_name(),
        "num_cpu": str(os.cpu_count()), "ram": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    }  # fmt: skip


def _load_config(path: Path) -> dict[str, Any]:
    try:
        from asv import util
    except ImportError:
        raise UsageError("asv is not installed: pip install 'asv>=0.6.4'") from None
    try:
        content = util.load_json(str(path), js_comments=True)
    except (util.UserError, ValueError) as error:
        first_line = str(error).partition("\n")[0]
        raise UsageError(f"{path}: not a configuration of asv: {first_line}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path}: not a configuration of asv")
    return content


def _is_threshold(pattern: str, value: object) -> bool:
    with suppress(re.error):
        re.compile(pattern)
        return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    return False


def _run_asv(command: Sequence[str], output: int) -> int:
    """Run asv and return its exit code; an interrupt kills it and all of its child processes."""
    package = str(Path(__file__).parents[2])
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([package, *sys.path[1:]]),
        # the user's benchmark folder stays as it is, and no commit runs the bytecode of another one
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment) as process:
        try:
            return process.wait()
        except BaseException:
            kill_children(process.pid)
            process.kill()
            raise


def _remove_truncated(results: Path) -> None:
    for path in results.rglob("*.json"):
        if not read_json(path):
            path.unlink()


def _read_last_line(log: Path, start: int) -> str:
    """Return the last line of a log that is not blank, from this byte on."""
    lines = log.read_bytes()[start:].decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
