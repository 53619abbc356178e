"""The harness's backbones are faster than other implementations; `pytest -s` prints the ratios.

Both implementations get the same structures, neighbour lists and readout, and are timed in turn. Times are CPU times
of one thread, since other load on the machine hardly affects them.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import pytest
import torch
from torch import Tensor, nn

from harness.reference.data.batch import Batch, build_batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.inference.bucketing import get_shape
from harness.reference.models.backbones.mace import MACE
from harness.reference.models.config import ModelConfig
from harness.reference.models.edge_groups import compute_edge_vectors
from harness.reference.models.foundation import build_backbone
from harness.reference.profiling.flops import count_work
from tests.support.third_party_models import MaceTorch, SchNetPackPaiNN, TorchGeometricDimeNet, TorchGeometricSchNet

pytestmark = pytest.mark.slow
ROUNDS = 5
WIDTH = 64


class Energy(nn.Module):
    """An encoder and a small readout of each atom, like schnetpack's Atomwise; the energies are [g]."""

    def __init__(self, encoder: nn.Module, width: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.readout = nn.Sequential(nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1))

    def forward(self, batch: Batch, positions: Tensor) -> Tensor:
        vector = compute_edge_vectors(batch, positions, batch.shift)
        atom_energies = self.readout(self.encoder(batch, vector)).squeeze(-1)
        return atom_energies.new_zeros(len(batch.n_atoms)).index_add(0, batch.graph, atom_energies)


def compute_energy_and_forces(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    positions = batch.positions.detach().requires_grad_()
    energy = model(batch, positions)
    return energy.detach(), -torch.autograd.grad(energy.sum(), positions)[0]


def compute_loss(model: nn.Module, batch: Batch, positions: Tensor) -> Tensor:
    """Return a loss of energies per atom and forces whose targets are zero; the value does not matter."""
    energy = model(batch, positions)
    forces = torch.autograd.grad(energy.sum(), positions, create_graph=True)[0]
    return (energy / batch.n_atoms).pow(2).mean() + forces.pow(2).mean()


Call = Callable[[], object]


def inference(model: nn.Module, batch: Batch, *, compiled: bool = False) -> Call:
    frozen = model.eval().requires_grad_(False)
    function = (
        torch.compile(compute_energy_and_forces, dynamic=True, fullgraph=True)
        if compiled
        else compute_energy_and_forces
    )
    return lambda: function(frozen, batch)


def training(model: nn.Module, batch: Batch) -> Call:
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        compute_loss(model, batch, batch.positions.clone().requires_grad_()).backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class Ratio:
    """The seconds of a call of the other implementation over those of ours, with one ratio per round."""

    rounds: tuple[float, ...]
    ours_s: float
    theirs_s: float

    def __str__(self) -> str:
        low, high = min(self.rounds), max(self.rounds)
        times = f"{1e3 * self.ours_s:7.1f} ms, theirs {1e3 * self.theirs_s:7.1f} ms"
        return f"{times}: {median(self.rounds):.2f}x [{low:.2f}, {high:.2f}]"


def time_in_turn(ours: Call, theirs: Call, rounds: int = ROUNDS) -> Ratio:
    """Time both calls in turn, after one warm-up call of each."""
    seconds: dict[Call, list[float]] = {ours: [], theirs: []}
    for k in range(rounds + 1):
        for call, times in seconds.items():
            start = time.process_time()
            call()
            if k > 0:
                times.append(time.process_time() - start)
    our_times, their_times = seconds[ours], seconds[theirs]
    return Ratio(
        tuple(b / a for a, b in zip(our_times, their_times, strict=True)), median(our_times), median(their_times)
    )


def make_random_batch(count: int, *, with_triplets: bool = False) -> Batch:
    graphs = [
        build_neighbour_list(s, cutoff=5.0, max_neighbours=20) for s in make_random_structures(count, atoms=(2, 100))
    ]
    return build_batch(graphs, with_triplets=with_triplets).to("cpu", torch.get_default_dtype())


@pytest.fixture(autouse=True, scope="module")
def tune_allocator() -> Iterator[None]:
    """Set glibc's M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD as systems/local.yaml does; afterwards, restore them."""
    mallopt = ctypes.CDLL(None).mallopt if sys.platform == "linux" else lambda _name, _value: None
    for name, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):
        mallopt(name, value)
    yield
    for name, value in ((-4, 65536), (-1, 2**17), (-2, 2**17)):
        mallopt(name, value)


@pytest.fixture(autouse=True)
def use_one_thread() -> Iterator[None]:
    """Use one thread; afterwards, restore the default dtype, which tests set because schnetpack relies on it."""
    threads, tracing = torch.get_num_threads(), torch._dynamo.config.trace_autograd_ops
    torch.set_num_threads(1)
    torch._dynamo.config.trace_autograd_ops = True
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch._dynamo.config.trace_autograd_ops = tracing


