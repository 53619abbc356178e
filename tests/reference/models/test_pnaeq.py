"""PNAEq follows its equations, evaluated atom by atom, and its aggregation matches values computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from harness.reference.data.batch import Batch
from harness.reference.data.structure import Structure
from harness.reference.inference.prediction import batched_heads
from harness.reference.models.backbones.painn import Update
from harness.reference.models.backbones.pnaeq import TYPICAL_DEGREE, Aggregation, Message, PNAEq
from harness.reference.models.config import ModelConfig
from harness.reference.ops.segment_sums import group_rows, segment_sum
from tests.reference.conftest import make_batch, make_crystal, make_model, make_molecule, predict

TINY = ModelConfig(backbone="pnaeq", hidden_dim=8, num_conv_layers=2, cutoff=4.0, dim_sharedlayers=8, dim_headlayers=12)


def make_aggregation(epsilon: float = 1e-8) -> Aggregation:
    torch.manual_seed(0)
    return Aggregation(3, epsilon).double()


def aggregate_messages(
    messages: list[list[float]], envelopes: list[float], epsilon: float = 1e-8
) -> tuple[Tensor, Tensor]:
    """Return mean, min, max and std [4, F], and D, of one atom with these messages."""
    receivers = group_rows(torch.zeros(len(messages), dtype=torch.long), 1)
    message = torch.tensor(messages, dtype=torch.float64).view(len(messages), 3)
    envelope = torch.tensor(envelopes, dtype=torch.float64).unsqueeze(1)
    out, degree = make_aggregation(epsilon).aggregate(message, segment_sum(message, receivers), envelope, receivers)
    return out.view(4, -1), degree.squeeze()


def test_aggregators_match_values_computed_by_hand() -> None:
    """In the first channel two of three messages are equal, in the second all have one sign, in the third all are 0."""
    out, degree = aggregate_messages([[2.0, -1.0, 0.0], [2.0, -3.0, 0.0], [-4.0, -3.0, 0.0]], [1.0, 0.5, 0.5])
    assert degree == 3.0
    assert out[0].tolist() == pytest.approx([0.0, -7.0 / 3.0, 0.0])
    assert out[1].tolist() == pytest.approx([-4.0, -(1.0 + 2 * 3.0**5) / (1.0 + 2 * 3.0**4), 0.0])
    assert out[2].tolist() == pytest.approx([2.0, 0.0, 0.0])
    variances = [(4.0 + 2.0 + 8.0) / 3 - ((2.0 + 1.0 - 2.0) / 3) ** 2, (1.0 + 4.5 + 4.5) / 3 - (4.0 / 3) ** 2, 0.0]
    assert out[3].tolist() == pytest.approx([math.sqrt(v + 1e-8) for v in variances])


def test_soft_extremes_lie_between_zero_and_the_true_extremes() -> None:
    rng = np.random.default_rng(0)
    messages = rng.normal(size=(20, 3))
    low, high = aggregate_messages(messages.tolist(), [1.0] * 20)[0][1:3].numpy()
    assert (high > 0).all()
    assert (high < messages.max(0)).all()
    assert (high > 0.7 * messages.max(0)).all()
    assert (low < 0).all()
    assert (low > messages.min(0)).all()
    assert (low < 0.7 * messages.min(0)).all()


def test_scalers_multiply_the_aggregates_by_the_logarithm_of_the_degree() -> None:
    net = make_aggregation()
    message, envelope = torch.randn(4, 3).double(), torch.rand(4, 1).double()
    receivers = group_rows(torch.tensor([0, 0, 0, 1]), 2)
    arguments = (message, segment_sum(message, receivers), envelope, receivers)
    parts, degree = net.aggregate(*arguments)
    expected = []
    for atom in range(2):
        s = math.log(float(degree[atom]) + 1.0) / math.log(TYPICAL_DEGREE + 1.0)
        scaled = torch.cat([parts[atom], parts[atom] * s, parts[atom] / s])
        expected.append(net.mix.weight @ scaled + net.mix.bias)
    assert torch.allclose(net(*arguments), torch.stack(expected), rtol=1e-12)


def test_atom_without_neighbours_has_zero_aggregates_with_finite_derivatives() -> None:
    net = Aggregation(3, 1e-8)
    message = torch.zeros(1, 3, requires_grad=True)
    envelope = torch.zeros(1, 1, requires_grad=True)
    receivers = group_rows(torch.tensor([1]), 3)
    out, degree = net.aggregate(message, segment_sum(message, receivers), envelope, receivers)
    assert torch.equal(degree, torch.ones(3, 1))
    assert torch.equal(out[:, :9], torch.zeros(3, 9))
    assert torch.allclose(out[:, 9:], torch.full((3, 3), 1e-4))
    first_derivatives = torch.autograd.grad(out.sum(), (message, envelope), create_graph=True)
    second_derivatives = torch.autograd.grad(
        sum(x.square().sum() for x in first_derivatives), (message, envelope), allow_unused=True
    )
    assert all(x.isfinite().all() for x in (*first_derivatives, *second_derivatives) if x is not None)


def test_message_that_vanishes_with_its_envelope_does_not_change_the_aggregates() -> None:
    """The change is of second order in the distance, so that the derivatives are continuous too."""
    messages_of_others = [[0.7, -0.2, 0.4], [-0.5, 0.3, 0.1]]
    without_message, degree = aggregate_messages(messages_of_others, [0.8, 0.3])
    for distance in (1e-2, 1e-3):
        f = distance**2
        out, d = aggregate_messages([*messages_of_others, [2.0 * f, -1.5 * f, f]], [0.8, 0.3, f])
        assert (out - without_message).abs().max() < 3 * f
        assert float(d - degree) == pytest.approx(f)
    with_message_only, _ = aggregate_messages([[2.0 * f, -1.5 * f, f]], [f])
    assert (with_message_only - aggregate_messages([], [])[0]).abs().max() < 3 * f


def evaluate_pnaeq(net: PNAEq, batch: Batch, vector: Tensor) -> Tensor:
    """Evaluate the equations of PNAEq, one edge and one atom at a time."""
    n_radial = len(net.radial.orders)
    s = net.embedding.weight[batch.numbers].clone()
    v = torch.zeros(len(s), 3, net.width, dtype=s.dtype)
    edges = list(zip(batch.receiver.tolist(), batch.sender.tolist(), vector, strict=True))
    for message, aggregate, update in zip(net.messages, net.aggregations, net.updates, strict=True):
        assert isinstance(message, Message)
        assert isinstance(aggregate, Aggregation)
        assert isinstance(update, Update)
        received: list[list[tuple[Tensor, Tensor]]] = [[] for _ in s]
        dv = torch.zeros_like(v)
        for i, j, r_ij in edges:
            r = r_ij.norm()
            basis = torch.stack([torch.sin(k * math.pi * r / TINY.cutoff) / r for k in range(1, n_radial + 1)])
            f = 0.5 * (torch.cos(math.pi * r / TINY.cutoff) + 1)
            hidden = silu(message.phi_hidden(s[j]))
            parts = [phi(hidden) * w(basis) * f for phi, w in zip(message.phi, message.filters, strict=True)]
            received[i].append((parts[0], f))
            dv[i] += torch.outer(r_ij / r, parts[1])
            if len(parts) == 3:
                dv[i] += v[j] * parts[2]
        v = v + dv
        s = torch.stack([s[i] + evaluate_aggregation(aggregate, received[i], net.width) for i in range(len(s))])
        mixed = v @ update.mix.weight.T
        vv, uv = mixed[..., : net.width], mixed[..., net.width :]
        norm = torch.sqrt((vv**2).sum(1) + update.epsilon)
        a_ss, a_vv, a_sv = update.a(silu(update.a_hidden(torch.cat([s, norm], dim=1)))).chunk(3, dim=1)
        s, v = s + a_ss + a_sv * (vv * uv).sum(1), v + a_vv.unsqueeze(1) * uv
    return s


def evaluate_aggregation(net: Aggregation, received: list[tuple[Tensor, Tensor]], width: int) -> Tensor:
    zero = torch.zeros(width, dtype=torch.float64)
    degree = 1.0 + float(sum(f for _, f in received))
    mean = sum((m for m, _ in received), zero) / degree
    first, second = (sum((f * m**k for m, f in received), zero) / degree for k in (1, 2))
    std = torch.sqrt(second - first**2 + net.epsilon)

    def soft_maximum(sign: int) -> Tensor:
        positive = [(sign * m).clamp(min=0.0) for m, _ in received]
        return sum((p**5 for p in positive), zero) / (sum((p**4 for p in positive), zero) + net.epsilon**2)

    aggregates = torch.cat([mean, -soft_maximum(-1), soft_maximum(1), std])
    scale = math.log(degree + 1.0) / math.log(float(net.typical_degree) + 1.0)
    return net.mix(torch.cat([aggregates, scale * aggregates, aggregates / scale]))


def test_encoder_follows_the_equations() -> None:
    net = make_model(TINY.replace(num_conv_layers=3)).encoder
    assert isinstance(net, PNAEq)
    batch = make_batch([make_molecule(5), make_crystal(2), make_molecule(1)], TINY)
    vector = batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]
    assert torch.allclose(net(batch, vector), evaluate_pnaeq(net, batch, vector), rtol=1e-10, atol=1e-11)


def make_rock_salt() -> Structure:
    """Return rock salt, rotated so that equal distances differ by rounding."""
    fractions = [[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    cell = 5.6 * rotation
    return Structure("NaCl", np.array([11] * 4 + [17] * 4), 0.5 * np.array(fractions) @ cell, cell, (True, True, True))


def test_symmetric_crystal_has_no_forces() -> None:
    config = TINY.replace(hidden_dim=16, cutoff=5.0)
    model, salt = make_model(config), make_rock_salt()
    assert predict(model, [salt]).forces.abs().max() < 1e-12
    displaced = replace(salt, positions=salt.positions + np.random.default_rng(1).normal(0, 0.05, (8, 3)))
    typical_force = predict(model, [displaced]).forces.abs().max()
    batch = make_batch([salt], config).to("cpu", torch.float32)
    single = batched_heads(model.float(), batch, model.gate(batch.composition)).forces
    model.double()
    assert single.abs().max() < 1e-2 * typical_force


def test_the_typical_degree_is_saved_with_the_weights_and_exact_in_double() -> None:
    net = PNAEq(TINY).float().double()
    assert [float(x) for name, x in net.state_dict().items() if name.endswith("typical_degree")] == [5.5, 5.5]


@pytest.mark.parametrize("epsilon", [1e-8, 1e-14])
def test_second_derivatives_are_finite_where_soft_extremes_are_zero_over_zero(epsilon: float) -> None:
    net = Aggregation(3, epsilon)
    message = torch.tensor([[-1.0, 0.0, 1e-4], [-0.5, 0.0, -1e-5]], requires_grad=True)
    receivers = group_rows(torch.tensor([0, 0]), 2)
    out, _ = net.aggregate(message, segment_sum(message, receivers), torch.tensor([[0.9], [0.1]]), receivers)
    first_derivatives = torch.autograd.grad(100.0 * out.sum(), message, create_graph=True)[0]
    second_derivatives = torch.autograd.grad(100.0 * first_derivatives.sum(), message)[0]
    assert first_derivatives.isfinite().all()
    assert second_derivatives.isfinite().all()
