"""Training with fused messages: gradients match unfused ones and are bitwise reproducible; training steps are timed."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, library, nn
from torch._dynamo.utils import counters

from harness.experiments.ladder.training_steps import build_training_steps_table
from harness.experiments.ladder.training_steps_page import build_steps_sections
from harness.protocol.errors import UsageError
from harness.protocol.events import read_last_events
from harness.protocol.programs.training_steps import STEP_STAGES
from harness.reference.data.batch import Batch
from harness.reference.data.neighbours import build_neighbour_list
from harness.reference.data.structure import Structure
from harness.reference.distributed.group import ProcessGroup
from harness.reference.distributed.launch import RankInfo
from harness.reference.models.foundation import FoundationModel
from harness.reference.models.message_backend import find_unavailable_reason
from harness.reference.ops import jit_build, messages, segment_sums
from harness.reference.ops.messages import MessageInputs
from harness.reference.ops.unfused_messages import compute_unfused_messages, list_float_inputs, make_terms
from harness.reference.profiling.flops import WorkCount, count_work
from harness.reference.programs import training_steps
from harness.reference.programs.training_steps import StepResult, TimedStep, compute_step_errors
from harness.reference.training.compile import compile_loss
from harness.reference.training.loader import LabelledBatch
from harness.reference.training.loss import Errors, Labels, MultiTaskLoss, PerGraphErrors, collate_labelled
from harness.reference.training.run_facts import describe_identity
from harness.results.runs import RunRecord
from tests.reference.conftest import SMALL, make_crystal, make_model, make_molecule
from tests.reference.training.test_training import SHORT, get_event_values, get_fact, run_training
from tests.support.programs import run_program

TINY: dict[str, Any] = {
    "precision": "fp64", "model": {"hidden_dim": 16, "num_conv_layers": 2, "dim_headlayers": 8}, "batch_size": 3,
    "batches": 2, "rounds": 3, "atoms": [1, 9],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _restore_torch_settings() -> Iterator[None]:
    messages.load(torch.device("cpu"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compile only to graphs and their derivatives, since generating code takes a minute."""
    compile_module = nn.Module.compile

    def compile_quickly(module: nn.Module, **options: Any) -> None:
        compile_module(module, backend="aot_eager", fullgraph=True, **options)

    monkeypatch.setattr(nn.Module, "compile", compile_quickly)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # without the copies of libraries on this node
    monkeypatch.setenv("CXX", "no-such-compiler")
    jit_build.load.cache_clear()
    yield
    jit_build.load.cache_clear()


def label_batch(structures: list[Structure]) -> LabelledBatch:
    """Return structures of different heads with random labels; the first has no forces."""
    rng = np.random.default_rng(0)
    labelled = [
        replace(s, head=k % 16, energy=rng.normal(), forces=rng.normal(size=(len(s), 3)) if k else None)
        for k, s in enumerate(structures)
    ]
    graphs = [build_neighbour_list(s, cutoff=SMALL.cutoff, max_neighbours=SMALL.max_neighbours) for s in labelled]
    return collate_labelled(graphs, torch.zeros(16, 119, dtype=torch.float64), torch.float64)


BATCHES = {
    "ragged": [make_molecule(), make_molecule(1, seed=7), make_crystal(), make_molecule(12, seed=8)],
    "periodic": [make_crystal(1), make_crystal(3, seed=5)],
    "no edges": [make_molecule(1), make_molecule(1, seed=2)],
}


def make_step(model: FoundationModel, *, fused: bool, compiled: bool = False) -> TimedStep:
    module = PerGraphErrors(model, fused=fused)
    if compiled:
        torch._dynamo.config.trace_autograd_ops = True
        module.compile(dynamic=True, fullgraph=True, backend="aot_eager")
    return TimedStep("", module, model, MultiTaskLoss(10.0, 4))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.slow
def test_fused_step_has_the_unfused_loss_and_gradient(compiled: bool) -> None:
    model = make_model(SMALL.replace(num_conv_layers=2)).requires_grad_(True)
    unfused, fused = make_step(model, fused=False), make_step(model, fused=True, compiled=compiled)
    for name, structures in BATCHES.items():
        labelled = label_batch(structures)
        expected, got = unfused.take_step(labelled), fused.take_step(labelled)
        assert got.gradient.shape == expected.gradient.shape
        errors = compute_step_errors(got, expected)
        assert float(str(errors["loss_error"])) < 1e-12, name
        assert float(str(errors["gradient_error"])) < 1e-10, name


