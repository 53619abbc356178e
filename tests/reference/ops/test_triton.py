"""The fused messages in Triton: they run on a GPU, or interpreted on the CPU with TRITON_INTERPRET=1.

The interpreter shows that the arithmetic is right, not that it is fast, nor in which order a GPU computes. One test
compiles the kernels for NVIDIA and AMD, which needs no GPU.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, library

from harness.reference.inference.prediction import baseline, batched_heads
from harness.reference.ops import messages as kernels
from harness.reference.ops.messages import MessageInputs, UnsupportedKernel, messages
from harness.reference.ops.unfused_messages import compute_unfused_messages, make_terms
from tests.reference.conftest import SMALL, make_batch, make_crystal, make_model, make_molecule
from tests.reference.ops.message_terms import (
    TOLERANCE,
    assert_close,
    compute_first_and_second_derivatives,
    compute_values_and_gradients,
)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = next((kind for kind in kernels.GPUS if getattr(torch, kind).is_available()), None)
DEVICE = "cpu" if INTERPRETED else GPU

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or DEVICE is None, reason="needs Triton, and a GPU or TRITON_INTERPRET=1"
)
all_dtypes = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=["fp64", "fp32"])
with_and_without_v = pytest.mark.parametrize("with_v", [True, False], ids=["v", "no v"])
needs_gpu = pytest.mark.skipif(INTERPRETED or GPU is None, reason="needs a GPU")


@pytest.fixture(scope="module", autouse=True)
def _register_operators() -> Iterator[None]:
    if DEVICE != "cpu":
        kernels.load(torch.device(DEVICE))
        yield
        return
    from harness.reference.ops import triton_messages

    registered = library.Library("gfm_harness", "IMPL")
    triton_messages.register("cpu", registered)
    yield
    del registered


def make_device_terms(*sizes: int, with_v: bool = True, dtype: torch.dtype = torch.float64) -> MessageInputs:
    return make_terms(*sizes, with_v=with_v, dtype=dtype, device=DEVICE)


# (atoms, edges, width, columns): less than a tile; several tiles of edges or of features; many columns; no edges
SIZES = [(5, 9, 3, 2), (4, 60, 13, 7), (3, 12, 337, 7), (4, 20, 40, 21), (3, 10, 5, 45), (1, 4, 6, 3), (3, 0, 8, 7)]


@all_dtypes
@with_and_without_v
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values_and_gradients_match_the_unfused_messages(
    sizes: tuple[int, ...], with_v: bool, dtype: torch.dtype
) -> None:
    terms = make_device_terms(*sizes, with_v=with_v, dtype=dtype)
    for got, expected in zip(
        compute_values_and_gradients(messages(terms), terms),
        compute_values_and_gradients(compute_unfused_messages(terms), terms),
        strict=True,
    ):
        assert got.dtype == dtype
        assert got.shape == expected.shape
        scale = expected.abs().max() if expected.numel() else torch.zeros(())
        assert torch.allclose(got, expected, rtol=0, atol=float(TOLERANCE[dtype] * scale))


@with_and_without_v
def test_second_derivatives_match_the_unfused_messages(with_v: bool) -> None:
    terms = make_device_terms(4, 15, 6, 4, with_v=with_v)
    for got, expected in zip(
        *(
            compute_first_and_second_derivatives(formulation, terms)
            for formulation in (messages, compute_unfused_messages)
        ),
        strict=True,
    ):
        assert torch.allclose(got, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


def test_sums_do_not_depend_on_the_number_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.reference.ops import triton_messages

    terms = make_device_terms(5, 40, 6, 4)
    expected = compute_values_and_gradients(messages(terms), terms)
    monkeypatch.setattr(triton_messages, "MIN_CHUNK", 2)
    monkeypatch.setattr(triton_messages, "MAX_CHUNKS", 7)
    for got, single_chunk in zip(compute_values_and_gradients(messages(terms), terms), expected, strict=True):
        assert torch.allclose(got, single_chunk, rtol=0, atol=1e-13 * float(single_chunk.abs().max()))


def test_tensors_may_be_views() -> None:
    terms = make_device_terms(4, 12, 5, 3)
    assert terms.v is not None
    strided = terms._replace(
        phi=terms.phi.T.contiguous().T, v=terms.v.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        radial=terms.radial.repeat_interleave(2, dim=0)[::2], unit=terms.unit.T.contiguous().T,
    )  # fmt: skip
    for got, expected in zip(messages(strided), messages(terms), strict=True):
        assert torch.equal(got, expected)


@all_dtypes
def test_results_are_bitwise_reproducible(dtype: torch.dtype) -> None:
    terms = make_device_terms(5, 40, 20, 7, dtype=dtype)
    first, repeated = (compute_values_and_gradients(messages(terms), terms) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, repeated, strict=True))


@with_and_without_v
def test_operators_are_registered_correctly(with_v: bool) -> None:
    terms = make_device_terms(3, 6, 4, 2, with_v=with_v)
    to_s, to_v = (torch.randn_like(x).requires_grad_() for x in messages(terms))
    operators = torch.ops.gfm_harness
    library.opcheck(operators.messages.default, tuple(terms))
    library.opcheck(operators.filter_backward.default, (to_s, to_v, *terms[:3], *terms[4:]))
    for nodes in (True, False):
        library.opcheck(operators.messages_backward.default, (to_s, to_v, *terms, nodes))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sender": torch.tensor([1, 4])}, "edges do not match"),
        ({"unit": torch.zeros(3, 2, dtype=torch.float64)}, "unit is not"),
        ({"unit": torch.zeros(3, 3)}, "types differ"),
        ({"weight": torch.zeros(4, 17, dtype=torch.float64)}, "weight does not fit phi"),
        ({"v": torch.zeros(3, 4, 6, dtype=torch.float64)}, "v does not fit phi"),
        ({"phi": torch.zeros(5, 17, dtype=torch.float64)}, "phi has 17 columns"),
    ],
    ids=str,
)
def test_tensors_that_do_not_fit_are_refused(wrong: dict[str, Tensor], message: str) -> None:
    terms = make_device_terms(5, 3, 6, 4)._replace(**{name: x.to(DEVICE) for name, x in wrong.items()})
    with pytest.raises((ValueError, TypeError), match=message):
        torch.ops.gfm_harness.messages(*(x.detach() if x is not None else x for x in terms))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("backbone", kernels.BACKBONES)
def test_models_predict_the_same_with_fused_messages(backbone: str, compiled: bool) -> None:
    model = make_model(SMALL.replace(backbone=backbone, hidden_dim=8, num_conv_layers=2)).to(DEVICE)
    batch = make_batch([make_molecule(3), make_molecule(1, seed=7), make_crystal(1)]).to(DEVICE, torch.float64)
    weights = model.gate(batch.composition)
    run = batched_heads
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.config.trace_autograd_ops = True
        run = torch.compile(batched_heads, dynamic=True, fullgraph=True, backend="aot_eager")
    assert_close(run(model, batch, weights, fused=True), baseline(model, batch, weights), 1e-11)


@needs_gpu
@pytest.mark.skipif(GPU != "cuda", reason="only CUDA has CUDA graphs")
def test_cuda_graphs_can_record_the_operators() -> None:
    """An operation that waits for the device would abort the recording."""
    terms = make_device_terms(50, 400, 64, 7)
    inputs = [x.detach() if x is not None else x for x in terms]
    operators = torch.ops.gfm_harness

    def run() -> tuple[Tensor, ...]:
        s, v = operators.messages(*inputs)
        gradients = operators.messages_backward(s, v, *inputs, True)
        return s, v, *gradients, operators.filter_backward(s, v, *inputs[:3], *inputs[4:])

    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = run()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(recorded, expected, strict=True))


@pytest.mark.skipif(GPU is not None, reason="there is a GPU")
def test_triton_without_a_device_is_reported() -> None:
    with pytest.raises(UnsupportedKernel, match=r"^Triton cannot be used: 0 active drivers"):
        kernels.load(torch.device("cuda"))


def test_kernels_compile_for_nvidia_and_amd_without_atomics(tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.reference.ops.compile_triton"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    kernel_sizes = [[int(size) for size in line.rpartition(")")[2].split()] for line in result.stdout.splitlines()]
    assert len(kernel_sizes) == 12
    assert all(len(sizes) == 4 and min(sizes) > 1000 for sizes in kernel_sizes)
