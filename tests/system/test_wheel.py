"""An installed wheel plans from an empty folder without the optional dependencies."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from harness.config import json_schema
from tests.conftest import ROOT

# Hide the extras: importing a module that is None in sys.modules fails.
HIDE_MODULES = "import sys\nsys.modules.update(dict.fromkeys({names!r}))\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel without its dependencies, and return its site-packages folder."""
    wheels, site = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT))
    (wheel,) = wheels.glob("*.whl")
    _pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = [re.split(r"\W", line)[0] for line in (*extras["reference"], *extras["mpi"])]
    assert "torch" in names
    (site / "sitecustomize.py").write_text(HIDE_MODULES.format(names=names))
    return site


def _pip(*argv: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *argv]
    subprocess.run(command, check=True, timeout=120)


def _python(site: Path, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder with the wheel first on its path."""
    environment = os.environ | {"PYTHONPATH": str(site), "XDG_CONFIG_HOME": str(folder / "none")}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_wheel_contains_every_shipped_file(site: Path) -> None:
    shipped = site / "harness" / "shipped_files"
    sources = [p for folder in ("suites", "systems", "reports") for p in (ROOT / folder).rglob("*") if p.is_file()]
    assert {"ladder.yaml", "job.sh.j2"} <= {p.name for p in sources}
    for path in sources:
        assert (shipped / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_the_build_generates_the_schemas(site: Path) -> None:
    for path, text in json_schema.build_files().items():
        assert (site / "harness" / "shipped_files" / path.relative_to(ROOT)).read_text(encoding="utf-8") == text


def test_the_wheel_is_imported_and_torch_is_absent(site: Path, tmp_path: Path) -> None:
    result = _python(site, tmp_path, "-c", "import harness; print(harness.__file__)\nimport torch")
    assert Path(result.stdout.strip()).is_relative_to(site)
    assert "ModuleNotFoundError: import of torch halted" in result.stderr


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ("list", "Weak and strong scaling"),
        ("plan scaling --system frontier", "scaling-weak-nodes_1024"),
        ("run ladder --dry-run", "ladder-random-fp64"),
    ],
)
def test_wheel_plans_without_extras(site: Path, tmp_path: Path, argv: str, expected: str) -> None:
    result = _python(site, tmp_path, "-m", "harness", *argv.split())
    assert (result.returncode, result.stderr) == (0, "")
    assert expected in result.stdout
