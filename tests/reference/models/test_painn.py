"""The PaiNN encoder follows the equations of the paper, evaluated atom by atom."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import silu

from harness.reference.data.batch import Batch
from harness.reference.models.backbones.painn import Message, PaiNN, Update
from tests.reference.conftest import SMALL, make_batch, make_crystal, make_model, make_molecule


def evaluate_painn(net: PaiNN, batch: Batch, vector: Tensor) -> Tensor:
    """Evaluate equations 7 to 10 with zero initial vectors, one edge and one atom at a time."""
    f = net.width
    n_radial = len(net.radial.orders)
    s = net.embedding.weight[batch.numbers].clone()
    v = torch.zeros(len(s), 3, f, dtype=s.dtype)
    for message, update in zip(net.messages, net.updates, strict=True):
        assert isinstance(message, Message)
        assert isinstance(update, Update)
        ds, dv = torch.zeros_like(s), torch.zeros_like(v)
        for i, j, r_ij in zip(batch.receiver.tolist(), batch.sender.tolist(), vector, strict=True):
            r = r_ij.norm()
            basis = torch.stack([torch.sin(n * math.pi * r / SMALL.cutoff) / r for n in range(1, n_radial + 1)])
            envelope = 0.5 * (torch.cos(math.pi * r / SMALL.cutoff) + 1)
            w = (message.filter.weight @ basis + message.filter.bias) * envelope
            phi = (
                message.phi.weight @ silu(message.phi_hidden.weight @ s[j] + message.phi_hidden.bias) + message.phi.bias
            )
            x = phi * w
            ds[i] += x[:f]
            dv[i] += torch.outer(r_ij / r, x[f : 2 * f]) + v[j] * x[2 * f :]
        s, v = s + ds, v + dv
        new_s, new_v = s.clone(), v.clone()
        for i in range(len(s)):
            mixed = v[i] @ update.mix.weight.T
            vv, uv = mixed[:, :f], mixed[:, f:]
            norm = torch.sqrt((vv**2).sum(0) + update.epsilon)
            a = update.a.weight @ silu(update.a_hidden.weight @ torch.cat([s[i], norm]) + update.a_hidden.bias)
            a = a + update.a.bias
            new_s[i] = s[i] + a[:f] + a[2 * f :] * (vv * uv).sum(0)
            new_v[i] = v[i] + a[f : 2 * f] * uv
        s, v = new_s, new_v
    return s


def test_encoder_follows_the_equations() -> None:
    model = make_model()
    batch = make_batch([make_molecule(5), make_crystal(3)])
    vector = batch.positions[batch.sender] + batch.shift - batch.positions[batch.receiver]
    assert isinstance(model.encoder, PaiNN)
    assert torch.allclose(
        model.encoder(batch, vector), evaluate_painn(model.encoder, batch, vector), rtol=1e-10, atol=1e-11
    )


def test_every_parameter_of_encoder_and_heads_receives_a_gradient() -> None:
    """Only rows that cannot affect the energy have no gradient: elements absent from the batch, the v term of the first
    message (v is zero there), and the last update of v (the energy depends only on s)."""
    model = make_model().requires_grad_(True)
    batch = make_batch([replace(make_molecule(), charge=1, multiplicity=2), make_crystal()])
    positions = batch.positions.clone().requires_grad_()
    energies = model.all_energies(model.encode(batch, positions, batch.shift), batch)
    forces = torch.autograd.grad(energies.sum(), positions, create_graph=True)[0]
    (energies.pow(2).sum() + forces.pow(2).sum()).backward()
    for name, parameter in model.named_parameters():
        if not name.startswith("gate"):
            assert parameter.grad is not None, name
            rows = parameter.grad.reshape(parameter.shape[0], -1).abs().amax(1) > 0
            f = SMALL.hidden_dim
            if name == "encoder.embedding.weight":
                assert set(rows.nonzero().flatten().tolist()) == set(batch.numbers.tolist())
            elif name.startswith(("encoder.messages.0.phi.", "encoder.messages.0.filter.")):
                assert rows.tolist() == [k < 2 * f for k in range(3 * f)], name
            elif name.startswith("encoder.updates.2.a."):
                assert rows.tolist() == [not f <= k < 2 * f for k in range(3 * f)], name
            else:
                assert rows.all(), name


def test_every_parameter_of_the_gate_receives_a_gradient() -> None:
    model = make_model().requires_grad_(True)
    weights = model.gate(make_batch([make_molecule(), make_crystal()]).composition)
    assert torch.allclose(weights.sum(1), torch.ones(2, dtype=weights.dtype))
    weights[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.gate.parameters())


def test_single_heads_match_all_heads_at_once() -> None:
    model = make_model()
    batch = make_batch([make_molecule(), make_crystal()])
    pooled = model.encode(batch, batch.positions, batch.shift)
    one_by_one = torch.stack([model.head_energy(h, pooled, batch) for h in range(16)], dim=1)
    assert torch.allclose(model.all_energies(pooled, batch), one_by_one, rtol=1e-12)


def test_single_precision_is_kept_from_input_to_forces() -> None:
    model = make_model().float()
    batch = make_batch([make_molecule(), make_crystal()]).to("cpu", torch.float32)
    positions = batch.positions.clone().requires_grad_()
    pooled = model.encode(batch, positions, batch.shift)
    energies = model.all_energies(pooled, batch)
    forces = torch.autograd.grad(energies.sum(), positions)[0]
    assert {t.dtype for t in (pooled, energies, forces, model.gate(batch.composition))} == {torch.float32}
