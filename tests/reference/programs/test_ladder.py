"""The ladder program: its events, batch sizes chosen by free memory, and the allocator of each stage."""

from __future__ import annotations

import json
import resource
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.experiments.ladder.metrics import build_ladder_table
from harness.protocol import events
from harness.protocol.events import CaseLog
from harness.protocol.programs.ladder import LadderFacts, LadderParameters
from harness.protocol.records import Done, Start
from harness.reference.inference.prediction import Predict, Prediction, baseline
from harness.reference.profiling import memory
from harness.reference.profiling import timing as measure
from harness.reference.profiling.timing import measure_peak_bytes
from harness.reference.programs.ladder import program, workload
from harness.reference.programs.ladder.prepared_stage import apply_allocator
from harness.reference.programs.ladder.stages import LADDER, Stage, select_stages
from harness.reference.programs.ladder.workload import prepare_batch
from harness.results.runs import load_runs
from tests.reference.conftest import make_model

SIZES = {"hidden_dim": 8, "num_conv_layers": 2, "num_sharedlayers": 0, "dim_headlayers": 4, "readout": "sum"}
CASE: dict[str, Any] = {
    "workload": "random", "precision": "fp64", "model": SIZES, "stages": ["baseline", "batched_heads"], "batch_size": 2,
    "rounds": 2, "atoms": [2, 6],
}  # fmt: skip


def run_ladder(folder: Path, **parameters: Any) -> list[events.Event]:
    log = CaseLog(folder / "events.jsonl", "ladder")
    program.run(LadderParameters(**CASE | parameters), log, folder)
    return list(events.read(folder / "events.jsonl"))


def get_facts(log_events: list[events.Event]) -> dict[str, Any]:
    return {e["name"]: e["value"] for e in log_events if e["event"] == "fact"}


