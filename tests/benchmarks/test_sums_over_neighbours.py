"""Sums over neighbours are faster than by PyTorch's functions, and gain from a second thread.

Times are CPU times of the main thread, which other load on the machine hardly affects. Idle threads sleep, so that the
main thread's time on two threads shows its share of the work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.slow
# A process of its own, since OMP_WAIT_POLICY is read once.
PROGRAM = """
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


def test_couplings_are_faster_than_tensors_of_edges_and_gain_from_a_second_thread() -> None:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    (ours, theirs), (ours_on_two, _) = ([float(x) for x in line.split()] for line in output.splitlines())
    print(f"\none thread {1e3 * ours:.1f} ms, by PyTorch {1e3 * theirs:.1f} ms; two threads {1e3 * ours_on_two:.1f} ms")
    assert theirs / ours > 2, output
    assert ours / ours_on_two > 1.4, output
