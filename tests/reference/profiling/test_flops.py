"""Arithmetic and traffic of a call, against what can be counted by hand; free memory and what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from harness.reference.inference.bucketing import Shape, shape_of
from harness.reference.inference.prediction import batched_heads
from harness.reference.models.config import ModelConfig
from harness.reference.ops import messages
from harness.reference.profiling import flops, memory
from harness.reference.profiling.flops import compiled_bytes, count_work
from harness.reference.profiling.memory import cgroup_free_bytes, free_bytes, largest_batch
from harness.reference.profiling.timing import group_of, peak_bytes
from harness.reference.programs.ladder.stages import LADDER, StaticGraphs
from tests.reference.conftest import batch_of, crystal, make_model, molecule


def test_products_count_by_what_they_have_a_row_for_and_bytes_both_ways() -> None:
    shape = Shape(graphs=3, atoms=20, edges=50)
    edges, nodes, vectors = torch.randn(50, 8), torch.randn(20, 16), torch.randn(60, 16)
    heads, width = torch.ones(4, 3, 16), torch.randn(16, 16)
    done = count_work(
        lambda: (edges @ torch.ones(8, 16), nodes @ width, vectors @ width, heads @ torch.ones(4, 16, 2)), shape
    )
    assert done.flops == {
        ("edges", "float32"): 2 * 50 * 8 * 16,
        ("nodes", "float32"): 2 * 80 * 16 * 16,
        ("heads", "float32"): 2 * 4 * 3 * 16 * 2,
    }
    assert done.kinds == {
        ("edges", "float32"): (50, 8, 16), ("nodes", "float32"): (60, 16, 16), ("heads", "float32"): (4, 3, 16, 2)
    }  # fmt: skip
    assert done.matrix_flops == done.flops.total()
    x = torch.randn(1000, dtype=torch.float64)
    assert count_work(lambda: x + x, shape).bytes == 8 * 3000
    assert count_work(lambda: x.view(10, 100).T, shape).bytes == 0


def test_backward_counts_and_two_types_are_two_kinds() -> None:
    shape = Shape(1, 30, 1)
    a, b = torch.randn(30, 40), torch.randn(40, 50, requires_grad=True)
    assert count_work(lambda: (a @ b).sum().backward(), shape).matrix_flops == 2 * (2 * 30 * 40 * 50)
    done = count_work(lambda: (a @ b, a.bfloat16() @ b.bfloat16()), shape)
    assert done.flops["nodes", "float32"] == done.flops["nodes", "bfloat16"]
    assert set(done.kinds) == {("nodes", "float32"), ("nodes", "bfloat16")}


def test_products_are_of_atoms_or_heads_however_many_structures_there_are() -> None:
    """Also when weights have as many rows as the batch has structures: the width is 16."""
    model = make_model()
    assert model.config.hidden_dim == 16

    def done(graphs: int) -> dict[str, float]:
        batch = batch_of([molecule(20, seed=k) for k in range(graphs)])
        weights = model.gate(batch.composition)
        flops = count_work(lambda: batched_heads(model, batch, weights), shape_of(batch)).flops
        return {of: n / graphs for (of, _), n in flops.items()}

    few, as_many, more = (done(graphs) for graphs in (8, 16, 40))
    for kind in ("edges", "nodes", "heads"):
        # what is done once an element, 119 times, counts as of atoms
        assert few[kind] == pytest.approx(more[kind], rel=0.2), kind
        assert as_many[kind] == pytest.approx(more[kind], rel=0.2), kind


@pytest.mark.parametrize("backbone", ["painn", "schnet", "egnn"])
def test_filled_up_batches_count_by_their_own_shape(backbone: str) -> None:
    """As the same stage on batches that are not, up to what is filled up."""
    model = make_model(ModelConfig(backbone=backbone, hidden_dim=16, dim_sharedlayers=8, dim_headlayers=8))  # type: ignore[arg-type]
    batch = batch_of([molecule(), crystal()])
    own = shape_of(batch)
    stage = StaticGraphs(batched_heads)
    weights = model.gate(batch.composition)
    plain = count_work(lambda: batched_heads(model, batch, weights), own).flops
    filled = count_work(lambda: stage(model, batch, weights), stage.buckets.assign(own)).flops
    assert filled.keys() == plain.keys()
    assert all(plain[kind] <= filled[kind] < 1.6 * plain[kind] for kind in plain)


def test_the_messages_of_one_operator_count_as_their_loops_are_written() -> None:
    n, e, width, columns = 5, 12, 8, 7
    phi, v = torch.zeros(n, 3 * width), torch.zeros(3, n, width)
    radial, unit, end = torch.zeros(e, columns), torch.zeros(e, 3), torch.zeros(e, dtype=torch.long)
    assert flops.count_messages(phi, v, radial, None, unit, end, end) == e * width * (6 * columns + 16)
    to_s, to_v = torch.zeros(n, width), torch.zeros(3, n, width)
    for nodes, each in ((True, 12 * columns + 30), (False, 8 * columns + 20)):
        found = flops.count_messages_backward(to_s, to_v, phi, v, radial, None, unit, end, end, nodes)
        assert found == e * width * each
    for name in messages.SCHEMAS:
        operator = getattr(torch.ops.gfm_harness, name)
        assert (operator in flop_registry) == (not name.endswith("_second")), name


def test_every_stage_is_counted_and_the_fused_one_moves_less() -> None:
    model = make_model()
    batch = batch_of([molecule(), crystal()])
    weights = model.gate(batch.composition)
    messages.load(torch.device("cpu"))
    counted = {
        s.name: count_work(lambda s=s: s.predict_eager()(model, batch, weights), shape_of(batch))  # type: ignore[misc]
        for s in LADDER
    }
    assert all(c.flops.total() > 0 and c.bytes > 0 for c in counted.values())
    assert counted["torch_compile"] == counted["batched_heads"]
    assert counted["baseline"].matrix_flops > 10 * counted["batched_heads"].matrix_flops
    assert not any(of == "edges" for of, _ in counted["fused_messages"].kinds)
    assert counted["fused_messages"].bytes < 0.5 * counted["batched_heads"].bytes
    assert ("nodes", "bfloat16") in counted["mixed_precision"].kinds


def test_the_compiler_says_what_its_kernels_move() -> None:
    x, y = torch.randn(1000, dtype=torch.float64), torch.randn(1000, dtype=torch.float64)
    function = torch.compile(lambda a, b: (a * b).sin() + 1.25, dynamic=False)
    assert compiled_bytes(lambda: function(x, y)) == 8 * 3000
    assert compiled_bytes(lambda: function(x, y)) is None, "nothing is compiled a second time"


def group(folder: Path, version: int, limit: str, used: int, inactive: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = memory.VERSION_1 if version == 1 else memory.VERSION_2
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {inactive}\n")


def test_control_groups_leave_their_limit_less_what_cannot_be_given_back(tmp_path: Path) -> None:
    own = tmp_path / "cgroup"
    assert cgroup_free_bytes(own, tmp_path) == []
    own.write_text("0::/slurm/job_7/step_0\n")
    group(tmp_path / "slurm" / "job_7" / "step_0", 2, "max", 3000, 0)
    assert cgroup_free_bytes(own, tmp_path) == []
    group(tmp_path / "slurm" / "job_7", 2, "5000", 4000, 500)
    group(tmp_path / "slurm", 2, "9000", 4000, 500)
    group(tmp_path, 2, "1", 0, 0)  # the root has no limit in truth, but is looked at
    assert cgroup_free_bytes(own, tmp_path) == [1500, 5500, 1]
    own.write_text("5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n")
    group(tmp_path / "memory" / "a", 1, "7000", 1000, 200)
    assert 6200 in cgroup_free_bytes(own, tmp_path)
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
        ("aten::scatter_add_", "gather and scatter"), ("aten::cat", "copies and filling"),
        ("graph_5_cpp_fused__to_copy_addmm_cat_messages_silu_12", "element-wise and sums, compiled"),
        ("messages_of_edges_kernel", "messages"), ("triton_tem_fused_mm_3", "matrix products"),
        ("CatArrayBatchedCopy", "copies and filling"), ("indexSelectLargeIndex", "gather and scatter"),
        ("aten::mul", "element-wise and sums"), ("Torch-Compiled Region: 0/0", "framework"),
        ("sm90_xmma_gemm_f64f64", "matrix products"), ("triton_poi_fused_add_3", "element-wise and sums, compiled"),
    ],
)  # fmt: skip
def test_operations_have_a_kind(operation: str, group: str) -> None:
    assert group_of(operation) == group
