"""The environment in which a job runs, in full: packages, compiler, kernel, processor, accelerators, affinity.

A fact that cannot be read on the machine is null.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

ENVIRONMENT_FILE = "environment.json"
# Variables that change what is computed, or how fast. Others may contain secrets.
VARIABLES = re.compile(
    r"^(OMP|GOMP|KMP|MKL|OPENBLAS|BLIS|NUMEXPR|VECLIB|CUDA|HIP|HSA|ROCR|ZE|NCCL|RCCL|GLOO|MPICH|MPIR|OMPI|FI|UCX|PMI"
    r"|TORCH|TORCHINDUCTOR|PYTORCH|TRITON|MALLOC)_\w+$|^(LD_PRELOAD|LC_ALL|LANG|PYTHONHASHSEED|CC|CXX|ATEN_\w+)$"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS", re.IGNORECASE)
TIMEOUT_S = 20.0  # of each command
CPU = Path("/sys/devices/system/cpu")


def collect_environment() -> dict[str, Any]:
    """Return the content of environment.json, which every job writes once for its cases."""
    return {
        "python": {"version": sys.version, "implementation": platform.python_implementation()},
        "python_packages": list_python_packages(),
        "system_packages": list_system_packages(),
        "modules": [name for name in os.environ.get("LOADEDMODULES", "").split(":") if name],
        "compiler": read_first_line(*(os.environ.get("CXX") or "c++").split(), "--version"),  # CXX may have options
        "mpi": read_first_line("mpiexec", "--version"),
        "kernel": {"release": platform.release(), "version": platform.version(), "machine": platform.machine()},
        "operating_system": read_operating_system(),
        "libc": " ".join(platform.libc_ver()) or None,
        "cpu": read_cpu(),
        "accelerators": list_accelerators(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_limit": read_text("/sys/fs/cgroup/cpu.max"),
        "variables": {
            name: value
            for name, value in sorted(os.environ.items())
            if VARIABLES.match(name) and not SECRET.search(name)
        },
    }


def list_python_packages() -> dict[str, str]:
    """Return the version of every installed Python package, as `pip freeze` lists them."""
    versions = {package.name: package.version for package in metadata.distributions() if package.name}
    return dict(sorted(versions.items(), key=lambda item: item[0].lower()))


def list_system_packages() -> dict[str, str] | None:
    """Return the version of every package of the operating system (dpkg, rpm), or None."""
    for command in (
        ("dpkg-query", "--show", "--showformat=${Package}:${Architecture}\t${Version}\n"),
        ("rpm", "--query", "--all", "--queryformat=%{NAME}.%{ARCH}\t%{VERSION}-%{RELEASE}\n"),
    ):
        output = read_output(*command)
        if output:
            rows = (line.split("\t", 1) for line in output.splitlines() if "\t" in line)
            return dict(sorted((name, version) for name, version in rows))
    return None


def read_cpu() -> dict[str, Any]:
    """Return the first processor and the settings that change its speed, as the kernel reports them."""
    fields: dict[str, str] = {}
    for line in (read_text("/proc/cpuinfo") or "").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return {
        "model": fields.get("model name"),
        "flags": fields.get("flags") or fields.get("Features"),
        "microcode": fields.get("microcode"),
        "online": read_text(CPU / "online"),
        "simultaneous_multithreading": read_text(CPU / "smt" / "active"),
        "governor": read_text(CPU / "cpu0" / "cpufreq" / "scaling_governor"),
        "boost": read_text(CPU / "cpufreq" / "boost"),
        "numa_nodes": read_text("/sys/devices/system/node/online"),
        "transparent_huge_pages": read_text("/sys/kernel/mm/transparent_hugepage/enabled"),
    }


def list_accelerators() -> list[str] | None:
    """Return the lines of nvidia-smi (name, driver, memory, power limit of each GPU) or rocm-smi (names), or None."""
    query = "--query-gpu=name,driver_version,memory.total,power.limit"
    for command in (("nvidia-smi", query, "--format=csv,noheader"), ("rocm-smi", "--showproductname", "--csv")):
        output = read_output(*command)
        if output:
            return output.splitlines()
    return None


def read_operating_system() -> str | None:
    """Return the name and version of the operating system's distribution."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def read_first_line(*command: str) -> str | None:
    """Return the first line that a command prints, or None."""
    return next(iter((read_output(*command) or "").splitlines()), None)


def read_output(*command: str) -> str | None:
    """Return the output of a command without surrounding white space; None if it fails or is not installed."""
    try:
        process = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False,
            timeout=TIMEOUT_S,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None


def read_text(path: Path | str) -> str | None:
    """Return the text of a file of the kernel without surrounding white space, or None."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


if __name__ == "__main__":
    print(json.dumps(collect_environment(), indent=1, sort_keys=True))
