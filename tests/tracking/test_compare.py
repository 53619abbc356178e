"""`harness compare` reports the differences between runs, stages, precisions and systems, and no others."""

from __future__ import annotations

import csv
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from harness.cli.main import main


def write_scaling_run(
    folder: Path, rates: Sequence[float], *, name: str = "weak-1", system: str = "here", **axis_values: str
) -> Path:
    """Write a finished run whose throughput has the samples `rates`."""
    folder.mkdir(parents=True)
    case = {"id": folder.name, "name": name, "suite": "scaling", "system": system, "program": "data_parallel",
            "parameters": {"precision": "fp32"}, "axis_values": axis_values}  # fmt: skip
    events = [
        {"event": "start", "time_s": 1.0}, {"event": "fact", "name": "throughput_structures_per_s",
        "value": list(rates)},
        {"event": "done", "time_s": 9.0},
    ]  # fmt: skip
    return write_case_files(folder, case, events)


def write_ladder_run(
    folder: Path, stages: dict[str, Callable[[int], float]], rounds: int = 10, precision: str = "fp32"
) -> Path:
    """Write a finished ladder; stages: name -> seconds in each round."""
    folder.mkdir(parents=True)
    case = {"id": folder.name, "name": f"ladder-{precision}", "suite": "ladder", "system": "here", "program": "ladder",
            "parameters": {"precision": precision}, "axis_values": {"precision": precision}}  # fmt: skip
    samples = [
        {"event": "sample", "stage": stage, "round": k, "batch": 0, "structures": 100, "device_s": seconds(k),
         "neighbour_lists_s": 0.1, "collation_s": 0.1, "transfer_s": 0.1}
        for k in range(rounds)
        for stage, seconds in stages.items()
    ]  # fmt: skip
    return write_case_files(
        folder, case, [{"event": "start", "time_s": 1.0}, *samples, {"event": "done", "time_s": 9.0}]
    )


def write_case_files(folder: Path, case: dict[str, object], events: Sequence[dict[str, object]]) -> Path:
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "events.jsonl").write_text("".join(json.dumps({"time_s": 2.0, **e}) + "\n" for e in events))
    (folder / "exit_code").write_text("0\n8\n")
    return folder


def test_reason_is_printed_if_the_only_run_is_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_scaling_run(tmp_path / "runs" / "a" / "1", [1.0])
    (run / "case.json").write_text("{")
    assert main(["compare", "--out", str(tmp_path), "campaign=a", "campaign=b"]) == 2
    output = capsys.readouterr()
    assert "no finished runs here" in output.err
    assert f"not compared: {run} is unreadable: case.json" in output.out


def run_compare(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str
) -> dict[tuple[str, str], dict[str, str]]:
    """Run `harness compare` and return the rows of its table by case and metric."""
    path = tmp_path / "compared.csv"
    assert main(["compare", *arguments, "--csv", str(path)]) == 0
    capsys.readouterr()
    with path.open() as table:
        return {(row["name"], row["metric"]): row for row in csv.DictReader(table)}


def make_noisy_samples(seed: int, level: float, spread: float = 0.01, n: int = 12) -> list[float]:
    rng = random.Random(seed)
    return [level * (1 + rng.gauss(0, spread)) for _ in range(n)]


@pytest.mark.parametrize(("level", "verdict"), [(100.0, "no difference seen"), (94.0, "worse"), (106.0, "better")])
def test_two_runs_of_a_suite_are_compared_case_by_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], level: float, verdict: str
) -> None:
    for side, seed, rate in (("a", 1, 100.0), ("b", 2, level)):
        write_scaling_run(tmp_path / side / "runs/scaling-here/one", make_noisy_samples(seed, rate), ranks="1")
        write_scaling_run(
            tmp_path / side / "runs/scaling-here/two", make_noisy_samples(seed + 10, 50.0), name="weak-2", ranks="2"
        )
    rows = run_compare(capsys, tmp_path, str(tmp_path / "a"), str(tmp_path / "b"))
    row = rows["weak-1", "throughput"]
    assert row["verdict"] == verdict
    assert float(row["low"]) < level / 100 < float(row["high"])
    assert rows["weak-2", "throughput"]["verdict"] == "no difference seen"
    assert rows["weak-1", "wall time"]["verdict"] == "too few samples"


