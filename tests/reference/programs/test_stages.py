"""Every stage of the ladder has the energies and forces of the baseline, unless the stage is marked as inexact."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch._dynamo.utils import counters

from harness.reference.data.batch import Batch
from harness.reference.inference.prediction import Predict, baseline, batched_heads, branch_skip, find_active_heads
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages
from harness.reference.programs.ladder.stages import (  # fmt: skip
    LADDER,
    Stage,
    StageUnavailable,
    StaticGraphs,
    compile_dynamic,
    leave_eager,
    mixed_precision,
)
from harness.reference.programs.ladder.workload import fix_gate
from harness.reference.training.compile import count_compiled_graphs
from tests.reference.conftest import make_batch, make_crystal, make_model, make_molecule

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
# Relative to the largest force and energy: branch_skip omits forces of idle branches, bfloat16 has 8 significant bits.
INEXACT_TOLERANCE = {"branch_skip": 0.1, "mixed_precision": 0.05}


@pytest.fixture(scope="module")
def batch() -> Batch:
    return make_batch([make_molecule(), make_crystal(), make_molecule(1, seed=7), make_molecule(12, seed=8)])


def check_stage(stage: Stage, predict: Predict, batch: Batch) -> None:
    dtype = batch.positions.dtype
    model = make_model().to(dtype)
    weights = model.gate(batch.composition)
    expected = baseline(model, batch, weights)
    got = predict(model, batch, weights)
    assert got.energy.dtype == got.forces.dtype == dtype
    assert not got.energy.requires_grad
    assert not got.forces.requires_grad
    force_scale, energy_scale = expected.forces.abs().max(), expected.energy.abs().max()
    tolerance = TOLERANCE[dtype] if stage.exact else INEXACT_TOLERANCE[stage.name]
    assert (got.forces - expected.forces).abs().max() <= tolerance * force_scale
    assert (got.energy - expected.energy).abs().max() <= tolerance * energy_scale


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp64", "fp32"])
@pytest.mark.parametrize("stage", LADDER, ids=lambda s: s.name)
def test_stages_agree_with_the_baseline(stage: Stage, dtype: torch.dtype, batch: Batch) -> None:
    messages.load(torch.device("cpu"))
    check_stage(stage, stage.predict_eager(), batch.to("cpu", dtype))


@pytest.mark.slow
def test_compiled_code_agrees_in_single_precision_too_and_is_traced_once(batch: Batch) -> None:
    """torch traces a graph twice if numbers are inputs, and does not cache a graph with torch.autocast."""
    stage = next(s for s in LADDER if s.name == "torch_compile")
    before = Counter(counters["aot_autograd"])
    check_stage(stage, stage.predict(), batch.to("cpu", torch.float32))
    traced = Counter(counters["aot_autograd"]) - before
    assert traced["total"] == 1
    assert traced["autograd_cache_bypass"] == 0


@pytest.mark.slow
def test_a_static_stage_compiles_each_shape_once(batch: Batch) -> None:
    """mixed_precision is tested here, since it is static_graphs with other arithmetic."""
    stage = next(s for s in LADDER if s.name == "mixed_precision")
    predict = stage.predict()
    assert isinstance(predict, StaticGraphs)
    check_stage(stage, predict, batch)
    compiled = count_compiled_graphs()
    others = [
        make_batch([make_molecule(), make_crystal(), make_molecule(1, seed=7), make_molecule(12 - k, seed=8 + k)])
        for k in (0, 1)
    ]
    for other in others:
        check_stage(stage, predict, other)
    assert len(predict.buckets.shapes) == 1
    assert count_compiled_graphs() == compiled


def test_tf32_needs_a_gpu(batch: Batch) -> None:
    predict = mixed_precision(leave_eager, "tf32")
    model = make_model()
    messages.load(torch.device("cpu"))
    with pytest.raises(StageUnavailable, match="cpu has no TF32"):
        predict(model, batch, model.gate(batch.composition))


@pytest.mark.slow
def test_compiled_stage_agrees_with_the_baseline_for_any_shape(batch: Batch) -> None:
    model = make_model()
    predict = compile_dynamic(batched_heads)
    for structures in ([make_molecule(4)], [make_crystal(2, seed=3), make_molecule(3)], [make_molecule(1)]):
        other = make_batch(structures)
        weights = model.gate(other.composition)
        got, expected = predict(model, other, weights), baseline(model, other, weights)
        assert torch.allclose(got.forces, expected.forces, atol=1e-11)
        assert torch.allclose(got.energy, expected.energy, rtol=1e-11)


def test_branch_skip_keeps_the_energy_and_loses_the_forces_of_idle_branches(batch: Batch) -> None:
    model = make_model()
    fix_gate(model, 4)
    weights = model.gate(batch.composition)
    assert find_active_heads(weights) == [0, 1, 2, 3]
    expected, result = baseline(model, batch, weights), branch_skip(model, batch, weights)
    assert torch.allclose(expected.energy, result.energy, rtol=1e-12)
    difference = (expected.forces - result.forces).abs().max()
    assert 0 < difference < 0.1 * expected.forces.abs().max()


def test_branch_skip_is_exact_when_no_branch_is_idle(model: FoundationModel, batch: Batch) -> None:
    weights = torch.full((len(batch.head), 16), 1 / 16, dtype=torch.float64)
    expected, result = baseline(model, batch, weights), branch_skip(model, batch, weights)
    assert torch.allclose(expected.forces, result.forces, atol=1e-12)
