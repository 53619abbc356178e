"""Events of searches become tables, figures, a section of the report, and a suite of the best configurations."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from harness.cli.main import main
from harness.config import resources, suite
from harness.config import system as systems
from harness.document.figures import Figure, save_figure
from harness.experiments.hpo.figures import format_ends
from harness.experiments.hpo.metrics import build_tables, find_pareto_front, rank_importance
from harness.experiments.hpo.page import format_p_value
from harness.experiments.tables import build_results
from harness.planning.expand import expand_suite
from harness.protocol.events import JsonLinesLog
from harness.report.render import write_report
from harness.results.runs import load_runs
from tests.conftest import read_pages

SPACE = {
    "hidden_dim": {"low": 16, "high": 64, "log": False},
    "learning_rate": {"low": 1e-4, "high": 1e-2, "log": True},
    "radial_type": {"values": ["bessel", "gaussian"]},
}
START_S = 1_700_000_000.0


def make_trial(number: int, objective: float | None, backbone: str = "mace", **changes: Any) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    if objective is not None:
        errors = {"energy_mae_ev_per_atom": -objective, "force_mae_ev_per_angstrom": -objective}
        measured = errors | {"structures_per_s": 50.0 - number, "epochs": 2}
    return {
        "trial": number, "backbone": backbone, "state": "done" if measured else "timeout", "reason": None,
        "configuration": {"hidden_dim": 16 + 8 * number, "learning_rate": 1e-3}
        | ({"radial_type": "bessel"} if backbone == "mace" else {}),
        "objective": objective, **measured, "start_time_s": START_S + 60 * number,
        "end_time_s": START_S + 60 * number + 90,
        "nodes": [f"n{number}"], "node_hours": 0.5, "folder": f"trials/{number:04d}",
    } | changes  # fmt: skip


def write_search(out: Path, search: str, trials: list[dict[str, Any]], exit_code: int | None = 0) -> None:
    folder = out / "runs" / "hpo-slurm" / f"hpo-{search}-1"
    folder.mkdir(parents=True)
    parameters = {"space": {}, "trial": {"model": {"cutoff": 4.5}}}
    case = {"id": search, "name": f"hpo-{search}", "suite": "hpo", "program": "hpo", "system": "slurm",
            "parameters": parameters, "axis_values": {"search": search}}  # fmt: skip
    (folder / "case.json").write_text(json.dumps(case))
    log = JsonLinesLog(folder / "events.jsonl")
    log.write("start")
    log.write_fact("warm_start", {"received": 3, "outside_space": 2, "failed": 1})
    log.write_fact("search", {"space": SPACE, "backbone": search, "max_trials": 6, "trial": {}})
    for trial in trials:
        log.write("trial", **trial)
        (folder / trial["folder"]).mkdir(parents=True)
        JsonLinesLog(folder / trial["folder"] / "events.jsonl").write("start")
    if exit_code == 0:
        log.write_fact("overhead", {"optimizer_s": 5.0, "search_s": 400.0})
        log.write("done")
    if exit_code is not None:
        (folder / "exit_code").write_text(f"{exit_code}\n")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    write_search(tmp_path, "mace", [make_trial(k, v) for k, v in enumerate([-3.0, None, -1.0, -2.0, -0.5, -0.4])])
    write_search(
        tmp_path,
        "painn",
        [make_trial(0, -0.2, "painn"), make_trial(1, None, "painn", state="lost", reason="lost with n1")],
        1,
    )
    return tmp_path


def test_tables_hold_complete_and_interrupted_searches(out: Path) -> None:
    tables = build_tables(load_runs(out / "runs"))
    mace = tables["hpo_trials"][tables["hpo_trials"]["search"] == "mace"]
    assert mace["best_so_far"].tolist() == [-3.0, -3.0, -1.0, -1.0, -0.5, -0.4]
    assert mace["cumulative_node_hours"].tolist() == pytest.approx([0.5 * k for k in range(1, 7)])
    assert mace["end_h"].tolist() == pytest.approx([(60 * k + 90) / 3600 for k in range(6)])
    searches = tables["hpo_searches"].set_index("search")
    assert searches.loc["mace", ["trials", "done", "timeout", "lost"]].tolist() == [6, 5, 1, 0]
    assert searches.loc["painn", ["state", "trials", "lost", "earlier_trials_excluded"]].tolist() == ["failed", 2, 1, 3]
    assert searches.loc["mace", "optimizer_time_fraction"] == pytest.approx(5.0 / (6 * 90))
    assert tables["hpo_best"].set_index("backbone")["trial"].to_dict() == {"mace": 5, "painn": 0}
    # trial 0 of painn has the smallest error, and no trial of mace is faster with the same error
    assert set(
        zip(
            *(tables["hpo_trials"][tables["hpo_trials"]["is_pareto_optimal"]][k] for k in ("search", "trial")),
            strict=True,
        )
    ) == {("painn", 0)}


def test_pareto_front_contains_the_points_that_no_other_dominates() -> None:
    a = np.array([1.0, 2.0, 3.0, 2.0, math.nan, 1.0])
    b = np.array([3.0, 2.0, 1.0, 1.5, 9.0, 3.0])
    assert find_pareto_front(a, b).tolist() == [True, True, True, False, False, True]


def test_only_decisive_hyperparameters_have_a_high_importance() -> None:
    rng = np.random.default_rng(1)
    rows = []
    for k in range(40):
        values = {"decisive": rng.uniform(), "irrelevant": rng.uniform(), "categorical": "ab"[k % 2], "fixed": 3}
        objective = -(values["decisive"] ** 2) + (0.02 if values["categorical"] == "a" else 0.0)
        common = {"campaign": "c", "case": "x", "search": "s", "trial": k, "objective": objective}
        rows += [{**common, "hyperparameter": n, "value": v} for n, v in values.items()]
    importance = rank_importance(pd.DataFrame(rows)).set_index("hyperparameter")
    assert set(importance.index) == {"decisive", "irrelevant", "categorical"}
    assert importance.loc["decisive", "explained_variance"] > 0.9
    assert importance.loc["decisive", "direction"] == -1
    assert importance.loc["decisive", "p_value"] < 0.001
    assert importance.loc["irrelevant", "p_value"] > 0.05
    assert importance.loc["categorical", "kind"] == "choice"


def test_search_page_shows_states_and_incomplete_searches(out: Path) -> None:
    write_report(out)
    page = read_pages(out)
    assert "2 searches by Bayesian optimization (DeepHyper), 8 trials: 6 done, 1 timeout, 1 lost" in page
    assert "Incomplete searches, with the trials that have ended: hpo-painn (failed, 2 of 6)." in page
    assert "lost with n1" in page
    assert str(out) not in page, "pages must not contain paths of this machine"
    assert "/trials/" in page
    for table in ("searches", "trials", "best", "points", "importance"):
        assert len(pd.read_csv(out / "tables" / f"hpo_{table}.csv"))
    for figure in ("best", "front", "hpo-mace-points", "hpo-painn-points"):
        assert (out / "figures" / f"hpo-slurm-{figure}.svg").exists()


def capture_figures(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a mapping to which each figure of the page is added by name."""
    figures: dict[str, Any] = {}

    def save(figure: Any, folder: Path, name: str, caption: str, **options: Any) -> Figure:
        figures[name] = figure
        return save_figure(figure, folder, name, caption, **options)

    monkeypatch.setattr("harness.experiments.hpo.figures.save_figure", save)
    return figures


