"""Imported exports of Omnistat become cases, and the report shows the energy per result."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.report.render import write_report
from tests.conftest import read_pages
from tests.telemetry.exports import T0, Recording, sample, write_case

POWER = "rocm_average_socket_power_watts"
ANNOTATION = "rmsjob_annotations"


def add_annotation(recording: Recording, marker: str, start: float, end: float) -> None:
    """Add the samples of an annotation: its start time while it is active, and a single 0 when it stops."""
    active = [(t, T0 + start) for t in range(round(start) + 1, round(end))]
    recording.add(ANNOTATION, "n1", [*active, (end, 0.0)], marker=marker, jobid="17")


def read_costs(out: Path) -> dict[str, dict[str, str]]:
    with (out / "tables/cost_cases.csv").open() as table:
        return {row["case"]: row for row in csv.DictReader(table)}


@pytest.mark.parametrize("kind", ["raw", "csv"])
def test_annotation_of_an_export_becomes_a_case(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    recording = Recording().add(POWER, "n1", sample(1, 120, lambda t: 100.0 if t <= 60 else 300.0), card="0")
    add_annotation(recording, "case a", 10, 40)
    add_annotation(recording, "case/b", 70, 100)
    if kind == "raw":
        path = recording.write(tmp_path / "job.jsonl")
    else:
        recording.write_csv(tmp_path / "job/omnistat-all.csv", "card", "marker", "jobid")
        path = tmp_path / "job"
    out = tmp_path / "out"
    assert main(["collect", "--format", "omnistat", str(path), "--out", str(out)]) == 0
    capsys.readouterr()
    costs = read_costs(out)
    assert set(costs) == {"case a", "case/b"}
    assert float(costs["case a"]["energy_j"]) == pytest.approx(100 * 30)
    assert float(costs["case/b"]["energy_j"]) == pytest.approx(300 * 30)


def test_an_export_without_annotations_is_one_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Recording().add(POWER, "n1", sample(1, 100, 250.0), card="0").write(tmp_path / "job.jsonl")
    assert main(["collect", "--format", "omnistat", str(path), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert float(read_costs(tmp_path / "out")["whole-job"]["energy_j"]) == pytest.approx(250 * 100)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file or folder"),
        ("<html>no</html>\n", "no samples of Omnistat here (1 lines that are not JSON (first: job.jsonl:1))"),
        ("", "no samples of Omnistat here"),
    ],
)
def test_file_that_is_not_an_export_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, expected: str
) -> None:
    path = tmp_path / "job.jsonl"
    if content is not None:
        path.write_text(content)
    assert main(["collect", "--format", "omnistat", str(path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert len(error.splitlines()) == 1


def test_table_has_energy_per_result_next_to_throughput(tmp_path: Path) -> None:
    """An epoch evaluates 640 structures in 10 s at 64 W, which is 1 J per structure."""
    epochs = [
        {"event": "epoch", "epoch": k, "is_warmup": k == 0, "structures": 640, "train_s": 10.0, "train_mean_s": 10.0,
         "wait_s": 0.0, "wait_mean_s": 0.0, "time_s": T0 + 10 + 10 * (k + 1)}
        for k in range(3)
    ]  # fmt: skip
    facts = {
        "throughput_structures_per_s": [64.0, 64.0],
        "ranks": [{"rank": 0, "host": "n1", "node": "n1", "cores": 8}],
        "workload": {"batch_size": 8, "global_batch_size": 64, "datasets": []},
        "runtime": {"precision": "fp32", "device": "cpu", "device_name": "a CPU"},
    }
    events = [*epochs, *({"event": "fact", "name": k, "value": v, "time_s": T0 + 40} for k, v in facts.items())]
    write_case(tmp_path, "one", 10, 40, nodes=["n1"], events=events, program="data_parallel", device="cuda")
    Recording().add(POWER, "n1", sample(1, 60, 64.0), card="0").write(tmp_path / "runs/mine/jobs/a.omnistat.jsonl")
    write_report(tmp_path)
    with (tmp_path / "tables/scaling.csv").open() as table:
        row = next(csv.DictReader(table))
    assert float(row["energy_per_result_j"]) == pytest.approx(1.0)
    with (tmp_path / "tables/cost_parts.csv").open() as table:
        parts = list(csv.DictReader(table))
    assert [float(p["energy_per_result_j"]) for p in parts] == pytest.approx([1.0] * 3)
    assert "J/structure" in (tmp_path / "scaling.html").read_text()
    assert "GPU-hours" in read_pages(tmp_path)
