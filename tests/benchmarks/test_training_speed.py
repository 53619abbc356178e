"""Parts of a training step are faster than their plain formulations (ratios of CPU times, in turn in one process)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from harness.protocol.programs.training_steps import TrainingStepsParameters
from harness.reference.data.batch import build_batch
from harness.reference.datasets.random_structures import make_random_structures
from harness.reference.inference.prediction import batched_heads
from harness.reference.models.config import ModelConfig
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.heads import Heads
from harness.reference.ops import messages
from harness.reference.programs.training_steps import TimedStep, make_batches, make_model
from harness.reference.training.loss import MultiTaskLoss, PerGraphErrors

ROUNDS = 5
WIDTH, HIDDEN = 337, (50, 50, 776, 776)
Call = Callable[[], object]


@pytest.fixture(autouse=True)
def _use_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    messages.load(torch.device("cpu"))
    yield
    torch.set_num_threads(threads)


def measure_speedup(plain: Call, fast: Call) -> float:
    """Return the median over rounds of the CPU time of one call over that of the other, and print it."""
    ratios = []
    for _ in range(ROUNDS + 1):
        times = []
        for call in (plain, fast):
            started = time.process_time()
            call()
            times.append(time.process_time() - started)
        ratios.append(times[0] / times[1])
    ratio = statistics.median(ratios[1:])  # the first round includes one-time costs
    print(f"{ratio:.2f} times as fast")
    return ratio


def test_own_heads_are_faster_than_all_heads() -> None:
    """Measured: 5 times for 64 structures of 8 heads, and 13 times for 128 structures of one head."""
    heads, head = Heads(16, WIDTH, HIDDEN), torch.arange(64) % 8
    x = torch.randn(64, WIDTH, requires_grad=True)

    def evaluate_all(x: Tensor) -> tuple[Tensor, Tensor]:
        output = heads(x).gather(1, head.unsqueeze(1)).squeeze(1)
        return output, torch.autograd.grad(output.sum(), x, create_graph=True)[0]

    def differentiate(evaluate: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        heads.zero_grad()
        output, slope = evaluate(x)
        (output.abs().sum() + slope.abs().sum()).backward()

    speedup = measure_speedup(
        lambda: differentiate(evaluate_all), lambda: differentiate(lambda x: heads.forward_own(head, x))
    )
    assert speedup > 2.0


def test_the_update_of_weights_is_fused() -> None:
    """Measured: 9 times the speed of a loop over parameters."""
    calls = []
    for fused in (False, True):
        parameters = [nn.Parameter(torch.randn(776, 776)) for _ in range(8)]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        calls.append(torch.optim.AdamW(parameters, fused=fused, foreach=False).step)
    assert measure_speedup(*calls) > 2.0


def test_linear_layers_are_not_slower_than_torch() -> None:
    """Measured: twice the speed on AMD's Zen 5; elsewhere, the operator calls torch."""
    a, b = torch.randn(900, WIDTH), torch.randn(3 * WIDTH, WIDTH).T
    assert measure_speedup(lambda: a @ b, lambda: torch.ops.gfm_harness.multiply_add(a, b, None)) > 0.8


def test_a_fused_step_is_faster_than_a_plain_one() -> None:
    """Measured: 2.7 times, both without compilation."""
    config = TrainingStepsParameters(
        precision="fp32",
        model={"hidden_dim": WIDTH, "num_conv_layers": 3, "dim_headlayers": 776, "readout": "sum"},  # type: ignore[arg-type]
        batch_size=6,
    )
    model = make_model(config)
    (batch,) = make_batches(model, config)
    objective = MultiTaskLoss(config.force_weight, config.batch_size)
    steps = [TimedStep(str(fused), PerGraphErrors(model, fused=fused), model, objective) for fused in (False, True)]
    assert measure_speedup(*(lambda step=step: step(batch) for step in steps)) > 1.5  # type: ignore[misc]


def test_smooth_options_cost_little() -> None:
    plain, smooth = (
        FoundationModel(ModelConfig(hidden_dim=64, num_conv_layers=3, **options)).requires_grad_(False)  # type: ignore[arg-type]
        for options in ({}, {"adaptive_neighbours": 20.0, "repulsion": "zbl", "feature_norm": "rms"})
    )
    spec = smooth.config.neighbour_spec
    batch = build_batch([spec.build_list(s) for s in make_random_structures(16, atoms=(2, 100))])
    weights = plain.double().gate(batch.composition)
    calls = [lambda m=m: batched_heads(m.double(), batch, weights, fused=True) for m in (smooth, plain)]  # type: ignore[misc]
    assert measure_speedup(*calls) < 1.35
