"""Python packages: they can be imported, and their versions are supported."""

from __future__ import annotations

import hashlib
import importlib
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import harness
from harness.protocol.programs.preflight import Finding
from harness.reference.errors import get_first_line
from harness.reference.programs.preflight.check import CheckContext, Outcome, Outcomes, make_outcome, merge

DISTRIBUTION = "gfm-harness"
EXTRA = "reference"
CONSTRAINTS = Path(harness.__file__).parents[1] / "constraints.txt"
# The modules of packages whose names differ from their modules.
MODULES = {"google-crc32c": "google_crc32c", "scikit-learn": "sklearn", "torch-geometric": "torch_geometric",
           "ruamel-yaml": "ruamel.yaml"}  # fmt: skip
REQUIREMENT = re.compile(r"^([\w.-]+)\s*(?:>=\s*([\w.]+))?")
MAX_LISTED = 6
ADVICE = "Create the environment again with `harness setup --system NAME`."
EXPECTED = "all packages, at least in their oldest supported versions, and the same on all nodes"
COPY_ADVICE = "Copy the environment to the disks of all nodes again, or use one that all nodes share."


def check(context: CheckContext) -> Outcome:
    """Import every package that the programs need, and compare its version with the oldest supported one."""
    required = list_requirements()
    problems = [problem for name, oldest in required.items() if (problem := find_problem(name, oldest))]
    problems += find_broken_imports([MODULES.get(name, name) for name in required])
    tested = read_constraints(CONSTRAINTS)
    installed = {name: version for name in required if (version := get_version(name))}
    others = [f"{name} {v}" for name, v in installed.items() if v.partition("+")[0] != tested.get(name)]
    observed = f"all {len(required)} packages"
    if tested and others:
        more = f" and {len(others) - MAX_LISTED} more" if len(others) > MAX_LISTED else ""
        observed += f"; of other versions than the tested ones: {', '.join(others[:MAX_LISTED])}{more}"
    outcome = make_outcome(EXPECTED, observed, problems, ADVICE)
    outcome.versions = installed | {"Python": platform.python_version(), "the code of the harness": compute_digest()}
    return outcome


def judge(context: CheckContext, outcomes: Outcomes) -> Finding:
    """Return the finding on all nodes, whose environments must be the same."""
    finding = merge(context, outcomes)
    differences = find_differences({rank: outcome.versions for rank, outcome in outcomes.items()})
    if finding.verdict != "ok" or not differences:
        return finding
    observed = "; ".join(differences[:MAX_LISTED])
    return Finding(verdict="failed", expected=EXPECTED, observed=observed, advice=COPY_ADVICE)


def find_differences(versions: Mapping[int, Mapping[str, str]]) -> list[str]:
    """Return a message for each package whose version on a node differs from that on the first."""
    first, *others = versions
    return [
        f"{name} is {versions[rank].get(name, 'absent')} on the node of rank {rank}, and"
        f" {versions[first].get(name, 'absent')} on that of rank {first}"
        for rank in others
        for name in sorted(versions[first].keys() | versions[rank].keys())
        if versions[rank].get(name) != versions[first].get(name)
    ]


def compute_digest() -> str:
    """Return the beginning of the SHA-256 digest of all Python files of the harness."""
    digest = hashlib.sha256()
    package = Path(harness.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return digest.hexdigest()[:8]


def list_requirements() -> dict[str, str]:
    """Return the oldest supported version of each package that the reference implementation needs, by its name."""
    requirements = {}
    for text in metadata.requires(DISTRIBUTION) or []:
        condition = text.partition(";")[2]
        if "extra" in condition and not re.search(rf"extra\s*==\s*['\"]{EXTRA}['\"]", condition):
            continue
        if match := REQUIREMENT.match(text):
            requirements[normalize(match[1])] = match[2] or "0"
    return requirements


def normalize(name: str) -> str:
    """Return the name of a package with hyphens and in lower case, as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def find_problem(name: str, oldest: str) -> str | None:
    """Return a message if a package is missing or too old, or None."""
    version = get_version(name)
    if version is None:
        return f"{name} is not installed"
    return f"{name} {version} is older than {oldest}" if parse_version(version) < parse_version(oldest) else None


def find_broken_imports(modules: list[str]) -> list[str]:
    """Return a message for each module that cannot be imported; a crash ends only the process that imports."""
    problems = []
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken library may raise any
            problems.append(f"{module} cannot be imported ({get_first_line(error)})")
    return problems


def get_version(name: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def parse_version(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version without zeros at the end: 2.13.0+rocm7.1 is (2, 13)."""
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in re.sub(r"(\.0+)+$", "", numbers[0]).split(".")) if numbers else ()


def read_constraints(path: Path) -> dict[str, str]:
    """Return the tested version of each package by its name; none if the file is not part of the installation."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition(";")[0].split("==") for line in lines if re.match(r"[\w.-]+==", line))
    return {normalize(name): version.strip() for name, version in pairs}
