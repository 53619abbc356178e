"""The published results in reports/measured still have their scorecards, claim by claim."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from harness.claims.evaluate import judge_folder, judge_papers
from harness.claims.papers import load_papers
from harness.experiments.tables import build_results
from harness.results.bundles import verify_bundle
from harness.results.runs import RunRecord, load_runs
from tests.support.published_results import NAMES, OLDER, PUBLISHED, unpack_results

FOLDERS = {"laptop": OLDER, "multitask": "multitask", "pretraining": "pretraining", "root": "."}
# Folder -> claim -> verdict, basis, value with its interval, and evidence, as an older version computed them.
EXPECTED: dict[str, dict[str, dict[str, Any]]] = json.loads(
    (Path(__file__).parent / "published_scorecards.json").read_text(encoding="utf-8")
)
PAPER = "lupo-pasini-2026"
# Verdicts and bases of that version -> the present names.
PRESENT_NAMES = {"out of reach here": "not applicable", "wrong": "incorrect", "projected": "extrapolated"}


def check_score(score: Any, expected: dict[str, Any]) -> None:
    expected = expected | {key: PRESENT_NAMES.get(expected[key], expected[key]) for key in ("verdict", "basis")}
    actual = {key: getattr(score, key) for key in expected}
    numbers = ("measured_value", "ci_low", "ci_high")
    assert {k: v for k, v in actual.items() if k not in numbers} == {
        k: v for k, v in expected.items() if k not in numbers
    }, score.id
    for key in numbers:
        value = None if expected[key] is None else pytest.approx(expected[key], rel=1e-12)
        assert actual[key] == value, (score.id, key)


@pytest.mark.parametrize("name", FOLDERS)
def test_claims_have_the_verdicts_that_an_older_version_computed(name: str) -> None:
    scores = [s for s in judge_folder(unpack_results(FOLDERS[name]), load_papers()).scores if s.paper == PAPER]
    assert [s.id for s in scores] == list(EXPECTED[name])
    for score in scores:
        check_score(score, EXPECTED[name][score.id])


@pytest.mark.parametrize("name", NAMES)
def test_published_scorecard_follows_from_the_published_runs(name: str) -> None:
    published = json.loads((PUBLISHED / name / "scorecard.json").read_text(encoding="utf-8"))
    scores = judge_folder(unpack_results(name), load_papers()).scores
    for score, row in zip(scores, published, strict=True):
        check_score(score, {key: value for key, value in row.items() if key != "reproduced_before"})


@pytest.mark.parametrize("name", NAMES)
def test_published_results_are_artifacts_as_written(name: str) -> None:
    verification = verify_bundle(PUBLISHED / name / "runs.tar.xz")
    assert verification.problems == []
    with tarfile.open(PUBLISHED / name / "runs.tar.xz") as archive:
        names = set(archive.getnames())
    assert names >= {"ro-crate-metadata.json", "appendix.tex", "checklist.md", "CITATION.cff", "scorecard.json"}


@pytest.mark.parametrize("name", NAMES)
def test_published_cases_are_done_and_readable(name: str) -> None:
    records = load_runs(unpack_results(name) / "runs")
    assert {(r.state, r.error, r.provenance_error) for r in records} == {("done", None, None)}


def test_all_published_results_together_have_the_expected_scorecard() -> None:
    def get_run_name(record: RunRecord) -> tuple[str, str]:
        return record.folder.parent.name, record.folder.name

    records = [record for folder in FOLDERS.values() for record in load_runs(unpack_results(folder) / "runs")]
    scores = judge_papers(load_papers(), build_results(sorted(records, key=get_run_name)), Path())
    scores = [s for s in scores if s.paper == PAPER]
    assert [s.id for s in scores] == list(EXPECTED["union"])
    for score in scores:
        check_score(score, EXPECTED["union"][score.id])


def test_claims_of_other_papers_follow_from_the_same_tables() -> None:
    """A claim that stand-ins cannot decide is inconclusive."""
    judgement = judge_folder(unpack_results(OLDER), load_papers())
    scores = {s.id: s for s in judgement.scores}
    costs = judgement.results.tables()["precision_costs"].set_index(["backbone", "phase", "precision"])
    rates = costs["structures_per_s"]
    speedup = rates["painn", "inference", "fp32"] / rates["dimenet", "inference", "fp32"]
    assert scores["painn-inference-time"].measured_value == pytest.approx(speedup)
    assert (scores["painn-inference-time"].verdict, scores["painn-inference-time"].basis) == ("reproduced", "stand-in")
    training = judgement.results.tables()["precision_training"]
    exact = training[training["precision"] == "fp64"].pivot(
        index="dataset", columns="backbone", values="force_mae_ev_per_angstrom"
    )
    molecules = exact.loc[["omol25-non-neutral", "qm7x", "transition1x"]]
    share = (molecules["painn"] <= molecules["schnet"]).mean()
    assert scores["painn-accuracy"].measured_value == pytest.approx(share)
    assert (scores["painn-accuracy"].verdict, scores["painn-accuracy"].basis) == ("inconclusive", "stand-in")
    assert scores["schnet-qm9-energy"].verdict == "inconclusive"
    spectra = scores["painn-spectra"]
    assert (spectra.verdict, spectra.measured_value, spectra.evidence) == ("not applicable", None, [])
