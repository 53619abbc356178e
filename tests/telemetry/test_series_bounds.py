"""Physically impossible samples are dropped, counted and named, and lines that are not telemetry are skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.telemetry.collect import CACHE_FILE
from tests.telemetry.exports import T0, Recording, collect_telemetry, format_line, get_usage, sample, write_case

EXPORT = "runs/mine/jobs/job.17.omnistat.jsonl"
ENERGY, POWER = "rocm_energy_joules", "rocm_average_socket_power_watts"


def get_faults(root: Path) -> str:
    return collect_telemetry(root).sources[0].faults


@pytest.mark.parametrize("watts", [-35_700.0, 1e17, 65_535.0])
def test_impossible_power_is_dropped_and_named(tmp_path: Path, watts: float) -> None:
    write_case(tmp_path, "a", 10, 110, nodes=["n1"])
    samples = sample(1, 120, lambda t: watts if t == 50 else 200.0)
    Recording().add(POWER, "n1", samples, card="3").write(tmp_path / EXPORT)
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 100)
    assert f"1 samples out of bounds (first: {POWER} of n1, card 3)" in get_faults(tmp_path)


def test_energy_is_withheld_if_all_samples_of_a_device_are_invalid(tmp_path: Path) -> None:
    """The other devices of the node are valid, but their sum is not that of the node."""
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    recording = (
        Recording().add(POWER, "n1", sample(1, 60, -5.0), card="0").add(POWER, "n1", sample(1, 60, 200.0), card="1")
    )
    recording.write(tmp_path / EXPORT)
    usage = get_usage(tmp_path, "a")
    assert usage.energy_j == {}
    assert usage.unavailable_reason == "accelerator: 1 devices with too few valid samples"


@pytest.mark.parametrize("until", [31, 35, 1000])
def test_leap_of_a_counter_adds_nothing(tmp_path: Path, until: int) -> None:
    """The leap lasts for one sample, for several samples, or permanently."""
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    joules = sample(1, 60, lambda t: 1e6 + 200 * t + (1e12 if 30 <= t < until else 0.0))
    Recording().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40, rel=1e-3)
    assert f"1 counter leaps out of bounds (first: {ENERGY} of n1, card 0)" in get_faults(tmp_path)


def test_first_reading_after_an_initial_zero_does_not_count_as_energy(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 0, 50, nodes=["n1"])
    joules = sample(1, 60, lambda t: 0.0 if t == 0 else 9e8 + 200 * t)
    Recording().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 50, rel=1e-3)


def test_utilization_and_temperature_have_bounds(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 110, nodes=["n1"])
    recording = Recording().add(POWER, "n1", sample(1, 120, 200.0), card="0")
    recording.add("rocm_utilization_percentage", "n1", sample(1, 120, lambda t: 4e9 if t == 50 else 50.0), card="0")
    recording.add("rocm_temperature_celsius", "n1", sample(1, 120, lambda t: 1e6 if t == 50 else 70.0), card="0")
    recording.write(tmp_path / EXPORT)
    measured = get_usage(tmp_path, "a").quantities
    assert measured["accelerator_utilization_percent"] == pytest.approx(50.0)
    assert measured["accelerator_temperature_max_c"] == 70.0
    assert "2 samples out of bounds" in get_faults(tmp_path)


VALID = {"__name__": POWER, "instance": "n1", "card": "0"}
TIMES = [1e3 * (T0 + t) for t in range(60)]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"metric": VALID, "values": 5, "timestamps": TIMES}),
        json.dumps({"metric": VALID, "values": [1], "timestamps": {"a": 1}}),
        json.dumps({"metric": VALID | {"card": ["0"]}, "values": [1], "timestamps": [1e3 * T0]}),
        json.dumps({"metric": VALID | {"instance": 5}, "values": [1], "timestamps": [1e3 * T0]}, separators=(",", ":")),
        json.dumps({"metric": VALID, "values": [[1], [2]], "timestamps": [[1], [2]]}),
        json.dumps({"data": {"result": 5}}),
        json.dumps({"data": {"result": [{"metric": VALID, "values": [5, [1, 2, 3], {"a": 1}]}]}}),
        '{"metric":{"__name__":"up","instance":"n1"},"values":[' + "9" * 5000 + '],"timestamps":[' + "9" * 5000 + "]}",
        json.dumps({"metric": VALID, "values": ["9" * 5000, None], "timestamps": [1e300, -1.0]}),
        "[" * 100_000,
        '{"metric":' * 5000,
        "5",
        "\x00\xff",
    ],
)  # fmt: skip
def test_line_that_is_not_telemetry_is_skipped(tmp_path: Path, text: str) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    valid = format_line(VALID, sample(1, 60, 200.0))
    path = tmp_path / EXPORT
    path.parent.mkdir(parents=True)
    path.write_text(f"{text}\n{valid}\n", encoding="latin-1")
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)


def test_csv_file_with_an_open_quote_loses_only_that_cell(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    path = tmp_path / "runs/mine/jobs/job.17.omnistat/omnistat-rocm.gpu.csv"
    Recording().add(POWER, "n1", sample(1, 60, 200.0), card="0").write_csv(path, "card")
    text = path.read_text().splitlines()
    text[10] = text[10].replace(",", ',"')
    path.write_text("\n".join(text) + "\n")
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)
    assert "1 values that are not numbers" in get_faults(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "5", "[]", '{"version": VERSION}', '{"version": VERSION, "sources": 5}',
        '{"version": VERSION, "sources": {"KEY": 5}}',
        '{"version": VERSION, "sources": {"KEY": {"usages": [5], "version": "", "faults": ""}}}',
        '{"version": VERSION, "sources": {"KEY": {"usages": [{"energy_j": 7}], "version": [], "faults": ""}}}',
        "[" * 100_000,
        '{"version": VERSION, "sources": {"KEY": {"usages": [], "version": "", "faults": ""}}}',
    ],
)  # fmt: skip
def test_damaged_cache_is_ignored(tmp_path: Path, content: str) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    Recording().add(POWER, "n1", sample(1, 60, 200.0), card="0").write(tmp_path / EXPORT)
    first = get_usage(tmp_path, "a")
    cache = tmp_path / "runs/mine" / CACHE_FILE
    intact: dict[str, Any] = json.loads(cache.read_text())
    (key,) = intact["sources"]
    cache.write_text(content.replace("VERSION", str(intact["version"])).replace("KEY", key))
    assert get_usage(tmp_path, "a").energy_j == first.energy_j