def test_every_kind_of_matrix_product_has_a_measured_ceiling(tmp_path: Path) -> None:
    log_events = run_ladder(tmp_path)
    facts_by_name = get_facts(log_events)
    warm_ups = [e for e in log_events if e["event"] == "warm_up"]
    assert [e["stage"] for e in warm_ups] == CASE["stages"]
    assert all(e["memory_traffic_bytes"] > 0 and e["peak_bytes"] > 0 for e in warm_ups)
    ceilings = {(p["operation"], p["dtype"]) for p in facts_by_name["ceilings"]["products"]}
    total = sum(f["flops"] for e in warm_ups for f in e["flops"])
    assert all(
        (f["operation"], f["dtype"]) in ceilings or f["flops"] < 0.01 * total for e in warm_ups for f in e["flops"]
    )
    assert facts_by_name["free_bytes"] > 0
    (profile,) = [e for e in log_events if e["event"] == "profile"]
    assert sum(g["fraction"] for g in profile["groups"]) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lower_precisions_have_verdicts_too(precision: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny-local" / "case"
    folder.mkdir(parents=True)
    parameters = CASE | {"precision": precision, "rounds": 6}
    case = {"id": "1", "name": "case", "suite": "tiny", "program": "ladder", "parameters": parameters}
    (folder / "case.json").write_text(json.dumps(case))
    log = CaseLog(folder / "events.jsonl", "ladder")
    log.write(Start())
    program.run(LadderParameters(**parameters), log, folder)
    log.write(Done())
    (folder / "exit_code").write_text("0\n")
    assert build_ladder_table(load_runs(tmp_path / "runs"))["verdict"].tolist() == ["ok", "ok"]


def test_automatic_batch_size_fits_into_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = 8 << 20
    monkeypatch.setattr(workload, "measure_free_bytes", lambda _: free)
    log_events = run_ladder(tmp_path, batch_size="auto", batches=1, rounds=1, stages=["baseline"])
    choice = get_facts(log_events)["auto_batch_size"]
    assert choice["free_bytes"] == free
    assert choice["batch_size"] > 4 * choice["probe_structures"]
    (warm_up,) = [e for e in log_events if e["event"] == "warm_up"]
    assert 0.3 * free < warm_up["peak_bytes"] < free
    assert {e["structures"] for e in log_events if e["event"] == "sample"} == {choice["batch_size"]}


def test_the_stage_that_takes_most_memory_decides_the_batch_size() -> None:
    config = LadderParameters(**CASE | {"batch_size": "auto", "stages": ["baseline", "encoder_reuse"]})
    model = make_model()
    batch, _ = prepare_batch(workload.make_structures(config, workload.PROBE_STRUCTURES), model, config)
    weights = model.gate(batch.composition)
    stages = select_stages(config)
    peaks = [
        measure_peak_bytes(lambda s=s: s.predict_eager()(model, batch, weights), torch.device("cpu")) for s in stages
    ]  # type: ignore[misc]
    recorded: list[LadderFacts] = []

    class Log:
        record_facts = recorded.append

    size = workload.choose_batch_size(config, model, Log())  # type: ignore[arg-type]
    (fact,) = (facts.auto_batch_size for facts in recorded)
    assert fact is not None
    assert fact.batch_size == size
    assert fact.probe_peak_bytes == pytest.approx(max(peaks), rel=0.01)


def test_each_stage_sets_its_allocator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of a stage does not depend on which stage begins a round."""
    mode: list[str] = []
    modes: dict[str, set[str]] = {}
    original = memory.set_allocator_mode

    def set_mode(requested: memory.AllocatorMode) -> bool:
        mode[:] = [requested]
        return original(requested)

    def record_mode(name: str) -> Predict:
        def predict(*arguments: Any) -> Prediction:
            modes.setdefault(name, set()).add(mode[0])
            return baseline(*arguments)

        return predict

    stages = tuple(Stage(name, lambda _, name=name: record_mode(name), tuned_allocator=name in "cd") for name in "abcd")  # type: ignore[misc]
    monkeypatch.setattr(memory, "set_allocator_mode", set_mode)
    monkeypatch.setattr(program, "select_stages", lambda _: stages)
    run_ladder(tmp_path, rounds=5)
    assert modes == {"a": {"default"}, "b": {"default"}, "c": {"tuned"}, "d": {"tuned"}}


@pytest.mark.skipif(sys.platform != "linux", reason="glibc exists only on Linux")
def test_a_tuned_stage_starts_with_retained_pages(tmp_path: Path) -> None:
    """This holds even after a stage without the tuned allocator has used and returned more memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # other tests leave holes in the heap of this process
        page_faults = fresh.submit(count_page_faults_of_a_tuned_stage, tmp_path).result()
    assert len(page_faults) == 8
    assert sum(page_faults) < 0.1 * len(page_faults) * 6 * 20 * 256, page_faults


def count_page_faults_of_a_tuned_stage(folder: Path) -> list[int]:
    """Return the page faults of each timed call of a stage of six large tensors, which runs after one of twelve."""
    page_faults: list[int] = []
    timing: list[bool] = []
    original = measure.time_call

    def time_call(call: measure.Call, device: torch.device) -> float:
        timing.append(True)
        elapsed = original(call, device)
        timing.clear()
        return elapsed

    def allocate(count: int, is_recorded: bool) -> Predict:
        def predict(*arguments: Any) -> Prediction:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            tensors = [torch.zeros((20 + k) << 20, dtype=torch.uint8) for k in range(count)]
            if is_recorded and timing:
                page_faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
            assert len(tensors) == count
            return baseline(*arguments)

        return predict

    stages = (Stage("a", lambda _: allocate(12, False)), Stage("b", lambda _: allocate(6, True), tuned_allocator=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(program, "select_stages", lambda _: stages)
        patch.setattr(measure, "time_call", time_call)
        run_ladder(folder, rounds=4, batches=2)
    return page_faults


def test_without_glibc_only_the_tuned_stage_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_not_glibc(*_: object) -> None:
        raise memory.NotGlibc("no glibc")

    monkeypatch.setattr(memory, "set_allocator_mode", raise_not_glibc)
    for stage in LADDER:
        if stage.name == "tuned_allocator":
            with pytest.raises(RuntimeError, match="no glibc"):
                apply_allocator(stage, torch.device("cpu"))
        else:
            apply_allocator(stage, torch.device("cpu"))
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="memory on cuda is managed by torch itself"):
        apply_allocator(next(s for s in LADDER if s.name == "tuned_allocator"), torch.device("cuda"))
