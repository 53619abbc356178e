"""Checks of kernels, compilation, resuming and checkpoints fail when their fault is planted."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.protocol.programs.preflight import CalculationResult
from harness.reference.inference.prediction import Prediction, batched_heads
from harness.reference.models.backbones import painn
from harness.reference.ops import messages
from harness.reference.potentials import reference_model
from harness.reference.programs.ladder import stages
from harness.reference.programs.preflight import training_step
from harness.reference.programs.preflight.calculations import (
    NO_TIME,
    Budget,
    compute_error,
    judge_calculations,
    try_calculation,
)
from harness.reference.programs.preflight.checks import (
    backbones,
    checkpoint,
    kernels,
    ladder,
    resume,
    screening,
    training,
)
from harness.reference.training import state
from harness.reference.training.compile import CompileResult
from tests.reference.programs.preflight.contexts import make_context


def test_right_kernels_are_ok_in_all_precisions_and_derivatives(tmp_path: Path) -> None:
    outcome = kernels.check(make_context(tmp_path))
    assert outcome.finding.verdict == "ok", outcome.finding.observed
    names = {(r.calculation, r.precision) for r in outcome.calculations}
    for derivative in kernels.DERIVATIVES:
        assert {(f"painn model, {derivative}", p) for p in ("fp64", "fp32", "bf16")} <= names
        assert {(f"messages with vectors, {derivative}", p) for p in ("fp64", "fp32")} <= names
    assert all(r.duration_s and r.plain_s for r in outcome.calculations)


def test_kernel_that_is_off_by_one_thousandth_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = messages.messages

    def scale_messages(inputs: messages.MessageInputs) -> tuple[Tensor, Tensor]:
        s, v = right(inputs)
        return s * 1.001, v

    monkeypatch.setattr(messages, "messages", scale_messages)
    outcome = kernels.check(make_context(tmp_path))
    assert outcome.finding.verdict == "failed"
    wrong = {(r.calculation, r.precision) for r in outcome.calculations if r.error and r.error > (r.tolerance or 0)}
    assert {(f"messages with vectors, {d}", p) for d in kernels.DERIVATIVES for p in ("fp64", "fp32")} <= wrong


def test_screening_finds_a_wrong_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert screening.check(make_context(tmp_path)).finding.verdict == "ok"
    right = screening.score_energies_and_forces

    def score(*arguments: Any, fused: bool = False) -> Tensor:
        return right(*arguments, fused=fused) * (1.01 if fused else 1.0)

    monkeypatch.setattr(screening, "score_energies_and_forces", score)
    assert screening.check(make_context(tmp_path)).finding.verdict == "failed"


@pytest.fixture
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run compiled stages without compilation, which takes a minute."""
    compilers = (stages.compile_dynamic, stages.compile_static)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(training_step, "compile_loss", lambda *_: CompileResult(True))
    for compiler in compilers:
        compiler.cache_clear()
    yield
    for compiler in compilers:
        compiler.cache_clear()


@pytest.mark.usefixtures("_no_compiler")
@pytest.mark.parametrize("item", [ladder, training], ids=["ladder", "training"])
def test_ladder_and_training_find_a_wrong_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, item: ModuleType
) -> None:
    outcome = item.check(make_context(tmp_path))
    assert outcome.finding.verdict == "ok", outcome.finding.observed
    formulations = {result.formulation for result in outcome.calculations}
    assert "fused_messages" in formulations
    assert item is training or "static_graphs" in formulations
    assert all(result.peak_bytes for result in outcome.calculations)
    right = painn.messages
    monkeypatch.setattr(painn, "messages", lambda inputs: tuple(1.01 * x for x in right(inputs)))
    outcome = item.check(make_context(tmp_path))
    assert "fused_messages, fp32: error" in outcome.finding.observed, outcome.calculations
    assert "torch_compile" not in outcome.finding.observed


@pytest.mark.usefixtures("_no_compiler")
def test_ladder_compares_energies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ladder.PreparedStage.__call__

    def predict(stage: ladder.PreparedStage, *arguments: Any) -> Prediction:
        energy, forces = right(stage, *arguments)
        return Prediction(1.01 * energy if stage.stage.name == "batched_heads" else energy, forces)

    monkeypatch.setattr(ladder.PreparedStage, "__call__", predict)
    assert "batched_heads, fp32: error" in ladder.check(make_context(tmp_path)).finding.observed