def test_searches_with_one_name_are_separate(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = out / "runs" / "hpo-slurm"
    shutil.copytree(campaign / "hpo-mace-1", campaign / "hpo-mace-2")
    tables = build_results(load_runs(out / "runs")).tables()
    assert tables["hpo_searches"].set_index("case")["trials"].to_dict() == {
        "hpo-mace-1": 6, "hpo-mace-2": 6, "hpo-painn": 2
    }  # fmt: skip
    assert len(tables["hpo_best"]) == 3
    figures = capture_figures(monkeypatch)
    write_report(out)
    for axes in figures["hpo-slurm-best"].axes:
        steps = [line.get_xdata() for line in axes.get_lines() if not line.get_label().startswith("_")]
        assert len(steps) == 3
        assert all((np.diff(x) >= 0).all() for x in steps)
    assert "MACE (hpo-mace-1)" in read_pages(out)


def test_equally_good_trials_are_all_thick(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_search(out, "egnn", [make_trial(k, v, "egnn") for k, v in enumerate([-1.0, -0.5, -0.5])])
    figures = capture_figures(monkeypatch)
    write_report(out)
    widths = [line.get_linewidth() for line in figures["hpo-slurm-hpo-egnn-points"].axes[0].get_lines()]
    assert widths.count(2.4) == 2


@pytest.mark.parametrize(
    ("dimension", "ends"),
    [
        ({"low": 100, "high": 1000, "log": False}, ("100", "1,000")),
        ({"low": 1e-4, "high": 0.01, "log": True}, ("0.0001", "0.01")),
        ({"values": ["bessel", "gaussian", "chebyshev"]}, ("bessel", "chebyshev")),
        ({"values": [True]}, ("True", "")),
    ],
)
def test_axis_has_the_ends_of_the_search_range(dimension: dict[str, Any], ends: tuple[str, str]) -> None:
    assert format_ends(dimension) == ends


def test_smallest_p_value_is_not_zero() -> None:
    assert format_p_value(1 / 2001) == "< 0.001 *"
    assert format_p_value(0.0123) == "0.012 *"
    assert format_p_value(0.5) == "0.500"


def test_table_of_trials_says_how_many_it_shows(tmp_path: Path) -> None:
    write_search(tmp_path, "mace", [make_trial(k, -1.0 - k) for k in range(41)])
    write_report(tmp_path)
    assert "The table shows 40 of 41 trials; all are in tables/hpo_trials.csv." in read_pages(tmp_path)


def test_best_configurations_become_a_suite(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["promote", "hpo-slurm", "--out", str(out)]) == 0
    assert str(out / "pretrain-promoted.yaml") in capsys.readouterr().out
    for system in ("local", "slurm", "frontier", "aurora"):
        settings = {"account": "a"} if system in ("frontier", "aurora") else {}
        site = systems.load_system(resources.find_resource("systems", system), settings)
        plan = expand_suite(suite.load_suite(out / "pretrain-promoted.yaml", system), site)
        by_name = {case.axis_values["backbone"]: case.parameters for case in plan.cases}
        assert by_name["mace"]["model"] == {
            "backbone": "mace", "hidden_dim": 56, "radial_type": "bessel", "cutoff": 4.5
        }  # fmt: skip
        assert by_name["painn"]["learning_rate"] == 1e-3
        assert plan.cases[0].nodes == {"local": 1, "slurm": 2}.get(system, 2048)
    assert main(["promote", "hpo-slum", "--out", str(out)]) == 2
    assert "did you mean 'hpo-slurm'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("space: {hiden_dim: {low: 1, high: 2}}", "unknown hyperparameter 'hiden_dim' (did you mean 'hidden_dim'?)"),
        ("space: {hidden_dim: {low: 2, high: 2}}", "from 2 to 2 is not a range"),
        ("space: {learning_rate: {low: 0, high: 1, log: true}}", "from 0 to 1 is not a range of a logarithm"),
        ("space: {hidden_dim: []}", "space.hidden_dim"),
        (
            "{space: {hidden_dim: [1, 2]}, trial: {bach_size: 2}}",
            "unknown key 'bach_size' (did you mean 'batch_size'?)",
        ),
        ("{space: {hidden_dim: [1, 2]}, halving: {eta: 1, min_epochs: 1}}", "a number of at least 2"),
    ],
)
def test_invalid_search_is_refused_in_one_line(
    parameters: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parameters = parameters if parameters.startswith("{") else f"{{{parameters}}}"
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\ntitle: Mine\nprogram: hpo\nparameters: {parameters}\n")
    assert main(["plan", str(path)]) == 2
    error = capsys.readouterr().err.splitlines()[0]
    assert error.startswith(f"error: {path}:4:")
    assert message in error


def test_hpo_suite_plans_on_every_system(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nodes = {"frontier": 2048, "aurora": 2048, "perlmutter": 128, "slurm": 4, "local": 1}
    for system, count in nodes.items():
        options = ["-S", "account=a"] if system in ("frontier", "perlmutter", "aurora") else []
        assert main(["plan", "hpo", "--system", system, "--out", str(tmp_path), *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 2 + 7
        assert f" {count} " in lines[2]
