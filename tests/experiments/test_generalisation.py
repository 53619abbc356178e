"""Events of runs with structures held out become ratios of outside to inside errors, a claim, and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from harness.claims.evaluate import judge_papers
from harness.claims.papers import load_papers
from harness.cli.main import main
from harness.config.resources import find_resource
from harness.config.suite import load_suite
from harness.experiments.generalisation import figures
from harness.experiments.generalisation.estimates import estimate_ratio, remove_offset
from harness.experiments.generalisation.metrics import build_tables
from harness.experiments.tables import build_results
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.conftest import read_pages

HEADS = {"omat24": "OMat24", "qcml": "QCML"}
INSIDE = 0.01  # eV/atom


def write_run(out: Path, training: str, seed: int, outside: float, **changes: Any) -> None:
    """Write a finished run whose errors are INSIDE inside and `outside` outside, in eV/atom and eV/angstrom."""
    sets = ["omat24"] if training.startswith("single") else list(HEADS)
    rule = changes.get("rule", {"elements": ["S"]})
    left_out = {"present": [], "absent": None, "elsewhere": ["omat24"], "single-absent": ["omat24"]}[training]
    name = f"{training}-{seed}-{'-'.join(rule)}"
    folder = out / "runs" / "generalisation-local" / name
    folder.mkdir(parents=True)
    parameters = {"datasets": sets, "seed": seed, "holdout": rule | {"datasets": left_out}}
    case = {"id": name, "name": name, "suite": "generalisation", "program": "train", "parameters": parameters}
    (folder / "case.json").write_text(json.dumps(case))
    (folder / "exit_code").write_text("0\n")
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    origin = changes.get("data_origin", "stand-in for")
    facts = [{"dataset": s, "head": HEADS[s], "data_origin": f"{origin} {HEADS[s]}", "train": 40} for s in sets]
    log.write_fact("workload", {"datasets": facts, "seed": seed, "global_batch_size": 16})
    steps = changes.get("steps", 125 * len(sets))
    log.write("epoch", epoch=0, step=steps, duration_s=1.0, structures_per_s=100.0)
    for dataset in sets:
        for split, count, error in (("inside", 20, INSIDE), ("outside", 8 if rule else 0, outside)):
            for k in range(count):
                log.write(
                    "structure_errors", head=HEADS[dataset], dataset=dataset, split=split, index=k, atoms=4,
                    energy_error_ev_per_atom=error * (1 if k % 2 else -1),
                    composition_error_ev_per_atom=changes.get("baseline", 0.1),
                    force_mae_ev_per_angstrom=error, zero_force_mae_ev_per_angstrom=0.2,
                    held_out_share=0.25 * (split == "outside"), distance=1.0 + k + 30 * (split == "outside"),
                )  # fmt: skip
    holdout = [{"dataset": s, "head": HEADS[s], "outside": 8, "without_reference": 0} for s in sets if rule]
    if file := changes.get("file"):
        holdout.append({"dataset": "omat24", "head": "OMat24", "outside": 6, "without_reference": 0, "file": file})
        for k in range(6):
            log.write(
                "structure_errors", head="OMat24", dataset="omat24", split="outside", index=k, atoms=4, file=file,
                energy_error_ev_per_atom=5 * INSIDE, composition_error_ev_per_atom=0.1, distance=100.0,
            )  # fmt: skip
    log.write_fact("holdout", holdout)
    log.write_fact("test_errors", [])
    log.write("done")


def write_all_runs(out: Path, absent: float = 0.03, **changes: Any) -> None:
    for seed in (0, 1):
        for training, outside in (("present", 0.01), ("absent", absent), ("elsewhere", 0.015), ("single-absent", 0.06)):
            write_run(out, training, seed, outside, **changes)


def load_tables(out: Path) -> dict[str, pd.DataFrame]:
    return build_tables(load_runs(out / "runs"))


def test_ratios_follow_from_the_errors_of_structures(tmp_path: Path) -> None:
    write_all_runs(tmp_path)
    tables = load_tables(tmp_path)
    errors = tables["generalisation_errors"].set_index(["task", "training", "head", "quantity"])
    for quantity in ("energy", "forces"):
        row = errors.xs(("multi-task", "absent", "OMat24", quantity))
        assert row[["seeds", "structures_inside", "structures_outside"]].tolist() == [2, 20, 8]
        assert row[["ratio", "ratio_low", "ratio_high"]].tolist() == pytest.approx([3.0, 3.0, 3.0])
    # the head whose set keeps the structures is neither present, as another set lacks them, nor elsewhere
    assert ("multi-task", "elsewhere", "QCML", "energy") not in errors.index
    gains = tables["generalisation_gains"].set_index(["comparison", "head", "quantity"])["ratio"]
    assert gains[("absent / present", "QCML", "energy")] == pytest.approx(3.0)
    assert gains[("elsewhere / absent", "OMat24", "forces")] == pytest.approx(0.5)
    assert gains[("multi-task / single-task, absent", "OMat24", "energy")] == pytest.approx(0.5)
    assert ("multi-task / single-task, present", "OMat24", "energy") not in gains.index
    distance = tables["generalisation_distance"]
    assert distance[distance["quantity"] == "energy"]["share_outside"].iloc[[0, -1]].tolist() == [0.0, 1.0]
    assert distance["relative_error"].iloc[0] == pytest.approx(INSIDE / 0.1)


def test_structures_of_a_file_have_their_own_ratio(tmp_path: Path) -> None:
    write_all_runs(tmp_path, file="/data/new.extxyz")
    tables = load_tables(tmp_path)
    errors = tables["generalisation_errors"].set_index(["file", "training", "task", "head", "quantity"])
    for training in ("present", "absent", "elsewhere"):
        row = errors.loc[("/data/new.extxyz", training, "multi-task", "OMat24", "energy")]
        assert row[["structures_inside", "structures_outside", "ratio"]].tolist() == [20, 6, pytest.approx(5.0)]
    row = errors.loc[("", "absent", "multi-task", "OMat24", "energy")]
    assert row[["structures_inside", "structures_outside", "ratio"]].tolist() == [20, 8, pytest.approx(3.0)]
    overall = tables["generalisation_overall"].set_index(["quantity", "comparison"])
    # each rule would count the file again
    assert overall.loc[("energy", "outside / inside, absent"), ["pairs", "ratio"]].tolist() == [2, pytest.approx(3.0)]
    distance = tables["generalisation_distance"]
    assert distance[distance["quantity"] == "energy"]["structures"].sum() == 2 * 28 + 6
    write_report(tmp_path)
    assert "new.extxyz (held out: element S)" in read_pages(tmp_path)


def test_file_without_a_rule_is_evidence_on_structures_absent_from_training(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, "absent", seed, 0.0, rule={}, file="/data/new.extxyz")
    tables = load_tables(tmp_path)
    (row,) = tables["generalisation_errors"].to_dict("records")
    assert (row["rule"], row["training"], row["ratio"]) == ("nothing", "absent", pytest.approx(5.0))
    overall = tables["generalisation_overall"].set_index(["quantity", "comparison"])
    assert overall.loc[("energy", "outside / inside, absent"), ["pairs", "rules"]].tolist() == [1, 1]
    write_report(tmp_path)
    assert "Energy errors outside the training sets are 5.00 times those inside (1 file)" in read_pages(tmp_path)
    (score,) = (s for s in json.loads((tmp_path / "scorecard.json").read_text()) if s["id"] == "generalisation")
    assert (score["verdict"], score["ci_low"], score["ci_high"]) == ("inconclusive", None, None)


def test_head_with_few_structures_outside_has_no_ratio() -> None:
    few, many = pd.DataFrame(np.ones((2, 4))), pd.DataFrame(np.ones((2, 9)))
    assert np.isnan(estimate_ratio(few, many).value)
    assert estimate_ratio(many, many).value == 1.0


def test_interval_contains_the_true_ratio_of_most_samples() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        above, below = (pd.DataFrame(rng.exponential(scale, (1, 60))) for scale in (2.0, 1.0))
        above.columns = pd.RangeIndex(100, 160)  # other structures
        interval = estimate_ratio(above, below)
        hits += interval.low <= 2.0 <= interval.high
    assert 180 <= hits <= 198


def test_offset_of_held_out_element_is_removed_without_the_structure_itself() -> None:
    shares = np.array([0.1, 0.2, 0.5, 0.25, 0.4])
    assert remove_offset(3.0 * shares, shares) == pytest.approx(np.zeros(5))
    assert remove_offset(np.full(5, 0.7), np.zeros(5)) == pytest.approx(np.zeros(5))
    single = remove_offset(np.array([1.0, 0.0, 0.0]), np.zeros(3))
    assert single == pytest.approx([1.0, -0.5, -0.5])
    assert np.isnan(remove_offset(np.array([1.0]), np.array([0.5]))).all()


@pytest.mark.parametrize(
    ("absent", "data_origin", "verdict"),
    [
        (0.012, "official files of", "reproduced"),
        (0.05, "official files of", "deviates"),
        (0.05, "stand-in for", "inconclusive"),
    ],
)
def test_premise_is_judged_by_the_ratio(tmp_path: Path, absent: float, data_origin: str, verdict: str) -> None:
    write_all_runs(tmp_path, absent, data_origin=data_origin)
    scores = judge_papers(load_papers(), build_results(load_runs(tmp_path / "runs")), tmp_path)
    score = next(s for s in scores if s.id == "generalisation")
    assert score.verdict == verdict, score
    assert score.measured_value == pytest.approx(absent / INSIDE)
    assert ("stand-in" in score.reason) == (data_origin == "stand-in for")
    assert score.evidence


def test_untrained_model_does_not_confirm_the_premise(tmp_path: Path) -> None:
    write_all_runs(tmp_path, 0.012, data_origin="official files of", baseline=0.012)
    scores = judge_papers(load_papers(), build_results(load_runs(tmp_path / "runs")), tmp_path)
    score = next(s for s in scores if s.id == "generalisation")
    assert score.verdict == "inconclusive"
    assert "0.83 times that of composition alone" in score.reason


def test_page_shows_rules_and_ratios_and_training_page_omits_the_runs(tmp_path: Path) -> None:
    write_all_runs(tmp_path)
    write_all_runs(tmp_path, rule={"chemistries": ["oxides"]})
    write_report(tmp_path)
    page = read_pages(tmp_path)
    assert "element S; oxides" in page
    assert "3.00" in page
    assert len(list((tmp_path / "figures").glob("generalisation-*.png"))) == 2
    assert not list((tmp_path / "figures").glob("training-*.png"))
    assert "incorrect, since they differ" not in page


def test_page_reports_unequal_budgets(tmp_path: Path) -> None:
    write_all_runs(tmp_path)
    write_run(tmp_path, "absent", 2, 0.03, steps=999)
    write_report(tmp_path)
    assert "(incorrect: the runs differ)" in read_pages(tmp_path)


@pytest.mark.parametrize("system", ["perlmutter", "slurm", "local"])
def test_suite_plans_equal_budgets(system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-S", "account=a"] if system == "perlmutter" else []
    assert main(["list", "generalisation", "--system", system, *options]) == 0
    rules, repeats = (3, 2) if system == "local" else (11, 3)
    assert len(capsys.readouterr().out.splitlines()) == rules * 5 * repeats
    suite = load_suite(find_resource("suites", "generalisation"), system)
    others = {k: v for k, v in suite.parameters.items() if k not in ("datasets", "samples_per_epoch", "holdout")}
    assert "training" not in str(others)
    assert "rule" not in str(others)
    assert suite.parameters["samples_per_epoch"] == (
        "{{ samples_per_dataset * (1 if is_single else all_datasets | length) }}"
    )


SUITE = """\
name: brief
title: Tiny training with a holdout
extends: generalisation
overlays:
  local:
    variables: {samples_per_dataset: 40, all_datasets: [qcml, omat24]}
    matrix: {rule: [sulfur], training: [absent, single-present]}
    parameters: {model: {hidden_dim: 8, dim_headlayers: 8}, batch_size: 4, epochs: 1}
    repeats: 1
