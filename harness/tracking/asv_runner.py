"""asv over commits: one round at a time, each in a folder of its own.

A round runs every benchmark once on every commit, in an order of its own by chance, so that the drift of a busy machine
hits all commits alike. What a killed round has measured stays; the next one carries on from there.
"""

from __future__ import annotations

import hashlib
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
from pathlib import Path
from typing import Any

import orjson
import psutil

from harness.host.atomic_files import write_json, write_text
from harness.host.provenance import cpu_name
from harness.protocol.errors import UsageError
from harness.tracking.asv_config import Project
from harness.tracking.git_commits import Commit

# Of the plugin that asv loads: its module (the dot: not one of asv's own), its environment, and its file of machines.
PLUGIN, SOURCES, MACHINES = ".harness.tracking.asv_plugin", "sources", "machines.json"
LOG = "asv.log"
BUILT_AT_ONCE = 50
OK, SOME_FAILED = 0, 2


@dataclass(frozen=True)
class Session:
    """What is measured together: commits on one machine, by one set of benchmarks, in one kind of environment.

    here: sources of each commit under this Python, nothing installed. folder: where its rounds are.
    """

    project: Project
    commits: Sequence[Commit]
    machine: dict[str, str]
    here: bool
    root: Path

    @property
    def id(self) -> str:
        """Equal sessions have equal ids, and share their rounds."""
        digest = hashlib.sha256()
        for path in sorted(self.project.benchmarks.rglob("*.py")):
            digest.update(path.read_bytes())
        known = [[c.hash for c in self.commits], self.project.config, self.machine, self.here, sys.version]
        digest.update(orjson.dumps(known, option=orjson.OPT_SORT_KEYS))
        return digest.hexdigest()[:12]

    @property
    def machine_name(self) -> str:
        """Host and processor: what must be equal for times to be compared."""
        return f"{self.machine['machine']} ({self.machine['cpu']})"

    @property
    def folder(self) -> Path:
        """Where its rounds are."""
        return self.root / self.id


def measure(session: Session, number: int, bench: Sequence[str]) -> bool:
    """Run one round (from 1) where it is not complete; whether asv had something to say against it.

    Raises UsageError with asv's last words if it gave up.
    """
    place = session.folder / f"round-{number:02}"
    done, log = place / "done.json", session.folder / LOG
    if read(done).get("bench") in ([], list(bench)):
        return False
    _remove_torn(place / "results")
    write_configuration(session, place, number)
    words = [sys.executable, "-m", "asv", "run", "--config", str(place / "asv.conf.json"), "HASHFILE:commits.txt"]
    words += ["--machine", session.machine["machine"], "--attribute", "rounds=1", "--record-samples", "--show-stderr"]
    words += ["--skip-existing-successful", "--no-pull", *(word for regex in bench for word in ("--bench", regex))]
    with log.open("ab") as handle:
        handle.write(f"\nround {number}\n".encode())
        handle.flush()
        code = _ended(words, handle.fileno())
    if code == OK:
        write_json(done, {"bench": list(bench)})
    elif code != SOME_FAILED:
        raise UsageError(f"asv gave up: {_last_words(log)}\n  all it said is in {log}")
    return code != OK


def write_configuration(session: Session, place: Path, number: int) -> None:
    """asv's configuration for one round, beside the commits in the order of their turns and the machine."""
    place.mkdir(parents=True, exist_ok=True)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    own: dict[str, Any] = {
        "build_cache_size": BUILT_AT_ONCE,
        **session.project.config,
        "repo": str(session.project.repo),
        "dvcs": "git",
        "branches": [session.commits[-1].hash],
        "benchmark_dir": str(session.project.benchmarks),
        "env_dir": str(session.root / "env"),
        "results_dir": str(place / "results"),
        "html_dir": str(place / "html"),
        "plugins": [PLUGIN, *session.project.config.get("plugins", [])],
    }
    own.setdefault("pythons", [version])
    if session.here:
        own |= {"environment_type": SOURCES, "pythons": [version]}
    own.setdefault("environment_type", "virtualenv")
    write_json(place / "asv.conf.json", own)
    write_json(place / MACHINES, {session.machine["machine"]: session.machine, "version": 1})
    turns = [commit.hash for commit in session.commits]
    random.Random(f"{session.id} {number}").shuffle(turns)
    write_text(place / "commits.txt", "\n".join(turns) + "\n")


def _ended(words: Sequence[str], output: int) -> int:
    """Run asv to its end; after an interrupt it ends with all that it has started."""
    package = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([package, *sys.path[1:]])}
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment) as process:
        try:
            return process.wait()
        except BaseException:
            with suppress(psutil.Error):
                for part in psutil.Process(process.pid).children(recursive=True):
                    part.kill()
            process.kill()
            raise


def _remove_torn(results: Path) -> None:
    for path in results.rglob("*.json"):
        if not read(path):
            path.unlink()


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "nothing said"


def read(path: Path) -> dict[str, Any]:
    """A JSON file; empty if there is none or a kill tore it. asv writes NaN, which orjson does not read."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def this_machine() -> dict[str, str]:
    """The machine as asv wants it described."""
    host = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node()) or "unnamed"
    return {
        "machine": host, "os": platform.system(), "arch": platform.machine(), "cpu": cpu_name(),
        "num_cpu": str(os.cpu_count()), "ram": str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
    }  # fmt: skip
