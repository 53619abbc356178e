"""Filters, their derivatives and the sums with them equal those by PyTorch, with first and second derivatives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, library
from torch.autograd import gradcheck, gradgradcheck

from harness.reference.models.backbones.schnet import SchNet
from harness.reference.models.config import ModelConfig
from harness.reference.ops import radial_filters, segment_sums
from harness.reference.ops.radial_filters import sum_filtered
from harness.reference.ops.segment_sums import Grouping, group_rows

CONFIG = ModelConfig(backbone="schnet", hidden_dim=12, num_conv_layers=2, cutoff=4.0, num_filters=37, num_gaussians=15)


@pytest.fixture(scope="module", autouse=True)
def _compile_operators() -> None:
    assert segment_sums.load() is None


def make_schnet(dtype: torch.dtype) -> SchNet:
    torch.manual_seed(0)
    net = SchNet(CONFIG).to(dtype).requires_grad_(False)
    for interaction in net.interactions:
        for layer in (interaction.mlp[0], interaction.mlp[2]):
            torch.nn.init.normal_(layer.bias)
    return net


def draw_distances(count: int, dtype: torch.dtype) -> Tensor:
    """Return distances of which some are beyond the cutoff."""
    generator = torch.Generator().manual_seed(count)
    return (1.1 * CONFIG.cutoff * torch.rand(count, 1, dtype=dtype, generator=generator)).requires_grad_()


def draw_groups() -> tuple[Grouping, Grouping, Grouping]:
    """Return the senders, receivers and pairs of seven edges between four atoms; one pair has a single edge."""
    indices = ([0, 1, 1, 2, 2, 0, 3], [1, 0, 2, 1, 0, 2, 1], [0, 0, 1, 1, 2, 2, 3])
    senders, receivers, pair = (group_rows(torch.tensor(index), 4) for index in indices)
    return senders, receivers, pair


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-5)])
@pytest.mark.parametrize("count", [0, 1, 700])
def test_values_and_slopes_equal_those_by_layers(count: int, dtype: torch.dtype, tolerance: float) -> None:
    net, r = make_schnet(dtype), draw_distances(count, dtype)
    fused, by_layers = net.compute_filters(r, draw_groups()[2]), net.compute_filters(r, None)
    for radial, reference in zip(fused, by_layers, strict=True):
        assert radial.slope is not None
        assert reference.slope is None
        weights = torch.linspace(-1.0, 1.0, 37, dtype=dtype)
        (slope,) = torch.autograd.grad((reference.value * weights).sum(), r, retain_graph=True)
        assert torch.allclose(radial.value, reference.value, rtol=0, atol=tolerance)
        assert torch.allclose((radial.slope * weights).sum(1, keepdim=True), slope, rtol=0, atol=100 * tolerance)
        assert not radial.value[r[:, 0] > CONFIG.cutoff].any()


def sum_by_filters(r: Tensor, layers: list[Tensor], x: Tensor, gaussians: int) -> Tensor:
    senders, receivers, pair = draw_groups()
    radial = radial_filters.evaluate_filters(r, gaussians, CONFIG.cutoff, -60.0, layers)
    return torch.stack([sum_filtered(x, r, layer, senders, receivers, pair) for layer in radial])


@pytest.mark.parametrize("width", [3, 37])
@pytest.mark.parametrize("trains", [False, True])
def test_first_and_second_derivatives_of_sums_match_finite_differences(width: int, trains: bool) -> None:
    torch.manual_seed(width)
    shapes = ((5, 6), (5,), (width, 5), (width,)) * 2
    layers = [torch.randn(shape, dtype=torch.float64, requires_grad=trains) for shape in shapes]
    x = torch.randn(4, width, dtype=torch.float64, requires_grad=True)
    r = draw_distances(4, torch.float64)

    def compute(x: Tensor, r: Tensor, *layers: Tensor) -> Tensor:
        return sum_by_filters(r, list(layers), x, 6)

    assert gradcheck(compute, (x, r, *layers), fast_mode=width > 3)
    assert gradgradcheck(compute, (x, r, *layers), fast_mode=width > 3)


def test_gradients_of_parameters_equal_those_by_layers() -> None:
    """The loss is one of forces, the distances fill several blocks, and the filter of the second layer is unused."""
    results = []
    for pair in (group_rows(torch.arange(1400) // 2, 700), None):
        net, r = make_schnet(torch.float64).requires_grad_(True), draw_distances(700, torch.float64)
        ends = [group_rows(torch.arange(1400) * k % 11, 11) for k in (3, 7)]
        x = torch.cos(torch.arange(11 * 37, dtype=torch.float64).view(11, 37)).requires_grad_()
        rows = pair or group_rows(torch.arange(1400) // 2, 700)
        received = sum_filtered(x, r, net.compute_filters(r, pair)[0], *ends, rows)
        (r_grad,) = torch.autograd.grad(received.square().sum(), r, create_graph=True)
        parameters = list(net.interactions[0].mlp.parameters())
        results.append(torch.autograd.grad(r_grad.square().sum(), (x, r, *parameters)))
    for fused, by_layers in zip(*results, strict=True):
        assert torch.allclose(fused, by_layers, rtol=1e-9, atol=1e-9 * float(by_layers.abs().max()))


def test_third_derivatives_equal_those_by_layers() -> None:
    results = []
    for pair in (draw_groups()[2], None):
        net, r = make_schnet(torch.float64).requires_grad_(True), draw_distances(4, torch.float64)
        y = torch.ones(4, 37, dtype=torch.float64)
        derivative = sum_filtered(y, r, net.compute_filters(r, pair)[1], *draw_groups())
        for _ in range(2):
            (derivative,) = torch.autograd.grad(derivative.square().sum(), r, create_graph=True)
        parameters = list(net.interactions[1].mlp.parameters())
        results.append(torch.autograd.grad(derivative.square().sum(), (r, *parameters)))
    for fused, by_layers in zip(*results, strict=True):
        assert torch.allclose(fused, by_layers, rtol=1e-9, atol=1e-9 * float(by_layers.abs().max()))


@pytest.mark.parametrize("change", ["hooks", "distances", "autocast", "types"])
def test_layers_compute_filters_that_the_operator_cannot(change: str) -> None:
    net, r = make_schnet(torch.float32), draw_distances(4, torch.float32)
    if change == "hooks":
        net.interactions[1].mlp[0].register_forward_hook(lambda *_: None)
    elif change == "distances":
        r = r.detach()
    elif change == "types":
        r = r.detach().bfloat16().requires_grad_()
        net.bfloat16()
    with torch.autocast("cpu", enabled=change == "autocast"):
        assert all(radial.slope is None for radial in net.compute_filters(r, draw_groups()[2]))


@pytest.mark.parametrize("count", [150, 2000])
def test_results_do_not_depend_on_the_number_of_threads(count: int, restored_threads: None) -> None:
    net, r = make_schnet(torch.float32).requires_grad_(True), draw_distances(count, torch.float32)
    senders, receivers = (group_rows(torch.randint(300, (2 * count,)), 300) for _ in range(2))
    pair = group_rows(torch.arange(2 * count) // 2, count)
    x = torch.randn(300, 37, requires_grad=True)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        radial = net.compute_filters(r, pair)[0]
        received = sum_filtered(x, r, radial, senders, receivers, pair)
        gradients = torch.autograd.grad(received.square().sum(), (x, r), create_graph=True)
        parameters = list(net.interactions[0].mlp.parameters())
        second = torch.autograd.grad(gradients[1].square().sum(), parameters)
        results.append((radial.value, received, *gradients, *second))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


def draw_operands() -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return distances [4, 1], an operand [4, 5], and the parameters of a layer with five filters and six Gaussians."""
    return torch.rand(4, 1), torch.randn(4, 5), [torch.randn(shape) for shape in ((5, 6), (5,), (5, 5), (5,))]


