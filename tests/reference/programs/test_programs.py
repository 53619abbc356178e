"""The command of the reference implementation reports cases that it cannot run."""

from __future__ import annotations

import errno
import gc
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from harness.protocol import events
from harness.reference import __main__ as program
from harness.reference.programs.ladder import program as ladder


def write_case(folder: Path, **content: object) -> str:
    (folder / "case.json").write_text(json.dumps({"id": "1", "program": "ladder", "parameters": {}} | content))
    return str(folder)


def test_a_folder_without_a_case_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([str(tmp_path)]) == 2
    assert program.main([write_case(tmp_path, program="weather")]) == 2
    (tmp_path / "case.json").write_text("{")
    assert program.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("not a case that can be run") == 3


def test_ranks_read_the_case_that_the_job_script_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They open no file for it; the variable of another case is ignored, and not passed to programs that they start."""
    for folder, name in ((tmp_path, "passed"), (tmp_path / "other", "written")):
        (tmp_path / "case.json").write_text(json.dumps({"program": "written"}))
        monkeypatch.setenv("GFM_HARNESS_CASE", f'{folder}\t{{"program": "passed"}}')
        assert program.main([str(tmp_path)]) == 2
        assert f"unknown program '{name}'" in capsys.readouterr().err
        assert "GFM_HARNESS_CASE" not in os.environ


def test_bad_input_gives_one_line_and_is_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([write_case(tmp_path, parameters={"workload": "random"})]) == 2
    output = capsys.readouterr().err
    assert output.startswith("error: ")
    assert output.count("\n") == 1
    assert list(events.read(tmp_path / "events.jsonl"))[-1]["message"] in output


@pytest.mark.skipif(torch.cuda.is_available(), reason="a device of CUDA is visible")
@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        ("ladder", {"workload": "random", "precision": "fp64"}),
        ("training_steps", {"precision": "fp64"}),
        ("dynamics", {}),
        ("precision", {}),
        ("train", {}),
        ("data_parallel", {"batch_size": 1, "precision": "fp64"}),
    ],
)
def test_absent_device_is_bad_input(
    kind: str, parameters: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main([write_case(tmp_path, program=kind, parameters=parameters | {"device": "cuda"})]) == 2
    assert capsys.readouterr().err.endswith("device 'cuda' was requested, but none is visible\n")


def test_error_is_logged_although_stderr_is_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sys, "stderr", FullDisk())
    assert program.main([write_case(tmp_path, parameters={"workload": "random"})]) == 2
    assert list(events.read(tmp_path / "events.jsonl"))[-1]["event"] == "error"


def test_traceback_of_an_unexpected_error_is_written_to_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("one\ntwo")

    monkeypatch.setattr(ladder, "run", fail)
    assert program.main([write_case(tmp_path, parameters={"workload": "random", "precision": "fp64"})]) == 1
    stderr = capsys.readouterr().err
    assert re.fullmatch(r"error: ZeroDivisionError: one \(__main__.py:\d+\); traceback: traceback.txt\n", stderr)
    assert "in fail" in (tmp_path / "traceback.txt").read_text()


def test_garbage_collection_runs_without_the_objects_of_imports() -> None:
    """Collections in a program do not visit what its imports created, even if an import fails."""
    gc.unfreeze()
    try:
        program.import_program("harness.reference.programs.vector_biases")
        frozen = gc.get_freeze_count()
        with pytest.raises(ModuleNotFoundError):
            program.import_program("harness.reference.programs.none_such")
        assert gc.isenabled()
        assert frozen > 100_000
    finally:
        gc.unfreeze()