def test_a_step_is_bitwise_reproducible_on_two_threads() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(2)
    step = make_step(make_model(SMALL.replace(hidden_dim=40)).requires_grad_(True), fused=True)
    labelled = label_batch([make_molecule(30, seed=k) for k in range(6)])
    for before, after in pairwise(step.take_step(labelled) for _ in range(3)):
        assert before.loss == after.loss
        assert torch.equal(before.gradient, after.gradient)


def test_second_derivatives_are_bitwise_reproducible_on_any_number_of_threads() -> None:
    terms, output_gradients, directions = make_second_derivative_terms(150, 2500, 67, 7, dtype=torch.float32)
    results = []
    for threads in (1, 2, 3, 2, 1):
        torch.set_num_threads(threads)
        results.append(messages._compute_fused_double_backward(*output_gradients, terms, directions, [True] * 7))
    for before, after in pairwise(results):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True) if a is not None and b is not None)


def make_second_derivative_terms(
    *sizes: int, with_v: bool = True, with_nodes: bool = True, dtype: torch.dtype = torch.float64
) -> tuple[MessageInputs, list[Tensor], dict[str, Tensor]]:
    """Return inputs, gradients of the messages, and directions of second derivatives for edges and, if asked, nodes."""
    terms = make_terms(*sizes, with_v=with_v, dtype=dtype)
    terms = MessageInputs(*(x if x is None else x.detach() for x in terms))  # type: ignore[arg-type]
    output_gradients = [torch.randn_like(x) for x in messages.messages(terms)]
    names = ("phi", "v", "radial", "unit") if with_nodes else ("radial", "unit")
    return terms, output_gradients, {n: torch.randn_like(x) for n in names if (x := getattr(terms, n)) is not None}


# (atoms, edges, width, columns): narrower than a SIMD vector; many columns; no multiple of a vector; no edges
SIZES = [(5, 9, 3, 2), (20, 300, 19, 30), (40, 500, 67, 7), (3, 0, 8, 7)]


