"""The speed test names slow ranks and their nodes, in the log of the job and in the report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness.config.resources import find_resource
from harness.config.system import load_system
from harness.experiments.cost.speed import build_speed_table
from harness.experiments.cost.speed_page import build_speed_section
from harness.protocol.errors import UsageError
from harness.protocol.speed import QUANTITIES, RankSpeed, parse_speeds
from harness.results.runs import load_runs
from harness.telemetry.node_speed import JUDGED, main, score_speeds
from tests.conftest import ROOT
from tests.report.test_report import write_run

ROUNDS = 12


def make_speed(node: str, rank: int, factor: float = 1.0, seed: int = 0, noise: float = 0.01) -> str:
    """Return the line that a rank prints, with independent noise in the rates."""
    random = np.random.default_rng([seed, rank])
    rates = {name: (1e9 * factor * np.exp(random.normal(0, noise, ROUNDS))).tolist() for name in QUANTITIES}
    speed = RankSpeed(node=node, rank=rank, local_rank=0, device="cpu", **rates)
    return msgspec.json.encode(speed).decode()


def write_speeds(path: Path, slow: str = "", nodes: int = 8, seed: int = 0) -> Path:
    lines = [make_speed(f"n{k}", k, 0.8 if f"n{k}" == slow else 1.0, seed) for k in range(nodes)]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_slow_node_of_eight_is_named_20_of_20_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(20):
        main([str(write_speeds(tmp_path / "speed", f"n{seed % 8}", seed=seed))])
        captured = capsys.readouterr()
        assert captured.out == f"n{seed % 8}\n"
        assert captured.err.count("slow: n") == len(JUDGED) + 1
        assert "speed test: 1 of 8 nodes slow" in captured.err


def test_even_nodes_raise_no_alarm_in_20_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(20):
        main([str(write_speeds(tmp_path / "speed", seed=seed))])
        assert capsys.readouterr().out == "\n"


def test_slow_disk_alone_names_no_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nodes may share a disk, and the order in which it serves them says nothing about the nodes."""
    path = write_speeds(tmp_path / "speed")
    speeds = parse_speeds(path.read_text().splitlines())
    speeds[3] = msgspec.structs.replace(speeds[3], writes=[rate / 5 for rate in speeds[3].writes])
    path.write_bytes(b"\n".join(map(msgspec.json.encode, speeds)))
    main([str(path)])
    assert capsys.readouterr().out == "\n"
    [writes] = [scores for scores in score_speeds(speeds) if scores.quantity == "writes"]
    assert writes.relative[3] == pytest.approx(0.2, abs=0.02)


def test_combined_speed_shows_slow_nodes_on_a_noisy_machine() -> None:
    """With 15% noise per round, no single quantity shows a node at 80% as often as all of them together."""
    detections = Counter[str]()
    alarms = 0
    for seed in range(20):
        factors = [0.8 if rank == 5 else 1.0 for rank in range(8)]
        speeds = parse_speeds([make_speed(f"n{k}", k, factor, seed, 0.15) for k, factor in enumerate(factors)])
        detections.update(scores.quantity for scores in score_speeds(speeds) if 5 in scores.slow)
        even = parse_speeds([make_speed(f"n{k}", k, 1.0, 100 + seed, 0.15) for k in range(8)])
        alarms += sum(len(scores.slow) for scores in score_speeds(even))
    assert detections["speed"] > max(detections[name] for name in QUANTITIES)
    assert alarms == 0


def test_slow_node_is_named_although_it_measured_few_rounds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_speeds(tmp_path / "speed", "n5")
    speeds = parse_speeds(path.read_text().splitlines())
    speeds[5] = msgspec.structs.replace(speeds[5], **{name: getattr(speeds[5], name)[:1] for name in QUANTITIES})
    path.write_bytes(b"\n".join(map(msgspec.json.encode, speeds)))
    main([str(path)])
    assert capsys.readouterr().out == "n5\n"


def test_test_without_a_result_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path / "speed")])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("\n", f"speed test: no result in {tmp_path / 'speed'}\n")


def test_launcher_may_number_lines_and_a_cut_line_is_left_out() -> None:
    lines = [f"{k:>2}: {make_speed(f'n{k}', k)}" for k in range(3)]
    lines += ["srun: warning", lines[0][:-20], ""]
    assert [speed.node for speed in parse_speeds(lines)] == ["n0", "n1", "n2"]
    assert list(score_speeds([])) == []


def test_report_names_the_slow_rank(tmp_path: Path) -> None:
    write_run(tmp_path)
    jobs = tmp_path / "runs" / "ladder-local" / "jobs"
    jobs.mkdir(exist_ok=True)
    write_speeds(jobs / "job.7.speed.jsonl", "n5")
    section = build_speed_section(build_speed_table(load_runs(tmp_path / "runs")))
    assert section.finding == "1 of 1 job had slow nodes"
    assert section.paragraphs[0].startswith("Slow in job job.7: n5, rank 5: products at ")
    assert [row[:4] for row in section.tables[0].rows] == [["job.7", name, "8", "8"] for name in (*QUANTITIES, "speed")]


def test_rank_measures_its_speed() -> None:
    command = [sys.executable, "-m", "harness.reference.profiling.speed_test", "0.1", "cpu"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "PMI"))}
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment | {"SLURMD_NODENAME": "n3"}, check=True
    )
    [speed] = parse_speeds(result.stdout.splitlines())
    assert (speed.node, speed.rank, speed.device) == ("n3", 0, "cpu")
    assert all(len(getattr(speed, name)) == ROUNDS for name in QUANTITIES)
    assert len(result.stdout) < 4096  # lines of several ranks do not mix in a pipe


@pytest.mark.parametrize("value", ["121", "-1", "10s"])
def test_duration_of_the_test_is_limited(value: str) -> None:
    with pytest.raises(UsageError, match="speed_test_s"):
        load_system(find_resource("systems", "slurm"), {"speed_test_s": value})


def test_walltime_includes_the_test() -> None:
    path = find_resource("systems", "slurm")
    assert load_system(path, {"speed_test_s": "120"}).overhead_minutes == load_system(path, {}).overhead_minutes + 3
