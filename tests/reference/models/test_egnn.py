"""EGNN follows the equations of the paper, evaluated atom by atom with coordinates that move."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from harness.reference.data.batch import Batch
from harness.reference.models.backbones.egnn import EGNN, CoordinateUpdate, Interaction
from harness.reference.models.config import ModelConfig
from tests.reference.conftest import make_batch, make_crystal, make_molecule

CONFIG = ModelConfig(backbone="egnn", hidden_dim=7, num_conv_layers=3, cutoff=4.0)


def make_egnn(config: ModelConfig = CONFIG) -> EGNN:
    torch.manual_seed(0)
    net = EGNN(config).double()
    for move in net.moves:
        assert isinstance(move, CoordinateUpdate)
        nn.init.normal_(move.length.weight)  # large enough moves to affect the features
    return net


def evaluate_egnn(net: EGNN, batch: Batch) -> Tensor:
    """Evaluate equations 3 to 6 on coordinates x, one edge and one atom at a time."""
    h, x = net.embedding.weight[batch.numbers].clone(), batch.positions.clone()
    edges = list(zip(batch.receiver.tolist(), batch.sender.tolist(), batch.shift, strict=True))
    weights = [
        0.5 * (1 + torch.cos(math.pi * (batch.positions[j] + s - batch.positions[i]).norm() / CONFIG.cutoff))
        for i, j, s in edges
    ]
    for k, layer in enumerate(net.interactions):
        assert isinstance(layer, Interaction)
        received, step, total = torch.zeros_like(h), torch.zeros_like(x), torch.zeros(len(h), dtype=h.dtype)
        for (i, j, shift), w in zip(edges, weights, strict=True):
            difference = x[i] - (x[j] + shift)
            m = torch.cat([h[i], h[j], difference.square().sum().unsqueeze(0)])
            m = silu(layer.edge(silu(layer.edge_hidden(m))))
            received[i] += w * m
            total[i] += w
            if k < len(net.moves):
                move = net.moves[k]
                assert isinstance(move, CoordinateUpdate)
                step[i] += w * difference * torch.tanh(move.length(silu(move.hidden(m))))
        x = x + step / (1 + total).unsqueeze(-1)
        h = h + torch.stack(
            [layer.node(silu(layer.node_hidden(torch.cat(pair)))) for pair in zip(h, received, strict=True)]
        )
    return h


def test_encoder_follows_the_equations_in_molecules_and_crystals() -> None:
    net = make_egnn()
    batch = make_batch([make_molecule(6, seed=1), make_crystal(3, seed=2)], CONFIG)
    vector = batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]
    assert torch.allclose(net(batch, vector), evaluate_egnn(net, batch), rtol=1e-11, atol=1e-12)


def test_moving_coordinates_change_the_features() -> None:
    """Moves of length zero give other features."""
    net, batch = make_egnn(), make_batch([make_molecule(6, seed=1)], CONFIG)
    vector = batch.positions[batch.sender] - batch.positions[batch.receiver]
    with_moves = net(batch, vector)
    for move in net.moves:
        assert isinstance(move, CoordinateUpdate)
        nn.init.zeros_(move.length.weight)
    assert (with_moves - net(batch, vector)).abs().max() > 1e-3


def test_many_layers_of_large_weights_stay_finite() -> None:
    net = make_egnn(CONFIG.replace(num_conv_layers=6))
    for move in net.moves:
        assert isinstance(move, CoordinateUpdate)
        nn.init.constant_(move.length.weight, 1e6)
    batch = make_batch([make_molecule(9), make_crystal(4)], CONFIG)
    vector = (batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]).requires_grad_()
    h = net(batch, vector)
    assert h.isfinite().all()
    assert torch.autograd.grad(h.sum(), vector)[0].isfinite().all()


def test_width_and_depth_match_the_configuration() -> None:
    net = EGNN(CONFIG.replace(hidden_dim=9, num_conv_layers=4))
    assert len(net.interactions) == 4
    assert len(net.moves) == 3
    batch = make_batch([make_molecule(3)], CONFIG).to("cpu", torch.float32)
    assert net(batch, batch.positions[batch.sender] - batch.positions[batch.receiver]).shape == (3, 9)
