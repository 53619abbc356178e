"""Every relevant line of a HydraGNN log is read with its location, and other files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.main import main
from harness.experiments.hydragnn.metrics import build_tables
from harness.importers.hydragnn.files import Line
from harness.importers.hydragnn.log_parser import split_runs
from harness.results.runs import load_runs
from tests.conftest import read_pages

LOG = """\
srun: job 123 started
0: Epoch: 00, Train Loss: 0.50000000, Val Loss: 0.40000000, Test Loss: 0.45000000
0: Tasks Val Loss: [12.5, 0.11, 0.3]
0: Epoch: 01, Train Loss: nan, Val Loss: 3.0e-01, Test Loss: 0.35
Tasks Val Loss: [10.5, 0.09, 0.2]
3: Epoch is a word
0: Process 0 - Local timer:  train_validate_test  :  123.45
1: Process 1 - Local timer:  train_validate_test  :  125.00
Throughput:          738.1 structures/s
"""
TRACE = "rank,label,count,wallclock\n{rank},train,2,{seconds}\n{rank},forward,200,4.5\nnonsense\n"
ENERGY_NAME = "name ncalls mean total median std_dev max min\ntrain 2 1e6 2000000 1e6 0 1e6 1e6\n"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "frontier" / "job-123"
    folder.mkdir(parents=True)
    (folder / "job-123.out").write_text(LOG)
    (folder / "gp_full.p0").write_text(TRACE.format(rank=0, seconds=10.0))
    (folder / "gp_full.p1").write_text(TRACE.format(rank=1, seconds=14.0))
    (folder / "rocm_energy.p0").write_text(ENERGY_NAME)
    (tmp_path / "frontier" / "notes.md").write_text("nothing")
    return tmp_path / "frontier"


def test_logs_become_tables_figures_and_a_page(logs: Path, tmp_path: Path) -> None:
    out = tmp_path / "results"
    assert main(["import", "hydragnn", str(logs), "--out", str(out)]) == 0
    tables = build_tables(load_runs(out / "runs"))
    epochs = tables["hydragnn_epochs"].set_index("epoch")
    assert epochs["validation_loss"].tolist() == [0.4, 0.3]
    assert epochs["loss"].isna().tolist() == [False, True]
    assert epochs.loc[0, ["validation_energy", "validation_energy_per_atom", "validation_force"]].tolist() == [
        12.5,
        0.11,
        0.3,
    ]
    assert epochs["line"].tolist() == [2, 4]
    regions = tables["hydragnn_regions"].set_index("region")
    assert regions.loc["train", ["ranks", "duration_mean_s", "duration_max_s", "energy_j"]].tolist() == [
        2,
        12.0,
        14.0,
        2.0,
    ]
    assert regions.loc["forward", "calls"] == 400
    (run,) = tables["hydragnn_runs"].to_dict("records")
    assert (run["inference_structures_per_s"], run["train_validate_test_s"]) == (738.1, 125.0)
    page = read_pages(out)
    assert "read from the logs of 1 run of HydraGNN" in page
    assert (out / "figures" / "hydragnn-losses.svg").exists()
    assert main(["import", "hydragnn", str(logs), "--out", str(out)]) == 0
    assert len(load_runs(out / "runs")) == 1


def test_folder_without_logs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.log").write_text("hello\n")
    assert main(["import", "hydragnn", str(tmp_path), "--out", str(tmp_path / "o")]) == 2
    assert "no log of HydraGNN here; expected lines such as" in capsys.readouterr().err
    assert main(["import", "hydragnn", str(tmp_path / "none")]) == 2
    assert "no such file or folder" in capsys.readouterr().err
    assert main(["import", "gromacs", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    "line",
    [
        "Epoch: 1, Train Loss: 0.1",
        "0: Epoch: x, Train Loss: 1, Val Loss: 1, Test Loss: 1",
        "Throughput: fast",
        "\x00\xff",
    ],
)
def test_incomplete_line_gives_no_result(line: str) -> None:
    (segment,) = split_runs([Line(1, line)], Path("a"))
    assert not segment.has_results
