"""Logs are imported as HydraGNN's job scripts write them: each run counts once, with its parameters and rates."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.cli.main import main
from harness.experiments.hydragnn.metrics import build_tables
from harness.importers.hydragnn import import_logs
from harness.results.runs import load_runs

COMMAND = "0: Command: gfm_mlip_all_mpnn.py --log={name} --everyone --multi --multi_model_list=ANI1x,MPTrj {more}\n\n"
CONFIG = {
    "NeuralNetwork": {
        "Architecture": {"mpnn_type": "EGNN", "hidden_dim": 866, "num_conv_layers": 4},
        "Training": {"batch_size": 128, "num_epoch": 4, "precision": "fp64", "Optimizer": {"type": "AdamW"}},
    }
}


def format_epochs(first: int, *losses: float, prefix: str = "0: ") -> str:
    return "".join(
        f"{prefix}Epoch: {first + k:02d}, Train Loss: {loss:.8f}, Val Loss: {loss + 1:.8f}, Test Loss: {loss + 2:.8f}\n"
        for k, loss in enumerate(losses)
    )


def format_trace(rank: int, calls: dict[str, list[float]]) -> str:
    """Return a tracer file with one row per call: the number of calls so far, and the seconds of this call."""
    rows = [f"{rank},{name},{k + 1},{s}\n" for name, durations in calls.items() for k, s in enumerate(durations)]
    return "rank,label,count,wallclock\n" + "".join(rows)


def import_tables(folder: Path, tmp_path: Path) -> dict[str, pd.DataFrame]:
    import_logs(folder, tmp_path / "out")
    return build_tables(load_runs(tmp_path / "out/runs"))


def get_losses(table: pd.DataFrame) -> dict[int, float]:
    return dict(zip(table["epoch"], table["loss"], strict=True))


def write_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_scaling_run(folder: Path) -> None:
    """Write the files of two ranks with three traced epochs of 20 steps each; rank 1 is the slower one."""
    write_file(folder / "run.log", COMMAND.format(name=folder.name, more="--batch_size=200 --precision=bf16"))
    write_file(folder / "config.json", json.dumps(CONFIG))
    for rank, slow in ((0, 1.0), (1, 1.5)):
        calls = {"train": [10 * slow] * 3, "opt_step": [0.01] * 60, "forward": [0.1 * slow] * 60}
        write_file(folder / f"gp_full.p{rank}", format_trace(rank, calls))
        write_file(folder / f"rocm_energy.p{rank}", "name, ncalls, mean, total, median, std_dev, max, min\n"
              "train, 3, 1e9, 3e9, 1e9, 0.0, 1e9, 1e9\nforward, 60, nan, nan, nan, nan, nan, nan\n")  # fmt: skip


def test_each_tracer_row_is_a_call_and_each_file_a_rank(tmp_path: Path) -> None:
    write_scaling_run(tmp_path / "GFM")
    # The table lists the same calls, which count once.
    table = "Stats for thread 0:\n      Called  Recurse  Wall  max  min\n  train   3   -   30.0  10.0  10.0\n"
    write_file(tmp_path / "GFM/gp_timing.p0", table)
    tables = import_tables(tmp_path / "GFM", tmp_path)
    regions = tables["hydragnn_regions"].set_index("region")
    columns = ["ranks", "calls", "duration_mean_s", "duration_max_s", "imbalance", "energy_j"]
    assert regions.loc["train", columns].tolist() == pytest.approx([2, 6, 37.5, 45.0, 1.2, 6000.0])
    assert regions.loc["forward", columns[:-1]].tolist() == pytest.approx([2, 120, 7.5, 9.0, 1.2])
    assert pd.isna(regions.loc["forward", "energy_j"])
    assert "2 rows that are not an energy" in tables["hydragnn_runs"].loc[0, "notes"]


def test_run_with_parameters_has_a_training_throughput(tmp_path: Path) -> None:
    write_scaling_run(tmp_path / "GFM")
    (run,) = import_tables(tmp_path / "GFM", tmp_path)["hydragnn_runs"].to_dict("records")
    assert run["train_structures_per_s"] == pytest.approx(2 * 200 * 60 / 45.0)
    assert run["steps"] == 60
    case = json.loads((tmp_path / "out/runs/hydragnn-original/GFM/case.json").read_text())
    expected = {"mpnn_type": "EGNN", "hidden_dim": 866, "num_conv_layers": 4, "batch_size": 200, "precision": "bf16",
                "num_epoch": 4, "datasets": ["ANI1x", "MPTrj"], "ranks": 2, "optimizer": "AdamW"}  # fmt: skip
    assert {name: case["parameters"].get(name) for name in expected} == expected
    assert case["ranks"] == 2


def test_tracer_table_is_used_if_there_are_no_rows(tmp_path: Path) -> None:
    table = (
        "GPTL version 8\n\nStats for thread 0:\n                 Called  Recurse     Wall      max      min\n"
        "  train               3     -       30.500   10.500   10.000\n"
        "*   opt_step    1.2e+06     -       12.250    0.100    0.001\n\nNumber of calls: 7\n"
        "Stats for thread 1:\n  train               9     -       99.000   10.500   10.000\n"
    )
    write_file(tmp_path / "logs/gp_timing.p0", table)
    regions = import_tables(tmp_path / "logs", tmp_path)["hydragnn_regions"].set_index("region")
    assert regions.loc["train", ["calls", "duration_mean_s"]].tolist() == [3, 30.5]
    assert regions.loc["opt_step", ["calls", "duration_mean_s"]].tolist() == [1_200_000, 12.25]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"config.json": None, "run.log": None}, "no batch size in config.json or a command line"),
        ({"gp_full.p0": None}, "no tracer files of ranks 0"),
        (
            {"gp_full.p0": format_trace(0, {"train": [1.0]}), "gp_full.p1": None},
            "no tracer files with the regions train",
        ),
    ],
)
def test_throughput_without_sufficient_data_is_withheld(
    tmp_path: Path, changes: dict[str, str | None], reason: str
) -> None:
    write_scaling_run(tmp_path / "GFM")
    for name, content in changes.items():
        if content is None:
            (tmp_path / "GFM" / name).unlink()
        else:
            write_file(tmp_path / "GFM" / name, content)
    for path in tmp_path.glob("GFM/rocm*"):
        path.unlink()
    (run,) = import_tables(tmp_path / "GFM", tmp_path)["hydragnn_runs"].to_dict("records")
    assert pd.isna(run["train_structures_per_s"])
    assert reason in run["unavailable_reason"]


def test_rank_count_is_read_from_the_launcher(tmp_path: Path) -> None:
    folder = tmp_path / "logs/GFM"
    write_scaling_run(folder)
    (folder / "gp_full.p1").unlink()
    line = "srun --nodelist=frontier[1-4] -N4 -n32 -c7 python -u /x/gfm_mlip_all_mpnn.py --log=GFM --batch_size=200\n"
    write_file(tmp_path / "job-7.out", line + COMMAND.format(name="GFM", more="--batch_size=200"))
    (run,) = import_tables(tmp_path, tmp_path)["hydragnn_runs"].to_dict("records")
    assert (run["ranks"], run["nodes"]) == (32, 4)
    assert run["train_structures_per_s"] == pytest.approx(32 * 200 * 60 / 30.0)
    assert run["unavailable_reason"] == "from the tracer files of 1 of 32 ranks"


@pytest.mark.parametrize("has_command", [True, False])
def test_copies_of_a_log_count_once(tmp_path: Path, has_command: bool) -> None:
    folder = tmp_path / "GFM"
    header = COMMAND.format(name="GFM", more="") if has_command else ""
    text = header + format_epochs(0, 0.5, 0.25) + "  Throughput:          738.1 structures/s\n"
    for name in ("run.log", "stdout", "slurm-17.out", "GFM.o123", "x.out.1"):
        write_file(folder / name, text)
    write_file(folder / "labelled.out", header + format_epochs(0, 0.5, 0.25, prefix="0: 0: "))
    with gzip.open(folder / "old.log.gz", "wt") as file:
        file.write(text)
    tables = import_tables(folder, tmp_path)
    assert get_losses(tables["hydragnn_epochs"]) == {0: 0.5, 1: 0.25}
    assert len(tables["hydragnn_epochs"]) == 2
    (run,) = tables["hydragnn_runs"].to_dict("records")
    assert (run["inference_samples"], run["notes"]) == (1, "")


def test_restarted_run_keeps_the_last_version_of_each_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "GFM"
    first, second = format_epochs(0, 0.5, 0.4, 0.3), format_epochs(2, 0.29, 0.2)
    write_file(folder / "job-9.out", first)
    write_file(folder / "job-10.out", second)
    write_file(folder / "run.log", first + second)
    tables = import_tables(folder, tmp_path)
    assert get_losses(tables["hydragnn_epochs"]) == {0: 0.5, 1: 0.4, 2: 0.29, 3: 0.2}
    assert len(tables["hydragnn_epochs"]) == 4
    assert "epoch 2 was repeated after a restart" in tables["hydragnn_runs"].loc[0, "notes"]


def test_two_runs_in_one_file_become_two_cases(tmp_path: Path) -> None:
    job = "".join(
        COMMAND.format(name=name, more=f"--batch_size={batch}") + format_epochs(0, loss, loss / 2)
        for name, batch, loss in (("weak", 200, 0.8), ("strong", 50, 0.6))
    )
    write_file(tmp_path / "job.o123", job)
    for name, loss in (("weak", 0.8), ("strong", 0.6)):
        write_file(
            tmp_path / f"logs/{name}/run.log", COMMAND.format(name=name, more="") + format_epochs(0, loss, loss / 2)
        )
    tables = import_tables(tmp_path, tmp_path)
    batch = tables["hydragnn_runs"].set_index("case")["batch_size"].to_dict()
    assert sorted(batch.values()) == [50, 200]
    assert all(name.endswith(("logs-weak", "logs-strong")) for name in batch)
    assert {case: list(rows["loss"]) for case, rows in tables["hydragnn_epochs"].groupby("case")} == {
        case: [0.8, 0.4] if case.endswith("weak") else [0.6, 0.3] for case in batch
    }


def test_two_unnamed_runs_in_one_file_become_two_cases(tmp_path: Path) -> None:
    tables = import_tables(
        write_file(tmp_path / "two.log", format_epochs(0, 0.5, 0.4) + format_epochs(0, 0.7, 0.6)), tmp_path
    )
    assert [list(rows["loss"]) for _, rows in tables["hydragnn_epochs"].groupby("case")] == [[0.5, 0.4], [0.7, 0.6]]


def test_losses_of_several_ranks_count_once(tmp_path: Path) -> None:
    text = "".join(
        format_epochs(k, loss, prefix=f"{r}: {r}: ") for k, loss in enumerate((0.5, 0.4)) for r in (3, 0, 11)
    )
    assert get_losses(import_tables(write_file(tmp_path / "job.o1", text), tmp_path)["hydragnn_epochs"]) == {
        0: 0.5,
        1: 0.4,
    }


def test_losses_by_component_are_read(tmp_path: Path) -> None:
    parts = "supervised.energy.raw={0} weight=1 weighted={0} supervised.energy_per_atom.raw=0.11 weight=1 weighted=0.11"
    parts += " supervised.forces.raw=0.3 weight=10 weighted=3"
    text = "".join(
        f"0: LossComponents epoch={epoch:02d} split={split} total={total} {parts.format(total)}\n"
        for epoch in (0, 1)
        for split, total in (("train", 4.0 - epoch), ("validation", 5.0 - epoch), ("test", 6.0 - epoch))
    )
    row = import_tables(write_file(tmp_path / "run.log", text), tmp_path)["hydragnn_epochs"].to_dict("records")[1]
    assert [row[k] for k in ("epoch", "loss", "validation_loss", "test_loss")] == [1, 3.0, 4.0, 5.0]
    assert [row[k] for k in ("validation_energy", "validation_energy_per_atom", "validation_force")] == [4.0, 0.11, 0.3]


def test_truncated_last_line_gives_no_number(tmp_path: Path) -> None:
    folder = tmp_path / "GFM"
    write_file(folder / "run.log", format_epochs(0, 0.5, 0.25)[:-6])
    write_file(folder / "gp_full.p0", format_trace(0, {"train": [10.0, 10.0]})[:-2])
    write_file(
        folder / "gp_full.p1",
        format_trace(1, {"train": [10.0, 10.0]}) + "1,train,3,-4\n1,train,9" + "9" * 5000 + ",1\n",
    )
    tables = import_tables(folder, tmp_path)
    assert list(tables["hydragnn_epochs"]["epoch"]) == [0]
    assert tables["hydragnn_regions"].set_index("region").loc["train", "duration_max_s"] == 20.0
    notes = tables["hydragnn_runs"].loc[0, "notes"]
    for note in ("1 last line cut off", "1 rows cut off", "2 rows that are not a call"):
        assert note in notes


def test_linked_folders_become_one_case_each(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write_file(elsewhere / "run.log", format_epochs(0, 0.9))
    folder = tmp_path / "all"
    for name, loss in (("a", 0.5), ("b/c", 0.4)):
        write_file(folder / name / "job-1.out", format_epochs(0, loss))
    (folder / "linked").symlink_to(elsewhere)
    (folder / "b/latest").symlink_to(folder / "a")
    (folder / "b/loop").symlink_to(folder)
    losses = import_tables(folder, tmp_path)["hydragnn_epochs"].set_index("case")["loss"].to_dict()
    assert losses == {"all-a": 0.5, "all-b-c": 0.4, "all-linked": 0.9}
    link = tmp_path / "link"
    link.symlink_to(folder)
    shutil.rmtree(tmp_path / "out")
    assert len(import_tables(link, tmp_path)["hydragnn_runs"]) == 3


def test_skipped_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "GFM"
    write_file(folder / "run.log", format_epochs(0, 0.5) + "0: Epoch: 01, Train Loss: 0.4\n")
    write_file(folder / "notes.md", "nothing\n")
    (folder / "GFM.pk").write_bytes(b"PK\0\0" * 100)
    (folder / "torn.log.gz").write_bytes(gzip.compress(format_epochs(0, *[0.1] * 200).encode())[:60])
    assert main(["import", "hydragnn", str(folder), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "3 files skipped: " in output
    for name in ("GFM.pk (not text)", "notes.md (contains no line of a HydraGNN log)", "torn.log.gz (damaged"):
        assert name in output
    assert (
        "1 lines that could not be read"
        in build_tables(load_runs(tmp_path / "out/runs"))["hydragnn_runs"].loc[0, "notes"]
    )


@pytest.mark.parametrize("content", ["{", "[]", '{"NeuralNetwork": 5}', "[" * 100_000, '{"a":' + "9" * 5000 + "}"])
def test_unreadable_configuration_is_noted(tmp_path: Path, content: str) -> None:
    write_file(tmp_path / "GFM/run.log", format_epochs(0, 0.5))
    write_file(tmp_path / "GFM/config.json", content)
    (run,) = import_tables(tmp_path / "GFM", tmp_path)["hydragnn_runs"].to_dict("records")
    assert "config.json: expected JSON with `NeuralNetwork`" in run["notes"]


def test_energy_of_some_ranks_is_shown_with_their_number(tmp_path: Path) -> None:
    write_scaling_run(tmp_path / "GFM")
    (tmp_path / "GFM/rocm_energy.p1").unlink()
    assert main(["import", "hydragnn", str(tmp_path / "GFM"), "--out", str(tmp_path / "out")]) == 0
    page = "".join(path.read_text() for path in (tmp_path / "out").glob("*.html"))
    assert "3,000 (1 of 2 ranks)" in page
    assert "EGNN" in page


def test_impossible_energy_is_dropped(tmp_path: Path) -> None:
    write_scaling_run(tmp_path / "GFM")
    text = (tmp_path / "GFM/rocm_energy.p1").read_text().replace("3e9", "1e23")
    write_file(tmp_path / "GFM/rocm_energy.p1", text)
    tables: Any = import_tables(tmp_path / "GFM", tmp_path)
    assert tables["hydragnn_regions"].set_index("region").loc["train", ["energy_j", "energy_ranks"]].tolist() == [
        3000.0,
        1,
    ]
    assert "1 energies that imply more than 5,000 W" in tables["hydragnn_runs"].loc[0, "notes"]
