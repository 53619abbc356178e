"""Samples that no device can show are left out, counted and named; lines that are no telemetry are passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.telemetry import usage_cache
from tests.telemetry.exports import T0, Recorded, case, every, gathered, line, usage_of

EXPORT = "runs/mine/jobs/job.17.omnistat.jsonl"
ENERGY, POWER = "rocm_energy_joules", "rocm_average_socket_power_watts"


def faults_of(root: Path) -> str:
    return gathered(root).sources[0].faults


@pytest.mark.parametrize("watts", [-35_700.0, 1e17, 65_535.0])
def test_power_that_no_device_draws_is_left_out_and_named(tmp_path: Path, watts: float) -> None:
    case(tmp_path, "a", 10, 110, nodes=["n1"])
    samples = every(1, 120, lambda t: watts if t == 50 else 200.0)
    Recorded().add(POWER, "n1", samples, card="3").write(tmp_path / EXPORT)
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 100)
    assert f"1 samples out of bounds (first: {POWER} of n1, card 3)" in faults_of(tmp_path)


def test_energy_of_a_device_whose_power_is_nonsense_is_withheld(tmp_path: Path) -> None:
    """Also where the other devices of the node are sound: their sum is not the node's."""
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    told = Recorded().add(POWER, "n1", every(1, 60, -5.0), card="0").add(POWER, "n1", every(1, 60, 200.0), card="1")
    told.write(tmp_path / EXPORT)
    usage = usage_of(tmp_path, "a")
    assert usage.energy_j == {}
    assert usage.why_not == "accelerator: 1 devices with too few samples that are no fault"


@pytest.mark.parametrize("until", [31, 35, 1000])
def test_a_counter_that_leaps_adds_nothing(tmp_path: Path, until: int) -> None:
    """For one sample, for several, and for good."""
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    joules = every(1, 60, lambda t: 1e6 + 200 * t + (1e12 if 30 <= t < until else 0.0))
    Recorded().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40, rel=1e-3)
    assert f"1 counter leaps out of bounds (first: {ENERGY} of n1, card 0)" in faults_of(tmp_path)


def test_a_counter_whose_first_sample_is_zero_has_not_gained_all_it_shows(tmp_path: Path) -> None:
    case(tmp_path, "a", 0, 50, nodes=["n1"])
    joules = every(1, 60, lambda t: 0.0 if t == 0 else 9e8 + 200 * t)
    Recorded().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 50, rel=1e-3)


def test_utilisation_and_temperature_have_bounds_too(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 110, nodes=["n1"])
    told = Recorded().add(POWER, "n1", every(1, 120, 200.0), card="0")
    told.add("rocm_utilization_percentage", "n1", every(1, 120, lambda t: 4e9 if t == 50 else 50.0), card="0")
    told.add("rocm_temperature_celsius", "n1", every(1, 120, lambda t: 1e6 if t == 50 else 70.0), card="0")
    told.write(tmp_path / EXPORT)
    figures = usage_of(tmp_path, "a").figures
    assert figures["accelerator_utilization_percent"] == pytest.approx(50.0)
    assert figures["accelerator_temperature_highest_c"] == 70.0
    assert "2 samples out of bounds" in faults_of(tmp_path)


SOUND = {"__name__": POWER, "instance": "n1", "card": "0"}
TIMES = [1e3 * (T0 + t) for t in range(60)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"metric": SOUND, "values": 5, "timestamps": TIMES}),
        json.dumps({"metric": SOUND, "values": [1], "timestamps": {"a": 1}}),
        json.dumps({"metric": SOUND | {"card": ["0"]}, "values": [1], "timestamps": [1e3 * T0]}),
        json.dumps({"metric": SOUND | {"instance": 5}, "values": [1], "timestamps": [1e3 * T0]}, separators=(",", ":")),
        json.dumps({"metric": SOUND, "values": [[1], [2]], "timestamps": [[1], [2]]}),
        json.dumps({"data": {"result": 5}}),
        json.dumps({"data": {"result": [{"metric": SOUND, "values": [5, [1, 2, 3], {"a": 1}]}]}}),
        '{"metric":{"__name__":"up","instance":"n1"},"values":[' + "9" * 5000 + '],"timestamps":[' + "9" * 5000 + "]}",
        json.dumps({"metric": SOUND, "values": ["9" * 5000, None], "timestamps": [1e300, -1.0]}),
        "[" * 100_000,
        '{"metric":' * 5000,
        "5",
        "\x00\xff",
    ],
)  # fmt: skip
def test_a_line_that_is_no_telemetry_is_passed_over(tmp_path: Path, text: str) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    sound = line(SOUND, every(1, 60, 200.0))
    path = tmp_path / EXPORT
    path.parent.mkdir(parents=True)
    path.write_text(f"{text}\n{sound}\n", encoding="latin-1")
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)


def test_a_csv_file_with_an_open_quote_is_read_but_for_that_cell(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    path = tmp_path / "runs/mine/jobs/job.17.omnistat/omnistat-rocm.gpu.csv"
    Recorded().add(POWER, "n1", every(1, 60, 200.0), card="0").write_csv(path, "card")
    text = path.read_text().splitlines()
    text[10] = text[10].replace(",", ',"')
    path.write_text("\n".join(text) + "\n")
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)
    assert "1 values that are no numbers" in faults_of(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "5", "[]", '{"version": VERSION}', '{"version": VERSION, "sources": 5}',
        '{"version": VERSION, "sources": {"KEY": 5}}',
        '{"version": VERSION, "sources": {"KEY": {"usages": [5], "told": "", "faults": ""}}}',
        '{"version": VERSION, "sources": {"KEY": {"usages": [{"energy_j": 7}], "told": [], "faults": ""}}}',
        "[" * 100_000,
    ],
)  # fmt: skip
def test_a_cache_that_is_not_as_it_was_written_is_not_used(tmp_path: Path, content: str) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    Recorded().add(POWER, "n1", every(1, 60, 200.0), card="0").write(tmp_path / EXPORT)
    first = usage_of(tmp_path, "a")
    cache = tmp_path / "runs/mine" / usage_cache.FILE
    kept: dict[str, Any] = json.loads(cache.read_text())
    (key,) = kept["sources"]
    cache.write_text(content.replace("VERSION", str(usage_cache.VERSION)).replace("KEY", key))
    assert usage_of(tmp_path, "a").energy_j == first.energy_j