def test_interleaved_stages_are_compared_round_by_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The machine slows down fivefold during the run, which would hide a difference of 3% between unpaired samples."""
    write_ladder_run(
        tmp_path / "runs/ladder-here/x", {"baseline": lambda k: 1.0 + 0.5 * k, "fast": lambda k: 0.97 * (1.0 + 0.5 * k)}
    )
    row = run_compare(capsys, tmp_path, "stage=baseline", "stage=fast", "--out", str(tmp_path))[
        "ladder-fp32", "throughput"
    ]
    assert row["verdict"] == "better"
    assert float(row["ratio"]) == pytest.approx(1 / 0.97)
    assert row["paired"] == "True"


def test_precisions_and_systems_are_matched_by_their_other_axes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision, seconds in (("fp64", 2.0), ("fp32", 1.0)):
        stages = {stage: (lambda k, s=seconds * m: s + 0.001 * k) for stage, m in (("baseline", 10), ("fast", 1))}
        write_ladder_run(tmp_path / f"runs/ladder-here/{precision}", stages, precision=precision)
    rows = run_compare(capsys, tmp_path, "precision=fp64", "precision=fp32", "--out", str(tmp_path))
    rates = {what: row for (what, metric), row in rows.items() if metric == "throughput"}
    assert {what: row["verdict"] for what, row in rates.items()} == {"stage baseline": "better", "stage fast": "better"}
    assert all(float(row["ratio"]) == pytest.approx(2.0, rel=0.01) for row in rates.values())
    for system, rate in (("here", 10.0), ("there", 30.0)):
        write_scaling_run(tmp_path / f"runs/scaling-{system}/{system}", make_noisy_samples(3, rate), system=system)
    rows = run_compare(
        capsys, tmp_path, "system=here", "system=there", "--out", str(tmp_path), "--metric", "throughput"
    )
    assert [row["verdict"] for row in rows.values()] == ["better"]


def test_verdict_reports_noise_that_hides_a_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, seed in (("a", 1), ("b", 2)):
        write_scaling_run(tmp_path / side / "one", make_noisy_samples(seed, 100.0, spread=0.3))
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--metric", "throughput"]) == 0
    assert re.search(r"too noisy, > \d+\.\d% would show", capsys.readouterr().out)


def test_of_200_equal_cases_at_most_one_is_called_different(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for side, seed in (("a", 0), ("b", 1000)):
        for k in range(200):
            write_scaling_run(tmp_path / side / f"c{k}", make_noisy_samples(seed + k, 100.0, n=8), name=f"c{k}")
    rows = run_compare(capsys, tmp_path, str(tmp_path / "a"), str(tmp_path / "b"), "--metric", "throughput")
    assert len(rows) == 200
    assert sum(row["verdict"] in ("better", "worse") for row in rows.values()) <= 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("none", "stage=a"), "none: no such folder; a side is PATH, KEY=VALUE or PATH@KEY=VALUE"),
        (("stag=a", "stage=fast"), "stag=a: no run has a key 'stag' (did you mean 'stage'?)"),
        (
            ("stage=baselin", "stage=fast"),
            "no run with stage=baselin (did you mean 'baseline'?); there are: baseline, fast",
        ),
        (("stage=", "stage=fast"), "stage=: expected KEY=VALUE,... got 'stage='"),
        (("stage=fast", "runs@"), "runs@: expected KEY=VALUE"),
        (
            ("stage=fast", "stage=baseline", "--metric", "energy"),
            "the two sides have no metric of the same case in common",
        ),
        (("stage=fast",), "the following arguments are required: B"),
    ],
)
def test_invalid_selector_is_an_error_of_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_ladder_run(tmp_path / "runs/ladder-here/x", {"baseline": lambda _: 2.0, "fast": lambda _: 1.0})
    assert main(["compare", *arguments, "--out", "."]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1
