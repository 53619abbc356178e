"""Exports from elsewhere, of full size too, and what the report says of energy."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.report.render import report
from tests.conftest import pages_of
from tests.telemetry.exports import T0, Recorded, case, every

POWER = "rocm_average_socket_power_watts"
ANNOTATION = "rmsjob_annotations"


def annotated(told: Recorded, marker: str, start: float, end: float) -> None:
    """As the tool does: the time of the start while it stands, 0 once when it has been stopped."""
    standing = [(t, T0 + start) for t in range(round(start) + 1, round(end))]
    told.add(ANNOTATION, "n1", [*standing, (end, 0.0)], marker=marker, jobid="17")


def costs(out: Path) -> dict[str, dict[str, str]]:
    with (out / "tables/cost_cases.csv").open() as table:
        return {row["case"]: row for row in csv.DictReader(table)}


@pytest.mark.parametrize("kind", ["raw", "csv"])
def test_each_annotation_of_an_export_becomes_a_case(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    told = Recorded().add(POWER, "n1", every(1, 120, lambda t: 100.0 if t <= 60 else 300.0), card="0")
    annotated(told, "case a", 10, 40)
    annotated(told, "case/b", 70, 100)
    if kind == "raw":
        place = told.write(tmp_path / "job.jsonl")
    else:
        told.write_csv(tmp_path / "job/omnistat-all.csv", "card", "marker", "jobid")
        place = tmp_path / "job"
    out = tmp_path / "out"
    assert main(["collect", "--format", "omnistat", str(place), "--out", str(out)]) == 0
    capsys.readouterr()
    found = costs(out)
    assert set(found) == {"case a", "case/b"}
    assert float(found["case a"]["energy_j"]) == pytest.approx(100 * 30)
    assert float(found["case/b"]["energy_j"]) == pytest.approx(300 * 30)


def test_an_export_without_annotations_is_one_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Recorded().add(POWER, "n1", every(1, 100, 250.0), card="0").write(tmp_path / "job.jsonl")
    assert main(["collect", "--format", "omnistat", str(place), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert float(costs(tmp_path / "out")["whole-job"]["energy_j"]) == pytest.approx(250 * 100)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file or folder"),
        ("<html>no</html>\n", "no samples of Omnistat here (1 lines that are no JSON (first: job.jsonl:1))"),
        ("", "no samples of Omnistat here"),
    ],
)
def test_what_is_no_export_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, said: str
) -> None:
    place = tmp_path / "job.jsonl"
    if content is not None:
        place.write_text(content)
    assert main(["collect", "--format", "omnistat", str(place), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_energy_stands_beside_throughput(tmp_path: Path) -> None:
    """64 structures an epoch at 64 W and 1 epoch a second: 1 J each."""
    epochs = [
        {"event": "epoch", "epoch": k, "discarded": k == 0, "graphs": 640, "train_s": 10.0, "train_s_mean": 10.0,
         "wait_s": 0.0, "wait_s_mean": 0.0, "time_s": T0 + 10 + 10 * (k + 1)}
        for k in range(3)
    ]  # fmt: skip
    facts = {
        "throughput_graphs_per_s": [64.0, 64.0],
        "ranks": [{"rank": 0, "host": "n1", "node": "n1", "cores": 8}],
        "workload": {"batch_size": 8, "global_batch_size": 64, "sets": []},
        "observed": {"requested": "fp32", "device": "cpu", "device_name": "a CPU"},
    }
    told = [*epochs, *({"event": "fact", "name": k, "value": v, "time_s": T0 + 40} for k, v in facts.items())]
    case(tmp_path, "one", 10, 40, nodes=["n1"], events=told, program="data_parallel", device="cuda")
    Recorded().add(POWER, "n1", every(1, 60, 64.0), card="0").write(tmp_path / "runs/mine/jobs/a.omnistat.jsonl")
    report(tmp_path)
    with (tmp_path / "tables/scaling.csv").open() as table:
        row = next(csv.DictReader(table))
    assert float(row["energy_per_result_j"]) == pytest.approx(1.0)
    with (tmp_path / "tables/cost_pieces.csv").open() as table:
        pieces = list(csv.DictReader(table))
    assert [float(p["energy_per_result_j"]) for p in pieces] == pytest.approx([1.0] * 3)
    assert "J/structure" in (tmp_path / "scaling.html").read_text()
    assert "GPU-hours" in pages_of(tmp_path)
