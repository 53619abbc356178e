"""Every claim of the paper has a verdict, and runs on a laptop reproduce no claim about a supercomputer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.claims.evaluate import judge_papers
from harness.claims.papers import load_papers
from harness.claims.scorecard import Score
from harness.cli.main import main
from harness.experiments.tables import build_results
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.experiments.test_hpo_report import make_trial, write_search
from tests.experiments.test_training_report import HEADS, make_row
from tests.experiments.test_training_report import write_run as write_training
from tests.report.test_report import write_run

CLAIMS = {
    "datasets", "structures", "elements", "hpo-campaigns", "train-nodes", "lead-model", "screening-count",
    "screening-time", "screening-rate", "precisions", "transfer-tasks", "machines", "ladder-speedup-fp64",
    "ladder-speedup-fp32", "generalisation",
}  # fmt: skip


def judge_runs(out: Path) -> dict[str, Score]:
    return {s.id: s for s in judge_papers(load_papers(), build_results(load_runs(out / "runs")), out)}


def test_without_runs_every_claim_is_not_run(tmp_path: Path) -> None:
    assert {c.id for c in load_papers()["lupo-pasini-2026"].claims} == CLAIMS
    decidable = [s for s in judge_runs(tmp_path).values() if s.suites]
    assert len(decidable) > len(CLAIMS)
    for score in decidable:
        assert (score.verdict, score.measured_value, score.basis) == ("not run", None, None)
        assert score.reason
        assert score.measurement


def test_runs_on_a_laptop_reproduce_no_claim_about_a_supercomputer(tmp_path: Path) -> None:
    for backbone in ("painn", "mace", "egnn", "schnet", "pnaeq", "dimenet"):
        value = -0.1 if backbone == "painn" else -0.2
        write_search(tmp_path, backbone, [make_trial(0, value, backbone)])
    write_training(tmp_path, "run", [make_row(h, 0.01, 0.1, data_origin=f"stand-in for {h}") for h in HEADS])
    scores = judge_runs(tmp_path)
    assert scores["hpo-campaigns"].measured_value == 6
    assert (scores["hpo-campaigns"].verdict, scores["hpo-campaigns"].basis) == ("not applicable", "stand-in")
    assert (scores["lead-model"].measured_value, scores["lead-model"].verdict) == (1, "inconclusive")
    assert (scores["structures"].measured_value, scores["structures"].verdict) == (16 * 400, "not applicable")
    assert (scores["datasets"].verdict, scores["datasets"].basis) == ("inconclusive", "stand-in")
    assert not [s for s in scores.values() if s.verdict == "reproduced"]
    for s in scores.values():
        assert (s.basis is None) == (s.measured_value is None)
        assert (not s.evidence) == (s.measured_value is None)
        assert all((tmp_path / path).exists() for path in s.evidence)


@pytest.mark.parametrize(
    ("hosts", "verdict", "basis"), [(2048, "reproduced", "measured"), (1, "not applicable", "emulated")]
)
def test_emulated_nodes_do_not_count_as_nodes(tmp_path: Path, hosts: int, verdict: str, basis: str) -> None:
    folder = tmp_path / "runs" / "pretrain-frontier" / "run"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": "run", "program": "train", "system": "frontier", "nodes": 2048, "parameters": {}}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text("0\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    ranks: list[dict[str, Any]] = [{"rank": k, "host": f"h{k % hosts}", "device": "cuda"} for k in range(2048)]
    log.write_fact("ranks", ranks)
    log.write("done")
    score = judge_runs(tmp_path)["train-nodes"]
    assert (score.verdict, score.basis, score.measured_value) == (verdict, basis, 2048)


def test_check_fails_for_a_claim_that_is_no_longer_reproduced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, speedup=40.0)
    write_report(tmp_path)
    assert main(["check", "--out", str(tmp_path)]) == 0
    for path in (tmp_path / "runs").glob("*/*/exit_code"):
        path.write_text("1\n")
    write_report(tmp_path)
    assert main(["check", "--out", str(tmp_path)]) == 1
    assert "ladder-speedup-fp64: not run" in (output := capsys.readouterr().out)
    assert "it was reproduced before" in output