@pytest.mark.parametrize("with_nodes", [True, False], ids=["nodes", "edges alone"])
@pytest.mark.parametrize("with_v", [True, False], ids=["v", "no v"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_one_pass_equals_a_pass_for_each_direction(
    sizes: tuple[int, int, int, int], with_v: bool, with_nodes: bool
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        terms, output_gradients, directions = make_second_derivative_terms(
            *sizes, with_v=with_v, with_nodes=with_nodes, dtype=dtype
        )
        needed = [True, True, True, with_v, True, True, True]
        single_pass = messages._compute_fused_double_backward(*output_gradients, terms, directions, needed)
        for got, expected in zip(
            single_pass, messages._compute_double_backward(*output_gradients, terms, directions, needed), strict=True
        ):
            assert (got is None) == (expected is None)
            if got is not None and expected is not None and expected.numel():
                assert (got - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("with_nodes", [True, False], ids=["nodes", "edges alone"])
@pytest.mark.parametrize("with_v", [True, False], ids=["v", "no v"])
def test_second_derivatives_are_registered_correctly(with_v: bool, with_nodes: bool) -> None:
    terms, output_gradients, directions = make_second_derivative_terms(
        5, 20, 6, 4, with_v=with_v, with_nodes=with_nodes
    )
    node_and_edge_directions = [directions.get(name) for name in ("phi", "v", "radial", "unit")]
    library.opcheck(
        torch.ops.gfm_harness.messages_second.default, (*output_gradients, *terms, *node_and_edge_directions)
    )
    unweighted = (*output_gradients, *terms[:3], *terms[4:], *node_and_edge_directions)
    library.opcheck(torch.ops.gfm_harness.filter_second.default, unweighted)
    with pytest.raises((ValueError, RuntimeError), match="tangents do not fit"):
        torch.ops.gfm_harness.messages_second(
            *output_gradients, *terms, *node_and_edge_directions[:2], directions["radial"][:-1], directions["unit"]
        )


def test_third_derivatives_match_unfused_messages() -> None:
    terms = make_terms(3, 6, 2, 2)

    def compute_third_derivatives(formulation: object) -> list[Tensor]:
        s, v = formulation(terms)  # type: ignore[operator]
        inputs = list_float_inputs(terms)
        first = torch.autograd.grad((s**2).sum() + (v**2).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((x**2).sum() for x in first), inputs, create_graph=True)  # type: ignore[arg-type]
        return list(torch.autograd.grad(sum((x**2).sum() for x in second), inputs))  # type: ignore[arg-type]

    for got, expected in zip(
        compute_third_derivatives(messages.messages), compute_third_derivatives(compute_unfused_messages), strict=True
    ):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_fused_training_has_the_losses_of_unfused_training(tmp_path: Path, quick_compiler: None) -> None:
    options: dict[str, Any] = {"datasets": ["qm7x", "oc2022"], "samples_per_epoch": 32}
    for name in ("unfused", "eager", "compiled"):
        (tmp_path / name).mkdir()
    unfused = run_training(tmp_path / "unfused", **options, message_backend="unfused")
    assert get_fact(unfused, "runtime")["message_backend"] == "unfused"
    for name in ("eager", "compiled"):
        log = run_training(tmp_path / name, **options, compile=name == "compiled")
        observed = get_fact(log, "runtime")
        assert (observed["message_backend"], observed.get("unfused_reason"), observed["compiled"]) == (
            "fused",
            None,
            name == "compiled",
        )
        assert get_event_values(log, "epoch", "loss") == pytest.approx(
            get_event_values(unfused, "epoch", "loss"), rel=1e-8
        )


def test_without_a_compiler_unfused_messages_are_used_and_the_reason_recorded(
    tmp_path: Path, no_compiler: None
) -> None:
    log = run_training(tmp_path, epochs=1, samples_per_epoch=16, datasets=["qm7x"])
    observed = get_fact(log, "runtime")
    assert (observed["message_backend"], observed["unfused_reason"]) == (
        "unfused",
        "no C++ compiler 'no-such-compiler'",
    )
    assert math.isfinite(get_event_values(log, "epoch", "loss")[0])


@pytest.mark.parametrize("backbone", ["egnn", "painn"])
def test_sums_by_pytorch_are_recorded_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    monkeypatch.setattr(segment_sums, "load", lambda: "no C++ compiler")
    model = SHORT["model"] | {"backbone": backbone}
    log = run_training(tmp_path, epochs=1, samples_per_epoch=16, datasets=["qm7x"], model=model)
    assert get_fact(log, "runtime")["default_sums_reason"] == "no C++ compiler"
    assert segment_sums.find_default_reason("cuda") is None


def test_other_backbones_and_devices_have_no_fused_messages() -> None:
    assert find_unavailable_reason("egnn", torch.device("cpu")) == "only painn and pnaeq have fused messages, not egnn"
    assert str(find_unavailable_reason("painn", torch.device("meta"))).endswith("not on meta")
    assert find_unavailable_reason("painn", torch.device("cpu")) is None


def test_unfused_messages_keep_the_identity_of_older_states() -> None:
    model, world = make_model(), ProcessGroup(RankInfo(), torch.device("cpu"))
    before = describe_identity(model, SHORT, world)
    assert describe_identity(model, SHORT | {"message_backend": "unfused"}, world) == before
    assert describe_identity(model, SHORT | {"message_backend": "fused"}, world) != before


def run_steps(folder: Path, **parameters: Any) -> RunRecord:
    """Run the program and return its record as the report reads it."""
    all_parameters = TINY | parameters
    events = read_last_events(run_program("training_steps", all_parameters, folder).path)
    return RunRecord(
        str(folder),
        {"name": "tiny", "suite": "tiny", "program": "training_steps", "parameters": all_parameters}, "done",
        facts={e["name"]: e["value"] for e in events if e["event"] == "fact"},
        samples=[e for e in events if e["event"] == "sample"],
        stages={e["stage"]: e for e in events if e["event"] in ("warm_up", "unavailable")},
        events_by_kind={"rounds_ended": [e for e in events if e["event"] == "rounds_ended"]},
    )  # fmt: skip


@pytest.mark.slow
def test_every_stage_is_timed_and_correct_in_every_round(tmp_path: Path, quick_compiler: None) -> None:
    record = run_steps(tmp_path)
    assert len(record.samples) == len(STEP_STAGES) * 3 * 2
    first = [next(s["stage"] for s in record.samples if s["round"] == k) for k in range(3)]
    assert first == list(STEP_STAGES), "each round begins with another stage"
    table = build_training_steps_table([record]).set_index("stage")
    assert list(table["verdict"]) == ["ok"] * 3
    assert (table["gradient_error"] < 1e-12).all()
    assert table.loc["baseline", "speedup"] == 1
    assert (table["step_s"] > 0).all()
    assert (table["peak_bytes"] > 0).all()
    baseline_samples = [s for s in record.samples if s["stage"] == "baseline"]
    round_s = [sum(s["device_s"] for s in baseline_samples if s["round"] == k) / 2 for k in range(3)]
    assert table.loc["baseline", "step_s"] == pytest.approx(np.median(round_s))
    assert record.facts["workload"]["structures"] == 6
    page = str(build_steps_sections(table.reset_index(), [record]))
    assert "3 rounds" in page
    assert "labels are random" in page
    assert "FP64 training step" in page


def test_the_time_of_the_first_step_excludes_the_counting_of_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = count()
    monkeypatch.setattr(training_steps, "time", SimpleNamespace(perf_counter=lambda: next(ticks), time=time.time))

    def count_slowly(call: Callable[[], object], shape: Any) -> WorkCount:
        next(ticks)
        return count_work(call, shape)

    monkeypatch.setattr(training_steps, "count_work", count_slowly)
    record = run_steps(tmp_path, stages=["baseline"], rounds=1)
    assert record.stages["baseline"]["first_call_s"] == 1


class SumOfPositions(nn.Module):
    """A loss that is easy to compile."""

    def forward(self, batch: Batch, labels: Labels) -> Errors:
        """Return errors that depend on positions alone."""
        return Errors(batch.positions.sum(1), batch.positions.square().sum(1))


def test_a_split_graph_of_another_stage_is_not_reported(quick_compiler: None) -> None:
    counters["graph_break"]["of another stage"] += 1
    assert compile_loss(SumOfPositions(), label_batch([make_molecule(3)])).eager_reason is None


def test_without_a_compiler_only_the_fused_stage_is_unavailable(tmp_path: Path, no_compiler: None) -> None:
    record = run_steps(tmp_path, stages=["baseline", "fused_messages"], rounds=1)
    table = build_training_steps_table([record]).set_index("stage")
    assert table.loc["fused_messages", "verdict"] == "unavailable: no C++ compiler 'no-such-compiler'"
    assert table.loc["baseline", "verdict"] == "ok"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return run_steps(tmp_path_factory.mktemp("steps"), stages=["baseline"], rounds=2)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ok"),
        ({"gradient_error": 2e-9}, "incorrect"),
        ({"loss_error": 2e-9}, "incorrect"),
        ({"gradient_error": math.nan}, "incorrect"),
        ({"finite": False, "gradient_error": None}, "incorrect"),
        ({"dtype": "torch.float32"}, "incorrect"),
    ],
    ids=str,
)
def test_stage_with_a_wrong_gradient_has_no_speedup(record: RunRecord, changes: dict[str, Any], verdict: str) -> None:
    fused = [s | {"stage": "fused_messages", "device_s": s["device_s"] / 4} | changes for s in record.samples]
    parameters = record.case["parameters"] | {"stages": ["baseline", "fused_messages"]}
    record_of_both = replace(record, samples=[*record.samples, *fused], case=record.case | {"parameters": parameters})
    row = build_training_steps_table([record_of_both]).set_index("stage").loc["fused_messages"]
    assert row["verdict"] == verdict
    assert row["speedup"] == pytest.approx(4.0) if verdict == "ok" else pd.isna(row["speedup"])


def test_the_arithmetic_of_a_step_and_its_share_of_the_attainable_are_in_the_table(record: RunRecord) -> None:
    row = build_training_steps_table([record]).set_index("stage").loc["baseline"]
    width, layers = 16, 2
    atoms = sum(e["flops"] for e in record.stages["baseline"]["flops"] if e["operation"] == "nodes")
    # six products for each weight of the two layers, of which the first has fewer
    assert 0.3 < atoms / (6 * 2 * 15 * width**2 * layers * row["atoms"] / 2) < 1.2
    assert row["gflop"] > atoms / 1e9
    assert 0 < row["attainable_fraction"] < 1


def test_step_errors_are_relative() -> None:
    expected = StepResult(2.0, torch.tensor([3.0, 4.0]))
    assert compute_step_errors(StepResult(2.0, torch.tensor([3.0, 4.5])), expected)["gradient_error"] == pytest.approx(
        0.1
    )
    assert compute_step_errors(StepResult(2.5, torch.tensor([3.0, 4.0])), expected)["loss_error"] == pytest.approx(0.25)
    assert compute_step_errors(StepResult(math.nan, torch.tensor([3.0, 4.0])), expected) == {"finite": False}
    assert compute_step_errors(StepResult(2.0, torch.tensor([math.inf, 4.0])), expected) == {"finite": False}


def test_without_a_finite_baseline_a_step_has_no_errors() -> None:
    result = StepResult(2.0, torch.tensor([3.0, 4.0]))
    for baseline in (StepResult(math.nan, result.gradient), StepResult(2.0, torch.tensor([math.nan, 4.0]))):
        assert compute_step_errors(result, baseline) == {}
        assert compute_step_errors(baseline, result) == {"finite": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": ["basline"]}, r"stages.0 is 'basline' \(did you mean 'baseline'\?\)"),
        ({"rounds": 0}, "rounds is 0, expected at least 1"),
        ({"atoms": [9, 2]}, "expected a range"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"width": 3}, "unknown parameter 'width'"),
    ],
)
def test_bad_options_give_one_line_errors(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        run_steps(tmp_path, **options)