"""


@pytest.mark.slow
def test_tiny_run_reaches_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "brief.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "brief.yaml", "-q"]) == 0
    tables = load_tables(tmp_path / "results")
    assert set(tables["generalisation_runs"]["budget"]) == {40, 80}
    assert (tables["generalisation_runs"]["train_s"] > 0).all()
    errors = tables["generalisation_errors"]
    assert {"absent", "present"} == set(errors["training"])
    assert (errors["outside"] > 0).all()
    assert "Energy errors outside the training sets are" in read_pages(tmp_path / "results")


def test_the_legend_of_ratios_has_trainings_of_either_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"task": "multi-task", "rule": "S", "file": None, "head": "QCML", "quantity": quantity, "training": training,
         "ratio": 2.0, "ratio_low": 1.0, "ratio_high": 3.0}
        for quantity, training in (("energy", "present"), ("forces", "present"), ("forces", "elsewhere"))
    ]  # fmt: skip
    labels: list[str] = []

    def record_legend(figure: Any, *_: Any) -> None:
        labels.extend(text.get_text() for text in figure.legends[0].get_texts())
        plt.close(figure)

    monkeypatch.setattr(figures, "save_figure", record_legend)
    monkeypatch.setattr(figures, "name_outside", lambda rule, file: rule)
    figures.draw_ratios(pd.DataFrame(rows), tmp_path, "ratios")
    assert labels == ["present", "elsewhere"]
