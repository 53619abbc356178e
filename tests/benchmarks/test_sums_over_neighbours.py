"""Sums over neighbours are faster than by PyTorch's functions; they, and SchNet, gain from a second thread.

Idle threads wait as systems/local.yaml has it. Times are CPU times of the main thread: its work, and its spinning while
another thread works.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT

pytestmark = pytest.mark.slow
COUPLINGS = """
    import sys, time
    from statistics import median
    import torch
    from harness.reference.ops import couplings, segment_sums
    from harness.reference.ops.segment_sums import group_rows
    assert segment_sums.load() is None
    torch.manual_seed(0)
    atoms, edges, width = 900, 14000, 192
    senders, receivers = (group_rows(torch.randint(atoms, (edges,)).sort().values, atoms) for _ in range(2))
    paths = torch.tensor([0, 1, 1, 1])
    k, h, w = torch.randn(edges, 4, 2), torch.randn(atoms, 2, width), torch.randn(edges, 2, width)
    inputs = [x.requires_grad_() for x in (k, h, w)]

    def couple(k, h, w):
        return couplings.couple_neighbours(k, h, w, paths, senders, receivers)

    def sum_products(k, h, w):
        terms = (k @ h[senders.group]) * w[:, paths]
        return terms.new_zeros(atoms, 4, width).index_add(0, receivers.group, terms)

    def measure(function):
        times = []
        for _ in range(12):
            start = time.thread_time()
            torch.autograd.grad(function(*inputs).sum(), inputs)
            times.append(time.thread_time() - start)
        return median(times[2:])

    for threads in (1, 2):
        torch.set_num_threads(threads)
        print(measure(couple), measure(sum_products))
"""

SCHNET = """
    import sys, time
    from statistics import median
    import torch
    from harness.reference.models.config import ModelConfig
    from harness.reference.models.foundation import build_backbone
    from tests.benchmarks.test_peers import WIDTH, Energy, inference, make_random_batch
    torch._dynamo.config.trace_autograd_ops = True
    encoder = build_backbone(ModelConfig(backbone="schnet", hidden_dim=WIDTH))
    call = inference(Energy(encoder, WIDTH), make_random_batch(int(sys.argv[1])), compiled=sys.argv[2] == "compiled")
    times = {1: [], 2: []}
    for _ in range(15):
        for threads in times:
            torch.set_num_threads(threads)
            call()
            start = time.thread_time()
            for _ in range(3):
                call()
            times[threads].append((time.thread_time() - start) / 3)
    print(*(median(x[2:]) for x in times.values()))
"""


def run(program: str, *arguments: object) -> list[list[float]]:
    """Run a program in a process of its own, since threads read their settings once; return the numbers it prints."""
    settings = YAML(typ="safe").load(ROOT / "systems" / "local.yaml")["environment"]
    environment = {**os.environ, "GOMP_SPINCOUNT": settings["GOMP_SPINCOUNT"], "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return [[float(x) for x in line.split()] for line in output.splitlines()]


def test_couplings_are_faster_than_tensors_of_edges_and_gain_from_a_second_thread() -> None:
    (ours, theirs), (ours_on_two, _) = run(COUPLINGS)
    print(f"\none thread {1e3 * ours:.1f} ms, by PyTorch {1e3 * theirs:.1f} ms; two threads {1e3 * ours_on_two:.1f} ms")
    assert theirs / ours > 2
    assert ours / ours_on_two > 1.4


@pytest.mark.parametrize(
    ("mode", "structures", "minimum"), [("eager", 16, 1.2), ("eager", 64, 1.4), ("compiled", 16, 1.4)]
)
def test_energies_and_forces_of_schnet_gain_from_a_second_thread(mode: str, structures: int, minimum: float) -> None:
    ((one, two),) = run(SCHNET, structures, mode)
    print(f"\n{mode}, {structures} structures: one thread {1e3 * one:.1f} ms, two {1e3 * two:.1f} ms: {one / two:.2f}x")
    assert one / two > minimum
