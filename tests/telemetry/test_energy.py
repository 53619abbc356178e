"""Energy and rates of cases: by hand and by the harness, with everything that exports of the real tool can hold."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from harness.experiments.cost.metrics import cost_tables, energy_of
from harness.results.runs import load
from tests.telemetry.exports import T0, Recorded, case, every, gathered, line, trial_event, usage_of

EXPORT = "runs/mine/jobs/job.17.omnistat.jsonl"
ENERGY, POWER = "rocm_energy_joules", "rocm_average_socket_power_watts"


def test_a_case_has_the_energy_between_its_start_and_its_end(tmp_path: Path) -> None:
    """100 W until 40 s, then 300 W: from 30 to 52 s that is 10 s of one and 12 s of the other, whatever the grid."""
    case(tmp_path, "a", 30, 52, nodes=["n1"])
    joules = every(5, 100, lambda t: 7.0 + 100 * min(t, 40) + 300 * max(t - 40, 0))
    Recorded().add(ENERGY, "n1.site.gov:8000", joules, card="0").write(tmp_path / EXPORT)
    usage = usage_of(tmp_path, "a")
    assert usage.energy_j == {"accelerator": pytest.approx(10 * 100 + 12 * 300)}
    assert usage.how == {"accelerator": "counter"}
    assert energy_of(usage) == (pytest.approx(4600), "accelerators", "counter")


def test_power_is_integrated_where_no_counter_is(tmp_path: Path) -> None:
    """The even die of an MI250X carries both, the odd one reports 0 W: the sum is right, the odd ones are counted."""
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    told = Recorded()
    for card in range(8):
        told.add(POWER, "n1", every(1, 60, 0.0 if card % 2 else lambda t: 400.0 + t), card=str(card))
    told.write(tmp_path / EXPORT)
    usage = usage_of(tmp_path, "a")
    assert usage.energy_j["accelerator"] == pytest.approx(4 * (400 * 40 + (50**2 - 10**2) / 2))
    assert usage.how["accelerator"] == "power integrated"
    assert "4 devices that report 0 W" in gathered(tmp_path).sources[0].faults


def test_a_counter_that_never_moves_is_not_believed_while_power_flows(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    told = Recorded().add(ENERGY, "n1", every(1, 60, 0.0), card="0").add(POWER, "n1", every(1, 60, 250.0), card="0")
    told.write(tmp_path / EXPORT)
    usage = usage_of(tmp_path, "a")
    assert usage.energy_j["accelerator"] == pytest.approx(250 * 40)
    assert usage.how["accelerator"] == "power integrated"


@pytest.mark.parametrize(("at", "fault"), [(30, "1 counters set back"), (None, "")])
def test_a_counter_that_is_set_back_loses_nothing_but_one_interval(
    tmp_path: Path, at: float | None, fault: str
) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    joules = every(1, 60, lambda t: 1e6 + 200 * t if at is None or t < at else 200 * (t - at))
    Recorded().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)
    assert gathered(tmp_path).sources[0].faults == fault


def test_a_nonsensical_sample_of_a_counter_is_passed_over(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    joules = every(1, 60, lambda t: 0.0 if t == 30 else 9e8 + 200 * t)
    Recorded().add(ENERGY, "n1", joules, card="0").write(tmp_path / EXPORT)
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(200 * 40)
    assert "1 counter samples that were nonsense" in gathered(tmp_path).sources[0].faults


def test_a_gap_breaks_power_but_not_a_counter(tmp_path: Path) -> None:
    """With a third of a case unsampled there is no telling its energy from power; a counter spans the gap."""
    case(tmp_path, "power", 10, 70, nodes=["n1"])
    case(tmp_path, "counter", 10, 70, nodes=["n2"])
    there = [t for t in range(81) if not 30 < t < 50]
    told = Recorded().add(POWER, "n1", [(t, 250.0) for t in there], card="0")
    told.add(ENERGY, "n2", [(t, 250.0 * t) for t in there], card="0").write(tmp_path / EXPORT)
    assert usage_of(tmp_path, "power").energy_j == {}
    assert usage_of(tmp_path, "counter").energy_j["accelerator"] == pytest.approx(250 * 60)
    assert "gaps" in gathered(tmp_path).sources[0].faults


def test_what_a_node_s_own_sensor_says_goes_before_the_sum_of_parts(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    told = Recorded()
    for name, watts in (("energy", 900), ("cpu_energy", 150), ("memory_energy", 50)):
        told.add(f"omnistat_vendor_{name}_joules", "n1", every(2, 60, lambda t, w=watts: w * t), vendor="cray")
    for accel in "0123":
        told.add("omnistat_vendor_accel_energy_joules", "n1", every(2, 60, lambda t: 100 * t), accel=accel)
    for card in range(8):  # the same accelerators, by another tool
        told.add(POWER, "n1", every(2, 60, 0.0 if card % 2 else 101.0), card=str(card))
    told.write(tmp_path / EXPORT)
    usage = usage_of(tmp_path, "a")
    assert usage.energy_j["accelerator"] == pytest.approx(404 * 40)
    assert energy_of(usage) == (pytest.approx(900 * 40), "whole nodes", "counter")


def test_samples_go_to_a_case_by_time_and_by_node(tmp_path: Path) -> None:
    """Two cases at once on different nodes, two after each other on the same, and a trial in one of them."""
    trial = trial_event(3, 20, 40, ["n2"])
    case(tmp_path, "first", 10, 50, nodes=["n1"])
    case(tmp_path, "beside", 10, 50, nodes=["n2", "n3"], program="hpo", events=[trial])
    case(tmp_path, "after", 50, 90, nodes=["n1"])
    told = Recorded()
    for node, watts in (("n1", 100), ("n2", 200), ("n3", 300)):
        told.add(ENERGY, node, every(1, 100, lambda t, w=watts: w * t), card="0")
    told.write(tmp_path / EXPORT)
    found = {
        (u.window.folder.rsplit("/", 1)[1], u.window.what): u.energy_j["accelerator"] for u in gathered(tmp_path).usages
    }
    assert found == {
        ("first", "case"): pytest.approx(4000),
        ("beside", "case"): pytest.approx(20000),
        ("beside", "trial"): pytest.approx(200 * 20),
        ("after", "case"): pytest.approx(4000),
    }


def test_trials_that_share_nodes_have_no_energy_of_their_own(tmp_path: Path) -> None:
    trials = [trial_event(k, 10 + 10 * k, 30 + 10 * k, []) for k in range(2)]
    case(tmp_path, "a", 10, 50, nodes=["n1"], program="hpo", events=trials)
    Recorded().add(ENERGY, "n1", every(1, 60, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    pieces = cost_tables(load(tmp_path / "runs"), gathered(tmp_path)).pieces
    assert pieces["energy_j"].isna().all()
    assert set(pieces["why_not"]) == {"other trials ran on its nodes meanwhile"}


@pytest.mark.parametrize(("silent", "joules"), [(2, 32 * 100 * 40.0), (8, None)])
def test_a_few_nodes_that_sent_nothing_are_scaled_up_and_many_are_not(
    tmp_path: Path, silent: int, joules: float | None
) -> None:
    nodes = [f"n{k}" for k in range(32)]
    case(tmp_path, "a", 10, 50, nodes=nodes)
    told = Recorded()
    for node in nodes[silent:]:
        told.add(ENERGY, node, every(1, 60, lambda t: 100 * t), card="0")
    told.write(tmp_path / EXPORT)
    row = cost_tables(load(tmp_path / "runs"), gathered(tmp_path)).cases.iloc[0]
    if joules is None:
        assert math.isnan(row["energy_j"])
        assert row["why_not"] == "only 24 of 32 nodes sent samples"
    else:
        assert row["energy_j"] == pytest.approx(joules)
        assert row["energy_by"] == "counter, 30 of 32 nodes scaled up"


def test_a_clock_that_is_an_hour_off_is_set_right(tmp_path: Path) -> None:
    case(tmp_path, "a", 100, 200, nodes=["n1", "n2", "n3", "n4"])
    told = Recorded()
    for k, node in enumerate(("n1", "n2", "n3", "n4")):
        off = 3600 if node == "n3" else k  # collectors start a little apart
        told.add(ENERGY, node, [(t + off, 100.0 * t) for t in range(300)], card="0")
    told.write(tmp_path / EXPORT)
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(4 * 100 * 100, rel=0.02)
    assert "clocks that disagree, set right (first: n3, +3" in gathered(tmp_path).sources[0].faults


def test_a_damaged_export_gives_the_same_numbers_and_says_what_was_wrong(tmp_path: Path) -> None:
    """Lines that are no JSON, no series, unequal; a series twice, in pieces, out of order; the end torn off."""
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    labels = {"__name__": ENERGY, "instance": "n1", "card": "0", "user": "u"}
    joules = every(1, 60, lambda t: 100 * t)
    sound = line(labels, joules)
    other = line({**labels, "card": "1"}, every(1, 60, lambda t: 50 * t))
    lines = [
        line(labels, joules[40:]), "<html>502</html>", sound, '{"metric":{}}', line(labels, joules[:41]),
        json.dumps({"metric": {**labels, "card": "2"}, "values": [1.0, 2.0], "timestamps": [1]}), "",
        json.dumps({"timestamps": json.loads(other)["timestamps"], "values": [str(50.0 * t) for t, _ in joules],
                    "metric": {"user": "u", **{**labels, "card": "1"}}}),
        line({**labels, "card": "3"}, joules)[:200],
    ]  # fmt: skip
    path = tmp_path / EXPORT
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(lines))
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(150 * 40)
    said = gathered(tmp_path).sources[0].faults
    for fault in (
        f"1 lines that are no JSON (first: {path.name}:2)", f"1 lines that are no series (first: {path.name}:4)",
        "1 lines with values and times of unequal number", f"1 last line torn off (first: {path.name}:9)",
        "samples twice", "samples out of order",
    ):  # fmt: skip
        assert fault in said


def test_an_answer_of_query_range_is_read_too(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    pairs = [[T0 + t, f"{100.0 * t}"] for t in range(61)]
    result = [{"metric": {"__name__": ENERGY, "instance": "n1", "card": "0"}, "values": pairs}]
    path = tmp_path / EXPORT
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}))
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(4000)


def test_csv_files_give_what_the_raw_export_gives(tmp_path: Path) -> None:
    """Resampled on a grid with blanks, times with and without fractions, a name with a leading blank."""
    told = Recorded().add(POWER, "n1", every(1, 60, 300.0), card="0")
    told.add(POWER, "n1", every(2.5, 60, 100.0), card="1")
    told.add("rocm_utilization_percentage", "n1", every(1, 60, lambda t: t), card="0")
    for root in (tmp_path / "raw", tmp_path / "csv"):
        case(root, "a", 10, 50, nodes=["n1"])
    told.write(tmp_path / "raw" / EXPORT)
    told.write_csv(tmp_path / "csv/runs/mine/jobs/job.17.omnistat/omnistat-rocm.gpu.csv", "card")
    flat = tmp_path / "csv/runs/mine/jobs/job.17.omnistat/omnistat-host-proc-io-inventory.csv"
    flat.write_text("pid,cmd\n1,init\n")
    one, other = (usage_of(root, "a") for root in (tmp_path / "raw", tmp_path / "csv"))
    assert one.energy_j == {"accelerator": pytest.approx(400 * 40)}
    assert other.energy_j == pytest.approx(one.energy_j)
    assert other.figures == pytest.approx(one.figures)
    assert one.figures["accelerator_utilization_percent"] == pytest.approx(30.0)


def test_counters_become_operations_and_bytes_a_second(tmp_path: Path) -> None:
    """64 lanes, two operations a fused multiply-add, 512 a matrix unit, kibibytes of memory; all cards of all nodes."""
    case(tmp_path, "a", 10, 50, nodes=["n1", "n2"])
    told = Recorded()
    rates = {"SQ_INSTS_VALU_ADD_F64": 1e6, "SQ_INSTS_VALU_FMA_F64": 2e6, "SQ_INSTS_VALU_TRANS_F32": 3e6,
             "SQ_INSTS_VALU_MFMA_MOPS_F64": 4e6, "MFMA_MOPS_BF16": 5e6,
             "FETCH_SIZE": 6e6, "WRITE_SIZE": 1e6}  # fmt: skip
    for node in ("n1", "n2"):
        for name, rate in rates.items():
            told.add("omnistat_hardware_counter", node, every(1, 60, lambda t, r=rate: r * t), card="0", name=name,
                     source="rocprofiler")  # fmt: skip
    told.write(tmp_path / EXPORT)
    figures = usage_of(tmp_path, "a").figures
    flop = 64 * (1e6 + 2 * 2e6 + 3e6) + 512 * (4e6 + 5e6)
    assert figures["counted_gflop_per_s"] == pytest.approx(2 * flop / 1e9)
    assert figures["counted_gb_per_s"] == pytest.approx(2 * 7e6 * 1024 / 1e9)
    assert usage_of(tmp_path, "a").why_not == "no power or energy sensor"


def test_counters_that_start_anew_with_each_sample_are_added_up(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    chance = random.Random(1)
    values = [(float(t), 1e6 * chance.uniform(0.5, 1.5)) for t in range(61)]
    told = Recorded().add("omnistat_hardware_counter", "n1", values, card="0", name="SQ_INSTS_VALU_ADD_F64")
    told.write(tmp_path / EXPORT)
    expected = 64 * sum(v for t, v in values if 10 < t <= 50)
    assert usage_of(tmp_path, "a").figures["counted_gflop_per_s"] == pytest.approx(expected / 40 / 1e9)
    assert "1 counters that start anew with each sample" in gathered(tmp_path).sources[0].faults


def test_a_case_shorter_than_two_samples_has_no_energy(tmp_path: Path) -> None:
    case(tmp_path, "a", 20, 40, nodes=["n1"])
    Recorded().add(ENERGY, "n1", every(15, 90, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    usage = usage_of(tmp_path, "a")
    assert usage.energy_j == {}
    assert usage.why_not == "too short: pieces of 20 s, samples every 15 s"


def test_work_that_takes_quick_turns_is_told_apart_by_regression(tmp_path: Path) -> None:
    """Two precisions in turns of fractions of a second, 120 and 300 W, sampled each second through noise."""
    chance = random.Random(0)
    now, samples, joules, at = 5.0, [], 0.0, [(0.0, 0.0), (5.0, 0.0)]
    for k in range(900):
        name, watts = (("fp64", 300.0), ("fp32", 120.0))[k % 2]
        seconds = chance.uniform(0.05, 0.6)
        now, joules = now + seconds, joules + watts * seconds
        at.append((now, joules))
        samples.append({"event": "sample", "precision": name, "task": "training", "round": k, "seconds": seconds,
                        "structures": 10, "discarded": False, "time_s": T0 + now})  # fmt: skip
    case(tmp_path, "a", 1, now + 4, nodes=["n1"], program="precision", events=samples)

    def counter(t: float) -> float:
        k = next((k for k, (u, _) in enumerate(at) if u >= t), len(at))
        if k == len(at):
            return joules
        (u, e), (v, f) = at[max(k - 1, 0)], at[k]
        return (e if v <= u else e + (f - e) * (t - u) / (v - u)) + chance.gauss(0.0, 3.0)

    Recorded().add(ENERGY, "n1", every(1, now + 10, counter), card="0").write(tmp_path / EXPORT)
    for name, watts in (("fp64", 300.0), ("fp32", 120.0)):
        usage = usage_of(tmp_path, "a", "precision", f"training {name}")
        assert usage.energy_j["accelerator"] / usage.window.seconds == pytest.approx(watts, rel=0.15)
        assert "regression over turns, within" in usage.how["accelerator"]


def test_an_export_is_read_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    path = Recorded().add(ENERGY, "n1", every(1, 60, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    first = usage_of(tmp_path, "a")
    with monkeypatch.context() as patched:
        patched.setattr("harness.telemetry.collect.usages", lambda *_: pytest.fail("read again"))
        again = usage_of(tmp_path, "a")
    assert (again.energy_j, again.how, again.figures) == (first.energy_j, first.how, first.figures)
    Recorded().add(ENERGY, "n1", every(1, 60, lambda t: 300 * t), card="0").write(path)
    assert usage_of(tmp_path, "a").energy_j["accelerator"] == pytest.approx(3 * first.energy_j["accelerator"])


def test_without_telemetry_there_are_hours_and_no_energy(tmp_path: Path) -> None:
    case(tmp_path, "a", 0, 1800, nodes=["n1", "n2"], device="cuda")
    row = cost_tables(load(tmp_path / "runs"), gathered(tmp_path)).cases.iloc[0]
    assert (row["gpu_hours"], row["node_hours"], row["why_not"]) == (8.0, 1.0, "no telemetry")
    assert math.isnan(row["energy_j"])


def test_a_card_that_sends_nothing_is_not_left_out_of_a_sum_in_silence(tmp_path: Path) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1", "n2"])
    told = Recorded()
    for node, cards in (("n1", 8), ("n2", 7)):
        for card in range(cards):
            told.add(ENERGY, node, every(1, 60, lambda t: 100 * t), card=str(card))
    told.write(tmp_path / EXPORT)
    usage = usage_of(tmp_path, "a")
    assert usage.energy_j == {}
    assert usage.why_not == "accelerator: nodes with 7 and with 8 devices"


def test_a_trial_holds_the_accelerators_of_its_own_nodes(tmp_path: Path) -> None:
    trial = trial_event(0, 0, 1800, ["n2"])
    case(tmp_path, "a", 0, 3600, nodes=["n1", "n2"], program="hpo", events=[trial], trial={"device": "cuda"})
    Recorded().add(ENERGY, "n2", every(15, 3600, lambda t: 100 * t), card="0").write(tmp_path / EXPORT)
    tables = cost_tables(load(tmp_path / "runs"), gathered(tmp_path))
    assert tables.cases.iloc[0]["gpu_hours"] == 16.0
    assert tables.pieces.iloc[0]["gpu_hours"] == 4.0


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
            "1 values that are no",
        ),
    ],
)
def test_a_damaged_csv_file_is_told(tmp_path: Path, content: str, fault: str) -> None:
    case(tmp_path, "a", 10, 50, nodes=["n1"])
    path = tmp_path / "runs/mine/jobs/job.17.omnistat/omnistat-rocm.gpu.csv"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="latin-1")
    assert fault in gathered(tmp_path).sources[0].faults
