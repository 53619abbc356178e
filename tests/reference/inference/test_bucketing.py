"""Batches padded to a shape keep their energies and forces, and few shapes serve many batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from harness.reference.data.structure import Structure
from harness.reference.inference.bucketing import (
    MAX_WASTE,
    STEPS,
    Shape,
    ShapeBuckets,
    get_shape,
    pad_batch,
    pad_rows,
    round_up,
)
from harness.reference.inference.prediction import batched_heads, fused_gradient
from harness.reference.models.config import ModelConfig
from harness.reference.programs.ladder.stages import (
    StageUnavailable,
    StaticGraphs,
    leave_eager,
    mixed_precision,
    static_graphs,
)
from tests.reference.conftest import SMALL, make_batch, make_crystal, make_model, make_molecule

ATOM = Structure("atom", np.array([8]), np.zeros((1, 3)))
BACKBONES = ("painn", "pnaeq", "egnn", "schnet", "mace")
OPTIONS = {"backbone": "painn", "adaptive_neighbours": 12.0, "repulsion": "zbl", "feature_norm": "rms"}
VARIANTS = {name: {"backbone": name} for name in BACKBONES} | {"painn with options": OPTIONS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_changes_no_energy_or_force(variant: str) -> None:
    config = ModelConfig(**VARIANTS[variant], hidden_dim=16, num_conv_layers=2, cutoff=4.0, dim_sharedlayers=8)
    model = make_model(config)
    batch = make_batch([make_molecule(), make_crystal(), ATOM, make_molecule(12, seed=3)], config)
    weights = model.gate(batch.composition)
    expected = fused_gradient(model, batch, weights)
    padded = pad_batch(batch, Shape(5, 40, len(batch.receiver) + 37), config.cutoff)
    assert get_shape(padded) == (5, 40, len(batch.receiver) + 37)
    got = fused_gradient(model, padded, pad_rows(weights, 5))
    assert torch.allclose(got.energy[:4], expected.energy, rtol=1e-12, atol=1e-12)
    n = len(batch.numbers)
    assert torch.allclose(got.forces[:n], expected.forces, atol=1e-11 * float(expected.forces.abs().max()))
    assert not got.energy[4:].any()
    assert not got.forces[n:].any()


def test_batches_without_edges_can_be_padded() -> None:
    model = make_model()
    batch = make_batch([ATOM, ATOM])
    assert get_shape(batch).edges == 0
    for shape in (Shape(3, 3, 0), Shape(3, 4, 5)):
        got = batched_heads(model, pad_batch(batch, shape, SMALL.cutoff), torch.ones(3, 16, dtype=torch.float64))
        assert torch.equal(got.energy[0], got.energy[1])
        assert torch.isfinite(got.forces).all()


def test_rounding_up_adds_at_most_one_step() -> None:
    sizes = np.arange(1, 5000)
    rounded = np.array([round_up(int(s)) for s in sizes])
    assert (rounded >= sizes).all()
    assert ((rounded - sizes) / sizes <= 1 / STEPS).all()
    assert len(set(rounded[1023:2047])) == STEPS + 1
    assert [round_up(int(u)) for u in rounded[:200]] == list(rounded[:200])


def test_few_shapes_serve_many_batches() -> None:
    rng = np.random.default_rng(0)
    buckets = ShapeBuckets()
    shapes = [
        Shape(16, int(a), int(15 * a + e))
        for a, e in zip(rng.normal(850, 60, 500), rng.normal(0, 300, 500), strict=True)
    ]
    for shape in shapes:
        bucket = buckets.assign(shape)
        assert bucket.holds(Shape(17, shape.atoms + 1, shape.edges))
        assert bucket.atoms * (1 - MAX_WASTE) <= shape.atoms + 1 or bucket.atoms == round_up(shape.atoms + 1)
    stats = buckets.stats()
    assert len(buckets.shapes) <= 12
    assert 0 < float(str(stats["padding_atom_fraction"])) < 0.1
    assert buckets.batches == 500
    assert buckets.used[0] == sum(s.atoms for s in shapes)


def test_another_number_of_graphs_is_another_shape() -> None:
    buckets = ShapeBuckets()
    assert buckets.assign(Shape(4, 100, 900)).graphs == 5
    assert buckets.assign(Shape(3, 100, 900)).graphs == 4


def test_static_stage_removes_padding_from_results_and_counts_padding() -> None:
    model = make_model()
    stage = static_graphs(leave_eager)
    assert isinstance(stage, StaticGraphs)
    for structures in ([make_molecule(), make_crystal()], [make_molecule(20, seed=4)], [ATOM]):
        batch = make_batch(structures)
        weights = model.gate(batch.composition)
        got, expected = stage(model, batch, weights), batched_heads(model, batch, weights)
        assert got.energy.shape == expected.energy.shape
        assert torch.allclose(got.energy, expected.energy, rtol=1e-12)
        assert torch.allclose(got.forces, expected.forces, atol=1e-11)
    assert len(stage.buckets.shapes) == 3
    assert 0 < float(str(stage.buckets.stats()["padding_atom_fraction"])) < 0.5


def test_backbone_with_pairs_of_edges_has_no_static_shape() -> None:
    config = ModelConfig(backbone="dimenet", hidden_dim=16, num_conv_layers=2, cutoff=4.0)
    model = make_model(config)
    batch = make_batch([make_molecule()], config)
    with pytest.raises(StageUnavailable, match="static shape"):
        static_graphs(leave_eager)(model, batch, model.gate(batch.composition))


def test_models_without_fused_messages_can_use_static_shapes() -> None:
    config = ModelConfig(backbone="egnn", hidden_dim=16, num_conv_layers=2, cutoff=4.0)
    model = make_model(config)
    batch = make_batch([make_molecule()], config)
    weights = model.gate(batch.composition)
    expected = batched_heads(model, batch, weights)
    for make in (static_graphs, mixed_precision):
        got = make(leave_eager)(model, batch, weights)
        assert torch.allclose(got.energy, expected.energy, rtol=0.05)
