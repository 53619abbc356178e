"""Every claim of the paper has a verdict, none is reproduced by what cannot reproduce it, and none is lost silently."""

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
from tests.experiments.test_hpo_report import searched, trial
from tests.experiments.test_training_report import HEADS, held_out
from tests.experiments.test_training_report import write_run as write_training
from tests.report.test_report import write_run

CLAIMS = {
    "datasets", "structures", "elements", "hpo-campaigns", "train-nodes", "lead-model", "screening-count",
    "screening-time", "screening-rate", "precisions", "transfer-tasks", "machines", "ladder-speedup-fp64",
    "ladder-speedup-fp32",
}  # fmt: skip


def scores(out: Path) -> dict[str, Score]:
    return {s.id: s for s in judge_papers(load_papers(), build_results(load_runs(out / "runs")), out)}


def test_every_claim_is_there_and_without_runs_none_has_a_value(tmp_path: Path) -> None:
    assert {c.id for c in load_papers()["lupo-pasini-2026"].claims} == CLAIMS
    decidable = [s for s in scores(tmp_path).values() if s.suites]
    assert len(decidable) > len(CLAIMS)
    for found in decidable:
        assert (found.verdict, found.measured_value, found.basis) == ("not run", None, None)
        assert found.reason
        assert found.how


def test_a_laptop_reproduces_no_claim_about_a_supercomputer(tmp_path: Path) -> None:
    for backbone in ("painn", "mace", "egnn", "schnet", "pnaeq", "dimenet"):
        value = -0.1 if backbone == "painn" else -0.2
        searched(tmp_path, backbone, [trial(0, value, backbone)])
    write_training(tmp_path, "run", [held_out(h, 0.01, 0.1, role=f"stand-in for {h}") for h in HEADS])
    found = scores(tmp_path)
    assert found["hpo-campaigns"].measured_value == 6
    assert (found["hpo-campaigns"].verdict, found["hpo-campaigns"].basis) == ("not applicable", "stand-in")
    assert (found["lead-model"].measured_value, found["lead-model"].verdict) == (1, "inconclusive")
    assert (found["structures"].measured_value, found["structures"].verdict) == (16 * 400, "not applicable")
    assert (found["datasets"].verdict, found["datasets"].basis) == ("inconclusive", "stand-in")
    assert not [s for s in found.values() if s.verdict == "reproduced"]
    for s in found.values():
        assert (s.basis is None) == (s.measured_value is None)
        assert (not s.evidence) == (s.measured_value is None)
        assert all((tmp_path / path).exists() for path in s.evidence)


@pytest.mark.parametrize(
    ("hosts", "verdict", "basis"), [(2048, "reproduced", "measured"), (1, "not applicable", "emulated")]
)
def test_emulated_nodes_are_no_nodes(tmp_path: Path, hosts: int, verdict: str, basis: str) -> None:
    folder = tmp_path / "runs" / "pretrain-frontier" / "run"
    folder.mkdir(parents=True)
    case = {"id": "1", "name": "run", "program": "train", "system": "frontier", "nodes": 2048, "parameters": {}}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text("0\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    ranks: list[dict[str, Any]] = [{"rank": k, "host": f"h{k % hosts}", "device": "cuda"} for k in range(2048)]
    log.fact("ranks", ranks)
    log.write("done")
    found = scores(tmp_path)["train-nodes"]
    assert (found.verdict, found.basis, found.measured_value) == (verdict, basis, 2048)


def test_a_claim_that_was_reproduced_and_no_longer_is_fails_the_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, speedup=40.0)
    write_report(tmp_path)
    assert main(["check", "--out", str(tmp_path)]) == 0
    for path in (tmp_path / "runs").glob("*/*/exit_code"):
        path.write_text("1\n")
    write_report(tmp_path)
    assert main(["check", "--out", str(tmp_path)]) == 1
    assert "ladder-speedup-fp64: not run" in (told := capsys.readouterr().out)
    assert "it was reproduced before" in told
