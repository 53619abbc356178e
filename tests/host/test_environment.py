"""A job records its environment once for its cases: what exists as it is, and what is missing as null."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

import pytest

from harness.host import environment
from harness.host.environment import ENVIRONMENT_FILE, collect_environment
from tests.conftest import ROOT
from tests.execution.test_run_case import make_job


def test_environment_has_every_package_and_the_affinity() -> None:
    facts = collect_environment()
    assert facts["python_packages"]["numpy"] == metadata.version("numpy")
    assert len(facts["python_packages"]) == len({d.name.lower() for d in metadata.distributions() if d.name})
    assert facts["affinity"] == sorted(os.sched_getaffinity(0))
    assert facts["kernel"]["release"] == os.uname().release
    assert json.loads(json.dumps(facts)) == facts


def test_options_of_the_compiler_do_not_hide_its_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "cxx"
    compiler.write_text('#!/bin/sh\necho "compiler $*"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} -std=c++17")
    assert collect_environment()["compiler"] == "compiler -std=c++17 --version"


def test_missing_programs_and_files_are_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(environment, "CPU", tmp_path)
    facts = collect_environment()
    assert [facts[k] for k in ("system_packages", "compiler", "mpi", "accelerators")] == [None] * 4
    assert facts["cpu"]["governor"] is None


def test_variables_that_may_be_secret_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "NCCL_API_TOKEN", "AWS_SECRET", "HOME"):
        monkeypatch.setenv(name, "7")
    names = collect_environment()["variables"].keys()
    assert "OMP_NUM_THREADS" in names
    assert not {"NCCL_API_TOKEN", "AWS_SECRET", "HOME"} & names


def test_cases_of_a_job_share_its_environment(tmp_path: Path) -> None:
    job = make_job(tmp_path, "local")
    fake = tmp_path / "bin" / "python"
    fake.rename(fake.with_name("program"))
    choice = f'case "$*" in *host.environment) exec {sys.executable} "$@";; esac'
    fake.write_text(f'#!/bin/sh\n{choice}\nexec {fake.with_name("program")} "$@"\n')
    fake.chmod(0o755)
    result = job.run(PYTHONPATH=str(ROOT))
    assert result.returncode == 0, result.stderr
    recorded = [json.loads((folder / ENVIRONMENT_FILE).read_text()) for folder in job.cases]
    assert len(recorded) == 3
    assert all(facts == recorded[0] and facts["python_packages"] for facts in recorded)
    assert {(folder / ENVIRONMENT_FILE).stat().st_nlink for folder in job.cases} == {4}
    assert not list(tmp_path.rglob("*.part"))