def test_compiler_that_fails_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "compile_loss", lambda *_: CompileResult(False, "no C++ compiler"))
    outcome = backbones.check(make_context(tmp_path, backbones=["schnet", "egnn"]))
    assert outcome.finding.verdict == "failed"
    assert "training step of schnet, torch_compile, fp32: no C++ compiler" in outcome.finding.observed


def test_compiled_step_with_a_wrong_gradient_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "compile_loss", lambda *_: CompileResult(True))
    assert backbones.check(make_context(tmp_path, backbones=["schnet"])).finding.verdict == "ok"
    monkeypatch.setattr(training_step, "compute_step_errors", lambda *_: {"finite": True, "gradient_error": 0.1})
    assert backbones.check(make_context(tmp_path, backbones=["schnet"])).finding.verdict == "failed"


def test_ranks_share_the_backbones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "compile_loss", lambda *_: CompileResult(True))
    names = [
        result.calculation
        for rank in range(2)
        for result in backbones.check(
            make_context(tmp_path, rank, 2, backbones=["schnet", "egnn", "painn"])
        ).calculations
    ]
    assert sorted(names) == [f"training step of {name}" for name in ("egnn", "painn", "schnet")]


def test_calculations_without_time_are_not_checked_instead_of_ok() -> None:
    result = CalculationResult(calculation="a", formulation="b", precision="fp32")
    try_calculation(Budget(0.0), result, lambda _: None)
    assert result.unavailable_reason == NO_TIME
    assert judge_calculations("c", [result], "d").finding.verdict == "not checked"


def test_result_that_is_not_finite_is_a_failure() -> None:
    result = CalculationResult(calculation="a", formulation="b", precision="fp32", tolerance=1.0)
    assert judge_calculations("c", [result], "d").finding.observed == "a, b, fp32: the result is not finite"


def test_error_that_is_not_a_number_is_a_failure() -> None:
    result = CalculationResult(calculation="a", formulation="b", precision="fp32", error=math.nan, tolerance=1.0)
    assert judge_calculations("c", [result], "d").finding.verdict == "failed"
    values, gap = [torch.ones(2)], [torch.tensor([1.0, math.nan])]
    assert compute_error(values, gap) is compute_error(gap, values) is None


def test_item_without_calculations_is_not_checked() -> None:
    assert judge_calculations("c", [], "d").finding.verdict == "not checked"


def test_nan_in_any_tensor_of_a_state_is_a_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = {
        "first": {"a": torch.ones(2), "b": torch.ones(2)},
        "second": {"a": 2 * torch.ones(2), "b": torch.tensor([1.0, math.nan])},
    }
    monkeypatch.setattr(resume.sealed, "read_tensors", lambda path: states[path.name])
    assert math.isnan(resume.compare_states(tmp_path / "first", tmp_path / "second"))


@pytest.mark.slow
def test_killed_training_resumes_to_the_same_state(tmp_path: Path) -> None:
    finding = resume.check(make_context(tmp_path)).finding
    assert finding.verdict == "ok", finding.observed


@pytest.mark.slow
def test_resume_that_loses_a_step_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = state.load

    def lose_step(folder: Path, *, identity: dict[str, Any]) -> dict[str, Any] | None:
        loaded = load(folder, identity=identity)
        if loaded is not None:
            loaded["sampler"]["taken"] += 1
        return loaded

    monkeypatch.setattr(state, "load", lose_step)
    finding = resume.check(make_context(tmp_path)).finding
    assert finding.verdict == "failed", finding.observed


@pytest.mark.slow
def test_state_that_is_not_found_again_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "load", lambda folder, *, identity: None)
    assert "started from the beginning" in resume.check(make_context(tmp_path)).finding.observed


def test_checkpoint_of_the_user_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint.check(make_context(tmp_path)).finding.verdict == "not checked"
    finding = checkpoint.check(make_context(tmp_path, checkpoint="painn-64")).finding
    assert finding.verdict == "ok", finding.observed

    def predict(*arguments: Any) -> Prediction:
        energy, forces = batched_heads(*arguments)
        return Prediction(energy, 1.1 * forces)

    monkeypatch.setattr(reference_model, "batched_heads", predict)
    finding = checkpoint.check(make_context(tmp_path, checkpoint="painn-64")).finding
    assert finding.verdict == "failed"
    assert "forces from energies" in finding.observed
