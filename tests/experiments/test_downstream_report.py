"""Transfer and screening from real runs of seconds to tables, verdicts and pages."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.document import paper
from harness.experiments.screening.metrics import BILLION, screening_tables
from harness.experiments.tables import results
from harness.experiments.transfer.metrics import transfer_tables
from harness.protocol.events import EventLog, last_run
from harness.reference.programs.screening import program
from harness.reference.programs.transfer import program as study
from harness.report.judges import score
from harness.report.render import report
from harness.results.runs import load
from tests.conftest import pages_of

LEARN: dict[str, Any] = {
    "labels": [10, 30], "seeds": 2, "subsets": 1, "test_limit": 20, "steps": 4, "every": 2, "batch_size": 4,
}  # fmt: skip
SCREEN: dict[str, Any] = {
    "workload": {"kind": "prototypes", "elements": ["O", "Na", "Cl", "Fe"]}, "part": 32, "candidates": 96,
    "compile": False, "distance": True, "known_limit": 4, "keep": {"what": "top", "count": 10},
}  # fmt: skip
JUDGE = {
    "judges": True,
    "trust": {"sample": 30, "known_limit": 6, "labelled": 2, "relaxed": 1, "relax_steps": 3, "label_seconds": 60},
}  # fmt: skip


def ran(out: Path, name: str, kind: str, module: Any, parameters: dict[str, Any], *after: str) -> Path:
    folder = out / "runs" / f"{kind}-local" / f"{name}-1"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": name, "suite": kind, "program": kind, "system": "local", "parameters": parameters}
    case |= {"after": after}
    (folder / "case.json").write_text(json.dumps(case))
    log = EventLog(folder / "events.jsonl")
    log.write("start")
    module.run(parameters, log, folder)
    log.write("done")
    (folder / "exit_code").write_text("0\n")
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("downstream")
    for name in ("matbench_log_kvrh", "qm9", "matbench_phonons"):
        ran(place, f"transfer-{name}", "transfer", study, LEARN | {"task": name})
    ran(place, "screening-prototypes", "screening", program, SCREEN)
    ran(place, "screening-judged", "screening", program, SCREEN | JUDGE, "screening-prototypes-1")
    return place


def test_errors_and_gains_are_those_of_the_events(out: Path) -> None:
    tables = transfer_tables(load(out / "runs"))
    assert tables.tasks.set_index("task")["available"].to_dict() == {
        "matbench_log_kvrh": True, "matbench_phonons": False, "qm9": True,
    }  # fmt: skip
    log = last_run(out / "runs" / "transfer-local" / "transfer-qm9-1" / "events.jsonl")
    fits = {(e["mode"], e["labels"], e["seed"]): e["mae"] for e in log if e["event"] == "fit"}
    gains = tables.gains[(tables.gains["task"] == "qm9") & (tables.gains["mode"] == "full")].set_index("labels")
    for labels in (10, 30):
        ratios = [fits["full", labels, k] / fits["scratch", labels, k] for k in (0, 1)]
        assert gains.loc[labels, "ratio"] == pytest.approx(math.sqrt(ratios[0] * ratios[1]))
        assert gains.loc[labels, "low"] < gains.loc[labels, "ratio"] < gains.loc[labels, "high"]
    errors = tables.errors[(tables.errors["task"] == "qm9") & (tables.errors["mode"] == "full")].set_index("labels")
    assert errors.loc[30, "mae"] == pytest.approx((fits["full", 30, 0] + fits["full", 30, 1]) / 2)


def test_rates_and_times_follow_from_the_ranks(out: Path) -> None:
    tables = screening_tables(load(out / "runs"))
    (run,) = tables.runs.to_dict("records")
    log = last_run(out / "runs" / "screening-local" / "screening-prototypes-1" / "events.jsonl")
    (rank,) = [e for e in log if e["event"] == "rank"]
    assert run["end_to_end_per_s"] == pytest.approx(rank["evaluated"] / rank["wall_s"])
    assert run["device_per_s"] == pytest.approx(rank["evaluated"] / rank["device_s"])
    assert run["device_per_s"] > run["end_to_end_per_s"]
    assert run["proven"]
    here = tables.times[tables.times["machine"] == "local"].iloc[0]
    assert here["seconds"] == pytest.approx(BILLION / run["end_to_end_per_s"])
    frontier = tables.times[tables.times["machine"] == "Frontier"].iloc[0]
    assert frontier["basis"] == "projected"
    assert frontier["seconds"] == pytest.approx(BILLION / (75_264 * run["per_rank_per_s"]))


def test_what_is_outside_the_training_is_counted(out: Path) -> None:
    tables = screening_tables(load(out / "runs"))
    folder = out / "runs" / "screening-local"
    (outside,) = [e for e in last_run(folder / "screening-judged-1" / "events.jsonl") if e["event"] == "outside"]
    rows = tables.trust[tables.trust["what"] == "outside the training"].set_index("kind")
    assert rows["value"].to_dict() == {why: n / outside["candidates"] for why, n in outside["reasons"].items()}
    (rank,) = [e for e in last_run(folder / "screening-prototypes-1" / "events.jsonl") if e["event"] == "rank"]
    assert tables.runs["unranked"].tolist() == [", ".join(f"{n} {why}" for why, n in rank["unranked"].items())]


def test_the_threshold_flags_what_it_was_set_to(out: Path) -> None:
    log = last_run(out / "runs" / "screening-local" / "screening-judged-1" / "events.jsonl")
    (found,) = [e for e in log if e["event"] == "calibration"]
    assert found["share"] <= 0.05 + 1.0 / found["calibrated_on"]
    assert 0.0 <= found["false_alarms"] < 0.4
    assert found["detected"]["random box"] > 0.5
    relaxed = [e for e in log if e["event"] == "relaxed"]
    assert all((out / "runs" / "screening-local" / "screening-judged-1" / e["file"]).exists() for e in relaxed)
    labels = [e for e in log if e["event"] == "label"]
    assert len(labels) == 2
    assert np.isfinite([e["off_ev_per_atom"] for e in labels]).all()


def test_verdicts_do_not_say_more_than_was_run(out: Path) -> None:
    claims = paper.load().claims
    scores = {s.id: s for s in score(claims, results(load(out / "runs")), out)}
    assert scores["transfer-tasks"].verdict == "inconclusive"
    assert scores["transfer-tasks"].measured_value == 2
    assert scores["transfer-tasks"].basis == "stand-in"
    assert scores["screening-count"].verdict == "out of reach here"
    assert scores["screening-count"].measured_value == 96
    assert scores["screening-time"].verdict == "projected"
    assert scores["screening-rate"].verdict == "inconclusive"


def test_the_pages_tell_it(out: Path) -> None:
    report(out)
    pages = pages_of(out)
    assert "2 of 3 tasks were learned from, 1 of them on stand-ins" in pages
    assert "needs matbench_phonons.json.gz" in pages
    assert "proves that every candidate was taken once" in pages
    for name in ("transfer_gains", "transfer_errors", "screening_runs", "screening_trust", "screening_labels"):
        assert (out / "tables" / f"{name}.csv").exists()
