"""HARNESS_* variables are the users', for settings; what the harness tells its own processes bears another prefix."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from harness.config import resources
from harness.config import system as systems
from harness.config.settings import PREFIX
from harness.reference.profiling import fom_client, node_sampler

ROOT = Path(__file__).parents[2]
SETTINGS = [(name, setting) for name in resources.names("systems")
            for setting in systems.load(resources.find("systems", name), {}).system.settings]  # fmt: skip


def test_the_setting_of_the_collector_moves_no_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_TELEMETRY", "sampler")
    monkeypatch.setenv(node_sampler.EVERY, "0.05")
    monkeypatch.delenv(node_sampler.FOLDER, raising=False)
    case = tmp_path / "case"
    case.mkdir()
    one = node_sampler.start(case, 0, on_gpu=False)
    assert one is not None
    one.stop()
    del os.environ[node_sampler.FOLDER]  # it is passed on to programs that this one starts
    assert list((case / "telemetry").glob("*.jsonl"))
    assert not (tmp_path / "sampler").exists()


@pytest.mark.parametrize(("system", "setting"), SETTINGS)
def test_no_setting_s_variable_is_one_of_the_harness_s_own(system: str, setting: str) -> None:
    internal = {node_sampler.EVERY, node_sampler.FOLDER, fom_client.URL}
    assert PREFIX + setting.upper() not in internal
    used = "".join(path.read_text() for path in [*ROOT.glob("harness/reference/**/*.py"), *ROOT.glob("systems/*.j2")])
    assert not re.search(rf"(?<![A-Z_]){PREFIX}{setting.upper()}\b", used)
