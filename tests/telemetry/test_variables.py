"""HARNESS_* variables are settings of users; internal variables of the harness have another prefix."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from harness.config.resources import find_resource, list_resources
from harness.config.system import load_system
from harness.config.system_file import PREFIX
from harness.reference.profiling import fom_client, node_sampler
from tests.conftest import ROOT

SETTINGS = [
    (name, setting)
    for name in list_resources("systems")
    for setting in load_system(find_resource("systems", name), {}).definition.settings
]


def test_telemetry_setting_does_not_change_the_sampler_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_TELEMETRY", "sampler")
    monkeypatch.setenv(node_sampler.INTERVAL_VARIABLE, "0.05")
    monkeypatch.delenv(node_sampler.FOLDER_VARIABLE, raising=False)
    folder = tmp_path / "case"
    folder.mkdir()
    sampler = node_sampler.start(folder, 0, on_gpu=False)
    assert sampler is not None
    sampler.stop()
    del os.environ[node_sampler.FOLDER_VARIABLE]  # the sampler sets it for child processes
    assert list((folder / "telemetry").glob("*.jsonl"))
    assert not (tmp_path / "sampler").exists()


@pytest.mark.parametrize(("system", "setting"), SETTINGS)
def test_variable_of_a_setting_is_not_an_internal_variable(system: str, setting: str) -> None:
    internal = {node_sampler.INTERVAL_VARIABLE, node_sampler.FOLDER_VARIABLE, fom_client.URL}
    assert PREFIX + setting.upper() not in internal
    sources = "".join(
        path.read_text() for path in [*ROOT.glob("harness/reference/**/*.py"), *ROOT.glob("systems/*.j2")]
    )
    assert not re.search(rf"(?<![A-Z_]){PREFIX}{setting.upper()}\b", sources)
