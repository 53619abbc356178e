"""Counted operations and memory traffic match hand counts; free memory is measured and the largest batch estimated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import flop_registry

from harness.reference.inference.bucketing import Shape, get_shape
from harness.reference.inference.prediction import batched_heads
from harness.reference.models.config import ModelConfig
from harness.reference.ops import couplings, messages
from harness.reference.ops.own_heads import evaluate_own_heads
from harness.reference.profiling import flops, memory
from harness.reference.profiling.flops import count_compiled_bytes, count_work
from harness.reference.profiling.memory import estimate_largest_batch, list_cgroup_free_bytes, measure_free_bytes
from harness.reference.profiling.timing import classify_operation, measure_peak_bytes
from harness.reference.programs.ladder.stages import LADDER, StaticGraphs
from tests.reference.conftest import make_batch, make_crystal, make_model, make_molecule


def test_products_are_classified_by_rows_and_bytes_include_reads_and_writes() -> None:
    shape = Shape(graphs=3, atoms=20, edges=50)
    edges, nodes, vectors = torch.randn(50, 8), torch.randn(20, 16), torch.randn(60, 16)
    heads, width = torch.ones(4, 3, 16), torch.randn(16, 16)
    work = count_work(
        lambda: (edges @ torch.ones(8, 16), nodes @ width, vectors @ width, heads @ torch.ones(4, 16, 2)), shape
    )
    assert work.flops == {
        ("edges", "float32"): 2 * 50 * 8 * 16,
        ("nodes", "float32"): 2 * 80 * 16 * 16,
        ("heads", "float32"): 2 * 4 * 3 * 16 * 2,
    }
    assert work.kinds == {
        ("edges", "float32"): (50, 8, 16), ("nodes", "float32"): (60, 16, 16), ("heads", "float32"): (4, 3, 16, 2)
    }  # fmt: skip
    assert work.matrix_flops == work.flops.total()
    x = torch.randn(1000, dtype=torch.float64)
    assert count_work(lambda: x + x, shape).bytes == 8 * 3000
    assert count_work(lambda: x.view(10, 100).T, shape).bytes == 0


def test_backward_products_are_counted_and_dtypes_distinguished() -> None:
    shape = Shape(1, 30, 1)
    a, b = torch.randn(30, 40), torch.randn(40, 50, requires_grad=True)
    assert count_work(lambda: (a @ b).sum().backward(), shape).matrix_flops == 2 * (2 * 30 * 40 * 50)
    work = count_work(lambda: (a @ b, a.bfloat16() @ b.bfloat16()), shape)
    assert work.flops["nodes", "float32"] == work.flops["nodes", "bfloat16"]
    assert set(work.kinds) == {("nodes", "float32"), ("nodes", "bfloat16")}


def test_classification_of_products_does_not_depend_on_the_number_of_structures() -> None:
    """The width is 16, so that weight matrices have as many rows as a batch of 16 structures."""
    model = make_model()
    assert model.config.hidden_dim == 16

    def count_flops_per_graph(graphs: int) -> dict[str, float]:
        batch = make_batch([make_molecule(20, seed=k) for k in range(graphs)])
        weights = model.gate(batch.composition)
        counts = count_work(lambda: batched_heads(model, batch, weights), get_shape(batch)).flops
        return {kind_of_rows: n / graphs for (kind_of_rows, _), n in counts.items()}

    smaller, equal, larger = (count_flops_per_graph(graphs) for graphs in (8, 16, 40))
    for kind in ("edges", "nodes", "heads"):
        # operations on the table of 119 elements count as operations on atoms
        assert smaller[kind] == pytest.approx(larger[kind], rel=0.2), kind
        assert equal[kind] == pytest.approx(larger[kind], rel=0.2), kind


@pytest.mark.parametrize("backbone", ["painn", "schnet", "egnn"])
def test_padded_batches_are_classified_by_their_shape(backbone: str) -> None:
    """The counts are those of unpadded batches, up to the padding."""
    model = make_model(ModelConfig(backbone=backbone, hidden_dim=16, dim_sharedlayers=8, dim_headlayers=8))  # type: ignore[arg-type]
    batch = make_batch([make_molecule(), make_crystal()])
    shape = get_shape(batch)
    stage = StaticGraphs(batched_heads)
    weights = model.gate(batch.composition)
    unpadded = count_work(lambda: batched_heads(model, batch, weights), shape).flops
    padded = count_work(lambda: stage(model, batch, weights), stage.buckets.assign(shape)).flops
    assert padded.keys() == unpadded.keys()
    assert all(unpadded[kind] <= padded[kind] < 1.6 * unpadded[kind] for kind in unpadded)


def test_fused_messages_are_counted_by_their_loops() -> None:
    n, e, width, columns = 5, 12, 8, 7
    phi, v = torch.zeros(n, 3 * width), torch.zeros(3, n, width)
    radial, unit, end = torch.zeros(e, columns), torch.zeros(e, 3), torch.zeros(e, dtype=torch.long)
    assert flops.count_messages(phi, v, radial, None, unit, end, end) == e * width * (6 * columns + 16)
    to_s, to_v = torch.zeros(n, width), torch.zeros(3, n, width)
    for nodes, flops_per_element in ((True, 12 * columns + 30), (False, 8 * columns + 20)):
        backward_flops = flops.count_messages_backward(to_s, to_v, phi, v, radial, None, unit, end, end, nodes)
        assert backward_flops == e * width * flops_per_element
    d_unit, d_radial = unit, radial
    for d_phi, d_v, second, of_filter in (
        (phi, v, 28 * columns + 92, 12 * columns + 27),
        (None, None, 20 * columns + 53, 8 * columns + 20),
    ):
        tangents = (d_phi, d_v, d_radial, d_unit)
        args = (to_s, to_v, phi, v, radial, None, unit, end, end, *tangents)
        assert flops.count_messages_second(*args) == e * width * second
        assert flops.count_filter_second(*args[:5], *args[6:]) == e * width * of_filter
    for name in messages.SCHEMAS:
        assert getattr(torch.ops.gfm_harness, name) in flop_registry, name


def test_products_of_heads_and_by_the_operator_are_counted() -> None:
    a, b = torch.randn(20, 6), torch.randn(6, 9)
    messages.load(torch.device("cpu"))
    work = count_work(lambda: torch.ops.gfm_harness.multiply_add(a, b, None), Shape(3, 20, 50))
    assert work.flops == {("nodes", "float32"): 2 * 20 * 6 * 9}
    assert work.kinds == {("nodes", "float32"): (20, 6, 9)}
    x, parameters = torch.randn(3, 6), [torch.randn(4, 6, 1), torch.randn(4, 1, 1)]
    x.requires_grad_()
    work = count_work(
        lambda: evaluate_own_heads(x, torch.tensor([0, 2, 2]), parameters, "silu")[0].sum().backward(), Shape(3, 20, 50)
    )
    assert work.flops == {("heads", "float32"): (4 + 12) * 3 * 6}


def test_filters_are_counted_by_the_products_of_values_and_slopes() -> None:
    messages.load(torch.device("cpu"))
    layers = [torch.randn(5, 6), torch.randn(5), torch.randn(5, 5), torch.randn(5)]
    work = count_work(
        lambda: torch.ops.gfm_harness.radial_filters(torch.rand(7, 1), 6, 4.0, -60.0, layers), Shape(3, 20, 50)
    )
    assert work.flops == {("messages", "float32"): 2 * (2 * 7 * 6 * 5 + 2 * 7 * 5 * 5)}


@pytest.mark.parametrize(("needs_r_grad", "inner_products"), [(False, 4), (True, 5)])
def test_gradients_of_filters_are_counted_by_their_products(needs_r_grad: bool, inner_products: int) -> None:
    messages.load(torch.device("cpu"))
    layers = [torch.randn(5, 6), torch.randn(5), torch.randn(3, 5), torch.randn(3)]
    grads = [torch.randn(7, 3), torch.randn(7, 3)]
    work = count_work(
        lambda: torch.ops.gfm_harness.radial_filters_backward(
            grads, torch.rand(7, 1), 6, 4.0, -60.0, layers, needs_r_grad
        ),
        Shape(3, 20, 50),
    )
    assert work.flops == {("messages", "float32"): 2 * 7 * (inner_products * 6 * 5 + 4 * 5 * 3)}


def test_couplings_of_neighbours_are_counted_by_their_loops() -> None:
    edges, rows, components, width, paths = 12, 6, 4, 8, 3
    g, h = torch.zeros(5, rows, width), torch.zeros(7, components, width)
    k, w = torch.zeros(edges, rows, components), torch.zeros(edges, paths, width)
    values = {"g": g, "k": k, "h": h, "w": w}
    for argument, name in couplings.COUPLING.operators.items():
        inputs = [value for x, value in values.items() if x != argument]
        count = flop_registry[getattr(torch.ops.gfm_harness, name)](*inputs, paths, [], out_val=values[argument])
        assert count == edges * rows * width * (2 * components + 1), name


def test_every_stage_is_counted_and_the_fused_one_moves_less() -> None:
    model = make_model()
    batch = make_batch([make_molecule(), make_crystal()])
    weights = model.gate(batch.composition)
    messages.load(torch.device("cpu"))
    counted = {
        s.name: count_work(lambda s=s: s.predict_eager()(model, batch, weights), get_shape(batch))  # type: ignore[misc]
        for s in LADDER
    }
    assert all(c.flops.total() > 0 and c.bytes > 0 for c in counted.values())
    assert counted["torch_compile"] == counted["batched_heads"]
    assert counted["baseline"].matrix_flops > 10 * counted["batched_heads"].matrix_flops
    assert not any(kind_of_rows == "edges" for kind_of_rows, _ in counted["fused_messages"].kinds)
    assert counted["fused_messages"].bytes < 0.5 * counted["batched_heads"].bytes
    assert ("nodes", "bfloat16") in counted["mixed_precision"].kinds


def test_every_operator_is_counted_or_element_wise() -> None:
    """The shipped model uses operators that the model of the test above does not."""
    prefix = f"{messages.NAMESPACE}::"
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith(prefix)]
    packets = {getattr(torch.ops.gfm_harness, name.removeprefix(prefix).partition(".")[0]) for name in names}
    assert len(packets) > 15
    assert packets == flops.UNCOUNTED | {packet for packet in packets if packet in flop_registry}


def test_the_compiler_reports_the_traffic_of_its_kernels() -> None:
    x, y = torch.randn(1000, dtype=torch.float64), torch.randn(1000, dtype=torch.float64)
    function = torch.compile(lambda a, b: (a * b).sin() + 1.25, dynamic=False)
    assert count_compiled_bytes(lambda: function(x, y)) == 8 * 3000
    assert count_compiled_bytes(lambda: function(x, y)) is None, "nothing is compiled a second time"


def write_control_group(folder: Path, version: int, limit: str, used: int, inactive: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = memory.CGROUP_V1_FILES if version == 1 else memory.CGROUP_V2_FILES
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {inactive}\n")


def test_free_memory_of_a_control_group_is_its_limit_minus_unreclaimable_memory(tmp_path: Path) -> None:
    cgroup_file = tmp_path / "cgroup"
    assert list_cgroup_free_bytes(cgroup_file, tmp_path) == []
    cgroup_file.write_text("0::/slurm/job_7/step_0\n")
    write_control_group(tmp_path / "slurm" / "job_7" / "step_0", 2, "max", 3000, 0)
    assert list_cgroup_free_bytes(cgroup_file, tmp_path) == []
    write_control_group(tmp_path / "slurm" / "job_7", 2, "5000", 4000, 500)
    write_control_group(tmp_path / "slurm", 2, "9000", 4000, 500)
    write_control_group(tmp_path, 2, "1", 0, 0)  # a real root group has no limit, but its file is read all the same
    assert list_cgroup_free_bytes(cgroup_file, tmp_path) == [1500, 5500, 1]
    cgroup_file.write_text("5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n")
    write_control_group(tmp_path / "memory" / "a", 1, "7000", 1000, 200)
    assert 6200 in list_cgroup_free_bytes(cgroup_file, tmp_path)
    assert measure_free_bytes(torch.device("cpu")) > 0


def test_largest_batch_is_proportional_to_free_memory_minus_a_reserve() -> None:
    assert estimate_largest_batch(1 << 20, 4, 100 << 20) == int(memory.USABLE_SHARE * 400)
    assert estimate_largest_batch(1 << 40, 16, 1 << 20) == 1


def test_memory_grows_no_faster_than_batches() -> None:
    """The choice of a batch size by free memory relies on this."""
    model = make_model()

    def measure_peak(copies: int) -> int:
        batch = make_batch([make_molecule(20, seed=k % 4) for k in range(4 * copies)])
        weights = model.gate(batch.composition)
        return measure_peak_bytes(lambda: batched_heads(model, batch, weights), torch.device("cpu"))

    assert measure_peak(8) <= 8 * 1.02 * measure_peak(1)


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
def test_operations_are_classified(operation: str, group: str) -> None:
    assert classify_operation(operation) == group
