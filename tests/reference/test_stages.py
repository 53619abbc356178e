"""Every rung of the ladder gives the baseline's energies and forces, or says that it does not."""

from __future__ import annotations

import pytest
import torch

from harness.parameters import StageName
from harness.reference.batches import Batch
from harness.reference.inference import baseline, branch_skip, live_heads
from harness.reference.ladder.stages import LADDER, Stage, compiled
from harness.reference.ladder.workload import fix_gate
from harness.reference.models.foundation import FoundationModel
from tests.reference.conftest import batch_of, crystal, make_model, molecule

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.fixture(scope="module")
def batch() -> Batch:
    return batch_of([molecule(), crystal(), molecule(1, seed=7), molecule(12, seed=8)])


def test_suites_know_exactly_the_stages_that_there_are() -> None:
    assert list(StageName.__args__) == [s.name for s in LADDER]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp64", "fp32"])
@pytest.mark.parametrize("stage", [s for s in LADDER if s.exact], ids=lambda s: s.name)
def test_exact_stages_agree_with_the_baseline(stage: Stage, dtype: torch.dtype, batch: Batch) -> None:
    model = make_model().to(dtype)
    batch = batch.to("cpu", dtype)
    weights = model.gate(batch.composition)
    expected = baseline(model, batch, weights)
    got = stage.make()(model, batch, weights)
    assert got.energy.dtype == got.forces.dtype == dtype
    assert not got.energy.requires_grad
    assert not got.forces.requires_grad
    force_scale, energy_scale = expected.forces.abs().max(), expected.energy.abs().max()
    assert (got.forces - expected.forces).abs().max() <= TOLERANCE[dtype] * force_scale
    assert (got.energy - expected.energy).abs().max() <= TOLERANCE[dtype] * energy_scale


@pytest.mark.slow
def test_the_compiled_stage_takes_any_shape_without_the_baselines_error(batch: Batch) -> None:
    model = make_model()
    predict = compiled()
    for structures in ([molecule(4)], [crystal(2, seed=3), molecule(3)], [molecule(1)]):
        other = batch_of(structures)
        weights = model.gate(other.composition)
        got, expected = predict(model, other, weights), baseline(model, other, weights)
        assert torch.allclose(got.forces, expected.forces, atol=1e-11)
        assert torch.allclose(got.energy, expected.energy, rtol=1e-11)


def test_branch_skip_keeps_the_energy_and_loses_the_forces_of_idle_branches(batch: Batch) -> None:
    model = make_model()
    fix_gate(model, 4)
    weights = model.gate(batch.composition)
    assert live_heads(weights) == [0, 1, 2, 3]
    full, skipped = baseline(model, batch, weights), branch_skip(model, batch, weights)
    assert torch.allclose(full.energy, skipped.energy, rtol=1e-12)
    lost = (full.forces - skipped.forces).abs().max()
    assert 0 < lost < 0.1 * full.forces.abs().max()


def test_branch_skip_is_exact_when_no_branch_is_idle(model: FoundationModel, batch: Batch) -> None:
    weights = torch.full((len(batch.head), 16), 1 / 16, dtype=torch.float64)
    full, skipped = baseline(model, batch, weights), branch_skip(model, batch, weights)
    assert torch.allclose(full.forces, skipped.forces, atol=1e-12)
