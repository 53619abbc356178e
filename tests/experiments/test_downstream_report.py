"""Real runs of transfer and screening, of a few seconds each, become tables, verdicts and pages."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.claims.evaluate import judge_papers
from harness.claims.papers import load_papers
from harness.experiments.screening import metrics as screening
from harness.experiments.tables import build_results
from harness.experiments.transfer import metrics as transfer
from harness.protocol.events import read_last_events
from harness.protocol.records import Done
from harness.report.render import write_report
from harness.results.runs import RunRecord, load_runs
from tests.conftest import read_pages
from tests.support.programs import run_program

TRANSFER: dict[str, Any] = {
    "labels": [10, 30], "seeds": 2, "subsets": 1, "max_test_structures": 20, "steps": 4,
    "validation_interval_steps": 2, "batch_size": 4,
}  # fmt: skip
SCREENING: dict[str, Any] = {
    "workload": {"kind": "prototypes", "elements": ["O", "Na", "Cl", "Fe"]}, "part_size": 32, "max_candidates": 96,
    "compile": False, "distance": True, "risk": True, "reference_structures_per_dataset": 4,
    "retention": {"mode": "top", "count": 10},
}  # fmt: skip
ASSESSMENT = {
    "assess_only": True,
    "assessment": {"sample": 30, "reference_structures_per_dataset": 6, "n_labels": 2, "n_relaxations": 1,
    "relax_steps": 3, "label_time_limit_s": 60},
}  # fmt: skip


def run_case(out: Path, name: str, kind: str, parameters: dict[str, Any], *depends_on: str) -> Path:
    folder = out / "runs" / f"{kind}-local" / f"{name}-1"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": name, "suite": kind, "program": kind, "system": "local", "parameters": parameters}
    case |= {"depends_on": depends_on}
    (folder / "case.json").write_text(json.dumps(case))
    run_program(kind, parameters, folder).write(Done())
    (folder / "exit_code").write_text("0\n")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("downstream")
    for name in ("matbench_log_kvrh", "qm9", "matbench_phonons"):
        run_case(folder, f"transfer-{name}", "transfer", TRANSFER | {"task": name})
    run_case(folder, "screening-prototypes", "screening", SCREENING)
    run_case(folder, "screening-assessed", "screening", SCREENING | ASSESSMENT, "screening-prototypes-1")
    return folder


def test_transfer_cases_of_one_task_are_separate(out: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        folder = tmp_path / "runs" / "transfer-local" / f"transfer-qm9-{number}"
        shutil.copytree(out / "runs" / "transfer-local" / "transfer-qm9-1", folder)
    write_report(tmp_path)
    page = read_pages(tmp_path)
    for number in (1, 2):
        assert f"(transfer-qm9-{number})" in page
        assert (tmp_path / "figures" / f"transfer-local-transfer-qm9-{number}.svg").exists()
    assert "of 2 tasks or subsets" in page


def test_transfer_tables_follow_from_events(out: Path) -> None:
    tables = transfer.build_tables(load_runs(out / "runs"))
    assert tables["transfer_tasks"].set_index("task")["available"].to_dict() == {
        "matbench_log_kvrh": True, "matbench_phonons": False, "qm9": True,
    }  # fmt: skip
    log = read_last_events(out / "runs" / "transfer-local" / "transfer-qm9-1" / "events.jsonl")
    fits = {(e["mode"], e["labels"], e["seed"]): e["mae"] for e in log if e["event"] == "fit"}
    gains = tables["transfer_gains"][
        (tables["transfer_gains"]["task"] == "qm9") & (tables["transfer_gains"]["mode"] == "full")
    ].set_index("labels")
    for labels in (10, 30):
        ratios = [fits["full", labels, k] / fits["scratch", labels, k] for k in (0, 1)]
        assert gains.loc[labels, "ratio"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
        assert gains.loc[labels, "ratio_low"] < gains.loc[labels, "ratio"] < gains.loc[labels, "ratio_high"]
    errors = tables["transfer_errors"][
        (tables["transfer_errors"]["task"] == "qm9") & (tables["transfer_errors"]["mode"] == "full")
    ].set_index("labels")
    assert errors.loc[30, "mae"] == pytest.approx((fits["full", 30, 0] + fits["full", 30, 1]) / 2)


def make_fits(subset: str, errors: dict[str, list[float | None]]) -> list[dict[str, Any]]:
    return [
        {"subset": subset, "mode": mode, "labels": 10, "seed": seed, "test": 5, "mae": mae, "force_mae": None}
        for mode, values in errors.items()
        for seed, mae in enumerate(values)
    ]


def make_transfer_record(*fits: dict[str, Any]) -> RunRecord:
    case = {"name": "a", "program": "transfer", "parameters": {"task": "md17"}}
    return RunRecord("c/a", case, "done", events_by_kind={"fit": list(fits)})


def test_fit_that_a_log_contains_twice_counts_once() -> None:
    fits = make_fits("ethanol", {"full": [1.0, 1.2], "scratch": [2.0, 3.0]})
    once, twice = (transfer.build_tables([make_transfer_record(*log)]) for log in (fits, [*fits, *fits[:1]]))
    for name in ("transfer_errors", "transfer_gains"):
        pd.testing.assert_frame_equal(twice[name], once[name])


def test_metric_has_samples_of_one_subset_by_seed() -> None:
    fits = [*make_fits("aspirin", {"full": [1.0, None, 1.2]}), *make_fits("ethanol", {"full": [100.0, 101.0, 102.0]})]
    samples = list(transfer.list_metric_samples(make_transfer_record(*fits)))
    assert [(s.part["subset"], s.values, s.rounds) for s in samples] == [
        ("aspirin", (1.0, 1.2), (0, 2)),
        ("ethanol", (100.0, 101.0, 102.0), (0, 1, 2)),
    ]
    (sample,) = transfer.list_metric_samples(make_transfer_record(*make_fits("", {"full": [1.0]})))
    assert sample.part == {"mode": "full", "labels": "10"}


def test_diverged_fits_are_counted_and_left_out() -> None:
    fits = make_fits("", {"scratch": [2.0, 2.0, None, 2.0], "full": [1.0, None, 1.0, 4.0], "head_only": [None] * 4})
    tables = transfer.build_tables([make_transfer_record(*fits)])
    errors = tables["transfer_errors"].set_index("mode")
    assert errors.loc["full", ["mae", "seeds", "diverged"]].tolist() == [2.0, 3, 1]
    assert math.isnan(errors.loc["head_only", "mae"])
    assert errors.loc["head_only", ["seeds", "diverged"]].tolist() == [0, 4]
    gains = tables["transfer_gains"].set_index("mode")
    assert gains.loc["full", ["ratio", "seeds", "diverged"]].tolist() == [pytest.approx(1.0), 2, 2]
    assert gains.loc["head_only", ["seeds", "diverged"]].tolist() == [0, 4]


def test_interval_of_the_errors_contains_their_mean() -> None:
    fits = make_fits("", {"scratch": [1.0] * 9 + [1000.0]})
    (row,) = transfer.build_tables([make_transfer_record(*fits)])["transfer_errors"].to_dict("records")
    assert row["mae"] == pytest.approx(100.9)
    assert row["mae_low"] < row["mae"] < row["mae_high"]


def test_screening_rates_follow_from_ranks(out: Path) -> None:
    tables = screening.build_tables(load_runs(out / "runs"))
    (run,) = tables["screening_runs"].to_dict("records")
    log = read_last_events(out / "runs" / "screening-local" / "screening-prototypes-1" / "events.jsonl")
    (rank,) = [e for e in log if e["event"] == "rank_summary"]
    assert run["end_to_end_candidates_per_s"] == pytest.approx(rank["evaluated"] / rank["wall_s"])
    assert run["device_candidates_per_s"] == pytest.approx(rank["evaluated"] / rank["device_s"])
    assert run["device_candidates_per_s"] > run["end_to_end_candidates_per_s"]
    assert run["is_verified"]
    local = tables["screening_times"][tables["screening_times"]["machine"] == "local"].iloc[0]
    assert local["seconds"] == pytest.approx(screening.PAPER_CANDIDATES / run["end_to_end_candidates_per_s"])
    frontier = tables["screening_times"][tables["screening_times"]["machine"] == "Frontier"].iloc[0]
    assert frontier["basis"] == "extrapolated"
    assert frontier["seconds"] == pytest.approx(
        screening.PAPER_CANDIDATES / (75_264 * run["candidates_per_s_per_rank"])
    )


def test_screening_counts_candidates_outside_the_training_sets(out: Path) -> None:
    tables = screening.build_tables(load_runs(out / "runs"))
    folder = out / "runs" / "screening-local"
    (outside,) = [
        e
        for e in read_last_events(folder / "screening-assessed-1" / "events.jsonl")
        if e["event"] == "outside_coverage"
    ]
    rows = tables["screening_assessment"][
        tables["screening_assessment"]["quantity"] == "outside the training sets"
    ].set_index("kind")
    assert rows["value"].to_dict() == {reason: n / outside["candidates"] for reason, n in outside["reasons"].items()}
    (rank,) = [
        e for e in read_last_events(folder / "screening-prototypes-1" / "events.jsonl") if e["event"] == "rank_summary"
    ]
    assert tables["screening_runs"]["outside_training_sets"].tolist() == [
        ", ".join(f"{n} {reason}" for reason, n in rank["outside_coverage"].items())
    ]


def test_threshold_flags_the_share_for_which_it_was_calibrated(out: Path) -> None:
    log = read_last_events(out / "runs" / "screening-local" / "screening-assessed-1" / "events.jsonl")
    (calibration,) = [e for e in log if e["event"] == "calibration"]
    assert calibration["flagged_fraction"] <= 0.05 + 1.0 / calibration["calibration_structures"]
    assert 0.0 <= calibration["false_alarms"] < 0.4
    # a weak detector: with far more reference structures too, it flags 20 to 30% of the random boxes
    assert calibration["detected"]["random box"] > 2.0 * max(
        calibration["false_alarms"], calibration["flagged_fraction"]
    )
    relaxed = [e for e in log if e["event"] == "relaxation"]
    assert all((out / "runs" / "screening-local" / "screening-assessed-1" / e["file"]).exists() for e in relaxed)
    labels = [e for e in log if e["event"] == "label"]
    assert len(labels) == 2
    risks = screening.build_tables(load_runs(out / "runs"))["screening_risk"]
    assert risks["risk_ev_per_atom"].tolist() == [e["risk_ev_per_atom"] for e in labels]
    (sample,) = [e for e in log if e["event"] == "sample_risk"]
    assert [e["is_accepted"] for e in labels] == [
        e["risk_ev_per_atom"] <= sample["threshold_ev_per_atom"] for e in labels
    ]
    assert np.isfinite([e["energy_error_ev_per_atom"] for e in labels]).all()


def test_verdicts_do_not_go_beyond_the_runs(out: Path) -> None:
    scores = {s.id: s for s in judge_papers(load_papers(), build_results(load_runs(out / "runs")), out)}
    assert scores["transfer-tasks"].verdict == "inconclusive"
    assert scores["transfer-tasks"].measured_value == 2
    assert scores["transfer-tasks"].basis == "stand-in"
    assert scores["screening-count"].verdict == "not applicable"
    runs = screening.build_tables(load_runs(out / "runs"))["screening_runs"]
    assert runs["candidates"].max() == 96
    assert scores["screening-count"].measured_value == runs["evaluated"].max() < 96  # filters leave candidates out
    assert scores["screening-time"].verdict == "extrapolated"
    assert scores["screening-rate"].verdict == "inconclusive"


def test_pages_show_transfer_and_screening(out: Path) -> None:
    write_report(out)
    pages = read_pages(out)
    assert "Models were trained on 2 of 3 tasks, 1 of them with stand-ins" in pages
    assert "needs matbench_phonons.json.gz" in pages
    assert "proves that every candidate was processed once" in pages
    for name in ("transfer_gains", "transfer_errors", "screening_runs", "screening_assessment", "screening_labels"):
        assert (out / "tables" / f"{name}.csv").exists()


def test_page_shows_a_task_that_failed_at_its_start(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "transfer-local" / "transfer-qm9-1"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": "transfer-qm9", "suite": "transfer", "program": "transfer", "system": "local"}
    (folder / "case.json").write_text(json.dumps(case | {"parameters": {"task": "qm9"}}))
    (folder / "events.jsonl").write_text(json.dumps({"event": "start", "time_s": 1.0}) + "\n")
    (folder / "exit_code").write_text("1\n")
    write_report(tmp_path)
    assert "trained on 0 of 1 tasks" in read_pages(tmp_path)
