"""A fixture that runs the harness on invalid input and returns the errors that it reports."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.main import main

# CPU time; most calls take a few hundredths of a second, and slower machines need a margin.
MAX_CPU_S = 5.0
GetErrors = Callable[..., list[str]]


@pytest.fixture
def get_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> GetErrors:
    """Return a function that writes files, runs `harness ARGS` next to them, and returns the lines on stderr.

    It asserts that the exit code is 2, and that every line is an error or a quoted line without control characters.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "local.sh.j2").write_text("true\n")

    def run(*args: str, **files: str | bytes) -> list[str]:
        for name, text in files.items():
            data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
            (tmp_path / f"{name}.yaml").write_bytes(data)
        start = time.process_time()
        code = main(args)
        assert time.process_time() - start < MAX_CPU_S or sys.gettrace() is not None  # coverage is slower
        output = capsys.readouterr().err
        assert code == 2, output
        lines = output.splitlines()
        assert all(line.startswith(("error: ", "    ")) for line in lines)
        assert all(line.isprintable() for line in lines)
        return lines

    return run
