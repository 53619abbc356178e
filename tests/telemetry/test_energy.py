"""The energy and the rates of cases match calculations by hand, for every kind of export that Omnistat writes."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pandas as pd
import pytest

from harness.experiments.cost.metrics import build_cost_tables, sum_energy
from harness.experiments.cost.page import build_parts_block
from harness.results.runs import load_runs
from harness.telemetry.omnistat_csv import CsvExport
from tests.telemetry.exports import (
    T0,
    Recording,
    collect_telemetry,
    format_line,
    get_usage,
    make_trial_event,
    sample,
    write_case,
)

EXPORT = "runs/mine/jobs/job.17.omnistat.jsonl"
ENERGY, POWER = "rocm_energy_joules", "rocm_average_socket_power_watts"


def test_case_has_the_energy_between_its_start_and_end(tmp_path: Path) -> None:
    """The power is 100 W until 40 s and then 300 W; the case has 10 s of the first and 12 s of the second."""
    write_case(tmp_path, "a", 30, 52, nodes=["n1"])
    joules = sample(5, 100, lambda t: 7.0 + 100 * min(t, 40) + 300 * max(t - 40, 0))
    Recording().add(ENERGY, "n1.site.gov:8000", joules, card="0").write(tmp_path / EXPORT)
    usage = get_usage(tmp_path, "a")
    assert usage.energy_j == {"accelerator": pytest.approx(10 * 100 + 12 * 300)}
    assert usage.methods == {"accelerator": "counter"}
    assert sum_energy(usage) == (pytest.approx(4600), "accelerators", "counter")


def test_power_is_integrated_without_a_counter(tmp_path: Path) -> None:
    """The even die of an MI250X reports the power of both dies, and the odd one 0 W, which is counted as a fault."""
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    recording = Recording()
    for card in range(8):
        recording.add(POWER, "n1", sample(1, 60, 0.0 if card % 2 else lambda t: 400.0 + t), card=str(card))
    recording.write(tmp_path / EXPORT)
    usage = get_usage(tmp_path, "a")
    assert usage.energy_j["accelerator"] == pytest.approx(4 * (400 * 40 + (50**2 - 10**2) / 2))
    assert usage.methods["accelerator"] == "power integrated"
    assert "4 devices that report 0 W" in collect_telemetry(tmp_path).sources[0].faults


def test_counter_that_never_moves_is_ignored_if_there_is_power(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    recording = (
        Recording().add(ENERGY, "n1", sample(1, 60, 0.0), card="0").add(POWER, "n1", sample(1, 60, 250.0), card="0")
    )
    recording.write(tmp_path / EXPORT)
    usage = get_usage(tmp_path, "a")
    assert usage.energy_j["accelerator"] == pytest.approx(250 * 40)
    assert usage.methods["accelerator"] == "power integrated"


@pytest.mark.parametrize(("reset_s", "fault"), [(30, "1 counter resets"), (None, "")])
def test_counter_reset_loses_only_one_interval(tmp_path: Path, reset_s: float | None, fault: str) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    joules = sample(1, 60, lambda t: 1e6 + 200 * t if reset_s is None or t < reset_s else 200 * (t - reset_s))
    Recording().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)
    assert collect_telemetry(tmp_path).sources[0].faults == fault


def test_invalid_sample_of_a_counter_is_skipped(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    joules = sample(1, 60, lambda t: 0.0 if t == 30 else 9e8 + 200 * t)
    Recording().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)
    assert "1 invalid counter samples" in collect_telemetry(tmp_path).sources[0].faults


def test_gap_withholds_energy_from_power_but_not_from_a_counter(tmp_path: Path) -> None:
    """With a third of a case unsampled, integrated power is no estimate; a counter spans the gap."""
    write_case(tmp_path, "power", 10, 70, nodes=["n1"])
    write_case(tmp_path, "counter", 10, 70, nodes=["n2"])
    times = [t for t in range(81) if not 30 < t < 50]
    recording = Recording().add(POWER, "n1", [(t, 250.0) for t in times], card="0")
    recording.add(ENERGY, "n2", [(t, 250.0 * t) for t in times], card="0").write(tmp_path / EXPORT)
    assert get_usage(tmp_path, "power").energy_j == {}
    assert get_usage(tmp_path, "counter").energy_j["accelerator"] == pytest.approx(250 * 60)
    assert "gaps" in collect_telemetry(tmp_path).sources[0].faults


def test_sensor_of_whole_nodes_takes_precedence_over_the_sum_of_components(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    recording = Recording()
    for name, watts in (("energy", 900), ("cpu_energy", 150), ("memory_energy", 50)):
        recording.add(f"omnistat_vendor_{name}_joules", "n1", sample(2, 60, lambda t, w=watts: w * t), vendor="cray")
    for accel in "0123":
        recording.add("omnistat_vendor_accel_energy_joules", "n1", sample(2, 60, lambda t: 100 * t), accel=accel)
    for card in range(8):  # the same accelerators, by another tool
        recording.add(POWER, "n1", sample(2, 60, 0.0 if card % 2 else 101.0), card=str(card))
    recording.write(tmp_path / EXPORT)
    usage = get_usage(tmp_path, "a")
    assert usage.energy_j["accelerator"] == pytest.approx(404 * 40)
    assert sum_energy(usage) == (pytest.approx(900 * 40), "whole nodes", "counter")


def test_samples_are_assigned_to_cases_by_time_and_node(tmp_path: Path) -> None:
    """Two cases run at once on different nodes, two in succession on the same, and a trial within one of them."""
    trial = make_trial_event(3, 20, 40, ["n2"])
    write_case(tmp_path, "first", 10, 50, nodes=["n1"])
    write_case(tmp_path, "other", 10, 50, nodes=["n2", "n3"], program="hpo", events=[trial])
    write_case(tmp_path, "after", 50, 90, nodes=["n1"])
    recording = Recording()
    for node, watts in (("n1", 100), ("n2", 200), ("n3", 300)):
        recording.add(ENERGY, node, sample(1, 100, lambda t, w=watts: w * t), card="0")
    recording.write(tmp_path / EXPORT)
    energy = {
        (u.window.folder.rsplit("/", 1)[1], u.window.scope): u.energy_j["accelerator"]
        for u in collect_telemetry(tmp_path).usages
    }
    assert energy == {
        ("first", "case"): pytest.approx(4000),
        ("other", "case"): pytest.approx(20000),
        ("other", "trial"): pytest.approx(200 * 20),
        ("after", "case"): pytest.approx(4000),
    }


def test_concurrent_trials_on_the_same_nodes_have_no_energy(tmp_path: Path) -> None:
    trials = [make_trial_event(k, 10 + 10 * k, 30 + 10 * k, []) for k in range(2)]
    write_case(tmp_path, "a", 10, 50, nodes=["n1"], program="hpo", events=trials)
    Recording().add(ENERGY, "n1", sample(1, 60, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    parts = build_cost_tables(load_runs(tmp_path / "runs"), collect_telemetry(tmp_path))["cost_parts"]
    assert parts["energy_j"].isna().all()
    assert set(parts["unavailable_reason"]) == {"other trials ran on its nodes at the same time"}


@pytest.mark.parametrize(("silent", "joules"), [(2, 32 * 100 * 40.0), (8, None)])
def test_energy_is_scaled_for_a_few_silent_nodes_but_not_for_many(
    tmp_path: Path, silent: int, joules: float | None
) -> None:
    nodes = [f"n{k}" for k in range(32)]
    write_case(tmp_path, "a", 10, 50, nodes=nodes)
    recording = Recording()
    for node in nodes[silent:]:
        recording.add(ENERGY, node, sample(1, 60, lambda t: 100 * t), card="0")
    recording.write(tmp_path / EXPORT)
    row = build_cost_tables(load_runs(tmp_path / "runs"), collect_telemetry(tmp_path))["cost_cases"].iloc[0]
    if joules is None:
        assert math.isnan(row["energy_j"])
        assert row["unavailable_reason"] == "only 24 of 32 nodes sent samples"
    else:
        assert row["energy_j"] == pytest.approx(joules)
        assert row["energy_method"] == "counter, scaled up from 30 of 32 nodes"


def test_clock_that_is_an_hour_off_is_corrected(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 100, 200, nodes=["n1", "n2", "n3", "n4"])
    recording = Recording()
    for k, node in enumerate(("n1", "n2", "n3", "n4")):
        offset_s = 3600 if node == "n3" else k  # collectors start a little apart
        recording.add(ENERGY, node, [(t + offset_s, 100.0 * t) for t in range(300)], card="0")
    recording.write(tmp_path / EXPORT)
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(4 * 100 * 100, rel=0.02)
    assert "clocks that disagree, corrected (first: n3, +3" in collect_telemetry(tmp_path).sources[0].faults


def test_damaged_export_has_the_same_energy_and_reports_its_faults(tmp_path: Path) -> None:
    """Lines are not JSON or not series; series are repeated, split, unordered or unequal; the last line is cut off."""
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    labels = {"__name__": ENERGY, "instance": "n1", "card": "0", "user": "u"}
    joules = sample(1, 60, lambda t: 100 * t)
    valid = format_line(labels, joules)
    other = format_line({**labels, "card": "1"}, sample(1, 60, lambda t: 50 * t))
    lines = [
        format_line(labels, joules[40:]), "<html>502</html>", valid, '{"metric":{}}', format_line(labels, joules[:41]),
        json.dumps({"metric": {**labels, "card": "2"}, "values": [1.0, 2.0], "timestamps": [1]}), "",
        json.dumps({"timestamps": json.loads(other)["timestamps"], "values": [str(50.0 * t) for t, _ in joules],
                    "metric": {"user": "u", **{**labels, "card": "1"}}}),
        format_line({**labels, "card": "3"}, joules)[:200],
    ]  # fmt: skip
    path = tmp_path / EXPORT
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(150 * 40)
    faults = collect_telemetry(tmp_path).sources[0].faults
    for fault in (
        f"1 lines that are not JSON (first: {path.name}:2)", f"1 lines that are not a series (first: {path.name}:4)",
        "1 lines with unequal numbers of values and times", f"1 truncated last line (first: {path.name}:9)",
        "duplicate samples", "samples out of order",
    ):  # fmt: skip
        assert fault in faults


def test_json_answer_of_query_range_is_read(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    pairs = [[T0 + t, f"{100.0 * t}"] for t in range(61)]
    result = [{"metric": {"__name__": ENERGY, "instance": "n1", "card": "0"}, "values": pairs}]
    path = tmp_path / EXPORT
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}))
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(4000)


def test_csv_files_give_the_same_values_as_the_raw_export(tmp_path: Path) -> None:
    """The CSV files have a grid with blanks, times with and without fractions, and names with a leading blank."""
    recording = Recording().add(POWER, "n1", sample(1, 60, 300.0), card="0")
    recording.add(POWER, "n1", sample(2.5, 60, 100.0), card="1")
    recording.add("rocm_utilization_percentage", "n1", sample(1, 60, lambda t: t), card="0")
    for root in (tmp_path / "raw", tmp_path / "csv"):
        write_case(root, "a", 10, 50, nodes=["n1"])
    recording.write(tmp_path / "raw" / EXPORT)
    recording.write_csv(tmp_path / "csv/runs/mine/jobs/job.17.omnistat/omnistat-rocm.gpu.csv", "card")
    flat = tmp_path / "csv/runs/mine/jobs/job.17.omnistat/omnistat-host-proc-io-inventory.csv"
    flat.write_text("pid,cmd\n1,init\n")
    raw, from_csv = (get_usage(root, "a") for root in (tmp_path / "raw", tmp_path / "csv"))
    assert raw.energy_j == {"accelerator": pytest.approx(400 * 40)}
    assert from_csv.energy_j == pytest.approx(raw.energy_j)
    assert from_csv.quantities == pytest.approx(raw.quantities)
    assert raw.quantities["accelerator_utilization_percent"] == pytest.approx(30.0)


def test_hardware_counters_become_operations_and_bytes_per_second(tmp_path: Path) -> None:
    """An instruction has 64 lanes, a fused multiply-add is two operations, a matrix unit 512, and memory is in KiB."""
    write_case(tmp_path, "a", 10, 50, nodes=["n1", "n2"])
    recording = Recording()
    rates = {"SQ_INSTS_VALU_ADD_F64": 1e6, "SQ_INSTS_VALU_FMA_F64": 2e6, "SQ_INSTS_VALU_TRANS_F32": 3e6,
             "SQ_INSTS_VALU_MFMA_MOPS_F64": 4e6, "MFMA_MOPS_BF16": 5e6,
             "FETCH_SIZE": 6e6, "WRITE_SIZE": 1e6}  # fmt: skip
    for node in ("n1", "n2"):
        for name, rate in rates.items():
            samples = sample(1, 60, lambda t, r=rate: r * t)
            labels = {"card": "0", "name": name, "source": "rocprofiler"}
            recording.add("omnistat_hardware_counter", node, samples, **labels)
    recording.write(tmp_path / EXPORT)
    measured = get_usage(tmp_path, "a").quantities
    flop = 64 * (1e6 + 2 * 2e6 + 3e6) + 512 * (4e6 + 5e6)
    assert measured["counter_gflop_per_s"] == pytest.approx(2 * flop / 1e9)
    assert measured["counter_gb_per_s"] == pytest.approx(2 * 7e6 * 1024 / 1e9)
    assert get_usage(tmp_path, "a").unavailable_reason == "no power or energy sensor"


def test_counters_that_restart_with_each_sample_are_summed(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    rng = random.Random(1)
    values = [(float(t), 1e6 * rng.uniform(0.5, 1.5)) for t in range(61)]
    recording = Recording().add("omnistat_hardware_counter", "n1", values, card="0", name="SQ_INSTS_VALU_ADD_F64")
    recording.write(tmp_path / EXPORT)
    expected = 64 * sum(v for t, v in values if 10 < t <= 50)
    assert get_usage(tmp_path, "a").quantities["counter_gflop_per_s"] == pytest.approx(expected / 40 / 1e9)
    assert "1 counters that restart with each sample" in collect_telemetry(tmp_path).sources[0].faults


def test_case_shorter_than_two_intervals_has_no_energy(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 20, 40, nodes=["n1"])
    Recording().add(ENERGY, "n1", sample(15, 90, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    usage = get_usage(tmp_path, "a")
    assert usage.energy_j == {}
    assert usage.unavailable_reason == "too short: intervals of 20 s, samples every 15 s"


def test_energy_of_quickly_alternating_work_is_regressed(tmp_path: Path) -> None:
    """Two precisions of 120 and 300 W alternate within fractions of a second; noisy samples are taken each second."""
    rng = random.Random(0)
    now, samples, joules, energy_curve = 5.0, [], 0.0, [(0.0, 0.0), (5.0, 0.0)]
    for k in range(900):
        name, watts = (("fp64", 300.0), ("fp32", 120.0))[k % 2]
        seconds = rng.uniform(0.05, 0.6)
        now, joules = now + seconds, joules + watts * seconds
        energy_curve.append((now, joules))
        samples.append({"event": "sample", "precision": name, "phase": "training", "round": k, "duration_s": seconds,
                        "structures": 10, "is_warmup": False, "time_s": T0 + now})  # fmt: skip
    write_case(tmp_path, "a", 1, now + 4, nodes=["n1"], program="precision", events=samples)

    def read_noisy_counter(t: float) -> float:
        k = next((k for k, (u, _) in enumerate(energy_curve) if u >= t), len(energy_curve))
        if k == len(energy_curve):
            return joules
        (u, e), (v, f) = energy_curve[max(k - 1, 0)], energy_curve[k]
        return (e if v <= u else e + (f - e) * (t - u) / (v - u)) + rng.gauss(0.0, 3.0)

    Recording().add(ENERGY, "n1", sample(1, now + 10, read_noisy_counter), card="0").write(tmp_path / EXPORT)
    for name, watts in (("fp64", 300.0), ("fp32", 120.0)):
        usage = get_usage(tmp_path, "a", "precision", f"training {name}")
        assert usage.energy_j["accelerator"] / usage.window.seconds == pytest.approx(watts, rel=0.15)
        assert "regression over alternating windows, within" in usage.methods["accelerator"]


def test_export_is_read_again_only_after_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    path = Recording().add(ENERGY, "n1", sample(1, 60, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    first = get_usage(tmp_path, "a")
    with monkeypatch.context() as patched:
        patched.setattr("harness.telemetry.collect.compute_usage", lambda *_: pytest.fail("the export was read again"))
        second = get_usage(tmp_path, "a")
    assert (second.energy_j, second.methods, second.quantities) == (first.energy_j, first.methods, first.quantities)
    Recording().add(ENERGY, "n1", sample(1, 60, lambda t: 300 * t), card="0").write(path)
    assert get_usage(tmp_path, "a").energy_j["accelerator"] == pytest.approx(3 * first.energy_j["accelerator"])


def test_case_without_telemetry_has_hours_and_no_energy(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 0, 1800, nodes=["n1", "n2"], device="cuda")
    row = build_cost_tables(load_runs(tmp_path / "runs"), collect_telemetry(tmp_path))["cost_cases"].iloc[0]
    assert (row["gpu_hours"], row["node_hours"], row["unavailable_reason"]) == (8.0, 1.0, "no telemetry")
    assert math.isnan(row["energy_j"])


def test_energy_is_withheld_if_nodes_differ_in_devices(tmp_path: Path) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1", "n2"])
    recording = Recording()
    for node, cards in (("n1", 8), ("n2", 7)):
        for card in range(cards):
            recording.add(ENERGY, node, sample(1, 60, lambda t: 100 * t), card=str(card))
    recording.write(tmp_path / EXPORT)
    usage = get_usage(tmp_path, "a")
    assert usage.energy_j == {}
    assert usage.unavailable_reason == "accelerator: nodes with 7 and with 8 devices"


def test_gpu_hours_of_a_trial_are_those_of_its_nodes(tmp_path: Path) -> None:
    trial = make_trial_event(0, 0, 1800, ["n2"])
    write_case(tmp_path, "a", 0, 3600, nodes=["n1", "n2"], program="hpo", events=[trial], trial={"device": "cuda"})
    Recording().add(ENERGY, "n2", sample(15, 3600, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    tables = build_cost_tables(load_runs(tmp_path / "runs"), collect_telemetry(tmp_path))
    assert tables["cost_cases"].iloc[0]["gpu_hours"] == 16.0
    assert tables["cost_parts"].iloc[0]["gpu_hours"] == 4.0


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("metric,rocm_energy_joules\ninstance,n1\ncard,0\ntimestamp,\n", "1 files without samples"),
        ("metric,rocm_energy_joules\ninstance,n1\nca", "1 files with label rows of unequal length"),
        (
            "metric,rocm_energy_joules\ninstance,n1\ncard,0\ntimestamp,\n2026-11-22 10:33:17,1,2,3\n",
            "1 rows that are too long",
        ),
        (
            "metric,rocm_energy_joules\ninstance,n1\ncard,0\ntimestamp,\n2026-11-22 10:33:17,\xff\n",
            "1 values that are not numbers",
        ),
        (
            "metric,rocm_energy_joules\ninstance,n1\ncard,0\ntimestamp,\n2026-11-22 10:33:17,inf\n",
            "1 values that are not numbers",
        ),
        ("metric,rocm_energy_joules\ninstance,n1\n2026-11-22 10:33:17,1\n", "1 files without a row `timestamp`"),
    ],
)
def test_damaged_csv_file_is_reported(tmp_path: Path, content: str, fault: str) -> None:
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    path = tmp_path / "runs/mine/jobs/job.17.omnistat/omnistat-rocm.gpu.csv"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin-1")
    assert fault in collect_telemetry(tmp_path).sources[0].faults


def test_order_of_rows_byte_order_marks_trailing_commas_and_quoted_labels_change_nothing(tmp_path: Path) -> None:
    path = tmp_path / "omnistat-rocm.gpu.csv"
    Recording().add(POWER, "n1", sample(1, 60, 300.0), card="0", marker="ab").write_csv(path, "card", "marker")
    expected = CsvExport(tmp_path)
    (expected_series,), spans = list(expected.iter_series()), expected.get_spans()
    *labels, first, second = path.read_text().partition("timestamp,\n")
    text = "".join([*labels, first]).replace("marker,ab", 'marker,"a,b"')
    path.write_text("\ufeff" + text + "".join(f"{line},\n" for line in reversed(second.splitlines())))
    export = CsvExport(tmp_path)
    (series,) = export.iter_series()
    assert series.times.tolist() == expected_series.times.tolist()
    assert series.labels["marker"] == "a,b"
    assert export.get_spans() == spans
    assert export.faults.format_summary() == ""


def test_csv_file_without_data_columns_is_reported(tmp_path: Path) -> None:
    """The rows of such a file contain only times, since its label rows contain only the names of the levels."""
    write_case(tmp_path, "a", 10, 50, nodes=["n1"])
    path = tmp_path / "runs/mine/jobs/job.17.omnistat/omnistat-rocm.gpu.csv"
    path.parent.mkdir(parents=True)
    path.write_text("metric\ninstance\ntimestamp\n2026-11-22 10:33:17\nno time\n2026-11-22 10:33:18,5\n")
    telemetry = collect_telemetry(tmp_path)
    assert telemetry.usages == []
    (source,) = telemetry.sources
    assert source.kind == "CSV export"
    assert "1 rows without a time" in source.faults
    assert "1 rows that are too long" in source.faults


def test_parts_of_cases_in_two_campaigns_are_separate() -> None:
    row = {"case": "a", "scope": "epoch", "name": "0", "energy_per_result_j": 1.0, "work_unit": "structure"}
    rows = [row | {"campaign": name, "power_w": power_w} for name, power_w in (("local", 10.0), ("slurm", 30.0))]
    assert [line[-1] for line in build_parts_block(pd.DataFrame(rows)).rows] == ["10", "30"]
