"""Fine-tuning: initial weights and trained layers of each mode, scaling by training labels only, and interruptions."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_events
from harness.protocol.programs.transfer import TransferParameters
from harness.reference.errors import InputError, NotFinite
from harness.reference.models import checkpoints
from harness.reference.programs.transfer import finetune, program
from harness.reference.programs.transfer.finetune import Budget, compute_validation_loss, fit
from harness.reference.programs.transfer.modes import (
    MODES,
    MODES_BY_NAME,
    build_task_model,
    find_best_head,
    select_parameters,
)
from harness.reference.programs.transfer.splits import TaskSplits
from harness.reference.programs.transfer.target_scaling import fit_scaling
from harness.reference.tasks.catalog import find_task
from harness.reference.tasks.load import load_task
from tests.support.programs import run_program

SMALL: dict[str, Any] = {
    "labels": [20],
    "seeds": 1,
    "subsets": 1,
    "max_test_structures": 20,
    "steps": 6,
    "validation_interval_steps": 3,
    "batch_size": 4,
}


def run_study(folder: Path, **parameters: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    return read_last_events(run_program("transfer", SMALL | parameters, folder).path)


def make_splits(name: str) -> TaskSplits:
    model = checkpoints.load_named("painn-64")[0]
    return TaskSplits(find_task(name), load_task(name), model.config, 0.2, 40, 0)


def test_initial_head_of_a_task_was_trained_on_its_elements() -> None:
    model = checkpoints.load_named("painn-64")[0]
    composition = torch.zeros(3, 119)
    composition[:, 1] = composition[:, 6] = 1.0
    preferred = find_best_head(model, composition)
    model.known_elements[preferred, 6] = False
    other = find_best_head(model, composition)
    assert other != preferred
    assert model.known_elements[other, [1, 6]].all()
    composition[2, 94] = 1.0  # only one of the three structures contains it, so heads without it may be chosen
    assert model.known_elements[find_best_head(model, composition), [1, 6]].all()


@pytest.mark.parametrize("mode", [m for m in MODES if m.is_trained], ids=lambda m: m.name)
def test_mode_trains_exactly_its_layers(mode: Any) -> None:
    source = checkpoints.load_named("painn-64")[0].double()
    model = build_task_model(source, mode, 8, keep_task_layers=False, seed=0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    splits = make_splits("matbench_log_kvrh")
    draw = splits.draw("", 20, 0)
    reference_tensor = next(model.parameters())
    train, validation = (splits.build_data(k, draw.scaling, reference_tensor) for k in (draw.train, draw.validation))
    fit(
        model,
        select_parameters(model, mode),
        scaling=draw.scaling,
        train=train,
        validation=validation,
        budget=Budget(4, 4, 1e-2, 2, 9, 1.0),
        seed=0,
    )
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    shared = {f"heads.layers.{k}" for k in range(source.config.num_sharedlayers)}
    for name in changed:
        layers = "shared_layers" if name.rsplit(".", 1)[0] in shared else "task_layers"
        kind = "encoder" if name.startswith("encoder") else layers
        assert getattr(mode, f"trains_{kind}"), name
    for kind, start in (("encoder", "encoder."), ("task_layers", "heads.layers.3")):
        assert any(c.startswith(start) for c in changed) == getattr(mode, f"trains_{kind}")


def test_pretrained_modes_start_from_the_checkpoint_and_scratch_does_not() -> None:
    source = checkpoints.load_named("painn-64")[0]
    name = "encoder.embedding.weight"
    assert name in source.state_dict()
    for mode in MODES:
        model = build_task_model(source, mode, 8, keep_task_layers=True, seed=0)
        same = torch.equal(model.state_dict()[name], source.state_dict()[name])
        assert same == mode.pretrained
        last = model.heads.layers[-1].weight[0]
        assert torch.equal(last, source.heads.layers[-1].weight[8]) == mode.pretrained


def test_weights_with_the_lowest_validation_loss_are_returned() -> None:
    """With a learning rate so high that the loss only rises, the initial weights are kept."""
    source = checkpoints.load_named("painn-64")[0].double()
    splits = make_splits("qm9")
    draw = splits.draw("", 20, 0)
    model = build_task_model(source, MODES_BY_NAME["full"], 8, keep_task_layers=True, seed=0)
    reference_tensor = next(model.parameters())
    train, validation = (splits.build_data(k, draw.scaling, reference_tensor) for k in (draw.train, draw.validation))
    before = compute_validation_loss(model, draw.scaling, validation, 1.0)
    budget = Budget(20, 4, 1e3, 2, 3, 1.0)
    outcome = fit(
        model,
        select_parameters(model, MODES_BY_NAME["full"]),
        scaling=draw.scaling,
        train=train,
        validation=validation,
        budget=budget,
        seed=0,
    )
    assert outcome.best_step == 0
    assert outcome.steps == 6, "three validations without improvement stop the training"
    assert compute_validation_loss(model, draw.scaling, validation, 1.0) == pytest.approx(before)


def test_steps_with_a_non_finite_gradient_are_skipped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoints.load_named("painn-64")[0].double()
    splits = make_splits("qm9")
    draw = splits.draw("", 20, 0)
    model = build_task_model(source, MODES_BY_NAME["full"], 8, keep_task_layers=True, seed=0)
    data = splits.build_data(draw.train, draw.scaling, next(model.parameters()))
    clip, norms = finetune.nn.utils.clip_grad_norm_, iter([math.nan, 1.0, math.inf])
    monkeypatch.setattr(finetune.nn.utils, "clip_grad_norm_", lambda *a: clip(*a) * next(norms))
    result = fit(
        model,
        select_parameters(model, MODES_BY_NAME["full"]),
        scaling=draw.scaling,
        train=data,
        validation=data,
        budget=Budget(3, 4, 1e-3, 3, 3, 1.0),
        seed=0,
    )
    assert (result.steps, result.skipped_steps) == (3, 2)


def test_scaling_does_not_depend_on_the_test_set() -> None:
    """The test set is the same for all seeds and disjoint from the training set; changed test labels do not matter."""
    splits = make_splits("qm9")
    draws = [splits.draw("", 100, k) for k in range(3)]
    assert len({tuple(d.test.tolist()) for d in draws}) == 1
    assert not {*draws[0].train, *draws[0].validation} & {*draws[0].test}
    assert set(draws[0].train.tolist()) != set(draws[1].train.tolist())
    target = splits.dataset.target.copy()
    target[draws[0].test] = 1e9
    target[draws[0].validation] = -1e9
    frames = splits.dataset.table
    repeated = fit_scaling(frames[draws[0].train], target[draws[0].train], extensive=True)
    assert repeated.energies.tolist() == draws[0].scaling.energies.tolist()


@pytest.mark.parametrize("name", ["qm9", "wiggle150", "oqmd", "md17"])
def test_a_study_records_every_mode_and_its_predictions(name: str, tmp_path: Path) -> None:
    log = run_study(tmp_path, task=name)
    (task_event,) = [e for e in log if e["event"] == "task"]
    assert task_event["available"] is True
    fits = {e["mode"]: e for e in log if e["event"] == "fit"}
    expected = {m.name for m in MODES} - ({"as_pretrained"} if find_task(name).kind == "property" else set())
    assert set(fits) == expected
    (baseline,) = [e for e in log if e["event"] == "baseline"]
    assert baseline["composition_mae"] > 0
    for mode, event in fits.items():
        (path,) = (tmp_path / "fits").glob(f"*-{mode}.npz")
        predictions = np.load(path)
        assert np.abs(predictions["predicted"] - predictions["target"]).mean() == pytest.approx(event["mae"])
        assert (event["force_mae"] is not None) == (name == "md17")


def test_task_without_data_names_the_required_files(tmp_path: Path) -> None:
    log = run_study(tmp_path, task="matbench_phonons")
    (task_event,) = [e for e in log if e["event"] == "task"]
    assert task_event["available"] is False
    assert "needs matbench_phonons.json.gz, from https://" in task_event["needs"]
    assert not [e for e in log if e["event"] == "fit"]


def test_diverged_fit_is_logged_without_errors_and_others_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise NotFinite("no validation loss is finite")

    monkeypatch.setattr(program, "fit", diverge)
    fits = {e["mode"]: e for e in run_study(tmp_path, task="qm9") if e["event"] == "fit"}
    assert set(fits) == {m.name for m in MODES}
    for name, event in fits.items():
        assert (event["mae"] is None) == (event.get("rmse") is None) == MODES_BY_NAME[name].is_trained


def test_predictions_that_are_not_finite_have_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def predict(*arguments: Any, **options: Any) -> Any:
        value, forces = finetune.predict(*arguments, **options)
        return value * math.nan, forces

    monkeypatch.setattr(program, "predict", predict)
    fits = [e for e in run_study(tmp_path, task="md17", modes=["head_only"]) if e["event"] == "fit"]
    assert [(e["mae"], e["force_mae"] is None) for e in fits] == [(None, False)]


def test_folds_of_unequal_size_have_the_same_numbers_of_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = make_splits("qm9")
    config = TransferParameters(task="qm9", labels=(30, 300), seeds=3)
    study = program.TransferStudy(config, Budget(1, 1, 1e-3, 1, 1, 1.0), splits, torch.nn.Module(), tmp_path)  # type: ignore[arg-type]
    monkeypatch.setattr(splits, "count_labels", lambda subset, number: 101 + number % 2)
    assert study.list_draws() == [("", labels, seed) for labels in (30, 101) for seed in range(3)]
    monkeypatch.setattr(splits, "count_labels", lambda subset, number: 2)
    with pytest.raises(InputError, match="qm9: 2 structures to draw labels from, expected at least 3"):
        study.list_draws()


def test_bad_input_gives_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"modes.0 is 'frozen' \(did you mean 'frozen_encoder'\?\)"):
        run_study(tmp_path / "a", task="qm9", modes=["frozen"])
    with pytest.raises(UsageError, match=r"task is 'qm8' \(did you mean 'qm9'\?\)"):
        run_study(tmp_path / "b", task="qm8")
    with pytest.raises(UsageError, match=r"labels.0 is 2, expected"):
        run_study(tmp_path / "d", task="qm9", labels=[2])
    with pytest.raises(InputError, match="no such folder"):
        run_study(tmp_path / "c", task="qm9", task_folder=str(tmp_path / "nowhere"))


def test_gate_selects_a_trained_head() -> None:
    model = checkpoints.load_named("painn-64")[0]
    composition = torch.zeros(1, 119)
    composition[0, [1, 6, 8]] = 2.0
    head = find_best_head(model, composition)
    assert bool(model.trained[head])
    model.trained[head] = False
    assert find_best_head(model, composition) != head


@pytest.mark.slow
def test_a_killed_study_resumes_to_the_same_errors(tmp_path: Path) -> None:
    parameters = {
        **SMALL,
        "task": "matbench_log_kvrh",
        "labels": [10, 20],
        "seeds": 2,
        "steps": 40,
        "validation_interval_steps": 10,
    }
    uninterrupted = run_study(tmp_path / "uninterrupted", **parameters)
    interrupted = tmp_path / "interrupted"
    interrupted.mkdir()
    (interrupted / "case.json").write_text(json.dumps({"id": "1", "program": "transfer", "parameters": parameters}))
    command = [sys.executable, "-m", "harness.reference", str(interrupted)]
    first = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 120
    while len(list(interrupted.glob("fits/*.json"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait(60)
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300)
    errors = [
        {(e["mode"], e["labels"], e["seed"]): round(e["mae"], 9) for e in log if e["event"] == "fit"}
        for log in (uninterrupted, read_last_events(interrupted / "events.jsonl"))
    ]
    assert errors[0] == errors[1]
    assert len(errors[0]) == 16
