"""The scorecard of the results that are kept under reports/measured, claim by claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.claims.evaluate import judge_folder, judge_papers
from harness.claims.papers import load_papers
from harness.experiments.tables import build_results
from harness.results.runs import RunRecord, load_runs
from tests.support.kept_results import PUBLISHED, unpack_results

FOLDERS = {"laptop": "laptop", "multitask": "multitask", "pretraining": "pretraining", "root": "."}
# Folder -> claim -> verdict, basis, value with its interval, and evidence, as one Python function a claim gave them.
EXPECTED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "kept_scorecards.json").read_text(encoding="utf-8")
)
PAPER = "lupo-pasini-2026"
# The words of those functions, and today's.
WORDS = {"out of reach here": "not applicable", "wrong": "incorrect", "projected": "extrapolated"}


def compare(score: Any, expected: dict[str, Any]) -> None:
    expected = expected | {key: WORDS.get(expected[key], expected[key]) for key in ("verdict", "basis")}
    found = {key: getattr(score, key) for key in expected}
    numbers = ("measured_value", "ci_low", "ci_high")
    assert {k: v for k, v in found.items() if k not in numbers} == {
        k: v for k, v in expected.items() if k not in numbers
    }, score.id
    for key in numbers:
        wanted = None if expected[key] is None else pytest.approx(expected[key], rel=1e-12)
        assert found[key] == wanted, (score.id, key)


@pytest.mark.parametrize("name", FOLDERS)
def test_claims_have_the_verdicts_of_the_kept_results(name: str) -> None:
    scores = [s for s in judge_folder(unpack_results(FOLDERS[name]), load_papers()).scores if s.paper == PAPER]
    assert [s.id for s in scores] == list(EXPECTED[name])
    for score in scores:
        compare(score, EXPECTED[name][score.id])


@pytest.mark.parametrize("name", FOLDERS)
def test_published_scorecard_is_that_of_the_bundle(name: str) -> None:
    published = json.loads((PUBLISHED / FOLDERS[name] / "scorecard.json").read_text(encoding="utf-8"))
    scores = judge_folder(unpack_results(FOLDERS[name]), load_papers()).scores
    for score, row in zip(scores, published, strict=True):
        compare(score, {key: value for key, value in row.items() if key != "reproduced_before"})


@pytest.mark.parametrize("name", FOLDERS)
def test_kept_results_are_done_and_their_provenance_can_be_read(name: str) -> None:
    records = load_runs(unpack_results(FOLDERS[name]) / "runs")
    assert {(record.state, record.provenance_fault) for record in records} == {("done", None)}


def test_all_kept_results_together_have_one_scorecard() -> None:
    def name(record: RunRecord) -> tuple[str, str]:
        return record.folder.parent.name, record.folder.name

    records = [record for folder in FOLDERS.values() for record in load_runs(unpack_results(folder) / "runs")]
    for score in judge_papers(load_papers(), build_results(sorted(records, key=name)), Path()):
        if score.paper == PAPER:
            compare(score, EXPECTED["union"][score.id])


def test_other_papers_are_decided_by_the_same_tables() -> None:
    """Values from the tables themselves; what stand-ins cannot decide is inconclusive."""
    judgement = judge_folder(unpack_results("laptop"), load_papers())
    scores = {s.id: s for s in judgement.scores}
    costs = judgement.tables.tables()["precision_costs"].set_index(["backbone", "task", "precision"])
    rates = costs["structures_per_s"]
    speedup = rates["painn", "inference", "fp32"] / rates["dimenet", "inference", "fp32"]
    assert scores["painn-inference-time"].measured_value == pytest.approx(speedup)
    assert (scores["painn-inference-time"].verdict, scores["painn-inference-time"].basis) == ("reproduced", "stand-in")
    training = judgement.tables.tables()["precision_training"]
    exact = training[training["precision"] == "fp64"].pivot(
        index="set", columns="backbone", values="force_mae_ev_per_a"
    )
    molecules = exact.loc[["omol25-non-neutral", "qm7x", "transition1x"]]
    share = (molecules["painn"] <= molecules["schnet"]).mean()
    assert scores["painn-accuracy"].measured_value == pytest.approx(share)
    assert (scores["painn-accuracy"].verdict, scores["painn-accuracy"].basis) == ("inconclusive", "stand-in")
    assert scores["schnet-qm9-energy"].verdict == "inconclusive"
    spectra = scores["painn-spectra"]
    assert (spectra.verdict, spectra.measured_value, spectra.evidence) == ("not applicable", None, [])
