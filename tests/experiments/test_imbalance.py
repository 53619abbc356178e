"""Treatments of imbalanced datasets have equal budgets, and their errors are compared with those of the plain one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config.resources import find_resource
from harness.config.suite import load_suite
from harness.config.system import load_system
from harness.planning.expand import expand_suite
from harness.protocol.events import read_last_run
from harness.report.render import write_report
from tests.experiments.test_training_report import load_tables, make_row, start_run, write_run
from tests.support.programs import run_program

SIZES = {"OC2022": 80, "QM7X": 160, "OMol25": 9000, "OMat24": 4000}
# the logs of write_run have the names of their first version
TREATMENTS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 1.0, "loss_units": "physical"},
    "equal": {"temperature": 1e6, "loss_units": "physical"},
    "weights": {"temperature": 1.0, "loss_units": "physical", "loss_temperature": 2.0},
    "hotter": {"temperature": 1e7, "loss_units": "physical"},
}


def write_treatment(out: Path, name: str, factors: dict[str, float], seed: int, **workload: Any) -> None:
    """Write a run whose errors are 10 meV/atom and 100 meV/angstrom times the factor of the head."""
    rows = [make_row(head, 0.01 * factor, 0.1 * factor) for head, factor in factors.items()]
    sets = [
        {k: r[k] for k in ("dataset", "head", "data_origin", "level_of_theory")}
        | {"train": SIZES[r["head"]], "test": 50, "samples_per_epoch": 20}
        for r in rows
    ]
    changes = {"datasets": sets, **TREATMENTS[name], **workload}
    write_run(out, f"{name}-{seed}", rows, seed, parameters=dict(TREATMENTS[name]), workload=changes)


def write_treatments(out: Path) -> None:
    """Write runs of two seeds; equal weights halve the errors of small sets, and raise those of large ones by 20%."""
    for seed in range(2):
        write_treatment(out, "plain", dict.fromkeys(SIZES, 1.0), seed)
        better = {head: (0.5 + 0.1 * seed if size < 2000 else 1.2) for head, size in SIZES.items()}
        write_treatment(out, "equal", better, seed)
        write_treatment(out, "weights", dict.fromkeys(SIZES, 0.9), seed)


def test_ratios_are_those_to_the_plain_treatment_by_seed_and_by_size(tmp_path: Path) -> None:
    write_treatments(tmp_path)
    tables = load_tables(tmp_path)
    sizes = tables["imbalance_sizes"].set_index(["treatment", "quantity", "size"])
    row = sizes.loc["equal sampling", "energy", "small"]
    logarithms = np.log([0.5, 0.6])
    half = 12.706204736432095 * logarithms.std(ddof=1) / math.sqrt(2)
    assert row["ratio"] == pytest.approx(math.sqrt(0.3))
    assert (row["ratio_low"], row["ratio_high"]) == pytest.approx(np.exp(logarithms.mean() + np.array([-half, half])))
    assert (row["heads"], row["seeds"]) == (2, 2)
    assert sizes.loc[("equal sampling", "forces", "large"), "ratio"] == pytest.approx(1.2)
    assert sizes.loc[("loss weights at T = 2", "forces", "small"), "ratio"] == pytest.approx(0.9)
    heads = tables["imbalance_heads"]
    assert set(heads.loc[heads["size"] == "small", "head"]) == {"OC2022", "QM7X"}
    assert set(heads["draws"]) == {60}
    assert tables["ablation_heads"].empty


def test_runs_with_another_budget_are_not_compared(tmp_path: Path) -> None:
    write_treatment(tmp_path, "plain", dict.fromkeys(SIZES, 1.0), 0)
    write_treatment(tmp_path, "equal", dict.fromkeys(SIZES, 0.5), 0, steps_per_epoch=11)
    assert load_tables(tmp_path)["imbalance_heads"].empty


def test_page_has_one_section_on_all_treatments(tmp_path: Path) -> None:
    write_treatments(tmp_path)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "Imbalance: 2 treatments of 4 datasets" in text
    assert "every run draws 240 samples in equally many steps" in text
    assert "Errors with equal sampling, divided by those of the plain treatment: energy of the" in text
    assert text.count("## Multi-task training") == 1, "the section on the plain treatment"


def test_treatments_of_one_description_are_averaged(tmp_path: Path) -> None:
    """Temperatures so high that both mean equal sampling share a row, which the figure needs."""
    for name, factor in (("plain", 1.0), ("equal", 0.9), ("hotter", 0.7)):
        write_treatment(tmp_path, name, dict.fromkeys(SIZES, factor), 0)
    heads = load_tables(tmp_path)["imbalance_heads"]
    assert not heads.duplicated(["treatment", "head", "quantity"]).any()
    assert heads["ratio"].tolist() == pytest.approx([0.8] * len(heads))
    write_report(tmp_path)
    assert "Imbalance: 1 treatment of 4 datasets" in (tmp_path / "report.md").read_text()


def test_an_unfinished_run_does_not_count(tmp_path: Path) -> None:
    write_treatments(tmp_path)
    start_run(tmp_path, "equal-9", [make_row("QM7X", 0.01, 0.1), make_row("OMol25", 0.01, 0.1)], 9)
    assert set(load_tables(tmp_path)["imbalance_pairs"]["seed"]) == {0, 1}


@pytest.mark.parametrize("system", ["local", "slurm", "frontier", "aurora", "perlmutter"])
def test_cases_differ_only_in_the_treatment_and_have_equal_budgets(system: str) -> None:
    settings = {} if system in ("local", "slurm") else {"account": "a"}
    plan = expand_suite(
        load_suite(find_resource("suites", "imbalance"), system),
        load_system(find_resource("systems", system), settings),
    )
    names = ("sampling", "sampling_temperature", "loss_temperature", "loss_units")
    treatments = {tuple(case.parameters.get(name) for name in names) for case in plan.cases}
    assert len(treatments) == 7
    assert ("mixed", 1.0, None, "physical") in treatments
    changed = {*names, "seed", "batch_size"}
    assert len({repr({k: v for k, v in c.parameters.items() if k not in changed}) for c in plan.cases}) == 1
    assert len({c.parameters["batch_size"] * c.ranks for c in plan.cases}) == 1


def test_treatments_train_with_weights_in_the_loss(tmp_path: Path) -> None:
    """A weight changes the model, and a weight of 1 does not: equal sampling needs no further equal weights."""
    small = {
        "datasets": ["qm7x", "transition1x"], "model": {"hidden_dim": 4, "num_conv_layers": 1, "dim_headlayers": 4},
        "epochs": 1, "samples_per_epoch": 32, "batch_size": 8, "gate_steps": 0,
        "compile": False, "max_validation_structures": 4,
    }  # fmt: skip
    losses = {}
    for name, treatment in {
        "plain": {"sampling_temperature": 1e6},
        "same": {"sampling_temperature": 1e6, "loss_temperature": 1e6},
        "other": {"sampling_temperature": 1e6, "loss_temperature": 0.2},
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        events = read_last_run(run_program("train", small | treatment, folder).path).events
        losses[name] = [e["loss"] for e in events if e["event"] == "epoch"]
        (workload,) = [e["value"] for e in events if e.get("name") == "workload"]
        assert workload.get("loss_temperature") == treatment.get("loss_temperature")
    assert losses["plain"] == pytest.approx(losses["same"], rel=1e-5)
    assert losses["plain"] != pytest.approx(losses["other"], rel=1e-3)