def test_operators_are_registered_correctly() -> None:
    senders, receivers, pair = draw_groups()
    (r, x, layers), operators = draw_operands(), torch.ops.gfm_harness
    library.opcheck(operators.radial_filters.default, (r, 6, 4.0, -60.0, layers))
    library.opcheck(operators.radial_filters_backward.default, ([x, x], r, 6, 4.0, -60.0, layers, True))
    library.opcheck(operators.sum_triple_products.default, (x, x, x, [*senders], [*receivers], [*pair]))


@pytest.mark.parametrize("parameter", range(4))
def test_parameters_of_another_shape_are_refused(parameter: int) -> None:
    r, _, layers = draw_operands()
    layers[parameter] = layers[parameter][:-1]
    with pytest.raises(ValueError, match=r"layer 0: parameters .* expected \[H, 6\], \[H\], \[K, H\] and \[K\]"):
        radial_filters.evaluate_filters(r, 6, 4.0, -60.0, layers)


def test_operands_that_do_not_fit_are_refused() -> None:
    senders, receivers, pair = draw_groups()
    (r, x, layers), operators = draw_operands(), torch.ops.gfm_harness
    with pytest.raises(ValueError, match="3 parameters, expected four for each layer"):
        radial_filters.evaluate_filters(r, 6, 4.0, -60.0, layers[1:])
    with pytest.raises(ValueError, match=r"r is \[4\], expected \[p, 1\]"):
        radial_filters.evaluate_filters(r[:, 0], 6, 4.0, -60.0, layers)
    with pytest.raises(ValueError, match="1 gradients, expected two for each layer"):
        operators.radial_filters_backward([x], r, 6, 4.0, -60.0, layers, False)
    with pytest.raises(ValueError, match=r"gradient 1 is \[3, 5\], expected \[4, 5\]"):
        operators.radial_filters_backward([x, x[:3]], r, 6, 4.0, -60.0, layers, False)
    with pytest.raises(ValueError, match=r"weight is \[3, 5\], expected \[4, 5\]"):
        operators.sum_triple_products(x, x, x[:3], senders, receivers, pair)
    with pytest.raises(ValueError, match=r"y is \[3, 5\], expected \[4, 5\]"):
        operators.sum_triple_products(x, x[:3], x, senders, receivers, pair)
    with pytest.raises(TypeError, match="weight Double, expected one type"):
        operators.sum_triple_products(x, x, x.double(), senders, receivers, pair)
    with pytest.raises(ValueError, match="needs the pair of each edge"):
        sum_filtered(x, r, radial_filters.RadialFilter(x, x), senders, receivers, None)