def report(title: str, ratio: Ratio, ours: nn.Module, theirs: nn.Module, batch: Batch, target: float) -> None:
    """Print one line of the table, with the GFLOP of both implementations, in matrix products and in operators."""

    def run_forces(model: nn.Module) -> None:
        model.requires_grad_(False)(batch, batch.positions.clone().requires_grad_()).sum().backward()

    flops = [
        count_work(lambda model=model: run_forces(model), get_shape(batch)).flops.total() / 1e9
        for model in (ours, theirs)
    ]
    print(f"\n{title:34} ours {ratio} (target {target}x); GFLOP ours {flops[0]:.2f}, theirs {flops[1]:.2f}", end="")


def build_painns(dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Batch]:
    """Return our PaiNN, schnetpack's with the same weights, and a batch."""
    torch.set_default_dtype(dtype)
    config = ModelConfig(hidden_dim=WIDTH, num_radial=20)
    ours, theirs = build_backbone(config), SchNetPackPaiNN(config)
    theirs.copy_weights(ours)
    models = Energy(ours, WIDTH).to(dtype), Energy(theirs, WIDTH).to(dtype)
    models[1].readout.load_state_dict(models[0].readout.state_dict())
    return *models, make_random_batch(16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["FP32", "FP64"])
def test_painn_infers_faster_than_schnetpack(dtype: torch.dtype) -> None:
    ours, theirs, batch = build_painns(dtype)
    our_call, their_call = inference(ours, batch), inference(theirs, batch)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in zip(our_call(), their_call(), strict=True))
    ratio = time_in_turn(our_call, their_call)
    report(f"PaiNN, inference, eager, {dtype}", ratio, ours, theirs, batch, 2)
    assert median(ratio.rounds) > 1.3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["FP32", "FP64"])
def test_painn_trains_faster_than_schnetpack(dtype: torch.dtype) -> None:
    ours, theirs, batch = build_painns(dtype)
    ratio = time_in_turn(training(ours, batch), training(theirs, batch))
    report(f"PaiNN, training, eager, {dtype}", ratio, ours, theirs, batch, 2)
    assert median(ratio.rounds) > 1.3


def test_painn_infers_faster_than_schnetpack_compiled() -> None:
    ours, theirs, batch = build_painns(torch.float32)
    ratio = time_in_turn(inference(ours, batch, compiled=True), inference(theirs, batch, compiled=True), rounds=15)
    report("PaiNN, inference, compiled, FP32", ratio, ours, theirs, batch, 2)
    assert median(ratio.rounds) > 1.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["FP32", "FP64"])
@pytest.mark.parametrize("make", [inference, training])
def test_schnet_is_faster_than_torch_geometric(make: Callable[[nn.Module, Batch], Call], dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    config, batch = ModelConfig(backbone="schnet", hidden_dim=WIDTH), make_random_batch(16)
    ours, theirs = Energy(build_backbone(config), WIDTH).to(dtype), TorchGeometricSchNet(config).to(dtype)
    ratio = time_in_turn(make(ours, batch), make(theirs, batch))
    report(f"SchNet, {make.__name__}, eager, {dtype}", ratio, ours, theirs, batch, 2)
    assert median(ratio.rounds) > 1.4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["FP32", "FP64"])
@pytest.mark.parametrize("make", [inference, training])
def test_dimenet_is_faster_than_torch_geometric(make: Callable[[nn.Module, Batch], Call], dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    config, batch = ModelConfig(backbone="dimenet", hidden_dim=WIDTH), make_random_batch(4, with_triplets=True)
    ours, theirs = Energy(build_backbone(config), WIDTH).to(dtype), TorchGeometricDimeNet(config).to(dtype)
    ratio = time_in_turn(make(ours, batch), make(theirs, batch), rounds=3)
    report(f"DimeNet++, {make.__name__}, eager, {dtype}", ratio, ours, theirs, batch, 2)
    assert median(ratio.rounds) > 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["FP32", "FP64"])
@pytest.mark.parametrize("make", [inference, training])
def test_mace_is_faster_than_mace_torch(make: Callable[[nn.Module, Batch], Call], dtype: torch.dtype) -> None:
    pytest.importorskip(
        "mace", reason="mace-torch has to be installed separately: see tests/reference/models/mace_torch.py"
    )
    torch.set_default_dtype(dtype)
    config, batch = ModelConfig(backbone="mace", hidden_dim=WIDTH), make_random_batch(4)
    net = build_backbone(config).double()
    assert isinstance(net, MACE)
    theirs = MaceTorch(config, net, batch).to(dtype)
    ours = Energy(net, WIDTH).to(dtype)
    ratio = time_in_turn(make(ours, batch), make(theirs, batch), rounds=3)
    report(f"MACE, {make.__name__}, eager, {dtype}", ratio, ours, theirs, batch, 2)
    assert median(ratio.rounds) > 1.5
