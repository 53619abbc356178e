"""The harness command: its help, its commands, and the modules that they import."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from harness.cli.main import build_parser, main
from tests.conftest import ROOT

HEAVY = {"matplotlib", "numpy", "pandas", "scipy", "torch"}
LIST_IMPORTS = """\
import sys
from harness.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as error:
    code = error.code
assert code == 0, code
print("imported", *sys.modules, file=sys.stderr)
"""


def list_imports(*argv: str) -> set[str]:
    """Return the names of all modules that a command imports; the command must succeed."""
    result = subprocess.run(
        [sys.executable, "-c", LIST_IMPORTS, *argv], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return set(result.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize(
    "argv", [["--help"], ["list"], ["plan", "ladder"], ["run", "ladder", "--dry-run"]], ids=" ".join
)
def test_command_imports_no_heavy_package(argv: list[str]) -> None:
    assert not list_imports(*argv) & HEAVY


def test_help_imports_no_package_that_only_planning_needs() -> None:
    assert not list_imports("--help") & {"pydantic", "jinja2", "rich", "orjson"}


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = re.findall(r"^    (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert listed == build_parser()[1]
    assert {"run", "import", "report", "check", "compare", "data"} <= set(listed)


@pytest.mark.parametrize(("word", "nearest"), [("plam", "plan"), ("imprt", "import"), ("dat", "data")])
def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str], word: str, nearest: str) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err == f"error: unknown command {word!r} (did you mean {nearest!r}?)\n"


@pytest.mark.parametrize("argv", [["import", "gromacs", "logs"], ["import", "hydragnn"], ["collect"]], ids=" ".join)
def test_incomplete_command_names_its_help(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err.endswith(f"see `harness {argv[0]} --help`\n")
