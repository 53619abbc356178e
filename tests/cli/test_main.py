"""The harness command: its help, its commands, and what it imports for them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from harness.cli.main import build_parser, main
from tests.conftest import ROOT

HEAVY = ("numpy", "pandas", "matplotlib", "torch")


def imported_by(*argv: str) -> set[str]:
    """Return the names of all modules that a command imports."""
    script = (
        "import sys\nfrom harness.cli.main import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
    )
    script += "print('imported', *sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", script, *argv], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return set(done.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("argv", [["--help"], ["list"], ["plan", "ladder"]], ids=" ".join)
def test_command_imports_no_heavy_package(argv: list[str]) -> None:
    assert not imported_by(*argv) & set(HEAVY)


def test_help_imports_nothing_that_planning_needs() -> None:
    assert not imported_by("--help") & {"pydantic", "jinja2", "rich", "orjson"}


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
