"""Models predict the same energies, forces and gradients with fused messages, in eager and compiled code."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from harness.protocol.programs.model import HydraGNNOptions
from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.inference.prediction import Prediction, baseline, batched_heads
from harness.reference.models import message_backend
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.ops import messages as kernels
from harness.reference.ops.messages import UnsupportedKernel
from harness.reference.programs.ladder.stages import fused_messages
from tests.reference.conftest import SMALL, make_batch, make_crystal, make_model, make_molecule
from tests.reference.ops.message_terms import TOLERANCE, assert_close

all_dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp64", "fp32"])


@pytest.fixture(scope="module", autouse=True)
def _compile_operators() -> None:
    kernels.load(torch.device("cpu"))


OPTIONS = {"adaptive_neighbours": 12.0, "repulsion": "zbl", "feature_norm": "rms"}
HYDRAGNN = {"readout": "sum", "hydragnn": HydraGNNOptions(vector_bias=True).model_dump()}
CONFIGS: dict[str, dict[str, Any]] = {name: {"backbone": name} for name in kernels.BACKBONES}
CONFIGS |= {"painn with options": OPTIONS, "painn of hydragnn": HYDRAGNN}


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> FoundationModel:
    return make_model(SMALL.replace(**CONFIGS[request.param]))


def make_crowded_molecule() -> Structure:
    """Return a molecule whose atoms have more neighbours within the cutoff than the limit allows."""
    return make_molecule(40, seed=3)


def make_batches() -> dict[str, Batch]:
    capped = build_batch(
        [build_neighbour_list(s, cutoff=6.0, max_neighbours=20) for s in (make_crowded_molecule(), make_molecule(3))]
    )
    assert int(torch.bincount(capped.receiver).max()) == 20
    return {
        "ragged": make_batch([make_molecule(), make_molecule(1, seed=7), make_crystal(), make_molecule(12, seed=8)]),
        "one atom": make_batch([make_molecule(1)]),
        "no edges": make_batch([make_molecule(1), make_molecule(1, seed=2)]),
        "capped": capped,
        "periodic": make_batch([make_crystal(1), make_crystal(3, seed=5)]),
    }


@all_dtypes
@pytest.mark.parametrize("name", list(make_batches()))
def test_models_predict_the_same_with_fused_messages(name: str, dtype: torch.dtype, model: FoundationModel) -> None:
    batch = make_batches()[name].to("cpu", dtype)
    model.to(dtype)
    weights = model.gate(batch.composition)
    got, expected = batched_heads(model, batch, weights, fused=True), baseline(model, batch, weights)
    assert_close(got, expected, 100 * TOLERANCE[dtype])


def test_forces_are_the_negative_gradient_of_the_energy(model: FoundationModel) -> None:
    def predict(structure: Structure) -> Prediction:
        batch = make_batch([structure])
        return batched_heads(model, batch, model.gate(batch.composition), fused=True)

    for structure in (make_molecule(5), make_crystal(2)):
        forces = predict(structure).forces.numpy()
        for atom in range(len(structure)):
            for axis in range(3):
                step = np.zeros_like(structure.positions)
                step[atom, axis] = 1e-4
                up, down = (
                    float(predict(replace(structure, positions=structure.positions + sign * step)).energy[0])
                    for sign in (1, -1)
                )
                assert forces[atom, axis] == pytest.approx(-(up - down) / 2e-4, rel=1e-6, abs=1e-7)


class ForceLoss(nn.Module):
    """A loss of energies and forces, with or without fused messages."""

    def __init__(self, model: FoundationModel, fused: bool) -> None:
        super().__init__()
        self.model, self.fused = model, fused

    def forward(self, batch: Batch) -> Tensor:
        pooled = self.model.encode(batch, batch.positions, batch.shift, fused=self.fused)
        energy = self.model.all_energies(pooled, batch)
        (energy_gradient,) = torch.autograd.grad(energy.sum(), batch.positions, create_graph=True)
        return energy.square().sum() + energy_gradient.square().sum()

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        self.model.zero_grad()
        self(batch._replace(positions=batch.positions.clone().requires_grad_())).backward()
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


@pytest.mark.slow
def test_gradients_of_a_force_loss_are_the_same_with_fused_messages(model: FoundationModel) -> None:
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    two_layers = make_model(model.config.replace(num_conv_layers=2)).requires_grad_(True)
    batch = make_batch([make_molecule(), make_crystal()])
    compiled = ForceLoss(two_layers, fused=True)
    compiled.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    expected = ForceLoss(two_layers, fused=False).gradients(batch)
    assert any("filter" in name for name in expected)
    for loss in (ForceLoss(two_layers, fused=True), compiled):
        actual = loss.gradients(batch)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(actual[name], gradient, rtol=1e-9, atol=1e-11 * float(gradient.abs().max())), name


def test_models_compile_to_one_graph_for_any_shape(model: FoundationModel) -> None:
    torch._dynamo.reset()
    torch._dynamo.config.trace_autograd_ops = True
    graphs = []

    def record_graph(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    run = torch.compile(batched_heads, dynamic=True, fullgraph=True, backend=record_graph)
    for batch in make_batches().values():
        weights = model.gate(batch.composition)
        assert_close(run(model, batch, weights, fused=True), batched_heads(model, batch, weights), 1e-11)
    assert 1 <= len(graphs) <= 4


def test_other_models_and_devices_are_refused() -> None:
    egnn = make_model(ModelConfig(backbone="egnn", hidden_dim=8, dim_sharedlayers=8, dim_headlayers=8))
    batch = make_batch([make_molecule()], SMALL)
    with pytest.raises(UnsupportedKernel, match="only painn and pnaeq have fused messages, not egnn"):
        fused_messages()(egnn, batch, egnn.gate(batch.composition))
    with pytest.raises(UnsupportedKernel, match="run on CPUs and on GPUs that Triton supports, not on mps"):
        kernels.check("painn", torch.device("mps"))


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_a_gpu_without_triton_is_reported(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("triton_messages", "triton_kernels"):
        monkeypatch.delitem(sys.modules, f"harness.reference.ops.{name}", raising=False)
    kernels.check("pnaeq", torch.device(device))
    with pytest.raises(UnsupportedKernel, match=r"^Triton cannot be used: No module named 'triton"):
        kernels.load(torch.device(device))


def test_cpus_never_import_triton() -> None:
    script = """
        import sys, torch
        from harness.reference.programs.ladder import stages
        from harness.reference.ops import messages
        messages.load(torch.device("cpu"))
        assert not [name for name in sys.modules if name.startswith("harness.reference.ops.triton")]
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


def test_moved_model_does_not_call_the_operators_of_its_former_device(monkeypatch: pytest.MonkeyPatch) -> None:
    world = SimpleNamespace(device=torch.device("cuda"), broadcast_first=lambda reason: reason)
    monkeypatch.setattr(message_backend, "find_unavailable_reason", lambda *_: None)
    model, batch, calls = make_model(SMALL), make_batch([make_molecule()]), list[bool]()
    forward = model.encoder.forward
    monkeypatch.setattr(model.encoder, "forward", lambda *a, fused=False: calls.append(fused) or forward(*a))
    assert message_backend.select_backend("fused", model, world).fused  # type: ignore[arg-type]
    model.encode(batch, batch.positions, batch.shift)
    message_backend.use_fused_messages(model.to("cpu"), torch.device("cpu"))
    model.encode(batch, batch.positions, batch.shift)
    assert calls == [False, True]
