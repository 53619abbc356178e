"""Arithmetic and traffic of a call, against what can be counted by hand; free memory and what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.reference import memory
from harness.reference.inference import batched_heads
from harness.reference.kernels import arithmetic, messages
from harness.reference.ladder.stages import LADDER
from harness.reference.measure import group_of, peak_bytes
from harness.reference.memory import free_bytes, largest_batch, left_by_groups
from harness.reference.work import compiled_bytes, work
from tests.reference.conftest import batch_of, crystal, make_model, molecule

F64, F32 = torch.float64, torch.float32


def test_products_count_by_what_they_have_a_row_for_and_bytes_both_ways() -> None:
    edges, nodes, width = torch.randn(50, 8), torch.randn(20, 16), torch.randn(16, 16)
    done = work(lambda: (edges @ torch.ones(8, 16), nodes @ width, torch.ones(4, 3, 16) @ torch.ones(4, 16, 2)), 50, 3)
    assert done.flops == {
        ("edges", F32): 2 * 50 * 8 * 16,
        ("nodes", F32): 2 * 20 * 16 * 16,
        ("heads", F32): 2 * 4 * 3 * 16 * 2,
    }
    assert done.matrix_flops == done.flops.total()
    x = torch.randn(1000, dtype=F64)
    assert work(lambda: x + x, 1, 1).bytes == 8 * 3000
    assert work(lambda: x.view(10, 100).T, 1, 1).bytes == 0


def test_backward_counts_and_two_types_are_two_kinds() -> None:
    a, b = torch.randn(30, 40), torch.randn(40, 50, requires_grad=True)
    assert work(lambda: (a @ b).sum().backward(), 1, 1).matrix_flops == 2 * (2 * 30 * 40 * 50)
    done = work(lambda: (a @ b, a.bfloat16() @ b.bfloat16()), 1, 1)
    assert done.flops["nodes", F32] == done.flops["nodes", torch.bfloat16]
    assert done.kinds == {("nodes", F32), ("nodes", torch.bfloat16)}


def test_the_messages_of_one_operator_count_as_their_loops_are_written() -> None:
    n, e, width, columns = 5, 12, 8, 7
    phi, v = torch.zeros(n, 3 * width), torch.zeros(3, n, width)
    radial, unit, end = torch.zeros(e, columns), torch.zeros(e, 3), torch.zeros(e, dtype=torch.long)
    assert arithmetic.messages(phi, v, radial, None, unit, end, end) == e * width * (6 * columns + 16)
    to_s, to_v = torch.zeros(n, width), torch.zeros(3, n, width)
    for nodes, each in ((True, 12 * columns + 30), (False, 8 * columns + 20)):
        found = arithmetic.messages_backward(to_s, to_v, phi, v, radial, None, unit, end, end, nodes)
        assert found == e * width * each
    assert set(arithmetic.FLOPS) == {name for name in messages.SCHEMAS if not name.endswith("_second")}


def test_every_stage_is_counted_and_the_fused_one_moves_less() -> None:
    model = make_model()
    batch = batch_of([molecule(), crystal()])
    weights = model.gate(batch.composition)
    messages.load(torch.device("cpu"))
    counted = {
        s.name: work(lambda s=s: s.plainly()(model, batch, weights), len(batch.receiver), 2)  # type: ignore[misc]
        for s in LADDER
    }
    assert all(c.flops.total() > 0 and c.bytes > 0 for c in counted.values())
    assert counted["torch_compile"] == counted["batched_heads"]
    assert counted["baseline"].matrix_flops > 10 * counted["batched_heads"].matrix_flops
    assert not any(of == "edges" for of, _ in counted["fused_messages"].kinds)
    assert counted["fused_messages"].bytes < 0.5 * counted["batched_heads"].bytes
    assert ("nodes", torch.bfloat16) in counted["mixed_precision"].kinds


@pytest.mark.slow
def test_the_compiler_says_what_its_kernels_move() -> None:
    x, y = torch.randn(1000, dtype=F64), torch.randn(1000, dtype=F64)
    function = torch.compile(lambda a, b: (a * b).sin() + 1.25, dynamic=False)
    assert compiled_bytes(lambda: function(x, y)) == 8 * 3000
    assert compiled_bytes(lambda: function(x, y)) is None, "nothing is compiled a second time"


def test_what_a_control_group_leaves_is_less_than_what_the_machine_has(tmp_path: Path) -> None:
    assert left_by_groups(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert left_by_groups(tmp_path) == []
    (tmp_path / "memory.max").write_text("5000\n")
    assert left_by_groups(tmp_path) == [4000]
    assert free_bytes(torch.device("cpu")) > 0


def test_the_largest_batch_is_in_proportion_with_something_spared() -> None:
    assert largest_batch(1 << 20, 4, 100 << 20) == int(memory.SHARE * 400)
    assert largest_batch(1 << 40, 16, 1 << 20) == 1


def test_memory_grows_no_faster_than_batches() -> None:
    """What the choice of a batch by free memory rests on."""
    model = make_model()

    def peak(copies: int) -> int:
        batch = batch_of([molecule(20, seed=k % 4) for k in range(4 * copies)])
        weights = model.gate(batch.composition)
        return peak_bytes(lambda: batched_heads(model, batch, weights), torch.device("cpu"))

    assert peak(8) <= 8 * 1.02 * peak(1)


@pytest.mark.parametrize(
    ("operation", "group"),
    [
        ("aten::mm", "matrix products"), ("aten::bmm", "batched products (heads)"),
        ("gfm_harness::messages_backward", "messages"), ("graph_1_cpp_fused_silu_4", "element-wise and sums, compiled"),
        ("aten::copy_", "copies and filling"), ("aten::index_add_", "gather and scatter"),
        ("aten::mul", "element-wise and sums"), ("Torch-Compiled Region: 0/0", "framework"),
        ("sm90_xmma_gemm_f64f64", "matrix products"), ("triton_poi_fused_add_3", "element-wise and sums, compiled"),
    ],
)  # fmt: skip
def test_operations_have_a_kind(operation: str, group: str) -> None:
    assert group_of(operation) == group
