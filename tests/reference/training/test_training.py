"""Training learns, stops and resumes; the gate selects the right branch; states of other runs are refused."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.config import resources, suite
from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_events
from harness.protocol.programs.train import OptimizerParameters
from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.datasets.catalog import HEADS
from harness.reference.datasets.collection import load_shipped_splits
from harness.reference.datasets.shipped_sets import find_shipped_set, load_table
from harness.reference.datasets.splits import SPLITS
from harness.reference.distributed.group import process_group
from harness.reference.distributed.launch import RankInfo
from harness.reference.errors import InputError, NotFinite
from harness.reference.inference.prediction import Prediction, batched_heads
from harness.reference.models import checkpoints, sealed
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.potentials import reference_model
from harness.reference.potentials.physics import TOLERANCES
from harness.reference.training import evaluation, optimizer, state, trainer
from harness.reference.training.gate_training import train_gate
from harness.reference.training.loss import collate_labelled
from harness.reference.training.meters import ErrorMeter, measure_errors
from harness.reference.training.optimizer import OptimizerState
from tests.reference.conftest import make_molecule
from tests.reference.programs.test_scaling import launch_case, make_rank_environment, wait_until
from tests.support.mpi import find_mpiexec
from tests.support.programs import run_program

SIZES = {"hidden_dim": 8, "num_conv_layers": 2, "cutoff": 4.0, "dim_sharedlayers": 8, "dim_headlayers": 8}
TINY = ModelConfig(**SIZES)  # type: ignore[arg-type]
SHORT: dict[str, Any] = {
    "precision": "fp64",
    "model": SIZES,
    "datasets": ["qm7x", "transition1x", "oc2022"],
    "batch_size": 8,
    "epochs": 2,
    "samples_per_epoch": 64,
    "max_validation_structures": 8,
    "gate_steps": 5,
    "clip_norm": 1.0,
    "ema_decay": 0.9,
    "compile": False,
    "timeout_s": 30,
}
Log = list[dict[str, Any]]


def run_training(folder: Path, **parameters: object) -> Log:
    """Return the events of a run in this process."""
    return read_last_events(run_program("train", SHORT | parameters, folder).path)


def launch_training(folder: Path, count: int, **parameters: object) -> Log:
    """Return the events of a run with `count` ranks."""
    folder.mkdir(exist_ok=True)
    content = {"id": "1", "program": "train", "parameters": SHORT | parameters}
    (folder / "case.json").write_text(json.dumps(content))
    result = launch_case(folder, count)
    assert result.returncode == 0, result.stderr
    return read_last_events(folder / "events.jsonl")


def get_event_values(log: Log, kind: str, field: str) -> list[Any]:
    return [e[field] for e in log if e["event"] == kind]


def get_fact(log: Log, name: str) -> Any:
    (value,) = [e["value"] for e in log if e["event"] == "fact" and e["name"] == name]
    return value


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Log]:
    folder = tmp_path_factory.mktemp("one")
    return folder, run_training(folder)


def test_errors_fall_and_are_recorded_for_each_epoch_and_head(tmp_path: Path) -> None:
    options = {"learning_rate": 5e-3, "schedule": "cosine", "force_weight": 1.0, "clip_norm": 10.0}
    sizes = SIZES | {"hidden_dim": 24}
    log = run_training(tmp_path, datasets=["qm7x", "ani1x"], model=sizes, epochs=5, samples_per_epoch=400, **options)
    loss = get_event_values(log, "epoch", "loss")
    assert len(loss) == 5
    assert loss[-1] < 0.6 * loss[0]
    assert get_event_values(log, "epoch", "validation_loss")[-1] < 0.75 * loss[0]
    rows = [e for e in log if e["event"] == "head_errors" and e["epoch"] == 4]
    assert {(r["head"], r["split"]) for r in rows} == {
        (h, s) for h in ("QM7X", "ANI1x") for s in ("train", "validation")
    }
    assert sum(r["structures"] for r in rows if r["split"] == "train") == 400
    assert [r["head"] for r in get_fact(log, "test_errors")] == ["QM7X", "ANI1x"]


@pytest.mark.parametrize(("factor", "violated"), [(1.0, set()), (1.01, {"forces from energies"})])
def test_physics_of_the_checkpoint_is_checked_in_its_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, violated: set[str]
) -> None:
    def predict(model: FoundationModel, batch: Batch, weights: torch.Tensor) -> Prediction:
        energy, forces = batched_heads(model, batch, weights)
        return Prediction(energy, factor * forces)

    monkeypatch.setattr(reference_model, "batched_heads", predict)
    log = run_training(tmp_path, physics_transformations=2, precision="fp32", epochs=1, samples_per_epoch=16)
    checks = [e for e in log if e["event"] == "physics_check"]
    assert {e["check"] for e in checks if e["passed"] is False} == violated
    assert {e["tolerance"] for e in checks if e["check"] == "rotation: forces"} == {TOLERANCES["float32"].force}
    (unknown,) = [e for e in checks if e["passed"] is None]
    assert (unknown["structure"], "no head was trained" in unknown["reason"]) == ("crystal", True)


def test_checkpoint_records_its_trained_heads_and_test_errors(finished_run: tuple[Path, Log]) -> None:
    folder, log = finished_run
    model, notes = checkpoints.load(folder / "model.safetensors")
    assert get_event_values(log, "epoch", "best")[0]
    assert {HEADS[k] for k in range(16) if model.trained[k]} == {"QM7X", "transition1x", "OC2022"}
    assert notes["test_errors"] == get_fact(log, "test_errors")


def test_baseline_test_errors_match_numpy(finished_run: tuple[Path, Log]) -> None:
    """The expected values are computed with numpy from the shipped files."""
    row = next(r for r in get_fact(finished_run[1], "test_errors") if r["dataset"] == "qm7x")
    parts = load_shipped_splits("qm7x", test_fraction=0.1, seed=17)
    records = parts[SPLITS[2]].samples.get(range(len(parts[SPLITS[2]].samples)))
    assert row["structures"] == len(records)
    forces = np.concatenate([r["forces"].ravel() for r in records])
    assert row["zero_force_mae_ev_per_angstrom"] == pytest.approx(np.abs(forces).mean(), rel=1e-9)
    assert row["zero_force_rmse_ev_per_angstrom"] == pytest.approx(np.sqrt((forces**2).mean()), rel=1e-9)
    reference = parts[SPLITS[0]].references.energy_ev
    errors = [
        abs(r["energy"][0] - reference[r["atomic_numbers"][:, 0].astype(int)].sum()) / len(r["pos"]) for r in records
    ]
    assert row["composition_mae_ev_per_atom"] == pytest.approx(np.mean(errors), rel=1e-6)


def test_splits_keep_each_group_together() -> None:
    parts = load_shipped_splits("transition1x", test_fraction=0.1, seed=17)
    records = [parts[s].samples.get(range(len(parts[s].samples))) for s in SPLITS]
    assert sum(map(len, records)) == find_shipped_set("transition1x").count
    frames = load_table(find_shipped_set("transition1x"))
    group_by_positions = {s.positions.tobytes(): s.group for s in frames.structures()}
    groups = [{group_by_positions[record["pos"].tobytes()] for record in split} for split in records]
    assert all(groups)
    assert len(set.union(*groups)) == sum(map(len, groups))


def test_two_ranks_with_the_same_total_batch_have_the_losses_of_one_rank(
    finished_run: tuple[Path, Log], tmp_path: Path
) -> None:
    two_rank_log = launch_training(tmp_path, 2, batch_size=4)
    assert get_event_values(two_rank_log, "epoch", "loss") == pytest.approx(
        get_event_values(finished_run[1], "epoch", "loss"), rel=1e-10
    )
    assert get_event_values(two_rank_log, "epoch", "validation_loss") == pytest.approx(
        get_event_values(finished_run[1], "epoch", "validation_loss"), rel=1e-10
    )
    assert [r["energy_mae_ev_per_atom"] for r in get_fact(two_rank_log, "test_errors")] == pytest.approx(
        [r["energy_mae_ev_per_atom"] for r in get_fact(finished_run[1], "test_errors")], rel=1e-9
    )


def test_batches_balanced_by_atoms_have_the_losses_of_batches_balanced_by_graphs(
    finished_run: tuple[Path, Log], tmp_path: Path
) -> None:
    """Ranks take different numbers of graphs in a step, and every graph has the same weight."""
    two_rank_log = launch_training(tmp_path, 2, batch_size=4, balance="atoms")
    assert get_event_values(two_rank_log, "epoch", "loss") == pytest.approx(
        get_event_values(finished_run[1], "epoch", "loss"), rel=1e-10
    )


@pytest.mark.slow
def test_parallel_heads_have_the_losses_and_weights_of_replicated_heads(tmp_path: Path) -> None:
    logs = [
        launch_training(tmp_path / kind, 2, batch_size=4, sampling="assigned", heads=kind)
        for kind in ("replicated", "parallel")
    ]
    for kind, field in (("epoch", "loss"), ("epoch", "energy_mae_ev_per_atom")):
        assert get_event_values(logs[1], kind, field) == pytest.approx(
            get_event_values(logs[0], kind, field), rel=1e-10
        )
    errors = [[r["force_mae_ev_per_angstrom"] for r in get_fact(log, "test_errors")] for log in logs]
    assert errors[1] == pytest.approx(errors[0], rel=1e-9)
    models = [
        checkpoints.load(tmp_path / kind / "model.safetensors")[0].state_dict() for kind in ("replicated", "parallel")
    ]
    for name, value in models[0].items():
        # Heads without data change only by weight decay.
        rows = [4, 14, 15] if name.startswith("heads.") else slice(None)
        if not name.startswith("gate."):
            assert torch.allclose(value[rows], models[1][name][rows], rtol=1e-8, atol=1e-12), name


def test_run_killed_in_mid_epoch_resumes_bitwise(tmp_path: Path) -> None:
    options = {"epochs": 3, "checkpoint_interval_s": 1e-6, "precision": "fp32"}
    uninterrupted, killed = tmp_path / "whole", tmp_path / "killed"
    expected = launch_training(uninterrupted, 1, **options)
    killed.mkdir()
    content = {"id": "1", "program": "train", "parameters": SHORT | options}
    (killed / "case.json").write_text(json.dumps(content))
    command = [sys.executable, "-m", "harness.reference", str(killed)]
    process = subprocess.Popen(command, env=make_rank_environment())
    try:
        wait_until(lambda: (killed / state.FILE_NAME).exists() and read_step(killed) >= 11)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert read_step(killed) < 24
    resumed = launch_training(killed, 1, **options)
    (step,) = get_event_values(resumed, "resumed", "step")
    assert step >= 11
    assert get_event_values(resumed, "epoch", "loss") == get_event_values(expected, "epoch", "loss")
    states = [checkpoints.load(folder / "model.safetensors")[0].state_dict() for folder in (uninterrupted, killed)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_a_killed_run_with_parallel_heads_resumes(tmp_path: Path) -> None:
    """The state has one part for each group of ranks; it is saved every fifty steps and after every epoch."""
    options = {"sampling": "assigned", "heads": "parallel", "batch_size": 4, "epochs": 3, "samples_per_epoch": 480}
    options |= {"checkpoint_interval_s": 1e-6}
    uninterrupted, killed = tmp_path / "whole", tmp_path / "killed"
    expected = launch_training(uninterrupted, 2, **options)
    killed.mkdir()
    content = {"id": "1", "program": "train", "parameters": SHORT | options}
    (killed / "case.json").write_text(json.dumps(content))
    command = [find_mpiexec(), "-n", "2", sys.executable, "-m", "harness.reference", str(killed)]
    process = subprocess.Popen(command, env=make_rank_environment(), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: (killed / state.FILE_NAME).exists() and read_step(killed) >= 50)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert read_step(killed) < 180
    resumed = launch_training(killed, 2, **options)
    assert get_event_values(resumed, "resumed", "step")[0] >= 50
    assert get_event_values(resumed, "epoch", "loss") == pytest.approx(
        get_event_values(expected, "epoch", "loss"), rel=1e-12
    )
    assert get_fact(resumed, "test_errors") == get_fact(expected, "test_errors")


def read_state(folder: Path) -> dict[str, Any]:
    path = folder / state.FILE_NAME
    return dict(sealed.unflatten(sealed.read_header(path, state.KIND).about, sealed.read_tensors(path))["state"])


def read_step(folder: Path) -> int:
    return int(read_state(folder)["progress"]["step"])


def test_a_finished_run_repeats_its_results(finished_run: tuple[Path, Log]) -> None:
    repeated = run_training(finished_run[0])
    assert get_event_values(repeated, "epoch", "loss") == get_event_values(finished_run[1], "epoch", "loss")
    assert get_fact(repeated, "test_errors") == get_fact(finished_run[1], "test_errors")


def test_state_of_another_run_is_refused_with_the_difference(
    finished_run: tuple[Path, Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / state.FILE_NAME).write_bytes((finished_run[0] / state.FILE_NAME).read_bytes())
    with pytest.raises(
        InputError, match=r"training.safetensors: the state of another run, whose learning_rate is 0.001, not 0.1"
    ):
        run_training(tmp_path, learning_rate=0.1)
    monkeypatch.setattr(state, "FORMAT", state.FORMAT + 1)
    with pytest.raises(InputError, match="the state of another version"):
        run_training(tmp_path)
    (tmp_path / state.FILE_NAME).write_bytes(b"half")
    with pytest.raises(InputError, match=r"training.safetensors: not a readable training state"):
        run_training(tmp_path)


def test_non_finite_loss_ends_the_run_and_saves_the_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the loss is not finite at step \d+ \(rank 0\): \S+/\d+") as caught:
        run_training(tmp_path, learning_rate=1e30, clip_norm=None)
    path = tmp_path / "bad-batch.safetensors"
    names = sealed.read_header(path, "gfm-harness batch").about["names"]
    reported = str(caught.value).split("): ")[1].split(";")[0].split(", ")
    assert set(reported) <= set(names)
    assert len(names) == 8
    assert sealed.read_tensors(path)["positions"].shape[1] == 3


def test_a_non_finite_gradient_is_skipped_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original_step, schedule = trainer.Trainer.take_step, iter(range(1000))

    def overflowing(self: trainer.Trainer, *arguments: Any) -> None:
        if next(schedule) in (1, 4):
            weight = self.model.encoder.embedding.weight
            handle = weight.register_hook(lambda g: g * math.inf)
            original_step(self, *arguments)
            handle.remove()
        else:
            original_step(self, *arguments)

    monkeypatch.setattr(trainer.Trainer, "take_step", overflowing)
    log = run_training(tmp_path)
    skipped = [e for e in log if e["event"] == "skipped"]
    assert [e["step"] for e in skipped] == [1, 4]
    assert all("/" in e["worst"] for e in skipped)
    assert all(math.isfinite(value) for value in get_event_values(log, "epoch", "loss"))
    assert [e["structures_per_s"] * e["duration_s"] for e in log if e["event"] == "epoch"] == pytest.approx([64, 64])
    monkeypatch.setattr(optimizer.nn.utils, "get_total_norm", lambda _: torch.tensor(math.nan))
    (tmp_path / "again").mkdir()
    with pytest.raises(NotFinite, match="the gradient is not finite at step 9"):
        run_training(tmp_path / "again", epochs=4)


def test_epoch_without_a_step_has_no_training_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer.nn.utils, "get_total_norm", lambda _: torch.tensor(math.nan))
    (epoch,) = [e for e in run_training(tmp_path, epochs=1) if e["event"] == "epoch"]
    assert not {"loss", "energy_mae_ev_per_atom", "force_mae_ev_per_angstrom"} & epoch.keys()
    assert epoch["validation_loss"] > 0


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [(None, InputError, "no structure of the validation sets"), (math.nan, NotFinite, "after epoch 0")],
)
def test_run_without_a_validation_loss_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float | None, kind: type[Exception], message: str
) -> None:
    meter = ErrorMeter()
    if error is not None:
        meter.sums[HEADS.index("QM7X")] = torch.tensor([error, 1.0, 1.0, 1.0])
    monkeypatch.setattr(trainer, "measure_errors", lambda *_: meter)
    with pytest.raises(kind, match=message):
        run_training(tmp_path)


def test_unknown_forces_have_no_error(finished_run: tuple[Path, Log]) -> None:
    model, _ = checkpoints.load(finished_run[0] / "model.safetensors")
    molecule, head = make_molecule(5), HEADS.index("QM7X")
    labelled = replace(molecule, head=head, energy=0.0, forces=np.ones((5, 3)))
    unlabelled = replace(labelled, forces=None)
    references = torch.zeros(model.config.heads, 119, dtype=torch.float64)

    def measure(structures: list[Structure]) -> ErrorMeter:
        graphs = [model.config.neighbour_spec.build_list(s) for s in structures]
        return measure_errors(model, [collate_labelled(graphs, references, model.scale.dtype)])

    only_labelled, both, only_unlabelled = (
        measure(s) for s in ([labelled], [labelled, unlabelled], [unlabelled, unlabelled])
    )
    assert both.compute_means()[1] == pytest.approx(only_labelled.compute_means()[1])
    assert both.compute_head_means()[head][1:] == (pytest.approx(only_labelled.compute_means()[1]), 2)
    assert only_unlabelled.compute_means()[1] is None
    assert only_unlabelled.compute_head_means()[head][1] is None


def test_saved_state_has_the_wait_for_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[dict[str, Any]] = []
    monkeypatch.setattr(state, "save", lambda folder, content, identity: saved.append(content["progress"]))
    log = run_training(tmp_path, epochs=1, checkpoint_interval_s=1e-9, prefetch_batches=0)
    waits = [p["waited_s"] for p in saved if p["epoch"] == 0]
    assert len(waits) == 7, "after all steps but the last"
    assert 0 < waits[0] < waits[-1] < get_event_values(log, "epoch", "wait_s")[0]
    assert all(p["waited_s"] <= p["seconds"] for p in saved)


def write_case(root: Path, name: str, depends_on: list[str]) -> Path:
    """Write a case of a chain, in which each case continues the previous one, and return its folder."""
    (root / name).mkdir(parents=True)
    (root / name / "case.json").write_text(json.dumps({"id": name, "program": "train", "depends_on": depends_on}))
    return root / name


def test_chain_of_resumed_cases_gives_the_model_of_a_single_run(tmp_path: Path) -> None:
    uninterrupted = tmp_path / "whole"
    uninterrupted.mkdir()
    run_training(uninterrupted)
    first = run_training(write_case(tmp_path, "a", []), time_limit_minutes=1e-9)
    (stopped,) = [e for e in first if e["event"] == "stopped"]
    assert (stopped["reason"], stopped["epoch"], stopped["step"]) == ("1e-09 minutes have passed, the time limit", 0, 1)
    assert not (tmp_path / "a" / "model.safetensors").exists()
    second = run_training(write_case(tmp_path, "b", ["a"]), resume_previous=True)
    assert [e["step"] for e in second if e["event"] == "resumed"] == [1]
    third = run_training(write_case(tmp_path, "c", ["b"]), resume_previous=True)
    assert get_fact(third, "completed_in") == "b"
    assert not [e for e in third if e["event"] == "epoch"]
    expected, _ = checkpoints.load(uninterrupted / "model.safetensors")
    for name in "bc":
        model, _ = checkpoints.load(tmp_path / name / "model.safetensors")
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))
    with pytest.raises(InputError, match="expected one case before this one"):
        run_training(write_case(tmp_path, "d", []), resume_previous=True)
    (tmp_path / "e").mkdir()
    with pytest.raises(InputError, match="no state to continue from"):
        run_training(write_case(tmp_path, "f", ["e"]), resume_previous=True)


def test_training_stops_early_without_improvement(tmp_path: Path) -> None:
    log = run_training(
        tmp_path, epochs=9, early_stopping_patience=2, learning_rate=1e-12, warmup_steps=10**9, ema_decay=None
    )
    (stopped,) = [e for e in log if e["event"] == "stopped"]
    assert stopped["reason"] == "no improvement for 2 epochs"
    assert len(get_event_values(log, "epoch", "loss")) < 9


def test_learning_rate_halves_when_the_validation_loss_stagnates() -> None:
    model = torch.nn.Linear(1, 1)
    schedule = OptimizerState(
        model,
        list(model.parameters()),
        OptimizerParameters(learning_rate=1e-2, plateau_patience=2, warmup_steps=4),
        100,
    )
    rates = []
    for epoch in range(9):
        for _ in range(2):
            rates.append(schedule.learning_rate)
            schedule.step()
        schedule.end_epoch(1.0 if epoch else 2.0)
    assert rates[:4] == pytest.approx([0.0025, 0.005, 0.0075, 0.01])
    assert rates[4:10] == pytest.approx([0.01] * 6)
    assert rates[10] == pytest.approx(0.005)
    assert schedule.learning_rate == pytest.approx(0.0025)


def test_cosine_schedule_ends_at_a_hundredth_of_the_learning_rate() -> None:
    model = torch.nn.Linear(1, 1)
    schedule = OptimizerState(
        model, list(model.parameters()), OptimizerParameters(learning_rate=1.0, schedule="cosine"), 50
    )
    for _ in range(25):
        schedule.step()
    assert schedule.learning_rate == pytest.approx(0.505)
    for _ in range(25):
        schedule.step()
    assert schedule.learning_rate == pytest.approx(0.01)


@pytest.mark.parametrize(("name", "layer_dtype"), [("fp64", "float64"), ("fp32", "float32"), ("bf16", "bfloat16")])
def test_the_observed_precision_is_recorded(tmp_path: Path, name: str, layer_dtype: str) -> None:
    log = run_training(tmp_path, precision=name, epochs=1, samples_per_epoch=16)
    observed = get_fact(log, "runtime")
    parameter_dtype = "float64" if name == "fp64" else "float32"
    assert observed["precision"] == name
    assert observed["matrix_layers"] == [f"torch.{layer_dtype}"]
    assert {*observed["parameters"], observed["energies"], observed["forces"], observed["pooled"]} == {
        f"torch.{parameter_dtype}"
    }
    assert math.isfinite(get_event_values(log, "epoch", "loss")[0])


@pytest.mark.slow
def test_compiled_training_has_the_losses_of_eager_training(finished_run: tuple[Path, Log], tmp_path: Path) -> None:
    log = run_training(tmp_path, compile=True)
    assert get_fact(log, "runtime")["compiled"], get_fact(log, "runtime")["eager_reason"]
    assert get_event_values(log, "epoch", "loss") == pytest.approx(
        get_event_values(finished_run[1], "epoch", "loss"), rel=1e-8
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"datasets": []}, r"datasets is \[\], expected at least 1 value"),
        ({"datasets": ["qm7x", "qm7x"]}, "datasets: duplicate value 'qm7x'"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"test_fraction": 0.5}, "test_fraction is 0.5"),
        ({"heads": "parallel"}, "parallel heads need assigned sampling"),
        ({"model": {"num_gaussians": 9}}, "num_gaussians is not a hyperparameter of the backbone 'painn'"),
        ({"model": {"backbone": "paint"}}, r"did you mean 'painn'\?"),
        ({"model": {"hidden_dim": 0}}, "hidden_dim is 0, expected at least 1"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        (
            {"max_structures_per_dataset": 1, "datasets": ["qm7x"], "test_fraction": 0.49, "split_seed": 1},
            "structures is in the trainset split",
        ),
        ({"rate": 1}, "unknown parameter 'rate'"),
    ],
)
def test_bad_options_give_one_line_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises((InputError, UsageError), match=message):
        run_training(tmp_path, **options)


def test_gate_learns_to_select_the_right_branch() -> None:
    """The gate must distinguish two datasets of different elements."""
    graphs = []
    for head, element in ((0, 6), (15, 29)):
        for seed in range(20):
            s = make_molecule(4, seed)
            graphs.append(
                build_neighbour_list(Structure(s.name, np.full(4, element), s.positions, head=head), cutoff=4.0)
            )
    torch.manual_seed(0)
    model = FoundationModel(TINY).requires_grad_(False)
    model.heads.layers[-1].bias.copy_(torch.arange(16.0).reshape(16, 1, 1))  # type: ignore[operator]
    model.gate.requires_grad_(True)
    batch = build_batch(graphs).to("cpu", torch.float32)
    result = train_gate(model, [batch], temperature=1.0, steps=400, seed=0)
    assert result.energy_error_ev_per_atom < 0.5
    assert result.accuracy == 1.0
    weights = model.gate(batch.composition)
    assert (weights[:20, 0] > 0.9).all()
    assert (weights[20:, 15] > 0.9).all()


def test_shipped_checkpoint_was_trained_with_the_parameters_of_its_suite() -> None:
    model, notes = checkpoints.load(checkpoints.SHIPPED / "painn-64.safetensors")
    expected = suite.load_suite(resources.find_resource("suites", "pretrain"), "local").parameters
    recorded = notes["training"]
    assert isinstance(recorded, dict)
    sizes = model.config.asdict()
    assert {k: sizes[k] for k in expected["model"]} == expected["model"]
    fixed = {k: v for k, v in expected.items() if k != "model" and "{{" not in str(v)}
    del fixed["physics_transformations"]  # of the checks at the end, which the weights do not depend on
    assert {k: recorded[k] for k in fixed} == fixed


def test_shipped_checkpoint_beats_the_baselines() -> None:
    """All heads are trained, and the recorded held-out errors beat the baselines."""
    model, notes = checkpoints.load(checkpoints.SHIPPED / "painn-64.safetensors")
    test_errors = json.loads(json.dumps(notes["test_errors"]))
    assert [r["head"] for r in test_errors] == list(HEADS)
    assert model.trained.all()
    mae, zero_mae = "force_mae_ev_per_angstrom", "zero_force_mae_ev_per_angstrom"
    forces = [r["head"] for r in test_errors if r[mae] <= r[zero_mae] / 2]
    energies = [r["head"] for r in test_errors if r["energy_mae_ev_per_atom"] <= r["composition_mae_ev_per_atom"] / 3]
    assert len(forces) >= 12, test_errors
    assert len(energies) >= 6, test_errors


def test_mean_energy_uses_structures_spread_over_the_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small dataset is read completely, a large one in part and in batches."""
    dataset = load_shipped_splits("qm7x", test_fraction=0.1, seed=17)[SPLITS[0]]
    records = dataset.samples.get(np.arange(len(dataset.samples)))
    energies_per_atom = np.array([float(r["energy"][0]) / len(r["atomic_numbers"]) for r in records])
    batch_sizes: list[int] = []
    get = dataset.samples.get
    monkeypatch.setattr(dataset.samples, "get", lambda which: (batch_sizes.append(len(which)), get(which))[1])
    with process_group(RankInfo(), backend="gloo", device=torch.device("cpu"), timeout_s=60) as world:
        assert evaluation.compute_mean_energy(dataset, world) == pytest.approx(energies_per_atom.mean(), rel=1e-12)
        monkeypatch.setattr(evaluation, "MEAN_SAMPLE", 25)
        monkeypatch.setattr(evaluation, "MEAN_BATCH", 10)
        batch_sizes.clear()
        selected = np.linspace(0, len(energies_per_atom) - 1, 25).round().astype(int)
        assert evaluation.compute_mean_energy(dataset, world) == pytest.approx(
            energies_per_atom[selected].mean(), rel=1e-12
        )
    assert batch_sizes == [10, 10, 5]
