"""The fused messages: the plain formulation's numbers and derivatives, the same bits always, inside compiled code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from harness.reference.batches import Batch, collate
from harness.reference.graphs import neighbour_graph
from harness.reference.inference import Prediction, baseline, batched_heads
from harness.reference.kernels import messages as kernels
from harness.reference.kernels.messages import NoSuchKernel, Terms, messages
from harness.reference.ladder.stages import fused_messages
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.structures import Structure
from tests.reference.conftest import SMALL, batch_of, crystal, make_model, molecule

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5}
types = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp64", "fp32"])
with_and_without_v = pytest.mark.parametrize("with_v", [True, False], ids=["v", "no v"])


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    kernels.load()


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_terms(
    atoms: int, edges: int, width: int, columns: int, *, with_v: bool = True, dtype: torch.dtype = torch.float64
) -> Terms:
    """Random numbers on random edges in no order; many atoms have none."""
    generator = torch.Generator().manual_seed(atoms + edges)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator).requires_grad_()

    receiver, sender = (torch.randint(max(1, (2 * atoms) // 3), (edges,), generator=generator) for _ in range(2))
    parts = 3 if with_v else 2
    return Terms(
        normal(atoms, parts * width),
        normal(3, atoms, width) if with_v else None,
        normal(edges, columns),
        normal(columns, parts * width),
        normal(edges, 3),
        receiver,
        sender,
    )


def floats(terms: Terms) -> list[Tensor]:
    return [x for x in terms if x is not None and x.is_floating_point()]


def plain(terms: Terms) -> tuple[Tensor, Tensor]:
    """The definition, with tensors of edges and features."""
    filters = terms.radial @ terms.weight
    x = (filters * terms.phi[terms.sender]).split(filters.shape[1] // terms.parts, dim=1)
    to_v = x[1] * terms.unit.T.unsqueeze(-1)
    if terms.v is not None:
        to_v = to_v + x[2] * terms.v[:, terms.sender]
    atoms, width = terms.phi.shape[0], x[0].shape[1]
    return (
        x[0].new_zeros(atoms, width).index_add(0, terms.receiver, x[0]),
        x[0].new_zeros(3, atoms, width).index_add(1, terms.receiver, to_v),
    )


def with_gradients(outputs: tuple[Tensor, ...], terms: Terms) -> list[Tensor]:
    directions = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).reshape(x.shape) for x in outputs]
    gradients = torch.autograd.grad(outputs, floats(terms), directions)
    return [x.detach() for x in (*outputs, *gradients)]


# narrower than a vector, ragged, the paper's width; more columns than one group has; nothing at all
SIZES = [(5, 9, 3, 2), (7, 90, 13, 7), (40, 500, 337, 7), (4, 20, 40, 45), (20, 300, 19, 21), (3, 0, 8, 7)]


@types
@with_and_without_v
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_are_those_of_the_definition(
    sizes: tuple[int, int, int, int], with_v: bool, dtype: torch.dtype
) -> None:
    terms = make_terms(*sizes, with_v=with_v, dtype=dtype)
    for got, expected in zip(with_gradients(messages(terms), terms), with_gradients(plain(terms), terms), strict=True):
        assert got.dtype == dtype
        assert got.shape == expected.shape
        scale = expected.abs().max() if expected.numel() else torch.zeros(())
        assert torch.allclose(got, expected, rtol=0, atol=float(TOLERANCE[dtype] * scale))


def test_tensors_may_be_views() -> None:
    terms = make_terms(7, 30, 13, 7)
    assert terms.v is not None
    strided = terms._replace(
        phi=terms.phi.T.contiguous().T, v=terms.v.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        radial=terms.radial.repeat_interleave(2, dim=0)[::2], unit=terms.unit.T.contiguous().T,
    )  # fmt: skip
    assert not strided.phi.is_contiguous()
    assert not strided.radial.is_contiguous()
    for got, expected in zip(messages(strided), messages(terms), strict=True):
        assert torch.equal(got, expected)


@with_and_without_v
def test_first_and_second_derivatives_are_those_of_finite_differences(with_v: bool) -> None:
    terms = make_terms(3, 6, 2, 2, with_v=with_v)

    def of(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = iter(inputs)
        return messages(Terms(*(next(given) if x is not None and x.is_floating_point() else x for x in terms)))

    assert gradcheck(of, floats(terms))
    assert gradgradcheck(of, floats(terms))


@with_and_without_v
@pytest.mark.parametrize("wanted", [{"radial"}, {"unit"}, {"weight"}, {"phi"}, {"v"}, {"radial", "unit"}], ids=str)
def test_what_needs_no_gradient_costs_nobody_elses(wanted: set[str], with_v: bool) -> None:
    if wanted == {"v"} and not with_v:
        return
    terms = make_terms(5, 20, 6, 4, with_v=with_v)
    terms = Terms(*(
        x.detach().requires_grad_(name in wanted) if x is not None and x.is_floating_point() else x
        for name, x in zip(Terms._fields, terms, strict=True)
    ))  # fmt: skip
    inputs = [x for x in floats(terms) if x.requires_grad]

    def twice(formulation: object) -> list[Tensor]:
        s, v = formulation(terms)  # type: ignore[operator]
        first = torch.autograd.grad((s**3).sum() + (v**3).sum(), inputs, create_graph=True)
        return [*first, *torch.autograd.grad(sum((x**3).sum() for x in first), inputs)]  # type: ignore[arg-type]

    for got, expected in zip(twice(messages), twice(plain), strict=True):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


@with_and_without_v
def test_torch_finds_the_operators_as_registered_as_they_must_be(with_v: bool) -> None:
    terms = make_terms(5, 20, 6, 4, with_v=with_v)
    to_s, to_v = (torch.randn_like(x).requires_grad_() for x in messages(terms))
    operators = torch.ops.gfm_harness
    torch.library.opcheck(operators.messages.default, tuple(terms))
    torch.library.opcheck(operators.filter_backward.default, (to_s, to_v, *terms[:3], *terms[4:]))
    for nodes in (True, False):
        torch.library.opcheck(operators.messages_backward.default, (to_s, to_v, *terms, nodes))


@types
def test_every_bit_is_the_same_again_and_on_any_number_of_threads(dtype: torch.dtype, threads: None) -> None:
    terms = make_terms(150, 2500, 67, 7, dtype=dtype)
    found = []
    for n in (1, 2, 3, 2, 1):
        torch.set_num_threads(n)
        found.append(with_gradients(messages(terms), terms))
    for before, after in pairwise(found):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"receiver": torch.tensor([0, 1, 5])}, "edge 2 ends at atom 5 of 5"),
        ({"sender": torch.tensor([-1, 1, 4])}, "edge 0 ends at atom -1 of 5"),
        ({"sender": torch.tensor([1, 4])}, "edges do not match"),
        ({"unit": torch.zeros(3, 2, dtype=torch.float64)}, "unit is not"),
        ({"unit": torch.zeros(3, 3)}, "types differ"),
        ({"weight": torch.zeros(4, 17, dtype=torch.float64)}, "weight fits no phi"),
        ({"v": torch.zeros(3, 4, 6, dtype=torch.float64)}, "v fits no phi"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(wrong: dict[str, Tensor], message: str) -> None:
    terms = make_terms(5, 3, 6, 4)._replace(**wrong)
    with pytest.raises((ValueError, IndexError, TypeError, RuntimeError), match=message):
        torch.ops.gfm_harness.messages(*(x.detach() if x is not None else x for x in terms))


def crowd() -> Structure:
    """More neighbours within the cutoff than are taken."""
    return molecule(40, seed=3)


def batches() -> dict[str, Batch]:
    capped = collate([neighbour_graph(s, cutoff=6.0, max_neighbours=20) for s in (crowd(), molecule(3))])
    assert int(torch.bincount(capped.receiver).max()) == 20
    return {
        "ragged": batch_of([molecule(), molecule(1, seed=7), crystal(), molecule(12, seed=8)]),
        "one atom": batch_of([molecule(1)]),
        "no edges": batch_of([molecule(1), molecule(1, seed=2)]),
        "capped": capped,
        "periodic": batch_of([crystal(1), crystal(3, seed=5)]),
    }


@types
@pytest.mark.parametrize("name", list(batches()))
def test_the_whole_model_predicts_what_it_does_without(name: str, dtype: torch.dtype) -> None:
    batch = batches()[name].to("cpu", dtype)
    model = make_model().to(dtype)
    weights = model.gate(batch.composition)
    got, expected = batched_heads(model, batch, weights, fused=True), baseline(model, batch, weights)
    near(got, expected, 100 * TOLERANCE[dtype])


def near(got: Prediction, expected: Prediction, tolerance: float) -> None:
    assert torch.allclose(got.energy, expected.energy, rtol=tolerance, atol=0)
    assert (got.forces - expected.forces).abs().max() <= tolerance * expected.forces.abs().max() + 1e-15


def test_forces_are_minus_the_slope_of_the_energy(model: FoundationModel) -> None:
    def predict(structure: Structure) -> Prediction:
        batch = batch_of([structure])
        return batched_heads(model, batch, model.gate(batch.composition), fused=True)

    for structure in (molecule(5), crystal(2)):
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
    """As training takes it, with or without the operators."""

    def __init__(self, model: FoundationModel, fused: bool) -> None:
        super().__init__()
        self.model, self.fused = model, fused

    def forward(self, batch: Batch) -> Tensor:
        pooled = self.model.encode(batch, batch.positions, batch.shift, fused=self.fused)
        energy = self.model.all_energies(pooled, batch)
        (slope,) = torch.autograd.grad(energy.sum(), batch.positions, create_graph=True)
        return energy.square().sum() + slope.square().sum()

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        self.model.zero_grad()
        self(batch._replace(positions=batch.positions.clone().requires_grad_())).backward()
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


def test_a_loss_of_forces_has_the_gradients_that_it_has_without_eager_and_compiled() -> None:
    torch._dynamo.config.trace_autograd_ops = True
    model = make_model().requires_grad_(True)
    batch = batch_of([molecule(), crystal()])
    compiled = ForceLoss(model, fused=True)
    compiled.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    expected = ForceLoss(model, fused=False).gradients(batch)
    assert any("filter.weight" in name for name in expected)
    for loss in (ForceLoss(model, fused=True), compiled):
        found = loss.gradients(batch)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            assert torch.allclose(found[name], gradient, rtol=1e-9, atol=1e-11 * float(gradient.abs().max())), name


def test_compiled_code_goes_around_them_whole_and_for_any_shape(model: FoundationModel) -> None:
    torch._dynamo.config.trace_autograd_ops = True
    explained = []

    def note(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        explained.append(graph)
        return graph

    run = torch.compile(batched_heads, dynamic=True, fullgraph=True, backend=note)
    for batch in batches().values():
        weights = model.gate(batch.composition)
        near(run(model, batch, weights, fused=True), batched_heads(model, batch, weights), 1e-11)
    assert 1 <= len(explained) <= 4


def test_other_models_and_devices_are_told_that_there_is_none() -> None:
    other = make_model(ModelConfig(backbone="egnn", hidden_dim=8, dim_sharedlayers=8, dim_headlayers=8))
    batch = batch_of([molecule()], SMALL)
    with pytest.raises(NoSuchKernel, match="only painn has fused messages, not egnn"):
        fused_messages()(other, batch, other.gate(batch.composition))
    with pytest.raises(NoSuchKernel, match="fused messages are for CPUs, not cuda"):
        kernels.check("painn", torch.device("cuda"))
